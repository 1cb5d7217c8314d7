"""The voter: on a device of the roll, judges every proposal by itself and says yes or no, once.

    ballot open ─▶ blob fetched ─▶ exam: strict check, trial, the line's public set ─▶ own held-out samples ─▶ judgement
        ─▶ Vote in the own log (durable) ─▶ announced

Who does not hold the base cannot vote. A vote is one word: what was written before a crash stands, what was not is found
out again. A human may vote for this device before it has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import trio

from marketplace.assembly.ballot import BallotState, BallotView
from marketplace.assembly.judgement import (
    Judgement,
    Private,
    first_to_judge,
    judge,
    judge_rollback,
    proposes_rollback,
    why_fallen,
)
from node.clock import Clock
from node.errors import StartError
from node.evaluation_set import BadEvaluationSet
from node.examinations import Examinations
from node.journal import Journal
from node.logbook import Logbook
from node.services.sync import Sync
from protocol import limits
from protocol.envelope import Sealed, narrow
from protocol.errors import AgoraError
from protocol.messages import NO_HASH, Manifest, Score, Vote
from runtime.engine import Digest, Engine
from runtime.examiner import BadAdapter

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

RETRY_S, RETRY_S_MAX = 2.0, 120.0
LOOK_INTERVAL_S = 30.0
BY_HAND = "a human has voted for this device"


@dataclass(frozen=True)
class Opinion:
    """What a device has found out about a proposal."""

    judgement: Judgement
    scores: tuple[Score, ...] = ()
    private: Private = "none"


class Voter:
    """Votes in this device's name."""

    def __init__(
        self,
        *,
        engine: Engine,
        examinations: Examinations,
        logbook: Logbook,
        sync: Sync,
        clock: Clock,
        utc_ms: Callable[[], int],
        journal: Journal,
    ) -> None:
        self._engine = engine
        self._examinations = examinations
        self._logbook = logbook
        self._sync = sync
        self._clock = clock
        self._utc_ms = utc_ms
        self._journal = journal
        self._pen = trio.Lock()  # a human and the examiner may be done at the same time
        self._pauses: dict[bytes, tuple[float, float]] = {}

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Vote on what is open, one proposal after the other."""
        task_status.started()
        await self._logbook.wait_confirmed()
        while True:
            grown = self._logbook.grown
            duty = self._next()
            if duty is not None:
                await self._consider(duty)
                continue
            with trio.move_on_after(self._quiet_s()):
                await grown.wait()

    def why_not(self, ballot: BallotView) -> str:
        """Why this device does not vote on a ballot by itself; empty: it does, or has."""
        if not self._logbook.assembly.weight(self._logbook.me):
            return "not on the roll"
        if Digest(ballot.manifest.message.base) not in self._engine.models:
            return "does not hold the base"
        return "" if self._examinations.is_possible else "has no examiner"

    async def vote(self, ballot: BallotView, *, is_yes: bool) -> Sealed[Vote]:
        """Say a human's word for this device.

        Raises:
            StartError: it has no vote, has voted before, or the ballot is closed.
        """
        entry = await self._cast(ballot, Opinion(Judgement(is_yes, BY_HAND)))
        if entry is None:
            raise StartError(self._why_closed(ballot) or "the ballot is closed")
        return entry

    # --- what to do ---------------------------------------------------------------------------------------------------
    def _next(self) -> BallotView | None:
        now = self._clock.now()
        for ballot in first_to_judge(self._logbook.assembly.ballots(self._utc_ms())):
            until, _ = self._pauses.get(ballot.id, (0.0, 0.0))
            is_due = ballot.state is BallotState.VOTING and until <= now
            if is_due and not self.why_not(ballot) and not self._why_closed(ballot):
                return ballot
        return None

    def _quiet_s(self) -> float:
        open_ones = [
            ballot
            for ballot in self._logbook.assembly.ballots(self._utc_ms())
            if ballot.state is BallotState.VOTING
        ]
        now = self._clock.now()
        pauses = [until - now for until, _ in self._pauses.values() if until > now]
        return max(0.001, min([LOOK_INTERVAL_S, *pauses])) if open_ones else inf

    def _why_closed(self, ballot: BallotView) -> str:
        """Why this device may not vote on a ballot any more; empty: it may."""
        assembly, me = self._logbook.assembly, self._logbook.me
        proposal = ballot.manifest.message
        name = f"version {proposal.version} of {proposal.line}"
        now = assembly.ballot(ballot.id, self._utc_ms())
        if not assembly.weight(me):
            return "only devices on the charter's roll vote"
        for vote in (narrow(entry, Vote) for entry in assembly.entries_after(me, -1)):
            if vote is None or (vote.message.line, vote.message.version) != (proposal.line, proposal.version):
                continue
            if vote.message.is_yes or vote.message.manifest == ballot.id:
                word = "yes" if vote.message.is_yes else "no"
                on = "" if vote.message.manifest == ballot.id else ", to another proposal"
                return f"this device has voted {word} on {name}{on}; a vote is never changed"
        if now is None or now.state not in (BallotState.VOTING, BallotState.CERTIFIED):
            return f"{name} is {now.state.value if now else 'unknown'} already"
        return ""

    # --- judging --------------------------------------------------------------------------------------------------------
    async def _consider(self, ballot: BallotView) -> None:
        fields = {"manifest": ballot.id, "adapter": ballot.manifest.message.adapter}
        try:
            opinion = await self._examine(ballot)
        except (BadAdapter, BadEvaluationSet) as error:
            opinion = Opinion(Judgement(is_yes=False, reason=str(error)))
        except (AgoraError, OSError) as error:
            self._postpone(ballot, str(error))
            return
        judgement = opinion.judgement
        self._journal.write("exam_held", **fields, passed=judgement.is_yes, reason=judgement.reason)
        try:
            await self._cast(ballot, opinion)
        except AgoraError as error:  # the disk is full, or nobody has confirmed our log
            self._postpone(ballot, str(error))

    def _postpone(self, ballot: BallotView, reason: str) -> None:
        _, pause_s = self._pauses.get(ballot.id, (0.0, RETRY_S))
        self._pauses[ballot.id] = (self._clock.now() + pause_s, min(2 * pause_s, RETRY_S_MAX))
        self._journal.write("vote_postponed", manifest=ballot.id, reason=reason)

    async def _examine(self, ballot: BallotView) -> Opinion:
        """Find out what this device thinks of a proposal.

        Raises:
            BadAdapter: it is never to be loaded.
            BadEvaluationSet: the line's set is none.
            AgoraError: not now.
        """
        manifest = ballot.manifest
        proposal, assembly = manifest.message, self._logbook.assembly
        assembly.check_proposal(proposal, self._utc_ms())
        line = assembly.line(proposal.line)
        assert line is not None, "check_proposal has found it"
        if proposal.evaluation != line.evaluation:
            return Opinion(Judgement(is_yes=False, reason="it was measured by another set than the line's"))
        head = assembly.ratified(line.name, self._utc_ms())
        parent = head.message.adapter if head else NO_HASH
        await self._examinations.fetch(manifest)
        after = await self._examinations.public(line, proposal.adapter)
        if proposes_rollback(proposal):
            return Opinion(
                judge_rollback(
                    after,
                    proposal.after,
                    has_fallen=head is not None and await self._has_fallen(head),
                    is_voters=assembly.weight(manifest.sender) > 0,
                ),
                after,
            )
        before = await self._examinations.public(line, parent)
        opinion = judge(before, after, proposal.after, "none")
        if not opinion.is_yes:  # what the public set forbids, no private sample need be asked for
            return Opinion(opinion, after)
        private = await self._examinations.private(line.base, parent, proposal.adapter)
        return Opinion(judge(before, after, proposal.after, private), after, private)

    async def _has_fallen(self, head: Sealed[Manifest]) -> bool:
        line = self._logbook.assembly.line(head.message.line)
        assert line is not None
        now = await self._examinations.public(line, head.message.adapter, is_anew=True)
        return bool(why_fallen(head.message.after, now))

    # --- the word itself --------------------------------------------------------------------------------------------------
    async def _cast(self, ballot: BallotView, opinion: Opinion) -> Sealed[Vote] | None:
        """Write the vote, then tell everybody; None when this device may not vote on it any more.

        Raises:
            NotConfirmed, StoreFull: nothing was written, so nothing was said.
        """
        proposal, judgement = ballot.manifest.message, opinion.judgement
        async with self._pen:
            if self._why_closed(ballot):
                return None
            entry = await self._logbook.write(
                Vote,
                lambda index, prev: Vote(
                    index=index,
                    prev=prev,
                    manifest=ballot.id,
                    line=proposal.line,
                    version=proposal.version,
                    is_yes=judgement.is_yes,
                    scores=opinion.scores,
                    private=opinion.private,
                    reason=judgement.reason[: limits.DETAIL_CHARS_MAX],
                ),
            )
        self._journal.write(
            "vote_cast",
            manifest=ballot.id,
            line=proposal.line,
            version=proposal.version,
            is_yes=judgement.is_yes,
        )
        await self._sync.announce(entry)
        return entry
