"""The double voter: on the roll, and for everything: it says yes to each patch it hears of, whatever it said before.

Two of its yes for one version of a line are evidence by themselves. The earlier signed one counts, and whoever sees
both bars the key.
"""

from typing import ClassVar, Final

from node.simulation.adversaries.adversary import Adversary
from protocol.messages import Manifest, Vote

LOOKS_MEAN_S: Final = 2.0


class DoubleVoter(Adversary):
    """Votes without looking, and as often as it is asked."""

    name: ClassVar[str] = "double-voter"
    about: ClassVar[str] = "says yes to every patch without looking, also to two of one version"

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
        vote = await node.logbook.write(
            Vote,
            lambda index, prev: Vote(
                index=index,
                prev=prev,
                manifest=manifest,
                line=about.line,
                version=about.version,
                is_yes=True,
                scores=about.after,
                private="passed",
                reason="",
            ),
        )
        await node.sync.announce(vote)
        self.strike("voted", manifest=manifest.hex(), version=about.version)
