"""A small town for the assembly's tests: named people with fixed keys, each writing an assembly log of its own."""

import hashlib
from typing import Any

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.charter import founding_charter
from protocol.envelope import Sealed, seal
from protocol.identity import Identity, PeerId
from protocol.messages import (
    NO_HASH,
    Admitted,
    Award,
    Card,
    Charter,
    Entry,
    Evidence,
    Receipt,
    Revocation,
    RollEntry,
)

NOON = 1_700_000_000_000  # Unix milliseconds
HOUR = 3_600_000
LLAMA, GEMMA = b"\x11" * 32, b"\x22" * 32


def person(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ANN, BOB, CAT, EVE, DAN = (person(name) for name in ("ann", "bob", "cat", "eve", "dan"))


def charter_of(*voters: tuple[Identity, str], **changes: Any) -> Charter:
    """Return a founding charter with these voters, each of weight 1; the first is its founder."""
    founder, owner = voters[0]
    base = founding_charter(
        "town", founder=founder.public_key, owner=owner, approver=person("human").public_key
    )
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    roll = tuple(RollEntry(key=key.public_key, owner=of, weight=1) for key, of in voters)
    return Charter(**{**fields, "roll": roll, **changes})


class Town:
    """Writes entries with right indexes and `prev`s, whether or not anybody may write them."""

    def __init__(self, *voters: tuple[Identity, str]) -> None:
        voters = voters or ((ANN, "ann"), (BOB, "bob"))
        self.founding = self.seal(charter_of(*voters), voters[0][0], at=NOON, mesh=NO_HASH, counter=1)
        self.mesh = self.founding.id
        self.tails: dict[tuple[PeerId, str], list[Sealed[Any]]] = {
            (voters[0][0].peer_id, "assembly"): [self.founding]
        }

    def assembly(self, *entries: Sealed[Entry]) -> Assembly:
        assembly = Assembly.found(self.founding)
        for entry in entries:
            assert assembly.apply(entry)
        return assembly

    def seal(
        self, message: Any, author: Identity, *, at: int = NOON, mesh: bytes | None = None, counter: int = 1
    ) -> Sealed[Any]:
        return seal(message, author, mesh=self.mesh if mesh is None else mesh, seq=(7, counter), time_ms=at)

    def write(
        self, author: Identity, form: type[Entry], *, at: int = NOON, index: int | None = None, **fields: Any
    ) -> Sealed[Any]:
        """Write the next entry of an author's log; with an `index` of old, fork it there instead."""
        log = self.tails.setdefault((author.peer_id, form.log), [])
        index = len(log) if index is None else index
        entry = self.seal(
            form(index=index, prev=log[index - 1].id if index else NO_HASH, **fields), author, at=at
        )
        if index == len(log):
            log.append(entry)
        return entry

    def admit(
        self, peer: Identity, by: Identity = ANN, owner: str = "guest", credit: int = 5, **more: Any
    ) -> Sealed[Any]:
        fields = {
            "peer": peer.peer_id,
            "owner": owner,
            "credit_line_micro": credit,
            "invitation_id": bytes(16),
        }
        return self.write(by, Admitted, **{**fields, **more})

    def revoke(self, peer: Identity, by: Identity = ANN, **more: Any) -> Sealed[Any]:
        return self.write(by, Revocation, peer=peer.peer_id, reason="lost", **more)

    def card(self, name: str, model: bytes, by: Identity = ANN, **more: Any) -> Sealed[Any]:
        return self.write(by, Card, name=name, model=model, **more)

    def evidence(self, first: Sealed[Any], second: Sealed[Any], by: Identity) -> Sealed[Any]:
        return self.write(by, Evidence, first=first.raw, second=second.raw)

    def award(self, buyer: Identity, seller: Identity, job: bytes = b"j" * 16, **more: Any) -> Sealed[Any]:
        return self.write(
            buyer,
            Award,
            request=NO_HASH,
            bid=NO_HASH,
            job_id=job,
            attempt=1,
            seller=seller.peer_id,
            model=LLAMA,
            adapter=NO_HASH,
            hold_micro=10,
            prompt_micro=1,
            completion_micro=1,
            lease_ms=0,
            session=NO_HASH,
            **more,
        )

    def receipt(
        self,
        payee: Identity,
        payer: Identity,
        amount: int,
        job: bytes = b"j" * 16,
        award: bytes = NO_HASH,
        **more: Any,
    ) -> Sealed[Any]:
        return self.write(
            payee,
            Receipt,
            award=award,
            job_id=job,
            attempt=1,
            payer=payer.peer_id,
            payee=payee.peer_id,
            model=LLAMA,
            adapter=NO_HASH,
            sampling=NO_HASH,
            seed=0,
            prompt=NO_HASH,
            output=NO_HASH,
            prompt_tokens=1,
            completion_tokens=1,
            ttft_ms=1,
            duration_ms=1,
            amount_micro=amount,
            **more,
        )
