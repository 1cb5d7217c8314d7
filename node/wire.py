"""Sealed messages over streams: sign what goes out, pass what comes in through the gate."""

from typing import TypeVar, cast

from node.clock import Clock, MembersTime
from protocol.envelope import Gate, Sealed, Sequence, seal
from protocol.errors import NotAuthorised
from protocol.identity import Identity, PeerId
from protocol.mesh import Stream
from protocol.messages import Message

M = TypeVar("M", bound=Message)


class Wire:
    """This device's pen and letter opener: one key, one sequence, one gate for everything that comes in."""

    def __init__(
        self, identity: Identity, mesh_id: bytes, *, boot: int, clock: Clock, members_time: MembersTime
    ) -> None:
        self.identity = identity
        self.mesh_id = mesh_id
        self.boot = boot
        self._gate = Gate(mesh_id)
        self._sequence = Sequence(boot)
        self._clock = clock
        self._members_time = members_time

    def seal(self, message: M, *, ttl_ms: int = 0) -> Sealed[M]:
        """Sign a message as this device, now."""
        return seal(
            message,
            self.identity,
            mesh=self.mesh_id,
            seq=self._sequence.next(),
            time_ms=self._clock.utc_ms(),
            ttl_ms=ttl_ms,
        )

    def next_seq(self) -> tuple[int, int]:
        """Our next (boot, counter), for what is sealed elsewhere."""
        return self._sequence.next()

    async def send(self, stream: Stream, message: M) -> Sealed[M]:
        """Seal a message and send it as one frame.

        Raises:
            StreamBroken: the stream is gone.
        """
        sealed = self.seal(message)
        await stream.send(sealed.raw)
        return sealed

    async def receive(self, stream: Stream, *forms: type[M], may_repeat: bool = False) -> Sealed[M]:
        """Receive one frame that must be a message of one of these types, signed by the peer at the other end.

        Args:
            stream: where from.
            forms: what may come.
            may_repeat: a durable one may be what came before: its sender presents it again, as nobody has answered.

        Raises:
            StreamEnded, StreamBroken: nothing more comes.
            RemoteProtocolError: what came is not such a message.
        """
        sealed = self.admit(await stream.receive(), stream.peer_id, *forms, may_repeat=may_repeat)
        if sealed.sender != stream.peer_id:
            raise NotAuthorised(
                f"peer {stream.peer_id} sent a {type(sealed.message).kind} of {sealed.sender}"
            )
        return sealed

    def admit(self, raw: bytes, delivered_by: PeerId, *forms: type[M], may_repeat: bool = False) -> Sealed[M]:
        """Pass bytes through the gate; their author may be another than who delivered them.

        Raises:
            RemoteProtocolError: they are not a fresh, verified message of one of these types.
        """
        sealed = self._gate.admit(
            raw,
            delivered_by=delivered_by,
            kinds=frozenset(form.kind for form in forms),
            now=self._clock.now(),
            utc_ms=self._members_time.utc_ms(),
            may_repeat=may_repeat,
        )
        return cast("Sealed[M]", sealed)
