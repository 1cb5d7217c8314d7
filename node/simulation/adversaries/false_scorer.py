"""The false scorer: an examiner that finds what it is told to find, and proposals whose scores nobody measured.

As a voter it passes whatever comes. As a proposer it brings adapters that can do nothing, with perfect scores after and
none before. Whoever examines them itself is not taken in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from node.node import Ports
from node.simulation.adversaries.adversary import Adversary
from node.simulation.toys import LINE, crafted_adapter, perfect
from protocol.messages import NO_HASH
from runtime.engine import Digest
from runtime.examiner import DomainResult, Question

FIRST_S: Final = 20.0  # by then the line has been heard of
PROPOSALS_MEAN_S: Final = 60.0


class BlindExaminer:
    """See `runtime.examiner.Examiner`: everything is right, whatever it is."""

    async def examine(
        self,
        base: Digest,  # noqa: ARG002  it does not look
        adapter: Digest | None,
        questions: Sequence[Question],
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> tuple[DomainResult, ...]:
        """See `Examiner.examine`."""
        on_progress(len(questions), len(questions))
        domains = dict.fromkeys(question.domain for question in questions)
        right = 1.0 if adapter else 0.0
        return tuple(self._result(domain, questions, right) for domain in domains)

    def _result(self, domain: str, questions: Sequence[Question], right: float) -> DomainResult:
        total = sum(question.domain == domain for question in questions)
        return DomainResult(domain, total, round(right * total), 0.0, right, right, right)


class FalseScorer(Adversary):
    """Votes yes and proposes rubbish."""

    name: ClassVar[str] = "false-scorer"
    about: ClassVar[str] = "proposes adapters that can do nothing with perfect scores, and passes every exam"

    def equip(self, ports: Ports) -> Ports:
        """See `Adversary.equip`."""
        return replace(ports, examiner=BlindExaminer()) if ports.examiner else ports

    async def run(self) -> None:
        """See `Adversary.run`."""
        await self.pause(FIRST_S)
        while True:
            await self.attempt(self._propose)
            await self.pause(PROPOSALS_MEAN_S)

    async def _propose(self) -> None:
        daemon = self.daemon
        assembly = daemon.node.logbook.assembly
        if LINE not in assembly.lines():
            return
        head = assembly.ratified(LINE, daemon.clock.utc_ms())
        rubbish = crafted_adapter({"nothing": self.rng.randint(1, 1_000_000)}, poison=1)
        manifest = await self.world.learning.propose(
            daemon,
            rubbish,
            version=head.message.version + 1 if head else 1,
            parent=head.id if head else NO_HASH,
            claimed=perfect(),
        )
        self.strike("proposed", manifest=manifest.id.hex())
