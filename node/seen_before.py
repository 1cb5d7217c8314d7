"""What the records of a new data set have been through in others, and what its owner may therefore not say of them."""

from collections.abc import Sequence

from node.data_sets import DataSet
from node.errors import StartError


def find_same(new: DataSet, here: Sequence[DataSet]) -> DataSet | None:
    """Return the set that a new one only repeats.

    Raises:
        StartError: it holds the same records under another name or budget.
    """
    for each in here:
        if each.digest != new.digest:
            continue
        if (each.name, each.budget_milli) == (new.name, new.budget_milli):
            return each
        raise StartError(
            f"these records are here already as {each.name!r} {_terms(each)}, expected others or the same terms; "
            f"run 'agora data remove {each.digest.hex()[:8]}' first"
        )
    return None


def check_budget(new: DataSet, known: Sequence[DataSet]) -> int:
    """Return how many records of a new set others hold or held.

    Raises:
        StartError: some of them were promised a budget and would now have none, or the other way round, where what was
            done to them without privacy is in no book.
    """
    seen_before = 0
    for each in known:
        shared = len(new.records & each.records)
        if shared and each.is_private != new.is_private:
            raise StartError(
                f"{shared} of these records are in {each.name!r} {_terms(each)}, expected the same for one record "
                "wherever it is; leave them out, or add this set the same way"
            )
        seen_before += shared
    return min(seen_before, new.samples)


def _terms(data_set: DataSet) -> str:
    removed = ", now removed," if data_set.is_removed else ""
    if not data_set.is_private:
        return f"without differential privacy{removed}"
    return f"with a budget of epsilon {data_set.budget_milli / 1000:g}{removed}"
