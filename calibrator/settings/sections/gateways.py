"""Gateways with a protocol of their own. `GET /v1/backends/{name}/cap` needs no settings."""

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
        description="Envoy cluster name to backend, for all clusters of the Envoys that poll; none: each cluster is "
        "named like its backend",
    )

    def value(self, backends: Iterable[str]) -> Mapping[str, str]:
        return self.clusters or {name: name for name in backends}


class HaproxySettings(Frozen):
    """HAProxy's agent-check."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="address to bind")
    port: int | None = Field(
        default=None, ge=0, le=65535, description="TCP port for agent-checks; 0 chooses a free one; default: off"
    )


class GatewaysSettings(Frozen):
    """Gateways with a protocol of their own."""

    envoy: EnvoySettings = Field(default=EnvoySettings(), description="Envoy's runtime discovery")
    haproxy: HaproxySettings = Field(default=HaproxySettings(), description="HAProxy's agent-check")

    def problems(self, backends: Iterable[str]) -> Iterator[Problem]:
        """Clusters mapped to backends that do not exist."""
        names = sorted(backends)
        for cluster, backend in self.envoy.clusters.items():
            if backend not in names:
                yield Problem(
                    f"gateways.envoy.clusters.{cluster}",
                    f"'{backend}' is not a backend.",
                    f"Give one of {', '.join(names)}.",
                )
