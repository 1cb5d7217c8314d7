"""Join a mesh with an invitation: dial its issuer, prove that we hold it, verify the yes, and only then write a home.

Whatever goes wrong before that leaves nothing on disk, and a crash while it is written leaves no home: one joins again,
with a new invitation if that one was for a single device.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trio

from marketplace.assembly.invitation import Invite, Welcome, join_request, open_answer, parse
from node import config
from node.api_keys import ApiKeys
from node.clock import MembersTime, SystemClock
from node.errors import StartError
from node.founding import belong
from node.home import Home
from node.journal import Journal
from node.keys import create_device_key
from node.new_home import making, refuse_used
from node.wire import Wire
from protocol import limits
from protocol.envelope import narrow
from protocol.errors import AgoraError, MeshError, RemoteProtocolError, TooLarge
from protocol.identity import Identity, PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import Entries, Refusal
from protocol.topics import ADMISSION

JOIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Joined:
    """What the user is shown."""

    mesh_id: str
    peer_id: PeerId
    owner: str
    api_key: str


def join(home_path: Path, invitation: str, *, device_passphrase: str | None = None) -> Joined:
    """Join the mesh of an invitation and write the home of this device.

    Raises:
        AgoraError: one line; nothing was written.
    """
    invite = parse(invitation, utc_ms=time.time_ns() // 1_000_000)
    if home_path.exists():
        home = Home(home_path)
        home.check_place()
        refuse_used(home)  # before an invitation is spent on it
    identity = Identity.generate()
    welcome = trio.run(_ask, invite, identity)
    admitted = welcome.admitted
    with making(home_path) as home:
        create_device_key(home, device_passphrase, identity=identity)
        config.write_default(
            home.config, owner=admitted.message.owner, bootstrap=invite.sealed.message.addresses
        )
        api_key = ApiKeys(home.api_keys).create("first")[1]
        belong(home, welcome.entries)
    return Joined(invite.mesh.hex(), identity.peer_id, admitted.message.owner, api_key)


async def _ask(invite: Invite, identity: Identity) -> Welcome:
    from node.host import Host, HostSettings  # noqa: PLC0415  # 0.7 s that a refused invitation need not wait for

    settings = HostSettings(listen=(), mdns=False, relay=False)
    host = Host(identity, settings, Journal())
    clock = SystemClock()
    wire = Wire(
        identity,
        invite.mesh,
        boot=int.from_bytes(os.urandom(7)),
        clock=clock,
        members_time=MembersTime(clock),
    )
    with trio.move_on_after(JOIN_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            answer = await _ask_issuer(host, wire, invite)
            nursery.cancel_scope.cancel()
        if isinstance(answer, AgoraError):
            raise answer
        return answer
    raise StartError(f"the inviter did not answer within {JOIN_TIMEOUT_S:.0f} s; is its daemon up?")


async def _ask_issuer(mesh: Mesh, wire: Wire, invite: Invite) -> Welcome | AgoraError:
    """Return our admission, or why not: an error here must not be wrapped in a nursery's group."""
    reasons = []
    for address in invite.sealed.message.addresses:
        try:
            peer_id = await mesh.dial(address)
            stream = await mesh.open_stream(peer_id, ADMISSION)
            await wire.send(stream, join_request(invite, wire.identity.peer_id))
            reply = await wire.receive(stream, Entries, Refusal)
            history = [] if isinstance(reply.message, Refusal) else await _history(stream, wire)
            await stream.end()
        except MeshError as error:
            reasons.append(str(error))
            continue
        except RemoteProtocolError as error:
            return StartError(f"the inviter's answer does not verify ({error}); ask for a new invitation")
        refusal = narrow(reply, Refusal)
        if refusal is not None:
            said = refusal.message
            if said.reason == "not_now":
                return StartError(f"the inviter can admit nobody now: {said.detail}; try again later")
            return StartError(f"the inviter refused ({said.reason}): {said.detail}; ask for a new invitation")
        try:
            return open_answer(cast("Entries", reply.message), invite, wire.identity.peer_id, history)
        except RemoteProtocolError as error:
            return StartError(f"the inviter's answer does not verify ({error}); ask for a new invitation")
    return StartError(
        f"no address of the inviter answers ({reasons[0] if reasons else 'none given'}); "
        "is its daemon up, and on this network?"
    )


async def _history(stream: Stream, wire: Wire) -> list[bytes]:
    """Return what the assembly has written, as the issuer tells it.

    Raises:
        RemoteProtocolError: it is more than any assembly may have written.
    """
    history: list[bytes] = []
    left = limits.ASSEMBLY_LOG_BYTES_MAX
    while raws := (await wire.receive(stream, Entries)).message.entries:
        left -= sum(map(len, raws))
        if left < 0:
            raise TooLarge(f"the inviter sends more than {limits.ASSEMBLY_LOG_BYTES_MAX} bytes of history")
        history += raws
    return history
