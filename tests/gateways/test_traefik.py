"""Traefik's HTTP provider, byte by byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import httpx
import pytest
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, calibrated, client_of, fallback, snapshot

from calibrator.gateways.traefik import PATH, routes
from calibrator.ports.sharing import Poll

CAPS = (
    b'{"http":{"middlewares":{'
    b'"llm-cap-chat":{"inFlightReq":{"amount":37,"sourceCriterion":{"requestHeaderName":"X-Calibrator-Unset"}}},'
    b'"llm-cap-fresh":{"inFlightReq":{"amount":8,"sourceCriterion":{"requestHeaderName":"X-Calibrator-Unset"}}}}}}'
)


def get(
    operator: FakeOperator, url: str = PATH, headers: Mapping[str, str] | None = None, tokens: tuple[str, ...] = ()
) -> httpx.Response:
    async def scenario() -> httpx.Response:
        app = app_of(operator, read_tokens=tokens, extra_routes=routes(operator))
        async with client_of(app) as client:
            return await client.get(url, headers=headers)

    return run_virtual(scenario())


def test_every_backend_is_a_middleware_whatever_the_order_of_the_configuration() -> None:
    response = get(FakeOperator(snapshot(fallback(), calibrated())))
    assert response.status_code == 200
    assert response.content == CAPS
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("headers", [{"If-None-Match": "*"}, {"If-Modified-Since": "Fri, 15 Jan 2027 08:00:00 GMT"}])
def test_there_is_no_304_because_traefik_takes_it_for_an_error(headers: dict[str, str]) -> None:
    response = get(FakeOperator(snapshot()), headers=headers)
    assert (response.status_code, response.content) == (200, CAPS)
    assert "etag" not in response.headers


def test_bytes_are_stable_while_no_cap_changed() -> None:
    operator = FakeOperator(snapshot())
    operator.put(calibrated(organic_in_flight=30.0, up=False))
    assert get(operator).content == CAPS


def test_a_client_gets_its_shares_of_the_backends_it_names() -> None:
    operator = FakeOperator(snapshot(), shares={"traefik-1": 18, "other": 19})
    response = get(operator, f"{PATH}?client=traefik-1&backend=chat")
    assert response.content == (
        b'{"http":{"middlewares":{"llm-cap-chat":{"inFlightReq":{"amount":18,'
        b'"sourceCriterion":{"requestHeaderName":"X-Calibrator-Unset"}}}}}}'
    )
    assert operator.asked_polls == [Poll("traefik-1")]


def test_a_joiner_that_must_wait_has_one_because_a_missing_middleware_breaks_its_routers() -> None:
    operator = FakeOperator(snapshot(), shares={"new": None})
    assert b'"amount":1,' in get(operator, f"{PATH}?client=new&backend=chat").content


def test_before_the_state_is_loaded_the_configuration_is_empty_and_traefik_keeps_its_last() -> None:
    operator = FakeOperator(replace(snapshot(), ready=False))
    response = get(operator, f"{PATH}?backend=chat")
    assert (response.status_code, response.content) == (200, b"{}")


def test_what_only_a_person_can_repair_is_an_error_with_the_remedy() -> None:
    unknown = get(FakeOperator(snapshot()), f"{PATH}?backend=chat&backend=chta")
    assert unknown.status_code == 404
    assert "chta; configured: chat, fresh" in unknown.json()["detail"]
    assert get(FakeOperator(snapshot()), f"{PATH}?client=a%20b").status_code == 400


def test_it_is_read_with_a_token_where_tokens_are_configured() -> None:
    operator = FakeOperator(snapshot())
    assert get(operator, tokens=("reader",)).status_code == 401
    assert get(operator, headers={"Authorization": "Bearer reader"}, tokens=("reader",)).content == CAPS
