"""What the mesh has ratified, as this device follows it: which adapter a plain name means, and which came before.

The assembly says what is in force. This device may know better of itself: where its own canaries fall, it follows the
version before until the mesh has decided (`hold_back`).
"""

from collections.abc import Callable

from marketplace.assembly.assembly import Assembly
from marketplace.assembly.ballot import BallotState
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Line, Manifest

VERSION_MARK = "v"


class Patches:
    """Answers about patches for names, the steward and the listings; it keeps nothing but what is held back here.

    Args:
        assembly: the one of now.
        utc_ms: the members' time.
    """

    def __init__(self, assembly: Callable[[], Assembly], utc_ms: Callable[[], int]) -> None:
        self._assembly = assembly
        self._utc_ms = utc_ms
        self._held_back: dict[bytes, str] = {}  # by manifest: why

    # --- what this device does not follow -------------------------------------------------------------------------
    def hold_back(self, manifest: bytes, why: str) -> None:
        """Follow this patch no more, here."""
        self._held_back[manifest] = why

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
        """The head of a line and those before it that may be loaded, the newest first.

        A rollback skips what it takes back: behind it comes what came before the version that it brings back.
        """
        now_ms = self._utc_ms()
        assembly = self._assembly()
        head = assembly.ratified(line.name, now_ms)
        if head is None:
            return []
        stand = {
            ballot.manifest.message.version: ballot.manifest
            for ballot in assembly.ballots(now_ms)
            if ballot.state is BallotState.RATIFIED
            and (ballot.manifest.message.line, ballot.manifest.message.base) == (line.name, line.base)
        }
        found = []
        below = head.message.version + 1
        for version in sorted(stand, reverse=True):
            if version < below:
                message = stand[version].message
                below = _origin(message)
                if not self.why_held_back(stand[version].id):
                    found.append(stand[version])
        return found

    # --- what names mean ------------------------------------------------------------------------------------------
    def followed(self, base: bytes) -> tuple[bytes, ...]:
        """The adapters that may answer a plain name: the head's, the one before it, and the bare base at last."""
        adapters = [adapter for _, adapter in self.in_force(base)[:2]]
        if NO_HASH in adapters:
            adapters = adapters[: adapters.index(NO_HASH)]
        return tuple(dict.fromkeys((*adapters, NO_HASH)))

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


def _origin(message: Manifest) -> int:
    """The version whose adapter this is: what stands between the two was taken back."""
    if message.adapter == NO_HASH:
        return 0
    return message.rolls_back_to or message.version
