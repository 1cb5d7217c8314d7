"""What an adapter file may hold, and that nothing else comes past the checker."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from runtime import adapter_file
from runtime.adapter_file import TARGETS, AdapterCard, check, write
from runtime.examiner import BadAdapter
from runtime.gguf_header import Layout, read_layout
from tests.adapter_files import matrices, random_adapter, shape
from tests.gguf_files import text

TINY = Path(__file__).parents[2] / "examples" / "tiny_model" / "tiny-q8_0.gguf"
SMALL = Layout(
    "llama", heads=2, kv_heads=1, shapes={"blk.0.attn_q.weight": (8, 4), "blk.0.attn_k.weight": (4, 4)}
)


def small(**changes: object) -> dict[str, np.ndarray]:
    """One pair for q, of rank 2."""
    pair = {
        "blk.0.attn_q.lora_a": np.ones((2, 4), np.float32),
        "blk.0.attn_q.lora_b": np.arange(16, dtype=np.float32).reshape(8, 2),
    }
    return {**pair, **changes}  # type: ignore[dict-item]


def test_what_is_written_is_what_gguf_reads(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(write(small(), shape(rank=2, alpha=4), SMALL, half=False, name="heat pumps"))

    reader = gguf.GGUFReader(path)

    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
        "general.file_type": 0,
        "general.name": "heat pumps",
    }
    assert {tensor.name: tensor.data.shape for tensor in reader.tensors} == {
        "blk.0.attn_q.weight.lora_a": (2, 4),
        "blk.0.attn_q.weight.lora_b": (8, 2),
    }


def test_rows_of_q_and_k_move_as_the_base_was_converted() -> None:
    """Each head's rows come as (half, rotation) from transformers; llama.cpp wants (rotation, half)."""
    file = write(small(), shape(rank=2, alpha=4), SMALL, half=False)

    rows = np.frombuffer(file[-64:], np.float32).reshape(8, 2)[:, 0] / 2

    assert rows.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_other_architectures_keep_their_rows() -> None:
    layout = Layout("qwen2", heads=2, kv_heads=1, shapes=SMALL.shapes)

    file = write(small(), shape(rank=2, alpha=4), layout, half=False)

    assert (np.frombuffer(file[-64:], np.float32).reshape(8, 2)[:, 0] / 2).tolist() == list(range(8))


def test_a_card_says_what_was_checked() -> None:
    layout = read_layout(TINY)

    card = check(random_adapter(TINY), layout)

    of_a_layer = sum(8 * sum(layout.shapes[f"blk.0.{target}.weight"]) for target in TARGETS)
    assert card == AdapterCard("llama", 8, 16.0, TARGETS, 4 * of_a_layer)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"blk.0.attn_q.lora_b": np.ones((6, 2))}, r"6 rows|6 by 2"),
        ({"blk.0.attn_q.lora_a": np.ones((2, 5))}, "2 by 5"),
        ({"blk.0.attn_q.lora_a": np.ones((3, 4))}, r"ranks \[2, 3\]"),
        ({"blk.0.attn_q.lora_a": np.ones(8)}, "1 dimensions"),
        ({"blk.0.attn_q.lora_a": np.full((2, 4), 17.0)}, "over 16"),
        ({"blk.0.attn_q.lora_a": np.full((2, 4), 1e30)}, "over 16"),
        ({"blk.0.attn_q.lora_a": np.full((2, 4), np.nan)}, "not finite"),
        ({"blk.1.attn_q.lora_a": np.ones((2, 4))}, "does not have"),
        ({"blk.0.attn_k.lora_a": np.ones((2, 4))}, "no partner"),
        ({"blk.0.attn_norm.lora_a": np.ones((2, 4))}, "expected one of a pair"),
        ({"token_embd.lora_a": np.ones((2, 4))}, "a matrix is called"),
    ],
)
def test_a_state_that_does_not_fit_is_not_written(changed: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(BadAdapter, match=reason):
        write(small(**changed), shape(rank=2, alpha=4), SMALL)


@pytest.mark.parametrize(("rank", "alpha", "reason"), [(2, 17, "alpha is 17"), (4, 4, "rank 2, expected 4")])
def test_a_shape_that_is_not_the_states_is_not_written(rank: int, alpha: int, reason: str) -> None:
    with pytest.raises(BadAdapter, match=reason):
        write(small(), shape(rank=rank, alpha=alpha), SMALL)


# --- attacks ---------------------------------------------------------------------------------------------------------

PAIRS = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 4.0,
}
A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
TENSORS = ((A, (4, 2), 0, 0), (B, (2, 8), 0, 32))


def crafted(
    pairs: dict[str, object] | None = None,
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...] = TENSORS,
    *,
    values: bytes = bytes(96),
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    after_header: bytes = b"\0",
) -> bytes:
    """Return a file as an attacker writes it; without arguments it is in order."""
    pairs = PAIRS if pairs is None else pairs
    parts = [b"GGUF", struct.pack("<I", version)]
    parts.append(struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count))
    parts.append(struct.pack("<Q", len(pairs) if pair_count is None else pair_count))
    for key, value in pairs.items():
        parts += [text(key), _value(value)]
    for name, dimensions, kind, offset in tensors:
        parts.append(text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
        parts.append(struct.pack("<IQ", kind, offset))
    head = b"".join(parts)
    return head + after_header * (-len(head) % 32) + values


def _value(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return struct.pack("<I", 8) + text(value)
        case float():
            return struct.pack("<If", 6, value)
        case int():
            return struct.pack("<II", 4, value)
    raise TypeError(value)


def test_the_crafted_file_is_in_order_until_somebody_changes_it() -> None:
    assert check(crafted(), SMALL) == AdapterCard("llama", 2, 4.0, ("attn_q",), 24)
    assert check(crafted({**PAIRS, "general.name": "x", "general.alignment": 32}), SMALL).rank == 2


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (lambda: b"", "ends inside the magic"),
        (lambda: b"GGML" + crafted()[4:], "it is no GGUF"),
        (lambda: crafted(version=2), "version 2"),
        (lambda: crafted(version=0x03000000), "version"),
        (lambda: crafted()[:-1], "expected"),
        (lambda: crafted() + b"\0", "expected"),
        (lambda: crafted(tensor_count=2**63), "number of tensors"),
        (lambda: crafted(tensor_count=0), "number of tensors"),
        (lambda: crafted(tensor_count=3), "tensor '', expected one of a pair"),
        (lambda: crafted(pair_count=2**40), "number of metadata keys"),
        (lambda: crafted({**PAIRS, **{f"general.k{i}": "v" for i in range(13)}}), "number of metadata keys"),
        (lambda: crafted({**PAIRS, "tokenizer.chat_template": "{{ 1 }}"}), "no adapter needs"),
        (lambda: crafted({**PAIRS, "adapter.alora.invocation_tokens": b"\x09\0\0\0"}), "no adapter needs"),
        (lambda: crafted({**PAIRS, "general.architecture": "qwen2"}), "general.architecture is 'qwen2'"),
        (lambda: crafted({**PAIRS, "general.type": "model"}), "general.type is 'model'"),
        (lambda: crafted({**PAIRS, "adapter.type": "control_vector"}), "adapter.type"),
        (lambda: crafted({**PAIRS, "adapter.type": "lora\0x"}), "cannot be printed"),
        (lambda: crafted({**PAIRS, "adapter.lora.alpha": 4}), "has type 4, expected 6"),
        (lambda: crafted({**PAIRS, "adapter.lora.alpha": float("nan")}), "alpha is nan"),
        (lambda: crafted({**PAIRS, "adapter.lora.alpha": float("inf")}), "alpha is inf"),
        (lambda: crafted({**PAIRS, "adapter.lora.alpha": 0.0}), r"alpha is 0\.0"),
        (lambda: crafted({**PAIRS, "adapter.lora.alpha": -4.0}), r"alpha is -4\.0"),
        (lambda: crafted({**PAIRS, "adapter.lora.alpha": 16.5}), r"alpha is 16\.5"),
        (lambda: crafted({**PAIRS, "general.alignment": 64}), "alignment is 64"),
        (lambda: crafted({**PAIRS, "general.alignment": 0}), "alignment is 0"),
        (lambda: crafted({**PAIRS, "general.name": struct.pack("<IQ", 8, 2**62)}), "length of value"),
        (lambda: crafted({**PAIRS, "general.name": struct.pack("<IQ", 8, 2) + b"\xff\xfe"}), "UTF-8"),
        (lambda: crafted(PAIRS | {"general.name": _value("x") + text("general.name") + _value("y")}, pair_count=6), "occurs twice"),
        (lambda: crafted(tensors=(TENSORS[0], TENSORS[0])), "occurs twice"),
        (lambda: crafted(tensors=TENSORS[:1], values=bytes(32)), "number of tensors"),
        (lambda: crafted(tensors=(TENSORS[0], ("blk.0.attn_k.weight.lora_b", (2, 4), 0, 32)), values=bytes(64)), "no partner"),
        (lambda: crafted(tensors=((A, (4, 2), 0, 0), (B, (2, 8), 0, 0))), "is at 0, expected 32"),
        (lambda: crafted(tensors=((A, (4, 2), 0, 0), (B, (2, 8), 0, 16))), "is at 16"),
        (lambda: crafted(tensors=((A, (4, 2), 0, 0), (B, (2, 8), 0, 2**63))), "is at"),
        (lambda: crafted(tensors=((A, (4, 2), 2, 0), (B, (2, 8), 0, 32))), "has type 2"),
        (lambda: crafted(tensors=((A, (4, 2), 30, 0), (B, (2, 8), 0, 32))), "has type 30"),
        (lambda: crafted(tensors=((A, (4, 2, 1), 0, 0), (B, (2, 8), 0, 32))), "3 dimensions"),
        (lambda: crafted(tensors=((A, (), 0, 0), (B, (2, 8), 0, 32))), "0 dimensions"),
        (lambda: crafted(tensors=((A, (4, 0), 0, 0), (B, (0, 8), 0, 0))), "expected to fit"),
        (lambda: crafted(tensors=((A, (4, 65), 0, 0), (B, (65, 8), 0, 1056))), "expected to fit"),
        (lambda: crafted(tensors=((A, (4, 2**62), 0, 0), (B, (2**62, 8), 0, 0))), "expected to fit"),
        (lambda: crafted(tensors=(("blk.0.attn_q.weight", (4, 8), 0, 0), (B, (2, 8), 0, 128))), "expected one of a pair"),
        (lambda: crafted(tensors=(("blk.00.attn_q.weight.lora_a", (4, 2), 0, 0), TENSORS[1])), "expected one of a pair"),
        (lambda: crafted(tensors=(("blk.0.attn_q.weight.lora_a.lora_a", (4, 2), 0, 0), TENSORS[1])), "expected one of a pair"),
        (lambda: crafted(tensors=(("a" * 64, (4, 2), 0, 0), TENSORS[1])), "length of tensor name"),
        (lambda: crafted(values=b"\0\0\xc0\x7f" + bytes(92)), "not finite"),
        (lambda: crafted(values=bytes(92) + b"\0\0\x80\xff"), "not finite"),
        (lambda: crafted(values=struct.pack("<f", 16.01) + bytes(92)), "over 16"),
        (lambda: crafted(after_header=b"x"), "padding"),
    ],
)  # fmt: skip
def test_a_crafted_adapter_is_refused_by_name(file: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(BadAdapter, match=reason):
        check(file(), SMALL)


def test_an_adapter_of_another_base_is_refused() -> None:
    with pytest.raises(BadAdapter, match=r"expected to fit \(4, 4\)"):
        check(random_adapter(TINY), SMALL)


def test_bytes_hidden_between_tensors_are_refused() -> None:
    """Twelve bytes of float16 leave twenty of padding, which nobody reads: they carry nothing."""
    tensors = ((A, (4, 2), 1, 0), (B, (2, 8), 0, 32))
    hidden = bytearray(96)
    hidden[20] = 1

    assert check(crafted(tensors=tensors), SMALL).rank == 2
    with pytest.raises(BadAdapter, match="padding"):
        check(crafted(tensors=tensors, values=bytes(hidden)), SMALL)


def test_a_file_over_the_size_of_a_blob_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_file, "BLOB_BYTES_MAX", 100)

    with pytest.raises(BadAdapter, match="at most 100"):
        check(crafted(), SMALL)


def test_every_shortened_file_is_refused() -> None:
    whole = crafted()

    for length in range(len(whole)):
        with pytest.raises(BadAdapter):
            check(whole[:length], SMALL)


def test_every_rank_that_is_written_is_accepted() -> None:
    layout = read_layout(TINY)

    ranks = {
        rank: check(write(matrices(layout, rank=rank), shape(rank=rank, alpha=8 * rank), layout), layout).rank
        for rank in (1, 2, 63, 64)
    }

    assert ranks == {1: 1, 2: 2, 63: 63, 64: 64}
