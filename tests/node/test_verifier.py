"""Answers that were bought are checked, after they were paid, and whoever sold another model's is left alone."""

from collections.abc import AsyncGenerator
from contextlib import suppress

from node.chat import Unsold
from node.services.verifier import CHECKED, CHECKS_WAITING_MAX
from node.store import Record
from protocol.identity import PeerId
from runtime.engine import EngineDied, Frame, Generation, Sampling, Tokens
from tests.node.check_cheats import (
    QUESTION,
    READ_S,
    BusyElsewhere,
    FalseReader,
    FewWords,
    Swapper,
    buy,
    found,
)
from tests.node.world import World


# --- by the own engine --------------------------------------------------------------------------------------------------
async def test_an_own_engine_checks_when_it_has_a_free_slot_and_not_before(world: World) -> None:
    """The client has its answer and the seller its pay long before."""
    engine = BusyElsewhere()
    await world.found_again(engine=engine)
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    answer = await world.founder.chat(QUESTION)
    await world.run(30)

    assert answer.tokens == 24
    assert world.founder.balance() == -1_040
    assert found(world.founder) == ("waiting", "")
    engine.is_busy = False
    await world.run(2)
    assert found(world.founder) == (
        "passed",
        "0 of 24 tokens stray, the worst 0.00 logits below the likeliest, a mean drift of 0.00 logits",
    )
    (checked,) = [request for request in engine.started if request.task == "check"]
    assert len(checked.claimed) == checked.tokens_max == 24
    (verified,) = world.founder.events("job_verified")
    assert (verified["seller"], verified["passed"], verified["tokens"]) == (seller.peer_id, True, 24)
    assert world.founder.balance() == -1_040, "the own engine costs nothing"


async def test_a_seller_of_another_models_answers_is_caught_and_not_asked_for_a_day(world: World) -> None:
    engine = BusyElsewhere()
    await world.found_again(engine=engine)
    cheat = await world.add("bob", engine=Swapper(), price_completion_micro=1)
    await world.acquaint(world.founder, cheat)
    await world.founder.chat(QUESTION)
    engine.is_busy = False
    await world.run(READ_S)

    engine.is_busy = True
    with suppress(Unsold):  # unless its own engine takes it all the same
        await world.founder.chat(QUESTION)

    assert len(cheat.engine.started) == 1
    assert world.founder.node.jobs()[-1].verification == "caught"
    assert [each["seller"] for each in world.founder.events("seller_caught")] == [cheat.peer_id]
    (peer,) = [each for each in world.founder.node.peers() if each.peer_id == cheat.peer_id]
    assert (peer.answers_checked, peer.answers_caught) == (1, 1)


async def test_a_caught_seller_is_asked_again_after_a_day_when_nobody_else_is_there(world: World) -> None:
    engine = BusyElsewhere()
    await world.found_again(engine=engine)
    cheat = await world.add("bob", engine=Swapper(), price_completion_micro=1)
    await world.acquaint(world.founder, cheat)
    reputation = world.founder.node.reputation
    yesterday_ms = world.founder.clock.utc_ms() - 86_400_001
    reputation.judged(cheat.peer_id, is_passed=False, utc_ms=yesterday_ms)

    alone = await world.founder.chat(QUESTION)
    honest = await world.add("cat", price_completion_micro=100)
    await world.acquaint(world.founder, honest, cheat)
    beside = await world.founder.chat(QUESTION)

    assert [started.seller for started in alone.started] == [cheat.peer_id]
    assert [started.seller for started in beside.started] == [honest.peer_id]


async def test_what_was_found_out_survives_a_restart_and_a_waiting_check_does_not(world: World) -> None:
    """Prompts are in no store."""
    engine = BusyElsewhere()
    await world.found_again(engine=engine)
    cheat = await world.add("bob", engine=Swapper(), price_completion_micro=1)
    await world.acquaint(world.founder, cheat)
    await world.founder.chat(QUESTION)
    engine.is_busy = False
    await world.run(READ_S)
    honest = await world.add("cat")
    await world.acquaint(world.founder, honest)
    engine.is_busy = True
    await world.founder.chat(QUESTION)
    await world.run(1)
    assert found(world.founder)[0] == "waiting"

    await world.founder.restart()

    record = world.founder.node.reputation.of(cheat.peer_id)
    assert (record.judged, record.caught) == (1, 1)
    assert record.is_barred(world.founder.clock.utc_ms())
    assert found(world.founder) == ("unverified", "this device was restarted before the check")


async def test_each_seller_of_a_broken_answer_is_judged_by_its_own_tokens(world: World) -> None:
    """The first cheats and dies, the second goes on honestly from what the client has."""
    engine = BusyElsewhere()
    await world.found_again(engine=engine)
    dying = Swapper()
    dying.die_after = 8
    cheat = await world.add("bob", engine=dying, price_completion_micro=1)
    honest = await world.add("cat")
    await world.acquaint(world.founder, cheat, honest)

    await world.founder.chat(QUESTION)
    engine.is_busy = False
    await world.run(30)

    attempts = {each.seller: each for each in world.founder.node.jobs()[0].attempts}
    assert attempts[cheat.peer_id].verification == "caught"
    assert attempts[honest.peer_id].verification == "passed"
    assert world.founder.node.jobs()[0].verification == "caught"
    assert [each["seller"] for each in world.founder.events("seller_caught")] == [cheat.peer_id]


async def test_an_own_engine_that_dies_accuses_nobody(world: World) -> None:
    engine = BusyElsewhere()
    await world.found_again(engine=engine)
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    await world.founder.chat(QUESTION)

    async def die(_request: Generation) -> AsyncGenerator[Frame, None]:
        raise EngineDied("the child process died")
        yield Tokens((), "")

    engine.generate = die  # type: ignore[assignment,method-assign]
    engine.is_busy = False
    await world.run(READ_S)

    assert found(world.founder) == ("unverified", "the own engine could not check it: the child process died")
    assert world.founder.node.reputation.of(seller.peer_id).judged == 0


# --- what is not checked ------------------------------------------------------------------------------------------------
async def test_a_short_answer_drawn_by_chance_is_shown_as_unverified(world: World) -> None:
    """A mean over three tokens tells nothing, and each of them was possible."""
    await world.found_again(engine=BusyElsewhere())
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)

    await buy(world.founder, sampling=Sampling(temperature_ppm=700_000), tokens_max=3)

    reason = "it has 3 tokens, which need not be the likeliest; such answers are checked from 8 tokens on"
    assert found(world.founder) == ("unverified", reason)
    (unverified,) = world.founder.events("job_unverified")
    assert unverified["reason"] == reason
    assert world.founder.events("answer_drawn") == []


async def test_what_only_the_owners_devices_may_read_nobody_else_checks(world: World) -> None:
    """The attack: a seller of another owner learns a private prompt by being asked to check its answer."""
    await world.found_again(buy_checks=True)
    own, stranger = await world.add("bob", owner="ann"), await world.add("cat")
    await world.acquaint(world.founder, own, stranger)

    await buy(world.founder, privacy="owner")

    assert found(world.founder) == (
        "unverified",
        "this device does not hold the model, and privacy 'owner' lets no second seller read the prompt",
    )
    assert list(stranger.engine.started) == []


async def test_an_owner_who_pays_for_no_checks_buys_none(world: World) -> None:
    seller, reader = await world.add("bob"), await world.add("cat", price_completion_micro=100)
    await world.acquaint(world.founder, seller, reader)

    await buy(world.founder)

    assert found(world.founder)[0] == "unverified"
    assert list(reader.engine.started) == []


async def test_more_answers_than_can_wait_are_unverified_and_cost_no_memory(world: World) -> None:
    await world.found_again(engine=BusyElsewhere())
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    for _ in range(CHECKS_WAITING_MAX + 2):  # one is with the engine, and does not wait any more
        await world.founder.chat("hi", tokens_max=1)
        await world.run(0.5)

    assert found(world.founder) == (
        "unverified",
        f"{CHECKS_WAITING_MAX} answers were waiting for their check",
    )


# --- by a second seller -------------------------------------------------------------------------------------------------
async def test_a_second_seller_of_another_owner_reads_what_any_member_may(world: World) -> None:
    await world.found_again(buy_checks=True)
    seller = await world.add("bob")
    twin, reader = (
        await world.add("bobs other", owner="bob", price_completion_micro=100),
        await world.add("cat", price_completion_micro=100),
    )
    await world.acquaint(world.founder, seller, twin, reader)

    await buy(world.founder)

    assert found(world.founder)[0] == "passed"
    (bought,) = world.founder.events("check_bought")
    assert (bought["seller"], bought["reader"]) == (seller.peer_id, reader.peer_id)
    assert [request.task for request in reader.engine.started] == ["check"]
    assert list(twin.engine.started) == []
    assert reader.balance() > 0, "it is paid for what it read"


async def test_two_readers_of_different_owners_condemn(world: World) -> None:
    await world.found_again(buy_checks=True)
    cheat = await world.add("bob", engine=Swapper(), price_completion_micro=1)
    readers = [await world.add(name) for name in ("cat", "dan", "eve")]
    await world.acquaint(world.founder, cheat, *readers)

    await buy(world.founder)

    assert found(world.founder)[0] == "caught"
    bought = world.founder.events("check_bought")
    assert len({each["reader"] for each in bought}) == len(bought) == 2


async def test_one_reader_who_lies_condemns_nobody(world: World) -> None:
    """The attack: whoever reads the answers of its competitors has them barred."""
    await world.found_again(buy_checks=True)
    seller = await world.add("bob")
    liar = await world.add("cat", engine=FalseReader(), price_completion_micro=100)
    await world.acquaint(world.founder, seller, liar)

    await buy(world.founder)

    verification, detail = found(world.founder)
    assert verification == "unverified"
    assert detail.startswith("one reader finds that 24 of 24 tokens stray")
    assert world.founder.node.reputation.of(seller.peer_id).caught == 0
    assert world.founder.events("seller_caught") == []


async def test_readers_who_do_not_agree_leave_it_open(world: World) -> None:
    await world.found_again(buy_checks=True)
    seller = await world.add("bob")
    liar = await world.add("cat", engine=FalseReader(), price_completion_micro=100)
    honest = await world.add("dan", price_completion_micro=100)
    await world.acquaint(world.founder, seller, liar, honest)

    for _ in range(6):
        await buy(world.founder)

    assert world.founder.events("seller_caught") == []
    assert {
        job.attempts[-1].verification_detail for job in world.founder.node.jobs() if job.verification
    } >= {"two readers of other owners do not agree"}


async def test_a_reader_that_says_too_little_is_not_believed(world: World) -> None:
    await world.found_again(buy_checks=True)
    seller = await world.add("bob")
    reader = await world.add("cat", engine=FewWords(), price_completion_micro=100)
    await world.acquaint(world.founder, seller, reader)

    await buy(world.founder)

    assert found(world.founder)[0] == "unverified"
    assert world.founder.node.reputation.of(seller.peer_id).judged == 0


async def test_a_record_of_a_seller_is_kept_by_its_key(world: World) -> None:
    await world.found_again(engine=(engine := BusyElsewhere()))
    seller = await world.add("bob")
    await world.acquaint(world.founder, seller)
    engine.is_busy = True
    await world.founder.chat(QUESTION)
    engine.is_busy = False
    await world.run(READ_S)

    kept: list[Record] = [each for each in await world.founder.backup() if each.kind == CHECKED]

    assert [PeerId(each.key.decode()) for each in kept] == [seller.peer_id]
