"""Faulty parts that planted bugs put in the place of sound ones, where a few other words are not enough."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgpack
import trio

from node.logbook import ENTRY
from node.store import Record, Store, StoreClosed, StoreFailed
from protocol import envelope
from protocol.envelope import Sealed
from protocol.identity import SIGNATURE_BYTES, PublicKey, peer_id_of
from protocol.messages import BY_KIND, Entry, Message

BEHIND_S: Final = 1.0

AppendBehind = Callable[[Store, Sequence[Sealed[Entry]], Sequence[Sealed[Entry]]], Awaitable[None]]


def append_behind(kind: str) -> AppendBehind:
    """Return an append that keeps own entries of this kind in memory for a second, and writes all others at once."""

    async def append(store: Store, witnessed: Sequence[Sealed[Entry]], own: Sequence[Sealed[Entry]]) -> None:
        later = [entry for entry in own if entry.message.kind == kind]
        now = [entry for entry in (*witnessed, *own) if entry not in later]
        await store.append([Record(ENTRY, entry.id, entry.raw) for entry in now])
        trio.lowlevel.spawn_system_task(
            _append_later, store, [Record(ENTRY, entry.id, entry.raw) for entry in later]
        )

    return append


async def _append_later(store: Store, records: Sequence[Record]) -> None:
    await trio.sleep(BEHIND_S)
    with suppress(StoreClosed, StoreFailed):  # the power went off, or the disk was full
        await store.append(records)


def open_unsigned(raw: bytes, *, mesh: bytes, kinds: frozenset[str]) -> Sealed[Message]:
    """Open an envelope as `open_sealed` does, and let its signature be."""
    header = envelope._header(raw, mesh, kinds)
    signed = envelope._domain(header.kind) + header.mesh + raw[SIGNATURE_BYTES:]
    return Sealed(
        message=envelope.decode(header.body, BY_KIND[header.kind]),
        sender=peer_id_of(PublicKey(header.sender)),
        id=hashlib.sha256(signed).digest(),
        raw=raw,
        boot=header.seq[0],
        counter=header.seq[1],
        time_ms=header.time,
        expires_ms=header.time + header.ttl if header.ttl else None,
    )


def open_foreign(raw: bytes, *, mesh: bytes, kinds: frozenset[str]) -> Sealed[Message]:
    """Open an envelope of whatever mesh it names."""
    try:
        named: Any = msgpack.unpackb(raw[SIGNATURE_BYTES:])
        mesh = named["mesh"]
    except (ValueError, TypeError, KeyError):
        pass  # no envelope at all, which is refused as ever
    return envelope.open_sealed(raw, mesh=mesh, kinds=kinds)
