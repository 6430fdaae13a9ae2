"""`workload:` of a backend: what the probes look like."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PrivateAttr, model_validator

from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.core.workload.mirror import MirrorPolicy
from calibrator.errors import ConfigurationError
from calibrator.settings.defaults import default_of
from calibrator.settings.problems import Problem, refuse
from calibrator.settings.sections.mirror import MirrorSettings, PrefixReuse
from calibrator.settings.traces import read_trace
from calibrator.settings.values import File, Frozen, Text


class ClassSettings(Frozen):
    """One kind of probe request."""

    name: Text = Field(default=default_of(WorkloadClass, "name"), description="name in reports")
    share: float = Field(
        default=default_of(WorkloadClass, "share"),
        gt=0.0,
        description="weight in the mix, relative to the other classes",
    )
    prompt_tokens: int = Field(
        default=default_of(WorkloadClass, "prompt_tokens"), ge=1, le=10_000_000, description="prompt length in tokens"
    )
    output_tokens: int = Field(
        default=default_of(WorkloadClass, "output_tokens"), ge=1, le=10_000_000, description="output length in tokens"
    )
    stream: bool = Field(
        default=default_of(WorkloadClass, "stream"),
        description="stream the responses; without streaming only e2e can be measured",
    )
    spread_ratio: float = Field(
        default=default_of(WorkloadClass, "spread_ratio"),
        ge=0.0,
        lt=1.0,
        description="lengths vary uniformly by up to this ratio, up and down",
    )
    prompt_sigma: float = Field(
        default=default_of(WorkloadClass, "prompt_sigma"),
        ge=0.0,
        le=3.0,
        description="above 0: lognormal prompt lengths with this standard deviation of the logarithm",
    )


class WorkloadSettings(Frozen):
    """The probe traffic; the cap is valid for live traffic like it."""

    classes: tuple[ClassSettings, ...] = Field(
        default=(ClassSettings(),), min_length=1, description="the mix of requests"
    )
    trace: File | None = Field(
        default=None,
        description="instead of classes: JSON Lines file of real requests with prompt_tokens, output_tokens, stream "
        "and class, or with Mooncake's fields",
    )
    mirror: MirrorSettings | None = Field(
        default=None,
        description="copy the lengths of live traffic from the engine's histograms; until there is enough data, "
        "classes or trace are used",
    )
    prefix_reuse: PrefixReuse = Field(
        default=default_of(Workload, "prefix_reuse_ratio"),
        description="share of prompt tokens that should hit the engine's prefix cache, as in your live traffic; "
        "mirror: the live hit rate; with the key mirror set, likewise, unless this is a ratio above 0",
    )
    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="longer prompts are cut to this length, as by clients that stay within the context; default: no "
        "limit",
    )
    _recorded: tuple[WorkloadClass, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _reads_its_trace(self) -> Self:
        if self.trace is None:
            return self
        if self.classes != (ClassSettings(),):
            refuse(Problem("trace", "cannot be combined with classes.", "Give one of the two."))
        try:
            self._recorded = read_trace(self.trace)
        except ConfigurationError as error:
            refuse(Problem("trace", error.cause, error.remedy))
        return self

    def value(self) -> Workload:
        classes = self._recorded or tuple(WorkloadClass(**dict(one)) for one in self.classes)
        reuse = 0.0 if self.prefix_reuse == "mirror" else self.prefix_reuse
        return Workload(classes, reuse).cut(self.max_prompt_tokens)

    def mirrored(self) -> MirrorPolicy | None:
        """What of it is copied from live traffic; None: nothing."""
        if self.mirror is not None:
            return self.mirror.value(prefix_reuse=not isinstance(self.prefix_reuse, float) or not self.prefix_reuse)
        return MirrorSettings().value(prefix_reuse=True, lengths=False) if self.prefix_reuse == "mirror" else None
