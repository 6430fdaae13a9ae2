"""The whole organic-traffic table: every engine, shape and lag, 15 sweeps each; some twenty minutes of one core.

    python tests/benchmarks/bench_organic_traffic.py [requests]

Conditions: virtual time, so the figures do not depend on the machine; the default abort limits, and the default budgets
unless `requests` is given. Exit code 1 if the median of a row is more than 10 % from the truth.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.organic_cases import DEFAULT_BOUNDS, ENGINES, MOVING, STEADY, row, truth_of

RUNS = 15
TOLERANCE_RATIO = 0.10


def main() -> int:
    bounds = replace(DEFAULT_BOUNDS, requests=int(sys.argv[1])) if len(sys.argv) > 1 else DEFAULT_BOUNDS
    worst = 0.0
    for engine in ENGINES:
        truth = truth_of(engine)
        for traffic in (*STEADY, *MOVING):
            for lag_s in (0.0, 2.0):
                blind = 3 if lag_s == 0.0 else 0
                result = row(engine, traffic, lag_s, truth, runs=RUNS, ignoring=blind, bounds=bounds)
                worst = max(worst, abs(result.error_ratio))
                print(result, flush=True)
    print(f"worst median: {worst:.0%} from the truth")
    return int(worst > TOLERANCE_RATIO)


if __name__ == "__main__":
    raise SystemExit(main())
