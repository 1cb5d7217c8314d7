"""API keys are shown once, kept as hashes, and end when they are revoked."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from node.api_keys import ApiKey, ApiKeyError, ApiKeys, NoSuchKey
from node.errors import StartError

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.json"


def test_a_key_opens_and_is_not_in_the_file(path: Path) -> None:
    key, secret = ApiKeys(path).create("laptop", now=NOON)

    assert secret.startswith("agora_")
    assert len(secret) == len("agora_") + 43  # 256 bits in base64
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ApiKeys(path).check(secret) == key
    assert key == ApiKey(key.id, "laptop", "2026-01-02T12:00:00+00:00", secret[-4:], key.sha256)


def test_only_the_exact_key_opens(path: Path) -> None:
    keys = ApiKeys(path)
    key, secret = keys.create("laptop")

    assert [
        keys.check(guess) for guess in ("", "agora_", secret[:-1], secret + "x", key.sha256, "\ud800")
    ] == [None] * 6


def test_a_revoked_key_opens_nothing_also_for_a_running_daemon(path: Path) -> None:
    """The command line edits the file; the daemon has its own `ApiKeys`."""
    daemon, command = ApiKeys(path), ApiKeys(path)
    key, secret = command.create("laptop")
    other, other_secret = command.create("phone")
    assert daemon.check(secret) == key

    assert command.revoke(key.id) == key

    assert daemon.check(secret) is None
    assert daemon.check(other_secret) == other
    assert daemon.list() == (other,)


def test_revoking_an_unknown_key_says_so_and_changes_nothing(path: Path) -> None:
    keys = ApiKeys(path)
    key, _ = keys.create("laptop")

    with pytest.raises(NoSuchKey, match="no API key 'ffff'; 'agora keys list' shows their ids"):
        keys.revoke("ffff")

    assert keys.list() == (key,)


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines"])
def test_a_name_that_is_none_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ApiKeyError, match="expected 1 to 64 printable characters"):
        ApiKeys(path).create(name)

    assert not path.exists()


def test_a_damaged_or_open_file_is_refused_and_opens_to_nobody(path: Path) -> None:
    keys = ApiKeys(path)
    _, secret = keys.create("laptop")

    path.chmod(0o644)
    assert keys.check(secret) is None
    with pytest.raises(StartError, match="has mode 0644, expected 0600"):
        keys.list()

    path.chmod(0o600)
    path.write_text(json.dumps([{"id": 1}]))
    assert keys.check(secret) is None
    with pytest.raises(StartError, match="are damaged"):
        keys.list()
