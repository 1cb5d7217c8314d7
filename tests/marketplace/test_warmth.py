"""What a seller may count on, and whom it may tell."""

import pytest

from marketplace.warmth import ENTRIES_MAX, WARM_S, Prefix, Session, Warmth
from protocol import limits
from protocol.messages import NO_HASH
from tests.marketplace.parties import ANN, BOB, MODEL, SESSION

PUBLIC = Prefix(b"8 bytes!", "")
OF_ALICE = Prefix(b"8 bytes!", "alice")
OTHER_MODEL = b"h" * 32


def note(
    warmth: Warmth, key: Session | Prefix, tokens: int = 100, *, model: bytes = MODEL, now: float = 0
) -> None:
    warmth.note(key, model=model, tokens=tokens, tokens_max=10_000, now=now)


def warm(warmth: Warmth, *keys: Session | Prefix, now: float, prompt_tokens: int = 1_000) -> int:
    return warmth.tokens(*keys, prompt_tokens=prompt_tokens, now=now)


def test_the_longest_warm_beginning_counts() -> None:
    """A session's cache begins with its system prompt: they are one cache, not two."""
    warmth, session = Warmth(), Session(ANN, SESSION, MODEL, NO_HASH)
    note(warmth, PUBLIC, 100)
    note(warmth, session, 700)

    assert warm(warmth, PUBLIC, session, now=1) == 700
    assert warm(warmth, PUBLIC, now=1) == 100
    assert warm(warmth, now=1) == 0


def test_a_beginning_longer_than_the_prompt_is_none_of_it() -> None:
    """The session's name is used again for a new conversation: nothing of the old one can be promised."""
    warmth, session = Warmth(), Session(ANN, SESSION, MODEL, NO_HASH)
    note(warmth, PUBLIC, 100)
    note(warmth, session, 700)

    assert [warm(warmth, PUBLIC, session, prompt_tokens=size, now=1) for size in (99, 100, 699, 700)] == [
        0,
        100,
        100,
        700,
    ]


def test_what_was_not_used_for_long_is_cold() -> None:
    warmth = Warmth()
    note(warmth, PUBLIC, now=0)

    assert warm(warmth, PUBLIC, now=WARM_S) == 100
    assert warm(warmth, PUBLIC, now=WARM_S + 1) == 0
    assert warmth.told(now=WARM_S + 1) == ()


def test_a_session_is_warm_for_its_own_buyer_only() -> None:
    """Else a bid would tell whoever names another's session that it was here."""
    warmth = Warmth()
    note(warmth, Session(ANN, SESSION, MODEL, NO_HASH))

    assert warm(warmth, Session(BOB, SESSION, MODEL, NO_HASH), now=1) == 0


def test_a_prompt_of_one_owner_is_told_to_nobody_and_warm_for_its_devices_alone() -> None:
    warmth = Warmth()
    note(warmth, OF_ALICE)

    assert warmth.told(now=1) == ()
    assert warm(warmth, PUBLIC, now=1) == 0
    assert warm(warmth, Prefix(b"8 bytes!", "bob"), now=1) == 0
    assert warm(warmth, OF_ALICE, now=1) == 100


def test_the_newest_few_are_told() -> None:
    warmth = Warmth()
    digests = [bytes([number]) * limits.PREFIX_BYTES for number in range(limits.WARM_PREFIXES_MAX + 3)]
    for digest in digests:
        note(warmth, Prefix(digest, ""))
    note(warmth, Prefix(digests[0], ""))  # used again

    assert warmth.told(now=1) == (digests[0], *reversed(digests[4:]))


def test_no_more_is_promised_than_the_cache_can_hold() -> None:
    """Of the model's own beginnings; another model has memory of its own."""
    warmth, prefixes = Warmth(), [Prefix(bytes([number]) * 8, "") for number in range(3)]
    warmth.note(prefixes[0], model=OTHER_MODEL, tokens=900, tokens_max=1_000, now=0)
    warmth.note(prefixes[1], model=MODEL, tokens=600, tokens_max=1_000, now=0)

    warmth.note(prefixes[2], model=MODEL, tokens=500, tokens_max=1_000, now=0)

    assert [warm(warmth, prefix, now=1) for prefix in prefixes] == [900, 0, 500]


@pytest.mark.parametrize(("model", "left"), [(MODEL, 0), (OTHER_MODEL, 100)])
def test_what_an_engine_lost_is_forgotten(model: bytes, left: int) -> None:
    warmth = Warmth()
    note(warmth, PUBLIC)

    warmth.forget(model)

    assert warm(warmth, PUBLIC, now=1) == left


def test_a_dead_process_has_lost_every_models_cache() -> None:
    warmth, other = Warmth(), Prefix(b"another!", "")
    note(warmth, PUBLIC)
    note(warmth, other, model=OTHER_MODEL)

    warmth.forget_all()

    assert [warm(warmth, prefix, now=1) for prefix in (PUBLIC, other)] == [0, 0]


def test_a_flood_of_system_prompts_keeps_the_table_bounded() -> None:
    warmth = Warmth()

    for number in range(ENTRIES_MAX + 50):
        note(warmth, Prefix(number.to_bytes(8, "big"), ""), 1)

    assert len(warmth._entries) == ENTRIES_MAX
