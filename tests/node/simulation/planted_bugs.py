"""Planted bugs: small deliberate faults of the production code, each with the promise that it breaks.

A fault is an edit of one function's source, a few words replaced by others, so that what is tested is the production
function as it stands, but for those words. It is in force while its test runs. When the function is renamed, or the
words are not in it exactly once any more, planting fails loudly: the bug has to be thought over anew.
"""

import importlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.node.simulation.story import Story


@dataclass(frozen=True)
class Fault:
    """An edit of one function.

    Attributes:
        where: `module:name` or `module:Class.name`, as it is looked up when it runs.
        edits: the words as they are, and what stands in their place.
        names: what the new words mention and the function's module lacks.
    """

    where: str
    edits: tuple[tuple[str, str], ...]
    names: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the edited function in the place of the right one."""
        module, _, path = self.where.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        assert name in vars(owner), f"{self.where} is not there any more"
        right: Any = vars(owner)[name]
        function: Any = right.fget if isinstance(right, property) else right
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.edits:
            assert source.count(old) == 1, (
                f"{self.where} says {old!r} {source.count(old)} times, expected once"
            )
            source = source.replace(old, new)
        space = {**function.__globals__, **self.names}
        exec(compile(source, f"<a bug in {self.where}>", "exec"), space)
        monkeypatch.setattr(owner, name, space[name])


@dataclass(frozen=True)
class PlantedBug:
    """One bug.

    Attributes:
        name: what the test is called.
        about: what is wrong, in one line.
        promise: what it breaks; of the issue's checkers, or a number of docs/SECURITY.md's promises.
        story: where it shows.
        faults: what has to be wrong for it; more than one where one promise is kept in several places.
        laws: which may catch it, the usual one first; what comes of one fault differs with the seed.
    """

    name: str
    about: str
    promise: str
    story: Story
    laws: tuple[str, ...]
    faults: tuple[Fault, ...]

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Plant all of its faults."""
        for fault in self.faults:
            fault.plant(monkeypatch)


def fault(where: str, *edits: tuple[str, str], **names: Callable[..., Any]) -> tuple[Fault]:
    """Return the one fault that most bugs consist of."""
    return (Fault(where, edits, names),)
