"""A backup keeps private data, which nobody else has, and leaves blobs out, which any holder has."""

import stat
import zlib
from pathlib import Path

import msgspec
import pytest
import trio

from node import records
from node.backup import backup, restore
from node.clock import SystemClock
from node.config import write_default
from node.data_directory import DataDirectory
from node.errors import StartError
from node.home import Home
from node.keys import create_device_key
from node.secret_file import seal, unseal


async def furnished(directory: Path) -> Home:
    """A home with a data set, one that was removed, a blob, and a copy that a crash broke off."""
    home = Home.create(directory / "home")
    create_device_key(home)
    write_default(home.config, owner="ann")
    data = DataDirectory(home.data, SystemClock())
    for name, start in (("logs", 0), ("letters", 1_000)):
        source = directory / f"{name}.jsonl"
        source.write_bytes(records.encode((f"prompt {at}", "yes") for at in range(start, start + 30)))
        await data.add(name, source, 4_000)
    await data.remove(data.named("letters")[0].digest)
    home.blobs.mkdir()
    (home.blobs / ("ab" * 32)).write_bytes(b"an adapter")
    (home.data / ".adding-x").mkdir()
    (home.data / ".adding-x" / "train.jsonl").write_bytes(b"torn")
    return home


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    """The home and its backup; a passphrase costs a third of a second each time."""
    directory = tmp_path_factory.mktemp("saved")
    home = trio.run(furnished, directory)
    backup(home, directory / "backup", "pass")
    return home, directory / "backup"


async def test_private_data_comes_back_and_blobs_do_not(saved: tuple[Home, Path], tmp_path: Path) -> None:
    home, source = saved
    before = DataDirectory(home.data, SystemClock())

    restored = restore(source, tmp_path / "new", "pass")

    after = DataDirectory(restored.data, SystemClock())
    assert after.known() == before.known()
    [data_set] = after.sets()
    assert await after.held_out(data_set.digest) == await before.held_out(data_set.digest)
    train = Path("data") / data_set.digest.hex() / "train.jsonl"
    assert (restored.path / train).read_bytes() == (home.path / train).read_bytes()
    assert not restored.blobs.exists()
    files = [path for path in restored.data.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in restored.data.rglob("*") if path.is_dir()} == {
        0o700
    }
    assert b"torn" not in {path.read_bytes() for path in files}


async def test_the_same_records_added_after_a_restore_are_known(
    saved: tuple[Home, Path], tmp_path: Path
) -> None:
    """The salt is in the backup too, so a set keeps the name that its spending is booked under."""
    home, source = saved
    restored = restore(source, tmp_path / "new", "pass")

    data = DataDirectory(restored.data, SystemClock())
    again = await data.add("letters", home.path.parent / "letters.jsonl", 4_000)

    assert again.data_set.digest in {each.digest for each in DataDirectory(home.data, SystemClock()).known()}


@pytest.mark.parametrize("name", ["data/../../evil", "data/salt\n", "/etc/passwd"])
async def test_a_backup_with_a_path_that_leads_elsewhere_restores_nothing(
    saved: tuple[Home, Path], tmp_path: Path, name: str
) -> None:
    forged = tmp_path / "forged"
    forged.write_bytes(_with_file(saved[1].read_bytes(), name))

    with pytest.raises(StartError, match="holds other files than a home's"):
        restore(forged, tmp_path / "new", "pass")

    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "evil").exists()


async def test_a_backup_with_a_damaged_set_restores_nothing(saved: tuple[Home, Path], tmp_path: Path) -> None:
    home, source = saved
    [data_set] = DataDirectory(home.data, SystemClock()).sets()
    forged = tmp_path / "forged"
    forged.write_bytes(_with_file(source.read_bytes(), f"data/{data_set.digest.hex()}/hashes"))

    with pytest.raises(StartError, match="is not as it was written"):
        restore(forged, tmp_path / "new", "pass")

    assert not (tmp_path / "new").exists()


def _with_file(sealed: bytes, name: str) -> bytes:
    contents = msgspec.msgpack.decode(zlib.decompress(unseal(sealed, "pass", kind="backup", what="it")))
    contents["files"][name] = b"evil"
    return seal(zlib.compress(msgspec.msgpack.encode(contents)), "pass", kind="backup")
