"""How what an engine says is cut into frames."""

import pytest

from node.services.token_frames import IDS_MAX, frames_of
from protocol import limits
from protocol.envelope import decode, encode
from protocol.messages import JobFrame
from runtime.engine import EngineError, TokenLogprob, Tokens

LARGEST = TokenLogprob(b"x" * 300, 2**50, ((b"y" * 300, 2**50),) * 25)


def test_what_fits_is_one_frame() -> None:
    (frame,) = frames_of(7, Tokens((1, 2, 3), "abc", (TokenLogprob(b"a", 5),) * 3, (-4, 0, 9)), top_max=0)

    assert (frame.first, frame.ids, frame.text, len(frame.logprobs)) == (7, (1, 2, 3), "abc", 3)
    assert frame.contrasts == (-4, 0, 9)


def test_the_words_of_a_large_vector_take_several_frames() -> None:
    frames = list(frames_of(0, Tokens(tuple(range(2_000_000, 2_001_300)), ""), top_max=0))

    assert [(frame.first, len(frame.ids)) for frame in frames] == [(0, 512), (512, 512), (1_024, 276)]
    assert len(frames[0].ids) == IDS_MAX


def test_each_token_keeps_its_contrast_however_frames_are_cut() -> None:
    ids, largest = tuple(range(2**31 - 1_300, 2**31)), -limits.CONTRAST_MILLI_MAX
    text = "ü" * 1_024
    frames = list(frames_of(0, Tokens(ids, text, contrasts=(*range(1_299), largest)), top_max=0))

    assert [each for frame in frames for each in frame.contrasts] == [*range(1_299), largest]
    assert all(len(frame.contrasts) == len(frame.ids) for frame in frames)
    assert all(len(encode(frame)) <= limits.TOKEN_FRAME_BYTES_MAX for frame in frames)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_log_probabilities_are_cut_to_frames_that_every_buyer_takes(count: int) -> None:
    """The largest that may be asked for: 20 likeliest ones of 256 bytes each. The text is in the last frame."""
    frames = list(frames_of(3, Tokens((9,) * count, "text", (LARGEST,) * count), top_max=20))

    for frame in frames:
        raw = encode(frame)
        assert len(raw) <= limits.TOKEN_FRAME_BYTES_MAX
        assert decode(raw, JobFrame) == frame
        assert len(frame.logprobs) == len(frame.ids)
        assert {len(each.top) for each in frame.logprobs} == {20}
    assert [frame.first for frame in frames] == list(range(3, 3 + count))
    assert [frame.text for frame in frames] == [""] * (count - 1) + ["text"]


def test_small_log_probabilities_share_frames() -> None:
    small = TokenLogprob(b" the", 12_345, ((b" the", 12_345), (b" a", 5_000_000)))
    frames = list(frames_of(0, Tokens((70_000,) * 400, "x" * 1_600, (small,) * 400), top_max=5))

    assert sum(len(frame.ids) for frame in frames) == 400
    assert 2 <= len(frames) <= 4
    assert all(len(encode(frame)) <= limits.TOKEN_FRAME_BYTES_MAX for frame in frames)


def test_an_engine_that_gives_log_probabilities_of_some_tokens_only_has_failed() -> None:
    """A buyer would hold the seller to it, and the child is not believed."""
    with pytest.raises(EngineError, match="1 log-probabilities of 2 tokens"):
        list(frames_of(0, Tokens((1, 2), "", (TokenLogprob(b"x", 1),)), top_max=0))


def test_an_engine_that_states_contrasts_of_some_tokens_only_has_failed() -> None:
    with pytest.raises(EngineError, match="1 contrasts of 2 tokens"):
        list(frames_of(0, Tokens((1, 2), "", contrasts=(5,)), top_max=0))


def test_likeliest_tokens_that_nobody_asked_for_are_left_out() -> None:
    (frame,) = frames_of(0, Tokens((1,), "x", (TokenLogprob(b"x", 1, ((b"x", 1),)),)), top_max=0)

    assert frame.logprobs[0].top == ()
