"""What befalls messages on their way: pure draws, one direction of a link and one node's access to the net.

Streams are TCP's: what is lost is sent again and everything stays in order, so loss is a delay there. Gossip is judged
message by message: it may be lost, come twice, or overtake.
"""

from dataclasses import dataclass
from random import Random

RETRANSMISSION_S = (
    0.2  # the least that TCP waits before it sends again (RFC 6298 allows 1 s; Linux takes 200 ms)
)
RETRANSMISSION_MAX_S = 6.0  # TCP's pauses double; by then the peers' heartbeats have given the connection up
REORDERED_BY_S = 0.5  # at most, for a gossip message that takes another way


@dataclass(frozen=True)
class Link:
    """One direction of a link. Shares are probabilities, 0 to 1.

    Attributes:
        jitter_s: a delay up to this is added to each frame.
        loss: of packets; a frame on a stream then comes a retransmission later, a gossip message never.
        duplication: of gossip messages.
        reordering: of gossip messages.
        slowness_s: added to everything: a peer whose machine is busy with something else.
    """

    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    slowness_s: float = 0.0

    @property
    def is_rough(self) -> bool:
        """Whether frames on streams are delayed at all."""
        return bool(self.jitter_s or self.loss or self.slowness_s)

    def delay_s(self, rng: Random) -> float:
        """Return what is added to the latency of one frame on a stream."""
        delay_s = self.slowness_s + (rng.uniform(0, self.jitter_s) if self.jitter_s else 0.0)
        wait_s = RETRANSMISSION_S
        while self.loss and wait_s < RETRANSMISSION_MAX_S and rng.random() < self.loss:
            delay_s += wait_s
            wait_s *= 2
        return delay_s

    def loses(self, rng: Random) -> bool:
        """Whether a gossip message never arrives."""
        return self.loss > 0 and rng.random() < self.loss

    def duplicates(self, rng: Random) -> int:
        """Return how many copies too many arrive of a gossip message."""
        return int(self.duplication > 0 and rng.random() < self.duplication)

    def reordering_s(self, rng: Random) -> float:
        """Return how much later than in its turn a gossip message comes."""
        is_overtaken = self.reordering > 0 and rng.random() < self.reordering
        return rng.uniform(0, REORDERED_BY_S) if is_overtaken else 0.0


class Uplink:
    """How one node hangs on the net: everything it sends queues here, one after the other.

    Args:
        latency_s: of its access, added to each link of its, in both directions.
        bytes_per_s: 0 is without limit.
    """

    def __init__(self, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def clog(self, until: float) -> None:
        """Let nothing leave before then."""
        self._free_at = max(self._free_at, until)

    def departure(self, now: float, size_bytes: int) -> float:
        """Take a message into the queue; return when its last byte has left."""
        begins = max(now, self._free_at)
        if self._bytes_per_s:
            begins += size_bytes / self._bytes_per_s
            self._free_at = begins
        return begins
