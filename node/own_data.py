"""What the owner does with private data, and sees of it: add, list, remove."""

from pathlib import Path
from typing import Any

import msgspec

from node.data_sets import UNIT, DataSet, DataSets
from node.errors import StartError
from node.journal import Journal
from node.privacy_book import PrivacyBook
from node.utility_hint import utility_hint
from node.views import DataView
from protocol.messages import Name
from runtime.engine import Digest


class OwnData:
    """The data sets of this device, with what was spent on each."""

    def __init__(self, data: DataSets, book: PrivacyBook, journal: Journal) -> None:
        self._data = data
        self._book = book
        self._journal = journal

    def views(self) -> list[DataView]:
        """Return the sets that are here, the oldest first."""
        return [self._view(each) for each in self._data.sets()]

    async def add(self, path: str, name: str, budget_milli: int) -> dict[str, Any]:
        """Freeze a copy of a file: what `DataView` tells of it, and what is to be expected of it."""
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            raise StartError(
                f"data set name {name!r}, expected letters, digits, '.', '_' and '-', 64 at most, e.g. 'heat-pump-logs'"
            ) from None
        added = await self._data.add(name, Path(path), budget_milli)
        data_set = added.data_set
        if added.is_new:
            self._journal.write(
                "data_added",
                source=data_set.digest,
                name=name,
                samples=data_set.samples,
                held_out=data_set.held_out,
                budget_milli=budget_milli,
            )
        share_milli = self._book.share_milli(data_set)
        hint = utility_hint(data_set.samples, share_milli)
        of_all = (
            f"; one run may spend {share_milli / 1000:g} of the {budget_milli / 1000:g} (privacy_run_percent)"
        )
        return {
            **msgspec.to_builtins(self._view(data_set)),
            "is_new": added.is_new,
            "duplicates": added.duplicates,
            "seen_before": added.seen_before,
            "outlook": hint.outlook.value,
            "hint": hint.text + (of_all if share_milli < budget_milli else ""),
        }

    async def remove(self, digest_prefix: str) -> dict[str, Any]:
        """Delete the records of a set; what was spent on them stays known if it has a budget."""
        found = [each for each in self._data.sets() if each.digest.hex().startswith(digest_prefix)]
        if len(found) != 1:
            raise StartError(
                f"no data set {digest_prefix!r}, or several; run 'agora data' to see the digests of those here"
            )
        await self._data.remove(Digest(found[0].digest))
        self._journal.write("data_removed", source=found[0].digest)
        return {"digest": found[0].digest.hex(), "name": found[0].name, "removed": True}

    def _view(self, data_set: DataSet) -> DataView:
        spent_milli = self._book.spent_milli(data_set)
        return DataView(
            digest=data_set.digest.hex(),
            name=data_set.name,
            samples=data_set.samples,
            held_out=data_set.held_out,
            is_private=data_set.is_private,
            budget_milli=data_set.budget_milli,
            spent_milli=spent_milli,
            left_milli=max(0, data_set.budget_milli - spent_milli),
            unit=UNIT,
            added_at=data_set.added_ms / 1000,
        )
