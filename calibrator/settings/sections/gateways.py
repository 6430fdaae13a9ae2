"""How gateways that have a protocol of their own get their caps. `GET /v1/backends/{name}/cap` needs no settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

from pydantic import Field

from calibrator.settings.problems import Problem
from calibrator.settings.values import Frozen, Name


class EnvoySettings(Frozen):
    """Envoy's runtime discovery."""

    clusters: dict[Annotated[str, Field(min_length=1, max_length=512)], Name] = Field(
        default={},
        description="backend by the name of Envoy's cluster, all that polling Envoys may have; none: each backend's "
        "cluster is named like the backend",
    )

    def value(self, backends: Iterable[str]) -> Mapping[str, str]:
        return self.clusters or {name: name for name in backends}


class HaproxySettings(Frozen):
    """HAProxy's agent-check."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="address to bind")
    port: int | None = Field(
        default=None, ge=0, le=65535, description="TCP port for agent-checks; 0 takes a free one; default: off"
    )


class GatewaysSettings(Frozen):
    """Gateways with a protocol of their own."""

    envoy: EnvoySettings = Field(default=EnvoySettings(), description="Envoy's runtime discovery")
    haproxy: HaproxySettings = Field(default=HaproxySettings(), description="HAProxy's agent-check")

    def problems(self, backends: Iterable[str]) -> Iterator[Problem]:
        """What does not fit the backends that there are."""
        names = sorted(backends)
        for cluster, backend in self.envoy.clusters.items():
            if backend not in names:
                yield Problem(
                    f"gateways.envoy.clusters.{cluster}",
                    f"'{backend}' is no backend.",
                    f"Give one of {', '.join(names)}.",
                )
