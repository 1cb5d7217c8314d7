"""A member that trains nothing: what a trainer child does around its training, and no more.

`python -m node.bench.idle_member SHAPES` reads the coordinator's changes from stdin and answers each on stdout with a
change of its own, as long as a trained one: frames of four bytes of length and the payload. A round is one message to
Flower's own `ClientApp`, as in `node/children/trainer.py`.
"""

import json
import struct
import sys
from typing import IO

import numpy as np

from federation import client, codec
from federation.flower import Settings
from federation.lora import State

NOISE = 0.01  # of the size of a round's change; noise deflates worst


def send(stream: IO[bytes], payload: bytes) -> None:
    """Write one frame."""
    stream.write(struct.pack("<I", len(payload)) + payload)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Read one frame; empty at the stream's end."""
    head = stream.read(4)
    return stream.read(struct.unpack("<I", head)[0]) if len(head) == 4 else b""


def zeros(shapes: str) -> State:
    """Return the state that a run over these shapes (JSON) begins from."""
    return {name: np.zeros(shape, np.float32) for name, shape in json.loads(shapes).items()}


def main() -> None:
    """Answer until the coordinator closes the pipe."""
    state = zeros(sys.argv[1])
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(scale=NOISE, size=matrix.shape) for name, matrix in state.items()}

    def train(start: State, _: Settings) -> tuple[State, client.Metrics]:
        return {name: matrix + noise[name].astype(np.float32) for name, matrix in start.items()}, {
            client.WEIGHT: 1
        }

    app = client.client_app(train)
    send(sys.stdout.buffer, b"ready")
    while payload := receive(sys.stdin.buffer):
        state = codec.apply(state, payload)
        trained, _ = client.fit(app, state, {})
        send(sys.stdout.buffer, codec.change(state, trained))


if __name__ == "__main__":
    main()
