"""All tokens that might come next, at once: log-probabilities, and a draw from those that fit a constraint.

Only for the child, and only for requests that ask for one of these: numpy takes 24 MB that an engine does without.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.limits import TOKEN_BYTES_MAX
from runtime.engine import BadRequest
from runtime.llama import wire
from runtime.llama.lowlevel import llama
from runtime.llama.vocabulary import Guide

# Where the token that was drawn does not fit, so many of the likeliest are tried. The others are less likely than a
# draw would care for, unless none of these fits.
TRIED_MAX = 1_024
MICRO = 1_000_000
MICRONATS_MAX = 2**31 - 1
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

Logits = npt.NDArray[np.float32]


def view(row: Any, size: int) -> Logits:
    """Return a row of logits as an array, without copying; it is good until the next batch."""
    array: Logits = np.ctypeslib.as_array(row, shape=(size,))
    return array


def logprob(logits: Logits, token: int, top: int, piece: Callable[[int], bytes]) -> wire.Logprob:
    """Return how likely a token was, and the likeliest ones at its place, as the model computed them."""
    peak = logits.max()
    shares = logits - peak
    np.exp(shares, out=shares)
    total = float(peak) + math.log(shares.sum())  # numpy sums in pairs: exact to a millionth

    def micronats(each: int) -> int:
        return min(MICRONATS_MAX, max(0, round((total - float(logits[each])) * MICRO)))

    def text(each: int) -> bytes:
        return piece(each)[:TOKEN_BYTES_MAX]

    likeliest = _likeliest(logits, top) if top else ()
    return wire.Logprob(
        text(token), micronats(token), tuple((text(each), micronats(each)) for each in likeliest)
    )


def gap(logits: Logits, token: int) -> int:
    """Return how far a token's logit is below the highest, in thousandths."""
    return min(MICRONATS_MAX, max(0, round(float(logits.max() - logits[token]) * 1_000)))


def draw(chain: Any, logits: Logits) -> int:
    """Draw from all tokens, as `Model.sample` does, but without letting the chain remember what it drew.

    Args:
        chain: of llama.cpp's samplers.
        logits: (vocabulary,)

    Raises:
        BadRequest: the sampling parameters leave nothing.
    """
    return _apply(chain, np.arange(len(logits), dtype=np.int32), logits)


def draw_fitting(chain: Any, logits: Logits, biases: tuple[tuple[int, int], ...], guide: Guide) -> int:
    """Draw from the likeliest tokens that fit, without letting the chain remember it.

    Args:
        chain: of llama.cpp's samplers.
        logits: (vocabulary,)
        biases: (token, thousandths) that the chain adds, for the order.
        guide: says what fits.

    Raises:
        BadRequest: no token fits.
    """
    ranked = logits
    if biases:
        ranked = logits.copy()
        for each, milli in biases:
            ranked[each] += milli / 1_000
    fitting = [each for each in _likeliest(ranked, TRIED_MAX) if guide.fits(each)] or guide.fitting()
    if not fitting:
        raise BadRequest(
            "no token of this model's vocabulary goes on with the text as the grammar or schema wants"
        )
    ids = np.array(fitting, dtype=np.int32)
    return _apply(chain, ids, logits[ids])


def _likeliest(logits: Logits, count: int) -> list[int]:
    """Return so many tokens, the likeliest first; of equals the one with the lower id."""
    ids = np.arange(len(logits))
    if count < len(logits):
        ids = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
    order: list[int] = ids[np.lexsort((ids, -logits[ids]))].tolist()
    return order


def _apply(chain: Any, ids: npt.NDArray[np.int32], logits: Logits) -> int:
    data = np.zeros(len(ids), dtype=_TOKEN_DATA)
    data["id"], data["logit"] = ids, logits
    pointer = data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
    array = llama.llama_token_data_array(data=pointer, size=len(ids), selected=-1, sorted=False)
    llama.llama_sampler_apply(chain, ctypes.byref(array))
    if not 0 <= array.selected < array.size:
        raise BadRequest("the sampling parameters leave no token to draw")
    return int(array.data[array.selected].id)
