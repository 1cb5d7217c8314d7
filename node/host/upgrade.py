"""From a byte channel to an authenticated connection: Noise, then yamux, and nothing else on offer.

Stock libp2p also offers plaintext and SECIO, under which a client that knows a victim's public key was taken for the
victim. Here the only security is Noise, and the peer id is what its handshake proved: an Ed25519 key or no connection.
"""

from collections.abc import Callable

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise

from node.host import negotiation
from node.host.mux_stream import MuxStream
from node.host.sockets import RawBytes
from node.host.yamux import Connection
from protocol.errors import Unreachable
from protocol.identity import Identity, PeerId, public_key_of

YAMUX = "/yamux/1.0.0"


def libp2p_key_pair(identity: Identity) -> KeyPair:
    """Return our key as libp2p holds it."""
    return create_new_key_pair(identity.seed)


class Upgrader:
    """Makes connections out of byte channels, in both roles."""

    def __init__(self, identity: Identity, accept: Callable[[MuxStream], None]) -> None:
        """`accept` is called for each stream that a peer opens, before any of its bytes are read."""
        self._noise = Noise(libp2p_key_pair(identity), create_noise_key_pair().private_key)
        self._accept = accept

    async def inbound(self, raw: RawBytes, remote_ip: str) -> Connection:
        """Answer a handshake. Raises whatever a hostile peer can provoke; the caller closes the channel."""
        await negotiation.accept(raw.read, raw.write, [str(NOISE)])
        session = await self._noise.secure_inbound(raw)
        peer_id = _proven(session.get_remote_peer())
        await negotiation.accept(session.read, session.write, [YAMUX])
        return self._connection(session, peer_id, raw, remote_ip)

    async def outbound(self, raw: RawBytes, remote_ip: str, expected: PeerId) -> Connection:
        """Perform a handshake with one certain peer.

        Raises:
            Unreachable: another key answered.
        """
        await negotiation.propose(raw.read, raw.write, str(NOISE))
        session = await self._noise.secure_outbound(raw, ID.from_base58(expected))
        peer_id = _proven(session.get_remote_peer())
        if peer_id != expected:
            raise Unreachable(f"{peer_id} answered where {expected} was expected")
        await negotiation.propose(session.read, session.write, YAMUX)
        return self._connection(session, peer_id, raw, remote_ip)

    def _connection(self, session: object, peer_id: PeerId, raw: RawBytes, remote_ip: str) -> Connection:
        return Connection(
            session,  # type: ignore[arg-type]  # libp2p's ISecureConn is a Secured
            peer_id,
            we_dialled=raw.is_initiator,
            remote_ip=remote_ip,
            is_relayed=raw.get_remote_address() is None,
            accept=self._accept,
        )


def _proven(libp2p_id: ID) -> PeerId:
    peer_id = PeerId(libp2p_id.to_base58())
    public_key_of(peer_id)  # an RSA or secp256k1 key could never sign an envelope
    return peer_id
