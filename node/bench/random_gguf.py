"""Writes GGUF files of any size with random weights in seconds: random Q4_0 blocks, nothing quantised.

Quantising 1.2 B real weights takes 205 s; writing as many random blocks takes about 3. The model says nonsense at the
speed of a real one. It has no margin between tokens, so never judge exactness or checking on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama."""

    width: int
    layers: int
    heads: int
    heads_kv: int
    head_width: int
    hidden: int
    vocabulary: int
    context_tokens: int


TINY = Shape(
    width=64, layers=2, heads=4, heads_kv=2, head_width=16, hidden=128, vocabulary=512, context_tokens=2_048
)
# About 2 ms a token: slow enough to be interrupted, quick enough to write.
SLOW = Shape(
    width=512,
    layers=8,
    heads=8,
    heads_kv=4,
    head_width=64,
    hidden=2_048,
    vocabulary=512,
    context_tokens=4_096,
)
LLAMA_3_2_1B = Shape(
    width=2_048,
    layers=16,
    heads=32,
    heads_kv=8,
    head_width=64,
    hidden=8_192,
    vocabulary=128_256,
    context_tokens=131_072,
)


def write(
    path: Path,
    shape: Shape,
    *,
    seed: int = 0,
    template: str = TEMPLATE,
    pooling: gguf.PoolingType | None = None,
) -> Path:
    """Write a Llama with random weights: Q4_0 matrices, F32 norms, tied embeddings, a byte-level vocabulary.

    Args:
        path: where; overwritten.
        shape: which dimensions.
        seed: of the weights.
        template: its chat template.
        pooling: makes an embedding model of it; None: it writes.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("random")
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    _add_vocabulary(writer, shape.vocabulary)
    writer.add_chat_template(template)
    if pooling is not None:
        writer.add_pooling_type(pooling)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = _random_q4_0(rng, rows, columns)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, dtype=np.float32))

    embeddings = _random_q4_0(rng, shape.vocabulary, shape.width)
    embeddings[: len(SPECIAL)] = 0  # never the likeliest: a completion goes on to its cap
    writer.add_tensor("token_embd.weight", embeddings, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    ones("output_norm.weight", shape.width)
    for layer in range(shape.layers):
        ones(f"blk.{layer}.attn_norm.weight", shape.width)
        ones(f"blk.{layer}.ffn_norm.weight", shape.width)
        matrix(f"blk.{layer}.attn_q.weight", shape.heads * shape.head_width, shape.width)
        matrix(f"blk.{layer}.attn_k.weight", shape.heads_kv * shape.head_width, shape.width)
        matrix(f"blk.{layer}.attn_v.weight", shape.heads_kv * shape.head_width, shape.width)
        matrix(f"blk.{layer}.attn_output.weight", shape.width, shape.heads * shape.head_width)
        matrix(f"blk.{layer}.ffn_gate.weight", shape.hidden, shape.width)
        matrix(f"blk.{layer}.ffn_up.weight", shape.hidden, shape.width)
        matrix(f"blk.{layer}.ffn_down.weight", shape.width, shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_encoder(path: Path, *, seed: int = 0, width: int = 64, context_tokens: int = 64) -> Path:
    """Write a BERT of two layers with random weights, whose words are single letters and the pieces of them.

    Args:
        path: where; overwritten.
        seed: of the weights.
        width: dimensions of its vectors, a multiple of 32.
        context_tokens: of a text.
    """
    rng = np.random.default_rng(seed)
    hidden = 2 * width
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("random encoder")
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    # WordPiece as llama.cpp writes it: a word's first piece is marked, not the others.
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{letter}" for letter in letters), *letters]
    special = [gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([*special, *[gguf.TokenType.NORMAL] * (len(tokens) - 4)])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(width, dtype=np.float32))

    add("token_embd.weight", len(tokens), width)
    add("token_types.weight", 2, width)
    add("position_embd.weight", context_tokens, width)
    norm("token_embd_norm")
    for layer in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", width, width)
            add(f"blk.{layer}.{part}.bias", width)
        norm(f"blk.{layer}.attn_output_norm")
        add(f"blk.{layer}.ffn_up.weight", hidden, width)
        add(f"blk.{layer}.ffn_up.bias", hidden)
        add(f"blk.{layer}.ffn_down.weight", width, hidden)
        add(f"blk.{layer}.ffn_down.bias", width)
        norm(f"blk.{layer}.layer_output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rendered(turns: Sequence[Sequence[str]]) -> str:
    """Return what the template makes of a chat, but for the token that begins every text.

    Args:
        turns: (role, text) each.
    """
    return "".join(f"<|{role}|>{text}<|end|>" for role, text in turns) + "<|assistant|>"


def _random_q4_0(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return (rows, columns / 32 * 18) bytes: blocks of an F16 scale and 32 random nibbles."""
    blocks = columns // 32
    data = rng.integers(0, 256, size=(rows, blocks, 18), dtype=np.uint8)
    scale = np.float16(
        1 / (4.6 * np.sqrt(columns))
    )  # nibbles minus 8 have a deviation of 4.6: rows of unit norm
    data[:, :, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    return data.reshape(rows, blocks * 18)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A GPT-2 style vocabulary: special tokens, the 256 bytes, then fillers that no text is tokenised to."""
    letters = _byte_letters()
    tokens = [*SPECIAL, *letters, *(f"<filler{i}>" for i in range(size - len(SPECIAL) - len(letters)))]
    kinds = [
        *[gguf.TokenType.CONTROL] * len(SPECIAL),
        *[gguf.TokenType.NORMAL] * (size - len(SPECIAL)),
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{letters[104]} {letters[105]}"])  # llama.cpp wants at least one
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def _byte_letters() -> list[str]:
    """Return the letter that GPT-2 writes for each byte: itself if it is visible, else one from 256 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]
