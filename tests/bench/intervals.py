# SPDX-License-Identifier: BSD-3-Clause
"""Medians, quantiles and ratios of pairs, each with a 95 % interval; and whether that interval is inside a budget.

No assumption about the shape of the times: quantiles have intervals from order statistics. Ratios are geometric means of
pairs measured one after the other, with Student's t on their logarithms, so that what slows the machine down for a
minute slows both sides of a pair.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Two-sided 95 % quantiles of Student's t, by degrees of freedom; between two of them the one of fewer is taken.
_T_95 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    12: 2.179, 15: 2.131, 20: 2.086, 25: 2.060, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980,
}  # fmt: skip

_Z_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and the interval that holds the true one in 95 of 100 runs."""

    value: float
    low: float
    high: float
    count: int  #: samples, or pairs


def t_95(freedom: int) -> float:
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom, expected at least 1")
    return _T_95[max(known for known in _T_95 if known <= freedom)]


def quantile(samples: Sequence[float], share: float) -> Estimate:
    """The quantile at ``share`` (0.5: the median), between the order statistics that the binomial law names.

    With too few samples beyond it (p99 of 200), the interval ends at the largest: no bound, the most that was seen.
    """
    if not samples or not 0 < share < 1:
        raise ValueError("expected samples, and a share between 0 and 1")
    ordered = sorted(samples)
    count = len(ordered)
    spread = _Z_95 * math.sqrt(count * share * (1 - share))
    low = max(math.floor(count * share - spread) - 1, 0)
    high = min(math.ceil(count * share + spread), count - 1)
    if share == 0.5:
        value = statistics.median(ordered)
    else:
        value = ordered[min(math.ceil(count * share) - 1, count - 1)]
    return Estimate(value=value, low=ordered[low], high=ordered[high], count=count)


def mean(samples: Sequence[float]) -> Estimate:
    """Of independent samples that are themselves sums or rates."""
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples, expected at least 2")
    value = statistics.fmean(samples)
    half = t_95(len(samples) - 1) * statistics.stdev(samples) / math.sqrt(len(samples))
    return Estimate(value=value, low=value - half, high=value + half, count=len(samples))


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """The geometric mean of first / second; every number must be positive."""
    logs = mean([math.log(first / second) for first, second in pairs])
    return Estimate(
        value=math.exp(logs.value),
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        count=logs.count,
    )


def within(estimate: Estimate, *, most: float | None = None, least: float | None = None) -> str:
    """ "yes": all of the interval is inside the budget; "no": none of it; "open": the budget is inside the interval."""
    if (most is None) == (least is None):
        raise ValueError("expected one of most and least")
    if most is not None:
        inside, outside = estimate.high <= most, estimate.low > most
    else:
        assert least is not None
        inside, outside = estimate.low >= least, estimate.high < least
    return "yes" if inside else "no" if outside else "open"
