"""States and changes of states as bytes: what is hashed, what is kept, and what travels in a round.

A *state* is canonical safetensors: float32, names sorted, one header for one state, so that its SHA-256 names it. A
*change* is int8 with one scale per tensor, deflated:

    u8 version | deflate( scale f32 of each tensor, by name | int8 of each tensor, by name )

About 4.5 times smaller than float32; the error is at most half a scale, 1/254 of the tensor's largest change. It is no
rounding error that grows: the coordinator's own state is always what `apply` gives its members, so all hold the same
bytes, and what one round's change could not say is part of the next one's. On the tiny model, four members with disjoint
data: after 3 of 3 rounds .09 and a loss of .1765 where float32 came to .10 and .1767, after 8 of 8 both 1.00 and .0059
(`node/bench/int8_effect.py`, one seed each).

Names and shapes are not in a change. They are those of the state it changes, so hostile bytes cannot say others.
"""

import hashlib
import json
import struct
import zlib

import numpy as np

from federation.lora import Matrix, State
from protocol.errors import RemoteProtocolError

VALUE_MAX = (
    16.0  # of |x| in a state: the adapter checker refuses larger ones, so nobody should train towards them
)
_HEADER_BYTES_MAX = 2**20  # 10,000 tensors; a model of 80 layers has 1,120
_VERSION = 1
_LEVEL = 6  # of zlib; 9 gains less than a percent on such noise


class BadChange(RemoteProtocolError):
    """Bytes that are no change to this state, or one that leads out of what an adapter may hold."""

    offence = "update"


class BadState(RemoteProtocolError):
    """Bytes that are no state in its one canonical form."""

    offence = "state"


def digest(state: State) -> bytes:
    """Return the name of a state: the SHA-256 of its bytes."""
    return hashlib.sha256(state_bytes(state)).digest()


def state_bytes(state: State) -> bytes:
    """Return the one safetensors file that this state is."""
    entries: dict[str, dict[str, object]] = {}
    chunks: list[bytes] = []
    end = 0
    for name in sorted(state):
        chunks.append(state[name].astype("<f4", copy=False).tobytes())
        start, end = end, end + len(chunks[-1])
        entries[name] = {"dtype": "F32", "shape": list(state[name].shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the data aligned
    return b"".join((struct.pack("<Q", len(header)), header, *chunks))


def state_from(data: bytes) -> State:
    """Return the state that these bytes are.

    Raises:
        BadState: they are not exactly what `state_bytes` writes, or hold a value that is not finite or too large.
    """
    try:
        state = _parsed(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise BadState(f"not a state: {error}") from error
    # the same bytes again, or some part of them said something that was not read
    if state_bytes(state) != data:
        raise BadState("not a state: not in its canonical form")
    for name, matrix in state.items():
        if not _is_sane(matrix):
            raise BadState(f"not a state: a value of {name} is not finite or over {VALUE_MAX:g}")
    return state


def change(old: State, new: State) -> bytes:
    """Return what takes `old` to about `new`; see `apply` for what exactly comes out.

    Raises:
        ValueError: other names or shapes, or a value that is not finite: our own training went wrong.
    """
    if old.keys() != new.keys():
        raise ValueError("a change needs two states of the same tensors")
    scales, steps = [], []
    for name in sorted(old):
        if old[name].shape != new[name].shape:
            raise ValueError(f"{name} is {new[name].shape}, expected {old[name].shape}")
        if not np.isfinite(new[name]).all():
            raise ValueError(f"{name} is not finite")
        difference = new[name].astype(np.float32, copy=False) - old[name]
        scale = np.float32(np.abs(difference).max(initial=0) / 127)
        # a scale that is too small for float32's normal range is nothing to speak of, and would divide badly
        scale = scale if scale > np.finfo(np.float32).tiny else np.float32(0)
        scales.append(scale)
        quotient = difference / scale if scale else np.zeros_like(difference)
        steps.append(np.clip(np.rint(quotient), -127, 127).astype(np.int8))
    body = np.array(scales, "<f4").tobytes() + b"".join(step.tobytes() for step in steps)
    return bytes([_VERSION]) + zlib.compress(body, _LEVEL)


def apply(old: State, payload: bytes) -> State:
    """Return the state that a change leads to, the same bits on every device: old + scale * step, in float32.

    Raises:
        BadChange: hostile or broken bytes; nothing of them is taken.
    """
    names = sorted(old)
    size = sum(old[name].size for name in names)
    body = _inflated(payload, 4 * len(names) + size)
    scales = np.frombuffer(body, "<f4", count=len(names))
    steps = np.frombuffer(body, np.int8, offset=4 * len(names))
    if not np.isfinite(scales).all() or (scales < 0).any() or (scales > VALUE_MAX).any():
        raise BadChange("a change with a scale that is negative, not finite or too large")
    if (steps == -128).any():  # `change` never writes it: one change has one encoding
        raise BadChange("a change with a step below -127")
    new: State = {}
    start = 0
    for name, scale in zip(names, scales, strict=True):
        step = steps[start : start + old[name].size].reshape(old[name].shape)
        start += old[name].size
        new[name] = old[name] + np.float32(scale) * step.astype(np.float32)
        if not _is_sane(new[name]):
            raise BadChange(f"a change that takes {name} over {VALUE_MAX:g}")
    return new


def _inflated(payload: bytes, size: int) -> bytes:
    """Inflate to exactly `size` bytes; a bomb is cut off one byte later."""
    if payload[:1] != bytes([_VERSION]):
        raise BadChange(f"a change of version {payload[:1].hex() or 'none'}, expected {_VERSION:02x}")
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(payload[1:], size + 1)
    except zlib.error as error:
        raise BadChange(f"a change that does not inflate: {error}") from error
    if len(body) != size or not inflater.eof or inflater.unused_data:
        raise BadChange(f"a change of {len(body)} bytes or of more than one stream, expected {size}")
    return body


def _parsed(data: bytes) -> State:
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_HEADER_BYTES_MAX, len(data) - 8):
        raise ValueError(f"a header of {length} bytes")
    entries = json.loads(data[8 : 8 + length])
    state: State = {}
    start = 8 + length
    for name, entry in entries.items():
        height, width = entry["shape"]
        if type(height) is not int or type(width) is not int or min(height, width) < 1:
            raise ValueError(f"{name!r:.80} has no shape of two positive numbers")
        if 4 * height * width > len(data) - start:
            raise ValueError(f"{name!r:.80} is longer than the file")
        matrix = np.frombuffer(data, "<f4", height * width, start).reshape(height, width)
        state[name] = matrix.astype(np.float32)
        start += 4 * height * width
    return state


def _is_sane(matrix: Matrix) -> bool:
    """Whether all values are finite and within `VALUE_MAX`; a NaN compares false."""
    return bool((np.abs(matrix) <= VALUE_MAX).all())
