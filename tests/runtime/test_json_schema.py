"""JSON schemas as grammars: what a schema allows can be said, what it forbids cannot, and what cannot be kept is refused."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine import BadRequest
from runtime.llama import schema as json_schema
from runtime.llama.constraint import Constraint, compiled

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "friend": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "friend"],
    "additionalProperties": False,
}


def allows(schema: object, text: str) -> bool:
    """Whether the whole text may be written under the schema."""
    constraint = Constraint(compiled(json.dumps(schema), ""))
    return constraint.accept(text.encode()) and constraint.is_complete


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        (True, ["1", '"x"', "null", "[]", '{"a": [{}]}'], ["", "x", "[1,]", "01", "nul"]),
        ({"type": "object"}, ["{}", '{"a": 1}', '{"a": 1, "b": {"c": []}}'], ["[]", "{", '{"a"}', '{"a": 1,}']),
        ({"type": "array"}, ["[]", "[1, [2]]"], ["{}", "[1 2]"]),
        ({"type": "string"}, ['""', '"é\\n\\u00e9"', '"a\\"b"'], ['"', '"a"b"', '"\n"', '"\\x"']),
        ({"type": "number"}, ["0", "-1.5", "2e10", "12.25E-3"], ["1.", ".5", "+1", "1e", "00"]),
        ({"type": "integer"}, ["0", "-12"], ["1.0", "-", "1e3"]),
        ({"type": ["boolean", "null"]}, ["true", "false", "null"], ["0", "True"]),
        ({"const": {"a": [1, "x"]}}, ['{"a": [1, "x"]}'], ['{"a": [1]}']),
        ({"enum": ["red", 3, None]}, ['"red"', "3", "null"], ["red", "4"]),
        ({"type": "string", "enum": ["red", 3]}, ['"red"'], ["3"]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["4", "null"], ['"4"']),
        ({"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"type": "null"}}}, ["null"], ["1"]),
        ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "null"}}}, ["null"], ["1"]),
        (PERSON, [
            '{"name": "Ann", "friend": null}',
            '{"name":"Ann","age":150,"tags":["a", "b"],"friend":{"name":"Bob","friend":null}}',
            '{\n  "name": "Ann",\n  "friend": null\n}',
        ], [
            '{"name": "Ann"}', '{"friend": null, "name": "Ann"}', '{"name": "Ann", "age": 151, "friend": null}',
            '{"name": "Ann", "tags": ["a", "b", "a"], "friend": null}', '{"name": "Ann", "friend": null, "x": 1}',
        ]),
        ({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
            ["{}", '{"a": null}', '{"b": null}', '{"a": null, "b": null}'], ['{"b": null, "a": null}', '{"c": 1}', '{, "b": null}']),
        ({"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
            ["{}", '{"x": 1}', '{"a": null, "x": 1, "y": 2}'], ['{"x": "1"}', '{"a": null, "x": null}']),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, ["[1, 2]", "[1,2,3]"], ["[1]", "[1,2,3,4]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False}, ["[]", "[null]", "[null, true]"], ["[true]", "[null, true, 1]"]),
        ({"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "integer"}, "minItems": 2}, ["[null, 1]", "[null, 1, 2]"], ["[null]", "[1, 1]"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"é😀a"', '"\\n\\n"'], ['"a"', '"abcd"']),
        ({"type": "integer", "minimum": -12, "exclusiveMaximum": 7}, ["-12", "-9", "0", "6"], ["-13", "7", "-0", "60"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.25", "1", "1.0"], ["1.5", "-0.5", "2"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"24-01-01"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T23:59:59Z"', '"2024-02-29T23:59:59.5+01:00"'], ['"2024-02-29 23:59:59"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
        ({"type": "string", "format": "ipv4"}, ['"192.168.0.1"'], ['"256.1.1.1"']),
        ({"type": "string", "format": "email"}, ['"ann.b@example.org"'], ['"ann@b"']),
        ({"type": "string", "description": "a", "title": "b", "default": 1, "examples": []}, ['"x"'], ["1"]),
        ({"const": 'a"b\\c\n'}, ['"a\\"b\\\\c\\n"'], ['"a"']),
        ({"properties": {'we"ird\n ::= ': {"type": "null"}}, "required": ['we"ird\n ::= ']}, ['{"we\\"ird\\n ::= ": null}'], ["{}"]),
    ],
)  # fmt: skip
def test_a_schema_allows_its_texts_and_no_others(
    schema: object, allowed: list[str], forbidden: list[str]
) -> None:
    assert [text for text in allowed + forbidden if allows(schema, text)] == allowed
    for text in allowed:
        json.loads(text)


@pytest.mark.parametrize(
    ("pattern", "allowed", "forbidden"),
    [
        (r"^[a-z]{2,3}-\d+$", ["ab-1", "abc-999"], ["a-1", "ab-", "ab-1x"]),
        (r"^(?:a|b)*\.[^x]?$", [".", "abba.y"], ["c.", ".x"]),
        (r"b+", ["b", "abbc", "bb"], ["", "ac"]),
        (r"^a", ["a", "abc"], ["ba"]),
        (r"a$|^b$", ["xa", "b"], ["ax", "xb"]),
        (r"^\w\s\W$", ["a !", "_\t-"], ["a!", "- -"]),
        (r'^"\\\n[^"]$', ['"\\\nx'], ['"\\\n"']),
        (r"^\u00e9\x41$", ["éA"], ["eA"]),
        (r"^$", [""], ["a"]),
        (r"^.$", ["a", "é", '"'], ["\n", "ab"]),
    ],
)
def test_a_pattern_holds_for_what_the_string_says(
    pattern: str, allowed: list[str], forbidden: list[str]
) -> None:
    """What must be escaped in JSON is allowed escaped."""
    schema = {"type": "string", "pattern": pattern}

    assert [
        text for text in allowed + forbidden if allows(schema, json.dumps(text, ensure_ascii=False))
    ] == allowed


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "schema is not JSON that can be read"),
        ('{"type": NaN}', "NaN is no JSON"),
        ('{"const": 1e999}', "1e999 is over the largest number"),
        ("[" * 100_000, "not JSON that can be read"),
        ("3", "schema at # is 3, expected an object"),
        ("false", "schema at # is False, expected an object"),
        ('{"type": "strin"}', "schema at #/type is 'strin', expected one of object, array"),
        ('{"type": []}', "schema at #/type is empty"),
        ('{"not": {}}', "schema at # has 'not', which cannot be kept here"),
        ('{"type": "integer", "multipleOf": 3}', "has 'multipleOf', which cannot be kept"),
        ('{"type": "string", "minimum": 3}', "has 'minimum', which cannot be kept"),
        ('{"type": "string", "format": "regex"}', "#/format is 'regex', expected one of date"),
        ('{"type": "integer", "minimum": 0.5}', "#/minimum is 0.5, expected a whole number"),
        ('{"type": "integer", "minimum": 4, "maximum": 3}', "allows numbers from 4 to 3"),
        ('{"type": "string", "minLength": 4, "maxLength": 3}', "#/maxLength is 3, expected at least 4"),
        ('{"type": "string", "maxLength": 4096}', "#/maxLength is 4096, expected 0 to 2048"),
        ('{"type": "string", "pattern": "a(?=b)"}', "#/pattern has a group that looks around"),
        ('{"type": "string", "pattern": "a**"}', "#/pattern has a lazy or doubled repetition"),
        ('{"type": "string", "pattern": "(a"}', r"#/pattern has a '\(' without its '\)'"),
        ('{"type": "string", "pattern": "(a)\\\\1"}', r"#/pattern has the escape \\1"),
        ('{"type": "string", "pattern": "a", "minLength": 3}', "stands beside another bound"),
        ('{"type": "object", "required": ["a"]}', "#/required names 'a', which is not among the properties"),
        ('{"type": "array", "items": false, "minItems": 1}', "#/minItems is 1, of which only 0 are described"),
        ('{"enum": []}', r"#/enum is \[\], expected a list"),
        ('{"type": "string", "enum": [1]}', "#/enum has no value of the type"),
        ('{"allOf": [{}, {}]}', "#/allOf has 2 schemas, expected 1"),
        ('{"$ref": "https://example.org/schema.json"}', "expected a place in the schema itself"),
        ('{"$ref": "file:///etc/passwd"}', "expected a place in the schema itself"),
        ('{"$ref": "#/nowhere"}', "where nothing is"),
        ('{"$ref": "#"}', "begins with itself"),
        ('{"properties": {"a": {"properties": {"b": {"if": {}}}}}}', "schema at #/properties/a/properties/b has 'if'"),
        ('{"const": "\\ud800"}', "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_name(schema: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as refusal:
        compiled(schema, "")

    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def deep(levels: int) -> object:
    schema: object = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        json.dumps(deep(300)),
        json.dumps({"type": "array", "items": {"type": "array", "items": {"type": "string", "maxLength": 2048}, "maxItems": 2048}, "maxItems": 2048} | {"prefixItems": [{"type": "string", "maxLength": 2000 + i} for i in range(40)]}),
        json.dumps({"type": "string", "pattern": "^" + "(a" * 40 + ")*" * 40 + "$"}),
        json.dumps({"type": "string", "pattern": "^" + "(x{0,2000})" * 60 + "$"}),
        json.dumps({"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(300)} | {"d300": {}}, "$ref": "#/$defs/d0"}),
    ],
)  # fmt: skip
def test_a_schema_that_would_grow_without_bound_is_refused_quickly(schema: str) -> None:
    began = time.process_time()

    with pytest.raises(BadRequest):
        Constraint(compiled(schema, ""))

    assert time.process_time() - began < 2


def test_a_schema_of_the_largest_size_is_followed() -> None:
    """Four hundred optional fields of every kind, in less than 16 KiB."""
    schema = {"properties": {f"f{i}": {"type": ["string", "null", "integer"][i % 3]} for i in range(400)}}
    assert len(json.dumps(schema)) < 16_384

    assert allows(schema, '{"f1": null, "f399": "x"}')
    assert not allows(schema, '{"f399": "x", "f1": null}')


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def schema_of(value: object) -> object:
    """A schema that this value keeps, with all properties in its order."""
    match value:
        case bool():
            return {"type": "boolean"}
        case None:
            return {"type": "null"}
        case int():
            return {"type": "integer", "minimum": value - 3, "maximum": value + 20}
        case str():
            return {"type": "string", "minLength": len(value), "maxLength": len(value) + 2}
        case list():
            return {
                "type": "array",
                "items": {"anyOf": [schema_of(each) for each in value] or [True]},
                "minItems": len(value),
            }
        case dict():
            return {
                "type": "object",
                "properties": {name: schema_of(each) for name, each in value.items()},
                "required": list(value),
                "additionalProperties": False,
            }
    raise TypeError(value)


@given(VALUES, st.sampled_from([None, 1]))
def test_a_value_is_allowed_by_its_own_schema(value: Any, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)

    assert allows(schema_of(value), text)
    assert allows(True, text)


@given(st.text(alphabet='{}[]",:$#/ \\typeobjcanumrfdsi^*+?()|.-0123', max_size=120))
def test_any_text_is_a_schema_or_refused(text: str) -> None:
    with suppress(BadRequest):
        json_schema.to_gbnf(text)


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["object", "#", "^(a|b)*$", "#/$defs/x", "date"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "prefixItems", "anyOf", "allOf", "enum", "const", "$ref", "$defs", "required", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "additionalProperties", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(HOSTILE)
def test_any_json_is_a_schema_or_refused(schema: Any) -> None:
    with suppress(BadRequest):
        Constraint(compiled(json.dumps(schema), ""))
