"""Collects what `core.live.ttft_agreement` compares: the engine's histogram and our own times, over the same time.

scrape ─────── scrape ── ... ── scrape        of the counted part of one stage
   └ start: drop our times so far  └ latest: note how many of ours have ended by then
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from calibrator.core.live.ttft_agreement import Disagreement, compare, warning
from calibrator.core.records.sample import Sample
from calibrator.core.records.server_load import Histogram, ServerLoad


@dataclass(slots=True)
class TtftAgreement:
    """One for each sweep."""

    _start: Histogram | None = None
    _latest: Histogram | None = None
    _ours_s: list[float] = field(default_factory=list)
    _ended_by_latest: int = 0
    _found: list[Disagreement] = field(default_factory=list)

    def scraped(self, load: ServerLoad) -> None:
        """In the counted part of a stage."""
        if load.ttft_s is None:
            return
        if self._start is None:
            self._start, self._ours_s = load.ttft_s, []
        self._latest, self._ended_by_latest = load.ttft_s, len(self._ours_s)

    def ended(self, samples: Iterable[Sample]) -> None:
        self._ours_s += [sample.ttft_s for sample in samples if sample.ttft_s is not None]

    def leave(self, level: int) -> None:
        """The stage has ended: compare, and start over."""
        if self._start is not None and self._latest is not None:
            delta = self._latest.since(self._start)
            self._found += compare(level, delta, self._ours_s[: self._ended_by_latest])
        self._start = self._latest = None
        self._ours_s = []

    @property
    def warnings(self) -> tuple[str, ...]:
        text = warning(self._found)
        return (text,) if text else ()
