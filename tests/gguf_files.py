"""GGUF files for tests: headers of any content, real tiny models, and damaged or hostile ones."""

import struct
from collections.abc import Mapping
from pathlib import Path

from node.bench import random_gguf

LOOP_BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
MEMORY_BOMB = (
    "{% set n = namespace(s='0123456789') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)
ENDLESS_OUTPUT = "{% for a in range(99999) %}0123456789{% endfor %}"

LLAMA: Mapping[str, object] = {
    "general.architecture": "llama",
    "general.name": "a llama",
    "llama.block_count": 2,
    "llama.context_length": 2_048,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
F32, F16 = 0, 1
LARGE = random_gguf.Shape(
    width=1_024,
    layers=12,
    heads=8,
    heads_kv=4,
    head_width=128,
    hidden=4_096,
    vocabulary=512,
    context_tokens=2_048,
)


def header(
    metadata: Mapping[str, object] = LLAMA,
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...] = (("a.weight", (8, 4), F32, 0),),
    data_bytes: int = 128,
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
) -> bytes:
    """Return a file of (name, shape, type, offset) tensors, all zero; counts may lie."""
    parts = [b"GGUF", struct.pack("<I", version)]
    parts.append(struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count))
    parts.append(struct.pack("<Q", len(metadata) if pair_count is None else pair_count))
    for key, value in metadata.items():
        parts += [text(key), _value(value)]
    for name, shape, kind, offset in tensors:
        parts.append(
            text(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", kind, offset)
        )
    head = b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def text(value: str) -> bytes:
    """Return a GGUF string."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + text(value)
        case int():
            return struct.pack("<II", 4, value)
        case bytes():  # type and value as they are
            return value
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
    raise TypeError(value)


def tiny_model(path: Path, *, template: str = random_gguf.TEMPLATE, seed: int = 0) -> Path:
    """Write a model of 72 kB that llama.cpp runs; its weights are random."""
    return random_gguf.write(path, random_gguf.TINY, seed=seed, template=template)


def slow_model(path: Path) -> Path:
    """Write a model of 17 MB that takes some milliseconds for a token and never ends its turn by itself."""
    return random_gguf.write(path, random_gguf.SLOW)


def large_model(path: Path) -> Path:
    """Write a model of 107 MB: others can be seen to go on while it is loaded."""
    return random_gguf.write(path, LARGE)


def poison(path: Path) -> Path:
    """Make the first norm's weights NaN: every number the model computes is NaN then."""
    data = bytearray(path.read_bytes())
    ones = struct.pack("<64f", *[1.0] * 64)
    start = data.index(ones)
    data[start : start + len(ones)] = struct.pack("<64f", *[float("nan")] * 64)
    path.write_bytes(data)
    return path


def set_number(path: Path, key: str, value: int) -> Path:
    """Change a 32-bit number in a file's metadata."""
    data = bytearray(path.read_bytes())
    start = data.index(text(key)) + len(text(key)) + 4
    data[start : start + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    return path


def flip_bit(path: Path, bit: int) -> Path:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return path
