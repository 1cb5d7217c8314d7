"""Lines in, records out: what is refused names its file and line, and says nothing of what is in it."""

import json
from random import Random

import pytest

from node import records
from node.errors import StartError
from node.records import FILE_BYTES_MAX, RECORD_BYTES_MAX, RECORDS_MAX, Record

GOOD = b'{"prompt": "What does H2 mean?", "response": "The pressure is too low."}\n'


def pairs(count: int, word: str = "prompt") -> list[tuple[str, str]]:
    return [(f"{word} {at}", f"response {at}") for at in range(count)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"not json", "logs.jsonl line 2 is not JSON in UTF-8 ("),
        (b'{"prompt": "a"', "logs.jsonl line 2 is not JSON in UTF-8 ("),
        (b'{"prompt": "\xff", "response": "b"}', "logs.jsonl line 2 is not JSON in UTF-8 ("),
        (b'{"prompt": "\\ud800", "response": "b"}', "logs.jsonl line 2 is not JSON in UTF-8 ("),
        (b"[" * 5_000, "logs.jsonl line 2"),
        (b'{"prompt": "a"}', "logs.jsonl line 2: no field 'response'"),
        (b'{"prompt": "a", "response": 5}', "logs.jsonl line 2: expected 'str', got 'int' - at '$.response'"),
        (b'{"prompt": "a", "response": null}', "logs.jsonl line 2: expected 'str', got 'null' - at '$.response'"),
        (b'["a", "b"]', "logs.jsonl line 2: expected 'object', got 'array'"),
        (b'{"prompt": " ", "response": "b"}', "logs.jsonl line 2: prompt is empty, expected some text"),
        (b'{"prompt": "a", "response": ""}', "logs.jsonl line 2: response is empty, expected some text"),
        (
            json.dumps({"prompt": "a" * RECORD_BYTES_MAX, "response": "b"}).encode(),
            f"logs.jsonl line 2: prompt and response have {RECORD_BYTES_MAX + 1} bytes, expected {RECORD_BYTES_MAX} at most",
        ),
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_named(line: bytes, said: str) -> None:
    with pytest.raises(StartError) as caught:
        records.read(GOOD + line + b"\n" + GOOD, "logs.jsonl")

    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_number_of_a_line_counts_empty_ones_as_an_editor_does() -> None:
    with pytest.raises(StartError, match=r"logs\.jsonl line 4:"):
        records.read(GOOD + b"\n \n{}\n", "logs.jsonl")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_records_is_refused(data: bytes) -> None:
    with pytest.raises(StartError, match=r"logs\.jsonl holds no record, expected lines like"):
        records.read(data, "logs.jsonl")


def test_a_file_that_is_too_long_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(StartError, match=f"expected {FILE_BYTES_MAX} at most"):
        records.read(bytes(FILE_BYTES_MAX + 1), "logs.jsonl")


def test_too_many_records_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_MAX", 5)

    with pytest.raises(StartError, match="more than 5 records"):
        records.read(records.encode(pairs(6)), "logs.jsonl")
    assert RECORDS_MAX >= 100_000


def test_what_windows_and_editors_add_is_no_part_of_a_record() -> None:
    plain = records.read(GOOD, "a")
    windows = records.read(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"), "b")

    assert plain == windows


def test_other_fields_of_a_line_are_left_out() -> None:
    """Their owner did not mean to train on a customer's number."""
    read = records.read(b'{"customer": 7, "response": "b", "prompt": "a"}', "logs.jsonl")

    assert read.train == (b'{"prompt":"a","response":"b"}',)
    assert records.decode(read.train[0]) == Record("a", "b")


def test_a_repeated_record_is_kept_once_and_counted() -> None:
    """The unit of privacy is one record: twice in the file it would enter twice as many batches."""
    spaced = b'{ "prompt":"What does H2 mean?" ,"response": "The pressure is too low." }\n'

    read = records.read(GOOD + spaced + GOOD + records.encode(pairs(3)), "logs.jsonl")

    assert (len(read.train), read.duplicates) == (4, 2)


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (9, 0), (10, 1), (499, 49), (500, 50), (2_000, 200)])
def test_a_tenth_is_held_out(count: int, held_out: int) -> None:
    """At least 50 of 500 or more: a verdict on fewer would tell of single ones."""
    read = records.read(records.encode(pairs(count)), "logs.jsonl")

    assert (len(read.train), len(read.held_out)) == (count - held_out, held_out)
    assert not set(read.train) & set(read.held_out)
    assert read.hashes == {records.hash_of(line) for line in read.train}


def test_the_order_of_lines_decides_nothing_about_who_is_held_out() -> None:
    straight = pairs(200)
    mixed = list(straight)
    Random(1).shuffle(mixed)

    one, other = (records.read(records.encode(each), "logs.jsonl") for each in (straight, mixed))

    assert set(one.held_out) == set(other.held_out)


def test_the_digest_of_a_set_confirms_no_guess_of_what_is_in_it() -> None:
    """It goes into the log, which trading partners read: with the salt of another device it is another."""
    read = records.read(GOOD, "logs.jsonl")

    assert records.digest_of(read, b"salt of ann") == records.digest_of(read, b"salt of ann")
    assert records.digest_of(read, b"salt of ann") != records.digest_of(read, b"salt of bob")
