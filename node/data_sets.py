"""Private data sets: records of this device's owner that train adapters and never leave the machine.

The owner decides on privacy once, when a set is added: a budget, or none at all; every run obeys. The unit of privacy is
one record, so a record that is in several sets is one record still: it carries what was spent on it into each.

This is the port. Two backends: a directory of the home, and the simulator's memory.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.records import RecordHash
from runtime.engine import Digest
from runtime.examiner import Question

UNIT = "one record"  # what epsilon bounds; every listing says it


@dataclass(frozen=True)
class DataSet:
    """A frozen copy of records.

    Attributes:
        digest: its opaque name in `Spend` entries; salted, so that it confirms no guess of what is in it.
        name: what its owner calls it; several sets may share one.
        samples: records that are trained on.
        held_out: records that are never trained on, for this device's own verdict on a patch.
        budget_milli: the epsilon that may be spent on each of its records, in thousandths; 0: without differential privacy.
        added_ms: Unix time in milliseconds.
        records: hashes of those that are trained on; they stay here.
        is_removed: its records are gone; what was spent on them is remembered.
    """

    digest: Digest
    name: str
    samples: int
    held_out: int
    budget_milli: int
    added_ms: int
    records: frozenset[RecordHash]
    is_removed: bool = False

    @property
    def is_private(self) -> bool:
        """Whether it is trained on with differential privacy."""
        return self.budget_milli > 0

    def shares_records(self, other: "DataSet") -> bool:
        """Whether some record is trained on in both."""
        return not self.records.isdisjoint(other.records)


@dataclass(frozen=True)
class Added:
    """What came of adding a file.

    Attributes:
        is_new: False: the same records were here under this name and budget already.
        duplicates: lines that repeat an earlier one; each record is kept once, since it is the unit of privacy.
        seen_before: records trained on that other sets hold or held; they bring along what was spent on them.
    """

    data_set: DataSet
    is_new: bool
    duplicates: int
    seen_before: int


class DataSets(Protocol):
    """The data sets of this device."""

    def sets(self) -> tuple[DataSet, ...]:
        """Those that are here, the oldest first."""

    def known(self) -> tuple[DataSet, ...]:
        """Those, and the removed ones whose spending is remembered."""

    def named(self, name: str) -> list[DataSet]:
        """Those of a name that are here, the oldest first."""

    async def add(self, name: str, source: Path, budget_milli: int) -> Added:
        """Freeze a copy of a file of JSON lines.

        Args:
            name: as in the protocol, where runs ask for data by it.
            source: stays where it is, and is not looked at again.
            budget_milli: 0: without differential privacy.

        Raises:
            StartError: a line of it is no record (which one, is said), or what is known of its records forbids it.
            StoreFull: the disk is; nothing was kept.
        """

    async def held_out(self, digest: Digest) -> tuple[Question, ...]:
        """Return the held-out records as questions, whose domain is the set's name.

        Raises:
            KeyError: no such set is here.
        """

    async def remove(self, digest: Digest) -> None:
        """Delete the records of a set; what was spent on them stays known if it has a budget.

        Raises:
            KeyError: no such set is here.
        """
