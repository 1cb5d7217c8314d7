"""Laws of signed entries: only what is genuine is kept, logs have no gaps, and what was said stays said."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from node.simulation.checkers.scene import Broken, Scene
from protocol.envelope import Sealed, open_sealed, opened
from protocol.errors import RemoteProtocolError
from protocol.messages import NO_HASH, Entry

VERIFIED_MAX: Final = 400  # envelopes whose signature is checked again; each takes 0.15 ms


def entries_are_genuine(scene: Scene) -> Iterator[Broken]:
    """Nothing takes effect that is unsigned, foreign, or by a key that was never admitted.

    A sample is verified anew: with the memory of opened envelopes cleared, each signature is really checked.
    """
    yield from scene.unreadable
    seen: dict[bytes, tuple[str, Sealed[Entry]]] = {}
    for daemon, entry in scene.entries():
        assembly = daemon.node.logbook.assembly
        is_known = assembly.was_admitted(entry.sender) or entry.sender in assembly.approvers
        if daemon.is_online and not is_known:
            yield Broken(daemon.name, f"its disk holds an entry of {entry.sender}, who was never admitted")
        seen.setdefault(entry.raw, (daemon.name, entry))
    step = max(1, len(seen) // VERIFIED_MAX)
    opened.clear()
    for name, entry in list(seen.values())[::step]:
        try:
            again = open_sealed(entry.raw, mesh=scene.world.mesh_id)
        except RemoteProtocolError as error:
            yield Broken(name, f"an entry of {scene.name(entry.sender)} on its disk does not verify: {error}")
        else:
            if again.id != entry.id:
                yield Broken(name, f"entry {entry.id.hex()[:12]} on its disk reads as {again.id.hex()[:12]}")


def own_logs_have_no_gaps(scene: Scene) -> Iterator[Broken]:
    """A device's own bilateral log stands on its disk entry by entry, each naming the one before it."""
    for daemon in scene.honest:
        own = [
            entry
            for entry in scene.disks[daemon.name]
            if entry.sender == daemon.peer_id and entry.message.log == "bilateral"
        ]
        if gap := _gap(sorted(own, key=lambda entry: entry.message.index)):
            yield Broken(daemon.name, f"its own bilateral log on its disk {gap}")


def known_logs_have_no_gaps(scene: Scene) -> Iterator[Broken]:
    """Every log that a device goes by is dense from its beginning, and each entry names the one before it."""
    for daemon in scene.online:
        logbook = daemon.node.logbook
        for head in (*logbook.heads("assembly"), *logbook.heads("bilateral")):
            if gap := _gap(logbook.entries(head.author, head.log, 0)):  # type: ignore[arg-type]
                yield Broken(
                    daemon.name, f"the {head.log} log of {scene.name(head.author)}, as it knows it, {gap}"
                )


def _gap(entries: Sequence[Sealed[Entry]]) -> str:
    prev = NO_HASH
    for place, entry in enumerate(entries):
        if entry.message.index != place:
            return f"has index {entry.message.index} in place {place}"
        if entry.message.prev != prev:
            return f"has an entry {place} that does not follow the one before it"
        prev = entry.id
    return ""


def one_entry_stands_in_each_place(scene: Scene) -> Iterator[Broken]:
    """An honest key signs one entry for each place of its logs, whatever crashes: two would bar it for ever."""
    places: dict[tuple[str, str, int], tuple[str, bytes]] = {}
    honest = scene.honest_ids
    for daemon, entry in scene.entries():
        if entry.sender in honest:
            place = (entry.sender, entry.message.log, entry.message.index)
            name, known = places.setdefault(place, (daemon.name, entry.id))
            if known != entry.id:
                yield Broken(
                    honest[entry.sender],
                    f"{place[1]} entry {place[2]} is one thing on the disk of {name} and another on that of "
                    f"{daemon.name}",
                )


def contradictions_are_punished(scene: Scene) -> Iterator[Broken]:
    """Who holds two entries of one key for one place has it barred."""
    for daemon in scene.online:
        ids: defaultdict[tuple[str, str, int], dict[bytes, None]] = defaultdict(dict)
        for entry in scene.disks[daemon.name]:
            ids[entry.sender, entry.message.log, entry.message.index][entry.id] = None
        for (author, log, index), different in ids.items():
            if len(different) > 1 and not daemon.node.logbook.assembly.is_barred(author):  # type: ignore[arg-type]
                yield Broken(
                    daemon.name,
                    f"it holds two {log} entries {index} of {scene.name(author)}, who is not barred",
                )


def what_was_acknowledged_survives(scene: Scene) -> Iterator[Broken]:
    """Whatever a peer has received of a device stands on that device's own disk: it was written before it was sent."""
    own = {
        daemon.peer_id: {entry.id for entry in scene.disks[daemon.name] if entry.sender == daemon.peer_id}
        for daemon in scene.honest
    }
    honest = scene.honest_ids
    founding = {entry.id for entry in scene.founding_entries()}
    for daemon, entry in scene.entries():
        if entry.sender in own and entry.id not in own[entry.sender] and entry.id not in founding:
            yield Broken(
                honest[entry.sender],
                f"{daemon.name} has its {entry.message.log} entry {entry.message.index} "
                f"({type(entry.message).kind}), and its own disk has not",
            )


def what_is_known_is_on_disk(scene: Scene) -> Iterator[Broken]:
    """A device goes by nothing that a restart would forget, unless its disk was full."""
    founding = {entry.id for entry in scene.founding_entries()}
    for daemon in scene.online:
        if daemon.disk.was_filled:
            continue
        held = {entry.id for entry in scene.disks[daemon.name]} | founding
        logbook = daemon.node.logbook
        for head in (*logbook.heads("assembly"), *logbook.heads("bilateral")):
            for entry in logbook.entries(head.author, head.log, 0):  # type: ignore[arg-type]
                if entry.id not in held:
                    yield Broken(
                        daemon.name,
                        f"it goes by {head.log} entry {head.index} of {scene.name(head.author)}, which its disk lacks",
                    )
