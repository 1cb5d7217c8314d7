"""Who is there when: devices that come and go as their owners use them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from node.simulation.devices import PROFILES, sessions_online

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World


class Attendance:
    """Starts and kills devices at the hours that their profiles draw; a task each."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._away: set[str] = set()  # who is not there when the world opens
        self._keeping: set[str] = set()  # who comes and goes

    def is_expected(self, daemon: "Daemon") -> bool:
        """Whether a device starts with the world."""
        return daemon.name not in self._away

    def online_share(self, daemon: "Daemon") -> float:
        """The share of its time, 0 to 1, that a device is there."""
        return PROFILES[daemon.profile].online_share if daemon.name in self._keeping else 1.0

    def keep_hours(self, daemons: Iterable["Daemon"]) -> None:
        """Let these come and go from now to the world's end; see `World.churn`."""
        world = self._world
        for daemon in daemons:
            profile = PROFILES[daemon.profile]
            if profile.online_mean_s is None:
                continue
            self._keeping.add(daemon.name)
            rng = world.random(f"churn {daemon.name}")
            stays = [
                (world.now + start, world.now + end)
                for start, end in sessions_online(rng, profile, world.seconds - world.now)
            ]
            is_away = not stays or stays[0][0] > world.now
            if is_away:
                self._away.add(daemon.name)
            world.nursery.start_soon(self._come_and_go, daemon, stays, is_away)

    async def _come_and_go(self, daemon: "Daemon", stays: list[tuple[float, float]], is_away: bool) -> None:
        world = self._world
        await world.opened.wait()
        if is_away:
            await daemon.kill()
        for start, end in stays:
            await trio.sleep(max(0.0, start - world.now))
            if not daemon.is_online:
                await daemon.start()
            await trio.sleep(max(0.0, end - world.now))
            if end < world.seconds:
                await daemon.kill()
