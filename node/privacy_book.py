"""The privacy book: what was spent on each record of this device's data, and whether a round may spend more.

It is a fold over the `Spend` entries of the own bilateral log, so it is as durable as money: an entry is on disk before
the first step of its round, and never taken back. A crash in between has spent for nothing; it cannot spend twice, since
one (run, round) stands in the log once. What was spent is composed from the raw parameters each time.

What is spent on a set is spent on its records, and those may be in other sets too. So a set bears the spending of every
set that shares a record with it, and a round must stay within the budgets of them all. That counts the most that any one
record can have been through, sometimes more; never less.

One run may spend no more than a share of a set's whole budget, which its owner says: whoever announces first, or just
once, must not leave nothing to those that come later.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import trio

from federation.privacy import StepsTaken, delta_for, epsilon_milli, noise_for
from node.data_sets import DataSet, DataSets
from node.journal import Journal
from node.logbook import Logbook, NotConfirmed
from node.store import StoreClosed, StoreFailed
from protocol.envelope import narrow
from protocol.messages import Recipe, Spend
from runtime.engine import Digest
from runtime.trainer import NoisePlan

PPM = 1_000_000
NOISE_MILLI_WORTH_MAX = 20_000  # with more, what is left of a budget is spent on an update of noise alone


@dataclass(frozen=True)
class Refused:
    """Nothing was spent, and why.

    Attributes:
        reason: "budget": it would be exceeded; "repeated": this round was reserved before; "unconfirmed": no member has
            confirmed the own log since the start, so more may have been spent than is known here; "disk": it takes no
            entry; "private": the set has a budget and the round has no noise.
        detail: what was found and what was expected.
    """

    reason: Literal["budget", "repeated", "unconfirmed", "disk", "private"]
    detail: str


class PrivacyBook:
    """The spending of this device. It keeps nothing that is not in the log.

    Args:
        run_percent: of a set's whole budget, which one run may spend at most.
    """

    def __init__(self, logbook: Logbook, data: DataSets, journal: Journal, *, run_percent: int) -> None:
        self._logbook = logbook
        self._data = data
        self._journal = journal
        self._run_percent = run_percent
        self._reserving = trio.Lock()  # two rounds must not share what is left
        self._read = 0  # entries of the own log that are folded
        self._spends: dict[bytes, list[StepsTaken]] = defaultdict(list)  # by source
        self._rounds: set[tuple[bytes, int]] = set()  # (run, round)
        self._runs: dict[tuple[bytes, bytes], list[StepsTaken]] = defaultdict(list)  # by (source, run)

    # --- what was spent -------------------------------------------------------------------------------------------
    def spent(self, data_set: DataSet) -> list[StepsTaken]:
        """Return all steps that any record of a set can have been through."""
        self._fold()
        return [taken for digest in self._sources(data_set) for taken in self._spends.get(digest, ())]

    def spent_milli(self, data_set: DataSet) -> int:
        """Return the epsilon spent on a set's records, in thousandths, rounded up; 0 if it trains without privacy."""
        return epsilon_milli(self.spent(data_set), delta_for(data_set.samples)) if data_set.is_private else 0

    def run_milli(self, data_set: DataSet, run: bytes) -> int:
        """Return the epsilon of one run alone, in thousandths; -1: without differential privacy."""
        if not data_set.is_private:
            return -1
        self._fold()
        return epsilon_milli(self._runs.get((data_set.digest, run), ()), delta_for(data_set.samples))

    # --- what may be spent ------------------------------------------------------------------------------------------
    def share_milli(self, data_set: DataSet) -> int:
        """Return the epsilon that one run may spend on a set, in thousandths; 0: it trains without privacy."""
        return max(1, data_set.budget_milli * self._run_percent // 100) if data_set.is_private else 0

    def plan(self, data_set: DataSet, recipe: Recipe) -> NoisePlan | Refused | None:
        """Return the least noise with which all rounds of a recipe stay within a run's share and what is left.

        None: no noise is wanted.
        """
        if not data_set.is_private:
            return None
        rate_ppm = sampling_rate_ppm(data_set.samples, recipe)
        steps = recipe.steps * recipe.rounds
        noise_milli = 1
        for each in self._bound_by(data_set):
            delta = delta_for(each.samples)
            for allowed_milli, spent in (
                (self.share_milli(each), []),
                (each.budget_milli, self.spent(each)),
            ):
                needed = noise_for(allowed_milli, spent, rate_ppm, steps, delta)
                if needed is None or needed > NOISE_MILLI_WORTH_MAX:
                    least = StepsTaken(NOISE_MILLI_WORTH_MAX, rate_ppm, steps)
                    return self._too_dear(each, steps, epsilon_milli([least], delta))
                noise_milli = max(noise_milli, needed)
        return NoisePlan(noise_milli, rate_ppm)

    def cost_milli(self, data_set: DataSet, noise: NoisePlan | None, steps: int) -> int:
        """Return the epsilon of so many steps alone, in thousandths; -1: without differential privacy."""
        if noise is None:
            return -1
        taken = StepsTaken(noise.noise_milli, noise.rate_ppm, steps)
        return epsilon_milli([taken], delta_for(data_set.samples))

    async def reserve(
        self, data_set: DataSet, run: bytes, round_: int, noise: NoisePlan | None, steps: int
    ) -> Refused | None:
        """Spend for a round before its first step; on disk when this returns None.

        Args:
            data_set: what is trained on.
            run: whose round it is.
            round_: 1, 2, …; each of a run is reserved once, for ever.
            noise: None: without differential privacy, which only a set without a budget allows.
            steps: 0 spends nothing.
        """
        if not data_set.is_private:
            return None
        if noise is None:
            return Refused("private", f"{data_set.name!r} has a budget, expected a round with noise")
        taken = StepsTaken(noise.noise_milli, noise.rate_ppm, steps)
        async with self._reserving:
            if refused := self._refusal(data_set, run, round_, taken):
                return refused
            if steps:
                try:
                    await self._logbook.write(
                        Spend, lambda index, prev: _spend(index, prev, data_set.digest, run, round_, taken)
                    )
                except NotConfirmed as error:
                    return Refused("unconfirmed", str(error))
                except (StoreFailed, StoreClosed) as error:
                    return Refused("disk", str(error))
            self._journal.write(
                "privacy_reserved",
                source=data_set.digest,
                run=run,
                round=round_,
                spent_milli=self.spent_milli(data_set),
                budget_milli=data_set.budget_milli,
            )
        return None

    def _refusal(self, data_set: DataSet, run: bytes, round_: int, taken: StepsTaken) -> Refused | None:
        if doubters := self._logbook.disputed_by:
            return Refused(
                "unconfirmed",
                f"{doubters[0]} has seen entries of this device's log that are not here, as after restoring an old backup: "
                "more may have been spent than is known here",
            )
        self._fold()
        if (run, round_) in self._rounds:
            return Refused("repeated", f"round {round_} of run {run.hex()[:8]} was reserved before")
        for each in self._bound_by(data_set):
            delta = delta_for(each.samples)
            would_be = epsilon_milli([*self.spent(each), taken], delta)
            if would_be > each.budget_milli:
                return self._over(each, would_be, f"round {round_}")
            by_run = epsilon_milli([*self._spent_by(run, each), taken], delta)
            if by_run > self.share_milli(each):
                return self._over_share(each, by_run, f"round {round_}")
        return None

    def _sources(self, data_set: DataSet) -> Sequence[Digest]:
        """The sets, removed ones too, that a record of this one is or was trained in."""
        others = (each.digest for each in self._data.known() if each.shares_records(data_set))
        return tuple(dict.fromkeys((data_set.digest, *others)))

    def _spent_by(self, run: bytes, data_set: DataSet) -> list[StepsTaken]:
        """The steps of one run that a record of a set can have been through."""
        return [taken for digest in self._sources(data_set) for taken in self._runs.get((digest, run), ())]

    def _bound_by(self, data_set: DataSet) -> Sequence[DataSet]:
        """The sets whose budgets a round on this one must keep: its own, and those with a record of it."""
        others = (each for each in self._data.sets() if each.is_private and each.shares_records(data_set))
        return tuple({each.digest: each for each in (data_set, *others)}.values())

    def _over(self, data_set: DataSet, found_milli: int, what: str) -> Refused:
        return Refused(
            "budget",
            f"epsilon of {data_set.name!r} with {what} would be {found_milli / 1000:g}, "
            f"its budget is {data_set.budget_milli / 1000:g}",
        )

    def _over_share(self, data_set: DataSet, found_milli: int, what: str) -> Refused:
        return Refused(
            "budget",
            f"epsilon of {data_set.name!r} in this run would be {found_milli / 1000:g} with {what}, one run may spend "
            f"{self.share_milli(data_set) / 1000:g} of its budget of {data_set.budget_milli / 1000:g}",
        )

    def _too_dear(self, data_set: DataSet, steps: int, least_milli: int) -> Refused:
        """With so much noise that the update would be noise alone, the steps cost still more than is left for a run."""
        spent_milli, share_milli = self.spent_milli(data_set), self.share_milli(data_set)
        left_milli = max(0, min(share_milli, data_set.budget_milli - spent_milli))
        return Refused(
            "budget",
            f"{steps} steps on {data_set.name!r} take an epsilon of {least_milli / 1000:g} at least, left for one run is "
            f"{left_milli / 1000:g}: it may spend {share_milli / 1000:g}, and {spent_milli / 1000:g} of "
            f"{data_set.budget_milli / 1000:g} is spent",
        )

    def _fold(self) -> None:
        """Take in what the own log has got since."""
        entries = self._logbook.entries(self._logbook.me, "bilateral", self._read)
        for entry in entries:
            if (spend := narrow(entry, Spend)) is None:
                continue
            told = spend.message
            taken = StepsTaken(told.noise_milli, told.rate_ppm, told.steps)
            self._spends[told.source].append(taken)
            self._rounds.add((told.run, told.round))
            self._runs[told.source, told.run].append(taken)
        self._read += len(entries)


def sampling_rate_ppm(samples: int, recipe: Recipe) -> int:
    """Return the probability with which each record enters a step's batch, in millionths, rounded up.

    The private part of a batch is what replay leaves of it, one record at least.
    """
    private = max(1, recipe.batch * (100 - recipe.replay_percent) // 100)
    return min(PPM, -(-private * PPM // samples))


def _spend(index: int, prev: bytes, source: Digest, run: bytes, round_: int, taken: StepsTaken) -> Spend:
    # converted, not just built: what the protocol does not allow must not stand in the log
    return msgspec.convert(
        {
            "index": index,
            "prev": prev,
            "source": source,
            "run": run,
            "round": round_,
            "noise_milli": taken.noise_milli,
            "rate_ppm": taken.rate_ppm,
            "steps": taken.steps,
        },
        Spend,
    )
