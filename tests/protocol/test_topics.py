import re

from protocol.messages import BY_KIND, Entry
from protocol.topics import (
    ADMISSION,
    ADVERT,
    ADVERTS_WANTED,
    ASSEMBLY,
    BLOB,
    ENLIST,
    HELLO,
    JOB,
    ROUND,
    SETTLE,
    STREAM_PROTOCOLS,
    SYNC,
    TOPICS,
    StreamProtocol,
)

CARRIES: dict[StreamProtocol, set[str]] = {
    HELLO: {"hello"},
    ADMISSION: {"join_request", "entries", "refusal"},
    ADVERT: {"advert"},
    ADVERTS_WANTED: {"adverts_wanted", "adverts"},
    SYNC: {"entries_wanted", "entries"},
    JOB: {"request", "bid", "decline", "award", "accept", "work", "cancel", "receipt", "countersignature"},
    SETTLE: {"settlement_wanted", "accepted", "receipt", "countersignature"},
    BLOB: {"blob_wanted", "blob_coming", "refusal"},
    ENLIST: {"enlistment", "decline"},
    ROUND: {"run_opening", "award", "accept", "decline", "round_task", "round_update"}
    | {"receipt", "countersignature"},
}


def test_every_name_is_unique_and_versioned() -> None:
    names = [thing.name for thing in (*TOPICS, *STREAM_PROTOCOLS)]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"/agora/[a-z]+/[1-9]\d*", name) for name in names)


def test_every_stream_has_room_for_what_it_carries() -> None:
    assert set(CARRIES) == set(STREAM_PROTOCOLS)
    for protocol, kinds in CARRIES.items():
        assert max(BY_KIND[kind].bytes_max for kind in kinds) <= protocol.frame_bytes_max, protocol.name


def test_the_assemblys_topic_carries_the_entries_of_its_log_and_nothing_else() -> None:
    """Nothing that happens per chat is gossiped."""
    entries = {kind for kind, form in BY_KIND.items() if issubclass(form, Entry) and form.log == "assembly"}

    assert entries == ASSEMBLY.kinds
    assert all(BY_KIND[kind].bytes_max <= ASSEMBLY.message_bytes_max for kind in ASSEMBLY.kinds)


def test_every_kind_has_a_way_to_travel() -> None:
    """An invitation travels out of band, inside an invite text; incomes and spends only ever inside `entries`."""
    carried = set().union(*CARRIES.values(), *(topic.kinds for topic in TOPICS))

    assert set(BY_KIND) - carried == {"invitation", "income", "spend"}
