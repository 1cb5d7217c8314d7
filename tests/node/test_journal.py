"""One stream of events: what it shows, what it hides, and who may fall behind."""

import io
import json
import resource
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
import trio
import trio.testing

from node.errors import StartError
from node.event import Event
from node.journal import Journal
from node.journal_file import Filter, JournalFile, follow, read


def journal(path: Path | None = None, stderr: io.StringIO | None = None) -> Journal:
    return Journal(path, stderr=stderr, wall_clock=lambda: 1_700_000_000.25, monotonic=lambda: 7.5)


def test_an_event_is_one_readable_line_on_stderr() -> None:
    stderr = io.StringIO()

    journal(stderr=stderr).write(
        "award_sent", request_id="r1", price_micro=20, took_s=0.25, ok=True, why="too dear"
    )

    assert stderr.getvalue() == (
        '2023-11-14T22:13:20.250Z award_sent request_id=r1 price_micro=20 took_s=0.25 ok=true why="too dear"\n'
    )


def test_an_event_is_one_json_object_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    journal(path).write("blob_fetched", digest=b"\xab\xcd", size_bytes=3)

    assert json.loads(path.read_bytes()) == {
        "at": "2023-11-14T22:13:20.250Z",
        "monotonic_s": 7.5,
        "event": "blob_fetched",
        "digest": "abcd",
        "size_bytes": 3,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    ["x\nlog_forged peer=me", "x\r\x1b[2Jy", "x\u2028y", "x\u202egnp.exe", "x\x00y", "x\ud800y", "x\x85y"],
)
def test_forged_lines_and_terminal_codes_of_a_peer_are_escaped(tmp_path: Path, text: str) -> None:
    """A peer's free text reaches terminals and line readers: it stays one line and obeys nobody."""
    stderr = io.StringIO()
    path = tmp_path / "journal.jsonl"

    journal(path, stderr).write("hello_refused", detail=text)

    line = stderr.getvalue().removesuffix("\n")
    assert line.isprintable()
    assert line.encode().startswith(b"2023-11-14T22:13:20.250Z hello_refused detail=")
    assert path.read_text().count("\n") == 1
    assert [str(event.fields["detail"]).isprintable() for event in read(path)] == [True]


def test_a_peer_cannot_forge_a_second_field() -> None:
    stderr = io.StringIO()

    journal(stderr=stderr).write("bid_received", detail='x price_micro=0 a="b', seller="")

    assert 'detail="x price_micro=0 a=\\"b" seller=""' in stderr.getvalue()


def test_long_values_are_capped_and_objects_are_not_shown() -> None:
    """A prompt inside some object must not get into the log by its repr."""

    @dataclass
    class Chat:
        prompt: str

    class Colour(Enum):
        RED = "red"

    book = journal()
    book.write(
        "x_happened",
        chat=Chat("secret"),
        text="a" * 10_000,
        raw=bytes(1_000),
        ids=["a", b"\x01", 3],
        colour=Colour.RED,
        path=Path("/a"),
        error=ValueError("no"),
        many=list(range(100)),
        at="not the time",
    )

    (event,) = book.recent()
    assert event.fields == {
        "chat": "Chat",
        "text": "a" * 255 + "…",
        "raw": "00" * 64 + "…",
        "ids": "a,01,3",
        "colour": "red",
        "path": "/a",
        "error": "no",
        "many": "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,…",
        "at_": "not the time",
    }


def test_the_file_is_rotated_and_three_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    file = JournalFile(path, size_bytes_max=1_000)
    line = Event(0, "ticked", 0.0, 0.0, {"text": "x" * 200}).to_json()

    for _ in range(30):
        file.write_line(line)
    file.close()

    kept = sorted(tmp_path.iterdir())
    assert [entry.name for entry in kept] == ["journal.jsonl", "journal.jsonl.1", "journal.jsonl.2"]
    assert all(entry.stat().st_size <= 1_000 for entry in kept)
    assert all(stat.S_IMODE(entry.stat().st_mode) == 0o600 for entry in kept)


def test_events_are_read_back_filtered_and_torn_lines_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = journal(path)
    book.write("award_sent", job_id="0123456789abcdef", seller="ann")
    book.write("award_lost", job_id="fedcba9876543210")
    book.close()
    with path.open("ab") as file:
        file.write(b'{"at": "2023-11-14T22:13:20')  # killed here
    book = journal(path)
    book.write("peer_met", peer_id="ann")
    book.close()

    assert [event.name for event in read(path)] == ["award_sent", "award_lost", "peer_met"]
    assert [event.name for event in read(path, Filter(name="award_*"))] == ["award_sent", "award_lost"]
    assert [event.name for event in read(path, Filter(id="ann"))] == ["award_sent", "peer_met"]
    assert [event.name for event in read(path, Filter(id="01234567"))] == ["award_sent"]
    assert [event.name for event in read(path, Filter(id="0123"))] == []
    assert list(read(path, Filter(since_s=1_700_000_001))) == []
    assert next(read(path)) == Event(
        0, "award_sent", 1_700_000_000.25, 7.5, {"job_id": "0123456789abcdef", "seller": "ann"}
    )


async def test_the_file_is_followed_across_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    file = JournalFile(path, size_bytes_max=300)
    file.write_line(Event(0, "before", 0.0, 0.0).to_json())
    names = iter(["first", "second", "third", "fourth", "fifth", "sixth"])

    async def write_one() -> None:
        await trio.lowlevel.checkpoint()
        file.write_line(Event(0, next(names), 0.0, 0.0, {"text": "x" * 60}).to_json())

    seen: list[str] = []
    events = follow(path, pause=write_one)
    async for event in events:
        seen.append(event.name)
        if event.name == "sixth":
            break
    await events.aclose()
    file.close()

    assert seen == ["first", "second", "third", "fourth", "fifth", "sixth"]


async def test_a_subscriber_gets_events_as_they_happen() -> None:
    book = journal()
    seen: list[str] = []

    async with book.subscribe() as receive, trio.open_nursery() as nursery:

        async def listen() -> None:
            while True:
                seen.append((await receive.receive()).name)

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        book.write("peer_met")
        book.write("peer_left")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    book.write("peer_met")

    assert seen == ["peer_met", "peer_left"]
    assert [event.number for event in book.recent()] == [1, 2, 3]


async def test_a_slow_subscriber_loses_the_oldest_and_is_told_how_many() -> None:
    """It must not hold up the node, nor fill its memory."""
    book = journal()

    async with book.subscribe(size=2) as receive:
        for number in range(5):
            book.write("ticked", count=number)

        first = await receive.receive()
        rest = [await receive.receive(), await receive.receive()]

    assert (first.name, first.fields) == ("events_dropped", {"count": 3})
    assert [event.fields["count"] for event in rest] == [3, 4]


def test_a_full_disk_loses_lines_but_not_the_daemon(tmp_path: Path) -> None:
    """And says how many when there is room again."""
    path = tmp_path / "journal.jsonl"
    book = journal(path)
    book.write("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        book.write("lost")
        book.write("lost_too")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    book.write("after")

    assert [(event.name, dict(event.fields)) for event in read(path)] == [
        ("before", {}),
        ("after", {}),
        ("journal_lines_lost", {"count": 2}),
    ]
    assert [event.name for event in book.recent()] == [
        "before",
        "lost",
        "lost_too",
        "after",
        "journal_lines_lost",
    ]


def test_a_journal_that_cannot_be_opened_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()

    with pytest.raises(StartError, match="cannot open journal"):
        journal(tmp_path / "journal.jsonl")


def test_a_closed_terminal_does_not_stop_the_journal() -> None:
    stderr = io.StringIO()
    book = journal(stderr=stderr)
    stderr.close()

    book.write("peer_met")

    assert [event.name for event in book.recent()] == ["peer_met"]
