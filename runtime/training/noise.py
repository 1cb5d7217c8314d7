"""Gaussian noise whose next value nobody can guess: differential privacy holds only against noise that is not known.

torch's generator is no such thing: 624 outputs tell all others. Here a ChaCha20 key from the operating system, drawn
anew for each round, is stretched to uniform numbers, and those become normal ones by Box and Muller's transform.

The least bits of a floating-point Gaussian can betray what it was added to (Mironov 2012, "On significance of the
least significant bits"). As Opacus does in its secure mode, each value is the sum of four draws, scaled back: which
four made it cannot be found again (Holohan and Braghin 2021, arXiv:2107.10138).
"""

import math
import os
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

DRAWS: Final = 4  # of which each value is made
_UNIT: Final = 2.0**-53


class SecretNoise:
    """A stream of secret random numbers; one for each round."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None)
        self._keystream = cipher.encryptor()

    def gaussian(self, like: Tensor, deviation: float) -> Tensor:
        """Return noise of a tensor's shape, type and device, with this standard deviation."""
        count = like.numel()
        draws = self._normal(DRAWS * count).reshape(DRAWS, count)
        return torch.from_numpy(draws.sum(axis=0) * (deviation / math.sqrt(DRAWS))).to(like).view_as(like)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return numbers in [0, 1)."""
        words = np.frombuffer(self._keystream.update(bytes(8 * count)), np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * _UNIT

    def _normal(self, count: int) -> npt.NDArray[np.float64]:
        half = (count + 1) // 2
        first, second = self.uniform(2 * half).reshape(2, half)
        radius = np.sqrt(-2 * np.log1p(-first))  # of 1 - u, which is never zero
        angle = 2 * np.pi * second
        normal: npt.NDArray[np.float64] = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
        return normal[:count]
