"""Models that a cheat might serve instead of the one that is paid for: the same tokens, other weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Change = Callable[[Weights], Weights]

BLOCK: Final = 32  # weights that share a scale


def rewrite(
    source: Path, target: Path, kind: gguf.GGMLQuantizationType, change: Change = lambda weights: weights
) -> Path:
    """Write a model again with its matrices changed and stored in another way.

    Args:
        source: a GGUF of the weights as precise as they are to be had.
        target: the file to write.
        kind: how the matrices are stored.
        change: given each matrix.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(str(target), "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer has its own
        value, value_type = field.contents(), field.types[0]
        if value_type == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
        else:
            writer.add_key_value(field.name, value, value_type)
    for tensor in reader.tensors:
        weights = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if weights.ndim == 2:
            stored = gguf.quants.quantize(change(weights), kind)
            writer.add_tensor(tensor.name, stored, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def rounded(bits: int) -> Change:
    """Round each block of weights to so many bits, evenly between its smallest and its largest."""

    def change(weights: Weights) -> Weights:
        blocks = weights.reshape(-1, BLOCK)
        low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        step[step == 0] = 1
        found: Weights = (low + step * np.round((blocks - low) / step)).reshape(weights.shape)
        return found.astype(np.float32)

    return change


def disturbed(share: float, *, seed: int = 0) -> Change:
    """Add noise of so large a share of each matrix's own deviation: what training a little longer elsewhere comes to."""
    rng = np.random.default_rng(seed)

    def change(weights: Weights) -> Weights:
        noise = rng.normal(size=weights.shape).astype(np.float32)
        found: Weights = weights + share * weights.std() * noise
        return found.astype(np.float32)

    return change
