"""Text is a function of the bytes so far, however they were cut; stop sequences never show."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runtime.llama.tokens import CompletionText, State

LETTERS = st.text(alphabet="abé☃🙂", max_size=24)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3).map(tuple)


def said(pieces: list[bytes], stop: tuple[str, ...]) -> str:
    text = CompletionText(stop)
    return "".join(text.feed(piece) for piece in pieces) + text.finish()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(marks)]


def test_a_character_waits_for_its_last_byte() -> None:
    text = CompletionText(())
    smile = "🙂".encode()

    parts = [text.feed(bytes([byte])) for byte in smile]

    assert parts == ["", "", "", "🙂"]


def test_an_unfinished_character_is_dropped_at_the_end() -> None:
    assert said([b"ok", "🙂".encode()[:2]], ()) == "ok"


def test_what_may_become_a_stop_sequence_is_held_back() -> None:
    text = CompletionText(("END",))

    assert text.feed(b"the E") == "the "
    assert text.feed(b"N") == ""
    assert text.feed(b"T") == "ENT"
    assert text.state is State.OPEN


def test_a_stop_sequence_over_several_tokens_ends_the_text_before_it() -> None:
    text = CompletionText(("END",))

    parts = [text.feed(piece) for piece in (b"all E", b"N", b"D and more", b"never")]

    assert ("".join(parts), text.finish(), text.state) == ("all ", "", State.STOPPED)


def test_what_was_held_back_is_released_when_no_stop_sequence_came() -> None:
    assert said([b"the EN"], ("END",)) == "the EN"


def test_of_two_stop_sequences_the_one_that_ends_first_counts() -> None:
    assert said([b"xabcd"], ("abcd", "bc")) == "xa"


def test_an_empty_stop_sequence_means_nothing() -> None:
    assert said([b"ab"], ("",)) == "ab"


@given(LETTERS, STOPS, st.lists(st.integers(0, 200)))
def test_the_text_does_not_depend_on_how_the_bytes_were_cut(
    letters: str, stop: tuple[str, ...], places: list[int]
) -> None:
    """A successor feeds the received tokens at once; the client must not see a seam."""
    data = letters.encode()

    assert said(cut(data, places), stop) == said([data], stop)


@given(LETTERS, STOPS, st.lists(st.integers(0, 200)))
def test_no_stop_sequence_ever_shows(letters: str, stop: tuple[str, ...], places: list[int]) -> None:
    text = said(cut(letters.encode(), places), stop)

    assert letters.startswith(text)
    assert not any(word in text for word in stop)
    assert text == letters or any(word in letters for word in stop)


@given(st.lists(st.binary(max_size=5)), STOPS)
def test_no_bytes_raise(pieces: list[bytes], stop: tuple[str, ...]) -> None:
    said(pieces, stop)
