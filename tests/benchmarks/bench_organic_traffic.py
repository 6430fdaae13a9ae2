"""The whole organic-traffic table: every engine, shape and lag, nine sweeps each; some ten minutes of one core.

    python tests/benchmarks/bench_organic_traffic.py

Conditions: virtual time, so the figures do not depend on the machine; sweeps with 4000 + 4 N requests
(`support.organic_cases`). Exit code 1 if the median of a row is more than 10 % from the truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.organic_cases import ENGINES, MOVING, STEADY, row, truth_of

RUNS = 9
TOLERANCE_RATIO = 0.10


def main() -> int:
    worst = 0.0
    for engine in ENGINES:
        truth = truth_of(engine)
        for traffic in (*STEADY, *MOVING):
            for lag_s in (0.0, 2.0):
                result = row(engine, traffic, lag_s, truth, runs=RUNS, ignoring=3 if lag_s == 0.0 else 0)
                worst = max(worst, abs(result.error_ratio))
                print(result, flush=True)
    print(f"worst median: {worst:.0%} from the truth")
    return int(worst > TOLERANCE_RATIO)


if __name__ == "__main__":
    raise SystemExit(main())
