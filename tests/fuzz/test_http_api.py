"""Requests made from the OpenAPI document, good and bad ones, against a real service: it never fails, and it answers as
the document says. Three callers send each: nobody, a reader and an operator.

Generated names meet nothing, so each request is sent once more with the backend and the sweep that do exist.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from support.service_process import Service, serving, simulated_engine, write_config

TOKENS = {"operator": "operator-token", "reader": "reader-token", "nobody": ""}
BACKEND = "chat"
MAX_ATTEMPT_S = 30.0
EXCLUDED = [
    schemathesis.checks.positive_data_acceptance,  # a length that no schema names, such as that of a body, is refused
    schemathesis.checks.negative_data_rejection,  # unknown parameters are passed over, and the credentials are ours
    schemathesis.checks.not_a_server_error,  # 503 is an answer here; any other is looked for below
]


@dataclass
class Site:
    service: Service
    sweep_id: str
    schema: Any
    answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    @property
    def known(self) -> dict[str, str]:
        return {"name": BACKEND, "sweep_id": self.sweep_id, "asset": "page.css"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with simulated_engine() as engine:
        backend = {
            "url": engine.api_url, "model": "simulated", "objectives": ["ttft p90 <= 80ms"], "fallback_cap": 2,
            "every": "1h", "bounds": {"max": 4}, "budget": {"requests": 300, "requests_per_level": 0},
            "workload": {"classes": [{"prompt_tokens": 8, "output_tokens": 2}]},
        }  # fmt: skip
        tree = {
            "auth": {"operator_tokens": [{"env": "OPERATOR"}], "read_tokens": [{"env": "READER"}]},
            "load": {"selftest": False},
            "backends": {BACKEND: backend},
        }
        environ = {"OPERATOR": TOKENS["operator"], "READER": TOKENS["reader"]}
        config = write_config(tmp_path_factory.mktemp("fuzzed"), tree)
        with serving(config, token=TOKENS["operator"], environ=environ) as service:
            seen = service.wait_for_backend(BACKEND, lambda one: one["last_sweep"] is not None, "has been swept")
            schema = schemathesis.openapi.from_dict(service.document("/openapi.json"))
            yield Site(service, seen["last_sweep"]["sweep_id"], schema)
            assert service.process.poll() is None, "it lived through all of it"
        assert "Traceback" not in service.log.read_text()


def operations(site: Site) -> list[APIOperation[Any, Any, Any, Any]]:
    """All but the stream of events, which by its nature does not end."""
    found = [result.ok() for result in site.schema.get_all_operations()]
    return [operation for operation in found if operation.path != "/v1/events"]


def test_the_api_answers_as_it_is_described_whatever_it_is_asked(site: Site) -> None:
    failures: dict[str, str] = {}
    for operation in operations(site):
        fuzz(site, operation, GenerationMode.POSITIVE, failures)
        with contextlib.suppress(Unsatisfiable):  # what takes no input but a name cannot be asked wrongly
            fuzz(site, operation, GenerationMode.NEGATIVE, failures)
    assert not failures, "\n\n".join(failures.values())
    described = {(one.method.upper(), one.path) for one in operations(site)}
    assert {(method, path) for method, path, _ in site.answered} == described
    summary = Counter(status for _, _, status in site.answered.elements())
    print(f"{len(described)} operations, {site.answered.total()} requests, by status: {dict(sorted(summary.items()))}")
    assert {200, 202, 204, 303, 400, 401, 403, 404, 409} <= summary.keys(), "both sides of every check were met"


def fuzz(
    site: Site, operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, failures: dict[str, str]
) -> None:
    @settings(settings.get_profile("fuzz"), max_examples=int(os.environ.get("FUZZ_EXAMPLES", "6")))
    @given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: Case) -> None:
        for known in (False, True):
            if known:
                case.path_parameters = {name: site.known[name] for name in case.path_parameters or {}}
            if case.query and "wait" in case.query:
                case.query["wait"] = "0.01" if mode is GenerationMode.POSITIVE else case.query["wait"]
            for token in TOKENS.values():
                send(site, case, token, failures)

    attempt()


def send(site: Site, case: Case, token: str, failures: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = case.call(base_url=str(site.service.http.base_url), headers=headers, timeout=MAX_ATTEMPT_S)
    site.answered[case.method.upper(), case.operation.path, response.status_code] += 1
    try:
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, excluded_checks=EXCLUDED)
    except (AssertionError, schemathesis.errors.SchemathesisError, schemathesis.core.failures.FailureGroup) as error:
        failures.setdefault(f"{case.method} {case.operation.path} {str(error)[:80]}", str(error))
