"""A coordinator's line to one member of its cohort: open the run there, ask for a round, take the update, pay for it.

Two kinds of line: a stream to another device, and none at all to this one, which takes part through the same functions.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from marketplace.batch import ATTEMPT, RoundWork, run_job_id
from node.chunks import receive_bytes, send_bytes
from node.clock import Clock
from node.services.fitting import Round, Task
from node.services.participant import Participant
from node.services.settlement import Settlement
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed, decode, narrow
from protocol.errors import AgoraError, MalformedMessage, MeshError, RemoteProtocolError
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import (
    NO_HASH,
    Accept,
    Award,
    Cancel,
    Decline,
    Enlistment,
    FailedFrame,
    FinishedFrame,
    JobFrame,
    ProgressFrame,
    RoundTask,
    RoundUpdate,
    RunAnnouncement,
    RunOpening,
)
from protocol.topics import ROUND

SILENCE_S = 30.0  # a member at work shows a sign of life twice a second
OPENING_TIMEOUT_S = 20.0  # for a member to verify the cohort and to have its accept on disk
END_TIMEOUT_S = 5.0
AGAIN_S = 30.0  # a member that went away is tried again for so long: a daemon that is restarted needs less
AGAIN_PAUSES_S = (1.0, 2.0, 4.0, 8.0)


class MemberRefused(AgoraError):
    """The member will not do it; the message is its reason."""


@dataclass(frozen=True)
class Wanted:
    """A round to be asked for; what goes out is made of it for each member."""

    round: int
    since: bytes
    state: bytes
    payload: bytes
    left_s: float
    update_bytes_max: int  # what an honest change to such a state never exceeds


@dataclass
class Traffic:
    """What one member's round has moved and how far it is."""

    bytes_down: int = 0
    bytes_up: int = 0
    step: int = 0


# Hands an update over to the run; returns why the gate does not let it in, empty when it does and is to be paid.
Take = Callable[[Sealed[RoundTask], Sealed[RoundUpdate], bytes], Awaitable[str]]


class CohortLink(Protocol):
    """The line to one member."""

    async def open(self, enlistments: tuple[Sealed[Enlistment], ...]) -> None:
        """Have the member verify the cohort and accept its award.

        Raises:
            AgoraError: it will not, or cannot be reached.
        """

    async def ask(self, wanted: Wanted, traffic: Traffic, take: Take) -> None:
        """Have a round trained, hand its update to `take`, and pay for it.

        Raises:
            AgoraError: there will be no update.
        """

    async def end(self) -> None:
        """Tell the member that the run is over; never raises for a peer."""


class StreamLink:
    """To another device."""

    def __init__(
        self,
        member: PeerId,
        announcement: Sealed[RunAnnouncement],
        enlistment: Sealed[Enlistment],
        award: Sealed[Award],
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        settlement: Settlement,
    ) -> None:
        self._member = member
        self._announcement = announcement
        self._enlistment = enlistment
        self._award = award
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._settlement = settlement

    async def open(self, enlistments: tuple[Sealed[Enlistment], ...]) -> None:
        """See `CohortLink.open`."""
        opening = RunOpening(
            run=self._announcement.message.run,
            announcement=self._announcement.raw,
            enlistments=tuple(each.raw for each in enlistments),
        )
        with trio.move_on_after(OPENING_TIMEOUT_S):
            stream = await self._mesh.open_stream(self._member, ROUND)
            try:
                await self._wire.send(stream, opening)
                await stream.send(self._award.raw)
                answer = await self._wire.receive(stream, Accept, Decline, may_repeat=True)
                if isinstance(answer.message, Decline):
                    raise MemberRefused(f"{answer.message.reason}: {answer.message.detail}")
                accept = narrow(answer, Accept)
                if accept is None or accept.message.award != self._award.id:
                    raise RemoteProtocolError(f"member {self._member} accepts another award")
                return
            except RemoteProtocolError as error:
                self._mesh.charge(self._member, error.offence)
                raise
            finally:
                stream.abort()
        raise MemberRefused("no answer to the opening in time")

    async def ask(self, wanted: Wanted, traffic: Traffic, take: Take) -> None:
        """See `CohortLink.ask`. A member that went away is tried again for a while: its result waits for us."""
        began = self._clock.now()
        pauses = iter(AGAIN_PAUSES_S)
        while True:
            try:
                await self._ask(wanted, traffic, take)
                return
            except RemoteProtocolError as error:
                self._mesh.charge(self._member, error.offence)
                raise
            except MeshError:
                pause_s = next(pauses, AGAIN_PAUSES_S[-1])
                if self._clock.now() + pause_s > began + min(AGAIN_S, wanted.left_s):
                    raise
            await trio.sleep(pause_s)

    async def _ask(self, wanted: Wanted, traffic: Traffic, take: Take) -> None:
        stream = await self._mesh.open_stream(self._member, ROUND)
        try:
            task = await self._wire.send(
                stream, _task(self._announcement.message.run, wanted, self._award.id)
            )
            await send_bytes(stream, wanted.payload)
            traffic.bytes_down += len(task.raw) + len(wanted.payload)
            await self._follow(stream, traffic)
            update = await self._wire.receive(stream, RoundUpdate)
            self._check(update, task, wanted)
            payload = await receive_bytes(stream, update.message.payload_bytes)
            traffic.bytes_up += len(update.raw) + len(payload)
            if hashlib.sha256(payload).digest() != update.message.payload:
                raise MalformedMessage(f"member {self._member} sent another payload than its update names")
            fault = await take(task, update, payload)
            if not fault and update.message.steps:
                await self._settlement.pay_round(stream, self._work(update.message, wanted))
            await stream.end()  # behind the countersignature: an abort would overtake it
        except BaseException:
            stream.abort()
            raise

    async def _follow(self, stream: Stream, traffic: Traffic) -> None:
        """Read progress to its end.

        Raises:
            MemberRefused: it will not, or cannot.
            MeshError: it is gone, or has said nothing for too long.
        """
        while True:
            with trio.move_on_after(SILENCE_S) as waiting:
                frame = decode(await stream.receive(), JobFrame)
            if waiting.cancelled_caught:
                raise MemberRefused(f"no sign of life for {SILENCE_S:g} s")
            match frame:
                case ProgressFrame():
                    traffic.step = frame.done
                case FinishedFrame():
                    return
                case FailedFrame():
                    raise MemberRefused(f"{frame.reason}: {frame.detail}")
                case _:
                    raise MalformedMessage("tokens came where a round was asked for")

    def _check(self, update: Sealed[RoundUpdate], task: Sealed[RoundTask], wanted: Wanted) -> None:
        said, recipe = update.message, self._announcement.message.recipe
        promised = self._enlistment.message
        is_right = (
            (said.run, said.round, said.task) == (task.message.run, task.message.round, task.id)
            and said.steps <= recipe.steps
            and said.samples <= promised.samples
            and said.payload_bytes <= wanted.update_bytes_max
        )
        if not is_right:
            raise MalformedMessage(f"update of {self._member} is not what its task and its bid say")

    def _work(self, update: RoundUpdate, wanted: Wanted) -> RoundWork:
        announced = self._announcement.message
        return RoundWork(
            award=self._award,
            run=announced.run,
            round=wanted.round,
            recipe=announced.recipe,
            state=wanted.state,
            payload=update.payload,
            steps=update.steps,
        )

    async def end(self) -> None:
        """See `CohortLink.end`."""
        try:
            with trio.move_on_after(END_TIMEOUT_S):
                stream = await self._mesh.open_stream(self._member, ROUND)
                job_id = run_job_id(self._announcement.message.run, self._member)
                await self._wire.send(stream, Cancel(job_id=job_id, attempt=ATTEMPT))
                await stream.end()
        except MeshError:
            return  # it will see by itself that nobody asks any more


class LocalLink:
    """To this device: no stream, no award, no money."""

    def __init__(
        self, announcement: Sealed[RunAnnouncement], *, wire: Wire, participant: Participant
    ) -> None:
        self._announcement = announcement
        self._wire = wire
        self._participant = participant

    async def open(self, enlistments: tuple[Sealed[Enlistment], ...]) -> None:
        """See `CohortLink.open`."""
        bid = self._participant.bid_for(self._announcement.id)
        if bid is None:
            raise MemberRefused("the own bid is no more")
        if why_not := self._participant.why_not_join(bid, enlistments):
            raise MemberRefused(why_not)
        await self._participant.join(bid, enlistments, None)

    async def ask(self, wanted: Wanted, traffic: Traffic, take: Take) -> None:
        """See `CohortLink.ask`."""
        run = self._announcement.message.run
        begun = self._participant.begin(run, Task(wanted.round, wanted.since, wanted.state, wanted.payload))
        if isinstance(begun, Round):
            while not begun.done.is_set():
                traffic.step = begun.step
                with trio.move_on_after(limits.PROGRESS_INTERVAL_S):
                    await begun.done.wait()
        outcome = (begun.result or begun.failure) if isinstance(begun, Round) else begun
        if outcome is None or isinstance(outcome, FailedFrame):
            raise MemberRefused(outcome.detail if outcome else "nothing came of it")
        task = self._wire.seal(_task(run, wanted, NO_HASH))
        update = self._wire.seal(
            RoundUpdate(
                run=run,
                round=outcome.round,
                task=task.id,
                payload=hashlib.sha256(outcome.payload).digest(),
                payload_bytes=len(outcome.payload),
                samples=outcome.samples,
                steps=outcome.steps,
                epsilon_milli=outcome.epsilon_milli,
            )
        )
        await take(task, update, outcome.payload)

    async def end(self) -> None:
        """See `CohortLink.end`."""
        await self._participant.end(self._announcement.message.run, "it has ended")


def _task(run: bytes, wanted: Wanted, award: bytes) -> RoundTask:
    return RoundTask(
        run=run,
        round=wanted.round,
        award=award,
        since=wanted.since,
        state=wanted.state,
        payload=hashlib.sha256(wanted.payload).digest(),
        payload_bytes=len(wanted.payload),
        left_ms=max(0, round(wanted.left_s * 1000)),
    )
