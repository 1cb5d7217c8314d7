"""From a JSON schema to a grammar of the texts that it allows: what OpenAI's structured outputs promise.

A keyword that cannot be kept is refused by name, never ignored: a text that only looks checked is worse than an error.
Two things are narrower than JSON schema, so all that comes out is still valid. Properties come in the order in which
the schema names them. And white space is one blank, or one line's end with some blanks: models that may write as much
of it as they like sometimes never stop.

Only references into the schema itself are followed; nothing is ever fetched.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from runtime.engine import BadRequest
from runtime.llama import pattern
from runtime.llama.grammar import REPETITIONS_MAX, between
from runtime.llama.pattern import literal

NESTING_MAX = 64
GRAMMAR_CHARS_MAX = 262_144
INTEGER_DIGITS_MAX = 16  # so that a number without a bound comes to an end

_BUILT_IN = {
    "ws": r'(" " | "\n" [ \t]{0,24})?',
    "comma": '"," ws',
    "colon": '":" ws',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "whole": f'"0" | [1-9] [0-9]{{0,{INTEGER_DIGITS_MAX - 1}}}',
    "integer": '"-"? whole',
    "fraction": '"." [0-9]{1,16}',
    "number": '"-"? whole fraction? ([eE] [-+]? [0-9]{1,3})?',
    "hex": "[0-9a-fA-F]",
    "char": r'[^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" hex{4})',
    "string": r'"\"" char* "\""',
    "member": "string colon value",
    "object": '"{" ws (member (comma member)* ws)? "}"',
    "array": '"[" ws (value (comma value)* ws)? "]"',
    "value": "object | array | string | number | boolean | null",
    "year": "[0-9]{4}",
    "month": '"0" [1-9] | "1" [0-2]',
    "day": '"0" [1-9] | [12] [0-9] | "3" [01]',
    "date": 'year "-" month "-" day',
    "hour": '[01] [0-9] | "2" [0-3]',
    "sixty": "[0-5] [0-9]",
    "zone": '"Z" | [-+] hour ":" sixty',
    "time": 'hour ":" sixty ":" sixty fraction? zone',
    "octet": '"25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9]',
    "label": '[a-zA-Z0-9] ("-"? [a-zA-Z0-9]){0,62}',
}
_FORMATS = {
    "date": "date",
    "time": "time",
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
    "ipv4": 'octet "." octet "." octet "." octet',
    "hostname": 'label ("." label)*',
    "email": '[a-zA-Z0-9_+-] ("."? [a-zA-Z0-9_+-]){0,63} "@" label ("." label)+',
}
_ANNOTATIONS = {
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated",
    "readOnly", "writeOnly", "contentMediaType", "contentEncoding",
}  # fmt: skip
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
_ONE_OF = ("anyOf", "oneOf", "allOf", "$ref", "const", "enum")  # each says all by itself


def to_gbnf(schema: str) -> str:
    """Return the grammar, in GBNF, of the texts that the schema allows.

    Raises:
        BadRequest: it is no JSON, or says what cannot be kept; the message says where.
    """
    try:
        tree = json.loads(schema, parse_constant=_no_constant, parse_float=_finite)
        return _Writer(tree).write()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"schema is not JSON that can be read: {error}") from None


class _Writer:
    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of rules, by what they say
        self._references: dict[str, str] = {}  # names of rules, by what is pointed at
        self._size = 0

    def write(self) -> str:
        root = self._schema(self._tree, "#", 0)
        rules = {"root": root, **self._rules, **_BUILT_IN}
        return "".join(f"{name} ::= {body}\n" for name, body in rules.items())

    def _schema(self, schema: Any, where: str, depth: int) -> str:
        """Return the name of the rule for a schema."""
        if depth > NESTING_MAX:
            _refuse(where, f"nests deeper than {NESTING_MAX}")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            _refuse(where, f"is {_shown(schema)}, expected an object")
        for keyword in _ONE_OF:
            if keyword in schema:
                allowed = {keyword, "type"} if keyword in ("const", "enum") else {keyword}
                _check_keywords(schema, allowed, where)
                return self._whole(keyword, schema, where, depth)
        kinds = _kinds(schema, where)
        if not kinds:
            _check_keywords(schema, set(), where)
            return "value"
        _check_keywords(schema, {"type"}.union(*(_KEYWORDS[kind] for kind in kinds)), where)
        names = [self._of_kind(kind, schema, where, depth) for kind in kinds]
        return names[0] if len(names) == 1 else self._add(" | ".join(names))

    def _whole(self, keyword: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        value = schema[keyword]
        where = f"{where}/{keyword}"
        match keyword:
            case "$ref":
                return self._reference(value, where, depth)
            case "const":
                return self._add(_constant(value))
            case "enum":
                kinds = _kinds(schema, where)
                values = [each for each in _list(value, where) if not kinds or _is_of(each, kinds)]
                if not values:
                    _refuse(where, "has no value of the type")
                return self._add(" | ".join(dict.fromkeys(map(_constant, values))))
        choices = _list(value, where)
        if keyword == "allOf" and len(choices) != 1:
            _refuse(where, f"has {len(choices)} schemas, expected 1")
        names = [self._schema(each, f"{where}/{index}", depth + 1) for index, each in enumerate(choices)]
        return self._add(" | ".join(dict.fromkeys(names)))

    def _reference(self, pointer: Any, where: str, depth: int) -> str:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            _refuse(where, f"is {_shown(pointer)}, expected a place in the schema itself, as '#/$defs/name'")
        if pointer not in self._references:
            target = self._tree
            for part in pointer.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and key.isdecimal() and len(key) < 5 and int(key) < len(target):
                    target = target[int(key)]
                elif isinstance(target, dict) and key in target:
                    target = target[key]
                else:
                    _refuse(where, f"is {_shown(pointer)}, where nothing is")
            name = self._references[pointer] = f"ref-{len(self._references)}"
            self._define(name, self._schema(target, pointer, depth + 1))
        return self._references[pointer]

    def _of_kind(self, kind: str, schema: Mapping[str, Any], where: str, depth: int) -> str:
        if not _KEYWORDS[kind] & schema.keys():
            return kind
        match kind:
            case "object":
                return self._object(schema, where, depth)
            case "array":
                return self._array(schema, where, depth)
            case "string":
                return self._string(schema, where)
            case _:
                return self._number(kind, schema, where)

    def _object(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            _refuse(f"{where}/properties", f"is {_shown(properties)}, expected an object")
        required = set(map(str, _list(schema.get("required", []), f"{where}/required", may_be_empty=True)))
        if missing := sorted(required - properties.keys()):
            _refuse(f"{where}/required", f"names {_shown(missing[0])}, which is not among the properties")
        more = schema.get("additionalProperties", not properties)
        # From the last property on, twice: `first` while nothing is written yet, `later` behind a comma.
        first = later = '""'
        if more is not False:
            value = self._schema(more, f"{where}/additionalProperties", depth + 1)
            member = self._add(f"string colon {value}")
            later = self._add(f"(comma {member})*")
            first = self._add(f"({member} {later})?")
        for name, each in reversed(properties.items()):
            value = self._schema(each, f"{where}/properties/{name[:64]}", depth + 1)
            pair = self._add(f"{_constant(name)} colon {value}")
            if name in required:
                first, later = self._add(f"{pair} {later}"), self._add(f"comma {pair} {later}")
            else:
                first, later = self._add(f"{pair} {later} | {first}"), self._add(f"(comma {pair})? {later}")
        return self._add(f'"{{" ws {first} ws "}}"')

    def _array(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        least, most = _bounds(schema, "minItems", "maxItems", where)
        heads = _list(schema.get("prefixItems", []), f"{where}/prefixItems", may_be_empty=True)
        names = [
            self._schema(each, f"{where}/prefixItems/{index}", depth + 1) for index, each in enumerate(heads)
        ]
        if most is not None:
            names = names[:most]
        items = schema.get("items", not heads)
        if items is False and least > len(names):
            _refuse(f"{where}/minItems", f"is {least}, of which only {len(names)} are described")
        item = "" if items is False else self._schema(items, f"{where}/items", depth + 1)
        # Behind the described items; before them there are none or, in order, the first of them.
        rest = '""'
        if item:
            bound = "" if most is None else most - len(names)
            rest = self._add(f"(comma {item}){{{max(0, least - len(names))},{bound}}}")
            if not names and bound != 0:
                bound = "" if most is None else most - 1
                some = f"{item} (comma {item}){{{max(0, least - 1)},{bound}}}"
                return self._add(f'"[" ws ({some} ws){"" if least else "?"} "]"')
        for index, name in reversed(list(enumerate(names))):
            comma = "comma " if index else ""
            rest = self._add(f"({comma}{name} {rest}){'' if index < least else '?'}")
        return self._add(f'"[" ws {rest} ws "]"')

    def _string(self, schema: Mapping[str, Any], where: str) -> str:
        said = [keyword for keyword in ("pattern", "format") if keyword in schema]
        if said and len(_KEYWORDS["string"] & schema.keys()) > 1:
            _refuse(f"{where}/{said[0]}", "stands beside another bound of the string, expected it alone")
        if "pattern" in schema:
            if not isinstance(schema["pattern"], str):
                _refuse(f"{where}/pattern", f"is {_shown(schema['pattern'])}, expected a text")
            try:
                return self._add(f'"\\"" {pattern.to_gbnf(schema["pattern"])} "\\""')
            except pattern.BadPattern as error:
                _refuse(f"{where}/pattern", str(error))
        if "format" in schema:
            if not isinstance(schema["format"], str) or schema["format"] not in _FORMATS:
                _refuse(
                    f"{where}/format", f"is {_shown(schema['format'])}, expected one of {', '.join(_FORMATS)}"
                )
            return self._add(f'"\\"" {_FORMATS[schema["format"]]} "\\""')
        least, most = _bounds(schema, "minLength", "maxLength", where)
        return self._add(f'"\\"" char{{{least},{"" if most is None else most}}} "\\""')

    def _number(self, kind: str, schema: Mapping[str, Any], where: str) -> str:
        bounds = {}
        for keyword in _KEYWORDS["integer"] & schema.keys():
            value = schema[keyword]
            if not _is_of(value, ["integer"]):
                _refuse(f"{where}/{keyword}", f"is {_shown(value)}, expected a whole number")
            bounds[keyword] = int(value)
        limit = 10**INTEGER_DIGITS_MAX - 1
        low = max(bounds.get("minimum", -limit), bounds.get("exclusiveMinimum", -limit - 1) + 1)
        high = min(bounds.get("maximum", limit), bounds.get("exclusiveMaximum", limit + 1) - 1)
        if not -limit <= low <= high <= limit:
            _refuse(
                where, f"allows numbers from {low} to {high}, expected some of {INTEGER_DIGITS_MAX} digits"
            )
        magnitudes = _integers if kind == "integer" else _decimals
        choices = list(magnitudes(max(0, low), high)) if high >= 0 else []
        least = 1 if kind == "integer" else 0  # a zero has no sign of its own
        if low < 0:
            choices += [f'"-" ({each})' for each in magnitudes(max(least, -high), -low)]
        return self._add(" | ".join(choices))

    def _add(self, body: str) -> str:
        """Return the name of the rule that says this; equal ones are one."""
        if body not in self._names:
            self._names[body] = f"r{len(self._names)}"
            self._define(self._names[body], body)
        return self._names[body]

    def _define(self, name: str, body: str) -> None:
        self._size += len(name) + len(body)
        if self._size > GRAMMAR_CHARS_MAX:
            raise BadRequest(
                f"schema comes to a grammar of over {GRAMMAR_CHARS_MAX} characters, expected fewer"
            )
        self._rules[name] = body


def _kinds(schema: Mapping[str, Any], where: str) -> list[str]:
    """Return the types that are allowed; none: all of them, which only a schema without bounds may say."""
    found = schema.get("type")
    if found is None:
        implied = [kind for kind in ("object", "array", "string") if _KEYWORDS[kind] & schema.keys()]
        return implied if len(implied) == 1 else []
    kinds = found if isinstance(found, list) else [found]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _KEYWORDS:
            _refuse(f"{where}/type", f"is {_shown(kind)}, expected one of {', '.join(_KEYWORDS)}")
    if not kinds:
        _refuse(f"{where}/type", "is empty")
    return list(dict.fromkeys(kinds))


def _check_keywords(schema: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for keyword in sorted(schema.keys() - _ANNOTATIONS - allowed):
        _refuse(where, f"has {_shown(keyword)}, which cannot be kept here")


def _bounds(schema: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
    for keyword in (least, most):
        value = schema.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= REPETITIONS_MAX:
            _refuse(f"{where}/{keyword}", f"is {_shown(value)}, expected 0 to {REPETITIONS_MAX}")
    low, high = schema.get(least, 0), schema.get(most)
    if high is not None and high < low:
        _refuse(f"{where}/{most}", f"is {high}, expected at least {low}")
    return low, high


def _integers(low: int, high: int) -> Iterator[str]:
    """Yield what the whole numbers between two of them, none below 0, look like."""
    if low == 0 <= high:
        yield '"0"'
    for digits in range(1, INTEGER_DIGITS_MAX + 1):
        first, last = max(low, 10 ** (digits - 1)), min(high, 10**digits - 1)
        if first <= last:
            for ranges in between(str(first).encode(), str(last).encode(), b"09"):
                yield " ".join(f"[{chr(a)}-{chr(b)}]" for a, b in ranges)


def _decimals(low: int, high: int) -> Iterator[str]:
    for each in _integers(low, high - 1):
        yield f"{each} fraction?"
    yield f'{literal(str(high))} ("." "0"{{1,16}})?'


def _constant(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


def _is_of(value: Any, kinds: Sequence[str]) -> bool:
    tests: dict[str, Callable[[Any], bool]] = {
        "object": lambda v: isinstance(v, dict),
        "array": lambda v: isinstance(v, list),
        "string": lambda v: isinstance(v, str),
        "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and float(v).is_integer(),
        "boolean": lambda v: isinstance(v, bool),
        "null": lambda v: v is None,
    }
    return any(tests[kind](value) for kind in kinds)


def _list(value: Any, where: str, *, may_be_empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or (not value and not may_be_empty):
        _refuse(where, f"is {_shown(value)}, expected a list")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is over the largest number")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:60]}…"


def _refuse(where: str, what: str) -> NoReturn:
    raise BadRequest(f"schema at {where[-160:]} {what}")
