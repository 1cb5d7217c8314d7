"""Eligibility: which sellers a job may be offered to, and how much may be spent on it.

The privacy class says who may read the prompt; adverts say who holds the model; what went well before says who is
likely to. The credit line, and the limits that the owner set, say up to what. Here no price is asked for and no credit
held: that is `purchasing.py`.
"""

from functools import partial
from random import Random

import trio

from marketplace.budget import Budget, budget_left_micro, check_budget
from marketplace.choosing import Candidate, best, without_bait
from marketplace.prefix import warm_prefixes
from marketplace.pricing import Prices
from marketplace.reputation import Reputation
from node.clock import Clock
from node.directory import Directory
from node.jobs import Job
from node.logbook import Logbook
from node.services.advertiser import Advertiser
from protocol import limits
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.messages import NO_HASH, Privacy

PEERS_ASKED_FOR_SELLERS = 3
FAILURES_MAX = 2  # of one job; from then on nobody is asked who may be bait


class Eligibility:
    """Knows whom this device may ask and what it may spend; the buyer's nursery runs its searches for sellers."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        mesh: Mesh,
        clock: Clock,
        logbook: Logbook,
        directory: Directory,
        advertiser: Advertiser,
        reputation: Reputation,
        budget: Budget,
        rng: Random,
    ) -> None:
        self._nursery = nursery
        self._mesh = mesh
        self._clock = clock
        self._logbook = logbook
        self._directory = directory
        self._advertiser = advertiser
        self._reputation = reputation
        self._budget = budget
        self._rng = rng
        self._looked_at: dict[bytes, float] = {}  # when we last asked for sellers of a model

    # --- whom ---------------------------------------------------------------------------------------------------
    def is_allowed(self, peer: PeerId, privacy: Privacy) -> bool:
        """Whether a peer may read a prompt of this privacy class: a member, and of the same owner where that is asked.

        Nobody who was lately caught selling another model's answers is.
        """
        assembly, me = self._logbook.assembly, self._logbook.me
        if privacy == "local" or peer == me or not assembly.is_member(peer):
            return False
        if self._reputation.of(peer).is_barred(self._clock.utc_ms()):
            return False
        return privacy == "mesh" or assembly.same_owner(me, peer)

    def sellers(
        self,
        digest: bytes,
        privacy: Privacy,
        failed: frozenset[PeerId],
        tokens: tuple[int, int],
        *,
        adapter: bytes = NO_HASH,
        asked: frozenset[PeerId] = frozenset(),
        dimensions: int = 0,
        not_by: frozenset[PeerId] = frozenset(),
        is_by_lot: bool = False,
        prefix: bytes = b"",
    ) -> tuple[PeerId, ...]:
        """The best K sellers of a model that may be asked.

        Args:
            digest: the model's.
            adapter: who advertises it is asked first. The others with the model come when none of those is left: an
                advert is seconds old, and a patch may have been loaded since.
            privacy: of the job.
            failed: who let this job down. Other devices of the same owners come only when nobody else is left: they
                share its network and its honesty, and five keys of one human would else use up all of a job's attempts.
            tokens: those of the prompt and the cap.
            asked: whom else to leave out.
            dimensions: of the vectors that are wanted: who says that the model has others is left out.
            not_by: whom to leave out together with all devices of their owners.
            is_by_lot: one alone, whoever it is: the best could be chosen by whoever sets its price.
            prefix: digest of the chat's system prompt; whose caches begin with it is asked before equals.
        """
        candidates, ready = [], set()
        connected, left_out = self._mesh.connected, failed | asked
        strangers_to = self._owners(not_by)
        for offer in self._directory.holders(digest, self._clock.now()):
            seller, advert = offer.advert.sender, offer.advert.message
            is_fit = any(model.digest == digest and model.dimensions == dimensions for model in advert.models)
            if (
                is_fit
                and seller not in left_out | not_by
                and self.is_allowed(seller, privacy)
                and self._logbook.assembly.member(seller).owner not in strangers_to
            ):
                total = Prices(advert.prompt_micro, advert.completion_micro).total_micro(*tokens)
                score = self._reputation.of(seller).score
                if any(model.digest == digest and adapter in model.adapters for model in advert.models):
                    ready.add(seller)
                candidates.append(
                    Candidate(
                        seller,
                        total,
                        advert.slots_free,
                        is_connected=seller in connected,
                        is_warm=bool(prefix) and prefix in warm_prefixes(advert),
                        score=score,
                    )
                )
        candidates = [each for each in candidates if not self._reputation.of(each.peer).caught] or candidates
        candidates = [each for each in candidates if each.peer in ready] or candidates
        assembly = self._logbook.assembly
        owners = self._owners(failed - {self._logbook.me})
        unrelated = [each for each in candidates if assembly.member(each.peer).owner not in owners]
        eligible = unrelated or candidates
        if is_by_lot and eligible:
            return (self._rng.choice(eligible).peer,)
        return best(without_bait(eligible) if len(failed) >= FAILURES_MAX else eligible, self._rng)

    def _owners(self, peers: frozenset[PeerId]) -> set[str]:
        """Of those that are members, whose they are."""
        assembly = self._logbook.assembly
        return {assembly.member(peer).owner for peer in peers if assembly.is_member(peer)}

    def advertised_tokens_per_s(self, seller: PeerId, digest: bytes) -> float:
        """How fast a seller says that it answers; 0: it does not say."""
        offer = self._directory.offer(seller, self._clock.now())
        models = offer.advert.message.models if offer else ()
        return next((model.tokens_per_ks / 1000 for model in models if model.digest == digest), 0.0)

    async def find_sellers(
        self,
        digest: bytes,
        privacy: Privacy,
        failed: frozenset[PeerId],
        tokens: tuple[int, int],
        *,
        adapter: bytes,
        asked: frozenset[PeerId],
        dimensions: int = 0,
        not_by: frozenset[PeerId] = frozenset(),
        is_by_lot: bool = False,
        prefix: bytes = b"",
    ) -> tuple[PeerId, ...]:
        """The same, after asking around when fewer are known than could be asked."""
        find = partial(
            self.sellers,
            digest,
            privacy,
            failed,
            tokens,
            adapter=adapter,
            asked=asked,
            dimensions=dimensions,
            not_by=not_by,
            is_by_lot=is_by_lot,
            prefix=prefix,
        )
        sellers = find()
        if len(sellers) < limits.SELLERS_ASKED_MAX:
            await self._look_for_sellers(digest, is_urgent=not sellers)
            sellers = find()
        return sellers

    def why_nobody(self, job: Job, failed: frozenset[PeerId]) -> str:
        """What a client is told when no seller may be asked, and what would help."""
        others = len(self._directory.holders(job.digest, self._clock.now()))
        if failed:
            return f"{len(failed)} seller(s) of {job.name} failed and no other is left"
        if others and job.request.privacy == "owner":
            return (
                f"no device of yours sells {job.name}; {others} of other owners do: "
                "ask with privacy 'mesh' if they may read the prompt"
            )
        return f"nobody who sells {job.name} can be reached"

    async def _look_for_sellers(self, digest: bytes, *, is_urgent: bool) -> None:
        """Ask a few peers whom they know, now and then; only wait for it when there is nobody to ask yet."""
        now = self._clock.now()
        self._looked_at = {
            model: at for model, at in self._looked_at.items() if now - at < limits.ADVERT_INTERVAL_MIN_S
        }
        if digest in self._looked_at and not is_urgent:
            return  # nobody has advertised anew since: asking at every chat was half of all that we signed
        self._looked_at[digest] = now
        peers = sorted(peer for peer in self._mesh.connected if self._logbook.assembly.is_member(peer))
        asked = self._rng.sample(peers, min(PEERS_ASKED_FOR_SELLERS, len(peers)))
        if not is_urgent:
            for peer in asked:
                self._nursery.start_soon(self._advertiser.ask, peer, digest)
            return
        with trio.move_on_after(limits.BID_WINDOW_MAX_S):
            async with trio.open_nursery() as nursery:
                for peer in asked:
                    nursery.start_soon(self._advertiser.ask, peer, digest)

    # --- up to what ---------------------------------------------------------------------------------------------
    def completion_cap(self, digest: bytes, *, prompt_tokens: int, wanted_tokens: int) -> int:
        """Completion tokens still wanted, within the largest context that is on offer."""
        contexts = [
            model.context_tokens
            for offer in self._directory.holders(digest, self._clock.now())
            for model in offer.advert.message.models
            if model.digest == digest
        ]
        room = max(contexts, default=0) - prompt_tokens
        return max(1, min(wanted_tokens, room) if room > 0 else wanted_tokens)

    def spendable_micro(self) -> int:
        """What the account and the credit line leave."""
        line = self._logbook.assembly.member(self._logbook.me).credit_line_micro
        return self._logbook.ledger.spendable_micro(self._logbook.me, line)

    def affordable_micro(self, job_id: bytes) -> int:
        """What may be held for a job by the account, the credit line and the owner's budget."""
        me, ledger = self._logbook.me, self._logbook.ledger
        left = budget_left_micro(
            self._budget,
            job_spent_micro=ledger.job_spent_micro(me, job_id),
            day_spent_micro=ledger.day_spent_micro(me, self._clock.utc_ms()),
            held_micro=ledger.held_micro(me),
        )
        spendable = self.spendable_micro()
        return spendable if left is None else min(spendable, left)

    def over_budget(self, job_id: bytes, hold_micro: int) -> str:
        """Which of the owner's own limits a hold for a job would break; empty: none."""
        ledger, me = self._logbook.ledger, self._logbook.me
        over = check_budget(
            self._budget,
            wanted_micro=hold_micro,
            job_spent_micro=ledger.job_spent_micro(me, job_id),
            day_spent_micro=ledger.day_spent_micro(me, self._clock.utc_ms()),
            held_micro=ledger.held_micro(me),
        )
        if over is None:
            return ""
        return (
            f"{over.wanted_micro} micro-credits wanted, {over.left_micro} left of the {over.limit}'s budget"
        )
