"""How values of a sweep are written, wherever it is shown.

Three rules hold for every value of a document:

- what is not known is null, never 0; so is a quantile that n cannot support;
- a number is finite and has at most six significant digits: more are noise, and NaN is not JSON;
- a time is RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

LATENCIES = ("ttft", "ttfc", "itl", "tpot", "e2e")  # attributes of LevelReport, and names of Metric
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))  # attributes of LatencySummary


def number(value: float | None) -> float | None:
    """Six significant digits; None for what is not a finite number."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def timestamp(unix_s: float | None) -> str | None:
    """`2027-01-15T08:00:00.000Z`."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
