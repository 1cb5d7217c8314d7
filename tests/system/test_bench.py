"""The bench measures, ends, and leaves nothing behind. How fast anything was is not asserted: machines differ."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 9


def bench(*arguments: str, temporary: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "node.cli", "bench", "--quick", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_chapter_of_the_bench_writes_its_table(tmp_path: Path) -> None:
    homes = tmp_path / "homes"
    homes.mkdir()
    report = tmp_path / "report.md"

    done = bench("--only", "idle", "--output", str(report), temporary=homes)

    assert (done.returncode, done.stderr) == (0, "")
    rows = [line for line in report.read_text().splitlines() if "joined daemon |" in line]
    assert [len(row.strip("|").split("|")) for row in rows] == [COLUMNS, COLUMNS]
    assert "RSS of a joined daemon" in done.stdout
    assert list(homes.iterdir()) == []


@pytest.mark.slow
def test_the_engine_is_measured_against_a_peer_and_through_the_mesh(tmp_path: Path) -> None:
    """Without llama.cpp's own server on the PATH, the peer is the bare library."""
    done = bench("--only", "engine", "--only", "engine-mesh", temporary=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    for figure in ("engine ÷ bare library, 4 streams", "second turn", "4 adapters mixed", "mesh ÷ engine"):
        assert figure in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_chapter_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    done = bench("--only", "beauty", temporary=tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("no chapter 'beauty', expected one of speed, first-token, auction")
    assert done.stderr.count("\n") == 1
