"""Means with their uncertainty: percentile bootstrap over independent groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
AT_ONCE = 1 << 22  # draws held in memory


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % bootstrap interval, and how many values it is of."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{plain(self.value)} [{plain(self.low)}, {plain(self.high)}]"


def plain(value: float) -> str:
    """A figure with three decimals, or in powers of ten where these would all be 0.

    Example:
        >>> plain(0.25), plain(0.00012), plain(0.0)
        ('0.250', '1.2e-04', '0.000')
    """
    return f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def estimate(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, weights: Sequence[float] | None = None, seed: int = 0
) -> Estimate:  # fmt: skip
    """The weighted mean of some values, with the interval that resampling whole groups of them gives.

    Probes of one edit succeed or fail together, so they are drawn together; an interval from single probes would be too
    narrow.

    Args:
        values: at least one.
        groups: for each value what it belongs to; each is its own group when None.
        weights: of each value; 1 when None.
        seed: of the resampling.

    Returns:
        The mean and the 2.5th and 97.5th percentile of the means of 2000 resamples.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> print(estimate([1, 1, 1, 0]))
        0.750 [0.250, 1.000]
        >>> print(estimate([1, 1, 1, 0], groups=["a", "a", "a", "a"]))
        0.750 [0.750, 0.750]
    """
    if not values:
        raise ValueError("estimate() of no values")
    names = list(range(len(values))) if groups is None else list(groups)
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group = np.array([index[name] for name in names])
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    sums = np.bincount(group, np.asarray(values, float) * weight)
    sizes = np.bincount(group, weight)
    rng, n = np.random.default_rng(seed), len(sums)
    means: list[float] = []
    while len(means) < RESAMPLES:
        drawn = rng.integers(n, size=(min(RESAMPLES - len(means), max(1, AT_ONCE // n)), n))
        means += (sums[drawn].sum(1) / sizes[drawn].sum(1)).tolist()
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / sizes.sum()), float(low), float(high), len(values))
