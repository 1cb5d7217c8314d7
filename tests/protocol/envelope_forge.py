"""Makes envelopes that no honest peer would seal, for the tests of the gate."""

from typing import Any

import msgpack

from protocol.envelope import encode
from protocol.identity import Identity
from protocol.messages import Cancel, Card, Message

ANN, BOB, EVE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
MESH = b"\x07" * 32
NOON = 1_700_000_000_000  # Unix milliseconds
LIVE = Cancel(job_id=bytes(16), attempt=1)
DURABLE = Card(index=0, prev=bytes(32), name="a", model=bytes(32))


def fields(message: Message = LIVE, author: Identity = ANN, **changes: Any) -> dict[str, Any]:
    """Return the map that an envelope signs."""
    honest = {
        "v": 1,
        "mesh": MESH,
        "kind": message.kind,
        "sender": author.public_key,
        "seq": [9, 1],
        "time": NOON,
        "ttl": 0,
        "body": encode(message),
    }
    return {**honest, **changes}


def sign(content: bytes, kind: str = "cancel", author: Identity = ANN, mesh: bytes = MESH) -> bytes:
    """Sign any bytes as an envelope's content."""
    return author.sign(b"agora/" + kind.encode() + b"/1\0" + mesh + content) + content


def forge(message: Message = LIVE, author: Identity = ANN, *, signed: bool = True, **changes: Any) -> bytes:
    """Return an envelope with any of its fields changed, properly signed or not at all."""
    table = fields(message, author, **changes)
    content: bytes = msgpack.packb(table)
    kind = table["kind"] if isinstance(table["kind"], str) else "cancel"
    mesh = table["mesh"] if isinstance(table["mesh"], bytes) else MESH
    return sign(content, kind, author, mesh) if signed else bytes(64) + content
