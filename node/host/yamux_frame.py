"""The frames of yamux: twelve bytes of header, and for data as many bytes as it says.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

import struct

KIB = 1024
WINDOW_BYTES = (
    256 * KIB
)  # what the specification grants each new stream; never grown here, so a stream holds no more

HEADER = struct.Struct("!BBHII")  # version, type, flags, stream id, length
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class WireViolation(Exception):
    """The peer broke yamux itself; the connection cannot go on."""


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """Return a frame's header."""
    return HEADER.pack(0, kind, flags, stream_id, length)
