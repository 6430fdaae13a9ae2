"""How soon the guard finds a doubled P99, and how often it cries wolf.

Run: python tests/benchmarks/bench_guard.py [weeks of false-alarm traffic a row]

Delay: the P99 stood at the limit's good side, then doubles from the limit. False alarms: weeks of traffic at the upper
end of the zone, twice the allowance above the limit. Bound: the bucket bound in use, in units of the limit. Cluster:
mean number of exceedances of one stall.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.guard_simulation import delays_s, false_alarms

SHAPES = ("exponential", "0.3", "0.5")
BOUNDS = (1.0, 1.25, 1.67, 2.27)
RATES = (2.0, 50.0)
CLUMPS = (1.0, 4.0, 16.0)


def main() -> None:
    copies = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print("Delay until a doubled P99 is found, seconds (copies: 4000)\n")
    print("| tail | bound / limit | requests/s | median | P90 | within 180 s |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        for bound in BOUNDS:
            for rate in RATES:
                found = delays_s(shape, bound, rate, copies=4000, seed=1)
                median, p90 = np.quantile(found, (0.5, 0.9), method="inverted_cdf")
                print(f"| {shape} | {bound} | {rate:g} | {median:.0f} | {p90:.0f} | {(found <= 180.0).mean():.0%} |")
    print(f"\nFalse alarms at the upper end of the zone, {copies} weeks each\n")
    print("| tail | bound / limit | cluster | requests/s | alarms | weeks per alarm |\n|---|---|---|---|---|---|")
    for shape in ("exponential", "0.5"):
        for bound in BOUNDS[:3]:
            for cluster in CLUMPS if shape == "exponential" else CLUMPS[:1]:
                for rate in RATES:
                    began_s = time.monotonic()
                    alarms = false_alarms(shape, bound, rate, weeks=1.0, copies=copies, seed=2, cluster=cluster)
                    weeks = f"{copies / alarms:.1f}" if alarms else f"above {copies / 3:.0f}"
                    took_s = time.monotonic() - began_s
                    print(f"| {shape} | {bound} | {cluster:g} | {rate:g} | {alarms} | {weeks} |", flush=True)
                    print(f"{took_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
