"""Which sellers to ask: the K most promising that are known, and always a little curiosity.

An advert is the seller's own word and minutes old, so it only decides who is asked; the auction decides who is paid.
It pays the cheapest, so whoever is asked may win: sellers that let us down are kept from being asked, not outbid.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from marketplace.reputation import Record
from protocol import limits
from protocol.identity import PeerId

WARM_FACTOR = 3.0  # a warm system prompt spares most of the prefill
BAIT_SHARE = 0.5  # of the usual price; honest prices of one model differ less
AFAR_FACTOR = 0.5  # not connected: a dial comes before the question, and it may be gone
NEWCOMER_SCORE = Record().score
FULL_FACTOR = 0.2  # no slot free at its last advert: it may have one by now


@dataclass(frozen=True)
class Candidate:
    """A seller that advertises the model and that the privacy class allows.

    Attributes:
        total_micro: what the request comes to at its advertised prices.
        is_connected: a connection to it stands, so it is there.
        is_warm: it says that a cache of its begins with this chat's system prompt.
        score: `Record.score`.
    """

    peer: PeerId
    total_micro: int
    slots_free: int
    is_connected: bool
    is_warm: bool
    score: float


def best(
    candidates: Sequence[Candidate], rng: random.Random, k: int = limits.SELLERS_ASKED_MAX
) -> tuple[PeerId, ...]:
    """Return the sellers to ask, the most promising first; when some must be left out, one place is drawn by lot.

    Who stands behind a newcomer has let us down, and is doubted: while others are there, one request in K asks one of
    them. A silent seller with the lowest price would else win every auction, and five of them every attempt at a job.

    Without the lot, whoever once looked bad would never be asked again and newcomers never a first time. It is one
    place in `k`, so a swarm of new keys wins no more than that; equals are ranked by lot too.
    """
    if k < 1:
        return ()
    doubted = [each for each in candidates if each.score < NEWCOMER_SCORE]
    if 0 < len(doubted) < len(candidates):
        forgiven = [rng.choice(doubted)] if rng.random() < 1 / limits.SELLERS_ASKED_MAX else []
        candidates = [*(each for each in candidates if each.score >= NEWCOMER_SCORE), *forgiven]
    shuffled = rng.sample(list(candidates), len(candidates))
    usual = median(candidate.total_micro for candidate in candidates) if candidates else 0
    ranked = [each.peer for each in sorted(shuffled, key=lambda each: promise(each, usual), reverse=True)]
    if len(ranked) <= k:
        return tuple(ranked)
    # With a single place there is no room for curiosity every time: one request in K explores.
    proven = k - 1 if k > 1 else int(rng.random() >= 1 / limits.SELLERS_ASKED_MAX)
    chosen = ranked[:proven]
    return (*chosen, *rng.sample(ranked[proven:], k - proven))


def without_bait(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Return the candidates without strangers that ask less than half the usual; all of them when nobody else is left.

    For a job that was let down twice: who means to fail need not care for its price, so bait is cheap, and the cheapest of
    those asked wins. Whoever has kept its word may be as cheap as it likes.
    """
    usual = median(candidate.total_micro for candidate in candidates) if candidates else 0
    serious = [
        each for each in candidates if each.score > NEWCOMER_SCORE or each.total_micro >= BAIT_SHARE * usual
    ]
    return serious or candidates


def promise(candidate: Candidate, usual_micro: float) -> float:
    """Return how promising a candidate is, without unit: what is known of it, less for dear and for busy ones.

    A total as usual (the candidates' median) halves it; a free one leaves it whole.
    """
    warm = WARM_FACTOR if candidate.is_warm else 1.0
    free = 1.0 if candidate.slots_free > 0 else FULL_FACTOR
    dear = 1.0 + (candidate.total_micro / usual_micro if usual_micro else float(candidate.total_micro > 0))
    near = 1.0 if candidate.is_connected else AFAR_FACTOR
    return candidate.score * warm * free * near / dear
