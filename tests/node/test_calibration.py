"""How far honest engines are apart: measured, kept, and read back, or not believed."""

from pathlib import Path

import msgspec
import pytest

from node.calibration import QUESTIONS, TOKENS, calibrate
from node.tolerances import SAFETY, TOLERANCE_MILLI_MAX, TOLERANCE_MILLI_MIN, Calibration, Tolerances
from runtime.echo import ECHO_MODEL, EchoEngine
from runtime.engine import Digest

DEFAULT = 750


def measured(apart_milli: int) -> Calibration:
    return Calibration(tokens=1_000, apart_milli=apart_milli, measured_at=1.0)


async def test_an_engine_that_never_rounds_is_apart_by_nothing(virtual_time: None) -> None:  # noqa: ARG001
    engine = EchoEngine(repetitions=None, slots=4)

    found = await calibrate(engine, ECHO_MODEL, now_s=7.0)

    assert found.apart_milli == 0
    assert found.tokens >= 3 * len(QUESTIONS) * TOKENS, "each answer is made in three ways, and read"
    assert found.measured_at == 7.0
    assert found.tolerance_milli == TOLERANCE_MILLI_MIN


def test_a_tolerance_is_wider_than_what_was_seen_and_never_absurd() -> None:
    assert measured(180).tolerance_milli == 180 * SAFETY
    assert measured(5).tolerance_milli == TOLERANCE_MILLI_MIN
    widest = TOLERANCE_MILLI_MAX // SAFETY
    assert (measured(widest).is_usable, measured(widest + 1).is_usable) == (True, False)
    assert measured(widest + 1).tolerance_milli == DEFAULT


def test_what_was_measured_is_there_at_the_next_start_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.json"
    one, other = Digest(b"1" * 32), Digest(b"2" * 32)

    Tolerances(path).keep(one, measured(100))
    Tolerances(path).keep(other, measured(200))

    again = Tolerances(path)
    assert (again.milli(one), again.milli(other)) == (100 * SAFETY, 200 * SAFETY)
    assert again.milli(b"3" * 32) == DEFAULT
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"00": 5}',
        b'{"00": {"tokens": 1, "apart_milli": -1, "measured_at": 0}}',
        b'{"00": {"tokens": 1, "apart_milli": 99999999999, "measured_at": 0}}',
        b"\xff",
        b" " * (2 << 20),
    ],
)
def test_a_damaged_file_means_that_nothing_was_measured(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tolerances.json"
    path.write_bytes(content)

    assert Tolerances(path).milli(b"\0" * 32) == DEFAULT


def test_an_absurd_tolerance_in_the_file_lets_nobody_pass(tmp_path: Path) -> None:
    """The attack: whoever writes a million there once has every cheat pass."""
    path = tmp_path / "tolerances.json"
    path.write_bytes(msgspec.json.encode({"00" * 32: measured(1_000_000)}))

    assert Tolerances(path).milli(bytes(32)) == DEFAULT
