"""Every attempt to change something leaves one entry: who, what, when, from where, and what came of it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, client_of, snapshot

from calibrator.core.publish.snapshot import Override
from calibrator.errors import StoreError
from calibrator.web.http.audit import KEPT

OPERATOR, READER = "operator-token", "reader-token"
FINGERPRINTS = {token: hashlib.sha256(token.encode()).hexdigest()[:8] for token in (OPERATOR, READER)}
SWEEPS, PIN = "/v1/backends/chat/sweeps", "/v1/backends/chat/override"
BODY = {"cap": 20, "reason": "incident 7", "author": "ada", "expires_in_s": 3600}


def audited(method: str, path: str, token: str | None, operator: FakeOperator, **sent: Any) -> list[dict[str, Any]]:
    """What the audit says of one request, read back over the API."""

    async def scenario() -> list[dict[str, Any]]:
        app = app_of(operator, operator_tokens=(OPERATOR,), read_tokens=(READER,))
        async with client_of(app, raises=False) as client:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            await client.request(method, path, headers=headers, **sent)
            entries = await client.get("/v1/audit", headers={"Authorization": f"Bearer {OPERATOR}"})
            found: list[dict[str, Any]] = entries.json()["entries"]
            return found

    return run_virtual(scenario())


WRITES = {
    "startSweep": ("POST", SWEEPS, {"reason": "new driver"}, 202),
    "putOverride": ("PUT", PIN, BODY, 200),
    "deleteOverride": ("DELETE", f"{PIN}?author=bob", None, 204),
}


def pinned() -> FakeOperator:
    operator = FakeOperator(snapshot())
    operator.pinned["chat"] = Override(20, "incident 7", "ada", 0.0, 1.0)
    return operator


@pytest.mark.parametrize("operation", WRITES)
def test_an_entry_is_complete(operation: str) -> None:
    method, path, body, status = WRITES[operation]
    [entry] = audited(method, path, OPERATOR, pinned(), json=body)
    assert entry == {
        "at": "2027-01-15T08:00:00.000Z", "operation": operation, "backend": "chat", "who": FINGERPRINTS[OPERATOR],
        "with_session": False, "address": "127.0.0.1", "outcome": "done", "status": status, "detail": "",
        "request_summary": body or {"author": "bob"},
    }  # fmt: skip


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize(
    ("token", "who", "status"),
    [(None, "anonymous", 401), ("guess", "unknown token", 401), (READER, FINGERPRINTS[READER], 403)],
)
def test_a_refused_attempt_is_told_too(operation: str, token: str | None, who: str, status: int) -> None:
    method, path, body, _ = WRITES[operation]
    operator = pinned()
    [entry] = audited(method, path, token, operator, json=body)
    assert (entry["who"], entry["outcome"], entry["status"], entry["request_summary"]) == (who, "refused", status, {})
    assert entry["detail"]
    assert operator.asked == []


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("POST", "/v1/backends/absent/sweeps", {}, 404),
        ("POST", SWEEPS, {"json": {"reason": ""}}, 400),
        ("POST", SWEEPS, {"content": b" " * 70_000}, 413),
        ("PUT", PIN, {"json": {**BODY, "cap": 0}}, 400),
        ("DELETE", PIN, {}, 404),
    ],
)
def test_what_made_no_sense_is_told_too(method: str, path: str, sent: dict[str, Any], status: int) -> None:
    [entry] = audited(method, path, OPERATOR, FakeOperator(snapshot()), **sent)
    assert (entry["outcome"], entry["status"], entry["who"]) == ("refused", status, FINGERPRINTS[OPERATOR])


def test_a_conflict_is_refused_and_a_crash_has_failed() -> None:
    [conflict] = audited("POST", SWEEPS, OPERATOR, FakeOperator(snapshot(), busy=True))
    assert (conflict["outcome"], conflict["status"]) == ("refused", 409)
    operator = pinned()
    operator.current = snapshot(ready=False)
    [early] = audited("PUT", PIN, OPERATOR, operator, json=BODY)
    assert (early["outcome"], early["status"]) == ("failed", 503)


class BrokenOperator(FakeOperator):
    async def override(self, backend: str, override: Override) -> bool:
        raise StoreError("The database is gone.", "Start it.")


def test_what_was_asked_for_is_in_the_entry_of_a_change_that_failed() -> None:
    [entry] = audited("PUT", PIN, OPERATOR, BrokenOperator(snapshot()), json=BODY)
    assert (entry["outcome"], entry["status"], entry["request_summary"]) == ("failed", 503, BODY)


def test_signing_in_and_out_is_told_and_the_token_never() -> None:
    operator = FakeOperator(snapshot())
    [good] = audited("POST", "/v1/session", None, operator, json={"token": READER})
    assert (good["operation"], good["who"], good["outcome"]) == ("beginSession", FINGERPRINTS[READER], "done")
    [bad] = audited("POST", "/v1/session", None, operator, json={"token": "a-guess-at-it"})
    assert (bad["who"], bad["outcome"], bad["status"]) == ("unknown token", "refused", 401)
    assert READER not in str(good)
    assert "a-guess" not in str(bad)
    [out] = audited("DELETE", "/v1/session", None, operator)
    assert out["operation"] == "endSession"


def test_reading_leaves_no_entry() -> None:
    assert audited("GET", "/v1/backends", READER, FakeOperator(snapshot())) == []


def test_only_operators_read_the_trail() -> None:
    async def scenario() -> list[int]:
        app = app_of(FakeOperator(snapshot()), operator_tokens=(OPERATOR,), read_tokens=(READER,))
        async with client_of(app) as client:
            tokens = ("", READER, OPERATOR)
            answers = [await client.get("/v1/audit", headers={"Authorization": f"Bearer {one}"}) for one in tokens]
            return [answer.status_code for answer in answers]

    assert run_virtual(scenario()) == [401, 403, 200]


def test_the_line_in_the_log_does_not_depend_on_the_level() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        with capture_logs() as lines:
            audited("POST", SWEEPS, OPERATOR, FakeOperator(snapshot()), json={"reason": "new driver"})
    finally:
        structlog.reset_defaults()
    [line] = lines
    assert line["event"] == "startSweep"
    assert line["logger"] == "calibrator.audit"
    assert (line["who"], line["outcome"], line["request_summary"]) == (
        FINGERPRINTS[OPERATOR],
        "done",
        {"reason": "new driver"},
    )
    assert OPERATOR not in str(line)


def test_the_trail_keeps_the_last_ones_newest_first_and_strangers_push_nothing_out() -> None:
    async def scenario() -> httpx.Response:
        app = app_of(FakeOperator(snapshot()), operator_tokens=(OPERATOR,))
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        async with client_of(app) as client:
            for number in range(KEPT + 10):
                await client.post(SWEEPS, json={"reason": f"number {number}"}, headers=headers)
                await asyncio.sleep(1.0)
            for _ in range(KEPT + 10):
                await client.post(SWEEPS)
                await asyncio.sleep(1.0)
            return await client.get("/v1/audit?limit=500", headers=headers)

    with capture_logs():
        entries = run_virtual(scenario()).json()["entries"]
    assert {entry["who"] for entry in entries[:KEPT]} == {"anonymous"}
    told = [entry["request_summary"]["reason"] for entry in entries[KEPT:]]
    assert (len(told), told[0], told[-1]) == (KEPT, f"number {KEPT + 9}", "number 10")
