"""A scenario: what happens to a world, told as a short Python file.

The file has a docstring, whose first line says what the scenario shows, and `async def story(world)`, which is run
when the world has begun. Those that Agora ships lie in `scenarios/`; a user's own is named by its path.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from node.errors import StartError
from node.simulation import scenarios

if TYPE_CHECKING:
    from node.simulation.world import World

Story = Callable[["World"], Awaitable[None]]

SUFFIX: Final = ".py"
SHAPE: Final = "a Python file with a docstring and 'async def story(world)'"


class ScenarioError(StartError):
    """No such scenario, or its file is not one."""


@dataclass(frozen=True)
class Scenario:
    """A story with its name.

    Attributes:
        name: what `load` finds it by; for a user's file its absolute path.
        about: one line.
        digest: BLAKE2b of a user's file, since the same path may hold another story tomorrow; "" for a shipped one,
            which the commit tells.
    """

    name: str
    about: str
    story: Story
    digest: str = ""


def names() -> list[str]:
    """Return the names of the shipped scenarios, in order."""
    return sorted(module.name for module in pkgutil.iter_modules(scenarios.__path__))


def shipped() -> list[Scenario]:
    """Return the scenarios that Agora ships, by name."""
    return [_shipped(name) for name in names()]


def load(name_or_path: str, digest: str = "") -> Scenario:
    """Return a shipped scenario by its name, or a user's by the path of its file.

    Args:
        name_or_path: whatever ends in `.py` or has a directory in it is a path.
        digest: what the file must hash to, when that is known: a trace of a stranger may name any file of ours, and
            to import one is to run it.

    Raises:
        ScenarioError: there is none, or it is not one; one line.
    """
    path = Path(name_or_path)
    if path.suffix == SUFFIX or path.name != name_or_path:
        return _from_file(path.expanduser().absolute(), digest)
    if name_or_path not in names():
        known = ", ".join(names())
        raise ScenarioError(f"no scenario {name_or_path!r}, expected {known}, or {SHAPE}")
    return _shipped(name_or_path)


def _shipped(name: str) -> Scenario:
    return _scenario(name, importlib.import_module(f"{scenarios.__name__}.{name}"))


def _from_file(path: Path, digest: str) -> Scenario:
    try:
        found = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise ScenarioError(f"cannot read {path} ({error.strerror}), expected {SHAPE}") from error
    if digest and found != digest:
        raise ScenarioError(f"{path} has changed: found digest {found}, expected {digest}")
    spec = importlib.util.spec_from_file_location(f"scenario_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"{path} is no Python file, expected {SHAPE}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ScenarioError(f"{path} does not import ({reason}), expected {SHAPE}") from error
    return _scenario(str(path), module, found)


def _scenario(name: str, module: ModuleType, digest: str = "") -> Scenario:
    story = getattr(module, "story", None)
    if not inspect.iscoroutinefunction(story):
        found = "no story" if story is None else "a story that is no 'async def'"
        raise ScenarioError(f"{name} has {found}, expected {SHAPE}")
    about = (inspect.getdoc(module) or "").partition("\n")[0]
    return Scenario(name, about, story, digest)
