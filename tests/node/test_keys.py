"""Keys on disk: private, of the right length, opened by one passphrase, and never in a message."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import StartError
from node.home import Home
from node.keys import (
    CODE_LETTERS,
    Recovery,
    create_device_key,
    create_human_key,
    is_device_key_sealed,
    load_device_key,
    load_human_key,
    new_recovery_code,
    read_recovery,
    write_recovery,
)
from node.private_file import write_atomic
from node.secret_file import WrongPassphrase, seal, unseal

PASSPHRASE = "correct horse"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home")


def refusal(action: Callable[[], object], kind: type[StartError] = StartError) -> str:
    """The one line with which it was refused."""
    with pytest.raises(kind) as caught:
        action()
    line = str(caught.value)
    assert line.isprintable()
    assert PASSPHRASE not in line
    return line


def test_a_device_key_is_its_raw_seed_in_a_private_file(home: Home) -> None:
    identity = create_device_key(home)

    assert load_device_key(home) == identity
    assert home.identity_key.read_bytes() == identity.seed
    assert stat.S_IMODE(home.identity_key.stat().st_mode) == 0o600
    assert not is_device_key_sealed(home)


def test_a_device_key_may_be_under_a_passphrase(home: Home) -> None:
    identity = create_device_key(home, PASSPHRASE)

    assert is_device_key_sealed(home)
    assert identity.seed not in home.identity_key.read_bytes()
    assert load_device_key(home, PASSPHRASE) == identity
    assert "is under a passphrase and none was given" in refusal(lambda: load_device_key(home))


def test_an_existing_key_is_never_overwritten(home: Home) -> None:
    identity = create_device_key(home)

    assert "already, expected none" in refusal(lambda: create_device_key(home))
    assert load_device_key(home) == identity


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_device_key_of_the_wrong_length_is_refused(home: Home, size: int) -> None:
    write_atomic(home.identity_key, b"k" * size)

    assert refusal(lambda: load_device_key(home)) == (
        f"device key {home.identity_key} has {size} bytes, expected 32; restore a backup"
    )


def test_a_device_key_too_open_or_missing_is_refused(home: Home) -> None:
    assert refusal(lambda: load_device_key(home)).startswith(f"no device key {home.identity_key}")
    create_device_key(home)
    home.identity_key.chmod(0o644)

    assert "has mode 0644, expected 0600" in refusal(lambda: load_device_key(home))


def test_a_human_key_opens_with_its_passphrase_only(home: Home) -> None:
    identity = create_human_key(home, PASSPHRASE)

    assert load_human_key(home, PASSPHRASE) == identity
    assert refusal(lambda: load_human_key(home, "wrong"), WrongPassphrase) == (
        f"wrong passphrase for human key {home.human_key}, or the file is damaged"
    )


def test_an_empty_passphrase_is_refused(home: Home) -> None:
    refusal(lambda: create_human_key(home, ""))

    assert not home.human_key.exists()


def test_a_passphrase_is_the_same_however_it_was_composed() -> None:
    """One system types é as one character, another as two."""
    data = seal(b"secret", "caf\u00e9", kind="human-key")

    assert unseal(data, "cafe\u0301", kind="human-key", what="it") == b"secret"


def test_a_secret_file_of_another_kind_is_refused() -> None:
    """Nobody hands in a backup as a human key."""
    data = seal(b"secret", "p", kind="backup")
    renamed = data.replace(b'"backup"', b'"human-key"')

    assert "is of kind 'backup', expected 'human-key'" in refusal(
        lambda: unseal(data, "p", kind="human-key", what="it")
    )
    refusal(lambda: unseal(renamed, "p", kind="human-key", what="it"), WrongPassphrase)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"n":131072', b'"n":1073741824'),
        (b'"n":131072', b'"n":2'),
        (b'"version":1', b'"version":2'),
        (b'"salt":"', b'"salt":"00'),
        (b'"nonce":"', b'"nonce":"zz'),
        (b'{"agora"', b'["agora"'),
        (b"\n", b""),
    ],
)
def test_a_header_with_other_costs_or_lengths_is_refused_before_any_work(old: bytes, new: bytes) -> None:
    """A swapped file must not make us spend a terabyte of memory."""
    data = seal(b"secret", "p", kind="human-key").replace(old, new, 1)

    refusal(lambda: unseal(data, "p", kind="human-key", what="it"))


def test_a_recovery_code_is_letters_that_are_not_mistaken_and_opens_as_typed(home: Home) -> None:
    code = new_recovery_code()
    recovery = Recovery(recovery_seed=b"r" * 32, human_seed=b"h" * 32, charter=b"sealed")

    write_recovery(home.recovery, recovery, code)

    assert [len(group) for group in code.split("-")] == [5] * 6
    assert set(code) <= {*CODE_LETTERS, "-"}
    assert read_recovery(home.recovery, code.lower().replace("-", " ")) == recovery
    assert "rrrr" not in repr(recovery)
    refusal(lambda: read_recovery(home.recovery, new_recovery_code()), WrongPassphrase)
    assert "already, expected none" in refusal(lambda: write_recovery(home.recovery, recovery, code))
