"""The double voter: on the roll, and for everything: it says yes to each patch it hears of, whatever it said before.

Two of its yes for one version of a line are evidence by themselves. The earlier signed one counts, and whoever sees
both bars the key.
"""

from dataclasses import replace
from typing import ClassVar, Final

from node.node import Ports
from node.simulation.adversaries.adversary import Adversary
from protocol.messages import NO_HASH, Manifest, Vote
from protocol.topics import ASSEMBLY

LOOKS_MEAN_S: Final = 2.0


class DoubleVoter(Adversary):
    """Votes without looking, and as often as it is asked."""

    name: ClassVar[str] = "double-voter"
    about: ClassVar[str] = "says yes to every patch without looking, also to two of one version"

    def equip(self, ports: Ports) -> Ports:
        """See `Adversary.equip`; who does not look needs no examiner."""
        return replace(ports, examiner=None)

    async def run(self) -> None:
        """See `Adversary.run`."""
        said: set[bytes] = set()
        while True:
            await self.pause(LOOKS_MEAN_S)
            assembly = self.daemon.node.logbook.assembly
            if not assembly.weight(self.daemon.peer_id):
                continue
            for head in assembly.heads():
                for entry in assembly.entries_after(head.author, -1):  # type: ignore[arg-type]
                    if isinstance(entry.message, Manifest) and entry.id not in said:
                        said.add(entry.id)
                        await self.attempt(self._say_yes, entry.id, entry.message)

    async def _say_yes(self, manifest: bytes, about: Manifest) -> None:
        node = self.daemon.node
        head = node.logbook.head(self.daemon.peer_id, "assembly")
        place = (head.index + 1, head.entry) if head else (0, NO_HASH)

        def vote(index: int, prev: bytes) -> Vote:
            return Vote(
                index=index,
                prev=prev,
                manifest=manifest,
                line=about.line,
                version=about.version,
                is_yes=True,
                scores=about.after,
                private="passed",
                reason="",
            )

        earlier = node.logbook.assembly.said_yes(self.daemon.peer_id, about.line, about.version)
        if earlier is None:
            await node.sync.announce(await node.logbook.write(Vote, vote))
        else:  # its own node would not write this one
            await self.daemon.mesh.publish(ASSEMBLY, node.wire.seal(vote(*place)).raw)
        self.strike("voted" if earlier is None else "voted_again", manifest=manifest, version=about.version)
