"""Laws of privacy: no record is trained on that was not paid for, and nobody pays more than its owner allowed."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from federation.privacy import StepsTaken, delta_for, epsilon_milli
from node.simulation.checkers.scene import Broken, Scene
from node.simulation.daemon import Daemon
from protocol.messages import Spend
from runtime.engine import Digest


def no_privacy_budget_is_overdrawn(scene: Scene) -> Iterator[Broken]:
    """What a device's own log says was spent on a data set, composed anew over all its runs, is within its budget.

    What was spent on a record in another set of the same owner counts here, too.
    """
    for daemon in scene.honest:
        spends = _spends(scene, daemon)
        if not spends:
            continue
        sets = {each.digest: each for each in daemon.data.known()}
        for data_set in sets.values():
            shared = {each.digest for each in sets.values() if each.shares_records(data_set)}
            steps = [
                StepsTaken(noise_milli=spend.noise_milli, rate_ppm=spend.rate_ppm, steps=spend.steps)
                for spend in spends
                if spend.source in shared
            ]
            if not steps:
                continue
            spent = epsilon_milli(steps, delta_for(data_set.samples))
            if data_set.budget_milli and spent > data_set.budget_milli:
                yield Broken(
                    daemon.name,
                    f"it spent epsilon {spent / 1000:.3f} on its data set {data_set.name!r}, "
                    f"{data_set.budget_milli / 1000:.3f} allowed",
                )


def no_run_spends_more_than_its_share(scene: Scene) -> Iterator[Broken]:
    """What one run has spent of a data set, in this set or in one that shares a record, is no more than its owner allows."""
    for daemon in scene.honest:
        sets = {each.digest: each for each in daemon.data.known()}
        steps: dict[tuple[bytes, bytes], list[StepsTaken]] = defaultdict(list)
        for spend in _spends(scene, daemon):
            steps[spend.run, spend.source].append(
                StepsTaken(noise_milli=spend.noise_milli, rate_ppm=spend.rate_ppm, steps=spend.steps)
            )
        for (run, source), taken in steps.items():
            for data_set in sets.values():
                if not data_set.budget_milli or not data_set.shares_records(sets[Digest(source)]):
                    continue
                spent = epsilon_milli(taken, delta_for(data_set.samples))
                allowed = max(1, data_set.budget_milli * daemon.config.privacy_run_percent // 100)
                if spent > allowed:
                    yield Broken(
                        daemon.name,
                        f"run {run.hex()[:12]} spent epsilon {spent / 1000:.3f} on its data set {data_set.name!r}, "
                        f"{allowed / 1000:.3f} allowed to one",
                    )


def no_round_is_spent_twice(scene: Scene) -> Iterator[Broken]:
    """A device spends on one round of one run once, whoever asks for it again and whatever crashes."""
    for daemon in scene.honest:
        counts = Counter((spend.source, spend.run, spend.round) for spend in _spends(scene, daemon))
        for (source, run, number), times in counts.items():
            if times > 1:
                yield Broken(
                    daemon.name,
                    f"it spent {times} times on round {number} of run {run.hex()[:12]} from {source.hex()[:12]}",
                )


def nothing_private_is_trained_unpaid(scene: Scene) -> Iterator[Broken]:
    """Every fit with noise has its entry in the own log, and only what an owner freed of privacy is fitted without."""
    for daemon in scene.honest:
        budgets = {each.digest: each.budget_milli for each in daemon.data.known()}
        paid = Counter(
            (spend.source, spend.round, spend.noise_milli, spend.rate_ppm) for spend in _spends(scene, daemon)
        )
        fits = Counter(
            (fit.data, fit.round, fit.noise.noise_milli, fit.noise.rate_ppm)
            for fit in daemon.fits
            if fit.noise is not None
        )
        for fit in daemon.fits:
            if fit.noise is None and budgets.get(fit.data):
                yield Broken(
                    daemon.name, f"it trained on {fit.data.hex()[:12]} without noise, which has a budget"
                )
        for what, times in fits.items():
            if times > paid[what]:
                yield Broken(
                    daemon.name,
                    f"it trained {times} times on round {what[1]} from {what[0].hex()[:12]} and paid for "
                    f"{paid[what]}",
                )


def _spends(scene: Scene, daemon: Daemon) -> list[Spend]:
    return [
        entry.message
        for entry in scene.disks[daemon.name]
        if isinstance(entry.message, Spend) and entry.sender == daemon.peer_id
    ]
