"""An event: one thing that happened, in values that are safe to print.

Values are ids, numbers and short strings. Strings may be a peer's: whatever a terminal or a reader of lines would obey
(control characters, line separators, direction overrides) is escaped before any sink sees it, so nobody forges a line.
What is none of these is shown as its type's name, so that no prompt or key gets in inside an object.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Self

STRING_CHARS_MAX = 256
BYTES_MAX = 64  # shown as hex
ITEMS_MAX = 16  # of a list, tuple or set

Value = str | int | float | bool | None

_HEAD = ("at", "monotonic_s", "event")  # keys of a line that are not fields


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        number: counts the events of this process from 1; 0 for one read back from the file.
        time_s: wall clock, seconds since 1970 in UTC.
        monotonic_s: the clock that rules see.
    """

    number: int
    name: str
    time_s: float
    monotonic_s: float
    fields: Mapping[str, Value] = field(default_factory=dict)

    @property
    def at(self) -> str:
        """The wall clock in ISO 8601, UTC, to the millisecond."""
        moment = datetime.fromtimestamp(self.time_s, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def to_json(self) -> str:
        """Return one line of the file, without its end."""
        head = {"at": self.at, "monotonic_s": round(self.monotonic_s, 6), "event": self.name}
        return json.dumps(head | dict(self.fields), separators=(",", ":"))

    def to_text(self) -> str:
        """Return one readable line: time, event, key=value."""
        pairs = (f"{key}={_quoted(value)}" for key, value in self.fields.items())
        return " ".join((self.at, self.name, *pairs))

    @classmethod
    def from_json(cls, line: str | bytes) -> Self | None:
        """Return the event of one line of the file, or None if it is none: torn by a crash, or not ours."""
        try:
            fields = json.loads(line)
            at, monotonic_s, name = (fields.pop(key) for key in _HEAD)
            time_s = datetime.fromisoformat(at).timestamp()
            return cls(0, str(name), time_s, float(monotonic_s), clean(fields))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None


def clean(fields: Mapping[str, object]) -> dict[str, Value]:
    """Return the fields as values that every sink may show as they are."""
    return {(f"{key}_" if key in _HEAD else key): _clean(value) for key, value in fields.items()}


def _clean(value: object) -> Value:
    match value:
        case Enum():
            return _clean(value.value)
        case None | bool() | int() | float():
            return value
        case str() | PurePath() | BaseException():
            return _escaped(str(value))
        case bytes():
            return value[:BYTES_MAX].hex() + ("…" if len(value) > BYTES_MAX else "")
        case list() | tuple() | set() | frozenset():
            shown = [str(_clean(item)) for item in list(value)[:ITEMS_MAX]]
            return _escaped(",".join(shown + ["…"] * (len(value) > ITEMS_MAX)))
        case _:
            return type(value).__name__


def _escaped(text: str) -> str:
    capped = text if len(text) <= STRING_CHARS_MAX else text[: STRING_CHARS_MAX - 1] + "…"
    if capped.isprintable():
        return capped
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in capped
    )


def _quoted(value: Value) -> str:
    """Quote a string that a reader could take for several words; everything else stands as it is."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)
    plain = value and not any(char in ' "=' for char in value)
    return value if plain else json.dumps(value, ensure_ascii=False)
