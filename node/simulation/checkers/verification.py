"""Laws of checks: when an answer is drawn, who may read it, whom nobody accuses, and who does not get away."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from marketplace.verification import DRIFT_TOKENS_MIN, NEWCOMERS_JOBS
from node.event import Event
from node.jobs import JOBS_KEPT
from node.simulation.adversaries.model_swappers import ModelSwapper
from node.simulation.checkers.scene import Broken, Scene
from protocol.identity import PeerId

READERS_TO_CONDEMN: Final = 2


def nobody_honest_is_caught(scene: Scene) -> Iterator[Broken]:
    """No check accuses an honest seller, unless as many readers lie as it takes."""
    honest, names = scene.honest_ids, set(scene.honest_ids.values())
    for node, event in scene.events["seller_caught"]:
        if node not in names or event.fields["seller"] not in honest:
            continue
        readers = _readers(scene, node, event)
        if len(set(readers)) < READERS_TO_CONDEMN or any(reader in honest for reader in readers):
            seller = scene.name(str(event.fields["seller"]))
            yield Broken(node, f"it accuses {seller} of another model's answer in job {event.fields['job']}")


def another_models_answers_are_caught(scene: Scene) -> Iterator[Broken]:
    """Whoever sells another model's answers passes no check that an honest engine makes: neither with another text, nor with
    one that is the same as far as it goes.
    """
    honest, names = scene.honest_ids, set(scene.honest_ids.values())
    cheats = {
        each.peer_id: each.name
        for each in scene.world.daemons.values()
        if each.behaviour == ModelSwapper.name
    }
    for node, event in scene.events["job_verified"]:
        seller = PeerId(str(event.fields["seller"]))
        is_long = int(event.fields["tokens"] or 0) >= DRIFT_TOKENS_MIN
        if node not in names or seller not in cheats or not is_long or not event.fields["passed"]:
            continue
        if all(reader in honest for reader in _readers(scene, node, event)):
            yield Broken(node, f"job {event.fields['job']} of {cheats[seller]} passed its check")


def a_new_sellers_answers_are_all_drawn(scene: Scene) -> Iterator[Broken]:
    """Nobody is spared a check before so many of its answers were judged."""
    judged: Counter[tuple[str, object]] = Counter()
    told = [
        (event.monotonic_s, order, node, event)
        for order, name in enumerate(("job_verified", "answer_spared"))
        for node, event in scene.events[name]
    ]
    for _, is_spared, node, event in sorted(told, key=lambda each: each[:2]):
        key = node, event.fields["seller"]
        if not is_spared:
            judged[key] += 1
        elif judged[key] < NEWCOMERS_JOBS and node in scene.honest_ids.values():
            yield Broken(
                node,
                f"it spared job {event.fields['job']} of {scene.name(str(event.fields['seller']))}, of whom "
                f"{judged[key]} answers were judged",
            )


def lots_are_thrown_when_paid(scene: Scene) -> Iterator[Broken]:
    """The lot for an answer is thrown when its receipt was signed: no seller can know it before."""
    for name in ("answer_drawn", "answer_spared"):
        for node, event in scene.events[name]:
            if node in scene.honest_ids.values() and not event.fields["receipt"]:
                yield Broken(
                    node, f"the lot for job {event.fields['job']} was thrown before its receipt was signed"
                )


def checks_stay_where_prompts_may(scene: Scene) -> Iterator[Broken]:
    """A check is bought of another owner than the seller's, and only where any member may read the prompt."""
    owners = {str(each.peer_id): each.config.owner for each in scene.world.daemons.values()}
    for daemon in scene.online:
        views = {view.job_id: view for view in daemon.node.job_book.views(JOBS_KEPT)}
        for node, event in scene.events["check_bought"]:
            view = views.get(str(event.fields["job"])) if node == daemon.name else None
            if view is None:
                continue
            if view.privacy != "mesh":
                yield Broken(
                    node,
                    f"the prompt of job {view.job_id}, of privacy {view.privacy}, was sent to be checked",
                )
            if owners.get(str(event.fields["reader"])) == owners.get(str(event.fields["seller"])):
                yield Broken(node, f"job {view.job_id} was checked by its own seller's owner")


def no_check_waits_for_ever(scene: Scene) -> Iterator[Broken]:
    """What was drawn is judged, or shown as unverified, and why."""
    for daemon in scene.online:
        for view in daemon.node.job_book.views(JOBS_KEPT):
            if any(attempt.verification == "waiting" for attempt in view.attempts):
                yield Broken(daemon.name, f"job {view.job_id} was drawn and is not judged")


def _readers(scene: Scene, node: str, event: Event) -> list[PeerId]:
    """Who was paid to read the job of an event; nobody: its buyer read it with its own engine."""
    return [
        PeerId(str(each.fields["reader"]))
        for where, each in scene.events["check_bought"]
        if where == node and each.fields["job"] == event.fields["job"]
    ]
