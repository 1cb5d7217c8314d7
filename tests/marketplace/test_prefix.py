"""The digest of a chat's beginning: the same for both sides, and for nothing else."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.prefix import leading_turns, prefix_digest, warm_prefixes
from protocol.messages import NO_HASH, Advert, Device, Turn
from tests.marketplace.parties import MODEL

SYSTEM = Turn(role="system", content="you are a heat pump")
QUESTION = Turn(role="user", content="how warm is it?")
CONTENTS = st.lists(st.text(max_size=8), min_size=1, max_size=3)


def test_it_is_what_the_protocol_says() -> None:
    """Whoever builds another client must come to the same bytes."""
    told = b"agora/prefix/1\0" + MODEL + NO_HASH + len(SYSTEM.content).to_bytes(4, "big")
    expected = hashlib.sha256(told + SYSTEM.content.encode()).digest()[:8]

    assert prefix_digest(MODEL, NO_HASH, [SYSTEM, QUESTION]) == expected


def test_only_the_leading_system_turns_count() -> None:
    other = Turn(role="user", content="and now?")

    assert leading_turns([SYSTEM, SYSTEM, QUESTION, SYSTEM]) == (SYSTEM, SYSTEM)
    assert prefix_digest(MODEL, NO_HASH, [SYSTEM, QUESTION]) == prefix_digest(
        MODEL, NO_HASH, [SYSTEM, other, SYSTEM]
    )


def test_a_chat_without_a_system_turn_has_none() -> None:
    assert prefix_digest(MODEL, NO_HASH, [QUESTION, SYSTEM]) == b""
    assert prefix_digest(MODEL, NO_HASH, []) == b""


def test_another_model_or_adapter_is_another_cache() -> None:
    digests = {
        prefix_digest(MODEL, NO_HASH, [SYSTEM]),
        prefix_digest(b"h" * 32, NO_HASH, [SYSTEM]),
        prefix_digest(MODEL, b"a" * 32, [SYSTEM]),
    }

    assert len(digests) == 3


@settings(derandomize=True, deadline=None)
@given(one=CONTENTS, other=CONTENTS)
def test_no_two_lists_of_turns_read_alike(one: list[str], other: list[str]) -> None:
    """Joined without their lengths, ["ab"] and ["a", "b"] would be one cache."""
    digests = [
        prefix_digest(MODEL, NO_HASH, [Turn(role="system", content=content) for content in contents])
        for contents in (one, other)
    ]

    assert (digests[0] == digests[1]) == (one == other)


@pytest.mark.parametrize(
    ("warm", "read"),
    [
        (b"", set()),
        (b"aaaaaaaabbbbbbbb", {b"aaaaaaaa", b"bbbbbbbb"}),
        (b"aaaaaaaabbb", {b"aaaaaaaa"}),
        (b"bbb", set()),
    ],
)
def test_an_advert_that_ends_in_mid_digest_names_the_whole_ones_alone(warm: bytes, read: set[bytes]) -> None:
    """A hostile one says what it likes: a remainder must match no chat's prefix, least of all the empty one."""
    device = Device(
        cores=1,
        memory_mib=1,
        memory_free_mib=1,
        load_percent=0,
        battery_percent=-1,
        is_charging=False,
        gpu="",
        sandbox="",
    )
    advert = Advert(
        models=(), slots=1, slots_free=1, prompt_micro=1, completion_micro=1, device=device, heads=(),
        assembly=bytes(32), addresses=(), warm=warm,
    )  # fmt: skip

    assert warm_prefixes(advert) == read
