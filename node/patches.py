"""What the mesh has ratified, as this device follows it: which adapter a plain name means, and which came before.

The assembly says what is in force. This device may know better of itself: where its own canaries fall, it follows the
version before until the mesh has decided (`hold_back`). And it remembers the highest version that it has taken up of each
line, so that a store which has lost the newest entries does not bring an older patch back.
"""

from collections.abc import Callable, Sequence

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.ballot import BallotState
from marketplace.assembly.judgement import proposes_rollback
from node.store import Record, Store
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Line, Manifest

VERSION_MARK = "v"
HELD_BACK = (
    "held_back"  # the store's record kind: why a manifest's patch is not followed here, by the manifest's id
)
HIGH_WATER = "high_water"  # the highest version taken up, in decimal, by the line's name


class Patches:
    """Answers about patches for names, the steward and the listings.

    Args:
        assembly: the one of now.
        utc_ms: the members' time.
        store: where it keeps what only this device knows.
    """

    def __init__(self, assembly: Callable[[], Assembly], utc_ms: Callable[[], int], store: Store) -> None:
        self._assembly = assembly
        self._utc_ms = utc_ms
        self._store = store
        self._held_back: dict[bytes, str] = {}  # by manifest: why
        self._high_water: dict[str, int] = {}

    def load(self, records: Sequence[Record]) -> None:
        """Take in what an earlier run has stored."""
        for record in records:
            if record.body is not None and record.kind == HELD_BACK:
                self._held_back[record.key] = record.body.decode(errors="replace")
            elif record.body is not None and record.kind == HIGH_WATER:
                self._high_water[record.key.decode()] = int(record.body)

    # --- what this device does not follow -------------------------------------------------------------------------
    def hold_back(self, manifest: bytes, why: str) -> None:
        """Follow this patch no more, here."""
        self._held_back[manifest] = why

    async def remember_held_back(self, manifest: bytes) -> None:
        """Keep it so after a restart.

        Raises:
            StoreFull: the disk is; it is found out again then.
        """
        await self._store.append([Record(HELD_BACK, manifest, self._held_back[manifest].encode())])

    async def release_decided(self) -> None:
        """Hold back no longer what the mesh has taken out of force: should it come back, it is watched anew.

        Raises:
            StoreFull: the disk is; released until a restart.
        """
        now_ms, assembly = self._utc_ms(), self._assembly()
        decided = [
            manifest
            for manifest in self._held_back
            if (ballot := assembly.ballot(manifest, now_ms)) is not None and not ballot.is_in_force
        ]
        for manifest in decided:
            del self._held_back[manifest]
        if decided:
            await self._store.append([Record(HELD_BACK, manifest, None) for manifest in decided])

    async def raise_high_water(self, line: str, version: int) -> None:
        """Remember that a version is about to be taken up.

        Raises:
            StoreFull: the disk is; it is not to be taken up.
        """
        if version > self._high_water.get(line, 0):
            await self._store.append([Record(HIGH_WATER, line.encode(), str(version).encode())])
            self._high_water[line] = version

    def is_below_high_water(self, line: str, version: int) -> bool:
        """Whether a version is older than one taken up before whose end nothing here explains."""
        high = self._high_water.get(line, 0)
        known = {
            ballot.manifest.message.version
            for ballot in self._assembly().ballots(self._utc_ms())
            if ballot.manifest.message.line == line
        }
        return version < high and high not in known

    def why_held_back(self, manifest: bytes) -> str:
        """Why a patch in force is not followed here; empty: it is."""
        return self._held_back.get(manifest, "")

    # --- lines ------------------------------------------------------------------------------------------------------
    def line_of(self, base: bytes) -> Line | None:
        """The line that a base model belongs to: of several, the one that bears its published name."""
        assembly = self._assembly()
        lines = {name: line for name, line in assembly.lines().items() if line.base == base}
        name = assembly.name_of(base)
        return lines.get(name or "") or next(iter(lines.values()), None)

    def head(self, base: bytes) -> tuple[int, bytes]:
        """The version and the adapter that a base's plain name means; (0, `NO_HASH`): the bare base."""
        return next(iter(self.in_force(base)), (0, NO_HASH))

    def in_force(self, base: bytes) -> list[tuple[int, bytes]]:
        """The versions that a base's plain name may mean and their adapters, the head first; empty: the bare base."""
        line = self.line_of(base)
        return (
            [(each.message.version, each.message.adapter) for each in self.succession(line)] if line else []
        )

    def succession(self, line: Line) -> list[Sealed[Manifest]]:
        """The head of a line and those before it that may be loaded, the newest first."""
        found = self._assembly().succession(line.name, self._utc_ms())
        return [each for each in found if not self.why_held_back(each.id)]

    def before(self, head: Sealed[Manifest]) -> Sealed[Manifest] | None:
        """What was in force before the head of a line; None: the bare base."""
        line = self._assembly().line(head.message.line)
        behind = [each for each in self.succession(line) if each.id != head.id] if line else []
        return behind[0] if behind else None

    def open_rollback(self, head: Sealed[Manifest]) -> bytes | None:
        """The id of an undecided proposal to go back from a line's head; None: there is none."""
        for ballot in self._assembly().ballots(self._utc_ms()):
            is_open = ballot.state in (BallotState.VOTING, BallotState.CERTIFIED)
            if (
                is_open
                and ballot.manifest.message.parent == head.id
                and proposes_rollback(ballot.manifest.message)
            ):
                return ballot.id
        return None

    # --- what names mean ------------------------------------------------------------------------------------------
    def followed(self, base: bytes) -> tuple[bytes, ...]:
        """The adapters that may answer a plain name: the head's, the one before it, and the bare base at last."""
        adapters = tuple(dict.fromkeys(adapter for _, adapter in self.in_force(base)))
        return tuple(dict.fromkeys((*adapters[:2], NO_HASH)))

    def find(self, base: bytes, named: str) -> bytes | None:
        """The adapter of `v3`, or of the first digits of its digest; None: no such patch may be loaded."""
        line = self.line_of(base)
        if line is None or not named.isascii():
            return None
        number = named.removeprefix(VERSION_MARK)
        is_version = named.startswith(VERSION_MARK) and number.isdigit() and len(number) <= len(str(2**31))
        manifest = self._assembly().adapter_of(
            line.name, int(number) if is_version else named, self._utc_ms()
        )
        return manifest.message.adapter if manifest else None

    def version_of(self, base: bytes, adapter: bytes) -> int:
        """The newest version of a base's line that has an adapter and may be loaded; 0: none."""
        return next((version for version, other in self.in_force(base) if other == adapter), 0)
