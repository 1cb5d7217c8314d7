"""The second opinion: a check that this device cannot make itself, made for money by sellers of other owners.

One is drawn by lot, since the cheapest could be a friend of the one that is checked. No reader is told what the seller has
stated, so who finds the same has computed it. Its word alone clears a seller but condemns nobody: a liar could else have any
honest seller barred. A seller is caught when a second reader, of a third owner, finds so too, and what both say of each
token is one computation: two who made their numbers up do not agree. Only prompts that any member may read come here.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from marketplace.verification import Reading, Tolerance, Verdict, do_agree
from node.chat import ChatDelta, ChatError, ChatEvent, ChatRequest, ChatStarted
from node.clock import Clock
from node.directory import Directory
from node.journal import Journal
from node.logbook import Logbook
from node.models import BARE, DIGEST_PREFIX_HEX
from node.services.verifier import Check, NotVerified
from protocol.identity import PeerId
from protocol.messages import NO_HASH


class SecondOpinion:
    """Buys checks.

    Args:
        chat: see `Buyer.chat`.
    """

    def __init__(
        self,
        chat: Callable[[ChatRequest], AsyncGenerator[ChatEvent, None]],
        *,
        logbook: Logbook,
        directory: Directory,
        clock: Clock,
        journal: Journal,
    ) -> None:
        self._chat = chat
        self._logbook = logbook
        self._directory = directory
        self._clock = clock
        self._journal = journal

    async def __call__(self, check: Check, tolerance: Tolerance) -> Verdict:
        """Return what readers drawn by lot find.

        Raises:
            NotVerified: nobody reads it, or they do not agree.
        """
        readers: set[PeerId] = set()
        first = await self._read(check, readers)
        found = check.judge(first, tolerance)
        if found.is_passed:
            return found
        try:
            second = await self._read(check, readers)
        except NotVerified as error:
            raise NotVerified(
                f"one reader finds that {found.to_text()}, and nobody confirms it: {error}"
            ) from error
        verdict = check.judge(second, tolerance)
        if verdict.is_passed or not do_agree(check.own(first), check.own(second), tolerance):
            raise NotVerified("two readers of other owners do not agree")
        return verdict

    async def _read(self, check: Check, readers: set[PeerId]) -> Reading:
        """Return what one more reader finds, and note whoever had a part in it.

        Raises:
            NotVerified: nobody reads it.
        """
        request = check.job.request
        if not self._has_stranger(check, {check.seller, *readers}):
            raise NotVerified("nobody else, of another owner, sells the model")
        wanted = ChatRequest(
            model=_pinned(check),
            messages=request.messages,
            inputs=request.inputs,
            task="check",
            claimed=check.claimed,
            tokens_max=len(check.claimed),
            privacy=request.privacy,
            not_by=frozenset({check.seller, *readers}),
        )
        gaps: list[int] = []
        contrasts: list[int] = []
        try:
            async with aclosing(self._chat(wanted)) as events:
                async for event in events:
                    if isinstance(event, ChatStarted):
                        readers.add(event.seller)
                        self._journal.write(
                            "check_bought",
                            job=check.job.job_id.hex(),
                            check=event.job_id,
                            seller=check.seller,
                            reader=event.seller,
                        )
                    elif isinstance(event, ChatDelta):
                        gaps.extend(event.words)
                        contrasts.extend(event.contrasts)
        except ChatError as error:
            raise NotVerified(f"no second seller could check it: {error}") from error
        if {len(gaps), len(contrasts)} != {len(check.claimed)}:
            raise NotVerified(
                f"a second seller said {len(gaps)} gaps and {len(contrasts)} contrasts, expected {len(check.claimed)}"
            )
        return Reading(gaps, contrasts)

    def _has_stranger(self, check: Check, not_by: set[PeerId]) -> bool:
        """Whether anybody could read it: a request that nobody may answer would only be one more job to look at."""
        assembly = self._logbook.assembly
        sellers = [offer.advert.sender for offer in self._directory.holders(check.model, self._clock.now())]
        owners = {assembly.member(peer).owner for peer in not_by if assembly.is_member(peer)}
        return any(assembly.is_member(peer) and assembly.member(peer).owner not in owners for peer in sellers)


def _pinned(check: Check) -> str:
    """Name what was paid for by its digests: a name may mean another adapter by now."""
    adapter = BARE if check.adapter == NO_HASH else check.adapter.hex()[:DIGEST_PREFIX_HEX]
    return f"model@{check.model.hex()}+{adapter}"
