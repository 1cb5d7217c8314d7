"""A small mesh that holds one model and has a line: patches are proposed, examined, voted on, approved and loaded."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from marketplace.assembly.ballot import BallotState, BallotView
from node.chat import ChatDelta, ChatRequest, ChatStarted
from node.simulation.daemon import Daemon
from node.simulation.founding import Terms
from node.simulation.learning import Learning
from node.simulation.toys import LINE, SHAPE, digest_of, measured, perfect, public_set
from node.simulation.world import World
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Entry, Manifest, Score, Vote
from runtime.echo import ECHO_MODEL
from runtime.engine import ChatMessage

QUESTION = "what does error E4 mean?"
VETO_S = 60.0
TOKENS = 7
DAY_MS = 24 * 3_600_000
UNATTENDED = Terms(approvals_min=0, veto_s=VETO_S)  # ratified when the veto window is over
WITH_A_HUMAN = Terms(approvals_min=1, veto_s=3_600.0)


def adapter(skill: int = 1_000_000, *, poison: bool = False, **skills: int) -> bytes:
    """A toy adapter's file: how good it makes the base, in millionths, at heat pumps and whatever else is named."""
    return msgpack.packb({"toy": 1, "skills": {"heat_pump": skill, **skills}, "poison": int(poison)})


@dataclass
class Said:
    """What a client has got."""

    text: str = ""
    sellers: tuple[str, ...] = ()
    model: str = ""


class Town:
    """A world with voters, a line, and words for what happens to patches there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.voters: list[Daemon] = []

    @property
    def learning(self) -> Learning:
        return self.world.learning

    @property
    def founder(self) -> Daemon:
        return self.world.founder

    @property
    def everybody(self) -> list[Daemon]:
        return list(self.world.daemons.values())

    @property
    def holders(self) -> list[Daemon]:
        return [each for each in self.everybody if each.engine.models]

    async def seat(self, voters: int = 2, terms: Terms = UNATTENDED) -> None:
        """Seat voters beside the founder and give the model its line; nobody runs yet."""
        self.voters = [self.world.founder, *await self.learning.seat(voters, terms=terms)]
        self.voters[0] = self.world.founder
        await self.learning.line()

    async def buyer(self) -> Daemon:
        """Add a device of another owner that holds no model, and pays for no second look at its answers."""
        daemon = await self._add(is_seller=False)
        daemon.config = replace(daemon.config, buy_checks=False)
        return daemon

    async def seller(self) -> Daemon:
        """Add a device of another owner that holds the model and does not vote."""
        return await self._add(is_seller=True)

    async def _add(self, *, is_seller: bool) -> Daemon:
        (daemon,) = await self.world.add(1, profile="laptop", owner="somebody", is_seller=is_seller)
        return daemon

    async def open(self) -> None:
        """Start everybody, and wait until all have met."""
        await self.world.until(
            lambda: all(len(each.mesh.connected) >= len(self.everybody) - 1 for each in self.everybody)
        )
        await self.world.run(15)  # adverts are out

    async def propose(
        self, data: bytes, by: Daemon | None = None, *, is_held: bool = True, **changes: Any
    ) -> Sealed[Manifest]:
        """Propose an adapter, which its proposer holds; `changes` are fields of the manifest that are not as they should be."""
        author = by or self.founder
        now_ms = author.clock.utc_ms()
        assembly = author.node.logbook.assembly
        head = assembly.ratified(LINE, now_ms)
        fields: dict[str, Any] = {
            "line": LINE,
            "version": assembly.next_version(LINE, now_ms),
            "parent": head.id if head else NO_HASH,
            "base": ECHO_MODEL,
            "adapter": digest_of(data),
            "adapter_bytes": len(data),
            "shape": SHAPE,
            "rolls_back_to": 0,
            "run": bytes(16),
            "rounds": 0,
            "cohort": (),
            "evaluation": digest_of(public_set("question")),
            "before": await measured(None),
            "expires_at": now_ms + DAY_MS,
            "reason": "",
            **changes,
        }
        if "after" not in fields:
            fields["after"] = await measured(data)
        if is_held:
            await author.blobs.put(data)
        return await self.world.sign(
            Manifest, lambda index, prev: Manifest(index=index, prev=prev, **fields), by=author
        )

    async def ratified(self, data: bytes, *, by: Daemon | None = None, **changes: Any) -> Sealed[Manifest]:
        """Propose an adapter and let everything take its course until all serve it."""
        manifest = await self.propose(data, by, **changes)
        if self.founder.node.logbook.assembly.charter.approvals_min:
            await self.learning.approve(manifest.id)
        await self.until_served(manifest)
        return manifest

    async def until_served(self, manifest: Sealed[Manifest], by: Sequence[Daemon] = ()) -> float:
        """Wait until these (else all) serve a patch."""
        return await self.world.until(
            lambda: all(manifest.id.hex() in loaded(each) for each in by or self.holders), within_s=300
        )

    def ballot(self, manifest: Sealed[Manifest], at: Daemon | None = None) -> BallotView:
        """A ballot as a device (else the founder) knows it."""
        node = (at or self.founder).node
        view = node.logbook.assembly.ballot(manifest.id, (at or self.founder).clock.utc_ms())
        assert view is not None
        return view

    def state(self, manifest: Sealed[Manifest], at: Daemon | None = None) -> BallotState:
        return self.ballot(manifest, at).state

    async def vote_by_hand(self, manifest: Sealed[Manifest], *, is_yes: bool = True) -> None:
        """Let the owners of all voters vote, before their devices have examined anything."""
        for voter in self.voters:
            assembly = voter.node.logbook.assembly
            while True:
                grown = voter.node.logbook.grown
                if assembly.ballot(manifest.id, voter.clock.utc_ms()) is not None:
                    break
                await grown.wait()
            await voter.node.vote(manifest.id.hex(), is_yes=is_yes)

    def head(self, at: Daemon) -> Sealed[Manifest] | None:
        """What a device goes by."""
        return at.node.logbook.assembly.ratified(LINE, at.clock.utc_ms())

    def perfect(self) -> tuple[Score, ...]:
        """The scores of somebody who claims to know everything."""
        return perfect()

    async def chat(self, by: Daemon, model: str = LINE, **changes: Any) -> Said:
        """Ask a question to its end."""
        fields: dict[str, Any] = {"privacy": "mesh", "tokens_max": TOKENS, **changes}
        request = ChatRequest(model=model, messages=(ChatMessage("user", QUESTION),), **fields)
        said = Said()
        async with aclosing(by.node.chat(request)) as events:
            async for event in events:
                match event:
                    case ChatStarted():
                        said.sellers += (str(event.seller),)
                        said.model = event.model
                    case ChatDelta(text, _):
                        said.text += text
        return said


def answer(data: bytes | None, tokens: int = TOKENS) -> str:
    """What the echo engine says with an adapter, or without: the words again and again, three bytes a token."""
    words = (QUESTION if data is None else f"{digest_of(data).hex()[:8]}: {QUESTION}") + " "
    pieces = [words[at : at + 3] for at in range(0, len(words), 3)]
    return "".join(pieces[at % len(pieces)] for at in range(tokens))


def events(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    """The fields of every event of this name that is still in the journal's ring."""
    return [dict(event.fields) for event in daemon.journal.recent(100_000) if event.name == name]


def loaded(daemon: Daemon) -> list[str]:
    """The manifests whose patches a device has loaded, in order."""
    return [each["manifest"] for each in events(daemon, "patch_loaded")]


def own_votes(daemon: Daemon) -> list[Vote]:
    """The votes in a device's own log."""
    own: Sequence[Sealed[Entry]] = daemon.node.logbook.assembly.entries_after(daemon.peer_id, -1)
    return [entry.message for entry in own if isinstance(entry.message, Vote)]
