"""The pages' forms: who may send them, what they do, and what stands there when they are refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx
import pytest
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, app_of, calibrated, client_of, running, snapshot

OPERATOR, READER = "op-secret", "read-secret"
OURS = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
FOREIGN = {"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}
PIN = {"cap": "12", "minutes": "30", "author": "Ann", "reason": "incident 7"}

Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


def with_client(scenario: Scenario, operator: FakeOperator, **tokens: tuple[str, ...]) -> None:
    async def run() -> None:
        used = tokens or {"operator_tokens": (OPERATOR,)}
        async with client_of(app_of(operator, **used)) as client:  # type: ignore[arg-type] # tokens only
            await scenario(client)

    run_virtual(run())


async def sign_in(client: httpx.AsyncClient, token: str = OPERATOR, then: str = "/") -> httpx.Response:
    return await client.post("/sign-in", data={"token": token, "then": then}, headers=OURS)


async def send(client: httpx.AsyncClient, verb: str, **fields: str) -> httpx.Response:
    return await client.post(f"/backends/chat/{verb}", data=fields, headers=OURS)


# ---------------------------------------------------------------------------------------------------------- signing in
def test_with_read_tokens_the_sign_in_form_stands_where_the_page_would_be() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        asked = await client.get("/backends/chat", headers=OURS)
        assert asked.status_code == 401
        assert "Basic" not in asked.headers["www-authenticate"], "it would hide the form"
        assert '<input type="hidden" name="then" value="/backends/chat">' in asked.text
        back = await sign_in(client, READER, "/backends/chat")
        assert (back.status_code, back.headers["location"]) == (303, "/backends/chat")
        shown = await client.get("/backends/chat", headers=OURS)
        assert shown.status_code == 200
        assert 'href="/sign-in?then=' in shown.text
        assert (await client.get("/v1/backends")).status_code == 200, "the page's scripts read the API"
        await client.post("/sign-out", headers=OURS)
        assert (await client.get("/", headers=OURS)).status_code == 401

    with_client(scenario, FakeOperator(snapshot()), operator_tokens=(OPERATOR,), read_tokens=(READER,))


@pytest.mark.parametrize("then", ["https://evil/", "//evil/", "/\\evil", "\\\\evil", "javascript:alert(1)", "/a\r\nb"])
def test_signing_in_leads_to_our_own_pages_only(then: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await sign_in(client, OPERATOR, then)).headers["location"] == "/"

    with_client(scenario, FakeOperator(snapshot()))


def test_a_wrong_token_is_refused_in_place_and_starts_no_session() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await sign_in(client, "guess")
        assert refused.status_code == 401
        assert 'role="alert"' in refused.text
        assert "guess" not in refused.text
        assert "set-cookie" not in refused.headers

    with_client(scenario, FakeOperator(snapshot()))


# ----------------------------------------------------------------------------------------------------------- operating
def test_an_operator_starts_and_cancels_a_sweep() -> None:
    operator = FakeOperator(snapshot())

    async def scenario(client: httpx.AsyncClient) -> None:
        await sign_in(client)
        started = await send(client, "sweep", reason="after the upgrade")
        assert (started.status_code, started.headers["location"]) == (303, "/backends/chat?done=sweep")
        assert operator.asked == [("chat", "after the upgrade")]
        assert 'role="status"' in (await client.get(started.headers["location"], headers=OURS)).text
        operator.busy = True
        operator.put(calibrated(progress=running()))
        assert 'action="/backends/chat/cancel"' in (await client.get("/backends/chat", headers=OURS)).text
        assert (await send(client, "cancel")).headers["location"] == "/backends/chat?done=cancel"
        assert not operator.busy

    with_client(scenario, operator)


def test_an_operator_pins_the_cap_and_takes_the_pin_away() -> None:
    operator = FakeOperator(snapshot())

    async def scenario(client: httpx.AsyncClient) -> None:
        await sign_in(client)
        assert (await send(client, "override", **PIN)).headers["location"] == "/backends/chat?done=override"
        pin = operator.pinned["chat"]
        assert (pin.cap, pin.author, pin.reason) == (12, "Ann", "incident 7")
        assert pin.expires_at - pin.set_at == 1800.0
        assert pin.set_at == pytest.approx(EPOCH_S, abs=1.0)
        assert 'action="/backends/chat/clear"' in (await client.get("/backends/chat", headers=OURS)).text
        assert (await send(client, "clear", author="Ann")).headers["location"] == "/backends/chat?done=clear"
        again = await send(client, "clear")
        assert again.status_code == 409
        assert 'role="alert"' in again.text

    with_client(scenario, operator)


def test_what_is_refused_is_said_at_the_form_which_keeps_what_was_typed() -> None:
    operator = FakeOperator(snapshot(), busy=True)

    async def scenario(client: httpx.AsyncClient) -> None:
        await sign_in(client)
        busy = await send(client, "sweep", reason="<b>now</b>")
        assert busy.status_code == 409
        assert "A sweep of this backend runs already. Wait for its end." in busy.text
        assert 'value="&lt;b&gt;now&lt;/b&gt;"' in busy.text
        for field, value in (("cap", "0"), ("cap", "many"), ("minutes", "-1"), ("minutes", "nan"), ("reason", "")):
            refused = await send(client, "override", **(PIN | {field: value}))
            assert refused.status_code == 400, (field, value)
            assert f" {field}: " in refused.text
            assert 'role="alert"' in refused.text
            assert 'value="Ann"' in refused.text
        assert operator.pinned == {}

    with_client(scenario, operator)


def test_only_an_operators_session_from_our_own_page_may_act() -> None:
    operator = FakeOperator(snapshot())

    async def scenario(client: httpx.AsyncClient) -> None:
        for verb in ("sweep", "cancel", "override", "clear"):
            assert (await send(client, verb, **PIN)).status_code == 401
        await sign_in(client, READER)
        assert (await send(client, "sweep")).status_code == 403
        await sign_in(client)
        foreign = await client.post("/backends/chat/sweep", headers=FOREIGN)
        assert foreign.status_code == 403
        assert (await client.post("/sign-in", data={"token": OPERATOR}, headers=FOREIGN)).status_code == 403
        assert (await client.post("/sign-out", headers=FOREIGN)).status_code == 403
        assert (operator.asked, operator.pinned) == ([], {})

    with_client(scenario, operator, operator_tokens=(OPERATOR,), read_tokens=(READER,))


def test_without_tokens_there_is_nothing_to_sign_in_to_and_no_form() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        text = (await client.get("/backends/chat", headers=OURS)).text
        assert "Sign in" not in text
        assert "<form" not in text
        for path in ("/sign-in", "/backends/chat/sweep"):
            assert (await client.post(path, headers=OURS)).status_code in {404, 405}

    with_client(scenario, FakeOperator(snapshot(calibrated())), operator_tokens=())


def test_errors_are_pages_for_people_and_problem_documents_for_programs() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path, status in (("/backends/nope", 404), ("/nothing", 404), ("/?q=" + 300 * "x", 400)):
            page = await client.get(path, headers=OURS)
            assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
            program = await client.get(path)
            assert (program.status_code, program.headers["content-type"]) == (status, "application/problem+json")
        assert "chat" in (await client.get("/backends/nope", headers=OURS)).text
        api = await client.get("/v1/backends/nope", headers=OURS)
        assert api.headers["content-type"] == "application/problem+json"

    with_client(scenario, FakeOperator(snapshot(calibrated())))


def test_before_the_state_is_loaded_the_page_says_so() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        early = await client.get("/", headers=OURS)
        assert early.status_code == 503
        assert "has not loaded its state yet" in early.text

    with_client(scenario, FakeOperator(replace(snapshot(), ready=False)))
