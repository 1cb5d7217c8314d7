"""The connections: listening, dialling, who is connected, and who has to go.

libp2p's swarm goes deaf after 250 inbound connections in its lifetime, waits 250 ms on every dial, tries one address of
a peer and then refuses the peer for a minute, and dies of any handler's exception. This one keeps a list of
connections and nothing else; each connection runs in its own task that cannot raise.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from node.guard import Guard
from node.host import address as addresses
from node.host.address import Address
from node.host.gate import AcceptGate
from node.host.mux_stream import MuxStream
from node.host.settings import HostSettings
from node.host.sockets import RawBytes
from node.host.upgrade import Upgrader
from node.host.yamux import Connection
from protocol.errors import Unreachable
from protocol.identity import Identity, PeerId
from protocol.limits import ADDRESSES_MAX
from protocol.mesh import PeerConnected, PeerEvent, PeerLost

CONNECTIONS_PER_PEER = 2  # two peers that dial each other at once both succeed
KNOWN_PEERS_MAX = 4_096  # whose addresses are remembered
LISTEN_BACKLOG = 512


class Swarm:
    """Every connection of this node."""

    def __init__(
        self,
        identity: Identity,
        settings: HostSettings,
        guard: Guard,
        *,
        answer: Callable[[MuxStream], Awaitable[None]],
        tell: Callable[[PeerEvent], None],
        circuit: Callable[[Address], Awaitable[MuxStream]],
    ) -> None:
        """Prepare; nothing is bound before `run`.

        Args:
            identity: our key.
            settings: where to listen, and the limits.
            guard: holds the offences, and the journal.
            answer: serves one stream that a peer opened.
            tell: is told of peers that come and go, in order.
            circuit: asks the relay of an address for a byte channel to the peer behind it.
        """
        self.peer_id = identity.peer_id
        self._settings = settings
        self._guard = guard
        self._answer = answer
        self._tell = tell
        self._circuit = circuit
        self._upgrader = Upgrader(identity, self._accept_stream)
        self._connections: dict[PeerId, list[Connection]] = {}
        self._present: set[PeerId] = set()  # whose PeerConnected has been told, and no PeerLost yet
        self._dialling: dict[PeerId, int] = {}
        self._known: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()
        self._gate = AcceptGate()
        self._bound: list[tuple[str, int]] = []  # a restarted swarm takes the ports of the one before
        self._listeners: list[trio.SocketListener] = []
        self._nursery: trio.Nursery | None = None
        self.up = trio.Event()

    @property
    def connected(self) -> frozenset[PeerId]:
        """The peers with a live connection."""
        return frozenset(self._present)

    @property
    def listening(self) -> tuple[str, ...]:
        """Our own addresses, as others can dial them."""
        return tuple(
            text for host, port in self._bound for text in addresses.announced(host, port, self.peer_id)
        )

    @property
    def bound(self) -> tuple[tuple[str, int], ...]:
        """The hosts and ports of the listening sockets, as bound."""
        return tuple(self._bound)

    def connections(self, peer_id: PeerId) -> tuple[Connection, ...]:
        """The live connections to a peer, the best first: direct before relayed, then the oldest."""
        alive = [each for each in self._connections.get(peer_id, ()) if not each.is_closed]
        return tuple(sorted(alive, key=lambda each: each.is_relayed))

    def close(self, peer_id: PeerId, reason: str) -> None:
        """Begin to close every connection to a peer."""
        for connection in self._connections.get(peer_id, ()):
            connection.close(reason)

    async def wait_closed(self, peer_id: PeerId) -> None:
        """Wait until the connections that a peer has now are gone."""
        for connection in list(self._connections.get(peer_id, ())):
            await connection.closed.wait()

    async def bind(self) -> None:
        """Open the listening sockets; the same ports as before, if there was a before.

        Raises:
            OSError: an address cannot be bound.
        """
        wanted = self._bound or [addresses.parse_listen(text) for text in self._settings.listen]
        try:
            for host, port in wanted:
                self._listeners += await trio.open_tcp_listeners(port, host=host, backlog=LISTEN_BACKLOG)
        except OSError:
            await self._unbind()
            raise
        self._bound = [listener.socket.getsockname()[:2] for listener in self._listeners]

    async def run(self, ready: Callable[[], None]) -> None:
        """Listen and serve until cancelled; every connection closes with it."""
        try:
            if not self._listeners:
                await self.bind()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.up.set()
                ready()
                if self._listeners:
                    await trio.serve_listeners(self._welcome, self._listeners, handler_nursery=nursery)
                await trio.sleep_forever()
        finally:
            self.up = trio.Event()
            self._nursery = None
            await self._unbind()

    async def _unbind(self) -> None:
        with trio.CancelScope(shield=True):
            while self._listeners:
                await trio.aclose_forcefully(self._listeners.pop())

    async def fail(self, error: Exception) -> None:
        """Die of an error inside, as a bug would have it; the supervisor's test calls this."""
        if self._nursery is not None:
            self._nursery.start_soon(_raise, error)

    # Dialling.

    def learn(self, peer_id: PeerId, texts: tuple[str, ...]) -> None:
        """Remember where a peer can be dialled, the newest addresses first."""
        merged = dict.fromkeys((*texts, *self._known.pop(peer_id, ())))
        self._known[peer_id] = tuple(merged)[:ADDRESSES_MAX]
        while len(self._known) > KNOWN_PEERS_MAX:
            self._known.popitem(last=False)

    async def dial(self, text: str) -> Connection:
        """Connect to an address, or return the connection that its peer has already.

        Raises:
            Unreachable: no connection within the limit, another key answered, or the peer is barred.
        """
        target = addresses.parse(text)
        if target.peer_id == self.peer_id:
            raise Unreachable(f"{target.peer_id} is this node itself")
        if existing := self.connections(target.peer_id):
            return existing[0]
        self._refuse_barred(target.peer_id)
        self._dialling[target.peer_id] = self._dialling.get(target.peer_id, 0) + 1
        try:
            with trio.move_on_after(self._settings.dial_timeout_s):
                connection = await self._connect(target)
                self.learn(target.peer_id, (str(target),))
                return connection
        finally:
            self._dialling[target.peer_id] -= 1
            if not self._dialling[target.peer_id]:
                del self._dialling[target.peer_id]
        if existing := self.connections(target.peer_id):
            return existing[0]
        raise Unreachable(f"{text} did not answer within {self._settings.dial_timeout_s} s")

    async def connect(self, peer_id: PeerId) -> Connection:
        """Return a connection to a peer, dialling what is known of it when there is none.

        Raises:
            Unreachable: not connected, and no known address answered.
        """
        if existing := self.connections(peer_id):
            return existing[0]
        problem = f"{peer_id} is not connected and no address of it is known"
        for text in self._known.get(peer_id, ()):
            try:
                return await self.dial(text)
            except Unreachable as error:
                problem = str(error)
        raise Unreachable(problem)

    async def _connect(self, target: Address) -> Connection:
        if target.relay is not None:
            await self.dial(str(target.through))
            raw = RawBytes(await self._circuit(target), is_initiator=True, remote=None)
            ip = "relayed"
        else:
            try:
                socket = await trio.open_tcp_stream(target.host, target.port)
            except OSError as error:
                raise Unreachable(
                    f"{target} did not answer: {error.strerror or type(error).__name__}"
                ) from error
            except ValueError as error:  # a name that no resolver takes: an empty label, a null in a zone
                raise Unreachable(f"{target} cannot be looked up: {type(error).__name__}") from error
            try:
                ip, port = _remote(socket)
            except OSError as error:  # it was gone before we looked
                await trio.aclose_forcefully(socket)
                raise Unreachable(f"{target} hung up at once") from error
            raw = RawBytes(socket, is_initiator=True, remote=(ip, port))
        try:
            connection = await self._upgrader.outbound(raw, ip, target.peer_id)
        except Unreachable:
            await raw.close()
            raise
        except Exception as error:
            await raw.close()
            raise Unreachable(f"{target} failed the handshake: {type(error).__name__}") from error
        except BaseException:
            with trio.CancelScope(shield=True):
                await raw.close()
            raise
        nursery = self._nursery
        if nursery is None or not self._make_room(connection):
            await raw.close()
            raise Unreachable(f"{target.peer_id} answered, but there is no room for another connection")
        self._register(connection)
        nursery.start_soon(self._keep, connection)
        return connection

    # Answering.

    async def _welcome(self, socket: trio.SocketStream) -> None:
        """Take one inbound socket from its first byte to its last; never raises."""
        scope = trio.CancelScope(deadline=trio.current_time() + self._settings.handshake_timeout_s)
        try:
            ip, port = _remote(socket)
        except OSError:  # it was gone before we looked
            await trio.aclose_forcefully(socket)
            return
        await self._take_in(RawBytes(socket, is_initiator=False, remote=(ip, port)), ip, scope)

    async def take_circuit(self, stream: MuxStream) -> None:
        """Take a byte channel that a relay has opened to us for somebody, and serve the connection on it."""
        scope = trio.CancelScope(deadline=trio.current_time() + self._settings.handshake_timeout_s)
        await self._take_in(RawBytes(stream, is_initiator=False, remote=None), "relayed", scope)

    async def _take_in(self, raw: RawBytes, ip: str, scope: trio.CancelScope) -> None:
        ticket = self._gate.enter(ip, scope.cancel)
        connection = None
        try:
            with scope:
                connection = await self._upgrader.inbound(raw, ip)
        except Exception:  # noqa: BLE001, S110  strangers may send anything, and a journal line each would be an attack too
            pass
        finally:
            self._gate.leave(ticket)
            if connection is None:
                with trio.CancelScope(shield=True):
                    await raw.close()
        if connection is None:
            return
        if self._is_refused(connection) or not self._make_room(connection):
            await raw.close()
            return
        self._register(connection)
        await self._keep(connection)

    def _is_refused(self, connection: Connection) -> bool:
        peer_id = connection.peer_id
        return peer_id == self.peer_id or self._guard.offences.is_barred(peer_id, trio.current_time())

    def _refuse_barred(self, peer_id: PeerId) -> None:
        if self._guard.offences.is_barred(peer_id, trio.current_time()):
            raise Unreachable(f"{peer_id} is barred for a while: too many offences")

    # Keeping.

    def _make_room(self, newcomer: Connection) -> bool:
        """Apply the watermarks; return whether there is room for one more connection."""
        everyone = [
            each for connections in self._connections.values() for each in connections if not each.is_closed
        ]
        if newcomer.remote_ip != "relayed":
            here = [each for each in everyone if each.remote_ip == newcomer.remote_ip]
            if len(here) >= self._settings.connections_per_address_max and not _trim(here):
                return False
        return len(everyone) < self._settings.connections_max or _trim(everyone)

    def _register(self, connection: Connection) -> None:
        peer_id = connection.peer_id
        siblings = self._connections.setdefault(peer_id, [])
        siblings.append(connection)
        alive = [each for each in siblings if not each.is_closed]
        for oldest in alive[:-CONNECTIONS_PER_PEER]:
            oldest.close("superseded")
        if alive == [connection]:
            self._tell_lost(
                peer_id, "replaced"
            )  # by a new process, perhaps: whoever dialled has to say hello again
            we_dialled = connection.we_dialled
            if not we_dialled and peer_id in self._dialling:
                # Both dialled at once, and each may see the other's connection first: then nobody would speak first.
                we_dialled = self.peer_id < peer_id
            self._guard.journal.write("peer_connected", peer_id=peer_id, we_dialled=we_dialled)
            self._present.add(peer_id)
            self._tell(PeerConnected(peer_id, we_dialled))

    async def _keep(self, connection: Connection) -> None:
        settings = self._settings
        try:
            await connection.run(
                idle_s=settings.heartbeat_idle_s,
                busy_s=settings.heartbeat_busy_s,
                silence_s=settings.silence_s,
            )
        finally:
            self._unregister(connection)

    def _unregister(self, connection: Connection) -> None:
        peer_id = connection.peer_id
        if connection.violation:
            self._guard.charge(peer_id, "wire", connection.violation)
        siblings = self._connections[peer_id]
        siblings.remove(connection)
        if not siblings:
            del self._connections[peer_id]
        if not any(not each.is_closed for each in siblings):
            self._tell_lost(peer_id, connection.close_reason)

    def _tell_lost(self, peer_id: PeerId, reason: str) -> None:
        if peer_id in self._present:
            self._present.remove(peer_id)
            self._guard.journal.write("peer_lost", peer_id=peer_id, reason=reason)
            self._tell(PeerLost(peer_id))

    def _accept_stream(self, stream: MuxStream) -> None:
        if self._nursery is None:
            stream.reset()
        else:
            self._nursery.start_soon(self._answer, stream)


def _trim(connections: list[Connection]) -> bool:
    """Close the connection that has been of no use for longest; False when all are in use."""
    idle = [each for each in connections if not each.busy]
    if not idle:
        return False
    min(idle, key=lambda each: each.used_at).close("trimmed to make room")
    return True


def _remote(socket: trio.SocketStream) -> tuple[str, int]:
    host, port = socket.socket.getpeername()[:2]
    return str(host), int(port)


async def _raise(error: Exception) -> None:
    raise error
