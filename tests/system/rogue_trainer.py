"""A main that pretends to be the trainer child and misbehaves in the way its data directory's name says."""

import os
import sys
import time
from pathlib import Path

from runtime.sandbox import Confinement
from runtime.training import wire

TRAINERS = ("boasts", "floods", "beats", "endless")  # they wait until they are told to begin


def main() -> None:
    confinement = Confinement.from_arguments(sys.argv[1:])
    sock = confinement.take_socket()
    how = Path(confinement.readable[1]).name
    if how == "dies":
        sys.exit("no such luck")
    if how == "floods":
        os.write(2, b"x" * 1_000_000)  # more than a pipe holds: it would stop an unread child
    if how == "early":
        sock.sendall(wire.encode(wire.Beat(1, 0, 1)))
    sock.sendall(wire.encode(wire.Ready("S1", "cpu")))
    reader = wire.frame_reader()

    def heard() -> wire.ToChild:
        while True:
            for body in reader.feed(sock.recv(1 << 16)):
                return wire.decode_to_child(body)

    fit = heard()
    assert isinstance(fit, wire.Fit)
    if how in TRAINERS:
        sock.sendall(wire.encode(wire.Prepared(fit.call)))
        assert heard() == wire.Begin(fit.call)
    good = wire.Fitted(fit.call, b"p", b"s", fit.recipe.steps, 1, 1.0)
    said = {
        "garbage": b"\0\0\0\5hello",
        "huge": b"\xff\xff\xff\xff",
        "ready twice": wire.encode(wire.Ready("S1", "cpu")),
        "unasked": wire.encode(wire.Fitted(fit.call + 1, b"", b"", 1, 1, 1.0)),
        "boasts": wire.encode(wire.Fitted(fit.call, b"", b"", fit.recipe.steps + 1, 1, 1.0)),
        "unbidden": wire.encode(good),
        "prepares twice": 2 * wire.encode(wire.Prepared(fit.call)),
        "gives up": wire.encode(wire.Cancelled(fit.call)),
        "silent": b"",
        "floods": wire.encode(good),
        "beats": wire.encode(wire.Beat(fit.call, 9_999, 1)) + wire.encode(good),
        "endless": wire.encode(wire.Beat(fit.call, 1, 2)),
        "terminal": wire.encode(wire.Failed(fit.call, "trainer", "\x1b[2Jgone")),
    }[how]
    sock.sendall(said)
    while sock.recv(1 << 16):
        time.sleep(0)


if __name__ == "__main__":
    main()
