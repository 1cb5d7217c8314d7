"""An adversary: the part of a device that misbehaves. The node beside it stays the production one.

Each behaviour swaps one seam of its device (the engine, the mesh under the node, the prices) or acts beside the node
with the device's own key, as a hostile daemon could that was built from the same sources. Whatever it does it counts
and journals, so a test can see that the attack was really made.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import trio

from node.node import Ports
from node.simulation.devices import PROFILES, Profile
from protocol.errors import AgoraError
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.topics import StreamProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from node.simulation.daemon import Daemon
    from node.simulation.world import World

CHEAP_MICRO = 1  # per token: whoever asks less gives it away
PATIENCE_S = 5.0  # for one attack: a victim may simply not answer


class Adversary:
    """What a behaviour begins as: it does nothing wrong yet.

    Args:
        world: where it lives; all its chance is drawn there.
        daemon: its device, not yet started; what the behaviour swaps is swapped here.

    Attributes:
        name: what `World.add` calls it.
        about: one line, what it tries.
        attacks: what it did, and how often.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        self.world = world
        self.daemon = daemon
        self.rng = world.random(f"{self.name} {daemon.name}")
        self.attacks: Counter[str] = Counter()

    # --- what a behaviour overrides -------------------------------------------------------------------------------
    def tap(self, mesh: Mesh) -> Mesh:
        """Return the mesh that the node is given: the true one, or one that does something to what passes."""
        return mesh

    def equip(self, ports: Ports) -> Ports:
        """Return what the node stands on: the true ports, or some that lie."""
        return ports

    async def run(self) -> None:
        """Act beside the node, from the start of the process to its end."""

    # --- what behaviours share ------------------------------------------------------------------------------------
    def strike(self, what: str, **ids: object) -> None:
        """Count one attack, and say so in the journal."""
        self.attacks[what] += 1
        self.daemon.journal.write("attack_made", behaviour=self.name, what=what, **ids)

    def undercut(self) -> None:
        """Ask less than anybody honest can, so that the attack is bought."""
        self.daemon.config = replace(
            self.daemon.config, price_prompt_micro=CHEAP_MICRO, price_completion_micro=CHEAP_MICRO
        )

    @property
    def profile(self) -> Profile:
        """What its device could do."""
        return PROFILES[self.daemon.profile]

    def neighbours(self) -> list[PeerId]:
        """The connected peers, in the same order in every run."""
        return sorted(self.daemon.mesh.connected)

    async def pause(self, mean_s: float) -> None:
        """Wait about so long."""
        await trio.sleep(mean_s * self.rng.uniform(0.5, 1.5))

    @asynccontextmanager
    async def stream(self, peer_id: PeerId, protocol: StreamProtocol) -> "AsyncIterator[Stream]":
        """Open a stream past the node, and leave it behind broken off."""
        stream = await self.daemon.mesh.open_stream(peer_id, protocol)
        try:
            yield stream
        finally:
            stream.abort()

    async def attempt(self, attack: Callable[..., Awaitable[None]], *arguments: Any) -> bool:
        """Make one attack; a victim that does not answer, or hangs up, is no reason to stop. Return whether it went through."""
        went_through = True
        try:
            with trio.fail_after(PATIENCE_S):
                await attack(*arguments)
        except* (AgoraError, trio.TooSlowError):
            went_through = False
        return went_through
