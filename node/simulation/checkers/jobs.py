"""Laws of jobs: whatever is begun comes to an end, and nothing is begun twice."""

# ruff: noqa: SLF001  a law looks where no user may

from collections.abc import Iterator
from typing import Final

import trio

from node.jobs import CLAIM_WINDOW_S
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.virtual_clock import NOON_MS
from protocol.messages import Accept, Award, Receipt

# The longest honest job: 1,024 tokens at 4 a second, tried five times, with a queue and an auction before each.
JOB_S_MAX: Final = 1_800.0
ENDED: Final = ("finished", "unsold", "failed", "lost")


def no_job_lasts_for_ever(scene: Scene) -> Iterator[Broken]:
    """Whoever asks is answered, or told that it will not be, within half an hour."""
    now = scene.world.now
    for daemon in scene.online:
        for outcome in daemon.outcomes:
            age_s = now - outcome.at_s
            if age_s > JOB_S_MAX:
                yield Broken(
                    daemon.name, f"a chat has run for {age_s:.0f} s, expected {JOB_S_MAX:.0f} at most"
                )


def no_job_is_lost(scene: Scene) -> Iterator[Broken]:
    """Each chat has ended: finished, unsold, failed, or lost with the device that asked."""
    honest = {daemon.name for daemon in scene.honest}
    for outcome in scene.world.outcomes:
        if outcome.state not in ENDED and outcome.buyer in honest:
            yield Broken(
                outcome.buyer, f"the chat asked at {outcome.at_s:.3f} s is {outcome.state}, expected an end"
            )
    for daemon in scene.online:
        for job in daemon.node.job_book._running.values():
            yield Broken(daemon.name, f"job {job.job_id.hex()} is still in the book: {job.state}")


def no_slot_is_lost(scene: Scene) -> Iterator[Broken]:
    """An engine that nobody uses has all its slots free."""
    for daemon in scene.online:
        for model in daemon.engine.models:
            status = daemon.engine.status(model)
            if status.slots_free != status.slots:
                yield Broken(
                    daemon.name,
                    f"{status.slots_free} of {status.slots} slots are free, and no job is under way",
                )


def no_lease_keeps_an_ended_job(scene: Scene) -> Iterator[Broken]:
    """When no job is under way and no claim is open any more, no lease says that one runs."""
    for daemon in scene.online:
        for side, leases in (
            ("bought", daemon.node.buyer._purchasing._leases),
            ("sold", daemon.node.seller._leases),
        ):
            for award_id, lease in leases._leases.items():
                for job_id, attempt in lease.running:
                    yield Broken(
                        daemon.name,
                        f"attempt {attempt} of job {job_id.hex()} runs for ever under award "
                        f"{award_id.hex()[:12]} that was {side}",
                    )


def awards_end(scene: Scene) -> Iterator[Broken]:
    """Each award for one job is settled or void once nobody can claim it: credit is not held for ever.

    A session's award may stand until its buyer next needs credit, when a lease that was idle too long is given back.
    """
    for daemon in scene.online:
        ledger = daemon.node.logbook.ledger
        for award in ledger.open_awards(daemon.peer_id):
            age_s = trio.current_time() - (award.time_ms - NOON_MS) / 1000
            if award.message.lease_ms == 0 and age_s > JOB_S_MAX + CLAIM_WINDOW_S:
                yield Broken(
                    daemon.name,
                    f"award {award.id.hex()[:12]} to {scene.name(award.message.seller)} has held "
                    f"{ledger.remaining_micro(award.id)} for {age_s:.0f} s",
                )


def accepts_end(scene: Scene) -> Iterator[Broken]:
    """What a seller accepted ends paid, written off or expired: nobody goes on claiming, and no debt is forgotten."""
    written_off = {(node, event.fields["job"]) for node, event in scene.events["claim_written_off"]}
    for daemon in scene.online:
        if claims := daemon.node.settlement._claims:
            yield Broken(
                daemon.name, f"{claims} claims are still followed up, expected none after all pauses"
            )
        for receipt in daemon.node.logbook.ledger.unsettled(daemon.peer_id):
            job = receipt.message.job_id.hex()
            if (daemon.name, job) not in written_off:
                yield Broken(
                    daemon.name,
                    f"the receipt of job {job} for {scene.name(receipt.message.payer)} is neither paid nor "
                    "written off",
                )


def each_attempt_is_awarded_once(scene: Scene) -> Iterator[Broken]:
    """A buyer awards each attempt at a job to one seller, whatever crashes in between."""
    awards: dict[tuple[str, bytes, int], bytes] = {}
    honest = scene.honest_ids
    for daemon, entry in scene.entries():
        message = entry.message
        if isinstance(message, Award) and entry.sender in honest:
            first = awards.setdefault((entry.sender, message.job_id, message.attempt), entry.id)
            if first != entry.id:
                yield Broken(
                    honest[entry.sender],
                    f"attempt {message.attempt} of job {message.job_id.hex()} is awarded twice, "
                    f"as the disk of {daemon.name} shows",
                )


def sellers_say_each_thing_once(scene: Scene) -> Iterator[Broken]:
    """An honest seller never signs two accepts of an award, nor two receipts for an attempt under one."""
    said: dict[tuple[str, str, bytes, bytes, int], bytes] = {}
    honest = scene.honest_ids
    for daemon, entry in scene.entries():
        message = entry.message
        if isinstance(message, Accept | Receipt) and entry.sender in honest:
            key = (entry.sender, message.kind, message.award, message.job_id, message.attempt)
            if said.setdefault(key, entry.id) != entry.id:
                yield Broken(
                    honest[entry.sender],
                    f"two {message.kind}s for attempt {message.attempt} of job {message.job_id.hex()}, "
                    f"as the disk of {daemon.name} shows",
                )
