"""The trace: every journaled event of every node of a world, one JSON line each, in the order in which they happened.

A file opens with its header, which says how to run it again, and closes with the digest of the lines between. The
header is outside the digest, so two commits that behave alike have the same digest. A file without its last line was
cut off and is refused.

In a replay each line is compared with the recorded one as it is written, so that a run stops where it first differs
and not an hour later.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from node.errors import StartError
from node.event import Value
from node.node import VERSION
from node.simulation.commit import commit
from node.simulation.options import SimulationOptions
from protocol.errors import AgoraError

FORMAT: Final = "agora trace 1"
KEPT_LINES: Final = 2_000  # enough for the last steps of a failing node among a thousand
LINE_BYTES_MAX: Final = 1024 * 1024  # an event has a few hundred; a foreign file may be one line of gigabytes
END_BYTES_MAX: Final = 512
HEAD: Final = frozenset(("t", "node", "event"))


class TraceUnreadable(StartError):
    """The file is no trace, is one of another format, or was cut off."""


class Diverged(AgoraError):
    """A replay did something else than the recording.

    Attributes:
        line_number: in the recorded file, from 1.
        expected: the recorded line; empty when the recording was over.
        found: the line of this run; empty when this run was over.
    """

    def __init__(self, line_number: int, expected: bytes, found: bytes) -> None:
        self.line_number = line_number
        self.expected = expected
        self.found = found
        super().__init__(
            f"line {line_number} differs: found {_shown(found)}, expected {_shown(expected)} as recorded"
        )


class Header(msgspec.Struct, frozen=True):
    """How to run a trace again, and what ran it.

    Attributes:
        agora: the version.
        commit: of the checkout; "" outside one.
        scenario: a name, or the absolute path of a user's file.
        scenario_digest: see `node.simulation.scenario.Scenario`.
        seconds: virtual.
        options: whatever else decides a run.
    """

    agora: str
    commit: str
    scenario: str
    seed: int
    nodes: int
    seconds: float
    scenario_digest: str = ""
    options: dict[str, Value] = {}
    format: str = FORMAT

    @classmethod
    def of(cls, options: SimulationOptions) -> "Header":
        """Return the header of a run of this checkout."""
        return cls(
            agora=VERSION,
            commit=commit(),
            scenario=options.scenario.name,
            seed=options.seed,
            nodes=options.nodes,
            seconds=options.seconds,
            scenario_digest=options.scenario.digest,
        )


class End(msgspec.Struct, frozen=True):
    """The last line of a file."""

    digest: str
    events: int


class Trace:
    """Takes the events of a run.

    Args:
        header: the file's first line.
        out: where the lines go, or None; the caller closes it.
        expected: the recorded lines (`read_events`), in a replay.
    """

    def __init__(
        self, header: Header, out: BinaryIO | None = None, expected: Iterator[bytes] | None = None
    ) -> None:
        self.header = header
        self.events = 0
        self.event_counts: Counter[str] = Counter()
        self._out = out
        self._expected = expected
        self._hash = hashlib.blake2b(digest_size=16)
        self._last: deque[tuple[str, bytes]] = deque(maxlen=KEPT_LINES)
        self._failure: Exception | None = None
        if out is not None:
            out.write(msgspec.json.encode(header) + b"\n")

    @property
    def digest(self) -> str:
        """BLAKE2b of all lines so far, 16 bytes in hex."""
        return self._hash.hexdigest()

    def write(self, at_s: float, node: str, event: str, fields: Mapping[str, Value]) -> None:
        """Take one event; fields keep the order in which they were journaled.

        Raises:
            Diverged: the recording has another line here.
            OSError: the file cannot be written.
        """
        self.check()
        if not HEAD.isdisjoint(fields):
            fields = {f"{key}_" if key in HEAD else key: value for key, value in fields.items()}
        line = _encode({"t": round(at_s, 6), "node": node, "event": event, **fields})
        self.events += 1
        self.event_counts[event] += 1
        self._last.append((node, line))
        self._hash.update(line)
        self._hash.update(b"\n")
        if self._expected is not None:
            self._compare(self._expected, line)
        if self._out is not None:
            self._put(self._out, line)

    def check(self) -> None:
        """Raise again what stopped this trace: a guard around a node's handlers may have swallowed it."""
        if self._failure is not None:
            raise self._failure

    def last(self, count: int, node: str | None = None) -> list[str]:
        """Return the newest lines, of one node or of all, oldest first; only the last 2,000 of the world are kept."""
        lines = [line for whose, line in self._last if node in (None, whose)]
        return [line.decode() for line in lines[-count:]]

    def finish(self) -> None:
        """Say that the run is over, and close the file's text with its digest.

        Raises:
            Diverged: the recording goes on.
            OSError: the file cannot be written.
        """
        self.check()
        if self._expected is not None:
            self._compare(self._expected, b"")
        if self._out is not None:
            self._put(self._out, msgspec.json.encode(End(self.digest, self.events)))
            self._out.flush()

    def _compare(self, expected: Iterator[bytes], line: bytes) -> None:
        recorded = next(expected, b"")
        if recorded != line:
            # lines of the file: the header, then the events; at the end none was added to them
            self._failure = Diverged(self.events + (1 if line else 2), recorded, line)
            raise self._failure

    def _put(self, out: BinaryIO, line: bytes) -> None:
        try:
            out.write(line + b"\n")
        except OSError as error:
            self._failure = error
            raise


def read_header(path: Path) -> Header:
    """Return the header of a whole trace.

    Raises:
        TraceUnreadable: it is none, or was cut off; one line.
    """
    try:
        with path.open("rb") as file:
            header = msgspec.json.decode(file.readline(LINE_BYTES_MAX), type=Header)
    except OSError as error:
        raise TraceUnreadable(
            f"cannot read {path} ({error.strerror}), expected a trace of 'agora sim'"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceUnreadable(f"{path} is no trace, expected what 'agora sim --out DIR' writes") from error
    if header.format != FORMAT:
        raise TraceUnreadable(f"{path} has format {header.format!r}, expected {FORMAT!r}; update agora-node")
    read_end(path)
    return header


def read_end(path: Path) -> End:
    """Return the last line of a trace.

    Raises:
        TraceUnreadable: it was cut off.
    """
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(max(0, size_bytes - END_BYTES_MAX))
        rest = file.read()
    lines = rest.removesuffix(b"\n").rsplit(b"\n", 1)
    try:
        if len(lines) < 2 or not rest.endswith(b"\n"):  # it, and what stands before it
            raise msgspec.ValidationError("no last line")
        return msgspec.json.decode(lines[-1], type=End)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceUnreadable(
            f"{path} is cut off: its last line is no digest, expected a run that came to its end"
        ) from error


def read_events(path: Path) -> Iterator[bytes]:
    """Give the lines between the header and the digest, one after the other."""
    with path.open("rb") as file:
        file.readline()
        line = file.readline()
        for following in file:
            yield line[:-1]
            line = following


_encode = msgspec.json.Encoder().encode


def _shown(line: bytes) -> str:
    return line.decode(errors="backslashreplace") if line else "the end"
