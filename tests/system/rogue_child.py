"""A main that pretends to be the llama.cpp child and misbehaves in the way its model file's name says."""

import os
import sys

from runtime.llama import wire
from runtime.sandbox import Confinement


def main() -> None:
    confinement = Confinement.from_arguments(sys.argv[1:])
    sock = confinement.take_socket()
    (name,) = (os.path.basename(path) for path in confinement.readable)  # noqa: PTH119
    if name == "dies":
        sys.exit("no such luck")
    sock.sendall(wire.encode([wire.Ready("S1", "")]))
    call = wire.decode_to_child(next(wire.FrameReader().feed(sock.recv(1 << 16))))[0].call
    said = {
        "garbage": b"\0\0\0\5hello",
        "huge": b"\xff\xff\xff\xff",
        "ready twice": wire.encode([wire.Ready("S1", "")]),
        "unasked": wire.encode([wire.Loaded(call + 1, 1, 1.0, 1.0)]),
        "generates": wire.encode([wire.NewTokens(call, (1,), "x")]),
        "silent": b"",
        "floods": wire.encode([wire.Counted(call, 3)]),
    }[name]
    if name == "floods":
        os.write(2, b"x" * 1_000_000)  # more than a pipe holds: it would stop an unread child
    sock.sendall(said)
    sock.recv(1)


if __name__ == "__main__":
    main()
