"""Puppets of training runs: a coordinator and a member that say whatever a test wants."""

import hashlib
from collections.abc import Sequence
from typing import Any

import trio

from federation import codec, lora
from marketplace.batch import NO_RUN, RoundWork, draft_award, draft_round_receipt
from node.chunks import receive_bytes, send_bytes
from node.simulation.learning import LINE, SKILL
from protocol.envelope import Sealed, decode, encode
from protocol.mesh import Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Accepted,
    Award,
    Countersignature,
    Decline,
    Enlistment,
    FailedFrame,
    FinishedFrame,
    JobFrame,
    LoraShape,
    Receipt,
    Recipe,
    RoundTask,
    RoundUpdate,
    RunAnnouncement,
    RunOpening,
    SettlementWanted,
)
from protocol.topics import ENLIST, ROUND, RUNS, SETTLE
from runtime.echo import ECHO_MODEL
from runtime.toy_trainer import toy_shapes
from tests.node.puppet import Puppet
from tests.node.world import Daemon, World

RUN = b"r" * 16
RECIPE = Recipe(
    shape=LoraShape(rank=8, alpha=16, targets=("attn_q",)),
    seed=7,
    is_a_frozen=True,
    rounds=4,
    steps=12,
    batch=16,
    learning_rate_ppm=5_000,
    replay_percent=50,
    strategy="mean",
    parameters=(),
)


def seed() -> dict[str, Any]:
    """The state that every run of this recipe begins from."""
    return lora.seed_state(RECIPE, toy_shapes(RECIPE))


class Coordinator:
    """Announces a run and speaks with one member; honest unless a test says otherwise."""

    def __init__(self, puppet: Puppet) -> None:
        self.puppet = puppet
        self.answers: list[Sealed[Enlistment] | Sealed[Decline]] = []
        self.announcement: Sealed[RunAnnouncement]
        self.award: Sealed[Award]
        puppet.serve(ENLIST, self._hear)

    async def _hear(self, stream: Stream) -> None:
        answer: Any = await self.puppet.wire.receive(stream, Enlistment, Decline)
        self.answers.append(answer)

    def announced(self, **changes: Any) -> RunAnnouncement:
        fields = {
            "run": RUN, "line": LINE, "base": ECHO_MODEL, "data": SKILL, "replay": NO_HASH, "replay_bytes": 0,
            "start": NO_HASH, "start_bytes": 0, "parent": NO_RUN, "recipe": RECIPE, "cohort_min": 1, "cohort_max": 8,
            "round_ms": 60_000, "step_micro_max": 10_000, "window_ms": 2_000,
        }  # fmt: skip
        return RunAnnouncement(**{**fields, **changes})

    async def announce(self, *, ttl_ms: int = 60_000, **changes: Any) -> None:
        """Gossip it, and wait as long as an answer takes."""
        self.announcement = self.puppet.wire.seal(self.announced(**changes), ttl_ms=ttl_ms)
        await self.puppet.mesh.publish(RUNS, self.announcement.raw)
        await self.puppet.world.run(5)

    @property
    def enlistment(self) -> Sealed[Enlistment]:
        """The member's own."""
        (answer,) = [each for each in self.answers if isinstance(each.message, Enlistment)]
        return answer  # type: ignore[return-value]  # an enlistment

    async def open(
        self, member: Daemon, companions: Sequence[Sealed[Enlistment]] = (), **changes: Any
    ) -> Accept | Decline:
        """Open the run there; the award is changed as the test says."""
        stream = await self.puppet.open(member, ROUND)
        enlistments = (self.enlistment.raw, *(each.raw for each in companions))
        opening = RunOpening(run=RUN, announcement=self.announcement.raw, enlistments=enlistments)
        await self.puppet.wire.send(stream, opening)
        drafted = draft_award(self.announcement, self.enlistment, index=0, prev=NO_HASH)
        fields = {
            name: getattr(drafted, name) for name in Award.__struct_fields__ if name not in ("index", "prev")
        }
        self.award = self.puppet.entry(Award, **{**fields, **changes})
        await stream.send(self.award.raw)
        answer: Any = await self.puppet.wire.receive(stream, Accept, Decline)
        return answer.message  # type: ignore[no-any-return]  # one of the two

    async def ask(
        self, member: Daemon, number: int = 1, *, sent: bytes = b"", by: Puppet | None = None, **changes: Any
    ) -> bytes | FailedFrame:
        """Ask for a round from the seed's state; return the update's bytes, or the refusal. The receipt is not signed."""
        puppet = by or self.puppet
        old = seed()
        payload = codec.change(old, old)
        sent = sent or payload
        fields = {
            "run": RUN, "round": number, "award": self.award.id, "since": NO_HASH, "state": codec.digest(old),
            "payload": hashlib.sha256(payload).digest(), "payload_bytes": len(sent), "left_ms": 60_000,
        }  # fmt: skip
        stream = await puppet.open(member, ROUND)
        await puppet.wire.send(stream, RoundTask(**{**fields, **changes}))
        await send_bytes(stream, sent)
        while True:
            match decode(await stream.receive(), JobFrame):
                case FailedFrame() as failed:
                    return failed
                case FinishedFrame():
                    break
        update = (await puppet.wire.receive(stream, RoundUpdate)).message
        received = await receive_bytes(stream, update.payload_bytes)
        stream.abort()
        return received


class Member:
    """Takes part in a founder's run: honest, but for what a test changes in its updates and receipts."""

    def __init__(self, puppet: Puppet) -> None:
        self.puppet = puppet
        self.payload: bytes | None = None  # sent instead of a change
        self.update: dict[str, Any] = {}
        self.receipt: dict[str, Any] = {}
        self.receipts: list[Sealed[Receipt]] = []  # of each round
        self.is_slow_to_charge = False  # it keeps its receipt for later
        self.countersigned: list[Sealed[Countersignature]] = []
        self.announcement: Sealed[RunAnnouncement] | None = None
        self.award: Sealed[Award]
        puppet.serve(ROUND, self._serve)

    async def enlist(self, world: World, run: str, **changes: Any) -> None:
        """Answer the founder's newest run."""
        file = world.founder.node.training.coordinator._tools.book.get(bytes.fromhex(run))
        assert file is not None
        self.announcement = world.founder.node.training.participant.open_announcement(file.announcement)
        fields = {
            "announcement": self.announcement.id, "samples": 360, "step_micro": 0, "steps_per_ks": 0, "epsilon_milli": -1
        }  # fmt: skip
        stream = await self.puppet.open(world.founder, ENLIST)
        await self.puppet.wire.send(stream, Enlistment(**{**fields, **changes}))
        await stream.end()

    async def _serve(self, stream: Stream) -> None:
        wire = self.puppet.wire
        first: Any = await wire.receive(stream, RunOpening, RoundTask)
        if isinstance(first.message, RunOpening):
            self.award = await wire.receive(stream, Award)
            terms = self.award.message
            accept = self.puppet.entry(
                Accept, award=self.award.id, buyer=self.award.sender, job_id=terms.job_id, attempt=1
            )
            await stream.send(accept.raw)
            return
        await self._round(stream, first)

    async def _round(self, stream: Stream, task: Sealed[RoundTask]) -> None:
        asked = task.message
        change = await receive_bytes(stream, asked.payload_bytes)  # honest by default: nothing was learned
        sent = change if self.payload is None else self.payload
        assert self.announcement is not None
        recipe = self.announcement.message.recipe
        await stream.send(
            encode(FinishedFrame(reason="stop", text="", prompt_tokens=0, completion_tokens=recipe.steps))
        )
        fields = {
            "run": asked.run, "round": asked.round, "task": task.id, "payload": hashlib.sha256(sent).digest(),
            "payload_bytes": len(sent), "samples": 360, "steps": recipe.steps, "epsilon_milli": -1,
        }  # fmt: skip
        await self.puppet.wire.send(stream, RoundUpdate(**{**fields, **self.update}))
        await send_bytes(stream, sent)
        work = RoundWork(
            self.award,
            asked.run,
            asked.round,
            recipe,
            asked.state,
            hashlib.sha256(sent).digest(),
            recipe.steps,
        )
        drafted = draft_round_receipt(work, chargeable_micro=2**40, index=0, prev=NO_HASH)
        told = {
            name: getattr(drafted, name)
            for name in Receipt.__struct_fields__
            if name not in ("index", "prev")
        }
        receipt = self.puppet.entry(Receipt, **{**told, **self.receipt})
        self.receipts.append(receipt)
        if self.is_slow_to_charge:
            return
        await stream.send(receipt.raw)
        with trio.move_on_after(5):
            self.countersigned.append(await self.puppet.wire.receive(stream, Countersignature))

    async def claim(self, world: World, receipt: Sealed[Receipt]) -> Accepted:
        """Come for the countersignature of a round; return what the buyer said to have accepted."""
        terms = receipt.message
        wire, stream = self.puppet.wire, await self.puppet.open(world.founder, SETTLE)
        await wire.send(
            stream, SettlementWanted(award=terms.award, job_id=terms.job_id, attempt=terms.attempt)
        )
        accepted = (await wire.receive(stream, Accepted)).message
        await stream.send(receipt.raw)
        self.countersigned.append(await wire.receive(stream, Countersignature))
        return accepted


def companion(world: World, name: str, to: Sealed[RunAnnouncement]) -> Sealed[Enlistment]:
    """An enlistment by a key that nobody has admitted."""
    stranger = Puppet(world, name)
    return stranger.wire.seal(
        Enlistment(announcement=to.id, samples=360, step_micro=0, steps_per_ks=0, epsilon_milli=-1)
    )
