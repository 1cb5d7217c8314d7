"""The config file is strict: what is not understood is refused with one line that says where."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from node.config import DEFAULT_TOML, Config, write_default
from node.errors import StartError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def refusal(path: Path, text: str | bytes) -> str:
    """The one line with which this file is refused."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StartError) as caught:
        Config.load(path)
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_no_file_means_the_defaults(path: Path) -> None:
    assert Config.load(path) == Config()


def test_what_the_file_says_is_taken(path: Path) -> None:
    path.write_text('owner = "ann"\nlisten = ["/ip4/127.0.0.1/tcp/0"]\nslots = 4\nmdns = false\n')

    assert Config.load(path) == Config(owner="ann", listen=("/ip4/127.0.0.1/tcp/0",), slots=4, mdns=False)


def test_the_file_that_init_writes_shows_every_setting_with_its_default(path: Path) -> None:
    """What the comments claim is what happens."""
    write_default(path, owner='Ann "the" \\ Owner')
    uncommented = "\n".join(line.removeprefix("# ") for line in DEFAULT_TOML.splitlines() if " = " in line)

    assert Config.load(path) == Config(owner='Ann "the" \\ Owner')
    assert list(tomllib.loads(uncommented)) != []
    assert set(tomllib.loads(uncommented)) == {field.name for field in fields(Config)}
    path.write_text(uncommented)
    assert Config.load(path) == Config()


def test_the_default_file_overwrites_nothing(path: Path) -> None:
    path.write_text("slots = 3")

    with pytest.raises(StartError, match="already, expected none"):
        write_default(path, owner="ann")

    assert path.read_text() == "slots = 3"


def test_an_unknown_key_is_refused_with_the_nearest_known_one_and_its_line(path: Path) -> None:
    assert refusal(path, '# comment\nowner = "ann"\nslot = 3\n') == (
        f"{path}:3: unknown key 'slot'; did you mean 'slots'?"
    )
    assert refusal(path, "[market]\nprice = 3\n").startswith(
        f"{path}:1: unknown key 'market'; known are owner, "
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('slots = "2"', ":1: slots is '2', expected a whole number"),
        ("slots = true", ":1: slots is 'True', expected a whole number"),
        ("slots = 2.0", ":1: slots is '2.0', expected a whole number"),
        ("mdns = 1", ":1: mdns is '1', expected true or false"),
        ("owner = 7", ":1: owner is '7', expected a text in quotes"),
        ('listen = "/ip4/0.0.0.0/tcp/1"', ":1: listen is '/ip4/0.0.0.0/tcp/1', expected a list of texts"),
        ("bootstrap = [1]", ":1: bootstrap is '[1]', expected a list of texts"),
        ("\n\nslots = 0", ":3: slots is 0, expected 1 to 64"),
        ("price_prompt_micro = -1", ":1: price_prompt_micro is -1, expected 0 to 1000000000000000"),
        ('listen = ["0.0.0.0:4420"]', ":1: listen has '0.0.0.0:4420', expected a multiaddr"),
        ('gateway = "8420"', ":1: gateway is '8420', expected HOST:PORT"),
        ('gateway = "127.0.0.1:99999"', ":1: gateway is '127.0.0.1:99999', expected HOST:PORT"),
        ('owner = ""', ":1: owner is '', expected 1 to 64 printable characters"),
        ('owner = "a\\nb"', ":1: owner is 'a\\nb', expected 1 to 64 printable characters"),
        ('log_level = "loud"', ":1: log_level is 'loud', expected one of quiet, info"),
        ("battery_percent_min = 101", ":1: battery_percent_min is 101, expected 0 to 100"),
    ],
)
def test_a_wrong_type_or_range_is_refused_with_one_line(path: Path, text: str, expected: str) -> None:
    assert refusal(path, text).startswith(f"{path}{expected}")


def test_what_is_not_toml_is_refused_with_its_line(path: Path) -> None:
    assert "(at line 2, column" in refusal(path, 'owner = "ann"\nslots 3\n')
    assert "is not TOML" in refusal(path, b"\xff\xfe")
    assert "is over 65536 bytes" in refusal(path, "#" * 70_000)


def test_a_world_writable_config_is_refused(path: Path) -> None:
    """Anybody on the machine could have redirected the node."""
    path.write_text("slots = 3")
    path.chmod(0o666)

    with pytest.raises(StartError, match=r"has mode 0666, expected one that others cannot write"):
        Config.load(path)


def test_options_of_the_command_line_are_checked_too() -> None:
    with pytest.raises(StartError, match="slots is 1000, expected 1 to 64"):
        replace(Config(), slots=1_000)


@pytest.mark.parametrize(
    ("gateway", "address"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:8420", ("::1", 8420)), ("localhost:80", ("localhost", 80))],
)
def test_a_gateway_address_is_host_and_port(gateway: str, address: tuple[str, int]) -> None:
    assert Config(gateway=gateway).gateway_address() == address
