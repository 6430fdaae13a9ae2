"""The cautious way up: from level 2, at most doubling, with a cheap screen at each step (`core.search.verdict`).

Each step is chosen so that the predicted tail reaches 90 % of the limit (a power of N through the last two levels that
passed): at most x 1.5 after a violation, and x 1.15-1.4 while the engine shows queueing or KV cache pressure. The ramp
ends at the first failed screen; if no level has passed before it, levels are halved until one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrator.core.records.history import Bounds, History, Stage
from calibrator.core.search.state import scaled
from calibrator.core.search.steps import Measure, Test
from calibrator.core.search.verdict import judged, screen_passes_by_point_estimate, screen_result

START_LEVEL = 2
GROW_MOST = 2.0
GROW_LEAST = 1.25
GROW_AFTER_VIOLATION = 1.5
GROW_UNDER_PRESSURE = (1.15, 1.4)
AIM_RATIO = 0.9  # of the limit, for the predicted tail of the next step
SCREEN_SAMPLES = 96


def ramp_step(history: History, bounds: Bounds) -> Measure | None:
    """The next step; None once a screen has failed (and a lower one passed) or the highest level has passed."""
    level = min(max(START_LEVEL, bounds.min_level), bounds.max_level)
    passed: list[Stage] = []
    has_failed = False
    for stage in judged(history):
        good = screen_result(history.objectives, stage)
        if good is None:
            good = screen_passes_by_point_estimate(history.objectives, stage)
        if good:
            passed.append(stage)
        has_failed = has_failed or not good
        if has_failed and (passed or stage.level <= bounds.min_level):
            return None
        if stage.level >= bounds.max_level and good:
            return None
        level = _grown(history, passed, bounds) if good else max(bounds.min_level, stage.level // 2)
    reason = f"ramp: {passed[-1].level} is not overloaded" if passed else f"ramp: start at {level}"
    return Measure(level, Test.SCREEN, scaled(history, SCREEN_SAMPLES), reason)


def _grown(history: History, passed: Sequence[Stage], bounds: Bounds) -> int:
    stage = passed[-1]
    factor = min(_aimed(passed, index) for index in range(len(history.objectives)))
    if stage.server.shows_pressure:
        factor = min(max(factor, GROW_UNDER_PRESSURE[0]), GROW_UNDER_PRESSURE[1])
    else:
        factor = max(factor, GROW_LEAST)
    if any(part.exceedances for part in stage.evidence):
        factor = min(factor, GROW_AFTER_VIOLATION)
    return min(bounds.max_level, max(stage.level + 1, math.floor(stage.level * factor + 1e-9), bounds.min_level))


def _aimed(passed: Sequence[Stage], index: int) -> float:
    """Growth at which the tail of this objective is expected to reach `AIM_RATIO` of its limit, at most `GROW_MOST`."""
    points = [(stage.level, stage.tail_ratio[index]) for stage in passed if index < len(stage.tail_ratio)]
    known = [(level, tail) for level, tail in points if tail is not None and tail > 0.0]
    if not known or known[-1][0] != passed[-1].level:
        return GROW_MOST
    level, tail = known[-1]
    power = 0.8  # the seed curve: P99 grows with about N^0.8
    if len(known) >= 2 and known[-2][0] < level:
        power = min(2.0, max(0.5, math.log(tail / known[-2][1]) / math.log(level / known[-2][0])))
    return min(GROW_MOST, float((AIM_RATIO / tail) ** (1.0 / power)))
