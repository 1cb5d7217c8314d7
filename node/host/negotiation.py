"""Agreeing on a protocol over a fresh channel: multistream-select 1.0.

libp2p's own negotiator dies of four bytes that are not UTF-8, so this one compares bytes and decodes nothing.

Source: https://github.com/multiformats/multistream-select
"""

from collections.abc import Awaitable, Callable, Collection

from protocol.errors import MalformedMessage, Unreachable

HEADER = "/multistream/1.0.0"
LINE_BYTES_MAX = 1_024  # the specification's own bound
PROPOSALS_MAX = 16  # a dialler that still guesses after this many is not a libp2p peer

ReadExactly = Callable[[int], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


async def propose(read: ReadExactly, write: Write, name: str) -> None:
    """Ask for one protocol, in a single round trip.

    Raises:
        Unreachable: the other side does not speak it.
        MalformedMessage: the answer is not multistream-select.
    """
    await write(opening(name))
    if await _read_line(read) != HEADER.encode():
        raise MalformedMessage("answer is not multistream-select 1.0")
    answer = await _read_line(read)
    if answer != name.encode():
        raise Unreachable(f"peer does not speak {name}")


def opening(name: str) -> bytes:
    """Return what a proposal looks like on the wire; whoever speaks the protocol answers with the same bytes."""
    return _line(HEADER) + _line(name)


async def accept(read: ReadExactly, write: Write, names: Collection[str]) -> str:
    """Answer proposals until one is known; return its name.

    Raises:
        MalformedMessage: not multistream-select, or nothing but unknown protocols.
        Unreachable: the other side went on as if its proposal had been taken, as those may who send it together with
            what is meant for the protocol.
    """
    await write(_line(HEADER))
    if await _read_line(read) != HEADER.encode():
        raise MalformedMessage("opening is not multistream-select 1.0")
    known = {name.encode(): name for name in names}
    for refused in range(PROPOSALS_MAX):
        try:
            proposal = await _read_line(read)
        except MalformedMessage as error:
            if refused:
                raise Unreachable("peer spoke a protocol that was refused") from error
            raise
        if proposal in known:
            await write(_line(known[proposal]))
            return known[proposal]
        await write(_line("na"))
    raise MalformedMessage(f"{PROPOSALS_MAX} proposals and none of them known")


def _line(text: str) -> bytes:
    body = text.encode() + b"\n"
    return uvarint(len(body)) + body


async def _read_line(read: ReadExactly) -> bytes:
    length = await read_uvarint(read, LINE_BYTES_MAX)
    line = await read(length) if length else b""
    if not line.endswith(b"\n"):
        raise MalformedMessage(f"line of {length} bytes does not end in a newline")
    return line[:-1]


def uvarint(value: int) -> bytes:
    """Return an unsigned LEB128 integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


async def read_uvarint(read: ReadExactly, maximum: int) -> int:
    """Read an unsigned LEB128 integer.

    Raises:
        MalformedMessage: over `maximum`, or longer than that needs.
    """
    value = shift = 0
    while True:
        byte = (await read(1))[0]
        value |= (byte & 0x7F) << shift
        shift += 7
        if value > maximum or shift > 35:
            raise MalformedMessage(f"length of {value} bytes, at most {maximum} allowed")
        if byte < 0x80:
            return value
