"""Whose fault it was, since that decides what happens next.

`RemoteProtocolError`: a peer broke the rules. Drop what it sent and count it against the peer that delivered it.
`LocalProtocolError`: we broke them. It is a bug; let it surface.
`MeshError`: nobody's fault. A peer is away or a stream broke; try another or tell the user.
"""


class AgoraError(Exception):
    """Base of every error that Agora raises on purpose."""


class RemoteProtocolError(AgoraError):
    """A peer sent something the protocol does not allow; `offence` is the short name it is counted under."""

    offence = "protocol"


class MalformedMessage(RemoteProtocolError):
    """Bytes that are not a message: bad MessagePack, wrong types, unknown fields, lengths over the limit."""

    offence = "malformed"


class TooLarge(RemoteProtocolError):
    """More bytes than `limits.py` allows for this kind, topic or stream."""

    offence = "too_large"


class ForeignMesh(RemoteProtocolError):
    """A message of another mesh: a different charter stands behind it."""

    offence = "foreign_mesh"


class Expired(RemoteProtocolError):
    """Signed too long ago, or too far in the future, for its kind."""

    offence = "expired"


class Replayed(RemoteProtocolError):
    """The same envelope, or a sequence number that this boot of its sender has already used."""

    offence = "replayed"


class TooManyMessages(RemoteProtocolError):
    """A peer or an author is over its rate."""

    offence = "rate"


class BadSignature(RemoteProtocolError):
    """The signature does not hold for these exact bytes."""

    offence = "signature"


class NotAuthorised(RemoteProtocolError):
    """Properly signed by somebody who has no authority to say it."""

    offence = "authority"


class ForeignBase(RemoteProtocolError):
    """A patch made for another base model than its line has."""

    offence = "foreign_base"


class ExpiredManifest(RemoteProtocolError):
    """A proposal whose time is over, or that would have outlived the longest time allowed."""

    offence = "expired_manifest"


class StaleVersion(RemoteProtocolError):
    """A proposal whose version is not above what its line has ratified, or leaps too far ahead."""

    offence = "stale_version"


class UnknownManifest(RemoteProtocolError):
    """A word on a proposal that is not known here, or that names it by another line or version."""

    offence = "unknown_manifest"


class BallotClosed(RemoteProtocolError):
    """A word that comes when its ballot has been decided."""

    offence = "ballot_closed"


class VetoTooLate(RemoteProtocolError):
    """A veto signed after the charter's veto window."""

    offence = "veto_too_late"


class TooManyProposals(RemoteProtocolError):
    """More manifests of one author within a day than every voter can be asked to evaluate."""

    offence = "proposals"


class BrokenLog(RemoteProtocolError):
    """An entry that does not continue its author's log: a gap, or a `prev` that points elsewhere."""

    offence = "log"


class Equivocation(RemoteProtocolError):
    """Two different entries of one author at one index, or two answers where one was allowed.

    Attributes:
        first: the sealed bytes that were seen first.
        second: the sealed bytes that contradict them.
    """

    offence = "equivocation"

    def __init__(self, message: str, first: bytes, second: bytes) -> None:
        super().__init__(message)
        self.first = first
        self.second = second


class LocalProtocolError(AgoraError):
    """Our own code asked for something the protocol does not allow."""


class MeshError(AgoraError):
    """Something the network does: a peer is away, a stream broke."""


class Unreachable(MeshError):
    """No connection to the peer could be made or kept."""


class StreamBroken(MeshError):
    """The stream died before its end was said: the peer crashed, reset it, or the connection is gone."""


class StreamEnded(MeshError):
    """The peer said its last frame; there is nothing more to receive."""
