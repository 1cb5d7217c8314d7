"""Adapter files: a LoRA written as GGUF, and the strict checker that stands before llama.cpp.

llama.cpp trusts an adapter: of 2,000 structured hostile ones it died on 306 and served NaN on 181. So nothing is left to
it here: every byte of the file is accounted for, and what is not exactly as `write` writes it is refused by name:

- the header: GGUF version 3, at most `PAIRS_MAX` keys from a list, each once and with its exact type;
- the tensors: pairs `<tensor of the base>.lora_a` (r, in) and `.lora_b` (out, r), of one rank for all, F16 or F32,
  side by side in the order of the header, the padding zero, the file ending where the last one does;
- the values: finite, and no larger than honest training ever makes them; 0 < alpha / r <= `SCALE_MAX`.

What passes loads in llama.cpp. That its numbers stay finite in use is for the trial to find (`llama/examiner.py`).

The checker runs in a sandboxed child; the daemon writes only what it computed itself.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and llama.cpp's `convert_lora_to_gguf.py` for the names.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.limits import BLOB_BYTES_MAX, RANK_MAX
from protocol.messages import LoraShape
from runtime.examiner import BadAdapter
from runtime.gguf_header import Layout

MAGIC: Final = b"GGUF"
VERSION: Final = 3
ALIGNMENT: Final = 32
PAIRS_MAX: Final = 16
TENSORS_MAX: Final = 8_192  # seven pairs in each of 512 layers
TEXT_BYTES_MAX: Final = 1_024
NAME_BYTES_MAX: Final = 63  # GGML_MAX_NAME - 1
SCALE_MAX: Final = 8  # of alpha / r
VALUE_MAX: Final = 16.0  # trained LoRA values are below 1
# What llama.cpp multiplies by an adapter's matrices in every architecture with these names.
TARGETS: Final = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")

_UINT32, _FLOAT32, _STRING = 4, 6, 8
_SCALARS: Final = {_UINT32: "<I", _FLOAT32: "<f"}
# Key: its type. The first four must be there.
_KEYS: Final = {
    "general.architecture": _STRING,
    "general.type": _STRING,
    "adapter.type": _STRING,
    "adapter.lora.alpha": _FLOAT32,
    "general.alignment": _UINT32,
    "general.name": _STRING,
    "general.description": _STRING,
    "general.version": _STRING,
    "general.author": _STRING,
    "general.license": _STRING,
    "general.file_type": _UINT32,
    "general.quantization_version": _UINT32,
}
_REQUIRED: Final = tuple(_KEYS)[:4]
_TYPES: Final[Mapping[int, np.dtype[Any]]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # ggml's F32 and F16
# Bytes of a value: the integer of its size, all bits but the sign's, and the bits of `VALUE_MAX`.
_BITS: Final[Mapping[int, tuple[np.dtype[Any], Any, int]]] = {
    4: (np.dtype("<u4"), np.uint32(0x7FFF_FFFF), int(np.float32(VALUE_MAX).view(np.uint32))),
    2: (np.dtype("<u2"), np.uint16(0x7FFF), int(np.float16(VALUE_MAX).view(np.uint16))),
}
_TENSOR_NAME: Final = re.compile(
    rf"(?P<layer>blk\.(0|[1-9][0-9]{{0,2}}))\.(?P<target>{'|'.join(TARGETS)})\.weight\.lora_(?P<side>[ab])"
)
_STATE_NAME: Final = re.compile(r"(?P<base>blk\.[0-9]{1,3}\.[a-z_]{1,32})\.lora_(?P<side>[ab])")

Matrix = npt.NDArray[Any]


@dataclass(frozen=True)
class AdapterCard:
    """What a checked adapter is.

    Attributes:
        alpha: as written; a file from elsewhere may hold a fraction.
        targets: the kinds of tensors that it changes, in the order of `TARGETS`.
        parameters: of all its matrices.
    """

    architecture: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    parameters: int


def write(
    matrices: Mapping[str, Matrix], shape: LoraShape, layout: Layout, *, half: bool = True, name: str = ""
) -> bytes:
    """Return the GGUF adapter of a trained LoRA.

    Args:
        matrices: A and B of each adapted tensor in Hugging Face's layout: `blk.0.attn_q.lora_a` is (r, in),
            `blk.0.attn_q.lora_b` (out, r); floats.
        shape: rank and alpha.
        layout: of the base model.
        half: store float16, else float32.
        name: for people who look into the file.

    Raises:
        BadAdapter: the matrices do not fit the base or each other, or break another rule of the checker.

    Source: Hu et al. 2021, arXiv:2106.09685: W + (alpha / r) B A.
    """
    kind = 1 if half else 0  # ggml's number of the type, and by chance also `general.file_type`
    pairs: list[bytes] = [
        _pair("general.architecture", _STRING, layout.architecture),
        _pair("general.type", _STRING, "adapter"),
        _pair("adapter.type", _STRING, "lora"),
        _pair("adapter.lora.alpha", _FLOAT32, float(shape.alpha)),
        _pair("general.file_type", _UINT32, kind),
    ]
    if name:
        pairs.append(_pair("general.name", _STRING, name))
    infos: list[bytes] = []
    data = bytearray()
    for key in sorted(matrices):
        found = _STATE_NAME.fullmatch(key)
        if found is None:
            raise BadAdapter(
                f"a matrix is called {key!r:.80}, expected 'blk.<layer>.<target>.lora_a' or '.lora_b'"
            )
        matrix = _rows_as_llama_cpp_has_them(np.asarray(matrices[key]), found["base"], found["side"], layout)
        tensor = f"{found['base']}.weight.lora_{found['side']}"
        infos.append(
            _text(tensor)
            + struct.pack("<I", matrix.ndim)
            + b"".join(struct.pack("<Q", length) for length in reversed(matrix.shape))
            + struct.pack("<IQ", kind, len(data))
        )
        with np.errstate(over="ignore"):  # becomes infinite, which the checker names
            data += np.ascontiguousarray(matrix, dtype=_TYPES[kind]).tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    head = MAGIC + struct.pack("<IQQ", VERSION, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    file = head + bytes(-len(head) % ALIGNMENT) + bytes(data)
    card = check(file, layout)  # what leaves this house is what it would let in
    if card.rank != shape.rank:
        raise BadAdapter(f"the matrices have rank {card.rank}, expected {shape.rank}")
    return file


def check(data: bytes, layout: Layout) -> AdapterCard:
    """Return what the adapter is if every byte of it is in order.

    Args:
        data: the whole file.
        layout: of the base model that it shall fit.

    Raises:
        BadAdapter: it breaks a rule; the message says which, what was found and what was expected.
    """
    if len(data) > BLOB_BYTES_MAX:
        raise BadAdapter(f"the adapter has {len(data)} bytes, expected at most {BLOB_BYTES_MAX}")
    return _Checker(data, layout).check()


@dataclass(frozen=True)
class _Tensor:
    name: str
    base: str
    target: str
    side: str
    shape: tuple[int, int]  # (rows, columns), as numpy has it
    dtype: np.dtype[Any]
    start: int

    @property
    def end(self) -> int:
        return self.start + self.shape[0] * self.shape[1] * self.dtype.itemsize


class _Checker:
    """Reads once from the first byte to the last."""

    def __init__(self, data: bytes, layout: Layout) -> None:
        self._data = data
        self._layout = layout
        self._at = 0

    def check(self) -> AdapterCard:
        if self._take(4, "magic") != MAGIC:
            raise BadAdapter(f"the file begins with {self._data[:4]!r}, expected {MAGIC!r}: it is no GGUF")
        version = self._number("<I", "version")
        if version != VERSION:
            raise BadAdapter(f"GGUF version {version}, expected {VERSION}")
        tensor_count = self._count("number of tensors", 2, TENSORS_MAX)
        pair_count = self._count("number of metadata keys", len(_REQUIRED), PAIRS_MAX)
        alpha = self._metadata(pair_count)
        tensors = self._tensors(tensor_count)
        rank = self._paired(tensors)
        if not 0 < alpha <= SCALE_MAX * rank:
            raise BadAdapter(
                f"alpha is {alpha} for rank {rank}, expected over 0 and at most {SCALE_MAX * rank}"
            )
        self._values(tensors)
        changed = {tensor.target for tensor in tensors}
        return AdapterCard(
            architecture=self._layout.architecture,
            rank=rank,
            alpha=alpha,
            targets=tuple(target for target in TARGETS if target in changed),
            parameters=sum(tensor.shape[0] * tensor.shape[1] for tensor in tensors),
        )

    # --- the header ----------------------------------------------------------------------------------------------

    def _metadata(self, count: int) -> float:
        """Check all keys and return alpha."""
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._text("metadata key", NAME_BYTES_MAX)
            if key not in _KEYS:
                raise BadAdapter(f"metadata key {key!r}, which no adapter needs")
            if key in values:
                raise BadAdapter(f"metadata key {key!r} occurs twice")
            kind = self._number("<I", f"type of {key!r}")
            if kind != _KEYS[key]:
                raise BadAdapter(f"metadata key {key!r} has type {kind}, expected {_KEYS[key]}")
            what = f"value of {key!r}"
            values[key] = (
                self._text(what, TEXT_BYTES_MAX) if kind == _STRING else self._number(_SCALARS[kind], what)
            )
        expected: dict[str, object] = {
            "general.architecture": self._layout.architecture,
            "general.type": "adapter",
            "adapter.type": "lora",
        }
        for key, value in expected.items():
            if values.get(key) != value:
                raise BadAdapter(f"{key} is {values.get(key)!r:.80}, expected {value!r}")
        if values.get("general.alignment", ALIGNMENT) != ALIGNMENT:
            raise BadAdapter(f"general.alignment is {values['general.alignment']}, expected {ALIGNMENT}")
        alpha = values.get("adapter.lora.alpha")
        if not isinstance(alpha, float) or not np.isfinite(alpha):
            raise BadAdapter(f"adapter.lora.alpha is {alpha}, expected a finite number")
        return alpha

    def _tensors(self, count: int) -> list[_Tensor]:
        """Read where the tensors say they are; they must lie side by side from the header's end to the file's."""
        claims: list[tuple[str, str, str, str, tuple[int, int], np.dtype[Any]]] = []
        names: set[str] = set()
        running = 0
        for _ in range(count):
            name = self._text("tensor name", NAME_BYTES_MAX)
            if name in names:
                raise BadAdapter(f"tensor {name!r} occurs twice")
            names.add(name)
            found = _TENSOR_NAME.fullmatch(name)
            if found is None:
                raise BadAdapter(f"tensor {name!r}, expected one of a pair for {', '.join(TARGETS)}")
            base = name.rpartition(".lora_")[0]
            if base not in self._layout.shapes:
                raise BadAdapter(f"tensor {name!r} is for {base!r}, which the base does not have")
            dimensions = self._number("<I", f"dimensions of {name!r}")
            if dimensions != 2:
                raise BadAdapter(f"tensor {name!r} has {dimensions} dimensions, expected 2")
            columns, rows = self._number("<Q", "tensor shape"), self._number("<Q", "tensor shape")
            if found["side"] == "a":
                fits, rank = columns == self._layout.shapes[base][1], rows
            else:
                fits, rank = rows == self._layout.shapes[base][0], columns
            if not fits or not 1 <= rank <= RANK_MAX:
                raise BadAdapter(
                    f"tensor {name!r} is {rows} by {columns}, expected to fit {self._layout.shapes[base]} "
                    f"with a rank of 1 to {RANK_MAX}"
                )
            kind = self._number("<I", f"type of {name!r}")
            if kind not in _TYPES:
                raise BadAdapter(f"tensor {name!r} has type {kind}, expected 0 (F32) or 1 (F16)")
            offset = self._number("<Q", f"offset of {name!r}")
            if offset != running:
                raise BadAdapter(
                    f"tensor {name!r} is at {offset}, expected {running}: where the one before it ends"
                )
            claims.append((name, base, found["target"], found["side"], (rows, columns), _TYPES[kind]))
            size = rows * columns * _TYPES[kind].itemsize
            running += size + -size % ALIGNMENT
        start = self._at + -self._at % ALIGNMENT
        if len(self._data) != start + running:
            raise BadAdapter(f"the file has {len(self._data)} bytes, expected {start + running}")
        self._check_padding(self._at, start)
        tensors: list[_Tensor] = []
        for name, base, target, side, shape, dtype in claims:
            tensor = _Tensor(name, base, target, side, shape, dtype, start)
            start = tensor.end + -tensor.end % ALIGNMENT
            self._check_padding(tensor.end, start)
            tensors.append(tensor)
        return tensors

    def _paired(self, tensors: list[_Tensor]) -> int:
        """Return the rank of all pairs."""
        sides = {(tensor.base, tensor.side) for tensor in tensors}
        for tensor in tensors:
            if (tensor.base, "b" if tensor.side == "a" else "a") not in sides:
                raise BadAdapter(f"tensor {tensor.name!r} has no partner")
        ranks = {tensor.shape[0 if tensor.side == "a" else 1] for tensor in tensors}
        if len(ranks) != 1:
            raise BadAdapter(f"matrices of ranks {sorted(ranks)}, expected one rank for all")
        return ranks.pop()

    def _values(self, tensors: list[_Tensor]) -> None:
        for tensor in tensors:
            # Without their signs, floats are ordered as the integers that their bits are, and infinity and NaN come
            # last: one comparison of integers refuses all three, eight times as fast as one of halves.
            bits, magnitude, largest = _BITS[tensor.dtype.itemsize]
            values = np.frombuffer(self._data, bits, tensor.shape[0] * tensor.shape[1], tensor.start)
            if int((values & magnitude).max()) > largest:
                raise BadAdapter(
                    f"tensor {tensor.name!r} has a value that is not finite or over {VALUE_MAX:g} in size"
                )

    # --- bytes ---------------------------------------------------------------------------------------------------

    def _check_padding(self, start: int, end: int) -> None:
        if any(self._data[start:end]):
            raise BadAdapter(f"bytes {start} to {end} are padding and not zero")

    def _text(self, what: str, length_max: int) -> str:
        length = self._count(f"length of {what}", 0, length_max)
        try:
            text = self._take(length, what).decode()
        except UnicodeDecodeError:
            raise BadAdapter(f"the {what} is not UTF-8") from None
        if not text.isprintable():  # a zero byte ends a name early for llama.cpp
            raise BadAdapter(f"the {what} has characters that cannot be printed")
        return text

    def _count(self, what: str, least: int, most: int) -> int:
        value = self._number("<Q", what)
        if not least <= value <= most:
            raise BadAdapter(f"{what} is {value}, expected {least} to {most}")
        return int(value)

    def _number(self, code: str, what: str) -> Any:
        (value,) = struct.unpack(code, self._take(struct.calcsize(code), what))
        return value

    def _take(self, count: int, what: str) -> bytes:
        if count > len(self._data) - self._at:
            raise BadAdapter(f"the file ends inside the {what}: it is cut short")
        self._at += count
        return self._data[self._at - count : self._at]


def _rows_as_llama_cpp_has_them(matrix: Matrix, base: str, side: str, layout: Layout) -> Matrix:
    """Undo Hugging Face's order of the rows of q and k: llama.cpp rotates neighbours, transformers the two halves.

    B's rows are the rows of W, so they move as W's did when the base was converted.
    """
    heads = {"attn_q": layout.heads, "attn_k": layout.kv_heads}.get(base.rpartition(".")[2], 0)
    if layout.architecture != "llama" or side == "a" or matrix.ndim != 2 or not heads:
        return matrix
    out, rank = matrix.shape
    if out % (2 * heads):
        raise BadAdapter(f"{base}.lora_b has {out} rows, expected a multiple of {2 * heads}")
    # (heads, halves, rows of a half, r) -> (heads, rows of a half, halves, r)
    return matrix.reshape(heads, 2, out // heads // 2, rank).swapaxes(1, 2).reshape(out, rank)


def _pair(key: str, kind: int, value: str | float) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", kind) + _text(value)
    return _text(key) + struct.pack("<I", kind) + struct.pack(_SCALARS[kind], value)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
