"""How far honest engines are apart with each model, as `agora calibrate` measured it on this device.

One small file in the home, by the model's digest. What is damaged or absurd there counts as not measured: a tolerance that
somebody could set to a million would let every seller pass.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec

from marketplace.verification import TOLERANCE_DEFAULT, Tolerance
from node.private_file import write_atomic
from runtime.engine import Digest

GAP_MILLI_MIN: Final = 100  # another device's kernels round more than this one's showed in a minute
GAP_MILLI_MAX: Final = 3_000  # beyond it nearly every token of nearly every model would pass
# Other kernels round otherwise than anything that one device can try, and a minute does not meet the worst place. On the
# trained tiny model 0.18 was measured, which gives 0.72 logits; the worst of 29,000 honest tokens was off by 0.41, and at
# three times what was measured one honest seller in some hundreds would have been accused.
GAP_SAFETY: Final = 4
DRIFT_MILLI_MIN: Final = 100  # as far as the same weights in float16 drift; so may another device's kernels
DRIFT_MILLI_MAX: Final = 600  # answers by 4 bits instead of 8 drift by more, but not all of them
# A mean over an answer is steadier than its worst token. On the trained tiny model 0.095 was measured, which gives 0.29 logits;
# the worst of 1,485 honest answers drifted by 0.12, those by 4 bits by 0.7 to 0.8 in the median.
DRIFT_SAFETY: Final = 3
FILE_BYTES_MAX: Final = 1 << 20

Milli = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one model.

    Attributes:
        tokens: at whose places gaps were compared.
        apart_milli: how far two honest ways to compute a gap were apart at worst, in thousandths of a logit.
        drift_milli: how far the contrasts of one answer, made and read in honest ways, drifted at worst, as well; None: that
            was not measured, by an earlier version.
        measured_at: Unix seconds.
    """

    tokens: Milli
    apart_milli: Milli
    drift_milli: Milli | None = None
    measured_at: float

    @property
    def is_usable(self) -> bool:
        """Whether checks can tell this model from another one by its gaps."""
        return GAP_SAFETY * self.apart_milli <= GAP_MILLI_MAX

    @property
    def tolerance(self) -> Tolerance:
        """What is still put down to rounding."""
        gap_milli, drift_milli = TOLERANCE_DEFAULT.gap_milli, TOLERANCE_DEFAULT.drift_milli
        if self.is_usable:
            gap_milli = max(GAP_MILLI_MIN, GAP_SAFETY * self.apart_milli)
        if self.drift_milli is not None:
            drift_milli = min(DRIFT_MILLI_MAX, max(DRIFT_MILLI_MIN, DRIFT_SAFETY * self.drift_milli))
        return Tolerance(gap_milli, drift_milli)


class Tolerances:
    """The file, as it was when this was made; `agora calibrate` holds the home, so no daemon runs beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Calibration] = {}
        with suppress(OSError, msgspec.DecodeError):  # damaged, or not there: nothing was measured
            if path.stat().st_size <= FILE_BYTES_MAX:
                self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, Calibration])

    def of(self, model: bytes) -> Tolerance:
        """Return the tolerance for a model."""
        found = self._known.get(model.hex())
        return found.tolerance if found else TOLERANCE_DEFAULT

    def keep(self, model: Digest, found: Calibration) -> None:
        """Write what was measured of a model, beside what is known of others."""
        self._known[model.hex()] = found
        write_atomic(self._path, msgspec.json.format(msgspec.json.encode(self._known), indent=1))
