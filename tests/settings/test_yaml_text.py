"""YAML without its traps, and whatever is written in it: settings or one clear refusal, never a traceback."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calibrator.errors import ConfigurationError
from calibrator.settings import Settings, load_settings
from calibrator.settings.yaml_text import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 22:00", {"a": "22:00"}),  # YAML 1.1: 1320
        ("a: no", {"a": "no"}),  # YAML 1.1: false
        ("a: 010", {"a": 10}),  # YAML 1.1: 8
        ("a: 0x10", {"a": "0x10"}),
        ("a: 1_000", {"a": "1_000"}),  # YAML 1.1: 1000
        ("a: 2026-01-01", {"a": "2026-01-01"}),  # YAML 1.1: a date
        ("a: [1, -2, 0.5, 1e3, .5, true, False, null, ~, ]", {"a": [1, -2, 0.5, 1000.0, 0.5, True, False, None, None]}),
        ("a:", {"a": None}),
        ("8: a\ntrue: b", {"8": "a", "true": "b"}),
        ("base: &b {x: 1, y: 2}\na: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "a": {"x": 1, "y": 3}}),
        ("", None),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    assert read_yaml(text, "file") == value


@pytest.mark.parametrize(
    ("text", "where", "cause"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1", "the key 'a' is repeated"),
        ("a: {x: 1, x: 2}", "line 1, column 11", "the key 'x' is repeated"),
        ("a: [1, 2", "line 1, column 9", "expected ',' or ']'"),
        ("a: b: c", "line 1, column 5", "mapping values are not allowed"),
        ("a:\n\t- 1", "line 2, column 1", "cannot start any token"),
        ("a: *nothing", "line 1, column 4", "undefined alias"),
        ("a: !!python/object:os.system {}", "line 1, column 4", "is not supported"),
        ("a: !!int many", "line 1, column 4", "not a usable int"),
        ("a: !!timestamp x", "line 1, column 4", "is not supported"),
        ("? [a]\n: b", "line 1, column 3", "a key must be text"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "but found another document"),
        ("a: " + "9" * 5000, "line 1, column 4", "not a usable int"),
        ("a: \x00", "character 4", "special characters are not allowed"),
        ("[" * 3000, "file", "nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, where: str, cause: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read_yaml(text, "file")
    assert where in refusal.value.cause
    assert cause in refusal.value.cause
    assert refusal.value.remedy


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff")
    listed = tmp_path / "list.yaml"
    listed.write_text("- a")
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing yet\n")
    for path, words in (
        (tmp_path / "missing.yaml", "cannot be read (No such file or directory). Give the path of a YAML file."),
        (tmp_path, "cannot be read (Is a directory)"),
        (binary, "byte 4 is not UTF-8. Save the file as UTF-8."),
        (listed, "is not a mapping. Start the file with keys such as 'backends:'."),
        (empty, "backends: is missing."),
    ):
        with pytest.raises(ConfigurationError) as refusal:
            load_settings(path, {})
        assert words in str(refusal.value)
        assert str(path) in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ anything
WORDS = (
    "listen host port store path url auth operator_tokens file env sweeps log level backends chat model objectives "
    "fallback_cap every windows from to days time_zone bounds min max budget duration cap workload classes share "
    "api_key safety_margin_ratio valid_for engine_group x"
)
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["ttft p99 <= 500ms", "http://h/v1", "6h", "22:00", "mon", "UTC", "", "http://[", "p99\ud800", "9e999d"]
    ),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5)
)
BACKENDS = st.fixed_dictionaries(
    {},
    optional={
        "backends": st.dictionaries(KEYS | st.text(max_size=4), st.dictionaries(KEYS, TREES, max_size=9), max_size=2)
    },
)


def settings_or_refusal(folder: Path, text: str, environ: dict[str, str]) -> None:
    path = folder / "any.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert isinstance(load_settings(path, environ), Settings)
    except ConfigurationError as error:
        str(error).encode()  # printable on every terminal


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.one_of(TREES, BACKENDS))
def test_any_tree_gives_settings_or_a_refusal(tree: Any, tmp_path: Path) -> None:
    text = yaml.safe_dump(tree, allow_unicode=False)
    settings_or_refusal(tmp_path, text, {})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=string.printable + "é\u2028\ufeff", max_size=60))
@example(text="&a [*a]")
@example(text="backends: &a {<<: *a}")
@example(text="backends: &a {chat: *a}")
@example(text="backends: {chat: &a {objectives: &b [*b], windows: [*a]}}")
@example(text='store: {path: "\\0"}')
@example(text='"\\ud800": 1')
@example(text="_build_sources: 1")
@example(text="self: 1")
def test_any_text_gives_settings_or_a_refusal(text: str, tmp_path: Path) -> None:
    settings_or_refusal(tmp_path, text, {})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(variables=st.dictionaries(st.lists(KEYS, max_size=4).map("__".join), st.text(max_size=20), max_size=5))
def test_any_environment_gives_settings_or_a_refusal(variables: dict[str, str], tmp_path: Path) -> None:
    environ = {f"CALIBRATOR_{name.upper()}": value for name, value in variables.items()}
    settings_or_refusal(tmp_path, "{}", environ)
