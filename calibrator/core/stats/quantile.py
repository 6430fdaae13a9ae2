"""Distribution-free quantiles and ratios, as far as a sample can support them.

Quantile. The q-quantile of n values is estimated by the order statistic of rank ceil(n q). The number of values below
the true quantile is Bin(n, q), so order statistics also bound it (David & Nagaraja, Order Statistics, section 7.1):

    low   X(r), r = smallest k with P(Bin(n, q) <= k) >= 2.5 %          r = 0: no lower bound
    high  X(s), s = 1 + smallest k with P(Bin(n, q) <= k) >= 97.5 %     s > n: no upper bound

Support rule: an estimate is given where at least one value is expected above the quantile, n (1 - q) >= 1 (100 values
for a P99), and the lower bound exists; otherwise None. With fewer, a "P99" would merely be the maximum.
A failed request is an infinite latency; a quantile that falls among failures is None, never a number.

Ratio. Clopper-Pearson at effective counts: correlated bits carry the information of n / d independent ones (d is the
design effect), so the interval is taken at (k / d, n / d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is used: `calibrator --help` reads defaults, and needs no numerics
    import numpy as np

TAIL = 0.025  # each side of a 95 % interval


@dataclass(frozen=True, slots=True)
class QuantileEstimate:
    """A sample quantile with its distribution-free 95 % interval; `high_s` None: n cannot bound it from above."""

    value_s: float
    low_s: float
    high_s: float | None


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Displayed quantiles of one metric; a quantile that n cannot support is None."""

    n: int
    p50: QuantileEstimate | None
    p90: QuantileEstimate | None
    p99: QuantileEstimate | None


def quantile_estimate(values: Sequence[float], quantile: float) -> QuantileEstimate | None:
    """Estimate and 95 % interval in the unit of `values`, in any order; None where n cannot support it."""
    return _estimate(_sorted(values), quantile)


def summarise(values: Sequence[float]) -> LatencySummary:
    """The displayed quantiles of one metric."""
    ordered = _sorted(values)
    return LatencySummary(
        n=int(ordered.size), p50=_estimate(ordered, 0.5), p90=_estimate(ordered, 0.9), p99=_estimate(ordered, 0.99)
    )


def ratio_interval(exceedances: int, n: int, effective_n: float) -> tuple[float, float]:
    """95 % interval of the true exceedance ratio; (0, 1) without samples."""
    from scipy.special import betaincinv

    if n <= 0 or effective_n <= 0.0:
        return 0.0, 1.0
    seen = exceedances * effective_n / n
    low = float(betaincinv(seen, effective_n - seen + 1.0, TAIL)) if exceedances > 0 else 0.0
    high = float(betaincinv(seen + 1.0, effective_n - seen, 1.0 - TAIL)) if exceedances < n else 1.0
    return low, high


def _sorted(values: Sequence[float]) -> np.ndarray:
    import numpy as np

    return np.sort(np.asarray(values, dtype=float))


def _estimate(ordered: np.ndarray, quantile: float) -> QuantileEstimate | None:
    import numpy as np
    from scipy.special import bdtr

    n = int(ordered.size)
    if n * (1.0 - quantile) < 1.0 - 1e-9:
        return None
    below = bdtr(np.arange(n + 1), n, quantile)
    low_rank = int(np.searchsorted(below, TAIL))
    high_rank = int(np.searchsorted(below, 1.0 - TAIL)) + 1
    value = float(ordered[math.ceil(n * quantile - 1e-9) - 1])
    if low_rank < 1 or not math.isfinite(value):
        return None
    high = float(ordered[high_rank - 1]) if high_rank <= n else math.inf
    return QuantileEstimate(value, float(ordered[low_rank - 1]), high if math.isfinite(high) else None)
