"""What holds for every route that changes something, those to come included: they are taken from the OpenAPI document.

Nobody and readers are refused; a session is, too, where another site's page sent the request; and each attempt on what
needs an operator is written down.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, client_of, snapshot

OPERATOR, READER = "operator-token", "reader-token"
SIGNING = {"/v1/session", "/sign-in", "/sign-out"}  # for everybody, from a page of ours


def document() -> dict[str, Any]:
    async def scenario() -> dict[str, Any]:
        async with client_of(app_of(FakeOperator(snapshot()), operator_tokens=(OPERATOR,))) as client:
            found: dict[str, Any] = (await client.get("/openapi.json")).json()
            return found

    return run_virtual(scenario())


WRITES = [
    (method.upper(), path, operation["operationId"])
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
    if method != "get"
]
ACTING = [write for write in WRITES if write[1] not in SIGNING]


def attempt(method: str, path: str, *, session: bool = False, **headers: str) -> tuple[int, list[dict[str, Any]]]:
    """Status, and what the audit has of it."""

    async def scenario() -> tuple[int, list[dict[str, Any]]]:
        app = app_of(FakeOperator(snapshot()), operator_tokens=(OPERATOR,), read_tokens=(READER,))
        async with client_of(app, raises=False) as client:
            if session:
                ours = {"Sec-Fetch-Site": "same-origin"}
                begun = await client.post("/v1/session", json={"token": OPERATOR}, headers=ours)
                assert begun.status_code == 200
            url = path.replace("{name}", "chat")
            answer: httpx.Response = await client.request(method, url, headers=headers)
            entries = await client.get("/v1/audit", headers={"Authorization": f"Bearer {OPERATOR}"})
            told = [entry for entry in entries.json()["entries"] if entry["operation"] != "beginSession"]
            return answer.status_code, told

    return run_virtual(scenario())


def test_there_are_write_routes_to_look_at() -> None:
    assert {"startSweep", "putOverride", "deleteOverride"} <= {operation for _, _, operation in ACTING}


@pytest.mark.parametrize(("method", "path", "operation"), ACTING)
def test_only_operators_write_and_every_attempt_is_told(method: str, path: str, operation: str) -> None:
    for headers, expected in (({}, 401), ({"Authorization": f"Bearer {READER}"}, 403)):
        status, told = attempt(method, path, **headers)
        assert status == expected
        assert [(one["operation"], one["status"], one["outcome"]) for one in told] == [(operation, expected, "refused")]
    status, told = attempt(method, path, Authorization=f"Bearer {OPERATOR}")
    assert status not in {401, 403}
    assert [(one["operation"], one["status"]) for one in told] == [(operation, status)]


@pytest.mark.parametrize(("method", "path", "operation"), ACTING)
@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
def test_a_session_writes_from_our_own_pages_only(
    method: str, path: str, operation: str, headers: dict[str, str]
) -> None:
    status, told = attempt(method, path, session=True, **headers)
    assert status == 403
    assert [(one["operation"], one["outcome"], one["with_session"]) for one in told] == [(operation, "refused", True)]
    status, _ = attempt(method, path, session=True, **{"Sec-Fetch-Site": "same-origin"})
    assert status not in {401, 403}


@pytest.mark.parametrize(("method", "path"), [write[:2] for write in WRITES if write[1] in SIGNING])
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
def test_nobody_is_signed_in_or_out_by_another_site(method: str, path: str, headers: dict[str, str]) -> None:
    assert attempt(method, path, **headers)[0] == 403
