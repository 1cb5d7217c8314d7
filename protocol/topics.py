"""Every gossip topic and stream protocol, on one page: its name, what it carries, and how much of it is allowed."""

from dataclasses import dataclass

from protocol import limits
from protocol.errors import LocalProtocolError


@dataclass(frozen=True)
class Topic:
    """A gossip topic. `kinds` are the message kinds it carries; anything else on it is refused."""

    name: str
    kinds: frozenset[str]
    message_bytes_max: int = limits.GOSSIP_BYTES_MAX


@dataclass(frozen=True)
class StreamProtocol:
    """A stream protocol.

    Attributes:
        name: the libp2p protocol id.
        frame_bytes_max: the largest frame either side may send.
        streams_max: how many of these streams one peer may have open to us at a time.
    """

    name: str
    frame_bytes_max: int
    streams_max: int = 8

    def check_length(self, frame: bytes) -> None:
        """Check a frame of ours before it is sent.

        Raises:
            LocalProtocolError: it is too long, so every peer would refuse it.
        """
        if len(frame) > self.frame_bytes_max:
            raise LocalProtocolError(
                f"frame of {len(frame)} bytes on {self.name}, at most {self.frame_bytes_max}"
            )


# Few and small: what every member must know about who belongs and what names mean. Nothing per chat.
ASSEMBLY = Topic(
    "/agora/assembly/1",
    frozenset(
        {"charter", "charter_consent", "admitted", "card", "revocation", "evidence"}
        | {"line", "manifest", "vote", "approval", "veto", "withdrawal"}
    ),
)
# Who would train? A few a day.
RUNS = Topic("/agora/runs/1", frozenset({"run_announcement"}), message_bytes_max=limits.MARKET_BYTES_MAX)

# The first stream on each connection, opened by the side that dialled: [Hello] -> [Hello].
HELLO = StreamProtocol("/agora/hello/1", frame_bytes_max=limits.HELLO_BYTES_MAX, streams_max=2)
# [JoinRequest] -> [Entries], [Entries]... until one is empty; or [Refusal]
ADMISSION = StreamProtocol("/agora/admission/1", frame_bytes_max=limits.ENTRIES_BYTES_MAX, streams_max=1)
# [Advert], one way, to about 20 sampled peers.
ADVERT = StreamProtocol("/agora/advert/1", frame_bytes_max=limits.ADVERT_BYTES_MAX, streams_max=2)
# [AdvertsWanted] -> [Adverts]
ADVERTS_WANTED = StreamProtocol("/agora/adverts/1", frame_bytes_max=limits.GOSSIP_BYTES_MAX, streams_max=2)
# [EntriesWanted] -> [Entries]..., until the answer is empty.
SYNC = StreamProtocol("/agora/sync/1", frame_bytes_max=limits.ENTRIES_BYTES_MAX, streams_max=4)
# A chat from beginning to end; `docs/PROTOCOL.md` draws it.
JOB = StreamProtocol("/agora/job/1", frame_bytes_max=limits.PROMPT_BYTES_MAX, streams_max=64)
# [SettlementWanted] -> [Accepted] -> [Receipt] -> [Countersignature], for an attempt whose stream broke; one that was
# countersigned before gets that again: [SettlementWanted] -> [Countersignature].
SETTLE = StreamProtocol("/agora/settle/1", frame_bytes_max=2 * limits.MARKET_BYTES_MAX, streams_max=4)
# [BlobWanted] -> [BlobComing], bare chunks of 256 KiB at most | [Refusal]. At most two chunks are in flight.
BLOB = StreamProtocol("/agora/blob/1", frame_bytes_max=limits.BLOB_CHUNK_BYTES_MAX, streams_max=4)
# [Enlistment | Decline], one way, to the run's announcer.
ENLIST = StreamProtocol("/agora/enlist/1", frame_bytes_max=limits.MARKET_BYTES_MAX, streams_max=4)
# The run's first stream to a member: [RunOpening], [Award] -> [Accept | Decline]. Then one for each round:
# [RoundTask], chunks -> progress frames, a finished one, [RoundUpdate], chunks, [Receipt] -> [Countersignature]; or a
# failed frame. [Cancel] of the award's job says that the run is over.
ROUND = StreamProtocol("/agora/round/1", frame_bytes_max=limits.BLOB_CHUNK_BYTES_MAX, streams_max=4)

TOPICS = (ASSEMBLY, RUNS)
STREAM_PROTOCOLS = (HELLO, ADMISSION, ADVERT, ADVERTS_WANTED, SYNC, JOB, SETTLE, BLOB, ENLIST, ROUND)
