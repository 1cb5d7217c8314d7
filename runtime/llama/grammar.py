"""Grammars in GBNF, llama.cpp's notation, read with bounds and without llama.cpp.

llama.cpp's own grammars are where a hostile request does most: 10^5 parentheses overflow the stack, numbers that are
not finite abort the process, and an ambiguous grammar takes time exponential in the text. So what reads and follows a
grammar here is pure Python with a bound on everything. A grammar becomes *items*: each alternative of each rule is a
run of symbols with `END` behind it. Symbols are bytes, not characters, since tokens are.

Refused, as in llama.cpp: a rule that begins with itself (it can be written the other way round), and a repetition of
what may be nothing.

Source of the notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from runtime.engine import BadRequest

NESTING_MAX = 32  # of parentheses; ours is a parser that calls itself
RULES_MAX = 4_096  # with a name; a schema of a thousand fields comes to some three thousand
REPETITIONS_MAX = 2_048  # in one pair of braces
ITEMS_MAX = 65_536  # repetitions written out; an array of a thousand objects takes 2,000
ROOT = "root"
END = -1

_NAME = re.compile(r"[A-Za-z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_BRACES = re.compile(r"\{ *(\d{1,6}) *(?:(,) *(\d{1,6})? *)?\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
_HEX = {"x": 2, "u": 4, "U": 8}
_CODE_MAX = 0x10FFFF
_TOO_MANY = f"grammar comes to over {ITEMS_MAX} symbols with its repetitions written out, expected fewer"

Symbol: TypeAlias = int  # from 0 on: a rule; below `END`: a set of bytes
Range = tuple[int, int]  # both ends in
Ranges = list[Range]  # of code points


class BadGrammar(BadRequest):
    """The text is no grammar, or one over the bounds; the message is one line for whoever wrote it."""


@dataclass
class Grammar:
    """A compiled grammar.

    Attributes:
        items: symbols; the alternatives one after another, each with `END` behind it.
        alternatives: of each rule: where in `items` they begin.
        byte_sets: of symbol `-2 - n`: bit b is set if byte b is in it.
        root: the rule that the whole text is.
        names: of the rules; a part of one bears the name of the whole.
    """

    items: list[Symbol] = field(default_factory=list)
    alternatives: list[tuple[int, ...]] = field(default_factory=list)
    byte_sets: list[int] = field(default_factory=list)
    root: int = 0
    names: list[str] = field(default_factory=list)


def parse(text: str) -> Grammar:
    """Compile a grammar.

    Raises:
        BadGrammar: it is none, or is over the bounds.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._grammar = Grammar()
        self._rules: dict[str, int] = {}
        self._is_defined: set[int] = set()
        self._sets: dict[int, Symbol] = {}
        self._characters: dict[tuple[Range, ...], Symbol] = {}
        self._rule = ""  # the one that is being read

    def parse(self) -> Grammar:
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._definition()
        for name, rule in self._rules.items():
            if rule not in self._is_defined:
                raise BadGrammar(f"grammar names rule {name!r:.80}, which it does not define")
        if ROOT not in self._rules:
            raise BadGrammar(f"grammar has no rule {ROOT!r}, expected one: it is what the whole text is")
        self._grammar.root = self._rules[ROOT]
        _refuse_left_recursion(self._grammar)
        return self._grammar

    # --- the notation --------------------------------------------------------------------------------------------

    def _definition(self) -> None:
        name = self._match(_NAME)
        if not name:
            raise self._error("expected a rule's name")
        self._rule = name
        rule = self._named(name)
        if rule in self._is_defined:
            raise BadGrammar(f"grammar defines rule {name!r:.80} twice")
        self._is_defined.add(rule)
        self._skip(_SPACE)
        if not self._take("::="):
            raise self._error(f"expected '::=' after {name!r:.80}")
        self._skip(_SPACE_AND_LINES)
        self._define(rule, self._alternates(0))
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._error("expected the end of the line")
        self._skip(_SPACE_AND_LINES)

    def _alternates(self, depth: int) -> list[list[Symbol]]:
        if depth > NESTING_MAX:
            raise BadGrammar(
                f"grammar nests parentheses deeper than {NESTING_MAX}, in rule {self._rule!r:.80}"
            )
        found = [self._sequence(depth)]
        while self._take("|"):
            self._skip(_SPACE_AND_LINES)
            found.append(self._sequence(depth))
        return found

    def _sequence(self, depth: int) -> list[Symbol]:
        """Read to the next `|`, `)` or end of line; lines may end inside parentheses."""
        space = _SPACE_AND_LINES if depth else _SPACE
        symbols: list[Symbol] = []
        while self._at < len(self._text):
            start = len(symbols)
            character = self._text[self._at]
            if character == '"':
                symbols += self._literal()
            elif character == "[":
                symbols.append(self._class())
            elif character == ".":
                self._at += 1
                symbols.append(self._one_of([(0, _CODE_MAX)]))
            elif character == "(":
                self._at += 1
                self._skip(_SPACE_AND_LINES)
                inner = self._alternates(depth + 1)
                if not self._take(")"):
                    raise self._error("expected ')'")
                symbols.append(self._part(inner))
            elif name := self._match(_NAME):
                symbols.append(self._named(name))
            else:
                break
            self._skip(space)
            while repeats := self._repetition():
                # What stands before it as a whole: a literal is one.
                whole = symbols[start] if len(symbols) == start + 1 else self._part([symbols[start:]])
                symbols[start:] = self._repeat(whole, *repeats)
                self._skip(space)
            if len(symbols) > ITEMS_MAX:
                raise BadGrammar(_TOO_MANY)
        return symbols

    def _repetition(self) -> tuple[int, int | None] | None:
        for sign, repeats in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return repeats
        if not self._text.startswith("{", self._at):
            return None
        found = _BRACES.match(self._text, self._at)
        if not found:
            raise self._error("expected {n}, {n,} or {n,m}")
        self._at = found.end()
        least = int(found[1])
        most = (int(found[3]) if found[3] else None) if found[2] else least
        if least > REPETITIONS_MAX or (most is not None and not least <= most <= REPETITIONS_MAX):
            raise BadGrammar(f"grammar repeats {found[0]}, expected rising numbers up to {REPETITIONS_MAX}")
        return least, most

    def _literal(self) -> list[Symbol]:
        self._at += 1
        text = ""
        while not self._take('"'):
            text += chr(self._character('"'))
        try:
            return [self._set(1 << byte) for byte in text.encode()]
        except UnicodeEncodeError:
            raise self._error("half of a surrogate pair, expected characters") from None

    def _class(self) -> Symbol:
        self._at += 1
        is_negated = self._take("^")
        ranges: Ranges = []
        while not self._take("]"):
            first = last = self._character("]")
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._character("]")
            if last < first:
                raise self._error("a range that falls, expected one that rises")
            ranges.append((first, last))
        return self._one_of(complement(ranges) if is_negated else ranges)

    def _character(self, closing: str) -> int:
        if self._at >= len(self._text):
            raise self._error(f"expected {closing!r}")
        character = self._text[self._at]
        self._at += 1
        if character != "\\":
            return ord(character)
        escape = self._text[self._at : self._at + 1]
        self._at += 1
        if escape in _HEX:
            digits = self._text[self._at : self._at + _HEX[escape]]
            self._at += len(digits)
            if len(digits) == _HEX[escape] and re.fullmatch("[0-9A-Fa-f]+", digits):
                code = int(digits, 16)
                if code <= _CODE_MAX:
                    return code
        elif escape in _ESCAPES:
            return ord(_ESCAPES[escape])
        raise self._error("an unknown escape")

    # --- symbols -------------------------------------------------------------------------------------------------

    def _named(self, name: str) -> int:
        if name not in self._rules:
            if len(self._rules) >= RULES_MAX:
                raise BadGrammar(f"grammar has over {RULES_MAX} rules, expected fewer")
            self._rules[name] = self._new_rule(name)
        return self._rules[name]

    def _new_rule(self, name: str) -> int:
        self._grammar.alternatives.append(())
        self._grammar.names.append(name)
        return len(self._grammar.alternatives) - 1

    def _define(self, rule: int, alternatives: list[list[Symbol]]) -> None:
        items = self._grammar.items
        starts = []
        for alternative in alternatives:
            if len(items) + len(alternative) >= ITEMS_MAX:
                raise BadGrammar(_TOO_MANY)
            starts.append(len(items))
            items += alternative
            items.append(END)
        self._grammar.alternatives[rule] = tuple(starts)

    def _part(self, alternatives: list[list[Symbol]]) -> Symbol:
        """Return a symbol that stands for these alternatives."""
        if len(alternatives) == 1 and len(alternatives[0]) == 1:
            return alternatives[0][0]
        rule = self._new_rule(self._rule)
        self._define(rule, alternatives)
        return rule

    def _repeat(self, symbol: Symbol, least: int, most: int | None) -> list[Symbol]:
        required = [symbol] * least
        if most is None:
            loop = self._new_rule(self._rule)
            self._define(loop, [[symbol, loop], []])
            return [*required, loop]
        rest: list[Symbol] = []
        for _ in range(most - least):  # from the last on: (x (x (x)?)?)?
            optional = self._new_rule(self._rule)
            self._define(optional, [[symbol, *rest], []])
            rest = [optional]
        return [*required, *rest]

    def _set(self, byte_set: int) -> Symbol:
        if byte_set not in self._sets:
            self._grammar.byte_sets.append(byte_set)
            self._sets[byte_set] = END - len(self._grammar.byte_sets)
        return self._sets[byte_set]

    def _one_of(self, ranges: Ranges) -> Symbol:
        """Return a symbol for one character of these."""
        key = tuple(ranges)
        if key not in self._characters:
            # As in JSON, half of a surrogate pair is no character and has no UTF-8.
            allowed = _intersect(ranges, [(0, 0xD7FF), (0xE000, _CODE_MAX)])
            sequences = [sequence for first, last in allowed for sequence in _utf8_ranges(first, last)]
            ascii_set = 0
            for sequence in sequences:
                if len(sequence) == 1:
                    ascii_set |= _bits(*sequence[0])
            longer = dict.fromkeys(sequence for sequence in sequences if len(sequence) > 1)
            alternatives = [[self._set(ascii_set)]] if ascii_set or not longer else []
            alternatives += [[self._set(_bits(*part)) for part in sequence] for sequence in longer]
            self._characters[key] = self._part(alternatives)
        return self._characters[key]

    # --- the text ------------------------------------------------------------------------------------------------

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if not found:
            return ""
        self._at = found.end()
        return found[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._match(pattern)

    def _error(self, expected: str) -> BadGrammar:
        line = self._text.count("\n", 0, self._at) + 1
        found = self._text[self._at : self._at + 16] or "the end"
        return BadGrammar(f"grammar line {line}: found {found!r}, {expected}")


def _refuse_left_recursion(grammar: Grammar) -> None:
    """Raise if following the grammar from some rule could come back to it without a byte in between."""
    nullable = _nullable(grammar)
    begun: set[int] = set()
    for start in range(len(grammar.alternatives)):
        path = {start}
        stack = [(start, _beginnings(grammar, start, nullable))] if start not in begun else []
        begun.add(start)
        while stack:
            rule, beginnings = stack[-1]
            following = next(beginnings, None)
            if following is None:
                path.discard(rule)
                stack.pop()
            elif following in path:
                raise BadGrammar(
                    f"grammar's rule {grammar.names[following]!r:.80} begins with itself or repeats what may be empty, "
                    "expected a byte before it comes again"
                )
            elif following not in begun:
                begun.add(following)
                path.add(following)
                stack.append((following, _beginnings(grammar, following, nullable)))


def _beginnings(grammar: Grammar, rule: int, nullable: set[int]) -> Iterator[int]:
    """Yield the rules that a text of this one may begin with."""
    for start in grammar.alternatives[rule]:
        at = start
        while (symbol := grammar.items[at]) >= 0:
            yield symbol
            if symbol not in nullable:
                break
            at += 1


def _nullable(grammar: Grammar) -> set[int]:
    """Return the rules that may be nothing. Each symbol is looked at once, however long the chains are."""
    missing: dict[
        int, int
    ] = {}  # start of an alternative of rules only -> how many of them are not known as nullable
    uses: dict[
        int, list[tuple[int, int]]
    ] = {}  # rule -> (start of an alternative that it is in, whose it is)
    found: list[int] = []
    for rule, starts in enumerate(grammar.alternatives):
        for start in starts:
            end = start
            while grammar.items[end] >= 0:
                end += 1
            if grammar.items[end] == END:
                missing[start] = end - start
                for symbol in grammar.items[start:end]:
                    uses.setdefault(symbol, []).append((start, rule))
                if end == start:
                    found.append(rule)
    nullable: set[int] = set()
    while found:
        rule = found.pop()
        if rule in nullable:
            continue
        nullable.add(rule)
        for start, user in uses.get(rule, ()):
            missing[start] -= 1
            if missing[start] == 0:
                found.append(user)
    return nullable


def _bits(first: int, last: int) -> int:
    return (1 << (last + 1)) - (1 << first)


def complement(ranges: Ranges) -> Ranges:
    """Return the code points outside of these ranges."""
    rest: Ranges = []
    start = 0
    for first, last in sorted(ranges):
        if first > start:
            rest.append((start, first - 1))
        start = max(start, last + 1)
    return [*rest, (start, _CODE_MAX)] if start <= _CODE_MAX else rest


def _intersect(ranges: Ranges, others: Ranges) -> Ranges:
    both = ((max(a, c), min(b, d)) for a, b in ranges for c, d in others)
    return [(first, last) for first, last in both if first <= last]


def _utf8_ranges(first: int, last: int) -> Iterator[tuple[Range, ...]]:
    """Yield what UTF-8 makes of a range of characters: sequences of byte ranges."""
    for least, most in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, _CODE_MAX)):  # of equal length
        if max(first, least) <= min(last, most):
            yield from between(chr(max(first, least)).encode(), chr(min(last, most)).encode(), b"\x80\xbf")


def between(low: bytes, high: bytes, all_bytes: bytes) -> Iterator[tuple[Range, ...]]:
    """Yield what lies between two byte strings of one length, in order, as sequences of byte ranges.

    Args:
        low: the first one.
        high: the last one.
        all_bytes: the least and the greatest byte that may stand behind the first.
    """
    if len(low) == 1:
        yield ((low[0], high[0]),)
        return
    lowest, highest = all_bytes[:1] * (len(low) - 1), all_bytes[1:] * (len(low) - 1)
    if low[0] == high[0]:
        for rest in between(low[1:], high[1:], all_bytes):
            yield ((low[0], low[0]), *rest)
        return
    first, last = low[0], high[0]
    if low[1:] != lowest:
        yield from between(low, low[:1] + highest, all_bytes)
        first += 1
    if high[1:] != highest:
        yield from between(high[:1] + lowest, high, all_bytes)
        last -= 1
    if first <= last:
        yield ((first, last), *[(all_bytes[0], all_bytes[1])] * len(lowest))
