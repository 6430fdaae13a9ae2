"""Sessions: a browser signs in with a token and gets a cookie that is worth nothing elsewhere, later or to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, client_of, snapshot

from calibrator.clock import LoopClock
from calibrator.web.app import create_app
from calibrator.web.http.sessions import SESSION_S

OPERATOR, READER = "operator-token-1", "reader-token-1"
SWEEPS, PIN = "/v1/backends/chat/sweeps", "/v1/backends/chat/override"
OURS = {"Sec-Fetch-Site": "same-origin"}

Play = Callable[[httpx.AsyncClient], Awaitable[None]]


class Site:
    """An application whose tokens can be rotated."""

    def __init__(self, *, base_url: str = "http://calibrator", readers: tuple[str, ...] = (READER,)) -> None:
        self.operators: tuple[str, ...] = (OPERATOR,)
        self.readers = readers
        self.operator = FakeOperator(snapshot())
        self.base_url = base_url

    def play(self, scenario: Play) -> None:
        async def run() -> None:
            app = create_app(
                self.operator,
                clock=LoopClock(EPOCH_S),
                operator_tokens=lambda: self.operators,
                read_tokens=lambda: self.readers,
                software_version="9.9.9",
            )
            async with client_of(app) as client:
                client.base_url = httpx.URL(self.base_url)
                await scenario(client)

        run_virtual(run())


async def sign_in(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/v1/session", json={"token": token}, headers=OURS)


async def status(client: httpx.AsyncClient, method: str, path: str, **headers: str) -> int:
    return (await client.request(method, path, headers=headers)).status_code


def test_a_session_may_what_its_token_may() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/session")).json()["access"] == "none"
        assert await status(client, "GET", "/v1/backends") == 401
        answer = await sign_in(client, READER)
        assert (answer.status_code, answer.json()["access"], answer.json()["by"]) == (200, "read", "session")
        assert answer.json()["ends_at"] == "2027-01-15T20:00:00.000Z"
        assert await status(client, "GET", "/v1/backends") == 200
        assert await status(client, "POST", SWEEPS, **OURS) == 403
        assert (await sign_in(client, OPERATOR)).json()["access"] == "operate"
        assert await status(client, "POST", SWEEPS, **OURS) == 202
        assert (await client.get("/v1/session")).json() == {
            "access": "operate", "by": "session", "writes_exist": True, "ends_at": None,
        }  # fmt: skip
        assert await status(client, "DELETE", "/v1/session", **OURS) == 204
        assert await status(client, "GET", "/v1/backends") == 401

    Site().play(scenario)


@pytest.mark.parametrize(
    ("base_url", "name", "secure"),
    [("http://calibrator", "calibrator", False), ("https://calibrator", "__Host-calibrator", True)],
)
def test_the_cookie_is_for_this_host_and_no_script(base_url: str, name: str, secure: bool) -> None:  # noqa: FBT001 - a table
    async def scenario(client: httpx.AsyncClient) -> None:
        cookie = (await sign_in(client, OPERATOR)).headers["set-cookie"]
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert cookie.startswith(f"{name}=")
        assert attributes == {"httponly", "samesite=strict", "path=/", f"max-age={SESSION_S:.0f}"} | (
            {"secure"} if secure else set()
        )
        assert OPERATOR not in cookie

    Site(base_url=base_url).play(scenario)


def test_over_tls_a_cookie_that_a_plain_connection_could_have_set_is_no_session() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        value = (await sign_in(client, OPERATOR)).headers["set-cookie"].split(";")[0].partition("=")[2]
        client.cookies.clear()
        assert await status(client, "GET", "/v1/backends", Cookie=f"calibrator={value}") == 401
        assert await status(client, "GET", "/v1/backends", Cookie=f"__Host-calibrator={value}") == 200

    Site(base_url="https://calibrator").play(scenario)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://calibrator"}, 202),
        ({"Origin": "http://calibrator"}, 202),  # a browser that knows no fetch metadata
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://other.calibrator"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://calibrator"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://calibrator:8080"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({}, 403),
    ],
)
def test_another_sites_page_cannot_write_with_it(headers: dict[str, str], expected: int) -> None:
    site = Site()

    async def scenario(client: httpx.AsyncClient) -> None:
        await sign_in(client, OPERATOR)
        assert await status(client, "POST", SWEEPS, **headers) == expected
        pinned = await status(client, "DELETE", PIN, **headers)
        assert pinned == (404 if expected == 202 else 403), "every write, not only that one"
        with_token = await status(client, "POST", SWEEPS, **headers, Authorization=f"Bearer {OPERATOR}")
        assert with_token == 202, "nobody's browser adds a token by itself"

    site.play(scenario)
    assert len(site.operator.asked) == (2 if expected == 202 else 1)


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_another_sites_page_cannot_sign_anybody_in_or_out(method: str, headers: dict[str, str]) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"token": OPERATOR} if method == "POST" else None
        answer = await client.request(method, "/v1/session", json=body, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers

    Site().play(scenario)


def test_a_session_ends_with_its_token_and_with_its_time() -> None:
    site = Site()

    async def scenario(client: httpx.AsyncClient) -> None:
        await sign_in(client, OPERATOR)
        site.operators = ("operator-token-2", OPERATOR)
        assert await status(client, "GET", "/v1/audit") == 200, "an added token changes nothing"
        site.operators = ("operator-token-2",)
        assert await status(client, "GET", "/v1/audit") == 401
        site.operators = (OPERATOR,)
        cookie = dict(client.cookies)
        await asyncio.sleep(SESSION_S - 1.0)
        header = f"calibrator={cookie['calibrator']}"
        client.cookies.clear()
        assert await status(client, "GET", "/v1/audit", Cookie=header) == 200
        await asyncio.sleep(1.0)
        assert await status(client, "GET", "/v1/audit", Cookie=header) == 401

    site.play(scenario)


def test_a_cookie_that_was_tampered_with_is_no_session() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        value = (await sign_in(client, READER)).headers["set-cookie"].split(";")[0].partition("=")[2]
        client.cookies.clear()
        expiry, nonce, mac = value.split(".")
        longer = f"{int(expiry) + 1}.{nonce}.{mac}"
        tampered = [
            longer,
            f"{expiry}.{nonce}.",
            f"{expiry}.x.{mac}",
            f"9e9.{nonce}.{mac}",
            "..",
            "",
            f"{'9' * 400}.a.b",
        ]
        for cookie in [*tampered, f"{value}0", f"{expiry}.{nonce}.{mac[:-1]}\u00e9", f"\u0663{expiry}.{nonce}.{mac}"]:
            raw = {"Cookie": f"calibrator={cookie}".encode()}
            assert (await client.get("/v1/backends", headers=raw)).status_code == 401, cookie
        assert await status(client, "GET", "/v1/backends", Cookie=f"calibrator={value}") == 200

    Site().play(scenario)


def test_a_wrong_token_signs_nobody_in_and_is_not_repeated() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await sign_in(client, "sesame-open-now")
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "sesame" not in answer.text
        malformed = await client.post("/v1/session", json={"token": ["sesame-open-now"]}, headers=OURS)
        assert malformed.status_code == 400
        assert "sesame" not in malformed.text

    Site().play(scenario)


def test_where_reading_is_open_everybody_reads_and_a_session_is_for_operators() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/session")).json()["access"] == "read"
        assert (await sign_in(client, OPERATOR)).json()["access"] == "operate"

    Site(readers=()).play(scenario)


def test_a_stream_ends_with_the_token_that_opened_it() -> None:
    """The transport of the tests hands an answer out at its end, so this returns only because the stream does."""
    site = Site()

    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"Authorization": f"Bearer {READER}"}
        stream = asyncio.create_task(client.get("/v1/events", headers=headers, timeout=None))
        await asyncio.sleep(60.0)
        assert not stream.done()
        site.readers = ("reader-token-2",)
        await asyncio.sleep(2.0)
        assert stream.done()
        answer = await stream
        assert answer.status_code == 200
        assert "event: heartbeat" in answer.text

    site.play(scenario)
