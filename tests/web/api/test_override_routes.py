"""`PUT` and `DELETE .../override` over HTTP, and where an override can be seen."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, app_of, client_of, snapshot

from calibrator.core.publish.snapshot import Override
from calibrator.errors import StoreError

PATH = "/v1/backends/chat/override"
PIN = {"cap": 20, "reason": "incident 7", "author": "ada", "expires_in_s": 3600}
SHOWN = {
    "cap": 20, "reason": "incident 7", "author": "ada", "set_at": "2027-01-15T08:00:00.000Z",
    "expires_at": "2027-01-15T09:00:00.000Z", "underlying_cap": 37, "underlying_state": "calibrated",
}  # fmt: skip


def ask(operator: FakeOperator, method: str, path: str = PATH, *, token: str = "op", **sent: Any) -> httpx.Response:  # noqa: S107 - a test's token
    async def scenario() -> httpx.Response:
        app = app_of(operator, operator_tokens=("op",), read_tokens=("reader",))
        async with client_of(app) as client:
            return await client.request(method, path, headers={"Authorization": f"Bearer {token}"}, **sent)

    return run_virtual(scenario())


def test_a_pin_holds_until_its_end_and_is_seen_everywhere() -> None:
    operator = FakeOperator(snapshot())
    response = ask(operator, "PUT", json=PIN)
    assert (response.status_code, response.json()) == (
        200, {"backend": "chat", "cap": 20, "override": SHOWN, "stored": True}
    )  # fmt: skip
    assert operator.pinned == {"chat": Override(20, "incident 7", "ada", EPOCH_S, EPOCH_S + 3600.0)}
    document = ask(operator, "GET", "/v1/backends/chat").json()
    assert (document["cap"], document["state"], document["override"]) == (20, "overridden", SHOWN)
    assert document["reason"] == "ada: incident 7"
    metrics = ask(operator, "GET", "/metrics").text
    assert 'calibrator_recommendation_state{backend="chat",state="overridden"} 1.0' in metrics
    assert 'calibrator_recommended_concurrency{backend="chat"} 20.0' in metrics
    assert "ada: incident 7" in ask(operator, "GET", "/").text


def test_bounds_clamp_the_cap_and_the_answer_shows_both() -> None:
    response = ask(FakeOperator(snapshot()), "PUT", json={**PIN, "cap": 9000})
    assert (response.json()["cap"], response.json()["override"]["cap"]) == (200, 9000)


def test_a_store_that_fails_does_not_stop_a_person() -> None:
    operator = FakeOperator(snapshot(), failure=StoreError("The disk is full."))
    response = ask(operator, "PUT", json=PIN)
    assert (response.status_code, response.json()["stored"]) == (200, False)


def test_removing_answers_204_and_a_second_time_404() -> None:
    operator = FakeOperator(snapshot())
    ask(operator, "PUT", json=PIN)
    removed = ask(operator, "DELETE", f"{PATH}?author=bob")
    assert (removed.status_code, removed.content) == (204, b"")
    again = ask(operator, "DELETE")
    assert again.status_code == 404
    assert "not overridden" in again.json()["detail"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cap": 0}, "cap"), ({"cap": -1}, "cap"), ({"cap": None}, "cap"), ({"cap": 2.5}, "cap"),
        ({"cap": 10_000_000}, "cap"), ({"reason": ""}, "reason"), ({"author": "x" * 201}, "author"),
        ({"expires_in_s": 0}, "expires_in_s"), ({"expires_in_s": 1e9}, "expires_in_s"), ({"until": "x"}, "until"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_changes_nothing(change: dict[str, object], named: str) -> None:
    operator = FakeOperator(snapshot())
    response = ask(operator, "PUT", json={**PIN, **change})
    assert response.status_code == 400
    assert [found["parameter"] for found in response.json()["errors"]] == [named]
    assert operator.pinned == {}


@pytest.mark.parametrize("missing", sorted(PIN))
def test_everything_must_be_said(missing: str) -> None:
    body = {key: value for key, value in PIN.items() if key != missing}
    assert ask(FakeOperator(snapshot()), "PUT", json=body).status_code == 400


def test_only_an_operator_may_and_only_for_backends_that_exist() -> None:
    operator = FakeOperator(snapshot())
    assert ask(operator, "PUT", json=PIN, token="reader").status_code == 403
    assert ask(operator, "DELETE", token="wrong").status_code == 401
    unknown = ask(operator, "PUT", "/v1/backends/chta/override", json=PIN)
    assert (unknown.status_code, unknown.json()["backends"]) == (404, ["chat", "fresh"])
    assert operator.pinned == {}
