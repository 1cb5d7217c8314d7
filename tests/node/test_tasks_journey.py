"""Completions, embeddings and checks from the question to the last receipt: the same lanes as a chat's."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

from node.chat import BadPrompt, ChatDelta, ChatFinished, ChatRequest, StillLoading, Unsold
from node.views import JobView
from protocol.messages import Task
from runtime.echo import ECHO_MODEL, echo_card, token_bytes
from runtime.echo_words import GAP_MILLI, ONE, vector_words
from runtime.engine import ChatMessage, Digest, FinishReason, Sampling, TokenLogprob
from tests.node.world import Daemon, Engine, World, echo_ids, echo_text

EMBEDDER = Digest(bytes(31) + b"v")
DIMENSIONS = 6
TEXTS = ("a warm house", "a cold one", "beans")
CARDS = (echo_card(), echo_card(EMBEDDER, "echo-vectors", dimensions=DIMENSIONS))
STORY = "once upon a time"


def words_of(*texts: str) -> tuple[int, ...]:
    return tuple(word for text in texts for word in vector_words(text, DIMENSIONS))


def embedding(*texts: str, **changes: Any) -> ChatRequest:
    request = ChatRequest(model="auto", messages=(), task="embedding", inputs=texts or TEXTS, privacy="mesh")
    return replace(request, **changes)


def completion(text: str = STORY, **changes: Any) -> ChatRequest:
    request = ChatRequest(model="auto", messages=(), task="completion", inputs=(text,), privacy="mesh")
    return replace(request, **changes)


def check(claimed: tuple[int, ...], words: str = STORY, **changes: Any) -> ChatRequest:
    messages = (ChatMessage("user", words),)
    request = ChatRequest(model="auto", messages=messages, task="check", claimed=claimed, privacy="mesh")
    return replace(request, **changes)


@dataclass
class Result:
    """All that a client got of one request."""

    text: str = ""
    words: list[int] = field(default_factory=list)
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    sellers: list[str] = field(default_factory=list)
    finished: ChatFinished | None = None


async def ask(daemon: Daemon, request: ChatRequest, *, at: Callable[[Result], None] | None = None) -> Result:
    """Ask and read to the end; `at` sees the result as it grows."""
    result = Result()
    async with aclosing(daemon.node.chat(request)) as events:
        async for event in events:
            match event:
                case ChatDelta():
                    result.text += event.text
                    result.words.extend(event.words)
                    result.tokens += event.tokens
                    result.logprobs.extend(event.logprobs)
                    if at is not None:
                        at(result)
                case ChatFinished():
                    result.finished = event
                case _:
                    result.sellers.append(event.seller)
    return result


async def seller(world: World, name: str, **settings: Any) -> Daemon:
    """A device that holds a model that writes and one that embeds."""
    engine = settings.pop("engine", None) or Engine(cards=CARDS)
    daemon = await world.add(name, engine=engine, **settings)
    await world.acquaint(world.founder, daemon)
    return daemon


# --- bought and paid --------------------------------------------------------------------------------------------------
async def test_a_completion_goes_on_from_a_raw_text_and_is_paid_like_a_chat(world: World) -> None:
    """6 prompt tokens of 3 bytes at 10, and 24 of the answer at 40; no role and no template is around it."""
    bob = await seller(world, "bob")

    result = await ask(world.founder, completion())
    await world.run(1)

    assert (result.text, result.tokens) == (echo_text(STORY), 24)
    assert result.finished is not None
    assert (result.finished.reason, result.finished.prompt_tokens) == (FinishReason.STOP, 6)
    (done,) = bob.engine.started
    assert (done.task, done.inputs, done.messages) == ("completion", (STORY,), ())
    assert world.founder.accounts() == {world.founder.peer_id: -1_020, bob.peer_id: 1_020}
    assert (await world.founder.ended_job()).kind == "completion"


async def test_the_turns_of_a_session_that_completes_texts_share_a_lease(world: World) -> None:
    bob = await seller(world, "bob")

    for _ in range(2):
        await ask(world.founder, completion(session=b"s" * 32))
        await world.run(1)

    asked = [job for job in world.founder.node.jobs() if job.kind == "completion"]
    assert [job.attempts[0].is_lease for job in asked] == [True, False]
    assert len(world.founder.node.ledger().receipts) == len(bob.engine.started) == 2


async def test_an_embedding_brings_the_vectors_of_all_texts_and_its_prompt_alone_is_paid(
    world: World,
) -> None:
    """12, 10 and 5 bytes are 4, 4 and 2 tokens of the echo, at 10 micro-credits."""
    bob = await seller(world, "bob")

    result = await ask(world.founder, embedding())
    job = await world.founder.ended_job()

    assert tuple(result.words) == words_of(*TEXTS)
    assert all(0 <= word <= 2 * ONE for word in result.words)
    assert (result.text, result.tokens) == ("", 0)
    assert (job.kind, job.state, job.model) == ("embedding", "settled", "echo@00000000")
    (bid,) = job.attempts[0].bids
    assert (bid.prompt_micro, bid.completion_micro) == (10, 0)
    (receipt,) = world.founder.node.ledger().receipts
    assert (receipt.prompt_tokens, receipt.completion_tokens, receipt.amount_micro) == (10, 18, 100)
    assert world.founder.accounts() == bob.accounts() == {world.founder.peer_id: -100, bob.peer_id: 100}


async def test_a_check_brings_the_gap_of_each_claimed_token(world: World) -> None:
    """The third token is not what the echo would have said; the rest of a true answer has no gaps."""
    await seller(world, "bob")
    true = echo_ids(STORY, 5)
    claimed = (*true[:2], true[0] + 1, *true[3:])

    result = await ask(world.founder, check(claimed))

    assert result.words == [0, 0, GAP_MILLI, 0, 0]
    job = await world.founder.ended_job()
    assert (job.kind, job.attempts[0].bids[0].completion_micro) == ("check", 0)
    assert job.price_micro == 10 * (8 + 5)  # prompt and claimed tokens alike are read


async def test_the_own_engine_reads_without_a_market(world: World) -> None:
    own = await world.add("cat", engine=Engine(cards=CARDS))

    assert tuple((await ask(own, embedding(privacy="local"))).words) == words_of(*TEXTS)
    assert own.accounts() == {}


async def test_log_probabilities_come_one_for_each_token(world: World) -> None:
    bob = await seller(world, "bob", engine=Engine(cards=CARDS, tokens_per_frame=4))
    bias = (int.from_bytes(b"\1once"[:4], "big"), -100_000)
    sampling = Sampling(logprobs=True, top_logprobs=2, logit_bias=(bias,), grammar="root ::= .+")

    result = await ask(world.founder, completion(sampling=sampling))

    pieces = [STORY.encode()[at : at + 3] for at in range(0, len(STORY), 3)]
    assert result.logprobs == [TokenLogprob(piece, 0, ((piece, 0),)) for piece in pieces]
    assert result.text == STORY
    assert bob.engine.started[0].sampling == sampling
    await world.run(1)
    assert (
        len(world.founder.node.ledger().receipts) == 1
    )  # the terms are hashed into it, so they arrived whole


async def test_a_buyer_is_named_to_the_engine_that_works_for_it(world: World) -> None:
    """Slots are shared between payers; this device's own user has no name."""
    bob = await seller(world, "bob")

    await ask(world.founder, completion())
    await ask(bob, completion())

    assert [each.payer for each in bob.engine.started] == [world.founder.peer_id, ""]


# --- who can, who may -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (embedding(model="echo@00000000"), "does not embed"),
        (completion(model="vectors"), "a completion takes a model that writes"),
        (check((1,), model="vectors"), "a check takes a model that writes"),
    ],
)
async def test_a_task_that_the_model_cannot_do_is_refused_before_anybody_is_asked(
    world: World, request_: ChatRequest, told: str
) -> None:
    """Found in the adverts, where the vectors' dimensions stand."""
    bob = await seller(world, "bob", engine=Engine(cards=(echo_card(), replace(CARDS[1], digest=OTHER))))
    request = replace(request_, model=f"model@{OTHER.hex()[:8]}") if request_.model == "vectors" else request_

    with pytest.raises(BadPrompt, match=told):
        await ask(world.founder, request)

    assert list(bob.engine.started) == []
    assert world.founder.node.jobs() == []


OTHER = Digest(b"v" * 32)


async def test_auto_is_a_model_that_can_do_the_task(world: World) -> None:
    """However many hold the other one."""
    bob = await seller(world, "bob")
    await seller(world, "cat", engine=Engine(cards=CARDS[:1]))
    await seller(world, "dan", engine=Engine(cards=CARDS[1:]))

    await ask(world.founder, embedding())
    await ask(world.founder, completion())

    jobs = [job for job in world.founder.node.jobs() if job.kind != "check"]
    assert [job.digest for job in jobs] == [ECHO_MODEL.hex(), EMBEDDER.hex()]
    assert bob.peer_id in {peer for job in jobs for peer in job.attempts[0].asked}


async def test_a_seller_that_says_the_model_has_other_dimensions_is_not_asked(world: World) -> None:
    """So many words are asked for as most say; who lies about it would only let the job down."""
    honest = [await seller(world, name) for name in ("bob", "cat")]
    liar = await seller(
        world, "eve", engine=Engine(cards=(replace(CARDS[1], dimensions=5),)), price_prompt_micro=1
    )

    result = await ask(world.founder, embedding())

    assert tuple(result.words) == words_of(*TEXTS)
    (attempt,) = (await world.founder.ended_job()).attempts
    assert set(attempt.asked) == {each.peer_id for each in honest}
    assert liar.peer_id not in attempt.asked


@pytest.mark.parametrize("task", ["chat", "completion", "embedding", "check"])
async def test_a_request_without_its_parts_is_the_clients_fault(world: World, task: Task) -> None:
    await seller(world, "bob")

    with pytest.raises(BadPrompt, match="0 turns, 0 inputs and 0 claimed tokens for the task"):
        await ask(world.founder, ChatRequest(model="auto", messages=(), task=task, privacy="mesh"))


async def test_a_job_that_no_stream_carries_is_the_clients_fault(world: World) -> None:
    await seller(world, "bob")

    with pytest.raises(BadPrompt, match="bytes, at most 261632 travel to a seller"):
        await ask(world.founder, embedding("x" * 300_000))


async def test_a_check_is_drawn_by_lot_and_never_by_the_owner_that_is_checked(world: World) -> None:
    """The cheapest could be cheap in order to be asked. Eve's other device is as good as eve."""
    eve = await seller(world, "eve")
    twin = await seller(world, "eve's other", owner="eve", price_prompt_micro=1)
    others = [await seller(world, name, price_prompt_micro=5 + at) for at, name in enumerate(["bob", "cat"])]

    drawn = set()
    for _ in range(12):
        await ask(world.founder, check((1, 2), not_by=frozenset({eve.peer_id})))
        (attempt,) = (await world.founder.ended_job()).attempts
        assert len(attempt.asked) == 1
        drawn.update(attempt.asked)

    assert drawn == {each.peer_id for each in others}
    assert list(twin.engine.started) == []


async def test_a_check_that_nobody_else_may_do_is_not_sold(world: World) -> None:
    eve = await seller(world, "eve")

    with pytest.raises(Unsold):
        await ask(world.founder, check((1, 2), not_by=frozenset({eve.peer_id})))


async def test_a_device_does_not_check_itself(world: World) -> None:
    """`not_by` holds for the own engine as well."""
    bob = await seller(world, "bob")
    cat = await seller(world, "cat")
    await world.acquaint(cat, bob)

    result = await ask(cat, check((1, 2), not_by=frozenset({cat.peer_id})))

    assert result.sellers == [bob.peer_id]


# --- failover and claims ----------------------------------------------------------------------------------------------
def story(job: JobView) -> list[tuple[str, int, str]]:
    return [(each.seller, each.tokens, each.outcome) for each in job.attempts]


@pytest.mark.parametrize("place", [0, 4, 6, 7, 17])
async def test_an_embedding_goes_on_behind_the_last_word_that_came(world: World, place: int) -> None:
    """Texts that are done are read by nobody again; of the one under way the words that came are not sent again."""
    first = await seller(world, "bob")
    second = await seller(world, "cat", price_prompt_micro=60)
    first.engine.die_after = place

    result = await ask(world.founder, embedding())
    job = await world.founder.ended_job()

    assert tuple(result.words) == words_of(*TEXTS)
    assert story(job) == [(first.peer_id, place, "failed"), (second.peer_id, 18 - place, "settled")]
    (again,) = second.engine.started
    assert again.inputs == TEXTS[place // DIMENSIONS :]
    assert again.received == words_of(*TEXTS)[place // DIMENSIONS * DIMENSIONS : place]


async def test_a_check_goes_on_behind_the_last_gap_that_came(world: World) -> None:
    """Its whole prompt is read again: each gap depends on all tokens before."""
    true = echo_ids(STORY, 6)
    sellers = [await seller(world, name) for name in ("bob", "cat")]  # the lot says which of them is first
    for each in sellers:
        each.engine.die_after = 4

    result = await ask(world.founder, check(true))

    assert result.words == [0] * 6
    starts = [start for each in sellers for start in each.engine.started]
    assert sorted(start.received for start in starts) == [(), (0,) * 4]
    assert {start.claimed for start in starts} == {true}


async def test_a_completion_goes_on_at_the_next_seller(world: World) -> None:
    first = await seller(world, "bob")
    second = await seller(world, "cat", price_completion_micro=60)
    first.engine.die_after = 7

    result = await ask(world.founder, completion())

    assert result.text == echo_text(STORY)
    (again,) = second.engine.started
    assert (again.inputs, again.received) == ((STORY,), echo_ids(STORY, 7))


async def test_log_probabilities_go_on_where_the_tokens_do(world: World) -> None:
    first = await seller(world, "bob")
    await seller(world, "cat", price_completion_micro=60)
    first.engine.die_after = 7

    result = await ask(world.founder, completion(sampling=Sampling(logprobs=True)))

    assert [each.text for each in result.logprobs] == [token_bytes(token) for token in echo_ids(STORY, 24)]


async def test_a_reading_that_failed_before_its_first_word_costs_nothing(world: World) -> None:
    first = await seller(world, "bob")
    second = await seller(world, "cat", price_prompt_micro=60)
    first.engine.die_after = 0

    await ask(world.founder, embedding())
    await world.run(10)

    assert world.founder.accounts() == {world.founder.peer_id: -600, second.peer_id: 600}


async def test_a_reading_that_broke_off_is_claimed_for_the_share_that_came(world: World) -> None:
    """9 of 18 words: 5 of the 10 prompt tokens, at 10. Its successor read two texts of 6 tokens, at 60, and brought all the rest."""
    first = await seller(world, "bob")
    second = await seller(world, "cat", price_prompt_micro=60)

    def cut(result: Result) -> None:
        if len(result.words) == 9 and result.sellers == [first.peer_id]:
            world.network.disconnect(world.founder.peer_id, first.peer_id)

    first.engine.stall_after = 9
    result = await ask(world.founder, embedding(), at=cut)
    await world.run(10)

    assert tuple(result.words) == words_of(*TEXTS)
    receipts = {each.payee: each for each in world.founder.node.ledger().receipts}
    assert {peer: (each.prompt_tokens, each.amount_micro) for peer, each in receipts.items()} == {
        first.peer_id: (5, 50),
        second.peer_id: (6, 360),
    }
    assert first.accounts()[first.peer_id] == 50


async def test_a_whole_reading_whose_countersignature_was_lost_is_claimed_after_a_restart_of_its_seller(
    world: World,
) -> None:
    """The seller hears no more of its buyer from the first word on. Its next life presents the receipt again."""
    bob = await seller(world, "bob")

    def cut(_: Result) -> None:
        world.network.cut(world.founder.peer_id, bob.peer_id)

    result = await ask(world.founder, embedding(), at=cut)
    await bob.kill()
    world.heal()
    assert tuple(result.words) == words_of(*TEXTS)
    assert bob.accounts() == {}
    await bob.start()
    await world.run(30)

    assert bob.accounts() == world.founder.accounts() == {world.founder.peer_id: -100, bob.peer_id: 100}
    assert (await world.founder.ended_job()).price_micro == 100


async def test_a_buyer_that_hangs_up_before_the_last_word_has_not_read_for_nothing(world: World) -> None:
    """17 of 18 words are all the vectors but one coordinate: 10 of 10 prompt tokens, by the share rounded up."""
    bob = await seller(world, "bob", engine=Engine(cards=CARDS))
    bob.engine.stall_after = 17

    async with aclosing(world.founder.node.chat(embedding())) as events:
        words = 0
        async for event in events:
            words += len(event.words) if isinstance(event, ChatDelta) else 0
            if words == 17:
                break
    await world.run(30)

    (receipt,) = bob.node.ledger().receipts
    assert (receipt.completion_tokens, receipt.amount_micro) == (17, 100)


async def test_a_client_that_leaves_stops_the_reading(world: World) -> None:
    bob = await seller(world, "bob", engine=Engine(cards=CARDS, prompt_seconds_per_token=5.0))

    with trio.move_on_after(3):
        await ask(world.founder, embedding())
    await world.run(3)

    job = await world.founder.ended_job()
    assert job.state == "cancelled"
    assert bob.engine.status(EMBEDDER).slots_free == 1


# --- a model that loads -----------------------------------------------------------------------------------------------
async def test_a_device_whose_model_still_loads_says_so_when_nobody_else_can(world: World) -> None:
    own = await world.add("cat", engine=Engine(cards=CARDS, load_seconds=30.0))

    with pytest.raises(StillLoading) as told:
        await ask(own, completion())
    await world.run(15)
    with pytest.raises(StillLoading) as later:
        await ask(own, completion(privacy="local"))
    await world.run(20)

    assert (told.value.done, told.value.retry_after_s) == (0, pytest.approx(30, abs=1))
    assert (later.value.done, later.value.retry_after_s) == (
        pytest.approx(0.5, abs=0.05),
        pytest.approx(15, abs=2),
    )
    assert (await ask(own, completion(privacy="local"))).text == echo_text(STORY)


async def test_while_the_own_model_loads_others_are_asked(world: World) -> None:
    own = await world.add("cat", engine=Engine(cards=CARDS, load_seconds=30.0))
    bob = await seller(world, "bob")
    await world.acquaint(own, bob)

    result = await ask(own, completion())

    assert result.text == echo_text(STORY)
    assert result.sellers[-1] == bob.peer_id


async def test_a_buyer_waits_for_a_seller_whose_model_loads(world: World) -> None:
    """Longer than any standstill: its progress frames advance."""
    await seller(world, "bob", engine=Engine(cards=CARDS, load_seconds=60.0))

    result = await ask(world.founder, completion())

    assert result.text == echo_text(STORY)
    assert len((await world.founder.ended_job()).attempts) == 1


@pytest.mark.parametrize("here", [False, True])
async def test_a_cap_that_the_client_named_and_that_does_not_fit_is_its_fault(
    world: World, here: bool
) -> None:
    """Who named none gets as much as the context has room for; nobody is paid for a refusal."""
    card = echo_card(context_tokens=64)
    seller_of_few = await seller(world, "bob", engine=Engine(cards=(card,)))
    asker = seller_of_few if here else world.founder
    told = "max_tokens is 60, expected 58 at most: the prompt has 6 tokens of the context's 64"

    with pytest.raises(BadPrompt, match=told):
        await ask(asker, completion(tokens_max=60, tokens_wanted=60))
    await world.run(1)

    assert set(world.founder.accounts().values()) <= {0}
    for fitting in (completion(tokens_max=60), completion(tokens_max=58, tokens_wanted=58)):
        assert (await ask(asker, fitting)).text == echo_text(STORY)
