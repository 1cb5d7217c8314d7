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
    Approval,
    Award,
    Card,
    Charter,
    Entry,
    Evidence,
    Line,
    Manifest,
    Receipt,
    Revocation,
    RollEntry,
    Veto,
    Vote,
    Withdrawal,
)

NOON = 1_700_000_000_000  # Unix milliseconds
HOUR = 3_600_000
LLAMA, GEMMA = b"\x11" * 32, b"\x22" * 32


def person(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ANN, BOB, CAT, EVE, DAN = (person(name) for name in ("ann", "bob", "cat", "eve", "dan"))
HUMAN = person("human")  # who approves; no device


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

    def __init__(self, *voters: tuple[Identity, str], **charter: Any) -> None:
        voters = voters or ((ANN, "ann"), (BOB, "bob"))
        self.founding = self.seal(
            charter_of(*voters, **charter), voters[0][0], at=NOON, mesh=NO_HASH, counter=1
        )
        self.mesh = self.founding.id
        self.tails: dict[tuple[PeerId, str], list[Sealed[Any]]] = {
            (voters[0][0].peer_id, "assembly"): [self.founding]
        }
        self.begun: list[Sealed[Any]] = []

    def with_a_line(self) -> "Town":
        """The same town, whose `assembly` begins with a line that patches can be proposed for."""
        self.begun.append(self.line())
        return self

    def assembly(self, *entries: Sealed[Entry]) -> Assembly:
        assembly = Assembly.found(self.founding)
        for entry in (*self.begun, *entries):
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

    def line(self, base: bytes = LLAMA, by: Identity = ANN, name: str = "llama", **more: Any) -> Sealed[Any]:
        fields = {"evaluation": b"e" * 32, "evaluation_bytes": 9, "replay": NO_HASH, "replay_bytes": 0}
        return self.write(by, Line, name=name, base=base, **{**fields, **more})

    def propose(
        self,
        adapter: bytes = b"a" * 32,
        version: int = 1,
        by: Identity = ANN,
        *,
        at: int = NOON,
        ttl: int = 7 * 24 * HOUR,
        **more: Any,
    ) -> Sealed[Any]:
        fields = {
            "line": "llama",
            "parent": NO_HASH,
            "base": LLAMA,
            "adapter_bytes": 0 if adapter == NO_HASH else 100,
            "shape": None,
            "rolls_back_to": 0,
            "run": bytes(16),
            "rounds": 0,
            "cohort": (),
            "evaluation": b"e" * 32,
            "before": (),
            "after": (),
            "expires_at": at + ttl,
            "reason": "",
        }
        return self.write(by, Manifest, at=at, version=version, adapter=adapter, **{**fields, **more})

    def vote(
        self, on: Sealed[Any], by: Identity, is_yes: bool = True, *, at: int | None = None, **more: Any
    ) -> Sealed[Any]:
        fields = {
            "manifest": on.id,
            "line": on.message.line,
            "version": on.message.version,
            "scores": (),
            "private": "none",
            "reason": "",
        }
        return self.write(by, Vote, at=on.time_ms if at is None else at, is_yes=is_yes, **{**fields, **more})

    def approve(self, on: Sealed[Any], by: Identity = HUMAN, *, at: int | None = None) -> Sealed[Any]:
        return self.write(by, Approval, at=on.time_ms if at is None else at, manifest=on.id)

    def veto(self, on: Sealed[Any], by: Identity = HUMAN, *, at: int | None = None) -> Sealed[Any]:
        return self.write(by, Veto, at=on.time_ms if at is None else at, manifest=on.id, reason="rude")

    def withdraw(self, adapter: bytes, by: Identity = HUMAN, *, at: int = NOON) -> Sealed[Any]:
        return self.write(by, Withdrawal, at=at, adapter=adapter, reason="wrong logs")

    def ratify(
        self, adapter: bytes, version: int, *voters: Identity, at: int = NOON, **more: Any
    ) -> list[Sealed[Any]]:
        """A proposal with all that it takes: the votes of these and a human's approval."""
        proposal = self.propose(adapter, version, at=at, **more)
        votes = [self.vote(proposal, voter) for voter in voters or (ANN, BOB)]
        return [proposal, *votes, self.approve(proposal)]
