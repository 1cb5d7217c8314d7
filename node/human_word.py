"""What a human says of a patch: approved, vetoed, withdrawn.

The human's key lies under a passphrase and no daemon ever loads it. So the daemon says where that key's log stands and which
patch is meant (`place`), the command line shows it and signs (`sign`), and the daemon takes the word like a stranger's: it
is verified, checked by every rule of the assembly, and told to all (`take`).

A word that comes too late or changes nothing is refused here by its name, while its author is there to read it. What two
hurried signatures would contradict in is refused as well and handed to nobody: it would bar the human's key.
"""

import secrets
from collections.abc import Callable
from typing import Any, Literal, cast

from marketplace.assembly.ballot import BallotView
from marketplace.assembly.charter import open_entry
from node.errors import StartError
from node.journal import Journal
from node.logbook import Logbook
from node.services.sync import Sync
from node.short_id import begins, the_only
from protocol import limits
from protocol.envelope import Sealed, seal
from protocol.errors import BrokenLog, Equivocation
from protocol.identity import Identity, PeerId
from protocol.messages import NO_HASH, Approval, Entry, Veto, Withdrawal

WordKind = Literal["approval", "veto", "withdrawal"]
_KINDS = frozenset({Approval.kind, Veto.kind, Withdrawal.kind})


def sign(human: Identity, kind: WordKind, place: dict[str, Any], *, reason: str, utc_ms: int) -> bytes:
    """Sign one word with the human's key; return the sealed bytes.

    Args:
        human: the key of a charter's approver.
        kind: what is said.
        place: as `HumanWords.place` gave it.
        reason: for every member to read.
        utc_ms: Unix time in milliseconds.
    """
    manifest, adapter, prev = (bytes.fromhex(place[name]) for name in ("manifest", "adapter", "prev"))
    message = _word(kind, int(place["index"]), prev, manifest, adapter, reason[: limits.DETAIL_CHARS_MAX])
    mesh = bytes.fromhex(place["mesh_id"])
    return seal(message, human, mesh=mesh, seq=(secrets.randbits(62), 1), time_ms=utc_ms).raw


class HumanWords:
    """The daemon's half."""

    def __init__(self, logbook: Logbook, sync: Sync, journal: Journal, utc_ms: Callable[[], int]) -> None:
        self._logbook = logbook
        self._sync = sync
        self._journal = journal
        self._utc_ms = utc_ms

    def place(self, author: PeerId, kind: WordKind, target: str) -> dict[str, Any]:
        """Return what a human needs in order to sign, and what there is to be read before.

        Args:
            author: the peer id of the human's key.
            kind: what is to be said.
            target: the beginning of the id of a proposal, or, to withdraw, of an adapter's digest.

        Raises:
            StartError: that key approves nothing here, the id is unknown, or names several.
            RemoteProtocolError: the word would change nothing, by its name.
        """
        assembly = self._logbook.assembly
        if author not in assembly.approvers or assembly.is_barred(author):
            raise StartError(
                f"human key {author} is no approver of this mesh; use the home of somebody who founded or was named one"
            )
        if not self._logbook.is_confirmed:
            raise StartError(
                "no member has confirmed since its start what this device knows; bring another member up first"
            )
        view = self._find(target, kind)
        proposal = view.manifest.message
        head = assembly.head(author)
        index, prev = (head.index + 1, head.entry) if head else (0, NO_HASH)
        assembly.check_word(_word(kind, index, prev, view.id, proposal.adapter), self._utc_ms())
        return {
            "mesh_id": self._logbook.assembly.mesh.hex(),
            "index": index,
            "prev": prev.hex(),
            "manifest": view.id.hex(),
            "line": proposal.line,
            "version": proposal.version,
            "adapter": proposal.adapter.hex(),
            "author": view.manifest.sender,
            "reason": proposal.reason,
            "state": view.state.value,
            "still_needed": view.still_needed,
            "yes_weight": view.yes_weight,
            "no_weight": view.no_weight,
            "weight_to_pass": view.weight_to_pass,
            "roll_weight": view.roll_weight,
            "before": [_plain(score) for score in proposal.before],
            "after": [_plain(score) for score in proposal.after],
        }

    async def take(self, raw: bytes) -> dict[str, Any]:
        """Take a human's word in and tell everybody.

        Raises:
            RemoteProtocolError: it is no such word of this mesh, its author may not say it, or it comes too late.
            StartError: another word of that key came first.
        """
        assembly = self._logbook.assembly
        entry = open_entry(raw, assembly.mesh, _KINDS)
        word = cast("Approval | Veto | Withdrawal", entry.message)
        try:
            assembly.check(entry)
        except (Equivocation, BrokenLog) as error:
            raise StartError("this human key has signed another word meanwhile; say it again") from error
        assembly.check_word(word, entry.time_ms)
        await self._sync.bring(entry)
        self._journal.write("human_spoke", kind=word.kind, author=entry.sender, **_meant(word))
        return {"id": entry.id.hex(), "kind": word.kind, **self._outcome(entry)}

    def _outcome(self, entry: Sealed[Entry]) -> dict[str, Any]:
        message = entry.message
        if not isinstance(message, Approval | Veto):
            return {"state": "withdrawn", "still_needed": ""}
        view = self._logbook.assembly.ballot(message.manifest, self._utc_ms())
        return {"state": view.state.value, "still_needed": view.still_needed} if view else {}

    def _find(self, target: str, kind: WordKind) -> BallotView:
        """Return the ballot that the beginning of an id means; the newest of several that have the adapter to withdraw."""
        ballots = self._logbook.assembly.ballots(self._utc_ms())
        found = [view for view in ballots if begins(view.id, target)]
        if kind == "withdrawal":
            of_adapter = [view for view in ballots if begins(view.manifest.message.adapter, target)]
            adapters = {view.manifest.message.adapter for view in of_adapter} - {NO_HASH}
            found += of_adapter[-1:] if len(adapters) == 1 else []
        once = list({view.id: view for view in found}.values())
        return the_only(once, target, what="proposals", see="agora proposals")


def _word(
    kind: WordKind, index: int, prev: bytes, manifest: bytes, adapter: bytes, reason: str = ""
) -> Approval | Veto | Withdrawal:
    match kind:
        case "approval":
            return Approval(index=index, prev=prev, manifest=manifest)
        case "veto":
            return Veto(index=index, prev=prev, manifest=manifest, reason=reason)
        case "withdrawal":
            return Withdrawal(index=index, prev=prev, adapter=adapter, reason=reason)


def _meant(word: Approval | Veto | Withdrawal) -> dict[str, bytes]:
    if isinstance(word, Withdrawal):
        return {"adapter": word.adapter}
    return {"manifest": word.manifest}


def _plain(score: Any) -> dict[str, Any]:
    return {
        "domain": score.domain,
        "right": score.right,
        "total": score.total,
        "loss_milli": score.loss_milli,
    }
