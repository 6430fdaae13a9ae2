"""Whatever stands in a configuration, it is read or refused in words: never a traceback, never a hang.

Random bytes, random YAML, and valid configurations with something wrong in them: a value of another kind, a key lost,
misspelt or in the wrong place, characters changed in the text. What is accepted must work all the way to the plans,
and what `check` prints of it must be a configuration itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.service_process import run_calibrator

from calibrator.cli.serve import cost_lines
from calibrator.errors import ConfigurationError
from calibrator.settings import backend_plans, load_settings, redacted

VALID: dict[str, Any] = {
    "listen": {"host": "127.0.0.1", "port": 8300, "proxies": ["10.0.0.0/8"]},
    "store": {"path": "calibrator.db", "keep_sweeps": 10},
    "sweeps": {"max_parallel": 2},
    "load": {"kind": "processes", "workers": 2, "selftest": False},
    "gateways": {"envoy": {"clusters": {"a": "chat"}}, "haproxy": {"port": 8301}},
    "log": {"level": "info", "format": "json"},
    "backends": {
        "chat": {
            "url": "http://127.0.0.1:9/v1",
            "model": "m",
            "objectives": ["ttft p99 <= 500ms", "e2e p95 <= 20s for prompts <= 3000 tokens"],
            "fallback_cap": 8,
            "every": "6h",
            "jitter_ratio": 0.1,
            "windows": [{"days": ["mon"], "from": "22:00", "to": "06:00", "time_zone": "Europe/Berlin"}],
            "bounds": {"min": 1, "max": 128},
            "budget": {"requests": 1800, "duration": "20m", "overload": "120s"},
            "cap": {"min": 1, "max": 500},
            "workload": {"classes": [{"name": "a", "share": 2, "prompt_tokens": 300, "output_tokens": 20}]},
            "replicas": {"dns": {"name": "engine.models", "record": "srv", "period": "9s"}, "weight": 2},
            "limits": {"start_below": 0.5, "tokens_per_day": 10_000_000, "abort": {"kv_usage": 0.9}},
            "guard": {"enabled": True, "settle": "1m"},
            "triggers": {"off": ["drift"], "restart": "1h"},
            "burst": "report",
        },
        "code": {
            "model": "n",
            "objectives": ["ttft p99 <= 500ms"],
            "fallback_cap": 3,
            "replicas": {"urls": ["http://127.0.0.1:7/v1", "http://127.0.0.1:8/v1"]},
        },
    },
}
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "null", "~", "9" * 400, "1e999", "-1", "NaN", ".inf", "1h1h", "0s", "99999h", "p99", "ttft p99 <= 0s",
         "ttft p99.999999999999 <= 1s", "http://", "http://[", "http://a:99999/v1", "http://\u00e9/v1", "\0", "../..",
         "\u202e", "22:00", "24:00", "Europe", "{", "&a", "*a", "!!python/object:os.system", "<<", "file", "env"]
    ),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.integers(-(10**30), 10**30), TEXTS,
    st.sampled_from([0, -1, 2**63, 10**18, 1e-300, 0.5]),
)  # fmt: skip
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def judge(folder: Path, content: bytes, environ: dict[str, str] | None = None) -> bool:
    """Whether it is a configuration. Anything but a refusal in words propagates."""
    file = folder / "calibrator.yaml"
    file.write_bytes(content)
    try:
        found = load_settings(file, environ or {})
        backend_plans(found, {})
    except ConfigurationError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert len(refusal) > 10, "it says what is wrong"
        assert all(len(line) < 2000 for line in refusal.splitlines())
        return False
    assert len(cost_lines(found)) == len(found.backends)
    printed = yaml.safe_dump(redacted(found), sort_keys=False)
    file.write_text(printed, encoding="utf-8")
    assert load_settings(file, {}) == found, "what is printed is a configuration itself"
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def test_the_configuration_that_is_mutated_is_valid(folder: Path) -> None:
    assert judge(folder, yaml.safe_dump(VALID).encode())


@settings(settings.get_profile("fuzz"))
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes(folder: Path, content: bytes) -> None:
    judge(folder, content)


@settings(settings.get_profile("fuzz"))
@given(tree=JUNK)
def test_random_trees(folder: Path, tree: Any) -> None:
    judge(folder, yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))


# ---------------------------------------------------------------------------------------------------------- mutations
def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed, from the root down."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutate(draw: st.DrawFn, tree: Any) -> None:
    path = draw(st.sampled_from(list(places(tree))))
    node = tree
    for key in path[:-1]:
        node = node[key]
    key, kind = path[-1], draw(st.sampled_from(["value", "value", "lost", "renamed", "wrapped", "moved", "number"]))
    if kind == "lost":
        del node[key]
    elif kind == "renamed" and isinstance(node, dict):
        node[draw(TEXTS)] = node.pop(key)
    elif kind == "wrapped":
        node[key] = [node[key], copy.deepcopy(node[key])]
    elif kind == "moved":
        tree[str(key)] = copy.deepcopy(node[key])
    elif kind == "number":
        node[key] = draw(st.sampled_from([0, 1, -1, 10**9, 10**18, 0.0, 1.0, 1e300, 1e-9]))
    else:
        node[key] = draw(JUNK)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    tree = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        mutate(draw, tree)
        if not any(places(tree)):
            break
    return tree


@settings(settings.get_profile("fuzz"), max_examples=5 * settings.get_profile("fuzz").max_examples)
@given(tree=mutated())
def test_valid_ones_with_something_wrong(folder: Path, tree: dict[str, Any]) -> None:
    judge(folder, yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_their_text_with_characters_changed(folder: Path, data: st.DataObject) -> None:
    text = yaml.safe_dump(VALID)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 12))
    put = data.draw(
        st.one_of(TEXTS, st.sampled_from(["\t", ": ", "- ", "\n", "'", '"', "#", "? ", "|", ">", "---\n", "%"]))
    )
    judge(folder, f"{text[:at]}{put}{text[at + cut :]}".encode("utf-8", "surrogatepass"))


WORDS = [
    "LISTEN",
    "PORT",
    "BACKENDS",
    "CHAT",
    "CODE",
    "URL",
    "CAP",
    "MIN",
    "GUARD",
    "AUTH",
    "READ_TOKENS",
    "0",
    "",
    "X",
]


@settings(settings.get_profile("fuzz"))
@given(
    st.dictionaries(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(lambda parts: "CALIBRATOR_" + "__".join(parts)),
        TEXTS.filter(lambda text: "\0" not in text)
        | JUNK.map(lambda junk: yaml.safe_dump(junk, default_flow_style=True)),
        max_size=3,
    )
)
def test_the_environment(folder: Path, environ: dict[str, str]) -> None:
    judge(folder, yaml.safe_dump(VALID).encode(), environ)


# ------------------------------------------------------------------------------------------------------ as a person
@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\xfe",
        b"&a [*a, *a]",
        b"backends: &a {chat: *a}",
        b"{" * 3000,
        b"a: " + b"9" * 5000,
        b"!!set {a}",
        b"? [a]\n: b",
    ],
    ids=["bytes", "aliases", "loop", "depth", "digits", "set", "key"],
)
def test_check_ends_with_2_and_a_sentence(folder: Path, content: bytes) -> None:
    file = folder / "strange.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError):
        load_settings(file, {})
    if content.startswith(b"backends"):  # the whole way once; a process takes a second
        done = run_calibrator("check", "--config", file)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("calibrator: ")
        assert "Traceback" not in done.stderr
