"""Objectives: what the SLA promises, and one violation bit per request and objective.

An objective is `metric quantile <= limit`, e.g. `ttft p99 <= 500ms`, optionally only for prompts up to a length:
`ttft p99 <= 400ms for prompts <= 1024 tokens`. "P99 <= limit" is the statement "at most 1 % of requests exceed the
limit", so all a request contributes is one bit. For `itl` the bit is: the request's own q-quantile of gaps exceeds the
limit.

When a bit is decided (DESIGN section 2: dropping what has not finished would favour the fast requests):

| metric | violation | pass |
|---|---|---|
| ttft | limit passed without that token; failed | at that token, if in time |
| ttfc | limit passed without any token; content that came late; failed | at the first content, if in time |
| e2e | limit passed and not ended; failed | at the end, if in time |
| itl, tpot | at the end, if above the limit; failed | at the end |

While an answer reasons nobody knows whether it will come to any content, so `ttfc` waits for that, or for its end: an
answer that ends in its reasoning says nothing, fast or slow, because the content that it would have had comes later.

A failed request violates every objective (latency = infinity). A cancelled one counts only where its bit was decided
already; elsewhere it says nothing (`None` for ever). Nor does a completed one that does not show the metric: what was
not measured was not met (`records.unmeasured`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from calibrator.core.records.sample import Flight, Sample
from calibrator.errors import ConfigurationError


class Metric(StrEnum):
    """Latency metrics of one request (DESIGN section 2)."""

    TTFT = "ttft"  # first generated token of any kind
    TTFC = "ttfc"  # first content token (not reasoning, not tool call)
    ITL = "itl"  # gaps between token events
    TPOT = "tpot"  # (last - first token) / (completion tokens - 1)
    E2E = "e2e"  # request start to end


@dataclass(frozen=True, slots=True)
class Objective:
    """One promise. `allowance` = 1 - quantile is the share of requests that may exceed `limit_s`."""

    metric: Metric
    quantile: float
    limit_s: float
    max_prompt_tokens: int | None = None  # None: every request counts

    @property
    def allowance(self) -> float:
        return 1.0 - self.quantile

    def applies_to(self, prompt_tokens: int) -> bool:
        return self.max_prompt_tokens is None or prompt_tokens <= self.max_prompt_tokens

    def __str__(self) -> str:
        scope = "" if self.max_prompt_tokens is None else f" for prompts <= {self.max_prompt_tokens} tokens"
        return f"{self.metric} p{_percent(self.quantile)} <= {format_duration(self.limit_s)}{scope}"


_OBJECTIVE = re.compile(
    r"^\s*(?P<metric>[a-z0-9]+)\s+p(?P<percent>\d{1,2}(?:\.\d+)?)\s*<=?\s*(?P<limit>[\d.]+)\s*(?P<unit>us|ms|s|m|h|d)?"
    r"(?:\s+for\s+prompts\s*<=?\s*(?P<tokens>\d+)(?:\s*tokens?)?)?\s*$",
    re.IGNORECASE,
)
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EXAMPLE = "Write it like 'ttft p99 <= 500ms', with one of ttft, ttfc, itl, tpot, e2e and a quantile p50 to p99.99."


def parse_objective(text: str) -> Objective:
    """`'ttft p99 <= 500ms'` -> Objective. Raises ConfigurationError with an example of the right form."""
    match = _OBJECTIVE.match(text)
    if match is None:
        raise ConfigurationError(f"'{text}' is not an objective.", _EXAMPLE)
    try:
        metric = Metric(match["metric"].lower())
    except ValueError:
        raise ConfigurationError(f"'{match['metric']}' in '{text}' is not a latency metric.", _EXAMPLE) from None
    if match["unit"] is None:
        raise ConfigurationError(f"The limit in '{text}' has no unit.", "Write 500ms or 0.5s.")
    try:
        limit_s = float(match["limit"]) * _UNIT_S[match["unit"].lower()]
    except ValueError:
        raise ConfigurationError(f"'{match['limit']}' in '{text}' is not a number.", _EXAMPLE) from None
    quantile = round(float(match["percent"]) / 100.0, 8)
    if not 0.5 <= quantile <= 0.9999:
        raise ConfigurationError(f"The quantile in '{text}' is outside p50..p99.99.", _EXAMPLE)
    if limit_s <= 0.0:
        raise ConfigurationError(f"The limit in '{text}' must be above zero.", _EXAMPLE)
    tokens = match["tokens"]
    return Objective(metric, quantile, limit_s, None if tokens is None else int(tokens))


def parse_duration_s(text: str) -> float:
    """`'500ms'`, `'6h'`, `'1h30m'`, `'90s'` -> seconds. Raises ConfigurationError."""
    parts = re.findall(r"([\d.]+)\s*(us|ms|s|m|h|d)", text.strip().lower())
    if not parts or re.sub(r"[\d.]+\s*(us|ms|s|m|h|d)\s*", "", text.strip().lower()):
        raise ConfigurationError(f"'{text}' is not a duration.", "Write it like 500ms, 90s, 20m, 6h or 1h30m.")
    try:
        return float(sum(float(number) * _UNIT_S[unit] for number, unit in parts))
    except ValueError:
        raise ConfigurationError(f"'{text}' is not a duration.", "Write it like 500ms, 90s, 20m, 6h.") from None


def format_duration(seconds: float) -> str:
    """Shortest exact spelling in one unit: 0.5 -> '500ms', 21600 -> '6h'. Inverse of `parse_duration_s`."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNIT_S[unit] and abs(seconds / _UNIT_S[unit] - round(seconds / _UNIT_S[unit])) < 1e-9:
            return f"{round(seconds / _UNIT_S[unit])}{unit}"
    return f"{seconds:.10g}s" if seconds >= 1.0 else f"{seconds * 1e3:.10g}ms"


def _percent(quantile: float) -> str:
    return f"{quantile * 100.0:.6g}"


def decide_live(objective: Objective, flight: Flight, now_s: float) -> bool | None:
    """Violation bit of a request still in flight at `now_s`: True violated, False passed, None undecided."""
    if objective.metric is Metric.TTFT:
        return _against(objective.limit_s, flight.started_s, flight.first_token_s, now_s)
    if objective.metric is Metric.TTFC:
        stamps = (flight.first_content_s, flight.first_token_s)
        content_s, token_s = (None if at_s is None else at_s - flight.started_s for at_s in stamps)
        return _content_in_time(objective.limit_s, content_s, token_s, now_s - flight.started_s)
    if objective.metric is Metric.E2E and now_s - flight.started_s > objective.limit_s:
        return True
    return None


def _against(limit_s: float, started_s: float, event_s: float | None, now_s: float) -> bool | None:
    if event_s is not None:
        return event_s - started_s > limit_s
    return True if now_s - started_s > limit_s else None


def _content_in_time(limit_s: float, content_s: float | None, token_s: float | None, waited_s: float) -> bool | None:
    """Violated? Content is no earlier than the first token of any kind, which came after `token_s`, if it did."""
    if content_s is not None:
        return content_s > limit_s
    return True if (waited_s if token_s is None else token_s) > limit_s else None


def decide_final(objective: Objective, sample: Sample) -> bool | None:
    """Violation bit of an ended request. None: it says nothing (cancelled in time, not measured, a mistake of ours)."""
    if sample.is_invalid:
        return None
    if sample.failure is not None:
        return True
    if sample.cancelled:
        return _cancelled(objective, sample)
    if objective.metric is Metric.TPOT:
        return _against_range(objective.limit_s, sample.tpot_range_s)
    if objective.metric is Metric.ITL or not sample.stream:
        latency_s = sample.latency_s(objective.metric, objective.quantile)
        return None if latency_s is None else latency_s > objective.limit_s
    return _waited(objective, sample)


def _cancelled(objective: Objective, sample: Sample) -> bool | None:
    """As it stood at that moment: `itl` and `tpot` are decided at the end only."""
    if objective.metric in (Metric.ITL, Metric.TPOT):
        return None
    return _waited(objective, sample)


def _waited(objective: Objective, sample: Sample) -> bool | None:
    """As in flight: what never came has violated the limit once that passed, and until then says nothing."""
    if objective.metric is Metric.TTFC:
        return _content_in_time(objective.limit_s, sample.ttfc_s, sample.ttft_s, sample.duration_s)
    latency_s = sample.latency_s(objective.metric)
    if latency_s is not None:
        return latency_s > objective.limit_s
    return True if sample.duration_s > objective.limit_s else None


def _against_range(limit_s: float, range_s: tuple[float, float] | None) -> bool | None:
    """Decided where the whole range lies on one side of the limit."""
    if range_s is None:
        return None
    least_s, most_s = range_s
    return True if least_s > limit_s else False if most_s <= limit_s else None


def decided_at_s(objective: Objective, sample: Sample) -> float:
    """When the violation became visible, for clustering: first token or failure, never the end of a long answer."""
    if sample.ttft_s is not None and objective.metric in (Metric.TTFT, Metric.TTFC):
        return sample.started_s + sample.ttft_s
    return sample.started_s + (sample.ttft_s if sample.ttft_s is not None else sample.duration_s)


def gap_quantiles(objectives: Iterable[Objective]) -> tuple[float, ...]:
    """Quantiles of the token gaps that a client must keep for these objectives, besides the displayed ones."""
    wanted = {objective.quantile for objective in objectives if objective.metric is Metric.ITL}
    return tuple(sorted(wanted | {0.5, 0.9, 0.99}))
