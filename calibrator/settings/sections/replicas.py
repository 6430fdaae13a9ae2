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
        default=default_of(DnsPlan, "record"),
        description="a: A records, or AAAA if there are none; srv: targets with ports",
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="port of each replica; srv records have their own"
    )
    period_s: DurationS | None = Field(
        default=default_of(DnsPlan, "period_s"),
        alias="period",
        description="time between two lookups; default: the TTL of the records",
    )
    host_name: HostName | None = Field(
        default=default_of(DnsPlan, "host_name"),
        description="Host header and TLS server name; default: name, or with srv the target",
    )

    @model_validator(mode="after")
    def _has_a_port(self) -> Self:
        if self.record == "a" and self.port is None:
            refuse(Problem("port", "is missing: address records have no port.", "Give the engines' port."))
        return self

    def value(self) -> DnsPlan:
        return DnsPlan(self.name, self.port or 0, self.record, self.period_s, self.host_name)


class ReplicasSettings(Frozen):
    """Engines that serve one model behind one name."""

    urls: tuple[ApiUrl, ...] = Field(default=(), description="base URLs of all replicas, instead of url")
    dns: DnsSettings | None = Field(
        default=None, description="alternatively, a DNS name with an address for each replica"
    )
    measure_on: tuple[ApiUrl, ...] = Field(
        default=(), description="replicas out of rotation that are swept on behalf of all"
    )
    scale_up_delay_s: DurationS = Field(
        default=default_of(ReplicaPlan, "scale_up_delay_s"),
        alias="scale_up_delay",
        description="time after which a new replica counts, unless it serves live requests sooner",
    )
    balancing: Literal["random", "round_robin", "least_requests"] = Field(
        default=default_of(ReplicaPlan, "balancing"),
        description="how gateways choose a replica; used until the actual balance has been measured",
    )
    weight: float = Field(
        default=default_of(ReplicaPlan, "weight"),
        gt=0.0,
        le=1000.0,
        description="share of the engine group's capacity, relative to its other members",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.urls and self.dns is not None:
            refuse(Problem("urls", "cannot be combined with dns.", "Give one of the two."))
        for key, urls in (("urls", self.urls), ("measure_on", self.measure_on)):
            if len(set(urls)) < len(urls):
                refuse(Problem(key, "lists a replica twice.", "List each once."))
        if set(self.urls) & set(self.measure_on):
            refuse(Problem("measure_on", "lists a replica in rotation.", "Remove it from urls or from measure_on."))
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
    """A backend's mapping with its `url` filled in from the replicas: scheme, path and first address."""
    replicas = value.get("replicas") if isinstance(value, dict) else None
    if not isinstance(replicas, dict):
        return value
    urls, dns = replicas.get("urls"), replicas.get("dns")
    if isinstance(urls, list) and urls:
        if value.get("url", urls[0]) != urls[0]:
            refuse(Problem("url", "cannot be combined with replicas.urls.", "Give one of the two."))
        return {**value, "url": urls[0]}
    if isinstance(dns, dict) and "url" not in value and isinstance(dns.get("name"), str):
        port = dns.get("port")
        return {**value, "url": f"http://{dns['name'].rstrip('.')}{f':{port}' if port else ''}/v1"}
    return value
