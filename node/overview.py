"""What the users of a node see: the charter, the daemon at a glance, the peers, the accounts.

Each view is made anew from what the services know at that moment and changes nothing. Models and jobs have keepers that
show them (`models.py`, `jobs.py`).
"""

from collections.abc import Callable

import msgspec

from marketplace.reputation import Reputation
from node.clock import Clock
from node.directory import Directory
from node.logbook import Logbook
from node.models import ModelNames
from node.services.meeting import Meeting
from node.store import Store
from node.views import LedgerView, PeerView, ReceiptView, StatusView
from protocol.identity import PeerId
from protocol.mesh import Mesh
from protocol.messages import Device
from runtime.engine import Engine


class Overview:
    """Shows one node to whoever may look at it."""

    def __init__(
        self,
        *,
        version: str,
        mesh_id: bytes,
        mesh: Mesh,
        store: Store,
        engine: Engine,
        clock: Clock,
        device: Callable[[], Device],
        logbook: Logbook,
        directory: Directory,
        meeting: Meeting,
        names: ModelNames,
        reputation: Reputation,
        owner: Callable[[], str],
        patch_warnings: Callable[[], list[str]],
    ) -> None:
        self._version = version
        self._mesh_id = mesh_id
        self._mesh = mesh
        self._store = store
        self._engine = engine
        self._clock = clock
        self._device = device
        self._logbook = logbook
        self._directory = directory
        self._meeting = meeting
        self._names = names
        self._reputation = reputation
        self._owner = owner
        self._patch_warnings = patch_warnings
        self._started_s = clock.now()

    def status(self, gateway: str) -> StatusView:
        """This daemon at a glance; `gateway` is where it answers HTTP."""
        me, assembly = self._logbook.me, self._logbook.assembly
        local = list(self._engine.models)
        state = self._engine.status(local[0]) if local else None
        warnings = [self._logbook.halted] if self._logbook.halted else []
        if assembly.is_barred(me):
            warnings.append("the mesh has barred this device: no member speaks with it any more")
        if not self._logbook.is_confirmed:
            warnings.append(
                "no member has confirmed this device's log yet: it buys and sells nothing until one does"
            )
        if self._store.is_full:
            warnings.append("the disk is full: no new work is taken")
        warnings += self._patch_warnings()
        return StatusView(
            peer_id=me,
            mesh_id=self._mesh_id.hex(),
            mesh_name=assembly.charter.name,
            owner=self._owner(),
            version=self._version,
            roles=["buyer", *(["seller"] if local else []), *(["roll"] if me in assembly.roll else [])],
            peers=len(self._meeting.greeted),
            models=[view.id for view in self._names.views()],
            addresses=list(self._mesh.addresses),
            gateway=gateway,
            uptime_s=self._clock.now() - self._started_s,
            engine=msgspec.to_builtins(state) if state else {},
            device=msgspec.to_builtins(self._device()),
            is_durable=self._logbook.is_confirmed,
            warnings=warnings,
        )

    def peers(self) -> list[PeerView]:
        """Every member, and everybody connected."""
        members = self._logbook.assembly.members()
        known = dict.fromkeys((*members, *self._mesh.connected))
        return [self._peer(peer_id) for peer_id in known if peer_id != self._logbook.me]

    def ledger(self) -> LedgerView:
        """The accounts as this node knows them; they sum to zero."""
        ledger, me = self._logbook.ledger, self._logbook.me
        return LedgerView(
            account=me,
            balance_micro=ledger.balance_micro(me),
            held_micro=ledger.held_micro(me),
            credit_line_micro=self._credit_line(),
            accounts=[
                {"peer_id": peer_id, "balance_micro": balance}
                for peer_id, balance in ledger.balances().items()
            ],
            receipts=[
                ReceiptView(
                    receipt_id=payment.receipt.id.hex(),
                    job_id=payment.receipt.message.job_id.hex(),
                    attempt=payment.receipt.message.attempt,
                    payer=payment.payer,
                    payee=payment.payee,
                    amount_micro=payment.amount_micro,
                    prompt_tokens=payment.receipt.message.prompt_tokens,
                    completion_tokens=payment.receipt.message.completion_tokens,
                    at=payment.at_ms / 1000,
                )
                for payment in ledger.payments()
            ],
        )

    def _peer(self, peer_id: PeerId) -> PeerView:
        now, assembly = self._clock.now(), self._logbook.assembly
        offer = self._directory.offer(peer_id, now)
        advert = offer.advert.message if offer else None
        trip_s = self._mesh.round_trip_s(peer_id)
        is_member = assembly.is_member(peer_id)
        return PeerView(
            peer_id=peer_id,
            owner=assembly.member(peer_id).owner if is_member else "",
            is_connected=peer_id in self._mesh.connected,
            is_admitted=is_member,
            is_revoked=assembly.is_barred(peer_id),
            addresses=list(self._directory.addresses(peer_id)),
            models=[model.digest.hex() for model in advert.models] if advert else [],
            slots=advert.slots if advert else 0,
            slots_free=advert.slots_free if advert else 0,
            prompt_micro=advert.prompt_micro if advert else 0,
            completion_micro=advert.completion_micro if advert else 0,
            tokens_per_s=max((model.tokens_per_ks for model in advert.models), default=0) / 1000
            if advert
            else 0,
            round_trip_ms=None if trip_s is None else trip_s * 1000,
            device=msgspec.to_builtins(advert.device) if advert else {},
            seen_s_ago=now - offer.heard_at if offer else None,
            answers_checked=self._reputation.of(peer_id).judged,
            answers_caught=self._reputation.of(peer_id).caught,
        )

    def _credit_line(self) -> int:
        assembly, me = self._logbook.assembly, self._logbook.me
        return assembly.member(me).credit_line_micro if assembly.is_member(me) else 0
