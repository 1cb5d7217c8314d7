"""What stories say about learning: who votes, what a line is judged by, who holds data, who trains, what humans decide.

`world.learning` has these words. A world in which somebody is to learn says so before its first `run` (`seat`, `line`
and `give_data` do); in all others no device has a trainer, and nothing that computes is imported.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgpack
import trio

from node import records
from node.data_sets import DataSet
from node.node import Ports
from node.simulation.founding import Terms
from node.simulation.virtual_clock import NOON_MS
from protocol.envelope import Sealed, seal
from protocol.messages import (
    NO_HASH,
    Approval,
    Entry,
    Line,
    LoraShape,
    Manifest,
    Score,
    Veto,
    Withdrawal,
)
from runtime.echo import ECHO_MODEL
from runtime.engine import Digest

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.learning_kit import LearningKit
    from node.simulation.world import World

E = TypeVar("E", bound=Entry)

LINE: Final = "echo"  # the one model's name
HUMAN: Final = "a human"
SKILL: Final = "heat_pump"  # a domain of the toy model, and the name of the data that teaches it
DOMAINS: Final = (SKILL, "appliances", "addition", "units", "talk")
QUESTIONS_PER_DOMAIN: Final = 8
EXPIRES_MS: Final = 7 * 24 * 3_600_000  # of a manifest that a story makes
SHAPE: Final = LoraShape(rank=8, alpha=16, targets=("attn_q",))


class Learning:
    """The learning of a world.

    Attributes:
        is_on: whether its devices have what they need to learn.
        human: who approves; no device holds this key.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.is_on = False
        self.human = world.identity(HUMAN)
        self._human_log: list[Sealed[Entry]] = []

    def begin(self) -> None:
        """Give each device what it needs to learn.

        Raises:
            ValueError: too late: the devices run already.
        """
        if self._world.is_open and not self.is_on:
            raise ValueError("the devices run already, and have no trainers: speak of learning before 'run'")
        self.is_on = True

    def equip(self, daemon: "Daemon", ports: Ports) -> Ports:
        """Give a device what it learns with, if anybody does here."""
        if not self.is_on:
            return ports
        kit: LearningKit = importlib.import_module("node.simulation.learning_kit").LearningKit(daemon)
        return replace(ports, trainer=kit.trainer(ports.rng), adapters=kit.adapters())

    # --- who decides ------------------------------------------------------------------------------------------------
    async def seat(
        self, voters: int, *, profile: str = "laptop", terms: Terms | None = None
    ) -> "list[Daemon]":
        """Put further devices on the founding charter's roll, each of an owner of its own; before any other is added.

        Args:
            voters: how many, beside the founder.
            profile: of their devices; they hold the model, or they could examine nothing.
            terms: how the mesh decides.
        """
        world = self._world
        self.begin()
        if len(world.daemons) > 1:
            raise ValueError("voters are seated before any other device is added")
        names = [f"voter-{number}" for number in range(1, voters + 1)]
        seated = [world.make(name, profile, name, is_seller=True) for name in names]
        world.found(terms, seated)
        return seated

    # --- what is learned, and from what -----------------------------------------------------------------------------
    async def line(self, name: str = LINE, *, by: "Daemon | None" = None) -> Sealed[Line]:
        """Have a voter (else the founder) give the model its public sets; all its devices that are there hold them."""
        self.begin()
        questions, examples = public_set("question"), public_set("example")
        publisher = by or self._world.founder
        for data in (questions, examples):
            await publisher.blobs.put(data)

        def place(index: int, prev: bytes) -> Line:
            return Line(
                index=index,
                prev=prev,
                name=name,
                base=ECHO_MODEL,
                evaluation=digest_of(questions),
                evaluation_bytes=len(questions),
                replay=digest_of(examples),
                replay_bytes=len(examples),
            )

        return await self._world.sign(Line, place, by=publisher)

    def give_data(
        self,
        device: "Daemon",
        name: str = SKILL,
        *,
        samples: int = 400,
        budget_milli: int = 0,
        first: int = 0,
    ) -> DataSet:
        """Register a private data set on a device, as `agora data add` does.

        Args:
            device: whose it is.
            name: what runs ask for; it trains the skill of this name.
            samples: records, those held out among them.
            budget_milli: the epsilon that its owner allows, in thousandths; 0: without differential privacy.
            first: the number of its first record: sets that overlap hold the same records.
        """
        self.begin()
        pairs = [(f"{name} {number}", f"answer {number}") for number in range(first, first + samples)]
        found = records.read(records.encode(pairs), Path(name))
        return device.data.insert(name, found, budget_milli).data_set

    async def propose(
        self,
        by: "Daemon",
        adapter: bytes,
        *,
        version: int = 1,
        parent: bytes = NO_HASH,
        after: int = QUESTIONS_PER_DOMAIN,
        line: str = LINE,
        shift_ms: int = 0,
    ) -> Sealed[Manifest]:
        """Have a member propose an adapter that no run has made; in its own name, whatever it is worth.

        Args:
            by: who proposes; its node writes the entry.
            adapter: the file.
            version: of the line.
            parent: the manifest that it follows.
            after: right answers that the proposal claims in each domain.
            line: whose.
            shift_ms: added to the expiry, to make one that is over.
        """
        evaluation = public_set("question")
        expires_at = by.clock.utc_ms() + EXPIRES_MS + shift_ms

        def place(index: int, prev: bytes) -> Manifest:
            return Manifest(
                index=index,
                prev=prev,
                line=line,
                version=version,
                parent=parent,
                base=ECHO_MODEL,
                adapter=digest_of(adapter),
                adapter_bytes=len(adapter),
                shape=SHAPE,
                rolls_back_to=0,
                run=bytes(16),
                rounds=0,
                cohort=(),
                evaluation=digest_of(evaluation),
                before=scores(0),
                after=scores(after),
                expires_at=expires_at,
                reason="",
            )

        return await self._world.sign(Manifest, place, by=by)

    # --- what humans say --------------------------------------------------------------------------------------------
    async def approve(self, manifest: bytes, *, at: "Daemon | None" = None) -> Sealed[Approval]:
        """Have the human approve, on this device (else the founder's)."""
        return await self._say(
            lambda index, prev: Approval(index=index, prev=prev, manifest=manifest), at or self._world.founder
        )

    async def veto(self, manifest: bytes, *, at: "Daemon | None" = None) -> Sealed[Veto]:
        """Have the human veto a patch, on this device (else the founder's)."""
        return await self._say(
            lambda index, prev: Veto(index=index, prev=prev, manifest=manifest, reason="no"),
            at or self._world.founder,
        )

    async def withdraw(self, adapter: bytes, *, at: "Daemon | None" = None) -> Sealed[Withdrawal]:
        """Have the human bar an adapter for ever, on this device (else the founder's)."""
        return await self._say(
            lambda index, prev: Withdrawal(index=index, prev=prev, adapter=adapter, reason="it harms"),
            at or self._world.founder,
        )

    async def _say(self, place: Callable[[int, bytes], E], device: "Daemon") -> Sealed[E]:
        """Sign a word of the human, and hand all of its words that the device lacks over to its daemon."""
        log = self._human_log
        entry = seal(
            place(len(log), log[-1].id if log else NO_HASH),
            self.human,
            mesh=self._world.mesh_id,
            seq=(1, len(log) + 1),
            time_ms=NOON_MS + int(trio.current_time() * 1000),
        )
        log.append(entry)
        known = device.node.logbook.head(self.human.peer_id, "assembly")
        for word in log[known.index + 1 if known else 0 :]:
            await device.node.logbook.take([word])
            await device.node.sync.announce(word)
        return entry


# --- what is asked ----------------------------------------------------------------------------------------------------
def public_set(what: str) -> bytes:
    """Return a public set of the toy domains, as a blob: JSON lines of `{"domain", "prompt", "response"}`."""
    lines = [
        json.dumps(
            {"domain": domain, "prompt": f"{what} {number} of {domain}", "response": f"{domain} {number}"}
        )
        for domain in DOMAINS
        for number in range(QUESTIONS_PER_DOMAIN)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def scores(right: int) -> tuple[Score, ...]:
    """Return scores that claim so many right answers in each domain."""
    return tuple(
        Score(domain=domain, right=right, total=QUESTIONS_PER_DOMAIN, loss_milli=100) for domain in DOMAINS
    )


def digest_of(data: bytes) -> Digest:
    """Return the name of a blob."""
    return Digest(hashlib.sha256(data).digest())


def crafted_adapter(skills: Mapping[str, int], poison: int = 0) -> bytes:
    """Return a toy adapter that nobody trained.

    Args:
        skills: how good it is at each domain, in millionths.
        poison: other than 0: what serves it says no finite number any more.
    """
    packed: bytes = msgpack.packb({"toy": 1, "skills": dict(skills), "poison": poison})
    return packed
