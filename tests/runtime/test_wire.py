"""The child is untrusted: what it says is a frame of this protocol, or `BadFrame`."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.llama import wire

DONE = wire.Done(7, "stop", "", 3, 2, 3, 0.1, 0.2)


def frames(data: bytes, *, pieces: int = 1) -> list[bytes]:
    reader = wire.FrameReader()
    size = max(1, len(data) // pieces)
    return [body for start in range(0, len(data), size) for body in reader.feed(data[start : start + size])]


@pytest.mark.parametrize("pieces", [1, 2, 5, 1_000])
def test_frames_are_found_however_they_arrive(pieces: int) -> None:
    said = [wire.NewTokens(7, (1, 2), "ab", contrasts=(-5, 2**31 - 1)), DONE]

    bodies = frames(wire.encode(said) + wire.encode([wire.Cancelled(8)]), pieces=pieces)

    assert [wire.decode_from_child(body) for body in bodies] == [said, [wire.Cancelled(8)]]


def test_a_frame_longer_than_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(wire.BadFrame, match="a frame of 4294967295 bytes"):
        frames(b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "message",
    [
        ["Done", 7, "bored", "", 3, 2, 3, 0.1, 0.2],
        ["Done", 7, "stop", "", 3, 2, 3, 0.1, float("nan")],
        ["Done", 7, "stop", "", -3, 2, 3, 0.1, 0.2],
        ["Done", 7, "stop", "", 3, 2, 3, 0.1, 0.2, "more"],
        ["Done", 7],
        ["NewTokens", 7, [], ""],
        ["NewTokens", 7, [2**31], ""],
        ["NewTokens", 7, [True], ""],
        ["NewTokens", 7, [1], "x" * 70_000],
        ["NewTokens", 7, [1] * 5_000, ""],
        ["NewTokens", "7", [1], ""],
        ["NewTokens", 7, [1], "", [[b"a"]]],
        ["NewTokens", 7, [1], "", [[b"a", -1]]],
        ["NewTokens", 7, [1], "", [[b"a" * 257, 1]]],
        ["NewTokens", 7, [1], "", [[b"a", 1, [[b"a", 1]] * 21]]],
        ["NewTokens", 7, [1], "", [[b"a", 1, []]] * 5_000],
        ["NewTokens", 7, [1], "", [], [2**31]],
        ["NewTokens", 7, [1], "", [], [-(2**31)]],
        ["NewTokens", 7, [1], "", [], [0.5]],
        ["NewTokens", 7, [1], "", [], [0] * 5_000],
        ["Beat", 7, "dreaming", 0, 0],
        ["Ready", "S9", ""],
        ["Failed", 7, "my fault", ""],
        ["Failed", 7, "engine", "x" * 600],
        ["Load", 7],
        ["Nothing"],
        [],
        {},
        None,
    ],
)
def test_what_is_no_message_of_a_child_is_refused(message: object) -> None:
    with pytest.raises(wire.BadFrame):
        wire.decode_from_child(msgspec.msgpack.encode([message]))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        wire.decode_from_child(body)
    except wire.BadFrame:
        return


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(wire.BadFrame):
        wire.decode_from_child(b"\x91" * 100_000)
