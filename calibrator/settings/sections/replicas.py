"""Where the replicas of a backend are, and how they are counted."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from calibrator.core.publish.fleet import Balancing, DnsPlan, ReplicaPlan
from calibrator.settings.defaults import default_of
from calibrator.settings.problems import Problem, refuse
from calibrator.settings.values import ApiUrl, DurationS, Frozen

_HOST = re.compile(r"(?=.{1,253}\.?\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")


def _host_name(value: str) -> str:
    if not _HOST.fullmatch(value):
        refuse(Problem("", f"'{value[:80]}' is not a host name.", "Write it like engine.models.svc.cluster.local."))
    return value


HostName = Annotated[str, AfterValidator(_host_name)]


class DnsSettings(Frozen):
    """A headless service: each address behind the name is a replica."""

    name: HostName = Field(description="name to resolve, such as engine.models.svc.cluster.local")
    record: Literal["a", "srv"] = Field(
        default=default_of(DnsPlan, "record"), description="a: A, or AAAA without A; srv: targets with ports"
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="port of each replica; srv records bring theirs")
    period_s: DurationS | None = Field(
        default=default_of(DnsPlan, "period_s"),
        alias="period",
        description="time between two questions; default: the records' TTL",
    )
    host_name: HostName | None = Field(
        default=default_of(DnsPlan, "host_name"),
        description="Host header and TLS server name; default: name, with srv the target's",
    )

    @model_validator(mode="after")
    def _has_a_port(self) -> Self:
        if self.record == "a" and self.port is None:
            refuse(Problem("port", "is missing: address records have none.", "Give the engines' port."))
        return self

    def value(self) -> DnsPlan:
        return DnsPlan(self.name, self.port or 0, self.record, self.period_s, self.host_name)


class ReplicasSettings(Frozen):
    """Engines that serve one model behind one name."""

    urls: tuple[ApiUrl, ...] = Field(default=(), description="base URLs of all replicas, instead of url")
    dns: DnsSettings | None = Field(default=None, description="or a name with an address for each replica")
    measure_on: tuple[ApiUrl, ...] = Field(
        default=(), description="replicas out of rotation: sweeps run there, for the whole fleet"
    )
    scale_up_delay_s: DurationS = Field(
        default=default_of(ReplicaPlan, "scale_up_delay_s"),
        alias="scale_up_delay",
        description="a new replica counts once it has users' work, or after this",
    )
    balancing: Literal["random", "round_robin", "least_requests"] = Field(
        default=default_of(ReplicaPlan, "balancing"),
        description="how gateways choose a replica; used until their balance has been measured",
    )
    weight: float = Field(
        default=default_of(ReplicaPlan, "weight"),
        gt=0.0,
        le=1000.0,
        description="part of the engine group's capacity, relative to its other members",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.urls and self.dns is not None:
            refuse(Problem("urls", "stands beside dns.", "Give one of the two."))
        for key, urls in (("urls", self.urls), ("measure_on", self.measure_on)):
            if len(set(urls)) < len(urls):
                refuse(Problem(key, "names one replica twice.", "Name each once."))
        if set(self.urls) & set(self.measure_on):
            refuse(Problem("measure_on", "names a replica in rotation.", "Take it out of urls, or out of measure_on."))
        return self

    def value(self) -> ReplicaPlan:
        return ReplicaPlan(
            urls=self.urls,
            dns=None if self.dns is None else self.dns.value(),
            measure_on=self.measure_on,
            scale_up_delay_s=self.scale_up_delay_s,
            balancing=Balancing(self.balancing),
            weight=self.weight,
        )


def with_url(value: Any) -> Any:
    """A backend's mapping with its `url`, where the replicas say it: scheme, path and first address."""
    replicas = value.get("replicas") if isinstance(value, dict) else None
    if not isinstance(replicas, dict):
        return value
    urls, dns = replicas.get("urls"), replicas.get("dns")
    if isinstance(urls, list) and urls:
        if value.get("url", urls[0]) != urls[0]:
            refuse(Problem("url", "stands beside replicas.urls.", "Give one of the two."))
        return {**value, "url": urls[0]}
    if isinstance(dns, dict) and "url" not in value and isinstance(dns.get("name"), str):
        port = dns.get("port")
        return {**value, "url": f"http://{dns['name'].rstrip('.')}{f':{port}' if port else ''}/v1"}
    return value
