"""The Sybil swarm: one human, one invitation, and as many keys as it admits.

Each key is a whole device to the others: a member, with a price of 1. What it costs is one invitation of the founder's,
which counts its uses; that count is the only bound on a swarm. Half of the keys never answer, half are capacity liars.
"""

from typing import TYPE_CHECKING, ClassVar, Final, cast

import trio

from marketplace.assembly.invitation import join_request, open_answer, parse
from node.clock import MembersTime
from node.simulation.adversaries.faithless_sellers import CapacityLiar, SilentWinner
from node.wire import Wire
from protocol.errors import AgoraError
from protocol.limits import CREDIT_LINE_MICRO_DEFAULT
from protocol.messages import Entries, Refusal
from protocol.topics import ADMISSION

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

KEYS_ADMITTED: Final = 4  # as many as the founder thought that this human has devices
KEYS_MADE: Final = 6  # and what it tries
INVITATION_S: Final = 3_600.0
JOIN_MEAN_S: Final = 2.0


class SybilSwarm(SilentWinner):
    """The swarm's first device: it joins in the name of all the others."""

    name: ClassVar[str] = "sybil-swarm"
    about: ClassVar[str] = (
        "one human joins with as many keys as its invitation admits, all cheap, none useful"
    )

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self._keys_made = 0

    async def run(self) -> None:
        """See `Adversary.run`; make the keys, one after the other, once."""
        text = ""
        while not text:
            await self.pause(JOIN_MEAN_S)
            text = await self._ask_for_invitation()
        while self._keys_made < KEYS_MADE:
            self._keys_made += 1
            await self.pause(JOIN_MEAN_S)
            await self._make_key(f"{self.daemon.name}-key-{self._keys_made}", text)

    async def _ask_for_invitation(self) -> str:
        """Talk the founder into an invitation for the human's devices; empty while it cannot admit anybody."""
        try:
            made = await self.world.founder.node.invite(
                expires_s=INVITATION_S,
                uses=KEYS_ADMITTED,
                owner=self.daemon.config.owner,
                credit_line_micro=CREDIT_LINE_MICRO_DEFAULT,
            )
        except AgoraError:
            return ""
        return str(made["invitation"])

    async def _make_key(self, name: str, invitation: str) -> None:
        """Join as a new device; the founder decides whether it may."""
        key = self.world.newcomer(name, profile=self.daemon.profile, owner=self.daemon.config.owner)
        kind = SilentKey if self._keys_made % 2 else LyingKey
        key.adversary = kind(self.world, key)
        answers: list[Entries | Refusal] = []
        if not await self.attempt(self._ask_to_join, key, invitation, answers):
            self.strike("unanswered", key=key.peer_id)
        elif isinstance(answers[0], Refusal):
            self.strike("refused", key=key.peer_id, reason=answers[0].reason)
        else:
            self.world.daemons[name] = key
            await key.start()
            self.strike("joined", key=key.peer_id)

    async def _ask_to_join(self, key: "Daemon", invitation: str, answers: list[Entries | Refusal]) -> None:
        """Do what `agora join` does: dial the issuer, prove that the invitation is here, verify the answer."""
        invite = parse(invitation, utc_ms=key.clock.utc_ms())
        mesh = self.world.network.join(key.peer_id, key.journal)
        boot = self.rng.getrandbits(56)
        wire = Wire(
            key.identity, invite.mesh, boot=boot, clock=key.clock, members_time=MembersTime(key.clock)
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(mesh.run)
            issuer = await mesh.dial(invite.sealed.message.addresses[0])
            stream = await mesh.open_stream(issuer, ADMISSION)
            await wire.send(stream, join_request(invite, key.peer_id))
            reply = (await wire.receive(stream, Entries, Refusal)).message
            if isinstance(reply, Entries):
                open_answer(reply, invite, key.peer_id)
            answers.append(cast("Entries | Refusal", reply))
            nursery.cancel_scope.cancel()


class SilentKey(SilentWinner):
    """A key of the swarm that never answers."""

    name: ClassVar[str] = SybilSwarm.name


class LyingKey(CapacityLiar):
    """A key of the swarm that serves everybody at once, and so nobody."""

    name: ClassVar[str] = SybilSwarm.name
