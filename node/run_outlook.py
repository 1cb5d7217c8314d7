"""What to expect of a run before any privacy is spent on it: small sets under a small epsilon teach nothing."""

import statistics
from collections.abc import Sequence

from node.utility_hint import utility_hint
from protocol.messages import Recipe


def outlook(recipe: Recipe, bids: Sequence[tuple[int, int]]) -> str:
    """Return one sentence for the user.

    Args:
        recipe: of the run.
        bids: of each member the training records, and the epsilon that it would spend, in thousandths; 0: without
            differential privacy.
    """
    private = [(samples, epsilon_milli) for samples, epsilon_milli in bids if epsilon_milli]
    if not bids:
        return ""
    batch = max(1, recipe.batch * (100 - recipe.replay_percent) // 100)
    chosen = private or bids
    samples = int(statistics.median(samples for samples, _ in chosen))
    epsilon_milli = int(statistics.median(epsilon for _, epsilon in chosen))
    steps = recipe.steps * recipe.rounds
    hint = utility_hint(samples, epsilon_milli, batch=batch, steps=max(1, steps), cohort=len(chosen))
    who = "" if len(chosen) == 1 else f"{len(chosen)} devices, in the middle "
    return f"{who}{hint.text}"
