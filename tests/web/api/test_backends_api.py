"""`/v1` and its scrape_context: documents, problems, tokens, OpenAPI against the running application."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, calibrated, client_of, fallback, record, running, snapshot

from calibrator.core.records.sample_log import pack
from calibrator.errors import StoreError
from calibrator.web.http.requests import MAX_BODY_BYTES
from calibrator.web.wire.documents import sweep_document

OPERATOR = "op-söcret"
READER = "read-secret"


def ask(
    operator: FakeOperator,
    url: str,
    method: str = "GET",
    *,
    tokens: Sequence[str] = (OPERATOR,),
    read_tokens: Sequence[str] = (),
    raises: bool = True,
    **options: Any,
) -> httpx.Response:
    async def scenario() -> httpx.Response:
        app = app_of(operator, operator_tokens=tokens, read_tokens=read_tokens)
        async with client_of(app, raises=raises) as client:
            return await client.request(method, url, **options)

    return run_virtual(scenario())


def bearer(token: str) -> dict[str, Any]:
    return {"headers": {"Authorization": b"Bearer " + token.encode()}}


# ---------------------------------------------------------------------------------------------------------- documents
def test_the_list_shows_every_backend_with_its_numbers() -> None:
    operator = FakeOperator(snapshot(calibrated(progress=running()), fallback()))
    first, second = ask(operator, "/v1/backends").json()["backends"]
    assert first == ask(operator, "/v1/backends/chat").json()
    assert (first["cap"], first["state"], first["health"]) == (37, "calibrated", "ok")
    assert (first["headroom"], first["headroom_ratio"]) == (25.0, 0.675676)
    assert first["last_sweep"]["outcome"] == "calibrated"
    assert (first["warnings"], second["warnings"]) == (["no server metrics"], [])
    assert first["next_sweep_at"] == "2027-01-15T09:00:00.000Z"
    assert (first["progress"]["level"], first["progress"]["p99_s"]) == (64, None)
    unknown = ("engine", "up", "headroom", "headroom_ratio", "capacity", "rates", "last_sweep", "ready_replicas")
    assert {key: second[key] for key in unknown} == dict.fromkeys(unknown)


def test_a_sweep_is_served_as_the_command_line_prints_it() -> None:
    """One projection: the stored record, rendered; the cap only where it comes from this very sweep."""
    operator = FakeOperator(snapshot(), records=(record(), record("sweep-5")))
    for sweep_id, cap in (("sweep-6", 37), ("sweep-5", None)):
        printed = sweep_document(record(sweep_id), cap=cap).model_dump_json()
        assert ask(operator, f"/v1/backends/chat/sweeps/{sweep_id}").text == printed


def test_sweeps_are_listed_without_their_curves_up_to_the_limit() -> None:
    ended = [record(f"sweep-{n}") for n in (6, 5, 4)]
    running_one = replace(record("sweep-7"), outcome=None, ended_at=None, grade=None, capacity=None)
    operator = FakeOperator(snapshot(), records=(running_one, *ended, record("other", "fresh")))
    listed = ask(operator, "/v1/backends/chat/sweeps?limit=3").json()["sweeps"]
    assert [sweep["sweep_id"] for sweep in listed] == ["sweep-7", "sweep-6", "sweep-5"]
    assert (listed[0]["outcome"], listed[0]["ended_at"]) == (None, None)
    assert "levels" not in listed[0]


@pytest.mark.parametrize("limit", ["0", "201", "x", "-1"])
def test_a_limit_out_of_range_is_refused(limit: str) -> None:
    assert ask(FakeOperator(snapshot()), f"/v1/backends/chat/sweeps?limit={limit}").status_code == 400


# ----------------------------------------------------------------------------------------------------------- problems
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/backends/", 404),  # and no redirect
        ("GET", "/v1/backends/absent", 404),
        ("GET", "/v1/backends/absent/cap", 404),
        ("GET", "/v1/backends/chat/sweeps/absent", 404),
        ("GET", "/v1/backends/chat/sweeps/a%00b", 404),
        ("GET", "/v1/backends/fresh/sweeps/sweep-6", 404),  # another backend's
        ("DELETE", "/v1/backends", 405),
        ("POST", "/v1/backends/chat/cap", 405),
    ],
)
def test_every_error_is_a_problem_document(method: str, path: str, status: int) -> None:
    response = ask(FakeOperator(snapshot(), records=(record(),)), path, method)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert response.json()["detail"]


def test_an_unknown_backend_is_answered_with_the_names_there_are() -> None:
    document = ask(FakeOperator(snapshot()), "/v1/backends/chatt/cap").json()
    assert document["backends"] == ["chat", "fresh"]
    assert "chat, fresh" in document["detail"]


def test_405_names_every_method_of_the_path() -> None:
    operator = FakeOperator(snapshot())
    assert ask(operator, "/v1/backends/chat/sweeps", "DELETE").headers["allow"] == "GET, HEAD, POST"
    assert ask(operator, "/v1/backends/chat/sweeps", "DELETE", tokens=()).headers["allow"] == "GET, HEAD"


def test_a_database_that_fails_is_503_for_the_history_and_nothing_for_the_cap() -> None:
    operator = FakeOperator(snapshot(), failure=StoreError("The database does not answer.", "Wait."))
    response = ask(operator, "/v1/backends/chat/sweeps")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["detail"] == "The database does not answer. Wait."
    assert ask(operator, "/v1/backends/chat/cap").status_code == 200


def test_a_defect_of_ours_tells_the_client_nothing_of_its_inside() -> None:
    operator = FakeOperator(snapshot(), failure=RuntimeError("password=hunter2"))
    response = ask(operator, "/v1/backends/chat/sweeps", raises=False)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in response.text


# --------------------------------------------------------------------------------------------------- starting a sweep
def test_an_operator_starts_a_sweep() -> None:
    operator = FakeOperator(snapshot())
    response = ask(operator, "/v1/backends/chat/sweeps", "POST", json={"reason": "new driver"}, **bearer(OPERATOR))
    assert response.status_code == 202
    assert response.json() == {"sweep_id": "sweep-7", "backend": "chat"}
    assert response.headers["location"] == "/v1/backends/chat/sweeps/sweep-7"
    assert ask(operator, "/v1/backends/chat/sweeps", "POST", **bearer(OPERATOR)).status_code == 202
    assert operator.asked == [("chat", "new driver"), ("chat", "requested over HTTP")]


def test_a_second_sweep_is_a_conflict() -> None:
    operator = FakeOperator(snapshot(), busy=True)
    response = ask(operator, "/v1/backends/chat/sweeps", "POST", **bearer(OPERATOR))
    assert response.status_code == 409
    assert response.json()["detail"] == "A sweep of this backend runs already. Wait for its end."


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"reason": 5}', b'{"reason": ""}', b'{"reasn": "x"}', b"\xff\xfe"])
def test_a_malformed_body_starts_nothing(body: bytes) -> None:
    operator = FakeOperator(snapshot())
    response = ask(operator, "/v1/backends/chat/sweeps", "POST", content=body, **bearer(OPERATOR))
    assert response.status_code == 400
    assert operator.asked == []


def test_a_body_is_read_no_further_than_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1024
            yield b" " * 1024

    operator = FakeOperator(snapshot())
    response = ask(operator, "/v1/backends/chat/sweeps", "POST", content=endless(), **bearer(OPERATOR))
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert sent <= MAX_BODY_BYTES + 2048


# ------------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize("tokens", [(), ("",)])
def test_without_an_operator_token_there_is_no_write_route(tokens: Sequence[str]) -> None:
    operator = FakeOperator(snapshot())
    response = ask(operator, "/v1/backends/chat/sweeps", "POST", tokens=tokens, headers={"Authorization": "Bearer "})
    assert response.status_code == 405
    assert operator.asked == []
    document = ask(operator, "/openapi.json", tokens=tokens).json()
    assert {method for path in document["paths"].values() for method in path} == {"get"}


READS = ["/v1/backends", "/v1/backends/chat/cap", "/v1/backends/absent", "/v1/backends/chat/sweeps", "/"]


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer", "Bearer ", READER, f"Token {READER}", "Basic !!", "Basic Og=="]
)
def test_with_a_read_token_reading_needs_it(path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = ask(FakeOperator(snapshot()), path, read_tokens=(READER, ""), headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic" if path == "/" else "Bearer")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("token", [READER, "second", OPERATOR])
def test_any_read_token_and_the_operator_token_read(token: str) -> None:
    for path in ("/v1/backends", "/"):
        response = ask(FakeOperator(snapshot()), path, read_tokens=(READER, "second"), **bearer(token))
        assert response.status_code == 200


def test_browsers_send_the_token_as_a_password_to_the_page_only() -> None:
    credentials = base64.b64encode(f"anybody:{OPERATOR}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    operator = FakeOperator(snapshot())
    assert ask(operator, "/", read_tokens=(READER,), headers=headers).status_code == 200
    assert ask(operator, "/v1/backends", read_tokens=(READER,), headers=headers).status_code == 401
    assert ask(operator, "/v1/backends/chat/sweeps", "POST", headers=headers).status_code == 401
    assert operator.asked == []


def test_writing_needs_the_operator_token_and_a_read_token_is_not_enough() -> None:
    operator = FakeOperator(snapshot())
    path = "/v1/backends/chat/sweeps"
    assert ask(operator, path, "POST").status_code == 401
    assert ask(operator, path, "POST", **bearer("wrong")).status_code == 401
    refused = ask(operator, path, "POST", read_tokens=(READER,), **bearer(READER))
    assert refused.status_code == 403
    assert "insufficient_scope" in refused.headers["www-authenticate"]
    assert operator.asked == []


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/static/page.css"])
def test_probes_scrapers_and_documentation_need_no_token(path: str) -> None:
    assert ask(FakeOperator(snapshot()), path, read_tokens=(READER,)).status_code == 200


# ------------------------------------------------------------------------------------------------------------- probes
def test_readiness_is_about_this_process_and_never_about_backends() -> None:
    dead = calibrated(up=False, health_reason="refused")
    assert ask(FakeOperator(snapshot(dead)), "/readyz").status_code == 200
    starting = FakeOperator(snapshot(ready=False))
    assert ask(starting, "/readyz").status_code == 503
    assert ask(starting, "/livez").status_code == 200
    assert ask(starting, "/v1/backends").status_code == 503


# ------------------------------------------------------------------------------------------------------------ OpenAPI
@pytest.mark.parametrize("tokens", [(), (OPERATOR,)])
def test_the_document_is_valid_and_describes_exactly_the_routes(tokens: Sequence[str]) -> None:
    app = app_of(FakeOperator(snapshot()), operator_tokens=tokens)
    document = ask(FakeOperator(snapshot()), "/openapi.json", tokens=tokens).json()
    OpenAPIV31SpecValidator(document).validate()
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    served = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route) and route.methods
        for method in route.methods - {"HEAD"}
    }
    assert documented == served
    assert len(app.routes) == len(document["paths"])
    assert "/$defs/" not in json.dumps(document)


@pytest.mark.parametrize(
    ("method", "path", "documented"),
    [
        ("GET", "/v1/backends", "/v1/backends"),
        ("GET", "/v1/backends/chat", "/v1/backends/{name}"),
        ("GET", "/v1/backends/absent", "/v1/backends/{name}"),
        ("GET", "/v1/backends/chat/cap", "/v1/backends/{name}/cap"),
        ("GET", "/v1/backends/fresh/cap", "/v1/backends/{name}/cap"),
        ("GET", "/v1/backends/fresh/cap?wait=99", "/v1/backends/{name}/cap"),
        ("GET", "/v1/backends/chat/sweeps", "/v1/backends/{name}/sweeps"),
        ("GET", "/v1/backends/chat/sweeps/sweep-6", "/v1/backends/{name}/sweeps/{sweep_id}"),
        ("GET", "/v1/backends/chat/sweeps/absent", "/v1/backends/{name}/sweeps/{sweep_id}"),
        ("POST", "/v1/backends/chat/sweeps", "/v1/backends/{name}/sweeps"),
    ],
)
def test_real_answers_fit_their_documented_schemas(method: str, path: str, documented: str) -> None:
    operator = FakeOperator(snapshot(calibrated(progress=running()), fallback()), records=(record(),))
    response = ask(operator, path, method, **bearer(OPERATOR))
    document = ask(operator, "/openapi.json").json()
    answer = document["paths"][documented][method.lower()]["responses"][str(response.status_code)]
    schema = answer["content"][response.headers["content-type"]]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(response.json())


def test_head_works_wherever_get_does() -> None:
    operator = FakeOperator(snapshot(), records=(record(),), packed={"sweep-6": pack([], {}, (), 0.0)})
    paths = ask(operator, "/openapi.json").json()["paths"]
    for path in [path for path, methods in paths.items() if "get" in methods]:
        url = path.replace("{name}", "chat").replace("{sweep_id}", "sweep-6").replace("{asset}", "page.js")
        assert ask(operator, url, "HEAD", **bearer(OPERATOR)).status_code == 200, url
