"""The Trainer port: one round of one member, a change in and a change out, and nothing said about how.

Behind it stand torch in a sandboxed child (`runtime/training/`) and `ToyTrainer` (`runtime/toy_trainer.py`), the honest
fake that tests and the simulator run. What travels between coordinator and member is opaque here: the backend's main
hands it to Flower's `ClientApp`, which `federation/client.py` writes.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import AgoraError
from protocol.messages import Recipe
from runtime.engine import Digest


@dataclass(frozen=True)
class NoisePlan:
    """How a round keeps its records private: DP-SGD over the LoRA parameters alone.

    Attributes:
        noise_milli: the noise multiplier sigma, in thousandths.
        rate_ppm: the probability with which each record enters a step's batch, in millionths.
        clip_milli: the norm each record's gradient is clipped to, in thousandths.
    """

    noise_milli: int
    rate_ppm: int
    clip_milli: int = 1_000


@dataclass(frozen=True)
class Fit:
    """One round's work. What it names is found by the backend in this device's own stores.

    Attributes:
        base: the GGUF that is adapted.
        data: the private data set's digest; its frozen training records are read.
        replay: the blob of public examples; None: none.
        recipe: how the whole run trains.
        round: 1, 2, … of `recipe.rounds`; the learning rate follows from it.
        since: the blob of the state that `payload` changes; None: the common seed's.
        payload: the change, as it came from the coordinator.
        state: digest of the state that comes out of it, from which to train.
        noise: None: without differential privacy.
        seed: of this member's draws of records; the noise itself comes from a CSPRNG.
    """

    base: Digest
    data: Digest
    replay: Digest | None
    recipe: Recipe
    round: int
    since: Digest | None
    payload: bytes
    state: Digest
    noise: NoisePlan | None
    seed: int


@dataclass(frozen=True)
class FitProgress:
    """Still training: `step` of `steps` are done. At least every 0.5 s."""

    step: int
    steps: int


@dataclass(frozen=True)
class Prepared:
    """All that the task names is here, fits, and leads to the state that it names; no step has been made yet.

    Whoever asks for no further frame has let the trainer learn nothing: privacy is reserved between this frame and the
    next, so that a bad task costs none.
    """


@dataclass(frozen=True)
class Fitted:
    """The last frame of a fit.

    Attributes:
        payload: the change to the task's state, as it goes to the coordinator.
        state: the bytes of the task's own state, which the next round's change refers to; its SHA-256 is `Fit.state`.
        steps: trained.
        samples: records of the data set.
        seconds: in the backend.
    """

    payload: bytes
    state: bytes
    steps: int
    samples: int
    seconds: float


FitFrame = FitProgress | Prepared | Fitted


class TrainerError(AgoraError):
    """The trainer could not do it; the message is one line for the user."""


class BadPayload(TrainerError):
    """The coordinator's change does not decode, does not fit the base, or gives another state than it says."""


class TrainerDied(TrainerError):
    """The child process died under this fit (out of memory, a kill). The next fit starts a new one."""


class Trainer(Protocol):
    """Fits, one at a time; a second one waits."""

    @property
    def why_not(self) -> str:
        """Why this device cannot train (the `train` extra is not installed, too little memory); empty: it can."""

    @property
    def steps_per_s(self) -> float:
        """Measured in the last fit; 0 before the first."""

    def fit(self, task: Fit) -> AsyncGenerator[FitFrame, None]:
        """Yield progress, one `Prepared`, progress, one `Fitted`. Closing the generator cancels the fit within a step.

        Raises:
            TrainerError: one of its kinds, before or between frames.
        """

    async def rest(self) -> None:
        """Give back the memory that is held between rounds: the run is over."""
