"""The replicas behind a DNS name: each address of a headless service is one.

| record | query | replica |
|---|---|---|
| `a` | A; if there is none, AAAA | address and the configured port |
| `srv` | SRV, then the addresses of each target of the lowest priority | address and the record's port |

A host with two address families is one replica, so AAAA counts only without A. Host header and TLS server name are the
name that was resolved, with `srv` the target's: certificates are issued to names, and the URL contains only the
address. Weights are ignored. An answer holds for its TTL, within `TTL_MIN_S` and `TTL_MAX_S`, or for the configured
period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from dns.asyncresolver import Resolver
from dns.exception import DNSException
from dns.rdtypes.IN.SRV import SRV
from dns.resolver import NXDOMAIN, Answer, NoAnswer

from calibrator.core.publish.fleet import DnsPlan, Found, ReplicaAddress
from calibrator.errors import UnreachableError

TTL_MIN_S = 1.0
TTL_MAX_S = 300.0
LIFETIME_S = 4.0  # of one query, including retries


@dataclass(frozen=True, slots=True)
class _Place:
    address: str
    port: int
    name: str


@dataclass(slots=True)
class DnsDiscovery:
    """Port `Discovery`. `url`: scheme and path of the replicas' URLs, and Host unless it is an address."""

    plan: DnsPlan
    url: str
    resolver: Resolver | None = None  # None: the system's configuration, read at the first question

    async def find(self) -> Found:
        try:
            self.resolver = self.resolver or Resolver()
            places, ttl_s = await (self._services() if self.plan.record == "srv" else self._addresses())
        except DNSException as error:
            raise UnreachableError(
                f"The replicas behind {self.plan.name} cannot be found: {error}.",
                "Check the name, and the name servers of this machine.",
            ) from None
        valid_s = min(TTL_MAX_S, max(TTL_MIN_S, ttl_s)) if self.plan.period_s is None else self.plan.period_s
        found = sorted({self._replica(place) for place in places}, key=lambda replica: replica.url)
        return Found(tuple(found), valid_s)

    async def _addresses(self) -> tuple[list[_Place], float]:
        addresses, ttl_s = await self._resolve(self.plan.name)
        name = self.plan.host_name or self.plan.name.rstrip(".")
        return [_Place(address, self.plan.port, name) for address in addresses], ttl_s

    async def _services(self) -> tuple[list[_Place], float]:
        answer = await self._ask(self.plan.name, "SRV")
        if answer is None:
            return [], TTL_MIN_S
        records = [record for record in answer if isinstance(record, SRV)]
        first = min((record.priority for record in records), default=0)
        used = [record for record in records if record.priority == first]
        names = [record.target.to_text(omit_final_dot=True) for record in used]
        found = await asyncio.gather(*(self._resolve(f"{name}.") for name in names))
        places = [
            _Place(address, record.port, self.plan.host_name or name)
            for record, name, (addresses, _) in zip(used, names, found, strict=True)
            for address in addresses
        ]
        return places, min([_ttl_s(answer), *(ttl_s for _, ttl_s in found)])

    async def _resolve(self, name: str) -> tuple[Sequence[str], float]:
        for record in ("A", "AAAA"):
            answer = await self._ask(name, record)
            if answer is not None:
                return [item.to_text() for item in answer], _ttl_s(answer)
        return [], TTL_MIN_S

    async def _ask(self, name: str, record: str) -> Answer | None:
        """None: the name has no such record. Raises DNSException if no server answers."""
        assert self.resolver is not None  # noqa: S101 - `find` made it
        try:
            return await self.resolver.resolve(name, record, search=True, lifetime=LIFETIME_S)
        except (NoAnswer, NXDOMAIN):
            return None

    def _replica(self, place: _Place) -> ReplicaAddress:
        host = f"[{place.address}]" if ":" in place.address else place.address
        url = urlunsplit(urlsplit(self.url)._replace(netloc=f"{host}:{place.port}"))
        return ReplicaAddress(url, place.name)


def _ttl_s(answer: Answer) -> float:
    return 0.0 if answer.rrset is None else float(answer.rrset.ttl)
