"""What a person types and gets: help with an example for each verb, and one line when something is refused."""

import re
from pathlib import Path

import click
import pytest
import typer

from node.cli.app import app, run

ROOT = Path(__file__).resolve().parents[3]


def commands() -> dict[str, click.Command]:
    """Every verb, those of the groups too, by what is typed."""
    found: dict[str, click.Command] = {}
    top = typer.main.get_command(app)
    assert isinstance(top, click.Group)
    for name, command in top.commands.items():
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": each for below, each in command.commands.items()}
    return found


@pytest.mark.parametrize("verb", [name for name in commands() if name != "up"])
def test_each_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = run([*verb.split(), "--help"])

    shown = capsys.readouterr().out
    assert status == 0
    assert f"agora {verb}" in shown


@pytest.mark.parametrize(("verb", "command"), commands().items())
def test_each_verb_has_an_example(verb: str, command: click.Command) -> None:
    """A group's verbs have theirs."""
    if isinstance(command, click.Group) and not command.invoke_without_command:
        return
    assert f"Example: `agora {verb}" in (command.help or "")


def test_the_readme_lists_exactly_the_verbs_there_are() -> None:
    readme = (ROOT / "README.md").read_text()

    listed = re.findall(r"^\| `agora (\w+)` \|", readme, re.MULTILINE)

    assert sorted(listed) == sorted(verb for verb in commands() if " " not in verb)


def test_every_command_line_of_the_readme_is_one_that_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    known = commands()

    for line in re.findall(r"^\$ (agora .*)", readme, re.MULTILINE):
        words = line.split("#")[0].split()[1:]
        command = known.get(" ".join(words[:2])) or known[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sell"], "no such command 'sell'; run 'agora --help'"),
        (["model", "add"], "missing argument 'FILE.gguf'; run 'agora model add --help'"),
        (["status", "--loud"], "no such option '--loud'; run 'agora status --help'"),
        (
            ["invite", "--expires", "soon", "--home", "HOME"],
            "--expires is 'soon', expected a duration such as 90s, 30m, 24h or 7d",
        ),
        (
            ["model", "add", "none.gguf", "--home", "HOME"],
            "no file HOME/none.gguf, expected a GGUF model; name one that exists",
        ),
        (["chat", "--privacy", "all", "hi"], "--privacy is 'all', expected local, owner or mesh"),
        (
            ["status", "--home", "HOME"],
            "no home HOME; run 'agora init' or 'agora join', or name another with --home",
        ),
        (
            ["restore", "none", "--passphrase-file", "HOME/none"],
            "HOME/none: No such file or directory",
        ),
    ],
)
def test_what_is_refused_comes_back_as_one_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    home = str(tmp_path / "home")
    (tmp_path / "none.txt").touch()
    expected = line.replace("HOME/none.gguf", str(tmp_path / "none.gguf")).replace("HOME", home)

    status = run([word.replace("HOME", home) for word in arguments])

    told = capsys.readouterr()
    assert status != 0
    assert told.out == ""
    assert told.err == expected + "\n"
    assert not Path(home).exists()
