"""The numbers behind plots of predictions: curves of classification (torchmetrics), calibration and survival.

torchmetrics has no calibration by range with intervals, no Kaplan-Meier estimate and no stratified log-rank test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from slideio_pipe.errors import require

Array = NDArray[np.float64]
_TORCHMETRICS = "torchmetrics.functional.classification"


def roc_curve(truth: NDArray[np.bool_], chance: Array) -> tuple[Array, Array]:
    """Return false and true positive rates, from (0, 0) to (1, 1), a step for each different chance.

    >>> [a.tolist() for a in roc_curve(np.array([True, False]), np.array([0.8, 0.3]))]
    [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    false, true, _ = require(_TORCHMETRICS, "train").binary_roc(torch.as_tensor(chance), torch.as_tensor(truth).long())
    return false.double().numpy(), true.double().numpy()


def precision_recall_curve(truth: NDArray[np.bool_], chance: Array) -> tuple[Array, Array]:
    """Return recall and precision, from recall 0 (precision 1) upwards, a step for each different chance."""
    curve = require(_TORCHMETRICS, "train").binary_precision_recall_curve
    precision, recall, _ = curve(torch.as_tensor(chance), torch.as_tensor(truth).long())
    return recall.double().flip(0).numpy(), precision.double().flip(0).numpy()


@dataclass(frozen=True, slots=True)
class Calibration:
    """Observed frequencies in ranges of the predicted probability."""

    predicted: Array  # mean probability of each range
    observed: Array  # fraction of its slides with the class
    low: Array  # Wilson's interval of 95 %
    high: Array
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[np.bool_], chance: Array, bins: int = 10) -> Calibration:
        """Return the calibration in ranges of equal width, without empty ones."""
        number = np.minimum((chance * bins).astype(np.int64), bins - 1)
        there = np.unique(number)
        counts = np.array([int((number == k).sum()) for k in there])
        observed = np.array([float(truth[number == k].mean()) for k in there])
        # Wilson (1927): the interval of a few slides stays within 0 and 1.
        z = 1.959964
        middle = (observed + z**2 / (2 * counts)) / (1 + z**2 / counts)
        reach = z / (1 + z**2 / counts) * np.sqrt(observed * (1 - observed) / counts + z**2 / (4 * counts**2))
        predicted = np.array([float(chance[number == k].mean()) for k in there])
        return cls(predicted, observed, middle - reach, middle + reach, counts)

    @property
    def error(self) -> float:
        """Return the expected calibration error: mean distance, weighted by slides."""
        return float((np.abs(self.predicted - self.observed) * self.counts).sum() / self.counts.sum())


def kaplan_meier(time: Array, event: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return times, from 0, and the part that survives beyond each (Kaplan and Meier 1958).

    >>> [a.tolist() for a in kaplan_meier(np.array([1.0, 2.0]), np.array([True, False]))]
    [[0.0, 1.0], [1.0, 0.5]]
    """
    times = np.unique(time[event])
    at_risk = np.array([(time >= t).sum() for t in times], np.float64)
    died = np.array([((time == t) & event).sum() for t in times], np.float64)
    return np.concatenate([[0.0], times]), np.concatenate([[1.0], np.cumprod(1 - died / at_risk)])


def upper_half(values: Array, strata: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which values are above the median of their stratum.

    >>> upper_half(np.array([1.0, 2.0, 11.0, 12.0]), np.array([0, 0, 1, 1])).tolist()
    [False, True, False, True]
    """
    found = np.zeros(len(values), np.bool_)
    for stratum in np.unique(strata):
        rows = strata == stratum
        found[rows] = values[rows] > np.median(values[rows])
    return found


def log_rank(
    time: Array, event: NDArray[np.bool_], group: NDArray[np.bool_], strata: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Return the statistic of the log-rank test of two groups (Mantel 1966), and its p; NaN where it has none.

    With ``strata``, (n,), slides are compared within each (the stratified test).
    """
    excess, variance = 0.0, 0.0
    for stratum in [None] if strata is None else np.unique(strata):
        rows = slice(None) if stratum is None else strata == stratum
        more, spread = _log_rank_terms(time[rows], event[rows], group[rows])
        excess, variance = excess + more, variance + spread
    if not variance > 0:
        return math.nan, math.nan
    statistic = excess**2 / variance
    return statistic, math.erfc(math.sqrt(statistic / 2))  # of chi² with one degree of freedom


def _log_rank_terms(time: Array, event: NDArray[np.bool_], group: NDArray[np.bool_]) -> tuple[float, float]:
    """Return events of the group beyond those expected, and the variance of that number."""
    excess, variance = 0.0, 0.0
    for t in np.unique(time[event]):
        here, dies = time >= t, (time == t) & event
        n, n1, d, d1 = (float(x.sum()) for x in (here, here & group, dies, dies & group))
        excess += d1 - d * n1 / n
        if n > 1:
            variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1)
    return excess, variance
