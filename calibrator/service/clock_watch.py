"""Notices that the wall clock was set, so that what waits for a time of day is moved with it.

    wall - monotonic  is steady but for slewing (at most 500 ppm, NTP) and for a step: somebody set the clock, a leap
                      second, a machine that slept

A sweep that is due in an hour stays due in an hour: a step forward must not start it, a step back must not put it off.
Windows are hours of the day as the clock shows them now; they are checked again when the sweep is due.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibrator.ports.clock import Clock

STEP_S = 2.0  # between two calls; smaller ones change nothing that matters here


@dataclass(slots=True)
class ClockWatch:
    """Asked at each tick."""

    clock: Clock
    _offset_s: float | None = None

    def stepped_s(self) -> float:
        """By how much the wall clock was set since the last call; 0.0: it was not."""
        offset_s = self.clock.wall() - self.clock.monotonic()
        before_s, self._offset_s = self._offset_s, offset_s
        step_s = 0.0 if before_s is None else offset_s - before_s
        return step_s if abs(step_s) >= STEP_S else 0.0
