"""Traces of sweeps. The standard `OTEL_...` variables cover the rest: headers, certificates, resource attributes."""

from __future__ import annotations

from pydantic import Field

from calibrator.ports.sweeps import SweepOrder
from calibrator.settings.defaults import default_of
from calibrator.settings.values import Frozen, HttpUrl


class TracingSettings(Frozen):
    """OpenTelemetry."""

    endpoint: HttpUrl | None = Field(
        default=None,
        description="base URL of a collector for OTLP over HTTP, such as http://otel-collector:4318 (requires pip "
        "install 'calibrator[otel]'); default: the variable OTEL_EXPORTER_OTLP_ENDPOINT, otherwise no traces",
    )
    sampled_probes_ratio: float = Field(
        default=default_of(SweepOrder, "sampled_probes_ratio"),
        ge=0.0,
        le=1.0,
        description="share of the probes that the engine should trace; all of them carry the sweep's trace context, "
        "and an engine that follows the W3C standard does not record the others",
    )
