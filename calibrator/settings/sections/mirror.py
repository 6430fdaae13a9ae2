"""`mirror:` of a workload: probes that resemble live traffic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from calibrator.core.workload.classes import MAX_PREFIX_REUSE
from calibrator.core.workload.mirror import MirrorPolicy, MirrorWeight
from calibrator.settings.defaults import default_of
from calibrator.settings.problems import Problem, refuse
from calibrator.settings.values import DurationS, Frozen, Word


def _reuse(value: Any) -> float | Literal["mirror"]:
    if value == "mirror":
        return "mirror"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value <= MAX_PREFIX_REUSE:
        refuse(Problem("", f"'{str(value)[:80]}' is not a ratio.", f"Give 0 to {MAX_PREFIX_REUSE}, or mirror."))
    return float(value)


PrefixReuse = Annotated[
    float | Literal["mirror"], PlainValidator(_reuse), Word(f"number from 0 to {MAX_PREFIX_REUSE}, or `mirror`")
]


class MirrorSettings(Frozen):
    """Lengths from the engine's histograms; until there is enough data, the configured classes are used."""

    over_s: DurationS = Field(
        default=default_of(MirrorPolicy, "over_s"), alias="over", description="period of live traffic to copy"
    )
    weight: Literal["requests", "peak"] = Field(
        default=default_of(MirrorPolicy, "weight"),
        description="requests: all weigh the same; peak: only the busiest quarter of the time counts",
    )

    def value(self, *, prefix_reuse: bool, lengths: bool = True) -> MirrorPolicy:
        return MirrorPolicy(lengths, prefix_reuse, self.over_s, MirrorWeight(self.weight))
