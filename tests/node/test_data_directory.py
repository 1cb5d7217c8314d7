"""Private records as files: who may read them, what a crash leaves, and what refuses the start."""

import os
import stat
from pathlib import Path

import pytest

from node import records
from node.clock import SystemClock
from node.data_directory import DataDirectory
from node.data_sets import DataSet
from node.errors import StartError

SECRET = "the customer's boiler is in the cellar"


def write(path: Path, count: int = 40) -> Path:
    path.write_bytes(records.encode((f"prompt {at}", SECRET) for at in range(count)))
    return path


async def kept(directory: Path, source: Path) -> DataSet:
    return (await DataDirectory(directory, SystemClock()).add("logs", write(source), 4_000)).data_set


async def test_nobody_else_reads_a_record(tmp_path: Path) -> None:
    data_set = await kept(tmp_path / "data", tmp_path / "logs.jsonl")

    directory = tmp_path / "data" / data_set.digest.hex()
    assert [stat.S_IMODE(each.stat().st_mode) for each in (directory.parent, directory)] == [0o700, 0o700]
    assert {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()} == {
        "train.jsonl": 0o600,
        "held_out.jsonl": 0o600,
        "hashes": 0o600,
        "card.json": 0o600,
    }


async def test_the_trainer_finds_the_records_and_only_those_to_train_on(tmp_path: Path) -> None:
    """It reads `data/<digest>/train.jsonl`, in its sandbox."""
    data_set = await kept(tmp_path / "data", tmp_path / "logs.jsonl")

    lines = (tmp_path / "data" / data_set.digest.hex() / "train.jsonl").read_bytes().splitlines()

    assert len(lines) == data_set.samples == 36
    assert {records.hash_of(line) for line in lines} == data_set.records
    assert records.decode(lines[0]).response == SECRET


async def test_a_removed_set_leaves_no_record_on_the_disk(tmp_path: Path) -> None:
    data_set = await kept(tmp_path / "data", tmp_path / "logs.jsonl")

    await DataDirectory(tmp_path / "data", SystemClock()).remove(data_set.digest)

    left = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert [path.name for path in left if SECRET.encode() in path.read_bytes()] == []
    assert {path.name for path in left} == {"salt", "hashes", "card.json"}


async def test_a_set_without_a_budget_is_removed_with_everything(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data", SystemClock())
    added = await data.add("logs", write(tmp_path / "logs.jsonl"), 0)

    await data.remove(added.data_set.digest)

    assert [path.name for path in (tmp_path / "data").iterdir()] == ["salt"]


async def test_a_copy_that_a_crash_broke_off_is_cleared_away(tmp_path: Path) -> None:
    data_set = await kept(tmp_path / "data", tmp_path / "logs.jsonl")
    left = tmp_path / "data" / ".adding-x1y2"
    left.mkdir()
    write(left / "train.jsonl")

    data = DataDirectory(tmp_path / "data", SystemClock())

    assert not left.exists()
    assert data.sets() == (data_set,)


@pytest.mark.parametrize(
    ("name", "content"),
    [("card.json", b"{}"), ("card.json", b'{"version":1}'), ("hashes", b""), ("hashes", b"x" * 17)],
)
async def test_a_set_that_was_tampered_with_refuses_the_start(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """Passed over, its records would come again as if nothing had ever been spent on them."""
    data_set = await kept(tmp_path / "data", tmp_path / "logs.jsonl")
    (tmp_path / "data" / data_set.digest.hex() / name).write_bytes(content)

    with pytest.raises(StartError, match="restore a backup"):
        DataDirectory(tmp_path / "data", SystemClock())


async def test_a_damaged_salt_refuses_the_start(tmp_path: Path) -> None:
    await kept(tmp_path / "data", tmp_path / "logs.jsonl")
    (tmp_path / "data" / "salt").write_bytes(b"")

    with pytest.raises(StartError, match=r"salt has 0 bytes, expected 32"):
        DataDirectory(tmp_path / "data", SystemClock())


async def test_a_directory_or_a_device_is_no_data(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data", SystemClock())

    with pytest.raises(StartError, match="cannot read"):
        await data.add("logs", tmp_path, 4_000)
    os.mkfifo(tmp_path / "pipe")
    for source in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(StartError, match="is no regular file"):
            await data.add("logs", source, 4_000)


async def test_a_crash_in_the_middle_of_removing_leaves_no_record(tmp_path: Path) -> None:
    data_set = await kept(tmp_path / "data", tmp_path / "logs.jsonl")
    directory = tmp_path / "data" / data_set.digest.hex()
    records_left = (directory / "train.jsonl").read_bytes()
    await DataDirectory(tmp_path / "data", SystemClock()).remove(data_set.digest)
    (directory / "train.jsonl").write_bytes(records_left)

    DataDirectory(tmp_path / "data", SystemClock())

    assert not (directory / "train.jsonl").exists()
