"""The generator's own error during one stage, and whether it is material against the objectives.

| sign                                                              | spoils        | because                    |
|-------------------------------------------------------------------|---------------|----------------------------|
| violations that our own lateness may have made (`suspect`): two,  | an exceedance | lateness only ever adds    |
|   a quarter of all violations, and half the allowance of all bits |               | latency                    |
| two suspect violations while the busiest process used 90 % of a   | an exceedance | stamps queue behind work   |
|   core, half of the time                                          |               |                            |
| fewer in flight than 90 % of the users asked for                  | both          | another level was measured |
| a part of the generator died                                      | both          | requests are missing       |

Violations that cannot be ours are the backend's, however late we were: where they alone are gross overload, no doubt
about the others matters.

In flight is what the backend had, not what we thought: a request whose end we saw late by d of its residence R was not
there for that time. The mean delay of an event, if the loop was late by L in a fraction of its time, is the integral
of the waiting: sum L^2 / 2 over sum (probe interval + L). Where the backend refuses requests, it keeps the level down,
not we.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrator.core.records.history import Audit, RampCount
from calibrator.core.records.objective import Objective
from calibrator.core.search.verdict import ramp_has_failed
from calibrator.ports.load import Batch

DOUBTFUL_RATIO = 0.25  # of the violations; the test's ends are a factor 4 apart, so the rest decides as well
DOUBTFUL_LEAST = 2  # one violation never decides a level, so one doubt spoils none
CPU_ALLOWED_RATIO = 0.9  # of one core
HELD_RATIO = 0.9  # of the wanted concurrency
REFUSAL_RATIO = 0.05  # above this share of failures the backend, not the generator, keeps the level down
MIN_POLLS_TO_JUDGE_HOLD = 10


@dataclass(slots=True)
class GeneratorAudit:
    """Fed with every batch of one stage."""

    broken: str = ""
    _lags_s: list[float] = field(default_factory=list)
    _send_delays_s: list[float] = field(default_factory=list)
    _cpu_ratios: list[float] = field(default_factory=list)
    _in_flight: list[int] = field(default_factory=list)
    _lateness_s: float = 0.0  # time that events spent unseen: the integral of the lag
    _watched_s: float = 0.0
    _ended: int = 0
    _failed: int = 0
    _decided: Counter[int] = field(default_factory=Counter)  # bits, by objective
    _suspect: dict[tuple[int, int], bool] = field(default_factory=dict)  # violations (request, objective): last word

    def add(self, batch: Batch, *, counted: bool) -> None:
        self.broken = self.broken or batch.broken
        self._lags_s.extend(batch.loop_lag_s)
        self._lateness_s += sum(lag_s * lag_s for lag_s in batch.loop_lag_s) / 2.0
        self._watched_s += sum(batch.loop_lag_s) + batch.lag_probe_s * len(batch.loop_lag_s)
        self._cpu_ratios.append(batch.cpu_ratio)
        self._send_delays_s.extend(sample.send_delay_s for sample in batch.ended)
        self._ended += len(batch.ended)
        self._failed += sum(sample.failure is not None for sample in batch.ended)
        for bit in batch.decided:
            key = (bit.request_id, bit.objective)
            if bit.violated is not None and key not in self._suspect:
                self._decided[bit.objective] += 1
            if bit.violated:
                self._suspect[key] = bit.suspect
        if counted:
            self._in_flight.append(batch.in_flight)

    def audit(self, wanted: float, objectives: Sequence[Objective], residence_s: float) -> Audit:
        """`wanted`: users asked for; `residence_s`: median time that a request stayed; 0.0 where none ended."""
        lag_s, delay_s = _p99(self._lags_s), _p99(self._send_delays_s)
        cpu_ratio = float(np.median(self._cpu_ratios)) if self._cpu_ratios else 0.0
        held = self._held(residence_s)
        reasons = [f"generator broken: {self.broken}"] if self.broken else []
        reasons += self._reasons_against_violations(objectives, lag_s, cpu_ratio)
        refused = self._failed > REFUSAL_RATIO * max(1, self._ended)
        short = held < HELD_RATIO * wanted - 0.5
        if len(self._in_flight) >= MIN_POLLS_TO_JUDGE_HOLD and short and not refused:
            reasons.append(f"generator saturated: it held {held:.1f} of {wanted:.3g} requests in flight")
        return Audit(
            loop_lag_p99_s=lag_s,
            send_delay_p99_s=delay_s,
            cpu_ratio=cpu_ratio,
            wanted_concurrency=float(wanted),
            achieved_concurrency=held,
            reasons=tuple(reasons),
        )

    def _held(self, residence_s: float) -> float:
        """Mean number of requests that the backend had, as far as we can know."""
        if not self._in_flight:
            return 0.0
        delay_s = self._lateness_s / self._watched_s if self._watched_s > 0.0 else 0.0
        unseen = min(1.0, delay_s / residence_s) if residence_s > 0.0 else 0.0
        return float(np.mean(self._in_flight)) * (1.0 - unseen)

    def _reasons_against_violations(self, objectives: Sequence[Objective], lag_s: float, cpu_ratio: float) -> list[str]:
        reasons = []
        for index, objective in enumerate(objectives):
            violations = [suspect for (_, of), suspect in self._suspect.items() if of == index]
            suspect = sum(violations)
            certain = RampCount(self._decided[index], len(violations) - suspect)
            if suspect < DOUBTFUL_LEAST or ramp_has_failed(objective, certain):
                continue
            harmless = objective.allowance / 2.0 * self._decided[index]
            if suspect >= max(DOUBTFUL_RATIO * len(violations), harmless):
                reasons.append(
                    f"generator saturated: its own lateness may have made {suspect} of {len(violations)} violations "
                    f"of '{objective}' (P99 of its lag: {lag_s * 1e3:.0f} ms)"
                )
            if cpu_ratio > CPU_ALLOWED_RATIO:
                reasons.append(f"generator saturated: its busiest process used {cpu_ratio:.0%} of a core")
        return list(dict.fromkeys(reasons))


def _p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99)) if values else 0.0
