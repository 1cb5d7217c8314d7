"""The records of a private data set: what a line must be, what makes two of them one, and which are held out.

A record is a prompt and the response that is right for it. It is named by the hash of both, so that it is known again
whatever file it comes in.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NewType

import msgspec

from node.errors import StartError
from protocol.limits import KIB, MIB

RecordHash = NewType("RecordHash", bytes)  # the first 16 bytes of SHA-256

FILE_BYTES_MAX = 64 * MIB  # read into memory, and into the trainer's
RECORDS_MAX = 200_000
RECORD_BYTES_MAX = 64 * KIB  # a long document; the trainer cuts at its context
HELD_OUT_SHARE = 10  # one in so many: at least 50 of 500, the least that a verdict may be told of
HASH_BYTES = 16


class Record(msgspec.Struct, frozen=True):
    """One example; whatever else its line says is left out of the frozen copy."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Records:
    """What is in a file, split in two; each line is a record's canonical JSON.

    Attributes:
        train, held_out: in the file's order.
        hashes: of `train`.
        duplicates: lines left out because they repeat an earlier one.
    """

    train: tuple[bytes, ...]
    held_out: tuple[bytes, ...]
    hashes: frozenset[RecordHash]
    duplicates: int


def read(data: bytes, source: object) -> Records:
    """Take the lines of a file in.

    Args:
        data: the whole file.
        source: what it is called in errors.

    Raises:
        StartError: a line is no record; the first of them is named, with what was found in it.
    """
    if len(data) > FILE_BYTES_MAX:
        raise StartError(f"{source} has {len(data)} bytes, expected {FILE_BYTES_MAX} at most; split it")
    found: dict[RecordHash, bytes] = {}
    lines = 0
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        lines += 1
        if lines > RECORDS_MAX:
            raise StartError(f"{source} has more than {RECORDS_MAX:,} records; split it")
        canonical = msgspec.json.encode(_record(line, f"{source} line {number}"))
        found.setdefault(hash_of(canonical), canonical)
    if not found:
        raise StartError(f'{source} holds no record, expected lines like {{"prompt": "…", "response": "…"}}')
    held_out = _held_out(found)
    return Records(
        train=tuple(line for key, line in found.items() if key not in held_out),
        held_out=tuple(line for key, line in found.items() if key in held_out),
        hashes=frozenset(key for key in found if key not in held_out),
        duplicates=lines - len(found),
    )


def decode(line: bytes) -> Record:
    """Return a record of a frozen copy."""
    return msgspec.json.decode(line, type=Record)


def encode(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Return prompts and responses as the lines of a file."""
    return b"".join(msgspec.json.encode(Record(prompt, response)) + b"\n" for prompt, response in pairs)


def hash_of(canonical: bytes) -> RecordHash:
    """Return what a record is known by."""
    return RecordHash(hashlib.sha256(b"agora record\0" + canonical).digest()[:HASH_BYTES])


def digest_of(records: Records, salt: bytes) -> bytes:
    """Return the name of a set in `Spend` entries: without the salt nobody can try what is in it."""
    hashed = hashlib.sha256(b"agora data set\0" + salt)
    for part in (records.train, records.held_out):
        hashed.update(len(part).to_bytes(8))
        for line in part:
            hashed.update(hash_of(line))
    return hashed.digest()


def _held_out(hashes: Iterable[RecordHash]) -> frozenset[RecordHash]:
    """A tenth, by hash: no order of lines decides, and a record is on the same side in nearly every set it is in."""
    ranked: Sequence[RecordHash] = sorted(hashes)
    return frozenset(ranked[: len(ranked) // HELD_OUT_SHARE])


def _record(line: bytes, where: str) -> Record:
    try:
        record = msgspec.json.decode(line, type=Record)
    except msgspec.ValidationError as error:
        raise StartError(f"{where}: {_said(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StartError(f"{where} is not JSON in UTF-8 ({_said(error)})") from None
    for name, text in (("prompt", record.prompt), ("response", record.response)):
        if not text.strip():
            raise StartError(f"{where}: {name} is empty, expected some text")
    size = len(record.prompt.encode()) + len(record.response.encode())
    if size > RECORD_BYTES_MAX:
        raise StartError(
            f"{where}: prompt and response have {size} bytes, expected {RECORD_BYTES_MAX} at most"
        )
    return record


def _said(error: Exception) -> str:
    """What msgspec found; it names fields and types and quotes no content."""
    text = str(error).replace("Object missing required field", "no field", 1).replace("`", "'")
    return text[:1].lower() + text[1:]
