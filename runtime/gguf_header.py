"""The header of a GGUF file, read in pure Python with bounds, before any C++ sees the file.

llama.cpp aborts on a `block_count` of 0 or 10^6 and trusts many lengths. Everything here is checked against the size
of the file first: counts, lengths, and where each tensor lies. The reader holds no tensor and no token list; of the
tensors it keeps names and shapes, which adapters are checked against.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from protocol.limits import DIMENSIONS_MAX, KIB, MIB

MAGIC = b"GGUF"
VERSION = 3
HEADER_BYTES_MAX = 128 * MIB  # a vocabulary of 256k tokens with merges takes 12
PAIRS_MAX = 1_024
TENSORS_MAX = 65_536
ITEMS_MAX = 4_194_304  # of one array
KEY_BYTES_MAX = 256
TEXT_BYTES_MAX = 1 * MIB  # chat templates are the longest
TENSOR_NAME_BYTES_MAX = 63  # GGML_MAX_NAME - 1
LAYERS_MAX = 512  # LLAMA_MAX_LAYERS
ALIGNMENT_MAX = 64 * KIB
CONTEXT_TOKENS_MAX = 1 << 24
POOLINGS = (
    1,
    2,
    3,
)  # a text's vector is its tokens' mean, the first's or the last's; 0 is none, 4 ranks pairs

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip
_TEXT, _ARRAY = 8, 9

# ggml type: (name, items of a block, bytes of a block)
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip

# general.file_type, where it says more than the commonest tensor type does
_MIXTURES = {
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
}  # fmt: skip


class BadModelFile(Exception):
    """Not a GGUF that can be run; the message says what was found and what was expected."""


@dataclass(frozen=True)
class Header:
    """What a well-formed header says. The texts are the author's."""

    name: str
    architecture: str
    quantisation: str
    parameters: int
    trained_context_tokens: int
    kv_bytes_per_token: int  # of an F16 cache; 0 if the architecture does not tell
    dimensions: int = 0  # of an embedding model's vectors; 0: it is one that writes


@dataclass(frozen=True)
class Layout:
    """What an adapter of this model must fit.

    Attributes:
        architecture: "llama", "qwen2"…
        heads: of attention's queries; 0 if the header does not tell.
        kv_heads: of its keys; fewer with grouped-query attention.
        shapes: of all two-dimensional tensors by name ("blk.0.attn_q.weight"): (out, in), as in a linear layer.
    """

    architecture: str
    heads: int
    kv_heads: int
    shapes: Mapping[str, tuple[int, int]] = field(repr=False)


def read(path: str | Path) -> Header:
    """Read a file's header.

    Raises:
        BadModelFile: it is none, or is cut short, or lies about itself.
    """
    return _open(path)[0]


def read_layout(path: str | Path) -> Layout:
    """Read what adapters need to know of a model.

    Raises:
        BadModelFile: as for `read`.
    """
    return _open(path)[1]


def _open(path: str | Path) -> tuple[Header, Layout]:
    with Path(path).open("rb") as file:
        return _Reader(file, os.fstat(file.fileno()).st_size).read()


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._left = min(size, HEADER_BYTES_MAX)
        self._shapes: dict[str, tuple[int, int]] = {}

    def read(self) -> tuple[Header, Layout]:
        magic = self._bytes(4, "magic")
        if magic != MAGIC:
            raise BadModelFile(f"the file begins with {magic!r}, expected {MAGIC!r}: it is no GGUF")
        version = self._number("<I", "version")
        if version != VERSION:
            raise BadModelFile(f"GGUF version {version}, expected {VERSION}")
        tensors = self._count("<Q", "number of tensors", TENSORS_MAX)
        pairs = self._count("<Q", "number of metadata pairs", PAIRS_MAX)
        metadata: dict[str, object] = {}
        for _ in range(pairs):
            key = self._text("metadata key", KEY_BYTES_MAX)
            if key in metadata:
                raise BadModelFile(f"metadata key {key!r} occurs twice")
            metadata[key] = self._value(self._number("<I", "metadata type"), key)
        parameters, commonest = self._tensors(tensors, _alignment(metadata))
        header = _summary(metadata, parameters, commonest)
        heads = _whole(metadata, header.architecture, "attention.head_count", 0)
        layout = Layout(
            architecture=header.architecture,
            heads=heads,
            kv_heads=_whole(metadata, header.architecture, "attention.head_count_kv", heads),
            shapes=self._shapes,
        )
        return header, layout

    def _tensors(self, count: int, alignment: int) -> tuple[int, str]:
        """Check where each tensor lies; return the number of parameters and the type that most of them have."""
        if count == 0:
            raise BadModelFile("the file has no tensors")
        extents: list[tuple[int, int, str]] = []
        per_type: dict[str, int] = {}
        names: set[str] = set()
        for _ in range(count):
            name = self._text("tensor name", TENSOR_NAME_BYTES_MAX)
            if name in names:
                raise BadModelFile(f"tensor {name!r} occurs twice")
            names.add(name)
            dimensions = self._count("<I", f"dimensions of tensor {name!r}", 4)
            shape = [self._number("<Q", "tensor shape") for _ in range(dimensions)]
            kind = self._number("<I", "tensor type")
            if kind not in _TYPES:
                raise BadModelFile(f"tensor {name!r} has type {kind}, which is unknown")
            type_name, block_items, block_bytes = _TYPES[kind]
            items = 1
            for length in shape:
                items *= length
                if not 0 < items < 1 << 48:
                    raise BadModelFile(f"tensor {name!r} has shape {shape}")
            if (shape[0] if shape else 1) % block_items:
                raise BadModelFile(
                    f"tensor {name!r} has rows of {shape[0]}, expected a multiple of {block_items}"
                )
            if len(shape) == 2:
                self._shapes[name] = (shape[1], shape[0])
            offset = self._number("<Q", "tensor offset")
            if offset % alignment:
                raise BadModelFile(f"tensor {name!r} begins at {offset}, expected a multiple of {alignment}")
            extents.append((offset, items // block_items * block_bytes, name))
            per_type[type_name] = per_type.get(type_name, 0) + items
        self._check_extents(extents, alignment)
        return sum(per_type.values()), max(per_type, key=lambda name: per_type[name])

    def _check_extents(self, extents: list[tuple[int, int, str]], alignment: int) -> None:
        start = -(-self._file.tell() // alignment) * alignment
        end = 0
        for offset, size, name in sorted(extents):
            if offset < end:
                raise BadModelFile(f"tensor {name!r} overlaps another one")
            end = offset + size
        if start + end > self._size:
            raise BadModelFile(f"the file has {self._size} bytes, expected {start + end}: it is cut short")

    def _value(self, kind: int, key: str) -> object:
        """Read a value; an array is checked and forgotten, but for short ones of numbers."""
        if kind == _TEXT:
            return self._text(f"value of {key!r}", TEXT_BYTES_MAX)
        if kind in _SCALARS:
            return self._number(_SCALARS[kind], f"value of {key!r}")
        if kind != _ARRAY:
            raise BadModelFile(f"metadata key {key!r} has type {kind}, which is unknown")
        item = self._number("<I", f"item type of {key!r}")
        count = self._count("<Q", f"length of {key!r}", ITEMS_MAX)
        if item == _TEXT:
            for _ in range(count):
                self._skip_text(key)
            return None
        if item not in _SCALARS:
            raise BadModelFile(f"metadata key {key!r} is an array of type {item}, expected numbers or texts")
        code = _SCALARS[item]
        data = self._bytes(count * struct.calcsize(code), f"value of {key!r}")
        return [value for (value,) in struct.iter_unpack(code, data)] if count <= LAYERS_MAX else None

    def _skip_text(self, key: str) -> None:
        length = int.from_bytes(self._bytes(8, f"value of {key!r}"), "little")
        if length > TEXT_BYTES_MAX:
            raise BadModelFile(f"a text of {length} bytes in {key!r}, expected at most {TEXT_BYTES_MAX}")
        self._bytes(length, f"value of {key!r}")

    def _text(self, what: str, length_max: int) -> str:
        length = self._count("<Q", f"length of {what}", length_max)
        return self._bytes(length, what).decode(errors="replace")

    def _count(self, code: str, what: str, most: int) -> int:
        value = self._number(code, what)
        if value > most:
            raise BadModelFile(f"{what} is {value}, expected at most {most}")
        return value

    def _number(self, code: str, what: str) -> int:
        (value,) = struct.unpack(code, self._bytes(struct.calcsize(code), what))
        return value  # type: ignore[no-any-return]  # floats are only ever stored, not counted with

    def _bytes(self, count: int, what: str) -> bytes:
        if count > self._left:
            raise BadModelFile(
                f"the file ends inside the {what}: it is cut short, or its header is over {HEADER_BYTES_MAX} bytes"
            )
        data = self._file.read(count)
        if len(data) != count:
            raise BadModelFile(f"the file ends inside the {what}: it is cut short")
        self._left -= count
        return data


def _alignment(metadata: dict[str, object]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 0 < value <= ALIGNMENT_MAX or value & (value - 1):
        raise BadModelFile(f"general.alignment is {value!r}, expected a power of two up to {ALIGNMENT_MAX}")
    return value


def _summary(metadata: dict[str, object], parameters: int, commonest: str) -> Header:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not 0 < len(architecture) <= 64 or not architecture.isascii():
        raise BadModelFile(f"general.architecture is {architecture!r:.80}, expected a short name")
    if metadata.get("general.type", "model") != "model":
        raise BadModelFile(f"general.type is {metadata['general.type']!r:.80}, expected 'model'")
    if metadata.get("split.count", 0) not in (0, 1):
        raise BadModelFile("the file is one part of a split model, expected a model in one file")

    layers = _bounded(metadata, f"{architecture}.block_count", LAYERS_MAX)
    context = _bounded(metadata, f"{architecture}.context_length", CONTEXT_TOKENS_MAX)
    name = metadata.get("general.name")
    file_type = metadata.get("general.file_type")
    return Header(
        name=name[:128] if isinstance(name, str) and name else architecture,
        architecture=architecture,
        quantisation=_MIXTURES.get(file_type, commonest) if isinstance(file_type, int) else commonest,
        parameters=parameters,
        trained_context_tokens=context,
        kv_bytes_per_token=_kv_bytes(metadata, architecture, layers),
        dimensions=_dimensions(metadata, architecture),
    )


def _dimensions(metadata: dict[str, object], architecture: str) -> int:
    """Return the length of the vectors of an embedding model: one whose header says how it pools."""
    if _whole(metadata, architecture, "pooling_type", 0) not in POOLINGS:
        return 0
    key = "embedding_length_out" if f"{architecture}.embedding_length_out" in metadata else "embedding_length"
    return _bounded(metadata, f"{architecture}.{key}", DIMENSIONS_MAX)


def _bounded(metadata: dict[str, object], key: str, most: int) -> int:
    value = metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadModelFile(f"{key} is {value!r:.80}, expected 1 to {most}")
    return value


def _kv_bytes(metadata: dict[str, object], architecture: str, layers: int) -> int:
    def whole(key: str, otherwise: int) -> int:
        return _whole(metadata, architecture, key, otherwise)

    heads = whole("attention.head_count", 0)
    width = whole("embedding_length", 0) // heads if heads else 0
    row = whole("attention.key_length", width) + whole("attention.value_length", width)
    total = 2 * layers * whole("attention.head_count_kv", heads) * row
    return total if total < 1 << 31 else 0


def _whole(metadata: dict[str, object], architecture: str, key: str, otherwise: int) -> int:
    value = metadata.get(f"{architecture}.{key}", otherwise)
    if isinstance(value, list):  # one for each layer
        value = max((item for item in value if isinstance(item, int)), default=otherwise)
    return value if isinstance(value, int) and 0 <= value <= 1 << 20 else 0
