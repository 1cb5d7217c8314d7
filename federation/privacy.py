"""How much privacy was spent: an accountant of DP-SGD that needs no torch and no numpy.

One record's influence on what a run reveals is bounded by (epsilon, delta). Each step of DP-SGD draws every record with
probability q (Poisson sampling) and adds Gaussian noise of sigma times the clipping norm. Steps compose in Rényi
differential privacy: at each order alpha their costs add up, over all rounds and all runs that touched the data, and
the sum is turned into epsilon at the best order. Any set of orders gives a true bound, so leaving some out is only dear.

What was spent is composed from the raw (sigma, q, steps) each time; no epsilons are ever added up. Results are
integers, rounded up.

Source: Mironov, Talwar, Zhang 2019, arXiv:1908.10530, section 3.3 (the sampled Gaussian's moments); Canonne, Kamath,
Steinke 2020, arXiv:2004.00010, proposition 12 (from Rényi to epsilon).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

EPSILON_MILLI_CAP = 2**53  # the largest that a message can say: no privacy at all
NOISE_MILLI_MIN = 100  # sigma 0.1: with less, no budget anybody would set is kept
NOISE_MILLI_MAX = 1_000_000
# the orders that both Opacus and dp-accounting try, times ten; the whole ones are cheap
_WHOLE = (*range(20, 101, 10), *range(120, 631, 10))
_TENTHS = tuple(tenths for tenths in range(11, 110) if tenths % 10)
_TERMS_MAX = 1_000  # of the series at a fractional order; it ends far sooner unless q is large
_LOG_TERM_MIN = -30.0  # against the sum so far: what is left out is below 1e-12


@dataclass(frozen=True)
class StepsTaken:
    """Steps of DP-SGD with one noise and one sampling rate, as a `Spend` entry tells them.

    Attributes:
        noise_milli: the noise multiplier sigma, in thousandths.
        rate_ppm: the probability with which each record enters a step's batch, in millionths.
    """

    noise_milli: int
    rate_ppm: int
    steps: int


def delta_for(samples: int) -> float:
    """Return the delta that goes with a data set of so many records: a tenth of one record's share."""
    return 1 / (10 * samples)


def epsilon_milli(taken: Iterable[StepsTaken], delta: float) -> int:
    """Return the epsilon of all these steps together, in thousandths, rounded up; 0 for no steps at all."""
    steps: Counter[tuple[int, int]] = Counter()
    for some in taken:
        if min(some.noise_milli, some.rate_ppm) < 1 or some.rate_ppm > 1_000_000 or some.steps < 0:
            raise ValueError(f"{some} cannot be composed")
        steps[some.noise_milli, some.rate_ppm] += some.steps
    if not any(steps.values()):
        return 0

    epsilon = min(_epsilon(_log_moments(steps, tenths), tenths, delta) for tenths in _WHOLE)
    for tenths in reversed(_TENTHS):
        # moments grow with the order, so the whole order below says what this one costs at the least
        at_least = _log_moments(steps, tenths // 10 * 10) if tenths > 20 else 0.0
        if _epsilon(at_least, tenths, delta) >= epsilon:
            continue
        log_moment = _log_moments(steps, tenths)
        if math.isinf(log_moment):
            break  # the series of still lower orders converge more slowly yet
        epsilon = min(epsilon, _epsilon(log_moment, tenths, delta))
    # a hair more than was computed, so that rounding of floats never ends up below
    return min(math.ceil(epsilon * 1_000 + 1e-6), EPSILON_MILLI_CAP)


def noise_for(
    budget_milli: int, spent: Sequence[StepsTaken], rate_ppm: int, steps: int, delta: float
) -> int | None:
    """Return the least noise with which so many more steps stay within the budget, in thousandths; None: none does."""

    def is_enough(noise_milli: int) -> bool:
        return epsilon_milli([*spent, StepsTaken(noise_milli, rate_ppm, steps)], delta) <= budget_milli

    low, high = NOISE_MILLI_MIN - 1, NOISE_MILLI_MAX
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _log_moments(steps: Counter[tuple[int, int]], tenths: int) -> float:
    """Return the log of the composed moment, which adds up over steps."""
    return sum(count * _log_moment(*kind, tenths) for kind, count in steps.items())


def _epsilon(log_moment: float, tenths: int, delta: float) -> float:
    order = tenths / 10
    divergence = log_moment / (order - 1)
    slack = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(divergence + slack, 0.0)


@lru_cache(maxsize=8_192)
def _log_moment(noise_milli: int, rate_ppm: int, tenths: int) -> float:
    """Return the log of E[(P/Q)^order] of one step: (order - 1) times its Rényi divergence; infinity: not known."""
    sigma, rate, order = noise_milli / 1_000, rate_ppm / 1_000_000, tenths / 10
    if rate_ppm == 1_000_000:
        return order * (order - 1) / (2 * sigma**2)
    if tenths % 10 == 0:
        return _log_moment_whole(sigma, rate, tenths // 10)
    return _log_moment_fractional(sigma, rate, order)


def _log_moment_whole(sigma: float, rate: float, order: int) -> float:
    """Sum the binomial series of a whole order."""
    terms = [
        _log_binomial(order, k)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + (k * k - k) / (2 * sigma**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


def _log_moment_fractional(sigma: float, rate: float, order: float) -> float:
    """Sum the infinite series of both sides of the point where the mixture's two densities are equal.

    Beyond the order the binomial coefficients alternate in sign; all are added here, which can only say too much.
    """
    middle = sigma**2 * math.log(1 / rate - 1) + 0.5
    width = math.sqrt(2) * sigma
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    log_coefficient, log_total = 0.0, -math.inf
    for i in range(_TERMS_MAX):
        j = order - i
        left = i * log_rate + j * log_rest + (i * i - i) / (2 * sigma**2)
        right = j * log_rate + i * log_rest + (j * j - j) / (2 * sigma**2)
        left += log_coefficient + _log_half_erfc((i - middle) / width)
        right += log_coefficient + _log_half_erfc((middle - j) / width)
        log_total = _log_add(log_total, _log_add(left, right))
        if i > order and max(left, right) < log_total + _LOG_TERM_MIN:
            return log_total
        log_coefficient += math.log(abs(j) / (i + 1))  # order (order - 1) … (order - i) / (i + 1)!
    return math.inf


def _log_add(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_half_erfc(x: float) -> float:
    """Return log(erfc(x) / 2), by its asymptotic series where erfc itself is too small for a float."""
    if x < 25:
        return math.log(math.erfc(x) / 2)
    return -x * x - math.log(2 * x * math.sqrt(math.pi)) + math.log1p(-1 / (2 * x**2) + 3 / (4 * x**4))
