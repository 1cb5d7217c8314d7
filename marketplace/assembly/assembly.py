"""The assembly: who belongs, who decides and what names mean, as a fold over the members' assembly logs.

The same entries give the same state in whatever order they come. Two rules make it so. An entry is *taken* by what
never changes back: its log has no gap, and its author stands on the roll or, for evidence and manifests, was ever
admitted, or is a human of the charter who approves (`rights.py`). What a taken entry *does* is a function of the whole
set: of several admissions or cards the newest by (signed time, author, index) holds, and a revocation or evidence
outlasts everything. A voter's word counts if it was on the roll at the word's signed time; which roll that was, `succession.py`
says. What lines and patches come to is `lines.py`'s. An admission of a barred key is therefore taken, since
its author's log goes on after it, and does nothing. An entry that comes before what gives its author the right is
refused, and taken when it is offered again.

Evidence bars a key and *closes* its assembly log: what stands at or behind the fork, or was signed after the
contradiction, does nothing any more, for every member alike. Only evidence still counts there, since it proves itself.
"""

import copy
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from marketplace.assembly import docket
from marketplace.assembly.ballot import BallotView
from marketplace.assembly.charter import check_charter, check_founding, open_entry
from marketplace.assembly.evidence import Contradiction, contradiction
from marketplace.assembly.lines import Lines
from marketplace.assembly.logs import Logs
from marketplace.assembly.manifest import check_form
from marketplace.assembly.names import Names
from marketplace.assembly.promises import Promises
from marketplace.assembly.rights import a, check_right
from marketplace.assembly.succession import (
    Consents,
    Reign,
    consents,
    may_admit,
    may_propose,
    reign,
    reign_at,
    succession,
)
from protocol import limits
from protocol.envelope import Sealed, narrow
from protocol.errors import MalformedMessage, NotAuthorised
from protocol.identity import PeerId, public_key_of
from protocol.messages import (
    Admitted,
    Approval,
    Card,
    Charter,
    CharterConsent,
    Entry,
    Evidence,
    Head,
    Line,
    Manifest,
    Revocation,
    RollEntry,
    Veto,
    Vote,
    Withdrawal,
)

__all__ = ["Assembly", "Member", "open_entry"]

_Age = tuple[int, PeerId, int]  # signed time, author, index: which of two entries is the newer, for everybody


@dataclass(frozen=True)
class Member:
    """A device that belongs: it may buy, sell and train.

    Attributes:
        owner: whose device it is; devices of one owner trust each other with `owner` privacy.
        credit_line_micro: its account may fall to minus this.
        is_roll: whether it votes.
        admitted_by: the roll member that admitted it; the founder for those on the roll.
    """

    owner: str
    credit_line_micro: int
    is_roll: bool
    admitted_by: PeerId


class Assembly:
    """The state, and the logs that it follows from. Make one with `found`."""

    def __init__(self, charter: Sealed[Charter]) -> None:
        self.charter = charter.message
        self.founder = charter.sender
        self.mesh = charter.id
        founding = reign(charter.id, charter.message, charter.time_ms)
        self.roll: Mapping[PeerId, RollEntry] = founding.roll
        self.approvers = founding.approvers
        self._reigns: tuple[Reign, ...] = (founding,)
        self._proposed: dict[bytes, Sealed[Charter]] = {}
        self._consents: dict[bytes, Sealed[CharterConsent]] = {}
        self._logs = Logs()
        self._ever_admitted: MutableMapping[PeerId, None] = {}
        self._convicted: set[PeerId] = set()
        self._admissions: MutableMapping[PeerId, tuple[_Age, Sealed[Entry], Member]] = {}
        self._names = Names()
        self._revoked: set[PeerId] = set()
        self._promises = Promises()
        self._lines = Lines(self._reigns)

    @classmethod
    def found(cls, charter: Sealed[Charter]) -> "Assembly":
        """Return the assembly of a mesh on the day of its founding.

        Raises:
            RemoteProtocolError: the charter founds no mesh; see `check_founding`.
        """
        check_founding(charter)
        assembly = cls(charter)
        assembly._logs.append(charter)
        return assembly

    def fork(self) -> "Assembly":
        """Return an assembly in the same state that goes its own way; what many forks have in common is kept once."""
        fork = copy.copy(self)
        vars(fork).update(
            _logs=self._logs.fork(),
            _ever_admitted=ChainMap({}, self._ever_admitted),
            _admissions=ChainMap({}, self._admissions),
            _convicted=set(self._convicted),
            _revoked=set(self._revoked),
            _names=self._names.fork(),
            _proposed=dict(self._proposed),
            _consents=dict(self._consents),
            _promises=self._promises.fork(),
            _lines=self._lines.fork(),
        )
        return fork

    # --- taking entries -----------------------------------------------------------------------------------------
    def check(self, entry: Sealed[Entry]) -> None:
        """Raise what `apply` would raise, and change nothing.

        Raises:
            NotAuthorised: its author has no right to it (yet), or it proves nothing.
            MalformedMessage: it has an expiry, names a peer id that is none, or contradicts itself.
            ExpiredManifest: a manifest whose life ends before it begins, or is longer than allowed.
            TooManyProposals: the author's fifth manifest within a day.
            BrokenLog: a gap, a wrong `prev`, or the author's log is full.
            Equivocation: another entry of the author stands at its index, or another yes for that version.
            RemoteProtocolError: the envelopes inside a piece of evidence do not verify.
        """
        self._examine(entry)

    def apply(self, entry: Sealed[Entry]) -> bool:
        """Take an entry in; return False when it was there already.

        Raises:
            RemoteProtocolError: as in `check`; nothing has changed then.
        """
        proof = self._examine(entry)
        if not self._logs.append(entry):
            return False
        self._promises.note(entry)
        if proof is not None:
            self._convicted.add(proof.accused)
            if self._logs.close(proof):
                self._fold_again()
        self._fold(entry)
        return True

    def _examine(self, entry: Sealed[Entry]) -> Contradiction | None:
        log = self._logs.of(entry.sender)
        log.check(entry)
        message = entry.message
        if message.index < log.next_index:
            return None  # known already
        if entry.expires_ms is not None:
            raise MalformedMessage(
                f"{a(message)} of {entry.sender} expires, expected an entry without an end"
            )
        check_right(
            entry,
            is_roll=any(entry.sender in each.roll for each in self._reigns),
            was_admitted=self.was_admitted(entry.sender),
            is_approver=any(entry.sender in each.approvers for each in self._reigns),
            is_recovery=any(entry.sender in each.recovery for each in self._reigns),
        )
        self._logs.check_room(entry)
        check_form(entry)
        self._promises.check(entry)
        match message:
            case Evidence():
                return contradiction(message, self.mesh)
            case Admitted():
                public_key_of(PeerId(message.peer))
            case Charter():
                if message.version == 1:
                    raise NotAuthorised(f"{entry.sender} signed a second founding charter")
                check_charter(message)
        return None

    def check_owner(self, owner: str, *, admitted_by: PeerId) -> None:
        """Check that a roll member may admit devices as an owner's.

        An owner who stands on the roll admits its devices itself: else any other voter could slip a device of its own
        in among them and be sent their `owner`-private prompts.

        Raises:
            NotAuthorised: it may not.
        """
        if not may_admit(self.roll, owner, admitted_by=admitted_by):
            raise NotAuthorised(
                f"{admitted_by} admits a device of {owner!r}, who is on the roll and may do so alone"
            )

    def _fold_again(self) -> None:
        entries = [entry for entry in self._logs.entries() if self._logs.counts(entry)]
        self._proposed = {
            entry.id: charter
            for entry in entries
            if (charter := narrow(entry, Charter)) is not None and charter.message.version > 1
        }
        self._consents = {
            entry.id: consent for entry in entries if (consent := narrow(entry, CharterConsent)) is not None
        }
        self._enthrone(self._succession())
        self._admissions = {}
        self._names = Names()
        self._revoked.clear()
        self._lines = Lines(self._reigns, self._convicted)
        for entry in self._logs.entries():
            self._fold(entry)

    def _succession(self) -> tuple[Reign, ...]:
        return tuple(succession(self._reigns[0], self._proposed.values(), self._consents.values()))

    def _enthrone(self, reigns: tuple[Reign, ...]) -> None:
        """Let the last of them decide from now on."""
        newest = reigns[-1]
        self._reigns = reigns
        self.charter, self.roll, self.approvers = newest.charter, newest.roll, newest.approvers

    def _fold(self, entry: Sealed[Entry]) -> None:
        message, author = entry.message, entry.sender
        if isinstance(message, Admitted):
            self._ever_admitted[PeerId(message.peer)] = None
        if not self._logs.counts(entry):
            return
        match message:
            case Charter() | CharterConsent():
                self._fold_charter(entry)
            case Admitted() | Card() | Revocation() | Line():
                # A voter's word counts for the time that it was on the roll.
                roll = reign_at(self._reigns, entry.time_ms).roll
                if author in roll:
                    self._fold_voters_word(entry, roll)
            case _:
                self._lines.fold(entry)

    def _fold_charter(self, entry: Sealed[Entry]) -> None:
        charter, consent = narrow(entry, Charter), narrow(entry, CharterConsent)
        if charter is not None and charter.message.version > 1:
            self._proposed[entry.id] = charter
        if consent is not None:
            self._consents[entry.id] = consent
        if self._succession() != self._reigns:
            self._fold_again()

    def _fold_voters_word(self, entry: Sealed[Entry], roll: Mapping[PeerId, RollEntry]) -> None:
        message, author = entry.message, entry.sender
        age = (entry.time_ms, author, message.index)
        match message:
            case Admitted():
                known = self._admissions.get(PeerId(message.peer))
                is_newer = known is None or known[0] < age
                if is_newer and may_admit(roll, message.owner, admitted_by=author):
                    member = Member(
                        message.owner, message.credit_line_micro, is_roll=False, admitted_by=author
                    )
                    self._admissions[PeerId(message.peer)] = (age, entry, member)
            case Card():
                self._names.fold(entry, message)
            case Revocation():
                if PeerId(message.peer) not in roll:  # only a new charter takes a voter off
                    self._revoked.add(PeerId(message.peer))
                    self._lines.bar(PeerId(message.peer))
            case Line():
                self._lines.fold(entry)

    # --- who belongs --------------------------------------------------------------------------------------------
    def is_barred(self, peer_id: PeerId) -> bool:
        """Whether a key was revoked or convicted by evidence; it stays so."""
        return peer_id in self._revoked or peer_id in self._convicted

    def was_admitted(self, peer_id: PeerId) -> bool:
        """Whether a key belongs, or did before it was barred: what it signed then still counts."""
        return peer_id in self.roll or peer_id in self._ever_admitted

    def is_member(self, peer_id: PeerId) -> bool:
        """Whether a key may take part: on the roll or admitted, and not barred."""
        return (peer_id in self.roll or peer_id in self._admissions) and not self.is_barred(peer_id)

    def may_speak(self, author: PeerId) -> bool:
        """Whether an author's assembly entries are taken and handed on.

        A member's, and those of humans who approve or hold a recovery key.
        """
        if self.is_member(author):
            return True
        reign = self._reigns[-1]
        return (author in reign.approvers or author in reign.recovery) and not self.is_barred(author)

    @property
    def recovery_keys(self) -> frozenset[PeerId]:
        """The keys that may write the next charter in the place of a lost roll."""
        return self._reigns[-1].recovery

    def is_alone(self, peer_id: PeerId) -> bool:
        """Whether a member is the only one."""
        return all(
            other == peer_id or self.is_barred(other) for other in (*self.roll, *self._admissions)
        ) and self.is_member(peer_id)

    def member(self, peer_id: PeerId) -> Member:
        """Return what is known of a member.

        Raises:
            NotAuthorised: it is none.
        """
        if not self.is_member(peer_id):
            raise NotAuthorised(f"peer {peer_id} is not a member of this mesh")
        if (voter := self.roll.get(peer_id)) is not None:
            # The charter's word stands above any admission's.
            return Member(
                voter.owner, limits.CREDIT_LINE_MICRO_DEFAULT, is_roll=True, admitted_by=self.founder
            )
        return self._admissions[peer_id][2]

    def members(self) -> dict[PeerId, Member]:
        """Return every member, voters first."""
        keys = dict.fromkeys((*self.roll, *self._admissions))
        return {peer_id: self.member(peer_id) for peer_id in keys if self.is_member(peer_id)}

    def admission_of(self, peer_id: PeerId) -> Sealed[Entry] | None:
        """Return the `Admitted` that a member stands on; None for voters and for those who are no members."""
        if peer_id in self.roll or not self.is_member(peer_id):
            return None
        return self._admissions[peer_id][1]

    def same_owner(self, one: PeerId, other: PeerId) -> bool:
        """Whether two members are devices of one owner."""
        return (
            self.is_member(one)
            and self.is_member(other)
            and self.member(one).owner == self.member(other).owner
        )

    def weight(self, peer_id: PeerId) -> int:
        """Return what a key's vote weighs: 0 off the roll, and once it is barred. The roll's total stays."""
        voter = self.roll.get(peer_id)
        return voter.weight if voter and not self.is_barred(peer_id) else 0

    def uses_of(self, issuer: PeerId, invitation_id: bytes) -> int:
        """Return how many devices an issuer has admitted on one of its invitations, revoked ones too."""
        return sum(
            isinstance(entry.message, Admitted) and entry.message.invitation_id == invitation_id
            for entry in self.entries_after(issuer, -1)
        )

    # --- the next charter ---------------------------------------------------------------------------------------
    def proposed_charters(self) -> list[tuple[Sealed[Charter], Consents]]:
        """Return what may become the next charter, and how far each is agreed to."""
        now = self._reigns[-1]
        agreed: dict[bytes, list[PeerId]] = {}
        for consent in self._consents.values():
            agreed.setdefault(consent.message.charter, []).append(consent.sender)
        return [
            (entry, consents(now, entry.message, [entry.sender, *agreed.get(entry.id, ())]))
            for entry in sorted(self._proposed.values(), key=lambda entry: (entry.time_ms, entry.id))
            if entry.message.version == now.charter.version + 1 and may_propose(now, entry.sender)
        ]

    # --- what names mean ----------------------------------------------------------------------------------------
    def names(self) -> dict[str, bytes]:
        """Return every name and the model's digest it stands for."""
        return self._names.all()

    def digest_of(self, name: str) -> bytes | None:
        """Return the digest a name stands for."""
        return self._names.digest_of(name)

    def name_of(self, digest: bytes) -> str | None:
        """Return the name whose card for a digest is the newest; None when none holds."""
        return self._names.name_of(digest)

    # --- lines and patches; see `lines.py` --------------------------------------------------------------------------
    def line(self, name: str) -> Line | None:
        """Return the newest line of a name."""
        return self._lines.line(name)

    def lines(self) -> dict[str, Line]:
        """Return every line by its name."""
        return self._lines.lines()

    def ballots(self, now_ms: int) -> list[BallotView]:
        """Return every ballot, the oldest first."""
        return docket.ballots(self._lines, now_ms)

    def ballot(self, manifest: bytes, now_ms: int) -> BallotView | None:
        """Return the ballot of a manifest; None when that is not known."""
        return docket.ballot(self._lines, manifest, now_ms)

    def ratified(self, line: str, now_ms: int) -> Sealed[Manifest] | None:
        """Return the manifest in force; its adapter may be `NO_HASH`. None: the line is its bare base."""
        return self._lines.ratified(line, now_ms)

    def succession(self, line: str, now_ms: int) -> tuple[Sealed[Manifest], ...]:
        """Return the manifest in force, then those to fall back to, before the bare base."""
        return self._lines.succession(line, now_ms)

    def may_load(self, adapter: bytes, now_ms: int) -> str:
        """Return why an adapter may not be loaded; empty: it may."""
        return docket.may_load(self._lines, adapter, now_ms)

    def adapter_of(self, line: str, named: int | str | None, now_ms: int) -> Sealed[Manifest] | None:
        """Return the manifest of the adapter that a version, the first digits of a digest or, if None, a line means."""
        return self._lines.adapter_of(line, named, now_ms)

    def next_version(self, line: str, now_ms: int) -> int:
        """Return the version that a new proposal should bear."""
        return self._lines.next_version(line, now_ms)

    def said_yes(self, voter: PeerId, line: str, version: int) -> bytes | None:
        """Return the id of the manifest that a voter gave its one yes for a version to."""
        return self._lines.said_yes(voter, line, version)

    def check_proposal(self, proposal: Manifest, now_ms: int) -> None:
        """Raise, by its name, what speaks against a manifest before anybody has evaluated it; see `docket.py`."""
        docket.check_proposal(self._lines, proposal, now_ms)

    def check_word(self, word: Vote | Approval | Veto | Withdrawal, at_ms: int) -> None:
        """Raise, by its name, why a word signed now would change nothing; see `docket.py`."""
        docket.check_word(self._lines, word, at_ms)

    # --- the logs -----------------------------------------------------------------------------------------------
    def head(self, author: PeerId) -> Head | None:
        """Return the newest entry known of an author; None when there is none."""
        return self._logs.head(author)

    def heads(self) -> tuple[Head, ...]:
        """Return the newest entry of every author, voters first: their entries give the others their right to speak.

        Humans' next: what they say is urgent, and a hello has room for a bounded number.
        """
        roll, humans = self.roll, self.approvers
        return self._logs.heads(
            lambda author: (author != self.founder, author not in roll, author not in humans, author)
        )

    def fingerprint(self) -> bytes:
        """Return one hash over the newest entries of all authors: two that agree on it hold the same logs."""
        return self._logs.fingerprint()

    def entries_after(self, author: PeerId, index: int) -> Sequence[Sealed[Entry]]:
        """Return the entries of an author's log behind an index; all of them behind -1."""
        return self._logs.entries_after(author, index)
