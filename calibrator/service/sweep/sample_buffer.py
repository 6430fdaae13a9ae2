"""Collects the ended requests of a sweep for export, up to a limit (core.records.sample_log)."""

from __future__ import annotations

from collections.abc import Sequence

from calibrator.core.records.history import History
from calibrator.core.records.objective import Objective
from calibrator.core.records.sample import Sample
from calibrator.core.records.sample_log import MOST_SAMPLES, pack
from calibrator.ports.clock import Clock


class SampleBuffer:
    def __init__(self, clock: Clock) -> None:
        self._clock_offset_s = clock.wall() - clock.monotonic()
        self._samples: list[Sample] = []
        self._left_out = 0

    def add(self, ended: Sequence[Sample]) -> None:
        room = MOST_SAMPLES - len(self._samples)
        self._samples.extend(ended[:room])
        self._left_out += max(0, len(ended) - room)

    def packed(self, history: History, objectives: Sequence[Objective]) -> bytes:
        """Empty without requests."""
        levels = {stage.number: stage.level for stage in history.stages}
        return pack(self._samples, levels, objectives, self._clock_offset_s, self._left_out) if self._samples else b""
