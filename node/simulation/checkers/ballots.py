"""Laws of ballots: who votes, once, and after having looked itself."""

from collections import defaultdict
from collections.abc import Iterator

from node.simulation.checkers.scene import Broken, Scene
from protocol.identity import PeerId, PublicKey, peer_id_of
from protocol.messages import Approval, Line, Manifest, Veto, Vote, Withdrawal


def each_voter_says_yes_once(scene: Scene) -> Iterator[Broken]:
    """An honest voter says yes to one patch for each version of a line, whatever crashes in between."""
    said: dict[tuple[PeerId, str, int], bytes] = {}
    honest = scene.honest_ids
    for daemon, entry in scene.entries():
        vote = entry.message
        if isinstance(vote, Vote) and vote.is_yes and entry.sender in honest:
            first = said.setdefault((entry.sender, vote.line, vote.version), vote.manifest)
            if first != vote.manifest:
                yield Broken(
                    honest[entry.sender],
                    f"it said yes to {first.hex()[:12]} and to {vote.manifest.hex()[:12]} for version "
                    f"{vote.version} of line {vote.line}, as the disk of {daemon.name} shows",
                )


def who_says_yes_has_looked(scene: Scene) -> Iterator[Broken]:
    """No honest device says yes to a patch that it has not examined itself, or that failed its exam."""
    honest = {daemon.name for daemon in scene.honest}
    exams = defaultdict(list)
    for node, event in scene.events["exam_held"]:
        exams[node, event.fields["manifest"]].append(event)
    for node, event in scene.events["vote_cast"]:
        manifest = event.fields["manifest"]
        if node not in honest or not event.fields["is_yes"]:
            continue
        held = [exam for exam in exams[node, manifest] if exam.monotonic_s <= event.monotonic_s]
        if not held or not held[-1].fields["passed"]:
            yield Broken(node, f"it said yes to {str(manifest)[:12]}, and no exam of its own passed")


def only_members_propose_and_humans_decide(scene: Scene) -> Iterator[Broken]:
    """Lines and votes are the roll's, approvals, vetoes and withdrawals the humans', proposals any member's."""
    assembly = scene.world.founding.assembly
    approvers = {peer_id_of(PublicKey(key)) for key in assembly.charter.approvers}
    for daemon, entry in scene.entries():
        match entry.message:
            case Line() | Vote():
                may = entry.sender in assembly.roll
            case Approval() | Veto() | Withdrawal():
                may = entry.sender in approvers
            case Manifest():
                may = not daemon.is_online or daemon.node.logbook.assembly.was_admitted(entry.sender)
            case _:
                continue
        if not may:
            yield Broken(
                daemon.name,
                f"it goes by the {entry.message.kind} of {scene.name(entry.sender)}, who may not make one",
            )
