"""What a job gives its seller to read: its form, its size, and the digest that a receipt binds."""

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.prompt import Prompt, context_wanted, tokens_charged, unfit, work_fault
from protocol.messages import SamplingTerms, Task, Turn, Work
from tests.marketplace.parties import award, work

CHAT = (Turn(role="user", content="what is an agora?"),)
PROMPTS = st.builds(
    Prompt,
    turns=st.lists(
        st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=8)),
        max_size=3,
    ).map(tuple),
    task=st.sampled_from(["chat", "completion", "embedding", "check"]),
    inputs=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    claimed=st.lists(st.integers(0, 3), max_size=3).map(tuple),
)


def job(task: Task, **changes: Any) -> Work:
    """A well formed work of a task, with some fields changed; embeddings have 4 dimensions."""
    forms: dict[Task, dict[str, Any]] = {
        "chat": {"turns": CHAT},
        "completion": {"inputs": ("once upon a time",)},
        "embedding": {"inputs": ("warm", "cold"), "completion_tokens_max": 8},
        "check": {"turns": CHAT, "claimed": (7, 8, 9), "completion_tokens_max": 3},
    }
    plain = {"task": task, "turns": (), "sampling": SamplingTerms()}
    return work(award(), **{**plain, **forms[task], **changes})


@pytest.mark.parametrize("task", ["chat", "completion", "embedding", "check"])
def test_each_task_has_a_form(task: Task) -> None:
    assert work_fault(job(task), 4) == ""


def test_a_check_takes_a_raw_text_as_well() -> None:
    assert work_fault(job("check", turns=(), inputs=("once upon a time",)), 0) == ""


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        ("chat", {"turns": ()}, "0 turns, 0 inputs and 0 claimed tokens for the task 'chat'"),
        ("chat", {"inputs": ("x",)}, "1 turns, 1 inputs"),
        ("chat", {"claimed": (1,)}, "1 claimed tokens"),
        ("completion", {"turns": CHAT}, "expected one input alone"),
        ("completion", {"inputs": ()}, "0 inputs"),
        ("completion", {"inputs": ("x", "y")}, "2 inputs"),
        ("embedding", {"turns": CHAT}, "expected inputs alone"),
        ("embedding", {"inputs": ()}, "0 inputs"),
        ("embedding", {"claimed": (1,)}, "1 claimed tokens"),
        ("embedding", {"completion_tokens_max": 9}, "9 words asked for, expected 8"),
        ("embedding", {"completion_tokens_max": 7}, "7 words asked for, expected 8"),
        ("embedding", {"stop": ("x",)}, "sampling terms for the task 'embedding'"),
        ("embedding", {"sampling": SamplingTerms(logprobs=True)}, "sampling terms for the task 'embedding'"),
        ("embedding", {"received": (1,) * 8}, "8 words asked for, and 8 of them received"),
        ("check", {"claimed": ()}, "0 claimed tokens"),
        ("check", {"inputs": ("x",)}, "expected turns or one input, and claimed tokens"),
        ("check", {"turns": ()}, "0 turns, 0 inputs"),
        ("check", {"completion_tokens_max": 4}, "4 words asked for, expected 3"),
        ("chat", {"sampling": SamplingTerms(schema="{}", grammar="root ::= x")}, "expected one of them"),
    ],
)
def test_what_no_honest_buyer_sends_is_told_apart(task: Task, changes: dict[str, Any], told: str) -> None:
    assert told in work_fault(job(task, **changes), 4)


@pytest.mark.parametrize("task", ["chat", "completion", "check"])
def test_a_model_that_embeds_does_nothing_else(task: Task) -> None:
    assert f"a {task} takes a model that writes" in unfit(task, 384)
    assert unfit(task, 0) == ""


def test_a_model_that_writes_does_not_embed() -> None:
    assert "takes an embedding model" in unfit("embedding", 0)
    assert unfit("embedding", 384) == ""


def test_inputs_are_read_one_by_one_so_their_sum_fills_no_context() -> None:
    assert context_wanted("chat", 10, 50) == context_wanted("completion", 10, 50) == 60
    assert context_wanted("check", 10, 50) == 10
    assert context_wanted("embedding", 100_000, 50) == 0


def test_no_prompt_has_more_tokens_than_bytes_and_its_templates_marks() -> None:
    turns = (Turn(role="user", content="ζῷον"), Turn(role="assistant", content="ok"))

    assert Prompt(turns).tokens_max == 9 + 2 + 2 * 16 + 256
    assert Prompt(turns, "check", claimed=(1, 2, 3)).tokens_max == 9 + 2 + 2 * 16 + 256 + 3
    assert Prompt((), "embedding", ("ζῷον", "ok")).tokens_max == 9 + 2 + 2 * 16 + 256


def test_a_prompt_is_estimated_by_its_bytes_its_places_and_its_claimed_tokens() -> None:
    assert Prompt(CHAT).estimated_tokens == 17 // 3 + 2 * 8
    assert Prompt((), "embedding", ("warm", "cold")).estimated_tokens == 8 // 3 + 3 * 8
    assert Prompt(CHAT, "check", claimed=(1, 2)).estimated_tokens == 17 // 3 + 2 * 8 + 2


@settings(derandomize=True, deadline=None)
@given(first=PROMPTS, second=PROMPTS)
def test_two_prompts_share_a_digest_only_if_they_are_the_same(first: Prompt, second: Prompt) -> None:
    assert (first.digest() == second.digest()) == (first == second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Prompt((Turn(role="user", content="ab"), *CHAT)), Prompt((Turn(role="user", content="a"), *CHAT))),
        (Prompt(inputs=("ab", "c")), Prompt(inputs=("a", "bc"))),
        (Prompt((Turn(role="user", content="a"),)), Prompt(inputs=("user", "a"))),
        (Prompt(CHAT), Prompt(CHAT, "check")),
        (Prompt(inputs=("a",), task="completion"), Prompt(inputs=("a",), task="embedding")),
        (Prompt(CHAT, "check", claimed=(1, 2)), Prompt(CHAT, "check", claimed=(2, 1))),
    ],
)
def test_no_part_of_a_prompt_can_be_moved_into_another(one: Prompt, other: Prompt) -> None:
    """A seller would else be paid for a chat by a receipt of an embedding, or for texts that nobody sent."""
    assert one.digest() != other.digest()


def test_a_text_is_paid_for_whatever_part_of_its_answer_came() -> None:
    assert tokens_charged(job("chat"), 100, 1) == tokens_charged(job("completion"), 100, 1) == 100


def test_words_that_were_received_before_are_no_part_of_the_share() -> None:
    """A successor that was asked for the last two of three words has done its work with two."""
    again = job("check", received=(0,))

    assert [tokens_charged(again, 100, words) for words in (0, 1, 2)] == [0, 50, 100]


def test_the_digest_is_over_lists_after_their_lengths() -> None:
    """As docs/PROTOCOL.md tells other implementations."""

    def texts(*each: bytes) -> bytes:
        sized = b"".join(len(text).to_bytes(4, "little") + text for text in each)
        return len(each).to_bytes(4, "little") + sized

    prompt = Prompt((Turn(role="user", content="ζ"),), "check", claimed=(258,))

    told = texts(b"check") + texts(b"user", "ζ".encode()) + texts() + bytes([1, 0, 0, 0, 2, 1, 0, 0])
    assert prompt.digest() == hashlib.sha256(told).digest()
