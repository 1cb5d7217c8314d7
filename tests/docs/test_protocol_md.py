import json
from pathlib import Path

from protocol_tables import PROTOCOL_MD, rewritten

from protocol.messages import BY_KIND
from protocol.topics import STREAM_PROTOCOLS, TOPICS

TEXT = PROTOCOL_MD.read_text(encoding="utf-8")
VECTORS = Path(__file__).parent.parent / "vectors"


def test_the_tables_are_what_the_code_says() -> None:
    """Who changes a message runs `python tests/docs/protocol_tables.py`."""
    assert rewritten(TEXT) == TEXT


def test_every_kind_and_protocol_name_occurs() -> None:
    missing = [kind for kind in BY_KIND if f"`{kind}`" not in TEXT]
    missing += [thing.name for thing in (*STREAM_PROTOCOLS, *TOPICS) if f"`{thing.name}`" not in TEXT]

    assert missing == []


def test_the_worked_example_is_the_vector() -> None:
    vector = json.loads((VECTORS / "cancel.json").read_text(encoding="utf-8"))
    dump = TEXT.split("```hex\n")[1].split("```")[0]

    shown = "".join(line.split("  ")[0].replace(" ", "") for line in dump.splitlines())

    assert shown == vector["hex"]
    assert vector["id"] in TEXT.replace("\n", "")
