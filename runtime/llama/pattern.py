"""From a regular expression, as JSON schemas have them, to a grammar of the JSON strings whose content it describes.

What a grammar cannot say is refused: looking ahead or back, references to groups, laziness. A pattern without `^` or
`$` may have anything before or behind it, as the standard wants.
"""

import json

from runtime.llama.grammar import NESTING_MAX, REPETITIONS_MAX, BadGrammar, Range, Ranges, complement

DIGIT: Ranges = [(0x30, 0x39)]
WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
SPACE: Ranges = [(0x09, 0x0D), (0x20, 0x20)]
NO_LINE_END: Ranges = [(0, 0x09), (0x0B, 0x0C), (0x0E, 0x10FFFF)]
_CLASSES = {
    "d": DIGIT,
    "D": complement(DIGIT),
    "w": WORD,
    "W": complement(WORD),
    "s": SPACE,
    "S": complement(SPACE),
}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_SPECIAL = "^$.|?*+()[]{}\\/-\"'#&~,:;<>=!@%` _"
# A quotation mark, a backslash and the control characters stand in a JSON string only behind a backslash.
_ESCAPED = [*range(0x20), 0x22, 0x5C]


class BadPattern(BadGrammar):
    """The pattern cannot be kept; the message goes on after its name."""


def to_gbnf(pattern: str) -> str:
    """Return what the inside of a JSON string is, as a part of a rule.

    Raises:
        BadPattern: it is no regular expression, or one that no grammar can say.
    """
    return _Reader(pattern).read()


def literal(text: str) -> str:
    """Return a text as it stands in GBNF."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return f'"{"".join(escapes.get(c, c) for c in text)}"'


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def read(self) -> str:
        inner = self._choices(0)
        if self._at < len(self._pattern):
            raise self._error("a ')' without its '('")
        return inner

    def _choices(self, depth: int) -> str:
        if depth > NESTING_MAX // 2:
            raise self._error(f"parentheses deeper than {NESTING_MAX // 2}")
        choices = [self._sequence(depth)]
        while self._take("|"):
            choices.append(self._sequence(depth))
        return f"({' | '.join(choices)})"

    def _sequence(self, depth: int) -> str:
        parts = []
        anything = f"{_characters([(0, 0x10FFFF)])}*"
        if not self._take("^") and depth == 0:
            parts.append(anything)
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            if self._pattern[self._at] == "$":
                self._at += 1
                if depth or not (self._at == len(self._pattern) or self._pattern[self._at] == "|"):
                    raise self._error("a '$' that is not at the end")
                return " ".join(parts) or '""'
            parts.append(self._atom(depth) + self._repetition())
        if depth == 0:
            parts.append(anything)
        return " ".join(parts) or '""'

    def _atom(self, depth: int) -> str:
        character = self._next()
        match character:
            case "(":
                if self._take("?") and not self._take(":"):
                    raise self._error("a group that looks around or has a name")
                inner = self._choices(depth + 1)
                if not self._take(")"):
                    raise self._error("a '(' without its ')'")
                return inner
            case "[":
                return _characters(self._class())
            case ".":
                return _characters(NO_LINE_END)
            case "\\":
                return _characters(self._escape())
            case "*" | "+" | "?" | "{" | "^":
                raise self._error(f"{character!r} where something to repeat was expected")
        return _characters([(ord(character), ord(character))])

    def _repetition(self) -> str:
        found = ""
        for sign in "*+?":
            if self._take(sign):
                found = sign
        if self._take("{"):
            end = self._pattern.find("}", self._at)
            numbers = self._pattern[self._at : end].split(",") if end >= 0 else []
            if not 1 <= len(numbers) <= 2 or not numbers[0].isdecimal():
                raise self._error("braces without numbers")
            if any(each and not (each.isdecimal() and each.isascii() and len(each) < 5) for each in numbers):
                raise self._error(f"a repetition that is no number up to {REPETITIONS_MAX}")
            self._at = end + 1
            found = f"{{{','.join(numbers)}}}"
        if found and self._at < len(self._pattern) and self._pattern[self._at] in "*+?{":
            raise self._error("a lazy or doubled repetition")
        return found

    def _class(self) -> Ranges:
        is_negated = self._take("^")
        ranges: Ranges = []
        while not self._take("]"):
            first = self._member()
            if self._pattern.startswith("-", self._at) and not self._pattern.startswith("-]", self._at):
                self._at += 1
                last = self._member()
                if (
                    len(first) != 1
                    or len(last) != 1
                    or first[0][0] != first[0][1]
                    or last[0][0] != last[0][1]
                ):
                    raise self._error("a range between classes")
                if last[0][0] < first[0][0]:
                    raise self._error("a range that falls")
                first = [(first[0][0], last[0][0])]
            ranges += first
        return complement(ranges) if is_negated else ranges

    def _member(self) -> Ranges:
        character = self._next()
        return self._escape() if character == "\\" else [(ord(character), ord(character))]

    def _escape(self) -> Ranges:
        character = self._next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character in ("x", "u"):
            digits = self._pattern[self._at : self._at + (2 if character == "x" else 4)]
            self._at += len(digits)
            if len(digits) in (2, 4) and all(each in "0123456789abcdefABCDEF" for each in digits):
                return [(int(digits, 16), int(digits, 16))]
        code = _CONTROLS.get(character, character if character in _SPECIAL else "")
        if not code:
            raise self._error(f"the escape \\{character}")
        return [(ord(code), ord(code))]

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise self._error("an end where more was expected")
        self._at += 1
        return self._pattern[self._at - 1]

    def _take(self, text: str) -> bool:
        if self._pattern.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _error(self, what: str) -> BadPattern:
        return BadPattern(f"has {what}, at character {self._at}, which cannot be kept")


def _characters(ranges: Ranges) -> str:
    """Return one character of these, as it is written in a JSON string."""
    plain: list[Range] = []
    for first, last in ranges:
        start = first
        for code in _ESCAPED:
            if start <= code <= last:
                plain.append((start, code - 1))
                start = code + 1
        plain.append((start, last))
    choices = [f"[{''.join(f'{_code(a)}-{_code(b)}' for a, b in plain if a <= b)}]"]
    escaped = [code for code in _ESCAPED if any(first <= code <= last for first, last in ranges)]
    choices += [literal(json.dumps(chr(code))[1:-1]) for code in escaped]
    return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"


def _code(code: int) -> str:
    return f"\\U{code:08X}"
