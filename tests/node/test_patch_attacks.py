"""What must not get into an engine, nor onto a ballot: each attack by its name, and that nothing changed."""

import pytest

from marketplace.assembly.ballot import BallotState
from node.chat import UnknownModelName
from node.errors import StartError
from node.simulation.daemon import Daemon
from node.simulation.toys import LINE, digest_of
from protocol.errors import ExpiredManifest, NotAuthorised, TooManyProposals
from protocol.messages import Vote
from runtime.engine import Digest
from tests.node.patch_town import (
    WITH_A_HUMAN,
    Town,
    adapter,
    answer,
    events,
    loaded,
    own_votes,
)


def nothing_was_loaded(town: Town) -> bool:
    return all(loaded(each) == [] and not each.engine.adapters for each in town.everybody)


def reasons(town: Town) -> set[str]:
    """Why voters said no; once that is enough, the others need not."""
    votes = [vote for each in town.voters for vote in own_votes(each)]
    assert not any(vote.is_yes for vote in votes)
    return {vote.reason for vote in votes}


async def test_an_adapter_for_another_base_is_not_voted_on(town: Town) -> None:
    """Its base is not the line's: whatever the roll said, it would be another model's."""
    await town.seat()
    await town.open()

    manifest = await town.propose(adapter(), base=b"x" * 32)
    await town.world.run(120)

    assert town.state(manifest) is BallotState.REJECTED
    assert [own_votes(each) for each in town.voters] == [[]] * 3
    assert nothing_was_loaded(town)


async def test_an_expired_manifest_is_refused(town: Town) -> None:
    """Its author's own node does not even write it."""
    await town.seat()
    await town.open()

    with pytest.raises(ExpiredManifest):
        await town.propose(adapter(), expires_at=town.founder.clock.utc_ms() - 1)

    assert town.founder.node.patches() == []
    assert nothing_was_loaded(town)


async def test_a_manifest_that_expires_before_its_human_comes_is_never_loaded(town: Town) -> None:
    """An approval that comes later is refused, and nothing is in force."""
    await town.seat(terms=WITH_A_HUMAN)
    await town.open()
    manifest = await town.propose(adapter(), expires_at=town.founder.clock.utc_ms() + 60_000)
    await town.world.until(lambda: town.state(manifest) is BallotState.CERTIFIED)
    await town.world.run(61)

    with pytest.raises(ExpiredManifest):
        await town.learning.approve(manifest.id)

    assert town.head(town.founder) is None
    assert nothing_was_loaded(town)


async def test_a_blob_of_other_bytes_is_neither_voted_for_nor_loaded(town: Town) -> None:
    """The proposer hands out another file than its manifest names."""
    await town.seat()
    await town.open()
    named, sent = adapter(), adapter(500_000)
    await forge(town.founder, named, sent)

    manifest = await town.propose(named, is_held=False)
    await town.world.run(60)

    others = town.voters[1:]
    assert [own_votes(each) for each in others] == [[], []]
    assert all(events(each, "vote_postponed") for each in others)
    assert not any(each.blobs.has(digest_of(named)) for each in others)
    assert town.state(manifest) is not BallotState.RATIFIED
    assert nothing_was_loaded(town)


async def test_a_blob_of_another_length_than_the_manifest_says_gets_a_no(town: Town) -> None:
    """The digest holds, the promise does not."""
    await town.seat()
    await town.open()
    data = adapter()

    manifest = await town.propose(data, adapter_bytes=len(data) + 1)
    await town.world.until(lambda: town.state(manifest) is BallotState.REJECTED)

    assert reasons(town) == {f"the adapter has {len(data)} bytes, its manifest says {len(data) + 1}"}
    assert nothing_was_loaded(town)


async def test_a_hostile_adapter_file_gets_a_no(town: Town) -> None:
    """The examiner's child refuses it; nobody's engine ever sees it."""
    await town.seat()
    await town.open()
    hostile = b"\xff" * 500

    manifest = await town.propose(hostile, after=town.perfect(), before=town.perfect())
    await town.world.until(lambda: town.state(manifest) is BallotState.REJECTED)

    assert reasons(town) == {"refused: the toy adapter does not decode"}
    assert nothing_was_loaded(town)
    await town.world.run(1)
    assert not any(each.blobs.has(digest_of(hostile)) for each in town.everybody)


async def test_a_hostile_adapter_that_a_bribed_roll_ratified_is_still_not_loaded(town: Town) -> None:
    """Owners have voted unseen. Each engine's own strict check stands behind the certificate."""
    await town.seat()
    await town.open()
    hostile = b"\xff" * 500
    manifest = await town.propose(hostile, after=town.perfect(), before=town.perfect())
    await town.vote_by_hand(manifest)

    await town.world.until(lambda: all(events(each, "patch_refused") for each in town.voters), within_s=120)

    assert town.state(manifest) is BallotState.RATIFIED
    assert nothing_was_loaded(town)
    assert "was refused here" in town.founder.node.status().warnings[0]
    assert (await town.chat(town.founder)).text == answer(None)


async def test_an_adapter_that_breaks_another_domain_gets_a_no(town: Town) -> None:
    """It heals heat pumps and forgets additions: judged on all domains, it is no improvement."""
    await town.seat()
    await town.open()

    manifest = await town.propose(
        adapter(1_000_000, poison=True, appliances=980_000, units=980_000, talk=980_000)
    )
    await town.world.until(lambda: town.state(manifest) is BallotState.REJECTED)

    assert reasons(town) == {"addition falls from 0.95 to 0.00"}
    assert nothing_was_loaded(town)


async def test_a_manifest_that_claims_more_than_is_found_gets_a_no(town: Town) -> None:
    """What it says of itself is measured again by everybody."""
    await town.seat()
    await town.open()

    manifest = await town.propose(adapter(500_000), after=town.perfect())
    await town.world.until(lambda: town.state(manifest) is BallotState.REJECTED)

    assert reasons(town) == {"it claims 1.00 of heat_pump, found 0.50"}


async def test_a_patch_that_is_worse_on_private_samples_gets_a_no_that_tells_no_figure(town: Town) -> None:
    """Its public scores are perfect; the owner's own records say otherwise, and only that much is told."""
    await town.seat()
    learner = town.voters[1]
    town.learning.give_data(learner, "diary", samples=600)
    await town.open()
    known = dict.fromkeys(("appliances", "addition", "units", "talk"), 980_000)

    manifest = await town.propose(adapter(1_000_000, poison=True, **known))
    await town.world.until(lambda: all(own_votes(each) for each in town.voters))

    (vote,) = own_votes(learner)
    assert (vote.is_yes, vote.private) == (False, "failed")
    assert vote.reason == "worse on private samples of this device"
    assert {score.domain for score in vote.scores} == {score.domain for score in manifest.message.before}
    assert [own_votes(each)[0].private for each in (town.voters[0], town.voters[2])] == ["none", "none"]


async def test_a_vote_by_a_key_off_the_roll_is_refused(town: Town) -> None:
    """It may examine and serve, and has nothing to say."""
    await town.seat(terms=WITH_A_HUMAN)
    seller = await town.seller()
    await town.open()
    manifest = await town.propose(adapter())
    await town.world.run(5)
    ballot = town.ballot(manifest)

    with pytest.raises(StartError, match="only devices on the charter's roll vote"):
        await seller.node.vote(manifest.id.hex(), is_yes=True)
    with pytest.raises(NotAuthorised):
        await seller.node.logbook.write(Vote, lambda index, prev: vote_on(manifest.id, index, prev))

    await town.world.run(5)
    assert town.ballot(manifest) == ballot
    assert own_votes(seller) == []


async def forge(daemon: Daemon, named: bytes, sent: bytes) -> None:
    """Let a device hand out other bytes under a digest, as a hostile member's does."""
    await daemon.blobs.put(named)
    honest = daemon.blobs.read

    async def read(digest: Digest, offset: int = 0, size: int | None = None) -> bytes:
        if digest != digest_of(named):
            return await honest(digest, offset, size)
        return sent[offset : None if size is None else offset + size]

    daemon.blobs.read = read  # type: ignore[method-assign]


def vote_on(manifest: bytes, index: int, prev: bytes) -> Vote:
    return Vote(
        index=index,
        prev=prev,
        manifest=manifest,
        line=LINE,
        version=1,
        is_yes=True,
        scores=(),
        private="none",
        reason="",
    )


async def test_a_second_vote_is_refused(town: Town) -> None:
    """A voter's word stands: neither its owner nor another manifest of that version gets a second one."""
    await town.seat(terms=WITH_A_HUMAN)
    await town.open()
    first = await town.propose(adapter())
    await town.world.until(lambda: all(own_votes(each) for each in town.voters))
    rival = await town.propose(adapter(900_000), by=town.voters[1], version=1)
    await town.world.run(30)

    for is_yes in (True, False):
        with pytest.raises(StartError, match="a vote is never changed"):
            await town.voters[1].node.vote(first.id.hex(), is_yes=is_yes)
    with pytest.raises(StartError, match="to another proposal"):
        await town.voters[1].node.vote(rival.id.hex(), is_yes=True)

    assert [[vote.manifest for vote in own_votes(each)] for each in town.voters] == [[first.id]] * 3


async def test_a_flood_of_proposals_ends_at_four_a_day(town: Town) -> None:
    """Each costs every voter an exam."""
    await town.seat(terms=WITH_A_HUMAN)
    await town.open()
    for skill in range(4):
        await town.propose(adapter(900_000 + skill))

    with pytest.raises(TooManyProposals):
        await town.propose(adapter(999_999))

    assert len(town.founder.node.proposals()) == 4


async def test_a_veto_after_loading_unloads(town: Town) -> None:
    """Within the event that brings it: nobody's engine has it any more, and its name means what was before."""
    await town.seat(terms=WITH_A_HUMAN)
    await town.open()
    first, second = adapter(800_000), adapter(1_000_000)
    await town.ratified(first)
    manifest = await town.ratified(second)

    await town.learning.veto(manifest.id)
    took_s = await town.world.until(
        lambda: all(digest_of(second) not in each.engine.adapters for each in town.voters)
    )

    assert took_s < 2.0
    assert [(await town.chat(each)).text for each in town.voters] == [answer(first)] * 3
    with pytest.raises(UnknownModelName):
        await town.chat(town.founder, f"{LINE}+v2")
    await town.world.run(120)
    assert all(digest_of(second) not in each.engine.adapters for each in town.voters)


async def test_a_withdrawn_adapter_stays_out_even_as_a_new_proposal(town: Town) -> None:
    """A human barred the file itself, for ever."""
    await town.seat()
    await town.open()
    data = adapter()
    await town.ratified(data)

    await town.learning.withdraw(digest_of(data))
    await town.world.until(lambda: not any(each.engine.adapters for each in town.voters))
    again = await town.propose(data)
    await town.world.run(120)

    assert town.state(again) is BallotState.WITHDRAWN
    assert not any(each.engine.adapters for each in town.voters)
    assert (await town.chat(town.founder)).text == answer(None)


async def test_an_adapter_that_was_never_ratified_is_not_served_to_who_names_it(town: Town) -> None:
    """Neither by a client's name for it nor by a request that binds its digest."""
    await town.seat(terms=WITH_A_HUMAN)
    buyer = await town.buyer()
    await town.open()
    data = adapter()
    manifest = await town.propose(data)
    await town.world.until(lambda: town.state(manifest) is BallotState.CERTIFIED)

    for name in (f"{LINE}+v1", f"{LINE}+{digest_of(data).hex()[:8]}", f"{LINE}+{digest_of(data).hex()}"):
        with pytest.raises(UnknownModelName):
            await town.chat(buyer, name)
    attempt = await buyer.node.buyer._purchasing.quote((manifest.message.base, digest_of(data)), (10, 10))

    assert {answer.reason for answer in attempt.answers} == {"model_missing"}
    assert nothing_was_loaded(town)


async def test_a_restart_in_mid_exam_neither_loses_nor_doubles_the_vote(town: Town) -> None:
    """What was not written is found out again; what was is not said twice."""
    await town.seat(terms=WITH_A_HUMAN)
    await town.open()
    voter = town.voters[1]
    manifest = await town.propose(adapter())
    await town.world.until(lambda: manifest.id.hex() in heard(voter))
    assert own_votes(voter) == []

    await voter.restart()
    await town.world.until(lambda: own_votes(voter) != [])
    await voter.restart()
    await town.world.run(120)

    assert [(vote.manifest, vote.is_yes) for vote in own_votes(voter)] == [(manifest.id, True)]
    assert town.ballot(manifest).votes[voter.peer_id].message.is_yes


async def test_a_full_disk_at_the_vote_says_nothing_until_it_is_written(town: Town) -> None:
    """A vote that was sent and then forgotten could be contradicted by the next one."""
    await town.seat(terms=WITH_A_HUMAN)
    await town.open()
    voter = town.voters[1]
    await voter.disk.fill()

    manifest = await town.propose(adapter())
    await town.world.run(30)

    assert own_votes(voter) == []
    assert voter.peer_id in town.ballot(manifest).missing
    voter.disk.empty()
    await town.world.until(lambda: voter.peer_id in town.ballot(manifest).votes, within_s=120)
    assert [vote.is_yes for vote in own_votes(voter)] == [True]


async def test_a_store_that_lost_the_newest_version_does_not_bring_the_older_one_back(town: Town) -> None:
    """The high-water mark outlives the certificate: an old head is not taken up while the newer one is missing."""
    await town.seat()
    await town.open()
    await town.ratified(adapter(800_000))
    voter = town.voters[2]
    loads = len(loaded(voter))
    await voter.node.patches_followed.raise_high_water(LINE, 2)

    await voter.kill()
    voter.engine.forget_adapters()
    await voter.start()
    await town.world.run(60)

    assert len(loaded(voter)) == loads
    assert not voter.engine.adapters


def heard(daemon: Daemon) -> list[str]:
    return [each["manifest"] for each in events(daemon, "manifest_heard")]
