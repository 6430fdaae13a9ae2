"""A canary in every secret: whatever the service shows, logs or stores, none of them is in it.

One real service runs with debug logs against a server that quotes our key in its refusals and one whose completions are
marked; then everything that anybody can see of the service is searched.
"""

from __future__ import annotations

import base64
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.service_process import Service, run_calibrator, serving, write_config
from support.telling_backend import Telling, telling_backend

from calibrator.errors import ConfigurationError
from calibrator.settings import Settings, backend_plans, parse_settings, redacted, tokens

CANARIES = {
    "OPERATOR": "c4nary-of-the-operator",
    "READER": "c4nary-of-the-readers",
    "GOOD_KEY": "c4nary-of-the-good-key",
    "BAD_KEY": "c4nary-of-the-bad-key",
    "HEADER": "c4nary-of-the-header",
    "DATABASE": "postgresql://app:c4nary-of-the-database@127.0.0.1:1/x",
}
MARK = "c4nary-of-a-completion"
GUESS = "c4nary-that-was-a-guess"
CANARY = b"c4nary"


def backend(url: str, key: str) -> dict[str, Any]:
    return {
        "url": url,
        "model": "m",
        "objectives": ["e2e p90 <= 5s"],
        "fallback_cap": 2,
        "api_key": {"env": key},
        "headers": {"X-Org": {"env": "HEADER"}},
        "bounds": {"max": 2},
        "budget": {"requests": 300, "requests_per_level": 0, "duration": "20s"},
        "workload": {"classes": [{"prompt_tokens": 8, "output_tokens": 2}]},
    }


def tree(good: str, bad: str) -> dict[str, Any]:
    return {
        "log": {"level": "debug", "format": "json"},
        "load": {"selftest": False},
        "sweeps": {"max_parallel": 2},
        "auth": {"operator_tokens": [{"env": "OPERATOR"}], "read_tokens": [{"env": "READER"}]},
        "backends": {"good": backend(good, "GOOD_KEY"), "bad": backend(bad, "BAD_KEY")},
    }


# ----------------------------------------------------------------------------------------------- one real service
@dataclass(frozen=True)
class Evidence:
    """Everything that came out, by where."""

    shown: dict[str, bytes]
    sent_keys: set[str]
    log: str


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    folder = tmp_path_factory.mktemp("canaries")
    with telling_backend(Telling(MARK)) as good, telling_backend(Telling(MARK, refuses=True)) as bad:
        config = write_config(folder, tree(good.url, bad.url))
        with serving(config, token=CANARIES["READER"], environ=CANARIES) as service:
            for name in ("good", "bad"):
                service.wait_for_backend(name, lambda seen: seen["last_sweep"] is not None, "has been swept")
            shown = dict(asked(service))
            shown |= {f"the store's {file.name}": file.read_bytes() for file in folder.glob("calibrator.db*")}
            assert service.terminate()[0] == 0
            log = service.log.read_text()
        shown |= {f"the store's {file.name} at the end": file.read_bytes() for file in folder.glob("calibrator.db*")}
        shown["the log"] = log.encode()
        yield Evidence(shown, {*good.seen, *bad.seen}, log)


def asked(service: Service) -> Iterator[tuple[str, bytes]]:
    """Every route there is, as reader, operator and nobody; headers too."""
    document = service.document("/openapi.json")
    operator = {"Authorization": f"Bearer {CANARIES['OPERATOR']}"}
    attempts: list[dict[str, str]] = [
        {},
        operator,
        {"Authorization": f"Bearer {GUESS}"},
        basic(GUESS),
        basic(CANARIES["READER"]),
    ]
    paths = [path for path, methods in document["paths"].items() if "get" in methods and "events" not in path]
    for path in paths:
        for name in ("good", "bad"):
            sweep_id = service.backend(name)["last_sweep"]["sweep_id"]
            url = path.replace("{name}", name).replace("{sweep_id}", sweep_id)
            for number, headers in enumerate(attempts):
                for query in ("", "?format=md", "?format=json") if path.endswith("/report") else ("",):
                    answer = service.http.get(f"{url}{query}", headers=headers)
                    yield f"GET {url}{query} as {number}", answer.content + str(answer.headers).encode()
    pin = {"cap": 2, "reason": "x", "author": "y", "expires_in_s": 60}
    for method, url, body in (
        ("POST", "/v1/backends/good/sweeps", {"reason": "again"}),
        ("PUT", "/v1/backends/good/override", pin),
        ("DELETE", "/v1/backends/good/override", None),
        ("POST", "/v1/session", {"token": CANARIES["OPERATOR"]}),
        ("POST", "/v1/session", {"token": GUESS}),
        ("POST", "/v1/session", {"token": {"a": GUESS}}),
        ("POST", "/v1/session", {"tokn": GUESS}),
    ):
        for number, headers in enumerate(attempts):
            answer = service.http.request(method, url, json=body, headers=headers)
            yield f"{method} {url} {number}", answer.content + str(answer.headers).encode()
    yield "the audit", service.http.get("/v1/audit", headers=operator).content


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'x:{password}'.encode()).decode()}"}


def test_nothing_that_the_service_shows_or_keeps_holds_a_secret(evidence: Evidence) -> None:
    assert [where for where, text in evidence.shown.items() if CANARY in text] == []
    for encoded in (base64.b64encode(f"x:{one}".encode()) for one in (*CANARIES.values(), GUESS)):
        assert [where for where, text in evidence.shown.items() if encoded in text] == []


def test_the_search_looked_at_what_there_is(evidence: Evidence) -> None:
    """Else the test above would prove nothing."""
    assert {f"Bearer {CANARIES[key]}" for key in ("GOOD_KEY", "BAD_KEY")} <= evidence.sent_keys
    assert CANARIES["HEADER"] in evidence.sent_keys
    everything = b"".join(evidence.shown.values())
    assert b"[our API key] of [our header]" in everything, "the refusal that quoted them was shown"
    assert b"calibrated" in everything
    assert any(where.startswith("the store's calibrator.db") for where in evidence.shown)
    assert '"level": "debug"' in evidence.log or '"serving"' in evidence.log
    assert '"calibrator.audit"' in evidence.log


def test_check_shows_no_secret(tmp_path: Path) -> None:
    whole = tree("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1") | {"store": {"postgresql": {"env": "DATABASE"}}}
    done = run_calibrator("check", "--config", write_config(tmp_path, whole), environ=CANARIES)
    assert done.returncode in {0, 2, 3}
    assert "c4nary" not in done.stdout + done.stderr
    served = run_calibrator("serve", "--config", tmp_path / "calibrator.yaml", environ=CANARIES)
    assert served.returncode != 0, "no database listens there"
    assert "127.0.0.1:1" in served.stderr, "the message names the place"
    assert "c4nary" not in served.stdout + served.stderr


# -------------------------------------------------------------------------------------------- values in the program
def parsed() -> Settings:
    whole = tree("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    return parse_settings(whole | {"store": {"postgresql": {"env": "DATABASE"}}})


def test_neither_settings_nor_plans_nor_their_tracebacks_show_a_secret() -> None:
    plans, found = backend_plans(parsed(), CANARIES), tokens(parsed(), CANARIES)
    try:
        raise_beside(plans, found)
    except ValueError as error:
        drawn = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "plans" in drawn
    for shown in (
        repr(parsed()),
        str(parsed().model_dump()),
        yaml.safe_dump(redacted(parsed())),
        repr(plans),
        drawn,
    ):
        assert "c4nary" not in shown


def raise_beside(plans: object, found: object) -> None:
    raise ValueError(f"{plans} {found}")


def test_secrets_travel_to_the_sweep_and_do_not_print() -> None:
    plan = backend_plans(parsed(), CANARIES)[0]
    travelled = pickle.loads(pickle.dumps(plan.target))  # noqa: S301 - our own
    assert travelled.api_key == CANARIES["GOOD_KEY"]
    assert travelled.headers == (("X-Org", CANARIES["HEADER"]),)
    assert "c4nary" not in repr(travelled)


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["OPERATOR", "READER", "GOOD_KEY", "BAD_KEY", "HEADER", "DATABASE"]),
    st.text(min_size=3, max_size=60).filter(lambda text: len(set(text)) > 2),
)
def test_a_refused_secret_is_not_repeated(which: str, text: str) -> None:
    """Whatever it is that cannot stand there: too short, not ASCII, of several lines."""
    secret = f"{text}\u00a7{text}"
    with pytest.raises(ConfigurationError) as caught:
        backend_plans(parsed(), {**CANARIES, which: secret})
    assert secret not in str(caught.value)
    assert "c4nary" not in str(caught.value)
