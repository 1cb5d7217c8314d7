"""Write the trained model as GGUF, in f16 and in q8_0, one file for llama.cpp and for transformers alike.

    python -m examples.tiny_model.export build/tiny_model

reads `model.safetensors` and `tokenizer.json` of that directory and writes `tiny-f16.gguf`, `tiny-q8_0.gguf` and
`tokenizer.json` beside this file. Keys and tensors have one fixed order and nothing depends on the time or the
machine, so the same weights make the same bytes.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from safetensors.numpy import load_file

from examples.tiny_model import model
from examples.tiny_model.tokenizer import CHAT_TEMPLATE, END, MARKS

HERE: Final = Path(__file__).parent
# The norms stay in float32: they are small, and llama.cpp wants them so.
FORMATS: Final = {
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
}


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path, help="the directory that train.py wrote")
    trained = parser.parse_args().trained
    shutil.copyfile(trained / "tokenizer.json", HERE / "tokenizer.json")
    tensors = load_file(trained / "model.safetensors")
    for name, (file_type, matrix_type) in FORMATS.items():
        write(HERE / f"tiny-{name}.gguf", tensors, HERE / "tokenizer.json", file_type, matrix_type)


def write(
    path: Path,
    tensors: dict[str, np.ndarray],
    tokenizer: Path,
    file_type: gguf.LlamaFileType,
    matrix_type: gguf.GGMLQuantizationType,
) -> None:
    """Write one GGUF file.

    Args:
        path: the file to write.
        tensors: float32, by their GGUF names; the rows of q and k are already in llama.cpp's order (see `model.py`).
        tokenizer: the `tokenizer.json` of a byte-level BPE.
        file_type: what the file says it is.
        matrix_type: how the matrices are stored.
    """
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    add_model(writer, file_type)
    add_tokenizer(writer, json.loads(tokenizer.read_text(encoding="utf-8")))
    for name, tensor in sorted(tensors.items()):
        kind = matrix_type if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)  # a process that has the old file mapped keeps it whole


def add_model(writer: gguf.GGUFWriter, file_type: gguf.LlamaFileType) -> None:
    """Add what the model is and its dimensions."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Agora Tiny")
    writer.add_description("A model of 0.93 million parameters for demonstrations and tests of Agora")
    writer.add_size_label("0.9M")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.CONTEXT)
    writer.add_embedding_length(model.HIDDEN)
    writer.add_block_count(model.LAYERS)
    writer.add_feed_forward_length(model.FEED_FORWARD)
    writer.add_head_count(model.HEADS)
    writer.add_head_count_kv(model.KV_HEADS)
    writer.add_rope_dimension_count(model.HEAD_SIZE)
    writer.add_rope_freq_base(model.ROPE_BASE)
    writer.add_layer_norm_rms_eps(model.NORM_EPSILON)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """Add tokens, merges and the chat template; as in GPT-2, one mark is beginning and end of a sequence."""
    ids = tokenizer["model"]["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in MARKS else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids[END])
    writer.add_eos_token_id(ids[END])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


if __name__ == "__main__":
    main()
