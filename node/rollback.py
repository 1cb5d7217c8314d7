"""The way back: propose, as the next version of a line, the adapter that was in force before the head.

A rollback is a patch like any other: voted on, approved by a human where the charter asks for it, and loaded everywhere.
"""

from collections.abc import Callable

from node.errors import StartError
from node.examinations import Examinations
from node.journal import Journal
from node.logbook import Logbook
from node.patches import Patches
from node.services.sync import Sync
from protocol import limits
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Manifest

PROPOSAL_TTL_MS = 7 * 24 * 3600 * 1000
NO_RUN = bytes(16)


class Rollbacks:
    """Proposes rollbacks in this device's name."""

    def __init__(
        self,
        logbook: Logbook,
        sync: Sync,
        patches: Patches,
        examinations: Examinations,
        journal: Journal,
        utc_ms: Callable[[], int],
    ) -> None:
        self._logbook = logbook
        self._sync = sync
        self._patches = patches
        self._examinations = examinations
        self._journal = journal
        self._utc_ms = utc_ms

    async def propose(self, head: Sealed[Manifest], reason: str) -> Sealed[Manifest]:
        """Propose what was in force before a line's head, after measuring both here.

        Raises:
            StartError: it is not the head, or another way back was proposed already.
            AgoraError: it cannot be measured or written now.
        """
        assembly = self._logbook.assembly
        line = assembly.line(head.message.line)
        if line is None:
            raise StartError(f"there is no line {head.message.line!r} any more")
        self._check_head(head)
        before = await self._examinations.public(line, head.message.adapter, is_anew=True)
        former = self._patches.before(head)
        adapter = former.message.adapter if former else NO_HASH
        after = await self._examinations.public(line, adapter)
        self._check_head(head)  # an exam takes its time
        version = assembly.next_version(line.name, self._utc_ms())

        def place(index: int, prev: bytes) -> Manifest:
            return Manifest(
                index=index,
                prev=prev,
                line=line.name,
                version=version,
                parent=head.id,
                base=line.base,
                adapter=adapter,
                adapter_bytes=former.message.adapter_bytes if former else 0,
                shape=former.message.shape if former else None,
                rolls_back_to=former.message.version if former and adapter != NO_HASH else 0,
                run=NO_RUN,
                rounds=0,
                cohort=(),
                evaluation=line.evaluation,
                before=before,
                after=after,
                expires_at=self._utc_ms() + PROPOSAL_TTL_MS,
                reason=reason[: limits.DETAIL_CHARS_MAX],
            )

        entry = await self._logbook.write(Manifest, place)
        fields = {"manifest": entry.id, "line": line.name, "version": version, "adapter": adapter}
        self._journal.write("proposal_made", **fields)
        self._journal.write("rollback_proposed", **fields, rolls_back=head.id, reason=reason)
        await self._sync.announce(entry)
        return entry

    def _check_head(self, head: Sealed[Manifest]) -> None:
        name = head.message.line
        in_force = self._logbook.assembly.ratified(name, self._utc_ms())
        if in_force is None or in_force.id != head.id:
            now = f"version {in_force.message.version}" if in_force else "the bare base"
            raise StartError(
                f"version {head.message.version} of {name} is not in force, {now} is; run 'agora patches'"
            )
        if open_one := self._patches.open_rollback(head):
            raise StartError(
                f"the way back from version {head.message.version} of {name} is proposed already: "
                f"{open_one.hex()[:12]}; run 'agora proposals'"
            )
