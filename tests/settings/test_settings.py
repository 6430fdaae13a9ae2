"""The configuration: what it means when it is right, and what it says when it is wrong."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrator.core.admission.admission import SafetyLimits
from calibrator.core.admission.schedule import Schedule, Window
from calibrator.core.publish.recommendation import PublishPolicy
from calibrator.core.records.harm import AbortLimits
from calibrator.core.records.history import Bounds
from calibrator.core.records.objective import Metric, Objective
from calibrator.core.search.burst_mode import BurstMode
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError
from calibrator.settings import (
    Settings,
    backend_plans,
    database_url,
    load_settings,
    parse_settings,
    redacted,
    reference_markdown,
    tokens,
)
from calibrator.settings.plans import known_secrets
from calibrator.settings.values import Secret

MINIMAL: dict[str, Any] = {
    "backends": {
        "chat": {"url": "http://host:8000/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8}
    }
}
FULL = """
listen: {host: 0.0.0.0, port: 0, proxies: [10.0.0.0/8],
         tls: {cert_file: %(folder)s/new, key_file: %(folder)s/new, client_ca_file: %(folder)s/new}}
store: {postgresql: {env: DATABASE}, ca_file: %(folder)s/new, on_corrupt: move_aside, keep_sweeps: 10,
        keep_recommendations: 20, keep_samples: 0}
auth: {operator_tokens: [{file: %(folder)s/new}, {env: OLD}], read_tokens: [{env: READ}]}
sweeps: {max_parallel: 2}
load: {kind: ray, workers: 12, ray_address: 'ray://head:10001', ray_start: 10m, selftest: false}
gateways: {haproxy: {port: 8301}}
log: {level: debug, format: console}
tracing: {endpoint: "http://collector:4318", sampled_probes_ratio: 0.01}
backends:
  chat:
    url: https://host:8000/v1/
    model: m
    engine_group: gpu-1
    replicas: {dns: {name: engine.models, record: srv, port: 8000, period: 9s, host_name: engine.example},
               measure_on: ["https://spare:8000/v1"], scale_up_delay: 2m, balancing: round_robin, weight: 3}
    api: completions
    api_key: {env: KEY}
    api_key_in: header:x-key
    headers: {X-Org: {env: ORG}}
    ca_file: %(folder)s/new
    client_cert_file: %(folder)s/new
    client_key_file: %(folder)s/new
    metrics_url: http://host:8000/metrics
    objectives: [ttft p99 <= 500ms, "e2e p90 <= 2s for prompts <= 300 tokens"]
    fallback_cap: 8
    every: 1h30m
    jitter_ratio: 0.2
    windows: [{days: [fri, mon], from: 22:00, to: "06:00", time_zone: Europe/Berlin}, {from: 12:00, to: 13:30}]
    bounds: {min: 2, max: 64}
    budget: {requests: 5000, requests_per_level: 0, duration: 20m, overload: 90s}
    cap: {min: 4, max: 128}
    workload:
      classes: [{name: a, share: 3, prompt_tokens: 300, output_tokens: 10}, {stream: false, spread_ratio: 0.5}]
      mirror: {over: 12h, weight: peak}
      prefix_reuse: 0.5
      max_prompt_tokens: 400
    burst: enforce
    safety_margin_ratio: 0
    max_increase_ratio: 2
    valid_for: 1d
    mode: observe
    publish: shadow
    limits: {start_below: 0.5, max_probe_share: 0.6, tokens: 9, requests_per_day: 8000, tokens_per_day: 70,
           overload_per_day: 6s, abort: {live_exceedances: 5, kv_usage: 0.95, blind: 4s}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "calibrator.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    return load_settings(write(folder, text), environ or {})


def refusal(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text, environ)
    return str(caught.value)


def changed(*path_and_value: Any) -> str:
    """The minimal file with one key set, `...` removes it."""
    *path, last, value = path_and_value
    tree = copy.deepcopy(MINIMAL)
    node = tree
    for key in path:
        node = node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return yaml.safe_dump(tree)


# ------------------------------------------------------------------------------------------------------------- meaning
def test_four_keys_are_enough_and_the_rest_is_by_design(tmp_path: Path) -> None:
    settings = load(tmp_path, yaml.safe_dump(MINIMAL))
    (plan,) = backend_plans(settings, {})
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.1", 8300)
    assert (plan.name, plan.engine_group, plan.target.url, plan.target.api) == (
        "chat",
        "chat",
        "http://host:8000/v1",
        "chat",
    )
    assert plan.objectives == (Objective(Metric.TTFT, 0.99, 0.5),)
    assert plan.workload == Workload()
    assert plan.bounds == Bounds()
    assert plan.schedule == Schedule(every_s=21_600.0, jitter_ratio=0.1)
    assert plan.policy == PublishPolicy(
        fallback_cap=8, safety_margin_ratio=0.1, max_increase_ratio=1.5, valid_for_s=64_800.0
    )
    assert tokens(settings, {}).operator == ()


def test_every_key_arrives_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("fresh-operator\n")
    environ = {
        "OLD": "worn-operator",
        "READ": "eyes-of-readers",
        "KEY": "sk-1",
        "DATABASE": "postgresql://u:pw-7@h/d",
        "ORG": "org-9",
    }
    settings = load(tmp_path, FULL % {"folder": tmp_path})
    (plan,) = backend_plans(settings, environ)
    found = tokens(settings, environ)
    assert (found.operator, found.read) == (("fresh-operator", "worn-operator"), ("eyes-of-readers",))
    assert (settings.listen.host, settings.listen.port, settings.sweeps.max_parallel) == ("0.0.0.0", 0, 2)
    store = settings.store
    assert (store.path, store.postgresql, store.ca_file) == (None, Secret(env="DATABASE"), tmp_path / "new")
    assert (store.on_corrupt, store.keep_sweeps, store.keep_recommendations) == ("move_aside", 10, 20)
    assert store.keep_samples == 0
    assert (settings.log.level, settings.log.format) == ("debug", "console")
    assert (plan.engine_group, plan.target.api, plan.target.api_key) == ("gpu-1", "completions", "sk-1")
    assert plan.target.credentials == (("x-key", "sk-1"), ("X-Org", "org-9"))
    assert plan.target.url == "https://host:8000/v1"
    assert plan.target.metrics_url == "http://host:8000/metrics"
    files = (plan.target.ca_file, plan.target.client_cert_file, plan.target.client_key_file)
    assert files == (str(tmp_path / "new"),) * 3
    assert plan.objectives[1] == Objective(Metric.E2E, 0.9, 2.0, 300)
    assert plan.schedule == Schedule(
        5400.0, 0.2, (Window((0, 4), 1320, 360, "Europe/Berlin"), Window((0, 1, 2, 3, 4, 5, 6), 720, 810))
    )
    assert plan.bounds == Bounds(2, 64, 5000, 0, 1200.0, 90.0)
    assert plan.policy == PublishPolicy(8, 4, 128, 0.0, 2.0, 86_400.0)
    assert plan.workload.classes == (
        WorkloadClass("a", 3.0, 300, 10, max_prompt_tokens=400),
        WorkloadClass(stream=False, spread_ratio=0.5, max_prompt_tokens=400),
    )
    assert plan.workload.prefix_reuse_ratio == 0.5
    assert plan.burst is BurstMode.ENFORCE


def test_a_query_of_the_url_stays_and_headers_are_among_the_secrets(tmp_path: Path) -> None:
    tree = copy.deepcopy(MINIMAL)
    tree["backends"]["chat"] |= {
        "url": "https://host/openai/deployments/m/?api-version=1",
        "api_key": {"env": "KEY"},
        "api_key_in": "query:key",
        "headers": {"OpenAI-Organization": {"env": "ORG"}},
    }
    settings = load(tmp_path, yaml.safe_dump(tree))
    environ = {"KEY": "sk-12345", "ORG": "org-12345"}
    (plan,) = backend_plans(settings, environ)
    assert plan.target.url == "https://host/openai/deployments/m?api-version=1"
    assert (plan.target.key_query, plan.target.credentials) == ("key=sk-12345", (("OpenAI-Organization", "org-12345"),))
    assert known_secrets(settings, environ) == ("sk-12345", "org-12345")
    assert "12345" not in repr(plan) + str(redacted(settings))


def test_what_is_printed_can_be_loaded_again_and_holds_no_secret(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("fresh-operator\n")
    environ = {
        "OLD": "worn-operator",
        "READ": "eyes-of-readers",
        "KEY": "sk-1",
        "DATABASE": "postgresql://u:pw-7@h/d",
        "ORG": "org-9",
    }
    settings = load(tmp_path, FULL % {"folder": tmp_path})
    printed = yaml.safe_dump(redacted(settings))
    assert load(tmp_path, printed) == settings
    plans = backend_plans(settings, environ)
    assert database_url(settings, environ) == "postgresql://u:pw-7@h/d"
    for secret in ("fresh-operator", "worn-operator", "eyes-of-readers", "sk-1", "pw-7", "org-9"):
        assert secret not in printed
        assert secret not in repr((settings, plans, tokens(settings, environ)))


def test_values_made_by_a_program_follow_the_same_rules(tmp_path: Path) -> None:
    assert parse_settings(MINIMAL) == load(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigurationError, match=r"the configuration: backends: is missing"):
        parse_settings({})


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        settings.listen.port = 1  # type: ignore[misc]  # the point of the test


# --------------------------------------------------------------------------------------------------------- environment
def test_the_environment_wins_over_the_file_key_by_key(tmp_path: Path) -> None:
    environ = {
        "CALIBRATOR_LISTEN__PORT": "9000",
        "CALIBRATOR_BACKENDS__CHAT__OBJECTIVES": "['e2e p90 <= 1s']",
        "CALIBRATOR_BACKENDS__CHAT__API_KEY__ENV": "KEY",
        "UNRELATED": "x",
    }
    settings = load(tmp_path, changed("listen", "host", "::1"), environ)
    assert (settings.listen.host, settings.listen.port) == ("::1", 9000)
    (plan,) = backend_plans(settings, {"KEY": "sk-1"})
    assert (plan.objectives[0].metric, plan.target.model, plan.target.api_key) == (Metric.E2E, "m", "sk-1")


def test_the_environment_alone_is_a_configuration() -> None:
    backend = {"URL": "http://h/v1", "MODEL": "8", "OBJECTIVES": "[ttft p99 <= 1s]", "FALLBACK_CAP": "3"}
    environ = {f"CALIBRATOR_BACKENDS__CHAT_EU__{key}": value for key, value in backend.items()}
    (plan,) = backend_plans(load_settings(None, environ), {})
    assert (plan.name, plan.target.model, plan.policy.fallback_cap) == ("chat-eu", "8", 3)


def test_a_misspelt_variable_is_refused_like_a_misspelt_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, yaml.safe_dump(MINIMAL), {"CALIBRATOR_LISTEN__PROT": "1"})
    assert "the environment: listen.prot: is not a known key. Did you mean 'port'?" in message


def test_one_underscore_too_few_is_not_silently_passed_over(tmp_path: Path) -> None:
    message = refusal(tmp_path, yaml.safe_dump(MINIMAL), {"CALIBRATOR_LISTEN_PORT": "9000"})
    assert "listen_port: is not a known key." in message


def test_variables_that_contradict_each_other_are_refused() -> None:
    environ = {"CALIBRATOR_LISTEN": "{port: 1}", "CALIBRATOR_LISTEN__PORT__X": "2", "CALIBRATOR_STORE": "a"}
    with pytest.raises(ConfigurationError, match=r"CALIBRATOR_LISTEN__PORT__X: .* Unset one"):
        load_settings(None, environ)


def test_variables_that_kubernetes_sets_for_a_service_called_calibrator_are_passed_over(tmp_path: Path) -> None:
    environ = {
        "CALIBRATOR_SERVICE_HOST": "10.0.0.1",
        "CALIBRATOR_SERVICE_PORT": "8300",
        "CALIBRATOR_SERVICE_PORT_HTTP": "8300",
        "CALIBRATOR_PORT": "tcp://10.0.0.1:8300",
        "CALIBRATOR_PORT_8300_TCP": "tcp://10.0.0.1:8300",
        "CALIBRATOR_PORT_8300_TCP_ADDR": "10.0.0.1",
        "CALIBRATOR_EU_SERVICE_HOST": "10.0.0.2",
    }
    assert load(tmp_path, yaml.safe_dump(MINIMAL), environ) == load(tmp_path, yaml.safe_dump(MINIMAL))


def test_variables_that_the_gateways_files_read_are_passed_over(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "deploy" / "gateways"
    text = "".join(path.read_text() for path in shipped.rglob("*") if path.is_file())
    environ = dict.fromkeys(re.findall(r"\bCALIBRATOR_[A-Z_]+", text), "x")
    assert environ.keys() == {"CALIBRATOR_URL", "CALIBRATOR_TOKEN"}
    assert load(tmp_path, yaml.safe_dump(MINIMAL), environ) == load(tmp_path, yaml.safe_dump(MINIMAL))


# ------------------------------------------------------------------------------------------------------- wrong values
CHAT = ("backends", "chat")
REFUSED: dict[str, tuple[tuple[Any, ...], str, str]] = {  # case: (change, path of the key, remedy)
    "unknown top-level key": (("backend", {}), "backend:", "Did you mean 'backends'?"),
    "unknown key, near": (("listen", "prt", 1), "listen.prt:", "Did you mean 'port'?"),
    "unknown key, far": (("log", "colour", 1), "log.colour:", "Valid keys: format, level."),
    "unknown key in a backend": ((*CHAT, "modell", "m"), "backends.chat.modell:", "Did you mean 'model'?"),
    "unknown key in a list": (
        (*CHAT, "windows", [{"from": "22:00", "to": "23:00", "timezone": "UTC"}]),
        "windows[0].timezone:",
        "Did you mean 'time_zone'?",
    ),
    "no backends": (("backends", ...), "backends:", "Add it: what is measured"),
    "empty backends": (("backends", {}), "backends:", "Add at least one."),
    "backends is a list": (("backends", []), "backends:", "Write its keys below it"),
    "backend is nothing": ((*CHAT, None), "backends.chat:", "Write its keys below it"),
    "missing required key": ((*CHAT, "fallback_cap", ...), "backends.chat.fallback_cap:", "Add it: cap published"),
    "backend name": (("backends", "Chat_1", MINIMAL["backends"]["chat"]), "backends.Chat_1:", "Use a-z, 0-9 and '-'"),
    "no objectives": ((*CHAT, "objectives", []), "backends.chat.objectives:", "Add at least one."),
    "objectives as text": (
        (*CHAT, "objectives", "ttft p99 <= 1s"),
        "backends.chat.objectives:",
        "Write it as [one, two].",
    ),
    "not an objective": ((*CHAT, "objectives", ["fast"]), "objectives[0]:", "Write it like 'ttft p99 <= 500ms'"),
    "an objective as number": ((*CHAT, "objectives", [5]), "objectives[0]:", "Write it like 'ttft p99 <= 500ms'"),
    "objective without unit": ((*CHAT, "objectives", ["ttft p99 <= 5"]), "objectives[0]:", "Write 500ms or 0.5s."),
    "objective twice": ((*CHAT, "objectives", ["ttft p99 <= 1s"] * 2), "backends.chat.objectives:", "List each once."),
    "cap of nothing": ((*CHAT, "fallback_cap", 0), "backends.chat.fallback_cap:", "Use a number of at least 1."),
    "true is no number": ((*CHAT, "fallback_cap", True), "backends.chat.fallback_cap:", "Write it in digits."),
    "half a request": ((*CHAT, "fallback_cap", 1.5), "backends.chat.fallback_cap:", "Write it like 8."),
    "text for a number": ((*CHAT, "fallback_cap", "many"), "backends.chat.fallback_cap:", "Write it like 8."),
    "fallback outside cap": ((*CHAT, "cap", {"max": 4}), "backends.chat.fallback_cap:", "Change one of them."),
    "cap upside down": ((*CHAT, "cap", {"min": 9, "max": 8}), "backends.chat.cap.min:", "Give min <= max."),
    "bounds upside down": ((*CHAT, "bounds", {"min": 9, "max": 8}), "backends.chat.bounds.min:", "Give min <= max."),
    "bounds from zero": ((*CHAT, "bounds", {"min": 0}), "backends.chat.bounds.min:", "Use a number of at least 1."),
    "margin of everything": ((*CHAT, "safety_margin_ratio", 1), "safety_margin_ratio:", "Use a number below 1."),
    "negative margin": ((*CHAT, "safety_margin_ratio", -0.1), "safety_margin_ratio:", "Use a number of at least 0."),
    "margin of infinity": ((*CHAT, "safety_margin_ratio", "inf"), "safety_margin_ratio:", "Write it like 0.1."),
    "increase below one": ((*CHAT, "max_increase_ratio", 0.9), "max_increase_ratio:", "Use a number of at least 1."),
    "duration without unit": ((*CHAT, "every", 6), "backends.chat.every:", "Write it like 500ms"),
    "duration in prose": ((*CHAT, "every", "often"), "backends.chat.every:", "Write it like 500ms"),
    "duration of nothing": ((*CHAT, "every", "0s"), "backends.chat.every:", "Use more than 0"),
    "duration of an age": ((*CHAT, "every", "9999999d"), "backends.chat.every:", "at most a year"),
    "stale before it is renewed": (
        (*CHAT, "valid_for", "6h"),
        "backends.chat.valid_for:",
        "Make it longer than every plus",
    ),
    "budget too small": ((*CHAT, "budget", {"requests": 100}), "budget.requests:", "Allow 379 requests or more"),
    "quantile too high": ((*CHAT, "objectives", ["ttft p99.9 <= 1s"]), "budget.requests:", "choose a lower quantile"),
    "overload as number": ((*CHAT, "budget", {"overload": 120}), "budget.overload:", "Write it like 500ms"),
    "nothing streams": (
        (*CHAT, "workload", {"classes": [{"stream": False}]}),
        "backends.chat.objectives:",
        "Add a class that streams",
    ),
    "a burst that is not": ((*CHAT, "burst", "always"), "burst:", "enforce"),
    "all of it shared": ((*CHAT, "workload", {"prefix_reuse": 1.0}), "workload.prefix_reuse:", "0.95"),
    "no such trace": (
        (*CHAT, "workload", {"trace": "/no/such/trace"}),
        "workload.trace: /no/such/trace: cannot be read",
        "one JSON object a line",
    ),
    "no class": ((*CHAT, "workload", {"classes": []}), "workload.classes:", "Add at least one."),
    "no share": ((*CHAT, "workload", {"classes": [{"share": 0}]}), "classes[0].share:", "Use a number above 0."),
    "spread of all": (
        (*CHAT, "workload", {"classes": [{"spread_ratio": 1}]}),
        "spread_ratio:",
        "Use a number below 1.",
    ),
    "time zone": (
        (*CHAT, "windows", [{"from": "22:00", "to": "23:00", "time_zone": "Berlin"}]),
        "windows[0].time_zone:",
        "Use an IANA name",
    ),
    "time zone outside": (
        (*CHAT, "windows", [{"from": "22:00", "to": "23:00", "time_zone": "../../etc/passwd"}]),
        "windows[0].time_zone:",
        "Use an IANA name",
    ),
    "time of day": (
        (*CHAT, "windows", [{"from": "24:00", "to": "01:00"}]),
        "windows[0].from:",
        'Write it like "22:00"',
    ),
    "weekday": ((*CHAT, "windows", [{"from": "22:00", "to": "23:00", "days": ["monday"]}]), "days[0]:", "Use 'mon'"),
    "api": ((*CHAT, "api", "embeddings"), "backends.chat.api:", "Use 'chat' or 'completions'."),
    "not a URL": ((*CHAT, "url", "host:8000"), "backends.chat.url:", "Write it like http://host:8000/v1."),
    "port out of range": ((*CHAT, "url", "http://h:99999/v1"), "backends.chat.url:", "Write it like http://"),
    "URL without a path": ((*CHAT, "url", "http://h:1"), "backends.chat.url:", "usually /v1: http://h:1/v1."),
    "URL of one operation": (
        (*CHAT, "url", "http://h/v1/chat/completions"),
        "backends.chat.url:",
        "Remove everything",
    ),
    "URL with a fragment": ((*CHAT, "url", "http://h/v1#a"), "backends.chat.url:", "Write it like http://"),
    "URL with a key in its query": (
        (*CHAT, "url", "http://h/v1?a=b&key=s3cret"),
        "backends.chat.url:",
        "query:NAME",
    ),
    "a header as text": ((*CHAT, "headers", {"X-Org": "s3cret"}), "backends.chat.headers", "Write {file:"),
    "a header of ours": ((*CHAT, "headers", {"Host": {"env": "A"}}), "backends.chat.headers", "OpenAI-Organization"),
    "a header twice": (
        (*CHAT, "headers", {"X-Org": {"env": "A"}, "x-org": {"env": "A"}}),
        "backends.chat.headers:",
        "List each once.",
    ),
    "a key at no place": ((*CHAT, "api_key_in", "cookie"), "backends.chat.api_key_in:", "header:api-key"),
    "a limit of nothing": (
        (*CHAT, "workload", {"max_prompt_tokens": 0}),
        "workload.max_prompt_tokens:",
        "at least 1",
    ),
    "URL with a space": ((*CHAT, "url", "http://h/v 1"), "backends.chat.url:", "Write it like http://"),
    "key without certificate": ((*CHAT, "client_key_file", "/k"), "client_key_file:", "Give client_cert_file too."),
    "empty path": (("store", "path", ""), "store.path:", "Write it like /etc/"),
    "path as number": (("store", "path", 5), "store.path:", "Put it in quotes."),
    "two stores": (
        ("store", {"path": "a.db", "postgresql": {"env": "A"}}),
        "store.postgresql: cannot be combined with path.",
        "Give one of the two.",
    ),
    "no store": (("store", "path", None), "store.path: is empty.", "Give the path of a SQLite file"),
    "authorities of a file": (("store", "ca_file", "/ca"), "store.ca_file:", "Remove it"),
    "port": (("listen", "port", 65536), "listen.port:", "Use a number of at most 65535."),
    "log format": (("log", "format", "xml"), "log.format:", "Use 'json' or 'console'."),
    "model as number": ((*CHAT, "model", 1.10), "backends.chat.model:", "Put it in quotes."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_value_is_refused_with_its_key_and_the_remedy(case: str, tmp_path: Path) -> None:
    change, key, remedy = REFUSED[case]
    message = refusal(tmp_path, changed(*change))
    assert key in message
    assert remedy in message
    assert "\n" not in message, "one mistake, one line"


SECRET = "sk-very-secret"
INLINE: dict[str, tuple[Any, ...]] = {
    "a key as text": (*CHAT, "api_key", SECRET),
    "a token as text": ("auth", "operator_tokens", [SECRET]),
    "a token where a list belongs": ("auth", "read_tokens", SECRET),
    "a key as an unknown reference": (*CHAT, "api_key", {"value": SECRET}),
    "a forgotten keyword": (*CHAT, "api_key", {SECRET: None}),
    "two references": (*CHAT, "api_key", {"env": "A", "file": SECRET}),
    "a secret where a variable's name belongs": (*CHAT, "api_key", {"env": SECRET}),
    "a list of secrets": (*CHAT, "api_key", [SECRET]),
    "a database's URL": ("store", "postgresql", f"postgresql://u:{SECRET}@h/db"),
    "a database's URL under another name": ("store", "url", f"postgresql://u:{SECRET}@h/db"),
    "credentials in the URL": (*CHAT, "url", f"http://user:{SECRET}@h/v1"),
    "a misspelt key": (*CHAT, "apikey", SECRET),
}


@pytest.mark.parametrize("case", INLINE)
def test_a_secret_in_the_file_is_refused_and_not_repeated(case: str, tmp_path: Path) -> None:
    *path, last, _value = INLINE[case]
    message = refusal(tmp_path, changed(*INLINE[case]))
    assert ".".join([*path, last]) in message
    assert SECRET not in message


def test_every_problem_is_reported_at_once_a_line_each(tmp_path: Path) -> None:
    tree = copy.deepcopy(MINIMAL)
    tree["listen"] = {"port": "x"}
    tree["backends"]["chat"]["cap"] = {"max": 2}
    tree["backends"]["chat"]["valid_for"] = "1h"
    tree["backends"]["other"] = {"url": "http://h/v1", "model": "a\nb", "objectives": ["x"], "fallback_cap": 1}
    message = refusal(tmp_path, yaml.safe_dump(tree))
    head, *lines = message.split("\n")
    assert head == f"{tmp_path / 'calibrator.yaml'} has 4 problems:"
    keys = [line.split(": ")[0] for line in lines]
    assert keys == [
        "listen.port",
        "backends.chat.fallback_cap",
        "backends.chat.valid_for",
        "backends.other.objectives[0]",
    ]


def test_backends_at_one_address_must_share_an_engine_group(tmp_path: Path) -> None:
    tree = copy.deepcopy(MINIMAL)
    tree["backends"]["lora"] = {**MINIMAL["backends"]["chat"], "model": "l"}
    message = refusal(tmp_path, yaml.safe_dump(tree))
    assert "backends.lora.engine_group: 'lora' and 'chat' have the same URL" in message
    assert "Give both the same engine_group." in message
    for backend in tree["backends"].values():
        backend["engine_group"] = "gpu"
    assert len(load(tmp_path, yaml.safe_dump(tree)).backends) == 2


# ------------------------------------------------------------------------------------------------------------- secrets
def test_every_missing_secret_and_file_is_named_with_its_key(tmp_path: Path) -> None:
    tree = copy.deepcopy(MINIMAL)
    tree["backends"]["chat"] |= {"api_key": {"env": "NOT_THERE"}, "ca_file": str(tmp_path / "ca.pem")}
    settings = load(tmp_path, yaml.safe_dump(tree))
    with pytest.raises(ConfigurationError) as caught:
        backend_plans(settings, {})
    message = str(caught.value)
    assert "backends.chat.api_key: the environment variable NOT_THERE is not set. Set it" in message
    assert f"backends.chat.ca_file: the file {tmp_path / 'ca.pem'} cannot be read (No such file" in message


@pytest.mark.parametrize("content", ["", "\n", "two\nlines", "sp\u00e4t", " padded", "tab\there"])
def test_a_secret_that_no_header_can_carry_is_refused_and_not_repeated(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content, encoding="utf-8")
    settings = load(tmp_path, changed("auth", "operator_tokens", [{"file": str(tmp_path / "token")}]))
    with pytest.raises(ConfigurationError, match=r"auth.operator_tokens\[0\]: .* Provide one line of ASCII") as caught:
        tokens(settings, {})
    assert not content.strip() or content not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------
# limits
def test_how_live_users_are_spared_reaches_the_plan(tmp_path: Path) -> None:
    limits = {
        "start_below": 0.5,
        "tokens_per_day": 7_000_000,
        "overload_per_day": "6s",
        "abort": {"kv_usage": 0.9, "blind": "4s"},
    }
    (plan,) = backend_plans(load(tmp_path, changed("backends", "chat", "limits", limits)), {})
    assert plan.limits == SafetyLimits(
        start_below_ratio=0.5,
        tokens_per_day=7_000_000,
        overload_per_day_s=6.0,
        abort=AbortLimits(kv_usage_ratio=0.9, blind_s=4.0),
    )
    assert backend_plans(load(tmp_path, yaml.safe_dump(MINIMAL)), {})[0].limits == SafetyLimits(), (
        "the same defaults inside and outside"
    )


@pytest.mark.parametrize("key", ["requests_per_day", "tokens_per_day"])
def test_a_day_that_no_sweep_fits_into_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"limits\.{key}: 100 ") as refusal:
        load(tmp_path, changed("backends", "chat", "limits", {key: 100}))
    assert refusal.value.remedy


@pytest.mark.parametrize(("key", "value", "flag"), [("mode", "observe", "observe"), ("publish", "shadow", "shadow")])
def test_careful_starts_reach_the_plan(tmp_path: Path, key: str, value: str, flag: str) -> None:
    (plan,) = backend_plans(load(tmp_path, changed("backends", "chat", key, value)), {})
    assert getattr(plan.limits, flag) is True


# --------------------------------------------------------------------------------------------------------------- trace
def with_trace(folder: Path, content: bytes, **more: Any) -> str:
    (folder / "trace.jsonl").write_bytes(content)
    return changed("backends", "chat", "workload", {"trace": str(folder / "trace.jsonl"), **more})


def test_a_trace_file_becomes_classes_and_is_printed_as_its_path(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"input_length": 300, "output_length": 7}\r\n{"prompt_tokens": 100, "output_tokens": 9}\n'
    settings = load(tmp_path, with_trace(tmp_path, content, prefix_reuse=0.25))
    (plan,) = backend_plans(settings, {})
    assert plan.workload == Workload((WorkloadClass.recorded("default", [(300, 7), (100, 9)], stream=True),), 0.25)
    assert load(tmp_path, yaml.safe_dump(redacted(settings))) == settings


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (b"", {}, "holds no request"),
        (b'{"prompt_tokens": 1, "output_tokens": 1}\n\n{"prompt_tokens": 1}\n', {}, "line 3: needs output_tokens"),
        (b'{"prompt_tokens": 1, "output_tokens": 1}\n\xff', {}, "line 2: is not UTF-8"),
        (b'{"prompt_tokens": 1, "output_tokens": 1}', {"classes": [{"share": 2}]}, "cannot be combined with classes"),
        (b'{"prompt_tokens": 1, "output_tokens": 1, "stream": false}', {}, "backends.chat.objectives: no class"),
        (b"\n" * (64 * 2**20 + 1), {}, "larger than 64 MiB"),
    ],
    ids=["empty", "bad line", "not text", "and classes", "no stream, but ttft", "huge"],
)  # fmt: skip
def test_a_trace_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, more: Any, words: str) -> None:
    assert words in refusal(tmp_path, with_trace(tmp_path, content, **more))


# ----------------------------------------------------------------------------------------------------------- reference
def test_the_reference_lists_every_key_with_type_default_and_meaning(tmp_path: Path) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in reference_markdown().splitlines()]
    assert all(len(row) == 4 and all(row[index] for index in (0, 1, 3)) for row in rows)
    table = {row[0].strip("`"): row[1:] for row in rows[2:]}
    assert table["backends.<name>.every"] == ["duration", "`6h`", "time between sweeps"]
    assert table["backends.<name>.fallback_cap"][1] == "**required**"
    assert table["backends.<name>.workload.classes[].stream"][:2] == ["true or false", "`true`"]
    assert table["log.format"][:2] == ["`json`, `console`", "`json`"]
    assert table["auth.operator_tokens"][:2] == ["list of secret reference", "none"]

    def keys(value: Any, path: str) -> set[str]:
        if isinstance(value, dict) and not {"file", "env"} & value.keys() and not path.endswith(".headers"):
            named = path == "backends"
            parts = [keys(one, f"{path}.{'<name>' if named else key}".lstrip(".")) for key, one in value.items()]
            return set().union({path} - {"", "backends.<name>"}, *parts)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return set().union({path}, *(keys(one, f"{path}[]") for one in value)) - {f"{path}[]"}
        return {path} - {f"{path.removesuffix('[]')}[]"}

    alternatives = {"backends.<name>.workload.trace", "store.path"}
    assert keys(redacted(load(tmp_path, FULL % {"folder": tmp_path})), "") == set(table) - alternatives
