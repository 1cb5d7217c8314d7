"""Patches and ballots as users see them."""

from collections.abc import Iterable, Mapping

from marketplace.assembly.ballot import BallotState, BallotView
from marketplace.assembly.judgement import proposes_rollback
from node.views import PatchView, ProposalView, VoterView
from protocol.identity import PeerId
from protocol.messages import NO_HASH, Manifest, Score

NO_RUN = bytes(16)


def patch_view(ballot: BallotView, *, is_loaded: bool, why_not: str) -> PatchView:
    """Show a patch: where it comes from, what it does, and how it stands.

    Args:
        ballot: its ballot.
        is_loaded: whether this device's engine serves it.
        why_not: why this device does not, though the mesh has ratified it.
    """
    manifest = ballot.manifest
    message = manifest.message
    return PatchView(
        id=ballot.id.hex(),
        kind=_kind(message),
        line=message.line,
        version=message.version,
        state=ballot.state.value,
        is_in_force=ballot.is_in_force,
        is_loaded=is_loaded and not why_not,
        why_not=why_not,
        adapter_digest=_hex(message.adapter),
        adapter_bytes=message.adapter_bytes,
        base_digest=message.base.hex(),
        parent="" if message.parent == NO_HASH else message.parent.hex(),
        rolls_back_to=message.rolls_back_to,
        run_id="" if message.run == NO_RUN else message.run.hex(),
        rounds=message.rounds,
        cohort=[
            {
                "peer_id": member.peer,
                "samples": member.samples,
                "rounds": member.rounds,
                "epsilon": None if member.epsilon_milli < 0 else member.epsilon_milli / 1000,
            }
            for member in message.cohort
        ],
        author=manifest.sender,
        reason=message.reason,
        proposed_at=manifest.time_ms / 1000,
        expires_at=message.expires_at / 1000,
        scores=_scores(message.before, message.after),
    )


def proposal_view(ballot: BallotView, roll: Iterable[PeerId], cannot: Mapping[PeerId, str]) -> ProposalView:
    """Show a ballot: who has voted, who cannot, and what is still needed.

    Args:
        ballot: as it stands.
        roll: every voter.
        cannot: of those who have not voted, why they cannot; empty: they can.
    """
    message = ballot.manifest.message
    return ProposalView(
        id=ballot.id.hex(),
        kind=_kind(message),
        line=message.line,
        version=message.version,
        state=ballot.state.value,
        author=ballot.manifest.sender,
        reason=message.reason,
        yes_weight=ballot.yes_weight,
        no_weight=ballot.no_weight,
        roll_weight=ballot.roll_weight,
        weight_to_pass=ballot.weight_to_pass,
        approved_by=list(ballot.approved_by),
        vetoed_by=list(ballot.vetoed_by),
        proposed_at=ballot.manifest.time_ms / 1000,
        expires_at=ballot.expires_ms / 1000,
        still_needed=ballot.still_needed,
        votes=[_voter_view(voter, ballot, cannot) for voter in dict.fromkeys((*roll, *ballot.votes))],
    )


def _voter_view(voter: PeerId, ballot: BallotView, cannot: Mapping[PeerId, str]) -> VoterView:
    vote = ballot.votes.get(voter)
    if vote is not None:
        said = vote.message
        return VoterView(
            peer_id=voter,
            vote="yes" if said.is_yes else "no",
            reason=said.reason,
            private=said.private,
            scores=_scores((), said.scores),
        )
    why = cannot.get(voter, "") if ballot.state is BallotState.VOTING else ""
    return VoterView(peer_id=voter, vote="cannot vote" if why else "", reason=why, private="none", scores=[])


def _kind(message: Manifest) -> str:
    return "rollback" if proposes_rollback(message) else "patch"


def _hex(adapter: bytes) -> str:
    return "" if adapter == NO_HASH else adapter.hex()


def _scores(before: Iterable[Score], after: Iterable[Score]) -> list[dict[str, object]]:
    """Exact match and perplexity's logarithm by domain, with the version before and with this one."""
    old = {score.domain: score for score in before}
    return [
        {
            "domain": score.domain,
            "total": score.total,
            "before": old[score.domain].right / old[score.domain].total if score.domain in old else None,
            "after": score.right / score.total,
            "loss_before": old[score.domain].loss_milli / 1000 if score.domain in old else None,
            "loss_after": score.loss_milli / 1000,
        }
        for score in after
    ]
