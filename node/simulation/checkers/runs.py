"""Laws of runs: who trains was chosen, in company that its owner accepts, and whatever begins comes to an end."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

from node.runs import ENDED
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.daemon import Daemon
from protocol.envelope import open_sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.messages import Accept, Enlistment, Spend
from runtime.engine import Digest

RESTING: Final = (*ENDED, "paused")  # a run that its owner may resume tomorrow is no run that was lost


def who_trained_was_in_the_cohort(scene: Scene) -> Iterator[Broken]:
    """A device spends privacy only for a run whose cohort names it, and whose award it accepted before."""
    for daemon in scene.honest:
        entries = scene.disks[daemon.name]
        accepted = {
            entry.message.job_id
            for entry in entries
            if isinstance(entry.message, Accept) and entry.sender == daemon.peer_id
        }
        joined = {known.run: known for known in scene.enlisted[daemon.name]}
        for entry in entries:
            if not isinstance(entry.message, Spend) or entry.sender != daemon.peer_id:
                continue
            run = entry.message.run
            known = joined.get(run)
            if known is None or daemon.peer_id not in _cohort(scene, known.enlistments):
                yield Broken(daemon.name, f"it spent on run {run.hex()[:12]}, whose cohort does not name it")
            elif known.coordinator != daemon.peer_id and _job_id(run, daemon) not in accepted:
                yield Broken(daemon.name, f"it spent on run {run.hex()[:12]} and accepted no award of it")


def no_round_is_trained_twice(scene: Scene) -> Iterator[Broken]:
    """Who has trained a round has its result, and sends that to whoever asks for it again.

    A crash may have come before the result was on disk, and a full disk takes none.
    """
    for daemon in scene.honest:
        if daemon.disk.was_filled:
            continue
        # the draws of a round follow from its run, its data and its number
        counts = Counter((life, fit.data, fit.seed, fit.round) for life, fit in daemon.fitted)
        for (_, _, _, number), times in counts.items():
            if times > 1:
                yield Broken(daemon.name, f"it trained round {number} of one run {times} times")


def no_cohort_is_smaller_than_its_members_allow(scene: Scene) -> Iterator[Broken]:
    """Nobody trains with fewer others than its owner wants beside it: one update alone would tell what it learned."""
    owners = {each.peer_id: each.config.owner for each in scene.world.daemons.values()}
    for daemon in scene.honest:
        for known in scene.enlisted[daemon.name]:
            cohort = _cohort(scene, known.enlistments)
            parties = {owners.get(peer_id) for peer_id in cohort}
            size = len(cohort) if len(parties) == 1 else len(parties)
            if size < daemon.config.cohort_min:
                yield Broken(
                    daemon.name,
                    f"it joined run {known.run.hex()[:12]} in a cohort of {size}, "
                    f"{daemon.config.cohort_min} wanted",
                )


def every_run_ends(scene: Scene) -> Iterator[Broken]:
    """Each run that a device announced is finished, aborted, cancelled, unsold or paused in the end."""
    for daemon in scene.online:
        if daemon.disk.is_full:
            continue  # its end is written when there is room
        for file in scene.coordinated[daemon.name]:
            if file.state not in RESTING:
                yield Broken(
                    daemon.name, f"run {file.run.hex()[:12]} is {file.state} after {file.done} rounds"
                )


def what_a_run_goes_on_from_is_there(scene: Scene) -> Iterator[Broken]:
    """The blobs that a coordinator's record on disk names are on that disk, whenever the power goes, full or not."""
    for daemon in scene.honest:
        for file in scene.coordinated[daemon.name]:
            named = (file.next,) if file.state in ENDED else (file.next, file.payload)
            for digest in named:
                if digest and not daemon.blobs.has(Digest(digest)):
                    yield Broken(
                        daemon.name,
                        f"run {file.run.hex()[:12]}, which is {file.state}, names blob {digest.hex()[:12]}, and it is gone",
                    )


def ended_runs_hold_nothing(scene: Scene) -> Iterator[Broken]:
    """When a run is over, nothing is set aside for it any more."""
    for daemon in scene.online:
        ledger = daemon.node.logbook.ledger
        held = {award.message.job_id: award for award in ledger.open_awards(daemon.peer_id)}
        for file in scene.coordinated[daemon.name]:
            if file.state not in ENDED:
                continue
            for member in file.seats:
                award = held.get(_award_id(file.run, member))
                if award is not None and ledger.remaining_micro(award.id):
                    yield Broken(
                        daemon.name,
                        f"{ledger.remaining_micro(award.id)} are still set aside for {scene.name(member)} in run "
                        f"{file.run.hex()[:12]}, which is {file.state}",
                    )


def _cohort(scene: Scene, enlistments: list[bytes]) -> set[PeerId]:
    """Who really signed an enlistment."""
    senders: set[PeerId] = set()
    for raw in enlistments:
        try:
            kinds = frozenset({Enlistment.kind})
            senders.add(open_sealed(raw, mesh=scene.world.mesh_id, kinds=kinds).sender)
        except RemoteProtocolError:
            continue
    return senders


def _job_id(run: bytes, daemon: Daemon) -> bytes:
    return _award_id(run, daemon.peer_id)


def _award_id(run: bytes, member: str) -> bytes:
    """The job of a member's award, as the protocol's document says."""
    return hashlib.sha256(run + member.encode()).digest()[:16]
