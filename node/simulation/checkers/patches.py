"""Laws of patches: what an engine serves was agreed on by the roll and by a human, and leaves when a human says so."""

from collections.abc import Iterator
from typing import Final

from node.event import Event
from node.simulation.checkers.recount import recount
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.daemon import Daemon
from node.simulation.virtual_clock import NOON_MS
from protocol.envelope import Sealed
from protocol.messages import NO_HASH, Entry, Manifest, Veto, Withdrawal

CLOCKS_MS: Final = 60_000  # by how much two clocks of a storm may differ
UNLOADED_WITHIN_S: Final = 60.0  # docs/SECURITY.md
CONVERGED_WITHIN_MS: Final = 120_000


def no_unratified_patch_is_loaded(scene: Scene) -> Iterator[Broken]:
    """When a device loads a patch, what it holds then proves it: enough votes, and a human's word or a window over."""
    charter = scene.world.founding.assembly.charter
    for loaded in scene.loaded:
        if loaded.node not in scene.disks:
            continue
        fields = loaded.event.fields
        counts = recount(charter, scene.known_at(loaded))
        count = counts.get(bytes.fromhex(str(fields["manifest"])))
        if count is None:
            yield Broken(loaded.node, f"it loaded {_what(loaded.event)} without holding its manifest")
            continue
        if why := count.why_not(charter, _ms(loaded.at_s), clocks_ms=CLOCKS_MS):
            yield Broken(loaded.node, f"it loaded {_what(loaded.event)}, of which {why}")
        message = count.manifest.message
        said = (str(fields["line"]), int(str(fields["version"])), str(fields["adapter"]))
        if said != (message.line, message.version, message.adapter.hex()):
            yield Broken(
                loaded.node, f"it loaded {_what(loaded.event)}, and its manifest is of another patch"
            )


def nothing_older_takes_the_place_of_a_head(scene: Scene) -> Iterator[Broken]:
    """A device that knows of a newer patch in force never takes up an older one of the line."""
    charter = scene.world.founding.assembly.charter
    for loaded in scene.loaded:
        if loaded.node not in scene.disks:
            continue
        fields = loaded.event.fields
        version = int(str(fields["version"]))
        for count in recount(charter, scene.known_at(loaded)).values():
            message = count.manifest.message
            is_newer = message.line == fields["line"] and message.version > version
            # half a minute, in which another clock than the world's may not have let it into force yet
            if is_newer and not count.why_not(charter, _ms(loaded.at_s) - CLOCKS_MS, clocks_ms=0):
                yield Broken(
                    loaded.node,
                    f"it loaded {_what(loaded.event)} although it knew that version {message.version} is in force",
                )


def no_two_run_different_patches_of_one_version(scene: Scene) -> Iterator[Broken]:
    """Whatever parts the mesh, a version of a line is one patch, the same for everybody."""
    patches: dict[tuple[object, object], tuple[str, object]] = {}
    honest = {daemon.name for daemon in scene.honest}
    for loaded in scene.loaded:
        if loaded.node in honest:
            fields = loaded.event.fields
            key = fields["line"], fields["version"]
            node, manifest = patches.setdefault(key, (loaded.node, fields["manifest"]))
            if manifest != fields["manifest"]:
                yield Broken(
                    loaded.node,
                    f"it loaded {_what(loaded.event)}, and {node} another one: {str(manifest)[:12]}",
                )


def what_was_vetoed_is_unloaded(scene: Scene) -> Iterator[Broken]:
    """Within a minute of hearing of a veto or a withdrawal no device has the adapter in its engine any more."""
    now = scene.world.now
    for daemon in scene.online:
        if not (served := daemon.engine.adapters):
            continue
        for adapter, entry in _barred(scene, daemon).items():
            if adapter not in served:
                continue
            heard_s = scene.first_seen.setdefault((daemon.name, entry.id), now)
            if now - heard_s > UNLOADED_WITHIN_S:
                yield Broken(
                    daemon.name,
                    f"it serves adapter {adapter.hex()[:12]} {now - heard_s:.0f} s after it heard of its "
                    f"{entry.message.kind}",
                )


def all_follow_the_same_head(scene: Scene) -> Iterator[Broken]:
    """When the faults are over, every device goes by the same patch of each line, and whoever has the model serves it."""
    online = scene.online
    if not online:
        return
    now_ms = _ms(scene.world.now)
    lines = online[0].node.logbook.assembly.lines()
    for line, terms in lines.items():
        heads: dict[bytes, str] = {}
        for daemon in online:
            head = daemon.node.logbook.assembly.ratified(line, now_ms)
            heads.setdefault(head.id if head else NO_HASH, daemon.name)
            if head is not None and head.message.adapter != NO_HASH:
                is_old = _settled_ms(scene, head) < now_ms - CONVERGED_WITHIN_MS
                if is_old and terms.base in daemon.engine.models and _lacks(daemon, head):
                    yield Broken(
                        daemon.name,
                        f"it holds the model and does not serve version {head.message.version} of line {line}",
                    )
        if len(heads) > 1:
            told = ", ".join(f"{name} by {head.hex()[:12]}" for head, name in heads.items())
            yield Broken(next(iter(heads.values())), f"the heads of line {line} differ: {told}")


def _settled_ms(scene: Scene, head: Sealed[Manifest]) -> int:
    """When the last word that put a patch into force was signed, or its window ended."""
    charter = scene.world.founding.assembly.charter
    words = [
        entry.time_ms
        for entry in scene.known_to(scene.online[0])
        if getattr(entry.message, "manifest", None) == head.id
    ]
    window_ms = 0 if charter.approvals_min else charter.veto_ms
    return max([head.time_ms + window_ms, *words])


def _lacks(daemon: Daemon, head: Sealed[Manifest]) -> bool:
    return head.message.adapter not in daemon.engine.adapters


def _barred(scene: Scene, daemon: Daemon) -> dict[bytes, Sealed[Entry]]:
    """The adapters that a human's word has taken out of force, as far as a device knows, and that word."""
    assembly = daemon.node.logbook.assembly
    said = assembly.entries_after(scene.world.learning.human.peer_id, -1)
    if not any(isinstance(entry.message, Veto | Withdrawal) for entry in said):
        return {}
    counts = recount(scene.world.founding.assembly.charter, scene.known_to(daemon))
    kept = {count.manifest.message.adapter for count in counts.values() if not count.barred_by}
    return {
        count.manifest.message.adapter: count.barred_by
        for count in counts.values()
        if count.barred_by and count.manifest.message.adapter not in {*kept, NO_HASH}
    }


def _what(event: Event) -> str:
    fields = event.fields
    return f"version {fields['version']} of line {fields['line']} ({str(fields['manifest'])[:12]})"


def _ms(at_s: float) -> int:
    return NOON_MS + int(at_s * 1000)
