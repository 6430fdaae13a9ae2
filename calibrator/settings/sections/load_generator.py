"""Where sweeps generate their load."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from calibrator.ports.load import LoadPlan
from calibrator.settings.defaults import default_of
from calibrator.settings.values import DurationS, Frozen


class LoadSettings(Frozen):
    """The load generator."""

    kind: Literal["processes", "ray"] = Field(
        default=default_of(LoadPlan, "kind"),
        description="processes: on this machine; ray: actors on the nodes of a Ray cluster, for levels beyond one "
        "machine (requires pip install 'calibrator[ray]')",
    )
    workers: int | None = Field(
        default=default_of(LoadPlan, "most_workers"),
        ge=1,
        le=4096,
        description="maximum number of workers per sweep; default: as many as its highest level needs, with processes "
        "at most one per core",
    )
    ray_address: Annotated[str, Field(min_length=1)] = Field(
        default=default_of(LoadPlan, "ray_address"),
        description="with ray: auto (the cluster of this machine), host:port of its head, ray://host:port from "
        "outside, or local to try it out",
    )
    ray_start_s: DurationS = Field(
        default=default_of(LoadPlan, "ray_start_s"),
        alias="ray_start",
        description="with ray: time that a worker may wait for a free core; an autoscaler takes minutes",
    )
    selftest: bool = Field(
        default=True,
        description="test once after startup what this machine can measure; takes one core for two seconds",
    )

    def value(self) -> LoadPlan:
        return LoadPlan(self.kind, self.workers, self.ray_address, self.ray_start_s)
