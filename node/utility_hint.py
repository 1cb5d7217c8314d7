"""What a private data set can be expected to teach at its budget, said before anything of the budget is spent.

Noise drowns what few records have to say. Two trainings of the repository's tiny model were measured, with 64 records a
step: 8,192 records under epsilon 9.45 (sigma 0.5, 360 steps) got .98 of the questions right, 2,048 under 4.8 (sigma 0.8,
120 steps) none. What the records say adds up over batch, steps and devices; the noise adds up as its root. So the clarity,
batch * sqrt(steps * cohort) / sigma, tells which of the two a training is like.
"""

import math
from dataclasses import dataclass
from enum import Enum

from federation.privacy import delta_for, noise_for
from protocol.limits import EPSILON_MILLI_MAX_DEFAULT

BATCH = 64
STEPS = 360
SAMPLES_LEARNED = 8_192
CLARITY_LEARNED = 64 * math.sqrt(360) / 0.5
CLARITY_LEARNED_NOTHING = 64 * math.sqrt(120) / 0.8
MARGIN = 1.1  # what taught nothing was not the last that does


class Outlook(Enum):
    """What is to be expected."""

    LEARNS = "learns"
    UNCERTAIN = "uncertain"
    NOTHING = "nothing"


@dataclass(frozen=True)
class UtilityHint:
    """An outlook, and the sentence that says why."""

    outlook: Outlook
    text: str


def utility_hint(
    samples: int, budget_milli: int, *, batch: int | None = None, steps: int = STEPS, cohort: int = 1
) -> UtilityHint:
    """Say what to expect of training on so many records.

    Args:
        samples: of one device.
        budget_milli: epsilon, in thousandths; 0: without differential privacy.
        batch: private records in a step; None: as many as suit the set, at least those of what was measured.
        steps: of the whole training.
        cohort: devices like this one whose updates are averaged: their noise averages out too.
    """
    if budget_milli == 0:
        return UtilityHint(
            Outlook.LEARNS,
            "without differential privacy nothing is lost to noise, and updates may give single records away",
        )
    records = min(samples, batch or max(BATCH, samples * BATCH // SAMPLES_LEARNED))
    noise_milli = noise_for(budget_milli, (), -(-records * 1_000_000 // samples), steps, delta_for(samples))
    what = f"{samples:,} record{'s' * (samples != 1)} under epsilon {budget_milli / 1000:g}"
    weak = (
        "; so large a budget promises a single record little"
        if budget_milli > EPSILON_MILLI_MAX_DEFAULT
        else ""
    )
    clarity = 0.0 if noise_milli is None else 1_000 * records * math.sqrt(steps * cohort) / noise_milli
    if clarity <= CLARITY_LEARNED_NOTHING * MARGIN:
        return UtilityHint(
            Outlook.NOTHING,
            f"{what} will most likely teach nothing: as measured, 8,192 under 9.45 taught well and 2,048 under 4.8 "
            f"nothing; gather more records or allow a larger budget{weak}",
        )
    if clarity < CLARITY_LEARNED:
        return UtilityHint(Outlook.UNCERTAIN, f"{what} may teach little; more records help{weak}")
    return UtilityHint(Outlook.LEARNS, f"{what} can teach something{weak}")
