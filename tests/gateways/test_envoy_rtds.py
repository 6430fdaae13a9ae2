"""What Envoy is answered, byte by byte, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, calibrated, client_of, fallback, snapshot

from calibrator.clock import LoopClock
from calibrator.gateways.envoy_rtds import BODY_LIMIT_S, MAX_BODY_BYTES, PATH, TYPE_URL, routes
from calibrator.web.app import create_app

CLUSTERS = {"llm": "chat", "prod.llm-70b/v1": "fresh"}


def poll(name: str = "gw-1", version: str = "", **changes: Any) -> dict[str, Any]:
    """A poll as Envoy sends it, with its extensions."""
    extension = {"name": "envoy.filters.http.something", "category": "envoy.filters.http", "type_urls": ["a.b.C"] * 3}
    node = {"id": name, "cluster": "edge", "user_agent_name": "envoy", "extensions": [extension] * 500}
    body = {"node": node, "resource_names": ["calibrator"], "type_url": TYPE_URL}
    return body | ({"version_info": version} if version else {}) | changes


def send(
    operator: FakeOperator,
    body: dict[str, Any] | bytes | AsyncIterator[bytes],
    clusters: Mapping[str, str] = CLUSTERS,
    read_tokens: tuple[str, ...] = (),
    **headers: str,
) -> httpx.Response:
    content = json.dumps(body).encode() if isinstance(body, dict) else body

    async def scenario() -> httpx.Response:
        app = create_app(
            operator,
            clock=LoopClock(EPOCH_S),
            operator_tokens=tuple,
            read_tokens=lambda: read_tokens,
            software_version="9.9.9",
            extra_routes=routes(operator, clusters),
        )
        async with client_of(app) as client:
            return await client.post(PATH, content=content, headers={"Content-Type": "application/json", **headers})

    return run_virtual(scenario())


def layer(response: httpx.Response) -> dict[str, int]:
    (resource,) = response.json()["resources"]
    found: dict[str, int] = resource["layer"]
    return found


def test_every_mapped_cluster_has_its_cap_in_one_layer_exactly() -> None:
    response = send(FakeOperator(snapshot()), poll())
    assert response.status_code == 200
    assert response.content == (
        b'{"version_info":"3120f40f5550db22","resources":[{'
        b'"@type":"type.googleapis.com/envoy.service.runtime.v3.Runtime","name":"calibrator","layer":{'
        b'"circuit_breakers.llm.default.max_requests":37,'
        b'"circuit_breakers.prod.llm-70b/v1.default.max_requests":8}}]}'
    )
    assert response.headers["content-type"] == "application/json"


def test_the_layer_that_envoy_has_already_is_not_sent_again_until_it_changes() -> None:
    operator = FakeOperator(snapshot())
    version = send(operator, poll()).json()["version_info"]
    unchanged = send(operator, poll(version=version))
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    operator.shares = {"gw-1": 18}
    changed = send(operator, poll(version=version))
    assert set(layer(changed).values()) == {18}
    assert changed.json()["version_info"] != version


def test_the_nodes_name_is_the_client_and_each_gets_its_share() -> None:
    operator = FakeOperator(snapshot(), shares={"gw-1": 19, "gw-2": 18})
    assert layer(send(operator, poll("gw-1"), {"llm": "chat"})) == {"circuit_breakers.llm.default.max_requests": 19}
    assert layer(send(operator, poll("gw-2"), {"llm": "chat"})) == {"circuit_breakers.llm.default.max_requests": 18}
    assert operator.polls == {"chat": 2}


def test_clusters_of_one_backend_are_clients_of_their_own() -> None:
    """Envoy's circuit breakers do not know each other: together they must not exceed the share."""
    operator = FakeOperator(snapshot())
    send(operator, poll(), {"rule/0": "chat", "rule/1": "chat", "other": "fresh"})
    assert [asked.client for asked in operator.asked_polls] == ["gw-1/rule/0", "gw-1/rule/1", "gw-1"]


def test_an_envoy_takes_shares_of_its_own_clusters_only() -> None:
    operator = FakeOperator(snapshot())
    body = poll()
    body["node"]["metadata"] = {"pool": "prod", "calibrator_clusters": ["llm", "not mapped"]}
    assert layer(send(operator, body)) == {"circuit_breakers.llm.default.max_requests": 37}
    assert operator.polls == {"chat": 1}
    body["node"]["metadata"] = {"calibrator_clusters": ["not mapped"]}
    assert send(operator, body).status_code == 400, "an empty layer would mean no limit"


def test_a_joiner_keeps_its_static_cap_until_it_has_a_share() -> None:
    response = send(FakeOperator(snapshot(), shares={"gw-3": None}), poll("gw-3"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_who_waits_for_one_of_its_caps_only_gets_the_least_of_it_and_all_of_the_others() -> None:
    """To leave it out would put the static threshold back; not to answer would lose a lowered cap on its way."""
    clusters = {"rule/0": "chat", "rule/1": "chat", "other": "fresh"}
    operator = FakeOperator(snapshot(), shares={"gw-1/rule/0": None, "gw-1/rule/1": 12, "gw-1": 8})
    caps = layer(send(operator, poll(), clusters))
    assert list(caps.values()) == [1, 12, 8]


def test_nothing_is_answered_before_the_state_is_loaded() -> None:
    response = send(FakeOperator(snapshot(ready=False)), poll())
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


def test_a_read_token_is_asked_for_where_one_is_configured() -> None:
    operator = FakeOperator(snapshot())
    assert send(operator, poll(), read_tokens=("secret",)).status_code == 401
    assert operator.polls == {}
    assert send(operator, poll(), read_tokens=("secret",), Authorization="Bearer secret").status_code == 200


def test_a_poll_as_large_as_envoys_is_read_and_a_larger_one_is_not() -> None:
    operator = FakeOperator(snapshot())
    body = json.dumps(poll()).encode()
    padded = body + b" " * (MAX_BODY_BYTES - len(body))
    assert send(operator, padded).status_code == 200
    refused = send(operator, padded + b" ")
    assert (refused.status_code, refused.headers["connection"]) == (413, "close")


def test_a_body_that_does_not_end_is_not_waited_for() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b'{"node": '
        await asyncio.sleep(BODY_LIMIT_S + 1.0)
        yield b"{}}"

    assert send(FakeOperator(snapshot()), trickle()).status_code == 408


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"node": {"id": "gw-1"}, "resource_names": ["calibrator"]',
        b"[" * 200_000,
        b'{"node": {}, "resource_names": ["calibrator"]}',
        b'{"node": {"id": ""}, "resource_names": ["calibrator"]}',
        b'{"node": {"id": "a b"}, "resource_names": ["calibrator"]}',
        b'{"node": {"id": 7}, "resource_names": ["calibrator"]}',
        json.dumps(poll("x" * 257)).encode(),
        json.dumps(poll(resource_names=[])).encode(),
        json.dumps(poll(resource_names=["a", "b"])).encode(),
        json.dumps(poll(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")).encode(),
        json.dumps(poll(version_info=["1"])).encode(),
    ],
)
def test_what_is_no_poll_of_a_runtime_layer_is_refused_and_counts_for_nothing(body: bytes) -> None:
    operator = FakeOperator(snapshot())
    response = send(operator, body)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert operator.polls == {}


@given(
    st.dictionaries(st.text(min_size=1, max_size=40), st.sampled_from(["chat", "fresh"]), min_size=1, max_size=5),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.one_of(st.none(), st.integers(1, 10**6)),
)
def test_a_layer_is_whole_and_of_integers_above_zero_whatever_the_shares(
    clusters: dict[str, str], one: int | None, other: int | None
) -> None:
    operator = FakeOperator(snapshot(calibrated(), fallback()))
    operator.shares = {"gw-1": one} | {f"gw-1/{name}": other for name in clusters}
    response = send(operator, poll(), clusters)
    assert response.status_code in (200, 503)
    if response.status_code == 200:
        caps = layer(response)
        assert set(caps) == {f"circuit_breakers.{name}.default.max_requests" for name in clusters}
        assert all(type(cap) is int and cap >= 1 for cap in caps.values())
