"""The receipt forger: serves honestly and then claims more than it served, for another award, or twice.

It is a seller with a wire tap: receipts on their way out are replaced by forged ones under its own key, since it can
sign whatever it likes. Only what the buyer knows can tell them from honest ones.
"""

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, ClassVar, Final, cast

import msgspec
import trio

from marketplace.receipt import amount_micro
from node.services.settlement import RECEIPT_TIMEOUT_S
from node.simulation.adversaries.adversary import Adversary
from node.simulation.adversaries.wiretap import TappedMesh
from node.simulation.engine import SimulatedEngine
from protocol.envelope import Sealed, open_sealed
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.mesh import Mesh, Stream
from protocol.messages import Accepted, Countersignature, Receipt, SettlementWanted
from protocol.topics import JOB, SETTLE, StreamProtocol

if TYPE_CHECKING:
    from node.simulation.daemon import Daemon
    from node.simulation.world import World

TOKENS_ADDED: Final = 100
KEPT_MAX: Final = 64  # receipts that wait to be presented; a further one goes out as it is
PAST_TIMEOUT_S: Final = 0.5  # before its own node comes for the money
KINDS: Final = ("more_tokens", "higher_amount", "foreign_award", "twice")


@dataclass(frozen=True)
class _Kept:
    """A receipt that was kept back, to be presented twice."""

    receipt: Sealed[Receipt]
    buyer: PeerId


class ReceiptForger(Adversary):
    """Forges every receipt, each in another way."""

    name: ClassVar[str] = "receipt-forger"
    about: ClassVar[str] = (
        "claims more tokens than it sent, another's award, or one job twice under two indexes"
    )

    def __init__(self, world: "World", daemon: "Daemon") -> None:
        super().__init__(world, daemon)
        self.undercut()
        daemon.engine = SimulatedEngine.of(self.profile, is_seller=True)
        self._kinds = cycle(
            self.rng.sample(KINDS, len(KINDS))
        )  # a refused forger may not sell a second time soon
        self._kept_send, self._kept = trio.open_memory_channel[_Kept](KEPT_MAX)

    def tap(self, mesh: Mesh) -> Mesh:
        """See `Adversary.tap`."""
        return TappedMesh(mesh, self)

    def incoming(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> None:
        """See `Tapper`; it listens to nothing."""

    def outgoing(self, frame: bytes, peer_id: PeerId, protocol: StreamProtocol) -> list[bytes]:
        """See `Tapper`; only receipts on the job's stream are forged, so that what is claimed later is honest."""
        if protocol is not JOB:
            return [frame]
        try:
            opened = open_sealed(frame, mesh=self.world.mesh_id, kinds=frozenset({Receipt.kind}))
        except RemoteProtocolError:
            return [frame]
        receipt = cast("Sealed[Receipt]", opened)
        kind = next(self._kinds)
        if kind == "twice":
            try:
                self._kept_send.send_nowait(_Kept(receipt, peer_id))
            except trio.WouldBlock:
                return [frame]
            return []
        self.strike(kind, buyer=peer_id)
        return [self._forged(receipt, kind).raw]

    def _forged(self, receipt: Sealed[Receipt], kind: str) -> Sealed[Receipt]:
        terms, ledger = receipt.message, self.daemon.node.logbook.ledger
        award = ledger.award(terms.award)
        assert award is not None, "its own node keeps every award that it works under"
        match kind:
            case "more_tokens":
                tokens = terms.completion_tokens + TOKENS_ADDED
                amount = amount_micro(award.message, terms.prompt_tokens, tokens)
                changed = msgspec.structs.replace(terms, completion_tokens=tokens, amount_micro=amount)
            case "higher_amount":
                changed = msgspec.structs.replace(terms, amount_micro=award.message.hold_micro + 1)
            case _:
                changed = msgspec.structs.replace(terms, award=self._award_of_another(award.sender))
        return self.daemon.node.wire.seal(changed)

    def _award_of_another(self, buyer: PeerId) -> bytes:
        """Return an award that another buyer gave; before there was one, an award of nobody."""
        others = [
            payment.receipt.message.award
            for payment in self.daemon.node.logbook.ledger.payments()
            if payment.payer != buyer
        ]
        return others[-1] if others else self.rng.randbytes(32)

    async def run(self) -> None:
        """See `Adversary.run`."""
        async with trio.open_nursery() as nursery:
            async for kept in self._kept:
                nursery.start_soon(self._claim_twice, kept)

    async def _claim_twice(self, kept: _Kept) -> None:
        """Present a receipt and its copy on two streams in the same moment, when the buyer no longer waits for one."""
        await trio.sleep(RECEIPT_TIMEOUT_S + PAST_TIMEOUT_S)
        terms = kept.receipt.message
        again = msgspec.structs.replace(terms, index=terms.index + 1, prev=kept.receipt.id)
        self.strike("twice", buyer=kept.buyer)
        async with trio.open_nursery() as nursery:
            for receipt in (kept.receipt, self.daemon.node.wire.seal(again)):
                nursery.start_soon(self.attempt, self._present, receipt, kept.buyer)

    async def _present(self, receipt: Sealed[Receipt], buyer: PeerId) -> None:
        terms, wire = receipt.message, self.daemon.node.wire
        async with self.stream(buyer, SETTLE) as stream:
            await wire.send(
                stream, SettlementWanted(award=terms.award, job_id=terms.job_id, attempt=terms.attempt)
            )
            await self._take(stream, Accepted)
            await stream.send(receipt.raw)
            await self._take(stream, Countersignature)
        self.attacks["countersigned"] += 1

    async def _take(self, stream: Stream, form: type[Accepted | Countersignature]) -> None:
        """Read one frame without telling the node of it: what it knows it would keep."""
        open_sealed(await stream.receive(), mesh=self.world.mesh_id, kinds=frozenset({form.kind}))
