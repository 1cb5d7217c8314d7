"""A model file's header is read with bounds before llama.cpp sees it; the message says what was found."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.gguf_header import BadModelFile, Header, Layout, read, read_layout
from tests.gguf_files import F32, LLAMA, header, text, tiny_model


def read_bytes(directory: Path, data: bytes) -> Header:
    path = directory / "model.gguf"
    path.write_bytes(data)
    return read(path)


def test_a_well_formed_header_is_read(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, header())

    assert found == Header(
        name="a llama",
        architecture="llama",
        quantisation="F32",
        parameters=32,
        trained_context_tokens=2_048,
        kv_bytes_per_token=2 * 2 * 2 * (16 + 16),
    )


def test_a_real_model_is_read(tmp_path: Path) -> None:
    found = read(tiny_model(tmp_path / "tiny.gguf"))

    assert (found.architecture, found.quantisation, found.trained_context_tokens) == ("llama", "Q4_0", 2_048)


@pytest.mark.parametrize(
    ("metadata", "dimensions"),
    [
        ({}, 0),
        ({"llama.pooling_type": 0}, 0),
        ({"llama.pooling_type": 1}, 64),
        ({"llama.pooling_type": 2}, 64),
        ({"llama.pooling_type": 3, "llama.embedding_length_out": 32}, 32),
        ({"llama.pooling_type": 4}, 0),  # it ranks pairs of texts
        ({"llama.pooling_type": "1"}, 0),
        ({"llama.pooling_type": [""]}, 0),
    ],
)
def test_a_model_that_pools_says_the_dimensions_of_its_vectors(
    tmp_path: Path, metadata: dict[str, object], dimensions: int
) -> None:
    assert read_bytes(tmp_path, header({**LLAMA, **metadata})).dimensions == dimensions


def test_a_layout_is_what_adapters_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(
        header(
            tensors=(("blk.0.attn_q.weight", (8, 4), F32, 0), ("blk.0.attn_norm.weight", (8,), F32, 128)),
            data_bytes=160,
        )
    )

    assert read_layout(path) == Layout("llama", heads=4, kv_heads=2, shapes={"blk.0.attn_q.weight": (4, 8)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends inside the magic"),
        (b"PK\3\4" + bytes(100), "it is no GGUF"),
        (header(version=2), "GGUF version 2, expected 3"),
        (header(tensor_count=2**63), "number of tensors is 9223372036854775808, expected at most 65536"),
        (header(pair_count=2**32), "number of metadata pairs is 4294967296, expected at most 1024"),
        (header(tensors=()), "has no tensors"),
        (header(data_bytes=127), "cut short"),
        (header()[:100], "cut short"),
        (header({**LLAMA, "llama.block_count": 0}), "llama.block_count is 0, expected 1 to 512"),
        (
            header({**LLAMA, "llama.block_count": 1_000_000}),
            "llama.block_count is 1000000, expected 1 to 512",
        ),
        (header({**LLAMA, "llama.block_count": "2"}), "llama.block_count is '2'"),
        (
            header({**LLAMA, "llama.pooling_type": 1, "llama.embedding_length": 1_000_000}),
            "llama.embedding_length is 1000000, expected 1 to 16384",
        ),
        (header({"general.name": "x"}), "general.architecture is None"),
        (header({**LLAMA, "general.type": "adapter"}), "general.type is 'adapter', expected 'model'"),
        (header({**LLAMA, "split.count": 3}), "one part of a split model"),
        (header({**LLAMA, "general.alignment": 0}), "general.alignment is 0"),
        (header({**LLAMA, "general.alignment": 33}), "general.alignment is 33"),
        (header({**LLAMA, "x": struct.pack("<I", 99)}), "'x' has type 99"),
        (header({**LLAMA, "x": struct.pack("<IIQ", 9, 9, 1)}), "'x' is an array of type 9"),
        (header({**LLAMA, "x": struct.pack("<IIQ", 9, 8, 2**60)}), "length of 'x' is 1152921504606846976"),
        (header({**LLAMA, "x": struct.pack("<IIQ", 9, 4, 2**21)}), "cut short"),
        (header({**LLAMA, "x": struct.pack("<IQ", 8, 2**40)}), "length of value of 'x' is 1099511627776"),
        (header({**LLAMA, "k" * 300: "v"}), "length of metadata key is 300"),
        (
            header(tensors=(("a", (8, 4), F32, 0), ("a", (8, 4), F32, 128)), data_bytes=256),
            "'a' occurs twice",
        ),
        (header(tensors=(("a", (8, 4), F32, 0), ("b", (8, 4), F32, 64)), data_bytes=256), "'b' overlaps"),
        (header(tensors=(("a", (8, 4), F32, 1),)), "'a' begins at 1, expected a multiple of 32"),
        (header(tensors=(("a", (8, 4), F32, 2**62),)), "cut short"),
        (header(tensors=(("a", (8, 4), 999, 0),)), "'a' has type 999"),
        (header(tensors=(("a", (8, 4), 2, 0),)), "rows of 8, expected a multiple of 32"),
        (header(tensors=(("a", (2**40, 2**40), F32, 0),)), "'a' has shape"),
        (header(tensors=(("a", (0, 8), F32, 0),)), "'a' has shape"),
        (header(tensors=(("a", (1, 1, 1, 1, 1), F32, 0),)), "dimensions of tensor 'a' is 5"),
        (header(tensors=(("a" * 64, (8, 4), F32, 0),)), "length of tensor name is 64"),
    ],
)
def test_a_header_that_lies_is_refused_with_what_was_found(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BadModelFile) as caught:
        read_bytes(tmp_path, data)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_metadata_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """Two readers could take different ones."""
    twice = header({**LLAMA, "llama.block_counT": 3}).replace(
        text("llama.block_counT"), text("llama.block_count")
    )

    with pytest.raises(BadModelFile, match="occurs twice"):
        read_bytes(tmp_path, twice)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6), st.integers(0, 2**16))
def test_a_damaged_header_is_read_or_refused(
    tmp_path: Path, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(header({**LLAMA, "tokens": ["a", "b", "c"]}))
    for place, value in changes:
        data[place % len(data)] = value

    try:
        found = read_bytes(tmp_path, bytes(data[: length % (2 * len(data))]))
    except BadModelFile:
        return
    assert found.parameters > 0
