"""Bootstrap intervals and rank correlation, in plain numpy."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its percentile bootstrap interval, NaN where it has none."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of `values` with its 95 % interval.

    Without `groups` single values are resampled. With them whole groups are (patients), each with all its values:
    the honest interval where values of one group resemble each other. NaN in an empty input; one value or group alone
    has no interval, since it says nothing of others.
    """
    data = np.asarray(values, np.float64)
    if not data.size:
        return Estimate(float("nan"), float("nan"), float("nan"))
    names = list(range(data.size)) if groups is None else list(groups)
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(index) < 2:
        return Estimate(float(data.mean()), float("nan"), float("nan"))
    unit = np.array([index[name] for name in names])
    sums, counts = np.bincount(unit, data), np.bincount(unit).astype(np.float64)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(index), (RESAMPLES, len(index)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(float(data.mean()), float(low), float(high))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where one side is constant."""
    x, y = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    if x.size < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
