"""The laws can be broken, and say so: each is shown a world in which all is well, and then one fault planted in it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio

from marketplace.fence import FENCES_MAX
from marketplace.prefix import prefix_digest
from node.chat import ChatRequest
from node.jobs import CLAIM_WINDOW_S, prompt_of
from node.logbook import ENTRY
from node.simulation.adversaries import BEHAVIOURS
from node.simulation.checkers import (
    attempts,
    authority,
    ballots,
    belonging,
    bounds,
    entries,
    jobs,
    money,
    patches,
    payments,
    privacy,
    runs,
    verification,
)
from node.simulation.checkers.checks import LAWS, Checks, Violation
from node.simulation.checkers.jobs import JOB_S_MAX
from node.simulation.observations import Outcome
from node.simulation.virtual_clock import NOON_MS
from node.simulation.world import World
from node.store import Record
from protocol.envelope import Sealed, seal
from protocol.identity import Identity, PeerId
from protocol.messages import NO_HASH, Accept, Award, Card, Countersignature, Entry, Revocation
from runtime.echo import ECHO_MODEL
from runtime.engine import ChatMessage

JOB = b"j" * 16


class Stage:
    """A world of a buyer and a seller who have done business, and its laws."""

    def __init__(self, world: World, checks: Checks) -> None:
        self.world = world
        self.checks = checks
        self.scene = checks.scene
        self.buyer, self.seller = world.daemons["laptop-1"], world.daemons["server-1"]

    async def chat(self) -> None:
        outcome = Outcome(trio.current_time(), self.buyer.name)
        self.world.outcomes.append(outcome)
        request = ChatRequest("auto", (ChatMessage("user", "hi"),), tokens_max=20, privacy="mesh")
        await self.buyer.ask(request, outcome)

    def award(self, **changes: Any) -> Award:
        fields = {
            "index": 50,
            "prev": NO_HASH,
            "request": NO_HASH,
            "bid": NO_HASH,
            "job_id": JOB,
            "attempt": 1,
            "seller": self.seller.peer_id,
            "model": ECHO_MODEL,
            "adapter": NO_HASH,
            "hold_micro": 1,
            "prompt_micro": 1,
            "completion_micro": 1,
            "lease_ms": 0,
            "session": NO_HASH,
        }
        return Award(**{**fields, **changes})

    def sealed(self, message: Entry, identity: Identity | None = None, mesh: bytes = b"") -> Sealed[Any]:
        signer = identity or self.buyer.identity
        return seal(message, signer, mesh=mesh or self.world.mesh_id, seq=(1, 1), time_ms=NOON_MS)

    async def put(self, name: str, *planted: Sealed[Any]) -> None:
        """Lay entries on a disk behind its daemon's back."""
        await self.world.daemons[name].disk.append([Record(ENTRY, each.id, each.raw) for each in planted])

    async def broken(self, law: Callable[..., Any]) -> list[str]:
        """What a law finds now."""
        await self.scene.read_disks()
        return [each.found for each in law(self.scene)]


@pytest.fixture
async def stage(virtual_time: None, nursery: trio.Nursery) -> AsyncIterator[Stage]:  # noqa: ARG001  its effect
    world = World(nursery, seed=5, nodes=3, seconds=600)
    world.replay_command = "the command that runs it again"
    checks = Checks(world)
    async with world.running():
        await world.add(1, profile="laptop", is_seller=False)
        await world.add(1, profile="server", is_seller=True)
        await world.run(30)
        made = Stage(world, checks)
        await made.chat()
        await world.run(5)
        yield made


# --- one fault for each law -------------------------------------------------------------------------------------------
async def a_handler_fails(stage: Stage) -> None:
    stage.buyer.journal.write("handler_failed", peer_id="", where="job", error="KeyError", at="x.py:1")


async def a_contradiction_is_found(stage: Stage) -> None:
    stage.buyer.journal.write("contradiction_found", author=stage.seller.peer_id)


async def a_credit_appears(stage: Stage) -> None:
    stage.buyer.node.logbook.ledger._accounts._balances[stage.buyer.peer_id] += 1


async def too_much_is_promised(stage: Stage) -> None:
    stage.buyer.node.logbook.ledger._accounts.hold(b"hold", stage.buyer.peer_id, 10**9)


async def a_chat_runs_on(stage: Stage) -> None:
    stage.buyer.outcomes.append(Outcome(stage.world.now - JOB_S_MAX - 1, stage.buyer.name))


async def a_table_overflows(stage: Stage) -> None:
    fence = stage.seller.node.seller._fence
    fence._newest.update({(PeerId("peer"), number.to_bytes(16)): 1 for number in range(FENCES_MAX + 1)})


async def strangers_are_kept(stage: Stage) -> None:
    stage.buyer.node.meeting._answers.update({PeerId(f"stranger {number}"): True for number in range(9)})


async def a_member_is_barred(stage: Stage) -> None:
    stage.buyer.node.logbook.assembly._revoked.add(stage.seller.peer_id)


async def a_foreign_entry_is_kept(stage: Stage) -> None:
    await stage.put("server-1", stage.sealed(stage.award(), mesh=bytes(31) + b"f"))


async def a_strangers_entry_is_kept(stage: Stage) -> None:
    await stage.put("server-1", stage.sealed(stage.award(), Identity(bytes(32))))


async def an_own_log_has_a_gap(stage: Stage) -> None:
    await stage.put("laptop-1", stage.sealed(stage.award()))


async def a_known_log_has_a_gap(stage: Stage) -> None:
    del stage.buyer.node.logbook._bilateral[stage.buyer.peer_id].entries[0]


async def two_entries_in_one_place(stage: Stage) -> None:
    await stage.put("laptop-1", stage.sealed(stage.award()))
    await stage.put("server-1", stage.sealed(stage.award(hold_micro=2)))


async def one_disk_with_two_entries_in_one_place(stage: Stage) -> None:
    await stage.put("server-1", stage.sealed(stage.award()), stage.sealed(stage.award(hold_micro=2)))


async def what_was_sent_is_gone(stage: Stage) -> None:
    await stage.put("server-1", stage.sealed(stage.award()))


async def an_attempt_is_awarded_twice(stage: Stage) -> None:
    await stage.put("laptop-1", stage.sealed(stage.award()), stage.sealed(stage.award(index=51)))


async def an_award_is_accepted_twice(stage: Stage) -> None:
    for index in (50, 51):
        accept = Accept(
            index=index, prev=NO_HASH, award=NO_HASH, buyer=stage.buyer.peer_id, job_id=JOB, attempt=1
        )
        await stage.put("server-1", stage.sealed(accept, stage.seller.identity))


async def more_is_paid_than_was_held(stage: Stage) -> None:
    payments = stage.buyer.node.logbook.ledger._payments
    (key,) = payments
    payments[key] = replace(payments[key], amount_micro=10**9)


async def another_receipt_is_paid(stage: Stage) -> None:
    payments = stage.buyer.node.logbook.ledger._payments
    (key,) = payments
    other = replace(payments[key].receipt, id=NO_HASH)
    payments[key] = replace(payments[key], receipt=other)


async def only_one_knows_a_name(stage: Stage) -> None:
    assembly = stage.world.founder.node.logbook.assembly
    head = assembly.head(assembly.founder)
    assert head is not None
    card = Card(index=head.index + 1, prev=head.entry, name="secret", model=ECHO_MODEL)
    assembly.apply(stage.sealed(card, stage.world.founder.identity))


async def the_last_chat_is_unsold(stage: Stage) -> None:
    stage.scene.last_chats.append(Outcome(0, stage.buyer.name, state="unsold", reason="busy"))


async def a_chat_never_ends(stage: Stage) -> None:
    stage.world.outcomes.append(Outcome(0, stage.buyer.name))


async def a_slot_stays_taken(stage: Stage) -> None:
    stage.seller.engine._slots.take(1.0)


async def a_lease_keeps_a_job(stage: Stage) -> None:
    leases = stage.buyer.node.buyer._purchasing._leases
    award = leases.open(stage.sealed(stage.award()), 0.0).award
    leases.begin(award.id, JOB, 1, total_micro=1, now=0.0)


async def an_award_holds_for_ever(stage: Stage) -> None:
    ledger = stage.buyer.node.logbook.ledger
    (payment,) = ledger.payments()
    ledger._accounts.hold(payment.receipt.message.award, stage.buyer.peer_id, 1)
    await stage.world.run(JOB_S_MAX + CLAIM_WINDOW_S + 60)


async def a_claim_goes_on(stage: Stage) -> None:
    stage.seller.node.settlement._claims += 1


async def a_debt_is_forgotten(stage: Stage) -> None:
    ledger = stage.seller.node.logbook.ledger
    (payment,) = ledger.payments()
    ledger._unsettled[stage.seller.peer_id][payment.receipt.id] = payment.receipt


async def a_payment_is_forgotten(stage: Stage) -> None:
    stage.buyer.node.logbook.ledger._payments.clear()


async def a_balance_moves_by_itself(stage: Stage) -> None:
    balances = stage.buyer.node.logbook.ledger._accounts._balances
    balances[stage.buyer.peer_id] -= 1
    balances[stage.seller.peer_id] += 1


async def a_payment_is_signed_by_one(stage: Stage) -> None:
    payments_known = stage.buyer.node.logbook.ledger._payments
    (key,) = payments_known
    alone = replace(payments_known[key].countersignature, sender=stage.seller.peer_id)
    payments_known[key] = replace(payments_known[key], countersignature=alone)


async def a_receipt_is_gone(stage: Stage) -> None:
    (payment,) = stage.buyer.node.logbook.ledger.payments()
    terms = msgspec.structs.replace(payment.receipt.message, index=50)
    receipt = stage.sealed(terms, stage.seller.identity)
    await stage.put("laptop-1", stage.sealed(Countersignature(index=50, prev=NO_HASH, receipt=receipt.raw)))


async def a_hold_is_freed_twice(stage: Stage) -> None:
    stage.buyer.node.logbook.ledger._accounts._held[stage.buyer.peer_id] -= 1


async def a_debtor_is_served(stage: Stage) -> None:
    stage.seller.config = replace(stage.seller.config, exposure_peer_micro=0)
    ledger = stage.seller.node.logbook.ledger
    ids = {"buyer": stage.buyer.peer_id, "attempt": 1}
    for number in range(9):  # four may be under way, and one was paid
        award = stage.sealed(
            stage.award(index=50 + number, job_id=bytes([number]) * 16, completion_micro=1_000)
        )
        ledger.apply(award)
        stage.seller.journal.write(
            "delivered", job=award.message.job_id.hex(), **ids, tokens=20, reason="length"
        )


async def a_price_is_exceeded(stage: Stage) -> None:
    payments_known = stage.buyer.node.logbook.ledger._payments
    (key,) = payments_known
    payments_known[key] = replace(payments_known[key], amount_micro=10**9)


async def other_tokens_came(stage: Stage) -> None:
    (payment,) = stage.buyer.node.logbook.ledger.payments()
    job = stage.buyer.node.job_book.find(payment.receipt.message.job_id)
    assert job is not None
    job.attempts[0].ids.pop()


async def fewer_tokens_came_long_ago(stage: Stage) -> None:
    book = stage.buyer.node.job_book
    book._recent.clear()
    (job_id,) = book._views
    book._views[job_id].attempts[0] = msgspec.structs.replace(book._views[job_id].attempts[0], tokens=19)


async def a_request_is_answered_again(stage: Stage) -> None:
    (_, bid) = stage.scene.events["bid_sent"][-1]
    stage.seller.journal.write("bid_sent", **bid.fields)


async def a_private_prompt_travels(stage: Stage) -> None:
    views = stage.buyer.node.job_book._views
    (job_id,) = views
    views[job_id] = msgspec.structs.replace(views[job_id], privacy="local")


async def an_owners_prompt_is_advertised(stage: Stage) -> None:
    ((_, job),) = stage.buyer.node.job_book._recent.values()
    messages = (ChatMessage("system", "you keep our accounts"), *job.request.messages)
    job.request = replace(job.request, messages=messages, privacy="owner")
    digest = prefix_digest(job.digest, job.adapter, prompt_of(job.request).turns)
    advertiser = stage.seller.node.advertiser
    advertiser._own = advertiser._sealed(msgspec.structs.replace(advertiser.own().message, warm=digest))


async def a_seller_that_failed_is_tried_again(stage: Stage) -> None:
    (view,) = stage.buyer.node.job_book._views.values()
    view.attempts.append(msgspec.structs.replace(view.attempts[0], attempt=2))


async def a_lease_is_used_after_a_day(stage: Stage) -> None:
    (payment,) = stage.buyer.node.logbook.ledger.payments()
    award = stage.sealed(stage.award(lease_ms=600_000))
    terms = msgspec.structs.replace(payment.receipt.message, award=award.id)
    receipt = seal(
        terms,
        stage.seller.identity,
        mesh=stage.world.mesh_id,
        seq=(1, 1),
        time_ms=NOON_MS + 24 * 3_600_000,
    )
    await stage.put("server-1", award, receipt)


async def a_buyer_names_a_model(stage: Stage) -> None:
    card = Card(index=0, prev=NO_HASH, name="mine", model=ECHO_MODEL)
    await stage.put("server-1", stage.sealed(card))


async def a_barred_buyer_is_served(stage: Stage) -> None:
    stage.scene.last_chats.append(Outcome(0, stage.buyer.name))
    assembly = stage.seller.node.logbook.assembly
    head = assembly.head(assembly.founder)
    assert head is not None
    revocation = Revocation(index=head.index + 1, prev=head.entry, peer=stage.buyer.peer_id, reason="stolen")
    assembly.apply(stage.sealed(revocation, stage.world.founder.identity))
    accept = Accept(index=50, prev=NO_HASH, award=NO_HASH, buyer=stage.buyer.peer_id, job_id=JOB, attempt=1)
    late_ms = NOON_MS + 3_600_000
    served = seal(accept, stage.seller.identity, mesh=stage.world.mesh_id, seq=(1, 1), time_ms=late_ms)
    await stage.put("server-1", served)


async def an_honest_seller_is_caught(stage: Stage) -> None:
    stage.buyer.journal.write("seller_caught", seller=stage.seller.peer_id, job=JOB.hex())


async def another_model_passes(stage: Stage) -> None:
    stage.seller.adversary = BEHAVIOURS["model-swapper"](stage.world, stage.seller)
    stage.buyer.journal.write(
        "job_verified",
        job=JOB.hex(),
        attempt=1,
        seller=stage.seller.peer_id,
        passed=True,
        tokens=20,
        worst_milli=0,
        drift_milli=0,
    )


async def a_lot_comes_before_its_receipt(stage: Stage) -> None:
    stage.buyer.journal.write("answer_drawn", job=JOB.hex(), attempt=1, seller="", receipt="", judged=0)


async def a_new_seller_is_spared(stage: Stage) -> None:
    stage.buyer.journal.write(
        "answer_spared", job=JOB.hex(), attempt=1, seller=stage.seller.peer_id, receipt="00", judged=20
    )


async def a_sellers_own_owner_reads(stage: Stage) -> None:
    job = stage.buyer.node.jobs()[0].job_id
    seller = stage.seller.peer_id
    stage.buyer.journal.write("check_bought", job=job, check=JOB.hex(), seller=seller, reader=seller)


async def a_check_never_comes(stage: Stage) -> None:
    views = stage.buyer.node.job_book._views
    (job_id, view), *_ = views.items()
    waiting = [msgspec.structs.replace(each, verification="waiting") for each in view.attempts]
    views[job_id] = msgspec.structs.replace(view, attempts=waiting)


FAULTS: tuple[tuple[Callable[..., Any], Callable[[Stage], Awaitable[None]], str], ...] = (
    (belonging.no_handler_fails, a_handler_fails, "job failed with KeyError at x.py:1"),
    (belonging.nobody_honest_is_accused, a_contradiction_is_found, "it found a contradiction of server-1"),
    (belonging.nobody_honest_is_barred, a_member_is_barred, "it bars server-1"),
    (belonging.all_agree_on_the_assembly, only_one_knows_a_name, "its assembly is another"),
    (belonging.chats_work_again, the_last_chat_is_unsold, "is unsold: busy"),
    (money.credits_sum_to_zero, a_credit_appears, "sum to 1, expected 0"),
    (money.nobody_overdraws, too_much_is_promised, "over its credit line"),
    (money.payments_stay_within_holds, more_is_paid_than_was_held, "1000000000 was paid under award"),
    (money.each_attempt_is_paid_once, another_receipt_is_paid, "was paid by another receipt"),
    (money.who_holds_the_same_entries_agrees, a_payment_is_forgotten, "0 payments stand on its ledger"),
    (jobs.no_job_lasts_for_ever, a_chat_runs_on, "a chat has run for"),
    (jobs.no_job_is_lost, a_chat_never_ends, "is running, expected an end"),
    (jobs.no_slot_is_lost, a_slot_stays_taken, "3 of 4 slots are free"),
    (jobs.no_lease_keeps_an_ended_job, a_lease_keeps_a_job, "runs for ever under award"),
    (jobs.awards_end, an_award_holds_for_ever, "has held 1 for"),
    (jobs.accepts_end, a_claim_goes_on, "1 claims are still followed up"),
    (jobs.accepts_end, a_debt_is_forgotten, "is neither paid nor written off"),
    (jobs.each_attempt_is_awarded_once, an_attempt_is_awarded_twice, "is awarded twice"),
    (jobs.sellers_say_each_thing_once, an_award_is_accepted_twice, "two accepts for attempt 1"),
    (bounds.tables_stay_under_their_bounds, a_table_overflows, "it keeps 8194 fences, at most 8192 allowed"),
    (bounds.what_is_kept_of_peers_is_about_members, strangers_are_kept, "answers about its own log"),
    (entries.entries_are_genuine, a_foreign_entry_is_kept, "its disk holds what nobody opens"),
    (entries.entries_are_genuine, a_strangers_entry_is_kept, "who was never admitted"),
    (entries.own_logs_have_no_gaps, an_own_log_has_a_gap, "has index 50 in place"),
    (entries.known_logs_have_no_gaps, a_known_log_has_a_gap, "has index 1 in place 0"),
    (entries.one_entry_stands_in_each_place, two_entries_in_one_place, "bilateral entry 50 is one thing"),
    (entries.contradictions_are_punished, one_disk_with_two_entries_in_one_place, "who is not barred"),
    (payments.balances_follow_from_payments, a_balance_moves_by_itself, "its payments come to"),
    (
        payments.balances_follow_from_payments,
        a_payment_is_signed_by_one,
        "was signed by server-1 and server-1",
    ),
    (payments.holds_add_up, a_hold_is_freed_twice, "-1 is set aside for laptop-1, whose holds come to 0"),
    (
        payments.what_was_countersigned_survives,
        a_receipt_is_gone,
        "laptop-1 has its receipt 50 countersigned",
    ),
    (
        payments.nobody_is_served_for_nothing,
        a_debtor_is_served,
        "laptop-1 was served for 180000 that it has not",
    ),
    (payments.payments_are_for_what_came, a_price_is_exceeded, "1000000000 was paid for attempt 1"),
    (payments.payments_are_for_what_came, other_tokens_came, "were paid, and other 19 came"),
    (payments.payments_are_for_what_came, fewer_tokens_came_long_ago, "were paid, and 19 came"),
    (attempts.no_request_is_bid_on_twice, a_request_is_answered_again, "it bid again on request"),
    (attempts.prompts_stay_where_they_may, a_private_prompt_travels, "of privacy local went to server-1"),
    (
        attempts.adverts_tell_of_mesh_prompts_alone,
        an_owners_prompt_is_advertised,
        "the prompt of one owner's job",
    ),
    (attempts.who_failed_is_not_tried_again, a_seller_that_failed_is_tried_again, "both went to server-1"),
    (attempts.no_lease_is_used_past_its_end, a_lease_is_used_after_a_day, "idle seconds, 600 allowed"),
    (authority.only_the_roll_decides, a_buyer_names_a_model, "a card of laptop-1, who does not vote"),
    (authority.nobody_contradicts_itself_unpunished, an_attempt_is_awarded_twice, "two awards of laptop-1"),
    (authority.nobody_barred_is_served, a_barred_buyer_is_served, "it accepted an award of laptop-1"),
    (entries.what_was_acknowledged_survives, what_was_sent_is_gone, "and its own disk has not"),
    (entries.what_is_known_is_on_disk, only_one_knows_a_name, "which its disk lacks"),
    (verification.nobody_honest_is_caught, an_honest_seller_is_caught, "it accuses server-1 of another"),
    (verification.another_models_answers_are_caught, another_model_passes, "of server-1 passed its check"),
    (verification.lots_are_thrown_when_paid, a_lot_comes_before_its_receipt, "before its receipt was signed"),
    (
        verification.a_new_sellers_answers_are_all_drawn,
        a_new_seller_is_spared,
        "of whom 0 answers were judged",
    ),
    (verification.checks_stay_where_prompts_may, a_sellers_own_owner_reads, "by its own seller's owner"),
    (verification.no_check_waits_for_ever, a_check_never_comes, "was drawn and is not judged"),
)


@pytest.mark.parametrize(("law", "fault", "found"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
async def test_a_fault_breaks_its_law(
    stage: Stage, law: Callable[..., Any], fault: Callable[[Stage], Awaitable[None]], found: str
) -> None:
    assert await stage.broken(law) == []

    await fault(stage)

    assert found in (await stage.broken(law))[0]


def test_every_law_has_a_fault_that_breaks_it() -> None:
    """Those of learning have theirs in `test_learning_checkers.py`."""
    learning = {patches.__name__, ballots.__name__, privacy.__name__, runs.__name__}
    assert {law for law, _ in LAWS if law.__module__ not in learning} == {law for law, _, _ in FAULTS}


# --- all of them ------------------------------------------------------------------------------------------------------
async def test_a_world_in_which_all_is_well_passes_every_law(stage: Stage) -> None:
    await stage.checks.conclude()

    assert set(stage.checks.checked) == {law.__name__ for law, _ in LAWS}
    assert all(stage.checks.checked.values())


async def test_a_violation_says_all_that_is_needed_to_see_it_again(stage: Stage) -> None:
    await a_credit_appears(stage)

    with pytest.raises(Violation) as caught:
        stage.checks.look()

    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "law credits_sum_to_zero does not hold: On every ledger the balances sum to zero: credit moves, "
        "and never appears."
    )
    assert lines[1] == f"  laptop-1 ({stage.buyer.peer_id}): its balances sum to 1, expected 0"
    assert lines[2].startswith("  seed 5, commit ")
    assert lines[2].endswith(f", {stage.world.now:.3f} virtual seconds")
    assert any("receipt_countersigned" in line for line in lines)
    assert lines[-1] == "  again: the command that runs it again"


async def test_looking_changes_nothing(stage: Stage) -> None:
    """A world must go its way in the same steps whether it is checked or not."""
    looks = [daemon.clock._looks for daemon in stage.world.daemons.values()]
    before = stage.world.network.rng.getstate()

    stage.checks.look()

    assert [daemon.clock._looks for daemon in stage.world.daemons.values()] == looks
    assert stage.world.network.rng.getstate() == before
