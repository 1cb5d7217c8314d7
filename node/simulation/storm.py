"""A storm: random faults from the world's seed, many at once, while people chat; then all is mended.

What the laws promise must hold in it and after it. The mended world keeps what no repairman sets right: clocks stay as
wrong as they were left, and what a crash took is gone.
"""

import heapq
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import count
from random import Random
from typing import Final

import trio

from node.chat import ChatDelta, ChatError, ChatRequest
from node.simulation.daemon import Daemon
from node.simulation.lessons import Lessons
from node.simulation.link import Link
from node.simulation.observations import Outcome
from node.simulation.world import World
from protocol.errors import AgoraError
from protocol.messages import Card, Privacy, Task
from runtime.echo import ECHO_MODEL
from runtime.engine import ChatMessage

FAULT_MEAN_S: Final = 5.0  # from one fault to the next
FAULT_LASTS_MEAN_S: Final = 12.0  # so two or three befall a small world at any time
FAULT_LASTS_S_MAX: Final = 60.0
CHAT_MEAN_S: Final = 3.0  # from one question to the next, of all people
SKEW_S_MAX: Final = 25.0  # two such clocks differ by less than the 60 s that live messages allow
ENGINE_TOKENS_MAX: Final = 40  # an engine dies or stalls within the first so many tokens of an answer
NEWCOMERS_MAX: Final = 2
LEAVING_SHARE: Final = 0.1  # of the people who ask: they leave in the middle of the answer
PRIVACY: Final[tuple[tuple[Privacy, int], ...]] = (("mesh", 7), ("owner", 2), ("local", 1))
TASKS: Final[tuple[tuple[Task, int], ...]] = (("chat", 8), ("completion", 1), ("embedding", 1))

Mend = Callable[[], Awaitable[None]]


async def storm(world: World, seconds: float) -> None:
    """Let faults befall a world of a few devices for so long; when this returns, all of them are over."""
    async with trio.open_nursery() as people:
        people.start_soon(_chat, world, people)
        await _Storm(world).blow(seconds)
        people.cancel_scope.cancel()


# --- faults -------------------------------------------------------------------------------------------------------
class _Storm:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.random("storm")
        self._mends: list[tuple[float, int, Mend]] = []
        self._numbers = count()
        self._newcomers = 0
        self._faults: tuple[tuple[int, Callable[[], Awaitable[Mend | None]]], ...] = (
            (4, self._part),
            (3, self._cut_one_way),
            (3, self._suspend),
            (6, self._kill),
            (2, self._cut_power),
            (3, self._restart),
            (3, self._clog),
            (3, self._rough_weather),
            (3, self._rough_links),
            (3, self._set_clock),
            (3, self._break_engine),
            (3, self._stall_engine),
            (2, self._fill_disk),
            (2, self._publish),
            (1, self._admit),
        )
        if world.learning.is_on:
            self._faults += Lessons(world, self._rng, self._without_power).occurrences

    async def blow(self, seconds: float) -> None:
        """Let one fault follow the other, each mended in its time; then mend all."""
        until = trio.current_time() + seconds
        weights = [weight for weight, _ in self._faults]
        while True:
            next_at = trio.current_time() + self._rng.expovariate(1 / FAULT_MEAN_S)
            await self._mend_until(min(next_at, until))
            if next_at >= until:
                break
            _, fault = self._rng.choices(self._faults, weights)[0]
            mend = await fault()
            if mend is not None:
                lasts_s = min(FAULT_LASTS_S_MAX, self._rng.expovariate(1 / FAULT_LASTS_MEAN_S))
                heapq.heappush(self._mends, (trio.current_time() + lasts_s, next(self._numbers), mend))
        await self._mend_all()

    async def _mend_until(self, time_s: float) -> None:
        while self._mends and self._mends[0][0] <= time_s:
            at_s, _, mend = heapq.heappop(self._mends)
            await trio.sleep_until(at_s)
            await mend()
        await trio.sleep_until(time_s)

    async def _mend_all(self) -> None:
        while self._mends:
            await heapq.heappop(self._mends)[2]()
        self._world.heal()

    # --- the network --------------------------------------------------------------------------------------------
    async def _part(self) -> Mend:
        """Cut the mesh in two."""
        devices = list(self._world.daemons.values())
        self._rng.shuffle(devices)
        at = self._rng.randint(1, len(devices) - 1)
        self._world.partition(devices[:at], devices[at:])
        return self._heal(*devices[:at])

    async def _cut_one_way(self) -> Mend:
        """One device no longer hears another, which hears it."""
        one, other = self._rng.sample(list(self._world.daemons.values()), 2)
        self._world.network.cut(one.peer_id, other.peer_id)
        return self._heal(one)

    async def _suspend(self) -> Mend:
        device = self._anybody()
        self._world.network.suspend(device.peer_id)
        return self._heal(device)

    def _heal(self, *devices: Daemon) -> Mend:
        async def mend() -> None:
            self._world.network.heal(*(device.peer_id for device in devices))

        return mend

    async def _clog(self) -> None:
        self._world.network.clog(self._anybody().peer_id, self._rng.uniform(0.5, 15))

    async def _rough_weather(self) -> Mend:
        self._world.network.weather = self._link()

        async def mend() -> None:
            self._world.network.weather = Link()

        return mend

    async def _rough_links(self) -> Mend:
        """What one device sends suffers; what it hears does not."""
        device, network = self._anybody(), self._world.network
        link = self._link()
        others = [other for other in self._world.daemons.values() if other is not device]
        for other in others:
            network.set_link(device.peer_id, other.peer_id, link)

        async def mend() -> None:
            for other in others:
                network.set_link(device.peer_id, other.peer_id, Link())

        return mend

    def _link(self) -> Link:
        rng = self._rng
        return Link(
            jitter_s=rng.choice((0.0, 0.05, 0.5)),
            loss=rng.choice((0.0, 0.02, 0.2)),
            duplication=rng.choice((0.0, 0.1)),
            reordering=rng.choice((0.0, 0.3)),
            slowness_s=rng.choice((0.0, 0.0, 0.3, 1.5)),
        )

    # --- devices ------------------------------------------------------------------------------------------------
    async def _kill(self) -> Mend:
        return await self._without_power(self._anybody())

    async def _cut_power(self) -> Mend:
        """Several devices in one house."""
        devices = list(self._world.daemons.values())
        return await self._without_power(*self._rng.sample(devices, self._rng.randint(2, len(devices))))

    async def _without_power(self, *devices: Daemon) -> Mend:
        gone = [device for device in devices if device.is_online]
        await self._world.kill(*gone)

        async def mend() -> None:
            for device in gone:
                if not device.is_online:
                    await device.start()

        return mend

    async def _restart(self) -> None:
        """A device comes back before its peers have got used to its absence."""
        device = self._anybody()
        if device.is_online:
            await device.restart()

    async def _set_clock(self) -> None:
        self._anybody().clock.skew_ms = round(self._rng.uniform(-SKEW_S_MAX, SKEW_S_MAX) * 1_000)

    async def _break_engine(self) -> Mend:
        engine = self._anybody().engine
        engine.die_after = self._rng.randint(0, ENGINE_TOKENS_MAX)

        async def mend() -> None:
            engine.die_after = None

        return mend

    async def _stall_engine(self) -> Mend:
        engine = self._anybody().engine
        engine.stall_after = self._rng.randint(0, ENGINE_TOKENS_MAX)

        async def mend() -> None:
            engine.stall_after = None

        return mend

    async def _fill_disk(self) -> Mend:
        disk = self._anybody().disk
        await disk.fill()

        async def mend() -> None:
            disk.empty()

        return mend

    # --- what the founder does ------------------------------------------------------------------------------------
    async def _publish(self) -> None:
        """The founder binds a name to the model, and everybody has to hear of it."""
        founder = self._world.founder
        name = f"name-{self._rng.randint(1, 3)}"
        if founder.is_online:
            with suppress(AgoraError):  # its log is not confirmed, or its disk is full
                entry = await founder.node.logbook.write(
                    Card, lambda index, prev: Card(index=index, prev=prev, name=name, model=ECHO_MODEL)
                )
                await founder.node.sync.announce(entry)

    async def _admit(self) -> None:
        """Somebody joins in the middle of it all."""
        if self._newcomers < NEWCOMERS_MAX and self._world.founder.is_online:
            self._newcomers += 1
            with suppress(AgoraError):  # as above
                await self._world.add(1, is_seller=self._rng.random() < 0.5)

    def _anybody(self) -> Daemon:
        return self._rng.choice(list(self._world.daemons.values()))


# --- people -------------------------------------------------------------------------------------------------------
async def _chat(world: World, people: trio.Nursery) -> None:
    """Ask on devices that happen to be online; some go on with a conversation, some leave before the end."""
    rng = world.random("people")
    while True:
        await trio.sleep(rng.expovariate(1 / CHAT_MEAN_S))
        online = [daemon for daemon in world.daemons.values() if daemon.is_online]
        if not online:
            continue
        daemon = rng.choice(online)
        request = _question(rng, daemon)
        if rng.random() < LEAVING_SHARE:
            people.start_soon(_leave_early, daemon, request, rng.randint(1, 4))
        else:
            outcome = Outcome(at_s=trio.current_time(), buyer=daemon.name)
            world.outcomes.append(outcome)
            world.nursery.start_soon(daemon.ask, request, outcome)


def _question(rng: Random, daemon: Daemon) -> ChatRequest:
    classes, weights = zip(*PRIVACY, strict=True)
    has_session = rng.random() < 0.5
    words = "once more " * rng.randint(1, 40)
    request = ChatRequest(
        model="auto",
        messages=(),
        tokens_max=rng.randint(1, 120),
        privacy=rng.choices(classes, weights)[0],
        session=f"{daemon.name} {rng.randint(1, 2)}".encode().ljust(32) if has_session else None,
    )
    tasks, task_weights = zip(*TASKS, strict=True)
    match rng.choices(tasks, task_weights)[0]:
        case "completion":
            return replace(request, task="completion", inputs=(words,))
        case "embedding":
            return replace(request, task="embedding", inputs=(words,) * rng.randint(1, 8))
        case _:
            return replace(request, messages=(ChatMessage("user", words),))


async def _leave_early(daemon: Daemon, request: ChatRequest, deltas: int) -> None:
    with suppress(ChatError):
        async with aclosing(daemon.node.chat(request)) as events:
            async for event in events:
                deltas -= isinstance(event, ChatDelta)
                if deltas <= 0:
                    return
