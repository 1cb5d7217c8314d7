"""Following a grammar: what may come next, and where following is given up."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import BadRequest
from runtime.llama.constraint import Constraint, compiled
from runtime.llama.grammar import parse
from runtime.llama.vocabulary import Guide, Vocabulary

# Both are exponential in the text for whoever keeps every way in which it could have come about.
DOUBLING = 'root ::= x\nx ::= "a" x "b" | "a" x "c" | ""'
FOREST = (
    "root ::= x0\n" + "".join(f"x{i} ::= x{i + 1}? x{i + 1}? x{i + 1}?\n" for i in range(20)) + 'x20 ::= "a"'
)


def start(grammar: str) -> Constraint:
    return Constraint(parse(grammar))


def follow(grammar: str, piece: bytes, times: int) -> None:
    constraint = start(grammar)
    for _ in range(times):
        assert constraint.accept(piece)


def test_a_piece_that_does_not_fit_changes_nothing() -> None:
    constraint = start('root ::= "one" | "two"')

    assert not constraint.accept(b"th")
    assert [constraint.fits(piece) for piece in (b"on", b"two", b"twos", b"", b"t")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert constraint.accept(b"tw")
    assert (constraint.accept(b"o"), constraint.is_complete, constraint.is_finished) == (True, True, True)


def test_a_text_that_may_go_on_is_complete_but_not_finished() -> None:
    constraint = start('root ::= "a"+')

    assert constraint.accept(b"aa")
    assert (constraint.is_complete, constraint.is_finished) == (True, False)


def test_a_character_may_come_in_pieces() -> None:
    constraint = start("root ::= [é-ë] [😀]")

    assert [constraint.accept(bytes([byte])) for byte in "ê😀".encode()] == [True] * 6
    assert constraint.is_finished


@pytest.mark.parametrize(
    "grammar", [DOUBLING, FOREST, "root ::= (" + " | ".join(f'"a" r{i}' for i in range(2_100)) + ")\n" + "".join(f'r{i} ::= "a"* "{i}"\n' for i in range(2_100))]
)  # fmt: skip
def test_a_grammar_with_too_many_ways_is_given_up_quickly(grammar: str) -> None:
    began = time.process_time()

    with pytest.raises(BadRequest, match=r"too ambiguous|takes over"):
        follow(grammar, b"a", 1_000)

    assert time.process_time() - began < 2


def test_a_text_cannot_nest_for_ever() -> None:
    with pytest.raises(BadRequest, match="nests too deeply"):
        follow('root ::= "(" root ")" | "[" root "]" | "x"', b"([", 100_000)


def test_a_long_text_costs_the_same_for_each_byte() -> None:
    """States are remembered, and loops stay as deep as they were."""
    constraint = Constraint(compiled('{"type": "array", "items": {"type": "string"}}', ""))
    piece = b'"abcdefghi",'
    constraint.accept(b"[" + piece * 100)
    began = time.process_time()

    assert constraint.accept(piece * 10_000)

    assert time.process_time() - began < 1  # 120,000 bytes


@given(
    st.text(alphabet="abc", max_size=8),
    st.sampled_from(["(a|b)*c", "a{2,4}b?", "((ab|a)(bc|c))+", "[ab]+(cc?)?"]),
)
def test_a_grammar_allows_what_the_regular_expression_does(text: str, expression: str) -> None:
    """An oracle that is not ours: quantifiers and groups are written alike, but for literals."""
    grammar = re.sub(r"(?<!\[)(?<!\[a)([abc])(?!\]|b\])", r'"\1"', expression)
    constraint = start(f"root ::= {grammar}")

    fits = all(constraint.accept(letter.encode()) for letter in text)

    assert (fits and constraint.is_complete) == bool(re.fullmatch(expression, text))


PIECES = [b"", b"<end>", b"a", b"ab", b"abc", b"b", b"bc", b"c", b"\xc3", b"\xa9", "é".encode()]


def vocabulary() -> Vocabulary:
    return Vocabulary(len(PIECES), PIECES.__getitem__, lambda token: token == 1)


@pytest.mark.parametrize(
    ("grammar", "received", "expected"),
    [
        ('root ::= "abc"', [], {2, 3, 4}),
        ('root ::= "abc"', [2], {5, 6}),
        ('root ::= "ab"*', [], {1, 2, 3}),  # no text at all is one
        ('root ::= "ab"', [3], {1}),
        ("root ::= [é]", [], {8, 10}),
        ("root ::= [é]", [8], {9}),
        ('root ::= "x"', [], set()),
        ("root ::= .*", [], {1, 2, 3, 4, 5, 6, 7, 8, 10}),
    ],
)
def test_tokens_that_fit_are_found_one_by_one_and_all_at_once(
    grammar: str, received: list[int], expected: set[int]
) -> None:
    guide = Guide(vocabulary(), start(grammar))
    for token in received:
        guide.accept(token)

    assert set(guide.fitting()) == expected
    assert {token for token in range(len(PIECES)) if guide.fits(token)} == expected


def test_a_received_token_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadRequest, match="received token 7 does not fit"):
        Guide(vocabulary(), start('root ::= "ab"')).accept(7)
