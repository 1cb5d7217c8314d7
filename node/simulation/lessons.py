"""What members and humans do in a storm where they learn: train, propose, approve, veto, withdraw, at random moments.

And the faults that learning alone can have: a coordinator dies in mid-round, a participant in mid-step.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final

from marketplace.assembly.ballot import BallotState
from node.event import Event
from node.simulation.toys import LINE, SKILL, crafted_adapter
from protocol.errors import AgoraError
from protocol.messages import NO_HASH

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

RUNS_MAX: Final = 2  # in one storm: each takes half of it
ROUNDS: Final = 3
PROPOSALS_MAX: Final = 6
APPROVING_SHARE: Final = 0.8  # of the times that the human reads of a patch that waits for it
VETOING_SHARE: Final = 0.15  # of the times that it reads of one in force
GOOD_SHARE: Final = 0.7  # of what is proposed
AT_WORK: Final = ("round_begun", "fit_begun", "privacy_reserved")

Mend = Callable[[], Awaitable[None]]
Occurrence = Callable[[], Awaitable[Mend | None]]


class Lessons:
    """What may happen, for `storm` to choose from.

    Args:
        world: whose learning is on.
        rng: decides.
        kill: pulls the plug of a device, and returns what brings it back.
    """

    def __init__(
        self, world: "World", rng: Random, kill: "Callable[[Daemon], Awaitable[Mend | None]]"
    ) -> None:
        self._world = world
        self._rng = rng
        self._kill = kill
        self._runs = 0
        self._proposals = 0
        self._at_work: str = ""  # who began a round last, as its coordinator or in its cohort
        world.watch(self._hear)

    @property
    def occurrences(self) -> tuple[tuple[int, Occurrence], ...]:
        """What may happen, and how often beside the other faults."""
        return (
            (8, self._train),
            (4, self._propose),
            (10, self._decide),
            (8, self._interrupt),
        )

    def _hear(self, _at_s: float, node: str, event: Event) -> None:
        if event.name in AT_WORK:
            self._at_work = node

    async def _train(self) -> None:
        """Somebody announces a run."""
        online = self._online()
        if self._runs < RUNS_MAX and online:
            self._runs += 1
            with suppress(AgoraError):  # its log is not confirmed, or its disk is full
                await self._world.learning.train(by=self._rng.choice(online), rounds=ROUNDS)

    async def _propose(self) -> None:
        """Somebody proposes an adapter that no run has made, good or bad."""
        online = self._online()
        if self._proposals >= PROPOSALS_MAX or not online:
            return
        self._proposals += 1
        device = self._rng.choice(online)
        skill = self._rng.randint(700_000, 1_000_000) if self._rng.random() < GOOD_SHARE else 0
        adapter = crafted_adapter({SKILL: skill, "talk": self._rng.randint(900_000, 1_000_000)})
        now_ms = device.clock.utc_ms()
        assembly = device.node.logbook.assembly
        with suppress(AgoraError):  # as above, or no line has been heard of
            head = assembly.ratified(LINE, now_ms)
            await self._world.learning.propose(
                device,
                adapter,
                version=assembly.next_version(LINE, now_ms),
                parent=head.id if head else NO_HASH,
            )

    async def _decide(self) -> None:
        """The human reads the proposals on some device, and says a word."""
        online = self._online()
        if not online:
            return
        device = self._rng.choice(online)
        learning = self._world.learning
        for ballot in device.node.logbook.assembly.ballots(device.clock.utc_ms()):
            lot = self._rng.random()
            with suppress(AgoraError):  # too late, or its disk is full
                if ballot.state is BallotState.CERTIFIED and lot < APPROVING_SHARE:
                    await learning.approve(ballot.id, at=device)
                elif ballot.state is BallotState.RATIFIED and lot < VETOING_SHARE:
                    if lot < VETOING_SHARE / 2:
                        await learning.veto(ballot.id, at=device)
                    else:
                        await learning.withdraw(ballot.manifest.message.adapter, at=device)

    async def _interrupt(self) -> Mend | None:
        """Whoever began a round last loses its power in the midst of it."""
        device = self._world.daemons.get(self._at_work)
        return await self._kill(device) if device and device.is_online else None

    def _online(self) -> "list[Daemon]":
        return [each for each in self._world.daemons.values() if each.is_online and not each.behaviour]
