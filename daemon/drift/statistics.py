"""Two statistics: an interval for rates, and an index for the shape of scores.

Rates are compared by Newcombe's interval of a difference, which is made of two Wilson intervals (R.
G. Newcombe, Statistics in Medicine 17, 1998, 873-890, method 10). It is valid for the small counts
of one modality's week, where the usual (Wald) interval is not.

Histograms are compared by the population stability index, as credit scoring does. Without drift,
the index of two samples of n and N images in B bins is about (1/n + 1/N) times a chi-squared
variable with B - 1 degrees of freedom (B. Yurdakul, Statistical Properties of Population Stability
Index, Western Michigan University, 2018). So the limit is the customary 0.25, or the 99.9 %
quantile of that variable where small samples make it more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Two-sided 95 % and 99.9 % of the normal distribution.
Z_95 = 1.959964
Z_999 = 3.290527

_CUSTOMARY_PSI = 0.25
# Added to each bin, so that an empty bin does not give infinity.
_HALF = 0.5

Interval = tuple[float, float]


def wilson(hits: int, number: int, z: float = Z_95) -> Interval:
    """Wilson's interval of a proportion; (0, 1) without observations."""
    if number == 0:
        return 0.0, 1.0
    share = hits / number
    scale = 1 + z * z / number
    middle = (share + z * z / (2 * number)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(hits: int, number: int, base_hits: int, base: int, z: float = Z_999) -> Interval:
    """Newcombe's interval of `hits / number - base_hits / base`; (-1, 1) if either is empty."""
    if number == 0 or base == 0:
        return -1.0, 1.0
    share, base_share = hits / number, base_hits / base
    low, high = wilson(hits, number, z)
    base_low, base_high = wilson(base_hits, base, z)

    gap = share - base_share
    return (
        gap - math.hypot(share - low, base_high - base_share),
        gap + math.hypot(high - share, base_share - base_low),
    )


def psi(counts: Sequence[int], base: Sequence[int]) -> float:
    """The population stability index of two histograms with the same bins; 0 if either is empty."""
    if not sum(counts) or not sum(base):
        return 0.0
    shares, base_shares = _shares(counts), _shares(base)
    return sum(
        (share - base_share) * math.log(share / base_share)
        for share, base_share in zip(shares, base_shares, strict=True)
    )


def psi_limit(counts: Sequence[int], base: Sequence[int]) -> float:
    """The index above which two such histograms differ by more than chance."""
    number, base_number = sum(counts), sum(base)
    if not number or not base_number:
        return math.inf
    chance = (1 / number + 1 / base_number) * _chi_squared_999(len(counts) - 1)
    return max(_CUSTOMARY_PSI, chance)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _HALF * len(counts)
    return [(count + _HALF) / total for count in counts]


def _chi_squared_999(degrees: int) -> float:
    """The 99.9 % quantile of chi-squared, by Wilson and Hilferty (1 % off at most)."""
    # One-sided, unlike Z_999.
    z = 3.090232
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + z * math.sqrt(part)) ** 3)
