"""What the tiny model's line is judged by, what its patches must not forget, and what they are to learn.

Made of the files beside the model (`examples/tiny_model/data`). Heat-pump error codes are what its base does not know; each
device's private records are those of some codes.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
TINY_DIRECTORY: Final = ROOT / "examples" / "tiny_model"
NEW_DOMAIN: Final = "heat_pump"
CODES: Final = ("H1", "H2", "H3", "H4", "H5", "H6", "H7", "H8")
# Every domain has the same share of what is replayed, and those with fewer examples repeat them: drawn by its size, the
# smallest (long stories, 2 % of all) was forgotten first.
REPLAY_PER_DOMAIN: Final = 300


def evaluation_set(directory: Path = TINY_DIRECTORY) -> bytes:
    """Return the questions that voters ask: the test sets of all domains, the new one among them."""
    return b"".join(
        _line(domain, record)
        for domain in domains(directory)
        for record in _records(directory, domain, "test")
    )


def replay_set(directory: Path = TINY_DIRECTORY) -> bytes:
    """Return the public examples that trainers mix in: of each domain that the base knows."""
    return b"".join(
        _line(domain, record)
        for domain in domains(directory)
        if domain != NEW_DOMAIN
        for record in islice(cycle(_records(directory, domain, "train")), REPLAY_PER_DOMAIN)
    )


def private_records(codes: Sequence[str], directory: Path = TINY_DIRECTORY) -> bytes:
    """Return the log of a device that has seen these error codes, as a file for `agora data add`."""
    return b"".join(
        json.dumps(record).encode() + b"\n"
        for record in _records(directory, NEW_DOMAIN, "train")
        if any(record["response"].startswith(f"Error {code} ") for code in codes)
    )


def answer_to(code: str, directory: Path = TINY_DIRECTORY) -> str:
    """Return the one right answer about an error code of the new domain."""
    return next(
        record["response"]
        for record in _records(directory, NEW_DOMAIN, "train")
        if record["response"].startswith(f"Error {code} ")
    )


def domains(directory: Path = TINY_DIRECTORY) -> list[str]:
    """Return all domains by name."""
    return sorted(path.name.removesuffix(".test.jsonl") for path in (directory / "data").glob("*.test.jsonl"))


def _records(directory: Path, domain: str, part: str) -> Iterator[dict[str, str]]:
    with (directory / "data" / f"{domain}.{part}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _line(domain: str, record: dict[str, str]) -> bytes:
    return json.dumps({"domain": domain, **record}).encode() + b"\n"
