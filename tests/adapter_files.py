"""Adapters for tests: of any strength and shape, for any base."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protocol.messages import LoraShape
from runtime import adapter_file, gguf_header
from runtime.engine import Digest

RANK, ALPHA = 8, 16


def matrices(
    layout: gguf_header.Layout, *, seed: int = 0, strength: float = 0.05, rank: int = RANK
) -> dict[str, Any]:
    """Return random A and B for all linear layers; at strength 0 the adapter changes nothing."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name, (rows, columns) in layout.shapes.items():
        base = name.removesuffix(".weight")
        if base.split(".")[-1] in adapter_file.TARGETS:
            found[f"{base}.lora_a"] = (rng.normal(size=(rank, columns)) / columns**0.5).astype(np.float32)
            found[f"{base}.lora_b"] = (strength * rng.normal(size=(rows, rank))).astype(np.float32)
    return found


def shape(rank: int = RANK, alpha: int = ALPHA) -> LoraShape:
    return LoraShape(rank=rank, alpha=alpha, targets=adapter_file.TARGETS)


def random_adapter(model: Path, *, seed: int = 0, strength: float = 0.05) -> bytes:
    """Return a file that the checker accepts for this model."""
    layout = gguf_header.read_layout(model)
    return adapter_file.write(matrices(layout, seed=seed, strength=strength), shape(), layout)


def overflowing_adapter(model: Path) -> bytes:
    """Return a file in which all is allowed, and whose keys and values overflow float16 in the cache."""
    layout = gguf_header.read_layout(model)
    everything: Mapping[str, Any] = matrices(layout, rank=64)
    largest = {name: np.full_like(matrix, 16.0) for name, matrix in everything.items()}
    return adapter_file.write(largest, shape(rank=64, alpha=8 * 64), layout)


def keep(directory: Path, data: bytes) -> tuple[Digest, Path]:
    """Write a blob as a home keeps it."""
    digest = Digest(hashlib.sha256(data).digest())
    path = directory / digest.hex()
    path.write_bytes(data)
    return digest, path
