"""Every answer protects the browser that shows it: pages, data, refusals of the router, crashes, gateways' routes."""

from __future__ import annotations

import base64
import hashlib
import html
import re

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, client_of, record, snapshot

from calibrator.web.http.headers import PAGE_POLICY

PROTECTED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


async def foreign(_request: Request) -> Response:
    return PlainTextResponse("from another layer")


def ask(path: str, method: str = "GET", *, failure: Exception | None = None, **options: str) -> httpx.Response:
    operator = FakeOperator(snapshot(), records=(record(),), failure=failure)
    app = app_of(operator, operator_tokens=("operator",), extra_routes=[Route("/foreign", foreign)])

    async def scenario() -> httpx.Response:
        async with client_of(app, raises=False) as client:
            return await client.request(method, path, headers=options)

    return run_virtual(scenario())


@pytest.mark.parametrize(
    ("path", "method", "status", "cache"),
    [
        ("/", "GET", 200, "no-store"),
        ("/v1/backends", "GET", 200, "no-store"),
        ("/v1/backends/chat/cap", "GET", 200, "max-age=5, stale-if-error=86400"),
        ("/v1/backends/chat/sweeps/sweep-6/report", "GET", 200, "no-store"),
        ("/v1/session", "GET", 200, "no-store"),
        ("/metrics", "GET", 200, "no-store"),
        ("/livez", "GET", 200, "no-store"),
        ("/openapi.json", "GET", 200, "no-store"),
        ("/static/page.css", "GET", 200, "max-age=300"),
        ("/foreign", "GET", 200, "no-store"),
        ("/nothing", "GET", 404, "no-store"),
        ("/livez", "POST", 405, "no-store"),
        ("/v1/backends/chat/sweeps", "POST", 401, "no-store"),
    ],
)
def test_every_answer_is_protected(path: str, method: str, status: int, cache: str) -> None:
    response = ask(path, method)
    assert response.status_code == status
    # A form's POST must say where it comes from: with "no-referrer" browsers send `Origin: null`.
    own = {"referrer-policy": "same-origin"} if path == "/" else {}
    assert {name: response.headers.get(name) for name in PROTECTED} == PROTECTED | own
    assert response.headers["cache-control"] == cache
    assert len(response.headers.get_list("content-security-policy")) == 1


def test_a_crash_is_answered_under_the_same_protection() -> None:
    response = ask("/v1/backends/chat/sweeps", failure=RuntimeError("a defect"))
    assert response.status_code == 500
    assert {name: response.headers.get(name) for name in PROTECTED} == PROTECTED


def test_a_304_repeats_nothing_that_the_client_has() -> None:
    etag = ask("/v1/backends/chat/cap").headers["etag"]
    response = ask("/v1/backends/chat/cap", **{"If-None-Match": etag})
    assert response.status_code == 304
    assert set(response.headers) == {"etag", "cache-control", "ratelimit-policy"}


def test_data_may_do_nothing_in_a_browser_and_the_page_runs_no_script_of_its_text() -> None:
    assert ask("/v1/backends").headers["content-security-policy"].startswith("default-src 'none';")
    assert ask("/").headers["content-security-policy"] == PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert "frame-ancestors 'none'" in PAGE_POLICY


def test_a_report_may_show_its_own_style_by_hash_and_no_other() -> None:
    response = ask("/v1/backends/chat/sweeps/sweep-6/report")
    [style] = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    expected = "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    [carried] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', response.text)
    for policy in (response.headers["content-security-policy"], html.unescape(carried)):
        assert f"style-src '{expected}'" in policy
        assert "unsafe-inline" not in policy
    assert " style=" not in response.text, "the policy would block it"
