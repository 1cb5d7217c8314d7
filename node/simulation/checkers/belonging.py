"""Laws of belonging: honest members stay in, nothing a peer sends breaks a handler, and all find together again."""

from collections.abc import Iterator

from node.simulation.checkers.scene import Broken, Scene
from protocol.errors import NotAuthorised
from protocol.identity import PeerId
from protocol.messages import Head


def no_handler_fails(scene: Scene) -> Iterator[Broken]:
    """Nothing that a peer does runs into an error of ours; only a store that died with its process may say so."""
    for node, event in scene.events["handler_failed"]:
        if event.fields["error"] != "StoreClosed":
            fields = event.fields
            yield Broken(node, f"{fields['where']} failed with {fields['error']} at {fields['at_']}")


def nobody_honest_is_accused(scene: Scene) -> Iterator[Broken]:
    """No device finds a contradiction in what an honest one has signed, and none holds an offence against it.

    Save one: whoever was admitted while the world ran is a stranger to members that have not heard of it yet.
    """
    honest = scene.honest_ids
    honest_names = set(honest.values())
    for node, event in scene.events["contradiction_found"]:
        if event.fields["author"] in honest and node in honest_names:
            yield Broken(node, f"it found a contradiction of {scene.name(str(event.fields['author']))}")
    for node, event in scene.events["offence_counted"]:
        peer_id = PeerId(str(event.fields["peer_id"]))
        is_newcomer = not scene.world.founding.assembly.was_admitted(peer_id)
        if is_newcomer and event.fields["offence"] == NotAuthorised.offence:
            continue
        if peer_id in honest and node in honest_names:
            peer = scene.name(peer_id)
            yield Broken(node, f"it charged {peer} with {event.fields['offence']} ({event.fields['where']})")


def nobody_honest_is_barred(scene: Scene) -> Iterator[Broken]:
    """No honest device is barred from the mesh for ever by what an honest one believes."""
    honest = scene.honest_ids
    for daemon in scene.online:
        assembly = daemon.node.logbook.assembly
        if daemon.node.logbook.halted:
            yield Broken(daemon.name, f"it writes nothing any more: {daemon.node.logbook.halted}")
        for peer_id, name in honest.items():
            if assembly.is_barred(peer_id):
                yield Broken(daemon.name, f"it bars {name}")


def all_agree_on_the_assembly(scene: Scene) -> Iterator[Broken]:
    """When the faults are over, every device knows the same members, names and revocations."""
    online = scene.online
    first = online[0] if online else None
    for daemon in online:
        assert first is not None
        logbook = daemon.node.logbook
        if logbook.assembly.fingerprint() != first.node.logbook.assembly.fingerprint():
            ours, theirs = logbook.assembly.heads(), first.node.logbook.assembly.heads()
            yield Broken(
                daemon.name,
                f"its assembly is another than that of {first.name}: {_lengths(scene, ours)} and "
                f"{_lengths(scene, theirs)}",
            )
        if not logbook.is_confirmed:
            yield Broken(daemon.name, "nobody has confirmed its own log")
        if len(online) > 1 and not daemon.node.meeting.greeted:
            yield Broken(daemon.name, "it is connected to nobody")


def _lengths(scene: Scene, heads: tuple[Head, ...]) -> str:
    return ", ".join(f"{scene.name(head.author)} to {head.index}" for head in heads)


def chats_work_again(scene: Scene) -> Iterator[Broken]:
    """When the faults are over, whoever asks is answered."""
    for outcome in scene.last_chats:
        if outcome.state != "finished":
            yield Broken(
                outcome.buyer,
                f"a chat asked after the faults is {outcome.state}: {outcome.reason or 'no answer'}",
            )
