r"""Seal a message, and open what strangers send: the one gate between bytes and verified values.

An envelope is `signature (64) ‖ content`, where content is the MessagePack map `{v, mesh, kind, sender, seq, time, ttl,
body}` with the body as bytes. The Ed25519 signature covers `"agora/<kind>/1\0" ‖ mesh ‖ content`: one domain string per
kind, and always the exact bytes that came in, never a re-encoding.

The gate checks in one order, cheap things first, and until the signature holds it only reads: what fails before is
charged to the peer that *delivered* the bytes, never to the sender they claim. Only then do the replay window, the
dedupe table and the author's rate change.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, cast

import msgpack
import msgspec
from msgspec import Meta

from protocol import limits
from protocol.errors import (
    Expired,
    ForeignMesh,
    LocalProtocolError,
    MalformedMessage,
    Replayed,
    TooLarge,
    TooManyMessages,
)
from protocol.identity import SIGNATURE_BYTES, Identity, PeerId, PublicKey, peer_id_of, verify
from protocol.messages import BY_KIND, Count, Hash, Key, Message

VERSION = 1
_CONTAINERS = frozenset({dict, list})
_PLAIN = _CONTAINERS | {str, bytes, int, bool, type(None)}  # no floats, no extension types, no timestamps

M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    mesh: Hash
    kind: Annotated[str, Meta(max_length=32)]
    sender: Key
    seq: tuple[Annotated[int, Meta(ge=0, le=2**62)], Annotated[int, Meta(ge=0, le=2**62)]]
    time: Count
    ttl: Count
    body: bytes


@dataclass(frozen=True)
class Sealed(Generic[M_co]):
    """A message whose signature, mesh, time and form have been verified. Only `open_sealed` and `seal` make one.

    Attributes:
        message: the typed value.
        sender: the peer that signed it.
        id: SHA-256 of domain, mesh and content, without the signature: what other messages refer to it by.
        raw: the exact bytes, to forward, store or show as evidence.
        boot, counter: the sender's sequence number.
        time_ms: the sender's clock when it signed, Unix milliseconds.
        expires_ms: `time_ms + ttl`; None when it never expires.
    """

    message: M_co
    sender: PeerId
    id: bytes
    raw: bytes
    boot: int
    counter: int
    time_ms: int
    expires_ms: int | None


class Sequence:
    """Our own sequence numbers: (boot, counter). A boot is 62 random bits, so a restart never reuses one."""

    def __init__(self, boot: int) -> None:
        self.boot = boot
        self._counter = 0

    def next(self) -> tuple[int, int]:
        """Return the next (boot, counter)."""
        self._counter += 1
        return self.boot, self._counter


def seal(
    message: M, identity: Identity, *, mesh: bytes, seq: tuple[int, int], time_ms: int, ttl_ms: int = 0
) -> Sealed[M]:
    """Sign a message.

    Args:
        message: of a kind listed in `messages.MESSAGES`.
        identity: the sender's key.
        mesh: the mesh id, 32 bytes.
        seq: from `Sequence.next`.
        time_ms: Unix time in milliseconds.
        ttl_ms: how long it stays valid; 0 for a live kind (its window rules) and for a durable one that never ends.

    Raises:
        LocalProtocolError: nobody would open it: a field breaks its bounds, or it is larger than its kind allows.
    """
    kind = type(message).kind
    body = encode(message)
    try:
        # Structs are not checked when they are made. A durable entry that nobody opens would end its author's log.
        decode(body, type(message))
    except MalformedMessage as error:
        raise LocalProtocolError(f"{kind} would be refused by every peer: {error}") from error
    content = msgpack.packb(
        {
            "v": VERSION,
            "mesh": mesh,
            "kind": kind,
            "sender": identity.public_key,
            "seq": list(seq),
            "time": time_ms,
            "ttl": ttl_ms,
            "body": body,
        }
    )
    signed = _domain(kind) + mesh + content
    raw = identity.sign(signed) + content
    if len(raw) > type(message).bytes_max:
        raise LocalProtocolError(f"{kind} of {len(raw)} bytes, at most {type(message).bytes_max} allowed")
    expires_ms = time_ms + ttl_ms if ttl_ms else None
    content_id = hashlib.sha256(signed).digest()
    sealed = Sealed(message, identity.peer_id, content_id, raw, seq[0], seq[1], time_ms, expires_ms)
    if opened.is_own_remembered:
        header = _Header(VERSION, mesh, kind, identity.public_key, seq, time_ms, ttl_ms, body)
        opened.remember(raw, header, sealed)
    return sealed


def open_sealed(raw: bytes, *, mesh: bytes, kinds: frozenset[str] | None = None) -> Sealed[Message]:
    """Verify form, mesh, kind and signature of an envelope, whatever its time: for stored and replicated bytes.

    Live traffic goes through `Gate.admit`, which also checks time, rate and replay.

    Raises:
        RemoteProtocolError: one of its kinds; nothing else, whatever the bytes.
    """
    return _verified(raw, _header(raw, mesh, kinds))


def _verified(raw: bytes, header: _Header) -> Sealed[Message]:
    if known := opened.find(raw):
        return known[1]
    signed = _domain(header.kind) + header.mesh + raw[SIGNATURE_BYTES:]
    verify(PublicKey(header.sender), raw[:SIGNATURE_BYTES], signed)
    sealed = Sealed(
        message=decode(header.body, BY_KIND[header.kind]),
        sender=peer_id_of(PublicKey(header.sender)),
        id=hashlib.sha256(signed).digest(),
        raw=raw,
        boot=header.seq[0],
        counter=header.seq[1],
        time_ms=header.time,
        expires_ms=header.time + header.ttl if header.ttl else None,
    )
    opened.remember(raw, header, sealed)
    return sealed


def narrow(sealed: "Sealed[Message]", form: type[M]) -> "Sealed[M] | None":
    """Return the same sealed message if it is of this type, so that the type checker knows it; None if it is not."""
    return cast("Sealed[M]", sealed) if isinstance(sealed.message, form) else None


def encode(value: msgspec.Struct) -> bytes:
    """Return the MessagePack map of a message body or of a bare frame."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)))
    return packed


def decode(data: bytes, form: Any) -> Any:
    """Return the typed value that MessagePack bytes stand for, strictly: no unknown field, no float, no coercion.

    Args:
        data: untrusted; the caller has checked its size.
        form: a `Part` type, or a union of tagged ones.

    Raises:
        MalformedMessage: anything else.
    """
    try:
        # builtin_types: without it msgspec reads a text as base64 where bytes are wanted, so one value would have two
        # encodings.
        return msgspec.convert(_unpack(data), form, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        name = getattr(form, "__name__", "frame")
        raise MalformedMessage(f"{name}: {str(error)[: limits.DETAIL_CHARS_MAX]}") from error


class Opened:
    """Envelopes that were opened lately, by their exact bytes: gossip and adverts bring each several times.

    Opening is a pure function of the bytes, so remembering its result changes nothing but the time it takes. Only what
    verified is kept, and no large envelope, so that hostile ones cannot fill the memory.

    Attributes:
        entries_max: how many are kept; the oldest goes first.
        is_own_remembered: also what this process sealed itself. A world sets it, as all its nodes live in one process.
    """

    def __init__(self) -> None:
        self.entries_max = limits.OPENED_ENTRIES_MAX
        self.is_own_remembered = False
        self._table: dict[bytes, tuple[_Header, Sealed[Message]]] = {}

    def find(self, raw: bytes) -> tuple[_Header, Sealed[Message]] | None:
        """Return header and message of bytes that were opened before."""
        return self._table.get(raw)

    def remember(self, raw: bytes, header: _Header, sealed: Sealed[Message]) -> None:
        """Keep what was verified."""
        if len(raw) > limits.OPENED_BYTES_MAX:
            return
        self._table[raw] = (header, sealed)
        while len(self._table) > self.entries_max:
            del self._table[next(iter(self._table))]

    def clear(self) -> None:
        """Forget all of it."""
        self._table.clear()


opened = Opened()


class Gate:
    """What live messages pass before anything else sees them, in the one order of `docs/SECURITY.md`.

    Bounded in every direction: senders, hashes and rates are kept in tables that drop their oldest line.
    """

    def __init__(self, mesh: bytes) -> None:
        self._mesh = mesh
        self._peer_rates = _Rates(limits.PEER_MESSAGES_PER_S)
        self._author_rates = _Rates(limits.AUTHOR_MESSAGES_PER_S)
        self._windows: OrderedDict[tuple[PeerId, int], _Window] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def admit(
        self,
        raw: bytes,
        *,
        delivered_by: PeerId,
        kinds: frozenset[str],
        now: float,
        utc_ms: int,
        may_repeat: bool = False,
    ) -> Sealed[Message]:
        """Return the verified message, or raise what is wrong with it. State changes only if it is returned.

        Args:
            raw: as it came in.
            delivered_by: the authenticated peer that handed it over.
            kinds: what may come on this topic or stream at this point.
            now: monotonic seconds, for rates.
            utc_ms: our wall clock, corrected by what the members' clocks say.
            may_repeat: the same bytes may come again, if their kind is durable: what they do, they do once anyway.

        Raises:
            RemoteProtocolError: one of its kinds.
        """
        size_max = max(BY_KIND[kind].bytes_max for kind in kinds)
        if len(raw) > size_max:
            raise TooLarge(f"envelope of {len(raw)} bytes, at most {size_max} allowed here")
        if not self._peer_rates.take(delivered_by, now):
            raise TooManyMessages(
                f"peer {delivered_by} delivers more than {limits.PEER_MESSAGES_PER_S:.0f}/s"
            )
        header = _header(raw, self._mesh, kinds)
        live = BY_KIND[header.kind].live
        _check_time(header, live, utc_ms)
        digest = hashlib.sha256(raw).digest()
        sender = peer_id_of(PublicKey(header.sender))
        if digest in self._seen and (live or not may_repeat):
            raise Replayed(f"{header.kind} of {sender} was delivered before")
        if live and not self._window_allows(sender, header.seq):
            raise Replayed(f"{header.kind} of {sender} has sequence number {header.seq[1]}, used or too old")
        if not self._author_rates.may_take(sender, now):
            raise TooManyMessages(f"author {sender} signs more than {limits.AUTHOR_MESSAGES_PER_S:.0f}/s")

        sealed = _verified(raw, header)

        self._author_rates.take(sender, now)
        _remember(self._seen, digest, None, limits.DEDUPE_MAX)
        if live:
            window = self._windows.pop((sender, header.seq[0]), None) or _Window()
            window.use(header.seq[1])
            _remember(self._windows, (sender, header.seq[0]), window, limits.SENDERS_MAX)
        return sealed

    def _window_allows(self, sender: PeerId, seq: tuple[int, int]) -> bool:
        window = self._windows.get((sender, seq[0]))
        return window is None or window.allows(seq[1])


class _Window:
    """Which of the newest `SEQUENCE_WINDOW` counters of one boot were used: a bit each, as in IPsec's anti-replay."""

    def __init__(self) -> None:
        self._newest = 0
        self._used = 0

    def allows(self, counter: int) -> bool:
        age = self._newest - counter
        return age < 0 or (age < limits.SEQUENCE_WINDOW and not self._used >> age & 1)

    def use(self, counter: int) -> None:
        age = self._newest - counter
        if age < 0:
            # A counter may jump as far as it likes: shifting by the jump itself would be a memory bomb.
            shift = min(-age, limits.SEQUENCE_WINDOW)
            self._used = ((self._used << shift) | 1) & ((1 << limits.SEQUENCE_WINDOW) - 1)
            self._newest = counter
        else:
            self._used |= 1 << age


class _Rates:
    """A token bucket per key: `per_s` on average, twice that in a burst."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._burst = 2 * per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def may_take(self, key: str, now: float) -> bool:
        return self._level(key, now) >= 1

    def take(self, key: str, now: float) -> bool:
        level = self._level(key, now)
        allowed = level >= 1
        self._buckets.pop(key, None)
        _remember(self._buckets, key, (level - 1 if allowed else level, now), limits.SENDERS_MAX)
        return allowed

    def _level(self, key: str, now: float) -> float:
        level, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, level + (now - at) * self._per_s)


K = TypeVar("K")
V = TypeVar("V")


def _remember(table: "OrderedDict[K, V]", key: K, value: V, most: int) -> None:
    table[key] = value
    while len(table) > most:
        table.popitem(last=False)


def _domain(kind: str) -> bytes:
    return b"agora/" + kind.encode() + b"/1\0"


def _header(raw: bytes, mesh: bytes, kinds: frozenset[str] | None) -> _Header:
    if len(raw) <= SIGNATURE_BYTES:
        raise MalformedMessage(f"envelope of {len(raw)} bytes, a signature alone has {SIGNATURE_BYTES}")
    if len(raw) > limits.ENTRIES_BYTES_MAX:
        raise TooLarge(f"envelope of {len(raw)} bytes, at most {limits.ENTRIES_BYTES_MAX} allowed")
    if known := opened.find(raw):
        header = known[0]
    else:
        try:
            header = msgspec.convert(
                _unpack(raw[SIGNATURE_BYTES:]), _Header, strict=True, builtin_types=(bytes,)
            )
        except msgspec.ValidationError as error:
            raise MalformedMessage(f"envelope: {str(error)[: limits.DETAIL_CHARS_MAX]}") from error
    if header.v != VERSION:
        raise MalformedMessage(f"envelope has version {header.v}, expected {VERSION}")
    if header.mesh != mesh:
        raise ForeignMesh(f"envelope of mesh {header.mesh.hex()[:12]}, expected {mesh.hex()[:12]}")
    form = BY_KIND.get(header.kind)
    if form is None or (kinds is not None and header.kind not in kinds):
        raise MalformedMessage(f"a message of kind {header.kind!r} is not expected here")
    if len(raw) > form.bytes_max:
        raise TooLarge(f"{header.kind} of {len(raw)} bytes, at most {form.bytes_max} allowed")
    return header


def _check_time(header: _Header, live: bool, utc_ms: int) -> None:
    window_ms = int(limits.LIVE_WINDOW_S * 1000)
    if header.time > utc_ms + window_ms:
        raise Expired(f"{header.kind} is dated {(header.time - utc_ms) / 1000:.0f} s in the future")
    if live and header.time < utc_ms - window_ms:
        raise Expired(f"{header.kind} is {(utc_ms - header.time) / 1000:.0f} s old, at most 60 s allowed")
    if header.ttl and header.time + header.ttl <= utc_ms:
        raise Expired(f"{header.kind} expired {(utc_ms - header.time - header.ttl) / 1000:.0f} s ago")


def _unpack(data: bytes) -> Any:
    """Decode one MessagePack value under explicit limits; msgpack refuses trailing bytes and depth over 1,024 itself."""
    try:
        # msgpack reserves a list's announced length before it sees an element: 5 KB of nested headers cost 60 MiB and
        # 0.3 s. Skipping over the value first reserves nothing, and finds every announced element there or not.
        skimmer = msgpack.Unpacker(max_buffer_size=len(data))
        skimmer.feed(data)
        skimmer.skip()
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=limits.ITEMS_MAX,
            max_map_len=limits.ITEMS_MAX,
            max_ext_len=0,
            object_pairs_hook=_unique_keys,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise MalformedMessage(
            f"not MessagePack as the protocol allows it: {type(error).__name__}"
        ) from error
    _check_plain(value, 0)
    return value


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Build a map, refusing duplicate keys: two readers could otherwise see two different values in one signature."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    if not all(isinstance(key, str) for key in table):
        raise ValueError("key is not a text")
    return table


def _check_plain(value: Any, depth: int) -> None:
    if depth > limits.DEPTH_MAX:
        raise MalformedMessage(f"nested deeper than {limits.DEPTH_MAX}")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    forms = set(map(type, items))  # in C: a full context's token ids take 1 ms, a call for each took 10 ms
    if not forms <= _PLAIN:
        odd = min(form.__name__ for form in forms - _PLAIN)
        raise MalformedMessage(f"a {odd} where only maps, lists, text, bytes and integers may be")
    if forms & _CONTAINERS:
        for item in items:
            if type(item) in _CONTAINERS:
                _check_plain(item, depth + 1)
