"""Where the load of sweeps comes from."""

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
        description="processes: of this machine; ray: actors on the nodes of a Ray cluster, for levels beyond one "
        "machine (needs the extra: pip install 'calibrator[ray]')",
    )
    workers: int | None = Field(
        default=default_of(LoadPlan, "most_workers"),
        ge=1,
        le=4096,
        description="most worker processes of a sweep; default: as many as its highest level needs, with processes at "
        "most one a core",
    )
    ray_address: Annotated[str, Field(min_length=1)] = Field(
        default=default_of(LoadPlan, "ray_address"),
        description="with ray: auto (the cluster that this machine belongs to), host:port of its head, ray://host:port "
        "from outside, or local to try it out",
    )
    ray_start_s: DurationS = Field(
        default=default_of(LoadPlan, "ray_start_s"),
        alias="ray_start",
        description="with ray: how long a worker may wait for a free core; an autoscaler needs minutes",
    )
    selftest: bool = Field(
        default=True,
        description="measure once, after the start, what this machine can measure: two seconds of a core",
    )

    def value(self) -> LoadPlan:
        return LoadPlan(self.kind, self.workers, self.ray_address, self.ray_start_s)
