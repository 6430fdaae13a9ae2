"""Hours of a service's life in minutes: whatever its engines do, nothing grows and nobody who polls sees an error.

SOAK_S says for how long; `make soak` takes 15 minutes. Flat means: the medians of the first and the last third after
the warm-up differ by no more than the tolerances below.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.soak_site import POLLERS, Reading, soak_site

SOAK_S = float(os.environ.get("SOAK_S", "60"))
EVERY_S = 3.0
WARM_UP_SHARE = 0.3
LONG_S, SWEEPS_IN_LONG = 900.0, 200
SHORT_SHARE = 0.3  # of that pace, in the short form: its machine may be shared
MEMORY_RATIO = 0.08  # the allocator's arenas fill up for a while
DESCRIPTORS = 6  # sweeps come and go with three each
TASKS = POLLERS // 2  # a long poll has one or two, and how many wait just now is chance

pytestmark = pytest.mark.timeout(SOAK_S + 120)


def growth(readings: Sequence[Reading], value: Callable[[Reading], float]) -> tuple[float, float]:
    """Medians of the first and the last third after the warm-up."""
    warm = readings[int(WARM_UP_SHARE * len(readings)) :]
    third = len(warm) // 3
    return statistics.median(map(value, warm[:third])), statistics.median(map(value, warm[-third:]))


def test_nothing_grows_and_nobody_sees_an_error(tmp_path: Path) -> None:
    with soak_site(tmp_path, EVERY_S) as site:
        asyncio.run(site.run(SOAK_S, seed=int(os.environ.get("SOAK_SEED", "1"))))
        memory = growth(site.readings, lambda one: one.resident_bytes)
        descriptors = growth(site.readings, lambda one: one.descriptors)
        tasks = growth(site.readings, lambda one: one.tasks)
        sweeps = site.readings[-1].sweeps
        print(
            f"\n{SOAK_S:g} s: {sweeps} sweeps, {site.polls} polls by {POLLERS}, faults {site.faults}; "
            f"memory {memory[0] / 1e6:.1f} -> {memory[1] / 1e6:.1f} MB, "
            f"descriptors {descriptors[0]:g} -> {descriptors[1]:g}, tasks {tasks[0]:g} -> {tasks[1]:g}"
        )
        assert site.errors == []
        assert sweeps >= SWEEPS_IN_LONG * SOAK_S / LONG_S * (1.0 if SOAK_S >= LONG_S else SHORT_SHARE)
        assert sum(site.faults.values()) >= SOAK_S / 10.0
        assert memory[1] < memory[0] * (1.0 + MEMORY_RATIO)
        assert descriptors[1] <= descriptors[0] + DESCRIPTORS
        assert tasks[1] <= tasks[0] + TASKS
        code, took_s = site.service.terminate()
        assert (code, took_s < 5.0) == (0, True)
