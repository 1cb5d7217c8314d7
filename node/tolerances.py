"""How far honest engines are apart with each model, as `agora calibrate` measured it on this device.

One small file in the home, by the model's digest. What is damaged or absurd there counts as not measured: a tolerance that
somebody could set to a million would let every seller pass.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec

from marketplace.verification import TOLERANCE_MILLI_DEFAULT
from node.private_file import write_atomic
from runtime.engine import Digest

TOLERANCE_MILLI_MIN: Final = 100  # another device's kernels round more than this one's showed in a minute
TOLERANCE_MILLI_MAX: Final = 3_000  # beyond it nearly every token of nearly every model would pass
# Other kernels round otherwise than anything that one device can try, and a minute does not meet the worst place. On the
# trained tiny model 0.18 was measured, which gives 0.72 logits; the worst of 29,000 honest tokens was off by 0.41, and at
# three times what was measured one honest seller in some hundreds would have been accused.
SAFETY: Final = 4
FILE_BYTES_MAX: Final = 1 << 20

Milli = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one model.

    Attributes:
        tokens: at whose places gaps were compared.
        apart_milli: how far two honest ways to compute a gap were apart at worst, in thousandths of a logit.
        measured_at: Unix seconds.
    """

    tokens: Milli
    apart_milli: Milli
    measured_at: float

    @property
    def is_usable(self) -> bool:
        """Whether checks can tell this model from another one by it."""
        return SAFETY * self.apart_milli <= TOLERANCE_MILLI_MAX

    @property
    def tolerance_milli(self) -> int:
        """The gap that is still put down to rounding."""
        if not self.is_usable:
            return TOLERANCE_MILLI_DEFAULT
        return max(TOLERANCE_MILLI_MIN, SAFETY * self.apart_milli)


class Tolerances:
    """The file, as it was when this was made; `agora calibrate` holds the home, so no daemon runs beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Calibration] = {}
        with suppress(OSError, msgspec.DecodeError):  # damaged, or not there: nothing was measured
            if path.stat().st_size <= FILE_BYTES_MAX:
                self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, Calibration])

    def milli(self, model: bytes) -> int:
        """Return the tolerance for a model, in thousandths of a logit."""
        found = self._known.get(model.hex())
        return found.tolerance_milli if found else TOLERANCE_MILLI_DEFAULT

    def keep(self, model: Digest, found: Calibration) -> None:
        """Write what was measured of a model, beside what is known of others."""
        self._known[model.hex()] = found
        write_atomic(self._path, msgspec.json.format(msgspec.json.encode(self._known), indent=1))
