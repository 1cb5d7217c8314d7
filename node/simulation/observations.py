"""What a world has seen: plain values that the summary, the plots and the checkers read."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Outcome:
    """One chat, as the person who asked saw it. Times are virtual seconds from the world's beginning.

    Attributes:
        state: `running`, `finished`, `unsold` (nobody would, `reason` says why), `failed` (broke off for good) or
            `lost` (the asking device itself went away).
        auction_s: from the question to the award of the first attempt; 0 under a lease.
        ttft_s: from the question to the first token; None when none came.
        declines: reasons that sellers gave, with how many gave them, over all attempts.
    """

    at_s: float
    buyer: str
    kind: str = "chat"
    state: str = "running"
    reason: str = ""
    seller: str = ""
    attempts: int = 0
    auction_s: float | None = None
    ttft_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    price_micro: int = 0
    declines: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """The mesh at one moment; one is taken every virtual minute.

    Attributes:
        price_micro: mean price of a completion token on offer, in micro-credits; 0 when nobody sells.
    """

    at_s: float
    online: int
    slots: int
    slots_busy: int
    price_micro: float
    chats_running: int
    messages: int
    bytes: int


@dataclass(frozen=True)
class Propagation:
    """How one gossiped message went through the mesh: when each node first heard it, seconds after it was published."""

    kind: str
    at_s: float
    heard_s: tuple[float, ...]


@dataclass
class Traffic:
    """What one node sent: frames on streams and gossip, as the wire would carry them."""

    messages: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class MapNode:
    """A node as the map draws it."""

    name: str
    profile: str
    is_online: bool
    links: tuple[str, ...]  # names of connected nodes
