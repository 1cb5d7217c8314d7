"""GBNF, read with bounds: what a grammar means, and what is refused before anything follows it."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import BadRequest
from runtime.llama.constraint import Constraint
from runtime.llama.grammar import ITEMS_MAX, BadGrammar, between, parse

JSON = r"""
# as llama.cpp ships it
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def allows(grammar: str, text: str) -> bool:
    """Whether the whole text is one of the grammar."""
    constraint = Constraint(parse(grammar))
    return all(constraint.accept(bytes([byte])) for byte in text.encode()) and constraint.is_complete


@pytest.mark.parametrize(
    ("grammar", "allowed", "others"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "y", "yesno", "Yes"]),
        ('root ::= "a" ("b" | "c")* "d"', ["ad", "abcbd"], ["abc", "d"]),
        ("root ::= [a-cx]+", ["a", "cabx"], ["", "d", "ad"]),
        ("root ::= [^a-c]", ["d", "é", "😀", "\n"], ["a", "b", "dd"]),
        ('root ::= "é"? [à-ö]{2}', ["éàö", "àà"], ["é", "àÿ", "à"]),
        ("root ::= .", ["a", "\n", "€", "\U0010ffff"], ["", "ab"]),
        ('root ::= "a"{2} "b"{1,} "c"{0,2}', ["aab", "aabbbcc"], ["ab", "aaa", "aabccc"]),
        ('root ::= ("ab"){2,3}', ["abab", "ababab"], ["ab", "abababab"]),
        (r'root ::= "\x41\u00e9\U0001F600\n\t\"\\"', ['Aé😀\n\t"\\'], ["A"]),
        (r"root ::= [\]\-\^\\]", ["]", "-", "^", "\\"], ["a"]),
        ("root ::= [a-]", ["a", "-"], ["b"]),
        ('root ::= x-1\nx-1 ::= y\ny ::= "z"', ["z"], ["x"]),
        ('root ::= (\n  "a" # one\n  | "b"\n)\n', ["a", "b"], ["ab"]),
        ('root ::= "a" |\n  "b"', ["a", "b"], [""]),
        ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["((x)", "()"]),
        ('root ::= ""', [""], ["a"]),
        ("root ::= [\ud7ff-\ue000]", ["\ud7ff", "\ue000"], ["\uffff"]),
    ],
)  # fmt: skip
def test_a_grammar_allows_its_texts_and_no_others(
    grammar: str, allowed: list[str], others: list[str]
) -> None:
    assert [text for text in allowed + others if allows(grammar, text)] == allowed


@pytest.mark.parametrize(
    "text", ["{}", '{"a": [1, -2.5e+3, "é\\u00e9\\n"], "b": {"c": null}}', '{ "a":true }']
)
def test_llama_cpps_own_grammar_of_json_is_followed(text: str) -> None:
    assert allows(JSON, text)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule 'root'"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= x", "names rule 'x', which it does not define"),
        ('root ::= "a"\nroot ::= "b"', "defines rule 'root' twice"),
        ('root = "a"', "line 1: found '= \"a\"', expected '::='"),
        ('root ::= "a" )', "line 1: found '\\)', expected the end of the line"),
        ('root ::= ("a"', "line 1: found 'the end', expected '\\)'"),
        ('root ::= "a', "expected '\"'"),
        ("root ::= [a", "expected '\\]'"),
        ("root ::= [z-a]", "a range that falls"),
        (r'root ::= "\q"', "an unknown escape"),
        (r'root ::= "\x4"', "an unknown escape"),
        (r'root ::= "\U00110000"', "an unknown escape"),
        (r'root ::= "\uD800"', "half of a surrogate pair"),
        ("root ::= *", "expected the end of the line"),
        ('root ::= "a"{', r"expected \{n\}, \{n,\} or \{n,m\}"),
        ('root ::= "a"{3,2}', r"repeats \{3,2\}, expected rising numbers up to 2048"),
        ('root ::= "a"{2049}', r"repeats \{2049\}"),
        ("root ::= <[1]>", "expected the end of the line"),
        ('root ::= root "a" | "b"', "rule 'root' begins with itself"),
        ('root ::= a\na ::= b\nb ::= c? a\nc ::= "x"', "rule 'a' begins with itself"),
        ('root ::= ("a"?)*', "repeats what may be empty"),
        ('root ::= (""*)*', "repeats what may be empty"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_refused_in_one_line(grammar: str, message: str) -> None:
    with pytest.raises(BadGrammar, match=message) as refusal:
        parse(grammar)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("root ::= " + "(" * 100_000, "nests parentheses deeper than 32"),
        ("root ::= " + "(" * 8_000 + '"a"' + ")" * 8_000, "nests parentheses deeper than 32"),
        ('root ::= "a"\n' + "".join(f'r{i} ::= "a"\n' for i in range(5_000)), "over 4096 rules"),
        ("root ::= " + '"a"{2000}' * 1_000, f"over {ITEMS_MAX} symbols"),
        ("root ::= " + '("a"' * 20 + "){2000}" * 20 + "){2000}" * 20, "over|expected"),
        ("root ::= " + " ".join(f"[\\U0000{i:04X}-\\U0010{i:04X}]" for i in range(0x100, 0x2000)), f"over {ITEMS_MAX} symbols"),
        ("".join(f"r{i} ::= r{i + 1}\n" for i in range(4_000)) + "root ::= r0\nr4000 ::= r0", "begins with itself"),
    ],
)  # fmt: skip
def test_a_grammar_that_would_overflow_or_take_for_ever_is_refused_quickly(
    grammar: str, message: str
) -> None:
    """10^5 parentheses overflow llama.cpp's stack."""
    began = time.process_time()

    with pytest.raises(BadGrammar, match=message):
        parse(grammar)

    assert time.process_time() - began < 1


@given(st.text(alphabet='rot:=|()[]{}*+?"\\-^ax0,19.# \n', max_size=200))
def test_any_text_is_a_grammar_or_refused(text: str) -> None:
    with suppress(BadRequest):
        Constraint(parse("root ::= " + text))


@given(
    st.binary(min_size=3, max_size=3), st.binary(min_size=3, max_size=3), st.binary(min_size=3, max_size=3)
)
def test_byte_ranges_hold_what_lies_between(first: bytes, second: bytes, third: bytes) -> None:
    low, high = sorted((first, second))

    ranges = list(between(low, high, b"\x00\xff"))

    holds = [all(a <= byte <= b for byte, (a, b) in zip(third, each, strict=True)) for each in ranges]
    assert sum(holds) == (low <= third <= high)
