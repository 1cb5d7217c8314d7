"""From a manifest to a served patch: voted on, ratified, loaded by all, and followed by its name."""

import pytest
import trio

from marketplace.assembly.ballot import BallotState
from node.chat import UnknownModelName, Unsold
from node.patches import HELD_BACK
from node.simulation.toys import LINE, digest_of
from protocol.messages import NO_HASH
from runtime.engine import EngineDied
from tests.node.patch_town import (
    WITH_A_HUMAN,
    Said,
    Town,
    adapter,
    answer,
    events,
    loaded,
    own_votes,
)


async def test_a_proposal_that_heals_is_voted_ratified_loaded_and_served(town: Town) -> None:
    """The thinnest path: nobody but the proposer had the file, and nobody was asked anything."""
    await town.seat(voters=2)
    await town.open()
    healing = adapter()

    manifest = await town.propose(healing)
    await town.until_served(manifest)

    assert [[vote.is_yes for vote in own_votes(each)] for each in town.voters] == [[True]] * 3
    assert town.state(manifest) is BallotState.RATIFIED
    held = {digest_of(healing): manifest.message.base}
    assert [dict(each.engine.adapters) for each in town.voters] == [held] * 3
    said = await town.chat(town.voters[1])
    assert (said.text, said.model) == (answer(healing), f"{LINE}+v1")


async def test_a_patch_waits_for_its_human_and_is_served_within_two_seconds_of_the_word(town: Town) -> None:
    """Votes alone change nothing where the charter asks for a human; then every engine has it at once."""
    await town.seat(voters=2, terms=WITH_A_HUMAN)
    seller = await town.seller()
    await town.open()
    healing = adapter()
    manifest = await town.propose(healing)
    await town.world.until(lambda: town.state(manifest) is BallotState.CERTIFIED)
    await town.world.run(30)
    assert [loaded(each) for each in town.everybody] == [[]] * 4
    assert seller.blobs.has(digest_of(healing))

    await town.learning.approve(manifest.id)
    took_s = await town.until_served(manifest)

    assert took_s < 2.0
    assert (await town.chat(town.founder)).text == answer(healing)


async def test_names_pin_a_version_an_adapter_or_the_bare_base(town: Town) -> None:
    """And the plain name follows the head."""
    await town.seat()
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    await town.ratified(first)
    await town.ratified(second)
    buyer = town.voters[2]

    said = {
        name: (await town.chat(buyer, name)).text
        for name in (
            LINE,
            f"{LINE}+v1",
            f"{LINE}+v2",
            f"{LINE}+{digest_of(first).hex()[:8]}",
            f"{LINE}+base",
            "auto",
        )
    }

    assert said == {
        LINE: answer(second),
        f"{LINE}+v1": answer(first),
        f"{LINE}+v2": answer(second),
        f"{LINE}+{digest_of(first).hex()[:8]}": answer(first),
        f"{LINE}+base": answer(None),
        "auto": answer(second),
    }
    listed = {view.id: view.adapter for view in buyer.node.models() if not view.dimensions}
    assert listed == {
        LINE: digest_of(second).hex(),
        f"{LINE}+v2": digest_of(second).hex(),
        f"{LINE}+v1": digest_of(first).hex(),
        f"{LINE}+base": "",
    }
    for unknown in (
        f"{LINE}+v3",
        f"{LINE}+v0",
        f"{LINE}+",
        f"{LINE}+v1+v2",
        f"{LINE}+{'0' * 8}",
        f"{LINE}+v{'9' * 40}",
    ):
        with pytest.raises(UnknownModelName):
            await town.chat(buyer, unknown)


async def test_who_only_buys_gets_the_patched_answer_from_a_seller_and_its_receipt_binds_the_adapter(
    town: Town,
) -> None:
    """The buyer holds no model, so all that it knows of the adapter is the certificate and what was signed."""
    await town.seat()
    buyer = await town.buyer()
    await town.open()
    healing = adapter()
    await town.ratified(healing, by=town.voters[1])

    said = await town.chat(buyer)
    await town.world.run(1)

    (payment,) = buyer.node.logbook.ledger.payments()
    assert said.text == answer(healing)
    assert payment.receipt.message.adapter == digest_of(healing)
    award = buyer.node.logbook.ledger.award(payment.receipt.message.award)
    assert award is not None
    assert award.message.adapter == digest_of(healing)
    assert buyer.node.jobs()[0].adapter == digest_of(healing).hex()


async def test_while_nobody_serves_a_new_head_its_plain_name_is_answered_with_what_was_before(
    town: Town,
) -> None:
    """No request is dropped at a switch: but who names the version gets no other one."""
    await town.seat()
    buyer = await town.buyer()
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    await town.ratified(first)
    nowhere = await town.propose(second, is_held=False)
    await town.vote_by_hand(nowhere)
    await town.world.until(lambda: town.state(nowhere, buyer) is BallotState.RATIFIED, within_s=120)

    said = [await town.chat(each) for each in (buyer, town.founder)]

    assert [(each.text, each.model) for each in said] == [(answer(first), f"{LINE}+v1")] * 2
    with pytest.raises(Unsold) as refused:
        await town.chat(buyer, f"{LINE}+v2")
    assert {each.reason for each in refused.value.declines} == {"model_missing"}


async def test_answers_that_run_through_a_switch_end_as_they_began_and_none_is_dropped(town: Town) -> None:
    """Chats are asked all the time while a patch comes into force: each is one adapter's from its first word to its last."""
    await town.seat()
    buyer = await town.buyer()
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    await town.ratified(first)
    texts: list[str] = []

    async def ask(by: int) -> None:
        texts.append((await town.chat([buyer, *town.voters][by % 4])).text)

    manifest = await town.propose(second)
    await town.world.until(lambda: town.state(manifest) is BallotState.CERTIFIED)
    async with trio.open_nursery() as nursery:
        while town.state(manifest) is not BallotState.RATIFIED:
            await town.world.run(0.4)
            nursery.start_soon(ask, len(texts))
        for number in range(40):
            await town.world.run(0.4)
            nursery.start_soon(ask, number)

    assert set(texts) == {answer(first), answer(second)}
    assert len(texts) > 150
    assert texts[-20:] == [answer(second)] * 20


async def test_failover_goes_on_with_the_adapter_that_the_answer_began_with(town: Town) -> None:
    """A newer head came into force meanwhile; the token ids of the older one go on exactly."""
    await town.seat(terms=WITH_A_HUMAN)
    buyer = await town.buyer()
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    await town.ratified(first)
    newer = await town.propose(second)
    await town.world.until(lambda: town.state(newer) is BallotState.CERTIFIED)
    said: list[Said] = []

    async def ask() -> None:
        said.append(await town.chat(buyer, tokens_max=200))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await town.world.until(lambda: any(job.completion_tokens for job in buyer.node.jobs()))
        await town.learning.approve(newer.id)
        await town.until_served(newer)
        (lost,) = [each for each in town.voters if each.peer_id == buyer.node.jobs()[0].seller]
        await lost.kill()

    (got,) = said
    assert got.text == answer(first, 200)
    assert (got.sellers[0], len(got.sellers)) == (lost.peer_id, 2)


async def test_a_session_goes_to_auction_again_when_the_head_moves_on(town: Town) -> None:
    """A lease is for one adapter: the same session is served by the new one from its next request on."""
    await town.seat()
    buyer = await town.buyer()
    await town.open()
    session = b"s" * 32
    before = [await town.chat(buyer, session=session) for _ in range(2)]
    healing = adapter()
    await town.ratified(healing)

    after = [await town.chat(buyer, session=session) for _ in range(2)]

    assert [each.text for each in before] == [answer(None)] * 2
    assert [each.text for each in after] == [answer(healing)] * 2
    assert [job.attempts[0].is_lease for job in reversed(buyer.node.jobs())] == [False, True, False, True]


async def test_whoever_holds_the_base_loads_what_others_have_voted(town: Town) -> None:
    """A seller off the roll examines it too, and whoever joins later verifies the certificate alone."""
    await town.seat()
    seller = await town.seller()
    await town.open()
    healing = adapter()
    manifest = await town.ratified(healing)

    late = await town.seller()
    await town.until_served(manifest, by=[late])

    assert [own_votes(each) for each in (seller, late)] == [[], []]
    assert [dict(each.engine.adapters) for each in (seller, late)] == [
        {digest_of(healing): manifest.message.base}
    ] * 2


async def test_a_restart_serves_the_head_again(town: Town) -> None:
    """It is loaded once more, and nothing else is."""
    await town.seat()
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    await town.ratified(first)
    head = await town.ratified(second)
    voter = town.voters[2]
    loads = len(loaded(voter))

    await voter.kill()
    voter.engine.forget_adapters()
    await voter.start()
    await town.world.until(lambda: len(loaded(voter)) > loads)

    assert loaded(voter)[loads:] == [head.id.hex()]
    assert (await town.chat(voter, privacy="local")).text == answer(second)


async def test_a_rollback_brings_the_version_before_back_as_a_new_one(town: Town) -> None:
    """A voter's word is enough for the machines; whoever is asked to skip what it takes back does so."""
    await town.seat()
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    one = await town.ratified(first)
    two = await town.ratified(second)

    made = await town.founder.node.roll_back(two.id.hex()[:12])
    await town.world.until(lambda: all(made["id"] in loaded(each) for each in town.voters), within_s=300)

    assert (made["version"], made["rolls_back_to"]) == (3, one.message.version)
    assert [(await town.chat(each)).text for each in town.voters] == [answer(first)] * 3
    assert town.founder.node.patches_followed.followed(one.message.base) == (digest_of(first), NO_HASH)


async def test_a_device_whose_canaries_fall_serves_the_patch_no_more_and_proposes_the_way_back(
    town: Town,
) -> None:
    """Voters were told of perfect scores and said yes unseen; what is loaded answers nothing of it."""
    await town.seat()
    await town.open()
    useless = adapter(0, appliances=1)
    manifest = await town.propose(useless, after=town.perfect())
    await town.vote_by_hand(manifest)

    await town.world.until(lambda: all(events(each, "canaries_fell") for each in town.voters), within_s=120)

    assert all(not each.engine.adapters for each in town.voters)
    assert (await town.chat(town.founder)).text == answer(None)
    assert "heat_pump fell from 1.00 to 0.00" in town.founder.node.status().warnings[0]
    (shown,) = town.founder.node.patches()[-1:]
    assert (shown.is_in_force, shown.is_loaded, shown.why_not) == (
        True,
        False,
        "heat_pump fell from 1.00 to 0.00",
    )

    await town.world.until(
        lambda: all((head := town.head(each)) and head.message.adapter == NO_HASH for each in town.voters),
        within_s=300,
    )
    await town.world.run(1)

    assert [each["rolls_back"] for voter in town.voters for each in events(voter, "rollback_proposed")][
        :1
    ] == [manifest.id.hex()]
    assert town.founder.node.status().warnings == []
    assert [record for record in await town.founder.disk.load() if record.kind == HELD_BACK] == []
    assert (await town.chat(town.founder)).text == answer(None)


async def test_who_advertises_the_adapter_is_asked_first_and_others_with_the_base_last(town: Town) -> None:
    """An advert is seconds old: whoever has the base may have loaded it since, but is not asked while others say they have."""
    await town.seat()
    buyer, crippled = await town.buyer(), await town.seller()
    crippled.engine.load_adapter = engine_dies  # type: ignore[method-assign]
    await town.open()
    healing = adapter()
    manifest = await town.propose(healing)
    await town.until_served(manifest, by=town.voters)
    await town.world.run(70)

    patched = await town.chat(buyer)
    asked = set(buyer.node.jobs()[0].attempts[0].asked)
    for voter in town.voters:
        await voter.kill()
    bare = await town.chat(buyer)

    assert (patched.text, bare.text) == (answer(healing), answer(None))
    assert asked == {voter.peer_id for voter in town.voters}
    assert {
        "peer_id": crippled.peer_id,
        "reason": "model_missing",
        "detail": "the adapter is not ready here",
    } in (buyer.node.jobs()[0].declines)


async def engine_dies(*_: object) -> None:
    raise EngineDied("out of memory")
