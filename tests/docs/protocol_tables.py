"""Write the tables of docs/PROTOCOL.md from the code: `python tests/docs/protocol_tables.py`."""

import re
import sys
from pathlib import Path

import msgspec.inspect as ms

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from protocol.messages import (  # noqa: E402  (found through the line above)
    MESSAGES,
    Contribution,
    Device,
    Entry,
    FailedFrame,
    FinishedFrame,
    Head,
    LoraShape,
    Message,
    ModelOffer,
    Part,
    ProgressFrame,
    Recipe,
    RollEntry,
    SamplingTerms,
    Score,
    TokensFrame,
    Turn,
)
from protocol.topics import STREAM_PROTOCOLS, TOPICS  # noqa: E402

PROTOCOL_MD = ROOT / "docs" / "PROTOCOL.md"
PARTS: tuple[type[Part], ...] = (
    Head,
    ModelOffer,
    Device,
    RollEntry,
    Score,
    LoraShape,
    Contribution,
    SamplingTerms,
    Turn,
    Recipe,
)
FRAMES: tuple[type[Part], ...] = (TokensFrame, ProgressFrame, FinishedFrame, FailedFrame)


def tables() -> dict[str, str]:
    """Return each generated section of the document by its name."""
    return {
        "streams": _streams(),
        "messages": "\n".join(_message(form) for form in MESSAGES),
        "parts": "\n".join(_part(f"`{form.__name__}`", form) for form in PARTS),
        "frames": "\n".join(_part(f"`{ms.type_info(form).tag}`", form) for form in FRAMES),
    }


def rewritten(document: str) -> str:
    """Return the document with its generated sections as the code has them now."""
    for name, text in tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        document = re.sub(
            re.escape(begin) + ".*?" + re.escape(end),
            lambda _, new=begin + text + end: new,
            document,
            flags=re.DOTALL,
        )
    return document


def _streams() -> str:
    lines = ["| name | largest frame or message (bytes) | streams a peer may have open |", "|---|---|---|"]
    lines += [
        f"| `{line.name}` | {line.frame_bytes_max:,} | {line.streams_max} |" for line in STREAM_PROTOCOLS
    ]
    lines += [f"| `{topic.name}` (gossip) | {topic.message_bytes_max:,} | |" for topic in TOPICS]
    return "\n".join(lines) + "\n"


def _message(form: type[Message]) -> str:
    if issubclass(form, Entry):
        life = f"entry of the *{form.log}* log"
    else:
        life = "live" if form.live else "until its ttl"
    return _part(f"`{form.kind}` · at most {form.bytes_max:,} bytes · {life}", form)


def _part(title: str, form: type[Part]) -> str:
    info = ms.type_info(form)
    assert isinstance(info, ms.StructType)
    lines = [f"**{title}**", ""]
    lines += [f"- `{field.encode_name}` {_said(field.type)}{_default(field)}" for field in info.fields]
    return "\n".join(lines) + "\n"


def _default(field: ms.Field) -> str:
    if field.required:
        return ""
    match field.default:
        case bool():
            missing = str(field.default).lower()
        case int():
            missing = f"{field.default:,}"
        case () | b"" | "":
            missing = "empty"
        case _:
            missing = f'`"{field.default}"`'
    return f"; {missing} when it is missing"


def _said(kind: ms.Type) -> str:
    match kind:
        case ms.Metadata(type=inner):
            return _said(inner)
        case ms.BytesType():
            return f"bytes, {_between(kind.min_length, kind.max_length)}"
        case ms.StrType(pattern=str(pattern)):
            return f"text matching `{pattern}`"
        case ms.StrType():
            return f"text, {_between(kind.min_length, kind.max_length)} characters"
        case ms.IntType():
            most = kind.le if kind.lt is None else kind.lt - 1
            return f"integer, {_between(kind.ge, most)}"
        case ms.BoolType():
            return "boolean"
        case ms.NoneType():
            return "nil"
        case ms.LiteralType():
            return "one of " + " ".join(f'`"{value}"`' for value in kind.values)
        case ms.VarTupleType():
            return f"list of {_between(kind.min_length, kind.max_length)}: {_said(kind.item_type)}"
        case ms.TupleType():
            return "list of " + " and ".join(_said(item) for item in kind.item_types)
        case ms.StructType():
            return f"`{kind.cls.__name__}`"
        case ms.UnionType():
            return " or ".join(_said(member) for member in kind.types)
    raise TypeError(f"no words for {kind}")


def _between(least: int | None, most: int | None) -> str:
    if least == most and least is not None:
        return f"{least:,}"
    if most is None:
        return "any" if least is None else f"{least:,} or more"
    return f"{least or 0:,} to {most:,}"


def main() -> None:
    """Rewrite the document in place."""
    PROTOCOL_MD.write_text(rewritten(PROTOCOL_MD.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
