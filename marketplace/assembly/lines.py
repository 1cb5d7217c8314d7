"""Lines: what the mesh's models are adapted by, as a fold over lines, manifests and what was said on them.

A line's ratified manifests stand in one order: by the signed time at which each was ratified, then by version. One that
is not above all before it, or leaps too far ahead, is passed over. *In force* is the highest that stands, was neither vetoed
nor withdrawn, and adapts the line's present base; after a rollback, none of those between it and the version that it
brings back. Nothing here depends on the order in which entries came.
"""

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from marketplace.assembly.ballot import BallotState, BallotView, Tally, Words, tally
from marketplace.assembly.charter import passes
from marketplace.assembly.succession import Reign, reign_at
from protocol import limits
from protocol.envelope import Sealed, narrow
from protocol.errors import (
    BallotClosed,
    ExpiredManifest,
    ForeignBase,
    NotAuthorised,
    StaleVersion,
    UnknownManifest,
    VetoTooLate,
)
from protocol.identity import PeerId
from protocol.messages import (
    NO_HASH,
    Approval,
    Entry,
    Line,
    Manifest,
    Veto,
    Vote,
    Withdrawal,
)

_Age = tuple[int, PeerId, int]
_NOTHING = Words()


@dataclass(frozen=True)
class _Standing:
    """The ratified manifests of a line that stand, the lowest version first, as they are between two hours."""

    stand: tuple[Tally, ...]
    from_ms: int
    until_ms: int | None

    def holds(self, now_ms: int) -> bool:
        """Whether it is still so at this hour."""
        return self.from_ms <= now_ms and (self.until_ms is None or now_ms < self.until_ms)

    @property
    def high_water(self) -> int:
        """The highest version that was ever ratified; one that was vetoed afterwards is counted in."""
        return self.stand[-1].manifest.message.version if self.stand else 0


class Lines:
    """The lines, their manifests, and what was said on each.

    Args:
        reigns: every charter that came into force, the founding one first; each manifest is judged by that of its time.
        barred: keys that were revoked, or convicted by evidence.
    """

    def __init__(self, reigns: tuple[Reign, ...], barred: Collection[PeerId] = ()) -> None:
        self._reigns = reigns
        self._barred = frozenset(barred)
        self._lines: dict[str, tuple[_Age, Sealed[Line]]] = {}
        self._manifests: dict[bytes, Sealed[Manifest]] = {}
        self._of_line: dict[str, tuple[bytes, ...]] = {}
        self._words: dict[bytes, Words] = {}
        self._yes: dict[tuple[str, int], dict[PeerId, bytes]] = {}
        self._withdrawn: frozenset[bytes] = frozenset()
        self._tallies: dict[bytes, Tally] = {}
        self._standings: dict[str, _Standing] = {}
        self._successions: dict[str, tuple[_Standing, tuple[Sealed[Manifest], ...]]] = {}

    def bar(self, peer_id: PeerId) -> None:
        """A key was revoked: what it has proposed and nobody has ratified is not voted on."""
        self._barred |= {peer_id}
        self._tallies.clear()
        self._standings.clear()

    def fork(self) -> "Lines":
        """Return the same state, to go its own way."""
        fork = copy.copy(self)
        vars(fork).update(
            _lines=dict(self._lines),
            _manifests=dict(self._manifests),
            _of_line=dict(self._of_line),
            _words={manifest: words.fork() for manifest, words in self._words.items()},
            _yes={place: dict(said) for place, said in self._yes.items()},
            _tallies=dict(self._tallies),
            _standings=dict(self._standings),
            _successions=dict(self._successions),
        )
        return fork

    # --- folding ------------------------------------------------------------------------------------------------
    def fold(self, entry: Sealed[Entry]) -> None:
        """Take in an entry whose author had the right to it; of another kind: nothing happens."""
        message = entry.message
        match message:
            case Line():
                self._fold_line(entry)
            case Manifest():
                if (manifest := narrow(entry, Manifest)) is not None:
                    self._manifests[entry.id] = manifest
                    known = self._of_line.get(message.line, ())
                    self._of_line[message.line] = tuple(sorted({*known, entry.id}))
                    self._forget(message.line)
            case Vote():
                if (vote := narrow(entry, Vote)) is not None:
                    self._said_on(message.manifest).votes.append(vote)
                if message.is_yes:
                    self._yes.setdefault((message.line, message.version), {})[entry.sender] = message.manifest
                self._forget(message.line)  # all of the line's: who said yes to one is lost to the others
            case Approval():
                if (approval := narrow(entry, Approval)) is not None:
                    self._said_on(message.manifest).approvals.append(approval)
                self._forget_ballot(message.manifest)
            case Veto():
                if (veto := narrow(entry, Veto)) is not None:
                    self._said_on(message.manifest).vetoes.append(veto)
                self._forget_ballot(message.manifest)
            case Withdrawal():
                self._withdrawn |= {message.adapter}
                self._successions.clear()

    def _fold_line(self, entry: Sealed[Entry]) -> None:
        line = narrow(entry, Line)
        if line is None:
            return
        age = (entry.time_ms, entry.sender, line.message.index)
        known = self._lines.get(line.message.name)
        if known is None or known[0] < age:
            self._lines[line.message.name] = (age, line)
            self._successions.pop(line.message.name, None)

    def _said_on(self, manifest: bytes) -> Words:
        return self._words.setdefault(manifest, Words())

    def _forget_ballot(self, manifest: bytes) -> None:
        if (known := self._manifests.get(manifest)) is not None:
            self._forget(known.message.line)

    def _forget(self, line: str) -> None:
        self._standings.pop(line, None)
        for manifest in self._of_line.get(line, ()):
            self._tallies.pop(manifest, None)

    # --- lines and what is in force -----------------------------------------------------------------------------------
    def line(self, name: str) -> Line | None:
        """Return the newest line of a name."""
        known = self._lines.get(name)
        return known[1].message if known else None

    def lines(self) -> dict[str, Line]:
        """Return every line by its name."""
        return {name: line.message for name, (_, line) in sorted(self._lines.items())}

    def ratified(self, line: str, now_ms: int) -> Sealed[Manifest] | None:
        """Return the manifest that is in force; None: the line is its bare base."""
        return next(iter(self.succession(line, now_ms)), None)

    def succession(self, line: str, now_ms: int) -> tuple[Sealed[Manifest], ...]:
        """Return the manifest in force, then what would be in its place without it, and so on down to the bare base.

        What a rollback took back is not among them, even where the adapter that it brought back is withdrawn.
        """
        if line not in self._of_line:
            return ()
        known = self._successions.get(line)
        standing = self._standing(line, now_ms)
        if known is None or known[0] is not standing:
            known = (standing, tuple(self._succession(standing)))
            self._successions[line] = known
        return known[1]

    def _succession(self, standing: _Standing) -> Iterator[Sealed[Manifest]]:
        ceiling = standing.high_water
        for known in reversed(standing.stand):
            message = known.manifest.message
            if message.version > ceiling or known.vetoed_by:
                continue
            if not self._why_barred(known):
                yield known.manifest
            if _is_rollback(message):
                ceiling = message.rolls_back_to
            if message.adapter == NO_HASH:
                return

    def may_load(self, adapter: bytes, now_ms: int) -> str:
        """Return why an adapter may not be loaded; empty: a manifest that proposes it stands ratified.

        Args:
            adapter: its digest.
            now_ms: Unix time in milliseconds.
        """
        reason = "no manifest proposes it"
        if adapter in self._withdrawn:
            return "its adapter was withdrawn by a human"
        for manifest in self._manifests.values():
            if manifest.message.adapter == adapter != NO_HASH:
                view = self._view(self._tally(manifest), now_ms)
                if view.state is BallotState.RATIFIED:
                    return ""
                reason = (
                    f"version {manifest.message.version} of {manifest.message.line} is {view.state.value}"
                )
        return reason

    def adapter_of(self, line: str, named: int | str | None, now_ms: int) -> Sealed[Manifest] | None:
        """Return the manifest whose adapter a user means; None: there is none that may be loaded.

        Args:
            line: its name.
            named: a version; the first hexadecimal digits of an adapter's digest; None: what is in force.
            now_ms: Unix time in milliseconds.
        """
        if named is None:
            return self.ratified(line, now_ms)
        if line not in self._of_line:
            return None
        found = [
            known.manifest
            for known in self._standing(line, now_ms).stand
            if not known.vetoed_by
            and not self._why_barred(known)
            and known.manifest.message.adapter != NO_HASH
            and _is_named(known.manifest.message, named)
        ]
        digests = {manifest.message.adapter for manifest in found}
        return found[-1] if len(digests) == 1 else None

    # --- ballots ------------------------------------------------------------------------------------------------
    def ballots(self, now_ms: int) -> list[BallotView]:
        """Return every ballot, the oldest first."""
        manifests = sorted(self._manifests.values(), key=lambda known: (known.time_ms, known.id))
        return [self._view(self._tally(manifest), now_ms) for manifest in manifests]

    def ballot(self, manifest: bytes, now_ms: int) -> BallotView | None:
        """Return the ballot of a manifest; None when that is not known."""
        known = self._manifests.get(manifest)
        return None if known is None else self._view(self._tally(known), now_ms)

    def next_version(self, line: str, now_ms: int) -> int:
        """Return the version that a new proposal should bear.

        The lowest above the ratified ones for which enough of the roll can still say yes: one yes for each version is all
        that a voter has, and a ballot that failed has used them up.
        """
        reign = self._reigns[-1]
        high = self._high_water(line, now_ms)
        for version in range(high + 1, high + limits.VERSIONS_SKIPPED_MAX):
            spent = self._yes.get((line, version), {})
            weight = sum(entry.weight for voter, entry in reign.roll.items() if voter not in spent)
            if passes(weight, reign.roll_weight, reign.charter.pass_percent):
                return version
        return high + limits.VERSIONS_SKIPPED_MAX

    def said_yes(self, voter: PeerId, line: str, version: int) -> bytes | None:
        """Return the id of the manifest that a voter gave its one yes for a version to."""
        return self._yes.get((line, version), {}).get(voter)

    def check_proposal(self, proposal: Manifest, now_ms: int) -> None:
        """Check a manifest that is about to be written, or voted on.

        Raises:
            NotAuthorised: there is no such line, or it brings back a version that had another adapter.
            ForeignBase: it adapts another base model than the line's.
            ExpiredManifest: its time is over.
            StaleVersion: its version is not above what was ratified, or too far above.
        """
        line = self.line(proposal.line)
        if line is None:
            raise NotAuthorised(f"there is no line {proposal.line!r}; publish one first")
        if proposal.base != line.base:
            raise ForeignBase(
                f"manifest is for base {proposal.base.hex()[:8]}, expected {line.base.hex()[:8]} of line {proposal.line}"
            )
        if proposal.expires_at <= now_ms:
            raise ExpiredManifest(f"manifest expired {(now_ms - proposal.expires_at) // 1000} s ago")
        high = self._high_water(proposal.line, now_ms)
        if not high < proposal.version <= high + limits.VERSIONS_SKIPPED_MAX:
            raise StaleVersion(
                f"manifest has version {proposal.version}, expected {high + 1} to {high + limits.VERSIONS_SKIPPED_MAX}"
            )
        if proposal.rolls_back_to:
            former = {
                known.manifest.message.version: known.manifest.message.adapter
                for known in self._standing(proposal.line, now_ms).stand
            }
            if former.get(proposal.rolls_back_to) != proposal.adapter:
                raise NotAuthorised(f"version {proposal.rolls_back_to} was not ratified with that adapter")

    def check_word(self, word: Vote | Approval | Veto | Withdrawal, at_ms: int) -> None:
        """Check a word that is about to be signed, at its signed time: whether it still changes anything.

        Raises:
            UnknownManifest: on a proposal or an adapter that is not known here.
            ForeignBase: on one that adapts another base than its line's.
            ExpiredManifest: on one whose time is over.
            VetoTooLate: after the veto window.
            BallotClosed: on one that has been decided.
        """
        if isinstance(word, Withdrawal):
            if all(manifest.message.adapter != word.adapter for manifest in self._manifests.values()):
                raise UnknownManifest(f"no manifest proposes adapter {word.adapter.hex()[:8]}")
            return
        view = self.ballot(word.manifest, at_ms)
        if view is None:
            raise UnknownManifest(f"manifest {word.manifest.hex()[:8]} is not known here")
        proposal, state = view.manifest.message, view.state
        name = f"version {proposal.version} of {proposal.line}"
        if isinstance(word, Vote) and (word.line, word.version) != (proposal.line, proposal.version):
            raise UnknownManifest(f"vote names version {word.version} of {word.line}, its manifest is {name}")
        if isinstance(word, Veto) and at_ms > view.veto_until_ms:
            raise VetoTooLate(
                f"veto window of {name} ended {(at_ms - view.veto_until_ms) // 1000} s ago; withdraw its adapter"
            )
        may_be = {BallotState.VOTING, BallotState.CERTIFIED}
        if isinstance(word, Veto):
            may_be.add(BallotState.RATIFIED)
        if state in may_be:
            return
        if state is BallotState.EXPIRED:
            raise ExpiredManifest(f"{name} has expired: {view.still_needed}")
        line = self.line(proposal.line)
        if state is BallotState.REJECTED and line is not None and line.base != proposal.base:
            raise ForeignBase(f"{name} is for base {proposal.base.hex()[:8]}, expected {line.base.hex()[:8]}")
        raise BallotClosed(f"{name} is {state.value} already")

    # --- what follows -------------------------------------------------------------------------------------------
    def _tally(self, manifest: Sealed[Manifest]) -> Tally:
        known = self._tallies.get(manifest.id)
        if known is None:
            message = manifest.message
            given = self._yes.get((message.line, message.version), {})
            elsewhere = {voter for voter, other in given.items() if other != manifest.id}
            known = tally(
                manifest,
                self._words.get(manifest.id, _NOTHING),
                reign_at(self._reigns, manifest.time_ms),
                self._barred | elsewhere,
            )
            self._tallies[manifest.id] = known
        return known

    def _high_water(self, line: str, now_ms: int) -> int:
        return self._standing(line, now_ms).high_water if line in self._of_line else 0

    def _standing(self, line: str, now_ms: int) -> _Standing:
        known = self._standings.get(line)
        if known is None or not known.holds(now_ms):
            tallies = [self._tally(self._manifests[manifest]) for manifest in self._of_line[line]]
            waits = [each.effective_ms for each in tallies if each.ratified_ms and each.effective_ms > now_ms]
            ratified = [each for each in tallies if each.is_ratified(now_ms)]
            known = _Standing(tuple(_standing(ratified)), now_ms, min(waits, default=None))
            self._standings[line] = known
        return known

    def _why_barred(self, known: Tally) -> str:
        """Return why a manifest does not count however it is voted on; empty: nothing stands against it."""
        message = known.manifest.message
        line = self.line(message.line)
        if message.adapter in self._withdrawn:
            return "its adapter was withdrawn by a human"
        if line is None:
            return f"there is no line {message.line}"
        if line.base != message.base:
            return f"made for base {message.base.hex()[:8]}, its line has {line.base.hex()[:8]}"
        return ""

    def _view(self, known: Tally, now_ms: int) -> BallotView:
        message = known.manifest.message
        standing = self._standing(message.line, now_ms)
        state, why = known.state(now_ms), ""
        if message.adapter in self._withdrawn:
            state, why = BallotState.WITHDRAWN, self._why_barred(known)
        elif state is BallotState.VETOED:
            why = f"vetoed by {', '.join(known.vetoed_by)}"
        elif barred := self._why_barred(known):
            state, why = BallotState.REJECTED, barred
        elif known.manifest.sender in self._barred and state is not BallotState.RATIFIED:
            state, why = BallotState.REJECTED, "its author was barred"
        elif all(each.manifest.id != known.manifest.id for each in standing.stand):
            if message.version <= standing.high_water:
                state, why = BallotState.SUPERSEDED, f"version {standing.high_water} was ratified"
            elif state is BallotState.RATIFIED or (
                message.version > standing.high_water + limits.VERSIONS_SKIPPED_MAX
            ):
                state, why = BallotState.REJECTED, "its version leaps too far ahead"
        head = self.ratified(message.line, now_ms)
        return BallotView(
            id=known.manifest.id,
            manifest=known.manifest,
            state=state,
            yes_weight=known.yes_weight,
            no_weight=known.no_weight,
            roll_weight=known.roll_weight,
            weight_to_pass=known.weight_to_pass,
            votes=known.votes,
            missing=known.missing,
            approved_by=known.approved_by,
            vetoed_by=known.vetoed_by,
            veto_until_ms=known.veto_until_ms,
            expires_ms=_expires_ms(known, state),
            still_needed=why or _still_needed(known, state),
            is_in_force=head is not None and head.id == known.manifest.id,
        )


def _standing(ratified: Iterable[Tally]) -> Iterator[Tally]:
    """Yield those that stand: each above all that were ratified before it."""
    high = 0
    for each in sorted(ratified, key=_order):
        if high < each.manifest.message.version <= high + limits.VERSIONS_SKIPPED_MAX:
            high = each.manifest.message.version
            yield each


def _order(known: Tally) -> tuple[int, int, bytes]:
    return known.ratified_ms or 0, known.manifest.message.version, known.manifest.id


def _is_rollback(message: Manifest) -> bool:
    return message.rolls_back_to > 0 or message.adapter == NO_HASH


def _is_named(message: Manifest, named: int | str) -> bool:
    if isinstance(named, int):
        return message.version == named
    return len(named) >= 8 and message.adapter.hex().startswith(named.lower())


def _expires_ms(known: Tally, state: BallotState) -> int:
    """Return when what is lacking must have been signed."""
    if state is BallotState.VOTING:
        return known.vote_until_ms
    if state is BallotState.CERTIFIED:
        return known.effective_ms or known.approve_until_ms
    return known.manifest.message.expires_at


def _still_needed(known: Tally, state: BallotState) -> str:
    match state:
        case BallotState.VOTING:
            lacking = known.weight_to_pass - known.yes_weight
            return f"yes of weight {lacking} more, of {known.roll_weight} on the roll"
        case BallotState.CERTIFIED if known.ratified_ms is not None:
            return "the end of the veto window"
        case BallotState.CERTIFIED:
            lacking = max(1, known.approvals_needed) - len(known.approved_by)
            return "approval of a human" if lacking == 1 else f"approval of {lacking} more humans"
        case BallotState.REJECTED:
            return "cannot pass any more"
        case BallotState.EXPIRED if known.certified_ms is None:
            return "too few voters said yes in time"
        case BallotState.EXPIRED:
            return "no human approved in time"
        case _:
            return ""
