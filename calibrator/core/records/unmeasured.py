"""Why a completed request says nothing about an objective: an input of the metric is missing.

Such a bit is undecided, never "met": a promise about something that nobody saw was not kept, it was not examined. Every
metric by every way in which its inputs can be missing (-: it needs no such input):

| the answer | ttft | ttfc | itl | tpot | e2e |
|---|---|---|---|---|---|
| is one document, no stream | not_streamed | not_streamed | not_streamed | not_streamed | - |
| has no text at all | no_token | no_content | no_token | no_token | - |
| has reasoning or tool calls only | - | no_content | - | - | - |
| has one token | - | - | one_token | one_token | - |
| comes in one event | - | - | single_chunk | single_chunk | - |
| comes with several events a read | - | - | buffered | buffered | - |
| comes without a token count, or with one of zero | - | - | - | no_usage | - |

**Tokens without usage.** A stream bounds what its server does not count: an event holds at least one token, and an
answer has at most the tokens that were asked for (`Sample.tpot_range_s`). The bit is decided where both bounds lie on
the same side of the limit, and the record says so; else it is `no_usage`.

**Reads.** What collects events on the way hands several over at once; their stamps tell of it, not of the engine. The
first token stays decided: it came when it came.

`not_streamed` and `one_token` leave no hole: such a request never had what the objective is about. All others do, and
a level where more than `TOLERATED_RATIO` of the requests are such holes is not judged as met. Violations remain
violations.

Pure; called by the load generator (bits), `search.verdict` (levels) and the sweep (warnings).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from calibrator.core.records.objective import Metric, Objective, decide_final
from calibrator.core.records.sample import Phase, Sample

TOLERATED_RATIO = 0.1  # of the requests with this metric: how few may have been missed on a level that is met
ENOUGH = 24  # requests that say nothing: an objective of which so little is seen is given up at this level


class Missing(StrEnum):
    """Reason codes of undecided bits."""

    NOT_STREAMED = "not_streamed"
    NO_TOKEN = "no_token"  # noqa: S105 - of a language model
    NO_CONTENT = "no_content"
    ONE_TOKEN = "one_token"  # noqa: S105 - likewise
    SINGLE_CHUNK = "single_chunk"
    BUFFERED = "buffered"
    NO_USAGE = "no_usage"


NO_HOLES = (Missing.NOT_STREAMED, Missing.ONE_TOKEN)
_CAUSES = {
    Missing.NOT_STREAMED: "the answers are not streamed",
    Missing.NO_TOKEN: "the answers hold no text",
    Missing.NO_CONTENT: "the answers hold no content, only reasoning or tool calls",
    Missing.ONE_TOKEN: "the answers have one token",
    Missing.SINGLE_CHUNK: "the answers come in a single event",
    Missing.BUFFERED: "several of their events arrived in one read: the engine or a proxy sends them together, or this "
    "machine was too busy to read them one by one",
    Missing.NO_USAGE: "the server counts no tokens, and its events are too few to count instead",
}
_REMEDIES = {
    Missing.NOT_STREAMED: "Stream a class of the workload, or use an e2e objective.",
    Missing.NO_TOKEN: "See what the model answers, or use an e2e objective.",
    Missing.NO_CONTENT: "Give output_tokens enough for the reasoning and an answer, or use a ttft objective.",
    Missing.ONE_TOKEN: "Ask for longer answers (output_tokens), or use a ttft objective.",
    Missing.SINGLE_CHUNK: "Let the server stream token by token, or use an e2e objective.",
    Missing.BUFFERED: "Turn response buffering off in what stands before the engine, and give this machine spare CPU; "
    "or use an e2e objective.",
    Missing.NO_USAGE: "Let the server, and what stands before it, report usage in streams; or use an itl objective.",
}


def missing_input(metric: Metric, sample: Sample) -> Missing | None:
    """What an ended request lacks to say something about a metric; None: nothing, or it did not come to its end."""
    if metric is Metric.E2E or not sample.completed:
        return None
    if not sample.stream:
        return Missing.NOT_STREAMED
    if metric is Metric.TTFC:
        return Missing.NO_CONTENT if sample.ttfc_s is None else None
    if sample.ttft_s is None:
        return Missing.NO_TOKEN
    if metric is Metric.TTFT:
        return None
    is_counted = metric is Metric.ITL or bool(sample.completion_tokens)
    return _missing_pace(sample) or (None if is_counted else Missing.NO_USAGE)


def _missing_pace(sample: Sample) -> Missing | None:
    """Of gaps between tokens."""
    if (sample.completion_tokens or sample.wanted_output_tokens) == 1:
        return Missing.ONE_TOKEN
    if sample.is_buffered:
        return Missing.BUFFERED
    return Missing.SINGLE_CHUNK if sample.last_token_s == sample.ttft_s else None


def why_undecided(objective: Objective, sample: Sample) -> Missing | None:
    """The reason code of an ended request's bit; None: it is decided, or says nothing for another reason."""
    return None if decide_final(objective, sample) is not None else missing_input(objective.metric, sample)


# --------------------------------------------------------------------------------------------------------- of a level
Counts = tuple[tuple[Missing, int], ...]  # most frequent first


def counted(codes: Iterable[Missing]) -> Counts:
    return tuple(Counter(codes).most_common())


def merged(parts: Iterable[Counts]) -> Counts:
    """Of several stages."""
    total: Counter[Missing] = Counter()
    for part in parts:
        total.update(dict(part))
    return tuple(total.most_common())


def holes(counts: Counts) -> int:
    """Requests that had the metric, but did not show it."""
    return sum(count for code, count in counts if code not in NO_HOLES)


def is_unmeasured(n: int, counts: Counts) -> bool:
    """Too little was seen for a level to be met. `n`: decided bits."""
    if not n:
        return bool(counts)
    return holes(counts) > TOLERATED_RATIO * (n + holes(counts))


def is_given_up(n: int, counts: Counts) -> bool:
    """Likewise, and there is no point in asking on."""
    return is_unmeasured(n, counts) and sum(count for _, count in counts) >= ENOUGH


def words(objective: Objective, n: int, counts: Counts) -> str:
    """Why an objective could not be measured, with the commonest code."""
    code, _ = counts[0]
    silent = sum(count for _, count in counts)
    return f"{code}: {silent} of {n + silent} requests say nothing about '{objective}', because {_CAUSES[code]}"


# --------------------------------------------------------------------------------------------------------- of a sweep
@dataclass(slots=True)
class UnmeasuredTally:
    """What a sweep's counted requests did not show; `warnings` are codes with cause and remedy."""

    objectives: Sequence[Objective]
    _n: list[int] = field(init=False)
    _missing: list[Counter[Missing]] = field(init=False)
    _by_stream: int = 0

    def __post_init__(self) -> None:
        self._n = [0 for _ in self.objectives]
        self._missing = [Counter() for _ in self.objectives]

    def add(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            if sample.label.phase is Phase.COUNTED and sample.completed:
                self._add(sample)

    def _add(self, sample: Sample) -> None:
        for index, objective in enumerate(self.objectives):
            if not objective.applies_to(sample.wanted_prompt_tokens):
                continue
            code = why_undecided(objective, sample)
            if code is None:
                self._n[index] += 1
                self._by_stream += objective.metric is Metric.TPOT and not sample.completion_tokens
            elif code not in NO_HOLES:
                self._missing[index][code] += 1

    @property
    def warnings(self) -> tuple[str, ...]:
        lines = [
            f"{words(objective, n, counts)}. {_REMEDIES[counts[0][0]]}"
            for objective, n, missing in zip(self.objectives, self._n, self._missing, strict=True)
            if (counts := tuple(missing.most_common()))
        ]
        if self._by_stream:
            lines.append(
                f"tokens_by_stream: the server counts no tokens; tpot of {self._by_stream} requests was bounded by the "
                "events of their streams and the tokens asked for"
            )
        return tuple(lines)
