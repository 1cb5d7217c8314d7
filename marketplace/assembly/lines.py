"""Lines: what the mesh's models are adapted by, as a fold over lines, manifests and what was said on them.

A line's ratified manifests stand in one order: by the signed time at which each was ratified, then by version. One that
is not above all before it, or leaps too far ahead, is passed over. *In force* is the highest that stands, was neither vetoed
nor withdrawn, and adapts the line's present base; after a rollback, none of those between it and the version that it
brings back. Nothing here depends on the order in which entries came.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from marketplace.assembly.ballot import Tally, Words, tally
from marketplace.assembly.charter import passes
from marketplace.assembly.succession import Reign, reign_at
from protocol import limits
from protocol.envelope import Sealed, narrow
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
class Standing:
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


_NONE_STANDS = Standing((), 0, None)


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
        self._of_adapter: dict[bytes, tuple[bytes, ...]] = {}
        self._words: dict[bytes, Words] = {}
        self._yes: dict[tuple[str, int], dict[PeerId, bytes]] = {}
        self._withdrawn: frozenset[bytes] = frozenset()
        self._tallies: dict[
            str, dict[bytes, Tally]
        ] = {}  # by line: what is said on one manifest touches its rivals
        self._standings: dict[str, Standing] = {}
        self._successions: dict[str, tuple[Standing, tuple[Sealed[Manifest], ...]]] = {}

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
            _of_adapter=dict(self._of_adapter),
            _words={manifest: words.fork() for manifest, words in self._words.items()},
            _yes={place: dict(said) for place, said in self._yes.items()},
            _tallies={line: dict(tallies) for line, tallies in self._tallies.items()},
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
                    self._fold_manifest(manifest)
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
            case Withdrawal() if entry.sender in reign_at(self._reigns, entry.time_ms).approvers:
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

    def _fold_manifest(self, manifest: Sealed[Manifest]) -> None:
        message = manifest.message
        self._manifests[manifest.id] = manifest
        self._of_line[message.line] = (*self._of_line.get(message.line, ()), manifest.id)
        self._of_adapter[message.adapter] = (*self._of_adapter.get(message.adapter, ()), manifest.id)
        self._forget(message.line)

    def _said_on(self, manifest: bytes) -> Words:
        return self._words.setdefault(manifest, Words())

    def _forget_ballot(self, manifest: bytes) -> None:
        if (known := self._manifests.get(manifest)) is not None:
            self._forget(known.message.line)

    def _forget(self, line: str) -> None:
        self._standings.pop(line, None)
        self._tallies.pop(line, None)

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
        """Return the manifest in force, then those to fall back to, one after the other, before the bare base.

        A rollback stands for the version that it brings back: behind it comes what came before that one, and never what
        it took back, even where its own adapter is withdrawn.
        """
        if line not in self._of_line:
            return ()
        known = self._successions.get(line)
        standing = self.standing(line, now_ms)
        if known is None or known[0] is not standing:
            known = (standing, tuple(self._succession(standing)))
            self._successions[line] = known
        return known[1]

    def _succession(self, standing: Standing) -> Iterator[Sealed[Manifest]]:
        ceiling = standing.high_water
        for known in reversed(standing.stand):
            message = known.manifest.message
            if message.version > ceiling or known.vetoed_by:
                continue
            if not self.why_barred(known):
                yield known.manifest
            if _is_rollback(message):
                ceiling = message.rolls_back_to - 1
            if message.adapter == NO_HASH:
                return

    def adapter_of(self, line: str, named: int | str | None, now_ms: int) -> Sealed[Manifest] | None:
        """Return the manifest whose adapter a user means; None: there is none that may be loaded.

        Args:
            line: its name.
            named: a version; the first hexadecimal digits of an adapter's digest; None: what is in force.
            now_ms: Unix time in milliseconds.
        """
        if named is None:
            return self.ratified(line, now_ms)
        found = [
            known.manifest
            for known in self.standing(line, now_ms).stand
            if not known.vetoed_by
            and not self.why_barred(known)
            and known.manifest.message.adapter != NO_HASH
            and _is_named(known.manifest.message, named)
        ]
        digests = {manifest.message.adapter for manifest in found}
        return found[-1] if len(digests) == 1 else None

    # --- manifests ----------------------------------------------------------------------------------------------
    def manifests(self) -> list[Sealed[Manifest]]:
        """Return every manifest, the oldest first."""
        return sorted(self._manifests.values(), key=lambda known: (known.time_ms, known.id))

    def manifest(self, manifest: bytes) -> Sealed[Manifest] | None:
        """Return the manifest of an id."""
        return self._manifests.get(manifest)

    def of_adapter(self, adapter: bytes) -> Sequence[Sealed[Manifest]]:
        """Return the manifests that propose an adapter."""
        return [self._manifests[manifest] for manifest in self._of_adapter.get(adapter, ())]

    def is_withdrawn(self, adapter: bytes) -> bool:
        """Whether a human has barred an adapter for ever."""
        return adapter in self._withdrawn

    def is_barred(self, author: PeerId) -> bool:
        """Whether a key was revoked or convicted."""
        return author in self._barred

    def next_version(self, line: str, now_ms: int) -> int:
        """Return the version that a new proposal should bear.

        The lowest above the ratified ones for which enough of the roll can still say yes: one yes for each version is all
        that a voter has, and a ballot that failed has used them up.
        """
        reign = self._reigns[-1]
        high = self.standing(line, now_ms).high_water
        for version in range(high + 1, high + limits.VERSIONS_SKIPPED_MAX):
            spent = self._yes.get((line, version), {})
            weight = sum(entry.weight for voter, entry in reign.roll.items() if voter not in spent)
            if passes(weight, reign.roll_weight, reign.charter.pass_percent):
                return version
        return high + limits.VERSIONS_SKIPPED_MAX

    def said_yes(self, voter: PeerId, line: str, version: int) -> bytes | None:
        """Return the id of the manifest that a voter gave its one yes for a version to."""
        return self._yes.get((line, version), {}).get(voter)

    # --- what follows -------------------------------------------------------------------------------------------
    def tally(self, manifest: Sealed[Manifest]) -> Tally:
        """Return what was said on a manifest and what it comes to."""
        message = manifest.message
        tallies = self._tallies.setdefault(message.line, {})
        known = tallies.get(manifest.id)
        if known is None:
            given = self._yes.get((message.line, message.version), {})
            elsewhere = {voter for voter, other in given.items() if other != manifest.id}
            known = tally(
                manifest,
                self._words.get(manifest.id, _NOTHING),
                reign_at(self._reigns, manifest.time_ms),
                self._barred | elsewhere,
            )
            tallies[manifest.id] = known
        return known

    def standing(self, line: str, now_ms: int) -> Standing:
        """Return the ratified manifests of a line that stand at this hour."""
        if line not in self._of_line:
            return _NONE_STANDS
        known = self._standings.get(line)
        if known is None or not known.holds(now_ms):
            tallies = [self.tally(self._manifests[manifest]) for manifest in self._of_line[line]]
            waits = [each.effective_ms for each in tallies if each.ratified_ms and each.effective_ms > now_ms]
            ratified = [each for each in tallies if each.is_ratified(now_ms)]
            known = Standing(tuple(_standing(ratified)), now_ms, min(waits, default=None))
            self._standings[line] = known
        return known

    def why_barred(self, known: Tally) -> str:
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
