"""Members that cheat with tasks: works that no honest buyer sends, and answers that no honest seller gives."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from node.chat import BadPrompt, ChatRequest, Unsold
from protocol import limits
from protocol.envelope import Sealed, decode, encode
from protocol.errors import MalformedMessage, MeshError
from protocol.mesh import Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    FailedFrame,
    FinishedFrame,
    ModelOffer,
    Request,
    SamplingTerms,
    Task,
    TokenLogprob,
    TokensFrame,
    Turn,
    Work,
)
from protocol.topics import JOB
from runtime.echo import echo_card
from runtime.engine import BadRequest, Sampling
from tests.node.puppet import Puppet
from tests.node.test_hostile_members import picture
from tests.node.test_tasks_journey import (
    CARDS,
    DIMENSIONS,
    EMBEDDER,
    STORY,
    TEXTS,
    ask,
    check,
    completion,
    embedding,
    words_of,
)
from tests.node.world import Daemon, Engine, World, echo_ids, echo_text

WORDS = words_of(*TEXTS)
BAD_SCHEMA = BadRequest("the schema nests 70 deep, at most 32 allowed")
CHAT = (Turn(role="user", content="hi"),)


# --- buyers -----------------------------------------------------------------------------------------------------------
async def sold(world: World, task: Task, **changes: Any) -> tuple[Daemon, Puppet, Stream, Sealed[Award]]:
    """A seller that has bid for eve's task, and the award that would follow."""
    seller, eve = await world.add("bob", engine=Engine(slots=4, cards=CARDS)), await world.puppet("eve")
    await eve.meet(seller)
    model = EMBEDDER if task == "embedding" else CARDS[0].digest
    lease_ms = 0 if task in {"embedding", "check"} else 600_000
    stream, request, bid = await eve.ask(seller, task=task, model=model)
    award = eve.award(seller.peer_id, request, bid, **{"lease_ms": lease_ms, **changes})
    return seller, eve, stream, award


FORMS: dict[str, dict[str, Any]] = {
    "chat": {},
    "completion": {"task": "completion", "turns": (), "inputs": (STORY,)},
    "embedding": {"task": "embedding", "turns": (), "inputs": TEXTS, "completion_tokens_max": len(WORDS)},
    "check": {"task": "check", "claimed": (1, 2, 3), "completion_tokens_max": 3},
}


@pytest.mark.parametrize(
    ("task", "lie"),
    [
        ("chat", {"turns": ()}),
        ("chat", {"inputs": ("more",)}),
        ("chat", {"claimed": (1,)}),
        ("completion", {"inputs": ("one", "two")}),
        ("completion", {"turns": CHAT}),
        ("embedding", {"inputs": ()}),
        ("embedding", {"completion_tokens_max": len(WORDS) + 1}),
        ("embedding", {"completion_tokens_max": len(WORDS) - 1}),
        ("embedding", {"received": WORDS}),
        ("embedding", {"sampling": SamplingTerms(schema="{}")}),
        ("check", {"claimed": ()}),
        ("check", {"completion_tokens_max": 4}),
        ("check", {"turns": ()}),
        ("chat", {"sampling": SamplingTerms(schema="{}", grammar="root ::= x")}),
    ],
    ids=lambda each: each if isinstance(each, str) else next(iter(each)),
)
async def test_a_work_without_the_form_of_its_task_is_refused(
    world: World, task: Task, lie: dict[str, Any]
) -> None:
    """No accept, no entry, no slot, one offence."""
    seller, eve, stream, award = await sold(world, task)
    before = picture(seller)

    with suppress(MeshError):
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award, **{**FORMS[task], **lie}))
    with pytest.raises(MeshError):
        await stream.receive()

    assert picture(seller) == before
    assert list(seller.engine.started) == []
    assert [each["offence"] for each in seller.events("offence_counted")] == ["malformed"]


@pytest.mark.parametrize("task", ["chat", "completion", "embedding", "check"])
async def test_a_work_with_the_form_of_its_task_is_taken(world: World, task: Task) -> None:
    """So it is the lie that the tests around this one refuse."""
    seller, eve, stream, award = await sold(world, task)

    await stream.send(award.raw)
    await eve.wire.send(stream, eve.work(award, **FORMS[task]))
    await eve.wire.receive(stream, Accept)
    await world.run(0.1)

    assert [each.task for each in seller.engine.started] == [task]


@pytest.mark.parametrize(
    ("bought", "wanted"), [("check", "chat"), ("check", "completion"), ("chat", "check")]
)
async def test_a_text_is_not_had_for_the_price_of_a_reading(world: World, bought: Task, wanted: Task) -> None:
    """A reading's bid asks nothing per token of the answer: a text done under it would be free."""
    seller, eve, stream, award = await sold(world, bought)
    before = picture(seller)

    with suppress(MeshError):
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award, **FORMS[wanted]))
    with pytest.raises(MeshError):
        await stream.receive()

    assert picture(seller) == before
    assert list(seller.engine.started) == []


@pytest.mark.parametrize("lie", [{"lease_ms": 600_000}, {"completion_micro": 1}])
async def test_an_award_makes_no_lease_and_no_price_of_a_reading(world: World, lie: dict[str, Any]) -> None:
    """Under such a lease every later text would cost its prompt alone."""
    seller, eve, stream, award = await sold(world, "check", **lie)
    before = picture(seller)

    with suppress(MeshError):
        await stream.send(award.raw)
        await eve.wire.send(stream, eve.work(award, **FORMS["check"]))
    with pytest.raises(MeshError):
        await stream.receive()

    assert picture(seller) == before
    assert list(seller.engine.started) == []


async def test_a_reading_does_not_ride_on_a_lease(world: World) -> None:
    """It has an award of its own, so that what it may cost was agreed."""
    seller, eve, stream, award = await sold(world, "chat")
    await stream.send(award.raw)
    await eve.wire.send(stream, eve.work(award))
    await eve.wire.receive(stream, Accept)
    await world.run(2)
    started = len(seller.engine.started)

    second = await eve.open(seller, JOB)
    await eve.wire.send(second, eve.work(award, job_id=b"k" * 16, **FORMS["check"]))
    with pytest.raises(MeshError):
        await second.receive()

    assert len(seller.engine.started) == started == 1


@pytest.mark.parametrize(
    ("task", "model", "told"),
    [
        ("embedding", CARDS[0].digest, "the model writes and does not embed"),
        ("chat", EMBEDDER, "the model embeds and does not write"),
        ("completion", EMBEDDER, "the model embeds and does not write"),
        ("check", EMBEDDER, "the model embeds and does not write"),
    ],
)
async def test_a_task_that_the_model_cannot_do_is_declined(
    world: World, task: Task, model: bytes, told: str
) -> None:
    """Before any award: an advert may be minutes old, or its reader careless."""
    seller, eve = await world.add("bob", engine=Engine(cards=CARDS)), await world.puppet("eve")
    await eve.meet(seller)

    _, _, answer = await eve.ask(seller, task=task, model=model)

    assert answer.message.reason == "model_missing"
    assert told in answer.message.detail


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ("x",) * (limits.INPUTS_MAX + 1)},
        {"claimed": (1,) * (limits.RECEIVED_TOKENS_MAX + 1)},
        {"claimed": (-1,)},
        {"claimed": (2**31,)},
        {"task": "training"},
        {"sampling": SamplingTerms(logit_bias=((1, 100_001),))},
        {"sampling": SamplingTerms(logit_bias=((-1, 0),))},
        {"sampling": SamplingTerms(logit_bias=((1, 0),) * (limits.LOGIT_BIASES_MAX + 1))},
        {"sampling": SamplingTerms(grammar="x" * (limits.CONSTRAINT_CHARS_MAX + 1))},
        {"sampling": SamplingTerms(top_logprobs=21)},
    ],
    ids=lambda each: next(iter(each)),
)
async def test_a_work_over_its_bounds_is_no_message(world: World, changes: dict[str, Any]) -> None:
    """It does not even come through the gate."""
    eve = await world.puppet("eve")
    award = eve.entry(
        Award,
        request=NO_HASH,
        bid=NO_HASH,
        job_id=b"j" * 16,
        attempt=1,
        seller=eve.peer_id,
        model=NO_HASH,
        adapter=NO_HASH,
        hold_micro=1,
        prompt_micro=1,
        completion_micro=1,
        lease_ms=0,
        session=NO_HASH,
    )
    honest = eve.work(award)

    assert decode(encode(honest), Work) == honest
    with pytest.raises(MalformedMessage):
        decode(encode(msgspec.structs.replace(honest, **changes)), Work)


def test_an_advert_of_vectors_that_no_model_has_is_no_message() -> None:
    """So many words would be asked for that no request could say so."""
    offer = ModelOffer(
        digest=EMBEDDER,
        architecture="echo",
        quantisation="none",
        context_tokens=512,
        tokens_per_ks=0,
        prompt_tokens_per_ks=0,
        dimensions=limits.DIMENSIONS_MAX,
    )

    assert decode(encode(offer), ModelOffer) == offer
    with pytest.raises(MalformedMessage):
        decode(encode(msgspec.structs.replace(offer, dimensions=limits.DIMENSIONS_MAX + 1)), ModelOffer)


# --- sellers ----------------------------------------------------------------------------------------------------------
Answering = Callable[[Puppet, Stream, Sealed[Award], Work], Awaitable[None]]


async def beside_an_honest_seller(world: World, answering: Answering, *, dimensions: int = 0) -> Puppet:
    """Eve is the cheaper one, and wins; what she then sends is the test's."""
    honest = await world.add("bob", engine=Engine(cards=CARDS))
    await world.acquaint(world.founder, honest)
    return await alone(world, answering, dimensions=dimensions)


async def alone(
    world: World, answering: Answering, *, dimensions: int = 0, completion_micro: int = 1
) -> Puppet:
    """Eve has met the founder, and answers as the test says."""
    eve = await world.puppet("eve")
    eve.offer(digest=EMBEDDER if dimensions else CARDS[0].digest, dimensions=dimensions)

    async def serve(stream: Stream) -> None:
        await eve.bid(stream, completion_micro=0 if dimensions else completion_micro)
        award, work = await eve.accept(stream)
        with suppress(MeshError):
            await answering(eve, stream, award, work)
            await stream.receive()

    eve.serve(JOB, serve)
    await eve.meet(world.founder)
    return eve


def logprob(**changes: Any) -> TokenLogprob:
    return msgspec.structs.replace(TokenLogprob(text=b"x", micronats=5), **changes)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Sampling(logprobs=True), ()),
        (Sampling(logprobs=True), (logprob(), logprob())),
        (Sampling(), (logprob(),)),
        (Sampling(logprobs=True), (logprob(top=((b"x", 5),)),)),
        (Sampling(logprobs=True, top_logprobs=1), (logprob(top=((b"x", 5), (b"y", 6))),)),
        (Sampling(logprobs=True), (logprob(micronats=-1),)),
        (Sampling(logprobs=True), (logprob(micronats=2**53 + 1),)),
        (Sampling(logprobs=True), (logprob(text=b"x" * 257),)),
        (Sampling(logprobs=True, top_logprobs=20), (logprob(top=((b"x", -5),)),)),
        (Sampling(logprobs=True, top_logprobs=20), (logprob(top=((b"x" * 256, 5),) * 21),)),
        (Sampling(logprobs=True, top_logprobs=20), (logprob(top=((b"x" * 256, 2**50),) * 20),) * 2),
    ],
    ids=[
        "none",
        "two of one",
        "unasked",
        "top unasked",
        "more top than asked",
        "negative",
        "beyond integers",
        "long token",
        "negative top",
        "21 top",
        "larger than a frame",
    ],
)
async def test_log_probabilities_that_were_not_asked_for_so_are_refused(
    world: World, wanted: Sampling, said: tuple[TokenLogprob, ...]
) -> None:
    """None of the frame is passed on or paid; the answer comes whole from somebody else."""

    async def answer(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
        ids = echo_ids(STORY, len(said) if len(said) == 2 and said[0].top else 1)
        await stream.send(
            encode(TokensFrame(first=0, ids=ids, text="lie", logprobs=said, contrasts=(0,) * len(ids)))
        )

    eve = await beside_an_honest_seller(world, answer)

    result = await ask(world.founder, completion(sampling=wanted))
    await world.run(1)

    assert result.text == echo_text(STORY)
    assert result.sellers[0] == eve.peer_id
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [eve.peer_id]
    assert eve.peer_id not in world.founder.accounts()


@pytest.mark.parametrize(
    "said",
    [(), (1,), (1, 2, 3), (2**31, 0), (0, -(2**31)), (0,) * 600],
    ids=["none", "too few", "too many", "too high", "too low", "a flood"],
)
async def test_contrasts_that_are_missing_too_many_or_absurd_are_refused(
    world: World, said: tuple[int, ...]
) -> None:
    """The attack: tokens that nobody can check. None of the frame is passed on or paid, and the runner-up answers."""

    async def answer(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
        frame = TokensFrame(first=0, ids=echo_ids(STORY, 2), text="lie", contrasts=said)
        await stream.send(encode(frame))

    eve = await beside_an_honest_seller(world, answer)

    result = await ask(world.founder, completion())
    await world.run(1)

    assert result.text == echo_text(STORY)
    assert result.sellers[0] == eve.peer_id
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [eve.peer_id]
    assert eve.peer_id not in world.founder.accounts()


async def test_a_check_without_contrasts_is_refused(world: World) -> None:
    """The attack: a reader that states gaps alone cannot be told from one that has read nothing."""

    async def answer(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
        await stream.send(encode(TokensFrame(first=0, ids=(0, 0), text="")))

    eve = await alone(world, answer, completion_micro=0)

    with pytest.raises(Unsold):
        await ask(world.founder, check((1, 2)))
    await world.run(1)

    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [eve.peer_id]


async def too_many_words(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(encode(TokensFrame(first=0, ids=(*WORDS, 1), text="")))


async def a_word_of_no_unit_vector(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(encode(TokensFrame(first=0, ids=(2_000_001,), text="")))


async def a_text_with_words(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(encode(TokensFrame(first=0, ids=WORDS, text="see also")))


async def a_gap_in_the_words(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(encode(TokensFrame(first=1, ids=WORDS[1:], text="")))


async def words_with_contrasts(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(encode(TokensFrame(first=0, ids=WORDS, text="", contrasts=(0,) * len(WORDS))))


async def another_count(eve: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(encode(TokensFrame(first=0, ids=WORDS, text="")))
    await eve.finish(stream, len(WORDS) + 1)


@pytest.mark.parametrize(
    "answer",
    [
        too_many_words,
        a_word_of_no_unit_vector,
        a_text_with_words,
        a_gap_in_the_words,
        words_with_contrasts,
        another_count,
    ],
    ids=lambda each: each.__name__,
)
async def test_words_that_were_not_asked_for_so_are_refused(world: World, answer: Answering) -> None:
    """An offence; whatever was right of it before is kept, and the rest comes from somebody else."""
    eve = await beside_an_honest_seller(world, answer, dimensions=DIMENSIONS)

    result = await ask(world.founder, embedding())
    await world.run(1)

    assert tuple(result.words) == WORDS
    assert result.sellers[0] == eve.peer_id
    assert [each["peer_id"] for each in world.founder.events("offence_counted")] == [eve.peer_id]


async def test_a_reading_that_ends_before_its_last_word_has_failed(world: World) -> None:
    """A vector that lacks a coordinate is none; here a shape that is no offence, since an engine may break off."""

    async def answer(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
        await stream.send(encode(TokensFrame(first=0, ids=WORDS[:7], text="")))
        await stream.send(
            encode(FinishedFrame(reason="stop", text="", prompt_tokens=10, completion_tokens=7))
        )

    eve = await beside_an_honest_seller(world, answer, dimensions=DIMENSIONS)

    result = await ask(world.founder, embedding())
    job = await world.founder.ended_job()

    assert tuple(result.words) == WORDS
    assert job.attempts[0].seller == eve.peer_id
    assert job.attempts[0].reason == "finished after 7 of 18 words"
    assert world.founder.events("offence_counted") == []


async def test_a_reading_that_drips_is_given_up(world: World) -> None:
    """A word each 1.9 s is never silence; nobody bids a speed for words, so there is a least one."""

    async def answer(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
        for place, word in enumerate(WORDS * 100):
            await stream.send(encode(TokensFrame(first=place, ids=(word,), text="")))
            await world.run(1.9)

    await alone(world, answer, dimensions=600)

    with pytest.raises(Unsold):
        await ask(world.founder, embedding())
    job = await world.founder.ended_job()

    assert job.attempts[0].reason == "far slower than it had bid"
    assert job.finished_at is not None
    assert job.finished_at - job.started_at < 20


async def test_a_bid_that_asks_for_words_is_not_awarded(world: World) -> None:
    """It is the cheapest of all, but for what it would cost."""
    honest = await world.add("bob", engine=Engine(cards=CARDS))
    await world.acquaint(world.founder, honest)
    eve = await world.puppet("eve")
    eve.offer(digest=EMBEDDER, dimensions=DIMENSIONS)
    asked: list[Request] = []

    async def serve(stream: Stream) -> None:
        asked.append((await eve.bid(stream, completion_micro=1)).message)
        with pytest.raises(MeshError):
            await stream.receive()

    eve.serve(JOB, serve)
    await eve.meet(world.founder)

    result = await ask(world.founder, embedding())

    assert result.sellers == [honest.peer_id]
    assert [(each.task, each.completion_tokens_max) for each in asked] == [("embedding", len(WORDS))]


async def refuse(_: Puppet, stream: Stream, __: Sealed[Award], ___: Work) -> None:
    await stream.send(
        encode(FailedFrame(reason="prompt", detail="the schema nests 70 deep, at most 32 allowed"))
    )


async def test_one_seller_that_refuses_a_request_is_not_believed(world: World) -> None:
    eve = await beside_an_honest_seller(world, refuse)

    result = await ask(world.founder, completion(sampling=Sampling(grammar="root ::= .+")))

    assert (result.sellers[0], result.text) == (eve.peer_id, STORY)


class Picky(Engine):
    """It takes no constraint."""

    async def _count_prompt(self, request: Any, card: Any) -> int:
        if request.sampling.grammar:
            raise BAD_SCHEMA
        return await super()._count_prompt(request, card)


async def test_what_two_engines_refuse_is_the_clients_fault(world: World) -> None:
    """`BadRequest` travels as the prompt's fault, like a prompt that is too long; and costs nothing."""
    for name in ("bob", "cat"):
        await world.add(name, engine=Picky(cards=CARDS))
    await world.acquaint(world.founder, *(world.daemons[name] for name in ("bob", "cat")))

    with pytest.raises(BadPrompt, match="nests 70 deep"):
        await ask(world.founder, completion(sampling=Sampling(grammar="root ::= .+")))
    with pytest.raises(BadPrompt, match="nests 70 deep"):
        await ask(world.daemons["bob"], completion(sampling=Sampling(grammar="root ::= .+"), privacy="local"))

    assert world.founder.accounts() == {}


async def test_liars_about_a_models_vectors_keep_nobody_from_asking(world: World) -> None:
    """Three of them say that the model embeds; whoever says that it writes is asked all the same."""
    honest = await world.add("bob", engine=Engine(cards=(echo_card(),)))
    await world.acquaint(world.founder, honest)
    for name in ("eve", "mallory", "trudy"):
        liar = await world.puppet(name)
        liar.offer(dimensions=3)
        await liar.meet(world.founder)

    request = ChatRequest(
        model="echo@00000000", messages=(), task="completion", inputs=(STORY,), privacy="mesh"
    )
    result = await ask(world.founder, request)

    assert (result.text, result.sellers) == (echo_text(STORY), [honest.peer_id])


async def test_a_check_cannot_be_drawn_towards_the_cheapest(world: World) -> None:
    """Eve would check for a price of 1 each; she is asked as often as chance has it."""
    honest = await world.add("bob", engine=Engine(cards=CARDS))
    await world.acquaint(world.founder, honest)
    eve = await world.puppet("eve")
    eve.offer(prompt_micro=0)
    await eve.meet(world.founder)

    sellers = set()
    for _ in range(8):
        with suppress(Unsold):
            sellers.update((await ask(world.founder, check((1, 2)))).sellers)

    assert honest.peer_id in sellers
