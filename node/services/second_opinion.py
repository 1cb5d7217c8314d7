"""The second opinion: a check that this device cannot make itself, made for money by sellers of other owners.

One is drawn by lot, since the cheapest could be a friend of the one that is checked. Its word alone clears a seller but
condemns nobody: a liar could else have any honest seller barred. A seller is caught when a second reader, of a third
owner, finds the same. Only prompts that any member may read come here.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from marketplace.verification import Verdict, judge
from node.chat import ChatDelta, ChatError, ChatEvent, ChatRequest, ChatStarted
from node.clock import Clock
from node.directory import Directory
from node.journal import Journal
from node.logbook import Logbook
from node.models import BARE, DIGEST_PREFIX_HEX
from node.services.verifier import Check, NotVerified
from protocol.identity import PeerId
from protocol.messages import NO_HASH

READERS_TO_CONDEMN = 2


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

    async def __call__(self, check: Check, tolerance_milli: int) -> Verdict:
        """Return what readers drawn by lot find.

        Raises:
            NotVerified: nobody reads it, or they do not agree.
        """
        readers: set[PeerId] = set()
        condemned: Verdict | None = None
        for _ in range(READERS_TO_CONDEMN):
            try:
                words = await self._read(check, readers)
            except NotVerified as error:
                if condemned is None:
                    raise
                raise NotVerified(
                    f"one reader finds that {condemned.to_text()}, and nobody confirms it: {error}"
                ) from error
            verdict = judge(words[-check.own :], tolerance_milli)
            if verdict.is_passed and condemned is not None:
                raise NotVerified("two readers of other owners do not agree")
            if verdict.is_passed:
                return verdict
            condemned = verdict
        assert condemned is not None
        return condemned

    async def _read(self, check: Check, readers: set[PeerId]) -> list[int]:
        """Return what one more reader finds, and note who it was.

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
        words: list[int] = []
        reader: PeerId | None = None
        try:
            async with aclosing(self._chat(wanted)) as events:
                async for event in events:
                    if isinstance(event, ChatStarted):
                        reader = event.seller
                        self._journal.write(
                            "check_bought",
                            job=check.job.job_id.hex(),
                            check=event.job_id,
                            seller=check.seller,
                            reader=reader,
                        )
                    elif isinstance(event, ChatDelta):
                        words.extend(event.words)
        except ChatError as error:
            raise NotVerified(f"no second seller could check it: {error}") from error
        if reader is None or len(words) != len(check.claimed):
            raise NotVerified(f"a second seller said {len(words)} gaps, expected {len(check.claimed)}")
        readers.add(reader)
        return words

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
