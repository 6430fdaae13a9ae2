"""The audit of dependencies fails for what must be repaired, and never takes "could not look" for "nothing found"."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from support.audit import Finding, is_allowed, licence_findings, locked_names, vulnerability_findings

TODAY = date(2026, 7, 1)
FLAW = {"id": "PYSEC-1", "aliases": ["GHSA-1"], "fix_versions": ["2.0"]}
SOUND: dict[str, Any] = {"name": "sound", "version": "1.0", "vulns": []}
FLAWED: dict[str, Any] = {"name": "flawed", "version": "1.0", "vulns": [FLAW]}
UNKNOWN: dict[str, Any] = {"name": "unknown", "skip_reason": "not found"}


def entry(name: str = "GHSA-1", package: str = "flawed", until: date = date(2026, 8, 1)) -> dict[str, Any]:
    return {"id": name, "package": package, "until": until, "reason": "not reached"}


def judged(dependencies: list[dict[str, Any]] | None, *entries: dict[str, Any]) -> list[tuple[str, bool]]:
    found = vulnerability_findings(dependencies, "refused", entries, TODAY)
    return [(finding.line.partition(":")[0], finding.fails) for finding in found]


@pytest.mark.parametrize(
    ("dependencies", "entries", "expected"),
    [
        ([SOUND], [], []),
        ([SOUND, FLAWED], [], [("VULNERABLE", True)]),
        ([FLAWED], [entry()], [("LET PASS", False)]),
        ([FLAWED], [entry("PYSEC-1")], [("LET PASS", False)]),
        ([FLAWED], [entry(until=TODAY)], [("LET PASS", False)]),
        ([FLAWED], [entry(until=date(2026, 6, 30))], [("OUT OF DATE", True)]),
        ([FLAWED], [entry(package="another")], [("VULNERABLE", True), ("OUT OF DATE", True)]),
        ([SOUND], [entry()], [("OUT OF DATE", True)]),  # repaired meanwhile: the entry goes
        ([SOUND, UNKNOWN], [], [("NOT CHECKED", False)]),
        ([UNKNOWN, FLAWED], [], [("VULNERABLE", True), ("NOT CHECKED", False)]),
        ([UNKNOWN], [entry()], [("NOT CHECKED", False)]),  # nobody knows whether it is still needed
        (None, [], [("NOT CHECKED", False)]),
    ],
)
def test_what_fails_and_what_is_only_said(
    dependencies: list[dict[str, Any]] | None, entries: list[dict[str, Any]], expected: list[tuple[str, bool]]
) -> None:
    assert judged(dependencies, *entries) == expected


def test_lines_say_what_to_do() -> None:
    [finding] = vulnerability_findings([FLAWED], "", [], TODAY)
    assert finding == Finding("VULNERABLE: flawed 1.0: PYSEC-1, fixed in 2.0", fails=True)
    [unasked] = vulnerability_findings(None, "no answer within 15 s", [], TODAY)
    assert "no answer within 15 s" in unasked.line


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT AND BSD-3-Clause", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("", False),
    ],
)
def test_a_licence_is_on_the_list_or_fails(expression: str, allowed: bool) -> None:  # noqa: FBT001 - a table
    assert is_allowed(expression, ["MIT", "BSD-3-Clause"]) is allowed
    assert (licence_findings({"x": expression}, ["MIT", "BSD-3-Clause"]) == []) is allowed


def test_every_locked_package_is_looked_at_once() -> None:
    lock = "a==1 \\\n    --hash=sha256:0\nb-c[extra]==2 ; python_version < '3.12' \\\nb-c[extra]==3\n# d==4\n"
    assert locked_names(lock) == ["a", "b-c"]
