"""What a seller's caches still hold, as far as it can tell from the jobs it served: the beginnings it need not read again.

It is a promise to buyers and no look into the engine, so it errs to the cold side: bounded by the tokens that the caches
have room for, forgotten after ten idle minutes, and at once when the engine lost its memory. Counts are the market's own
estimates (`pricing.estimated_tokens`), as in requests, so that one can be taken off the other.

Who may learn of it is part of it. A session is its buyer's alone. A system prompt is told to everybody only when the job
that left it was one that any member might have read; one of an `owner` job counts for devices of that owner and is in no
advert.
"""

from collections import OrderedDict
from dataclasses import dataclass

from protocol import limits
from protocol.identity import PeerId

WARM_S = (
    limits.LEASE_IDLE_S
)  # an engine drops what was used least recently; a session that has ended is no longer told of
ENTRIES_MAX = 256  # of prefixes and sessions together; each is a few hundred bytes


@dataclass(frozen=True)
class Session:
    """A buyer's session, with the model and the adapter that it is kept for."""

    buyer: PeerId
    session: bytes
    model: bytes
    adapter: bytes


@dataclass(frozen=True)
class Prefix:
    """A system prompt's digest, and whose it is: of that owner's devices alone; empty: of jobs any member might have read."""

    digest: bytes
    owner: str


@dataclass(frozen=True)
class _Entry:
    model: bytes
    tokens: int
    at: float


class Warmth:
    """The beginnings that are warm; what was used least recently is forgotten first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Session | Prefix, _Entry] = OrderedDict()

    def note(self, key: Session | Prefix, *, model: bytes, tokens: int, tokens_max: int, now: float) -> None:
        """A job has left a beginning of so many tokens behind.

        Args:
            key: of what.
            model: whose cache it is in.
            tokens: its length.
            tokens_max: what that model's cache holds at most, of all beginnings together.
            now: monotonic seconds.
        """
        self._entries.pop(key, None)
        self._entries[key] = _Entry(model, tokens, now)
        kept = 0
        for other, entry in reversed(list(self._entries.items())):
            kept += entry.tokens if entry.model == model else 0
            if entry.model == model and kept > tokens_max:
                del self._entries[other]
        while len(self._entries) > ENTRIES_MAX:
            self._entries.popitem(last=False)

    def tokens(self, *keys: Session | Prefix, prompt_tokens: int, now: float) -> int:
        """How many prompt tokens a job need not compute: the longest of these beginnings that is warm.

        A beginning that is longer than the prompt is none of it: the buyer has begun its conversation anew.
        """
        found = (self._entries.get(key) for key in keys)
        warm = (entry.tokens for entry in found if entry and now - entry.at <= WARM_S)
        return max((tokens for tokens in warm if tokens <= prompt_tokens), default=0)

    def told(self, now: float) -> tuple[bytes, ...]:
        """The digests that everybody may be told, the newest first."""
        warm = [
            key.digest
            for key, entry in reversed(self._entries.items())
            if isinstance(key, Prefix) and not key.owner and now - entry.at <= WARM_S
        ]
        return tuple(warm[: limits.WARM_PREFIXES_MAX])

    def forget_all(self) -> None:
        """The engine's process died, with the caches of every model."""
        self._entries.clear()

    def forget(self, model: bytes) -> None:
        """A model has left memory, and its cache with it."""
        self._entries = OrderedDict(
            (key, entry) for key, entry in self._entries.items() if entry.model != model
        )
