"""Adverts: say what this device offers to a sample of members, and remember what they offer.

An advert also says, in one hash, how far its sender knows the assembly's logs: whoever reads another hash than its own
has something to mend, or to give (`on_difference`).

Sent by stream to about 20 members drawn by lot, at most every 10 s and every 60 s when nothing has changed, so the rate
a node receives does not grow with the mesh (docs/adr/0003). A newcomer gets a sample with the first hello.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import msgspec
import trio

from node.clock import Clock
from node.directory import Directory
from node.logbook import Logbook
from node.wire import Wire
from protocol import limits
from protocol.envelope import Sealed
from protocol.errors import (
    Expired,
    LocalProtocolError,
    MeshError,
    NotAuthorised,
    RemoteProtocolError,
    Replayed,
)
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import Advert, Adverts, AdvertsWanted
from protocol.topics import ADVERT, ADVERTS_WANTED

if TYPE_CHECKING:  # trio-typing's stubs, which libp2p brings, hide trio's own types
    from trio_typing import TaskStatus

PEERS_PER_ROUND = 20
ASK_TIMEOUT_S = 5.0  # each chat asks: who never answers must not collect questions


class Advertiser:
    """Sends our advert when it is due, takes others' in, answers who asks for sellers of a model."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        wire: Wire,
        clock: Clock,
        logbook: Logbook,
        directory: Directory,
        rng: Random,
        describe: Callable[[], Advert],
    ) -> None:
        self._mesh = mesh
        self._wire = wire
        self._clock = clock
        self._logbook = logbook
        self._directory = directory
        self._rng = rng
        self._describe = describe
        self._own: Sealed[Advert] | None = None
        self._changed = trio.Event()
        self.on_difference: Callable[[Sealed[Advert]], None] = lambda _advert: None
        mesh.serve_posts(ADVERT, self._take)
        mesh.serve(ADVERTS_WANTED, self._answer)

    def own(self) -> Sealed[Advert]:
        """Our advert as of now, sealed; the same bytes for 10 s."""
        now_ms = self._clock.utc_ms()
        if self._own is None or now_ms - self._own.time_ms >= limits.ADVERT_INTERVAL_MIN_S * 1000:
            self._own = self._sealed(self._describe())
        return self._own

    def _sealed(self, advert: Advert) -> Sealed[Advert]:
        """Seal an advert; what does not fit into 2 KiB is left out: what is warm, addresses (hellos carry them), models."""
        try:
            return self._wire.seal(advert, ttl_ms=int(limits.ADVERT_TTL_S * 1000))
        except LocalProtocolError:
            if not advert.addresses and not advert.models:
                raise  # it is not its length
            if advert.warm:
                return self._sealed(msgspec.structs.replace(advert, warm=b""))
            shorter = {"addresses": ()} if advert.addresses else {"models": advert.models[:-1]}
            return self._sealed(msgspec.structs.replace(advert, **shorter))

    def refresh(self) -> None:
        """Something worth telling has changed (a model was added): advertise as soon as the rate allows."""
        self._own = None
        self._changed.set()

    def hear(self, raw: bytes, delivered_by: PeerId) -> None:
        """Take in an advert that a peer handed over: its own, or another member's."""
        try:
            advert = self._wire.admit(raw, delivered_by, Advert)
        except (Replayed, Expired):
            return  # members hand adverts on, the same ones and old ones, by clocks of their own: nobody's fault
        except RemoteProtocolError as error:
            self._mesh.charge(delivered_by, error.offence)
            return
        if advert.sender == self._logbook.me:
            self._logbook.meet_own_key(advert)
        elif self._logbook.assembly.is_member(advert.sender):
            self._logbook.note_said(advert)
            self._directory.hear(advert, self._clock.now(), self._clock.utc_ms())
            if (
                advert.sender == delivered_by
                and advert.message.assembly != self._logbook.assembly.fingerprint()
            ):
                self.on_difference(advert)

    async def ask(self, peer_id: PeerId, model: bytes) -> None:
        """Ask a peer for adverts of sellers of a model; what it knows ends up in the directory."""
        with trio.move_on_after(ASK_TIMEOUT_S):
            try:
                stream = await self._mesh.open_stream(peer_id, ADVERTS_WANTED)
                try:
                    await self._wire.send(stream, AdvertsWanted(model=model))
                    answer = await self._wire.receive(stream, Adverts)
                finally:
                    stream.abort()
            except RemoteProtocolError as error:
                self._mesh.charge(peer_id, error.offence)
            except MeshError:
                pass  # another one is asked with the next request
            else:
                for raw in answer.message.adverts:
                    self.hear(raw, peer_id)

    async def run(self, *, task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Advertise: at once, then every 10 s while something changes, every 60 s while nothing does."""
        task_status.started()
        told: Advert | None = None
        told_at = float("-inf")
        while True:
            offer = self._describe()
            idle_s = self._clock.now() - told_at
            if _differs(offer, told) or idle_s >= limits.ADVERT_INTERVAL_IDLE_S:
                told, told_at = offer, self._clock.now()
                self._tell()
            await trio.sleep(limits.ADVERT_INTERVAL_MIN_S * self._rng.uniform(1.0, 1.1))
            if not _differs(self._describe(), told):
                self._changed = trio.Event()
                with trio.move_on_at(told_at + limits.ADVERT_INTERVAL_IDLE_S):
                    await self._changed.wait()

    def _tell(self) -> None:
        raw = self.own().raw
        members = sorted(peer for peer in self._mesh.connected if self._logbook.assembly.is_member(peer))
        for peer_id in self._rng.sample(members, min(PEERS_PER_ROUND, len(members))):
            self._mesh.post(peer_id, ADVERT, raw)

    def _take(self, raw: bytes, sender: PeerId) -> None:
        self._check_member(sender)
        self.hear(raw, sender)

    async def _answer(self, stream: Stream) -> None:
        self._check_member(stream.peer_id)
        wanted = await self._wire.receive(stream, AdvertsWanted)
        chosen = self._directory.sample_of_holders(
            wanted.message.model, limits.ADVERTS_PER_HELLO_MAX, self._rng, self._clock.now()
        )
        await self._wire.send(stream, Adverts(adverts=tuple(chosen)))

    def _check_member(self, peer_id: PeerId) -> None:
        if not self._logbook.assembly.is_member(peer_id):
            raise NotAuthorised(f"peer {peer_id} is not a member")


def _differs(offer: Advert, told: Advert | None) -> bool:
    """Whether a buyer would choose differently: models, slots, prices and power count, a percent of load does not.

    Nor does what is warm: a system prompt was read for a job, whose slot has changed the advert by itself.
    """
    return told is None or _essence(offer) != _essence(told)


def _essence(offer: Advert) -> Advert:
    device = msgspec.structs.replace(offer.device, load_percent=0, memory_free_mib=0, battery_percent=0)
    models = tuple(
        msgspec.structs.replace(model, tokens_per_ks=0, prompt_tokens_per_ks=0) for model in offer.models
    )
    return msgspec.structs.replace(offer, device=device, models=models, heads=(), warm=b"")
