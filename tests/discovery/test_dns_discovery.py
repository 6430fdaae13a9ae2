"""Replicas from a real DNS server on loopback, over UDP and TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest
from dns.asyncresolver import Resolver
from dnslib import AAAA, QTYPE, RCODE, RR, SRV, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer

from calibrator.core.publish.fleet import DnsPlan, Found, ReplicaAddress
from calibrator.discovery.dns import TTL_MAX_S, TTL_MIN_S, DnsDiscovery
from calibrator.discovery.static import StaticDiscovery
from calibrator.errors import UnreachableError

PACKET_BYTES = 512
NAME = "engine.models.svc.cluster.local"


@dataclass
class Zone(BaseResolver):  # type: ignore[misc] # dnslib has no types
    """Answers what is in `records`; a name without any does not exist. Long answers over UDP are cut off."""

    records: list[RR] = field(default_factory=list)
    rcode: int | None = None

    def resolve(self, request: DNSRecord, handler: Any) -> DNSRecord:
        reply = request.reply()
        named = [record for record in self.records if record.rname == request.q.qname]
        if self.rcode is not None:
            reply.header.rcode = self.rcode
        elif not named:
            reply.header.rcode = RCODE.NXDOMAIN
        for record in named:
            if record.rtype == request.q.qtype and self.rcode is None:
                reply.add_answer(record)
        if handler.protocol == "udp" and len(reply.pack()) > PACKET_BYTES:
            reply = request.reply()
            reply.header.tc = 1
        return reply

    def put(self, kind: str, *values: Any, name: str = NAME, ttl: int = 30) -> None:
        self.records += [RR(name, getattr(QTYPE, kind), rdata=value, ttl=ttl) for value in values]


@contextmanager
def name_server(zone: Zone) -> Iterator[Resolver]:
    """UDP and TCP on one port; a resolver that asks only this one."""
    quiet = DNSLogger(logf=lambda _: None)
    udp = DNSServer(zone, address="127.0.0.1", port=0, logger=quiet)
    port = udp.server.server_address[1]
    tcp = DNSServer(zone, address="127.0.0.1", port=port, tcp=True, logger=quiet)
    resolver = Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], port
    for server in (udp, tcp):
        Thread(target=server.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield resolver
    finally:
        for server in (udp, tcp):
            server.server.shutdown()
            server.server.server_close()


def find(zone: Zone, plan: DnsPlan, url: str = "http://engine.models/v1") -> Found:
    with name_server(zone) as resolver:
        return asyncio.run(DnsDiscovery(plan, url, resolver).find())


def found_urls(found: Found) -> list[str]:
    return [replica.url for replica in found.replicas]


def test_each_address_of_a_headless_service_is_a_replica() -> None:
    zone = Zone()
    zone.put("A", A("10.0.0.2"), A("10.0.0.1"), ttl=7)
    found = find(zone, DnsPlan(NAME, 8000), "https://engine.models:443/api/v1")
    assert found == Found(
        (
            ReplicaAddress("https://10.0.0.1:8000/api/v1", NAME),
            ReplicaAddress("https://10.0.0.2:8000/api/v1", NAME),
        ),
        valid_s=7.0,
    )


def test_a_host_with_two_address_families_is_one_replica() -> None:
    zone = Zone()
    zone.put("A", A("10.0.0.1"))
    zone.put("AAAA", AAAA("fd00::1"))
    assert found_urls(find(zone, DnsPlan(NAME, 8000))) == ["http://10.0.0.1:8000/v1"]
    only_v6 = Zone()
    only_v6.put("AAAA", AAAA("fd00::1"))
    assert found_urls(find(only_v6, DnsPlan(NAME, 8000))) == ["http://[fd00::1]:8000/v1"]


def test_service_records_bring_ports_and_the_names_that_certificates_are_for() -> None:
    zone = Zone()
    service = f"_http._tcp.{NAME}"
    zone.put(
        "SRV",
        SRV(0, 10, 8001, f"pod-0.{NAME}"),
        SRV(0, 90, 8002, f"pod-1.{NAME}"),
        SRV(5, 10, 8003, f"standby.{NAME}"),
        SRV(0, 10, 8004, f"gone.{NAME}"),
        name=service,
        ttl=90,
    )
    for index in range(2):
        zone.put("A", A(f"10.0.0.{index}"), name=f"pod-{index}.{NAME}", ttl=20)
    zone.put("A", A("10.0.0.9"), name=f"standby.{NAME}")
    found = find(zone, DnsPlan(service, record="srv", period_s=12.0))
    assert found.replicas == (
        ReplicaAddress("http://10.0.0.0:8001/v1", f"pod-0.{NAME}"),
        ReplicaAddress("http://10.0.0.1:8002/v1", f"pod-1.{NAME}"),
    )
    assert found.valid_s == 12.0, "the configured period, whatever the TTL"
    named = find(zone, DnsPlan(service, record="srv", host_name="engine.example"))
    assert {replica.host_name for replica in named.replicas} == {"engine.example"}


@pytest.mark.parametrize(("ttl", "valid_s"), [(0, TTL_MIN_S), (42, 42.0), (86_400, TTL_MAX_S)])
def test_an_answer_holds_for_its_ttl_within_reason(ttl: int, valid_s: float) -> None:
    zone = Zone()
    zone.put("A", A("10.0.0.1"), ttl=ttl)
    assert find(zone, DnsPlan(NAME, 8000)).valid_s == valid_s


def test_an_answer_too_long_for_a_packet_is_fetched_whole() -> None:
    zone = Zone()
    zone.put("A", *(A(f"10.0.1.{index}") for index in range(200)))
    assert len(find(zone, DnsPlan(NAME, 8000)).replicas) == 200


@pytest.mark.parametrize("record", ["a", "srv"])
def test_a_name_that_does_not_exist_is_an_empty_answer(record: str) -> None:
    assert find(Zone(), DnsPlan(NAME, 8000, record)).replicas == ()


def test_a_server_that_fails_is_no_empty_answer() -> None:
    with pytest.raises(UnreachableError, match=f"behind {NAME} cannot be found"):
        find(Zone(rcode=RCODE.SERVFAIL), DnsPlan(NAME, 8000))


def test_a_server_that_is_not_there_is_no_empty_answer() -> None:
    zone = Zone()
    with name_server(zone) as resolver:
        pass
    with pytest.raises(UnreachableError):
        asyncio.run(DnsDiscovery(DnsPlan(NAME, 8000), "http://x/v1", resolver).find())


def test_written_urls_keep_their_order() -> None:
    found = asyncio.run(StaticDiscovery(("http://b/v1", "http://a/v1")).find())
    assert found_urls(found) == ["http://b/v1", "http://a/v1"]
    assert {replica.host_name for replica in found.replicas} == {None}
