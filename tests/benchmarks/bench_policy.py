"""The full table of the search policy: 3,000 fresh backends cold, 500 x 6 recalibrations, and both stresses.

python tests/benchmarks/bench_policy.py [seed] [workers]

About five minutes on two cores. The short form is tests/simulation/test_policy.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from calibrator.cli.options import SimulateOptions
from calibrator.cli.simulate import simulate

BACKENDS, RECALIBRATED, STRESSED = 3000, 500, 1000


def main(seed: int, workers: int) -> None:
    cold = SimulateOptions(backends=BACKENDS, seed=seed, workers=workers)
    simulate(cold)
    simulate(replace(cold, families="all"))
    simulate(replace(cold, backends=RECALIBRATED, recalibrations=6))
    for stress in ("correlation", "falling"):
        simulate(replace(cold, backends=STRESSED, stress=stress))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, int(sys.argv[2]) if len(sys.argv) > 2 else 2)
