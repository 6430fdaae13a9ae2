"""`make audit`: known vulnerabilities and licences of the locked run-time packages (`python -m support.audit`).

| finding | line | exit |
|---|---|---|
| a known vulnerability | VULNERABLE | 1, unless requirements/audit.toml lets it pass, with a reason and until a date |
| the advisory service is silent, or does not know a package | NOT CHECKED | 0: said, never taken for "none found" |
| an entry of audit.toml that has run out, or that nothing needs any more | OUT OF DATE | 1 |
| a licence that is not on the list of audit.toml, or none that is named | LICENCE | 1 |

pip-audit says "No known vulnerabilities found" and exits 0 also when it could not look any package up; so its JSON is
read, not its exit code.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCK, ALLOWED = ROOT / "requirements" / "runtime.txt", ROOT / "requirements" / "audit.toml"
LIMIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report."""

    line: str
    fails: bool


def locked_names(lock: str) -> list[str]:
    return sorted(set(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==", lock, re.MULTILINE)))


def advisories() -> tuple[list[dict[str, Any]] | None, str]:
    """What pip-audit found, by package; None and why if it found nothing out at all."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return None, f"no answer within {LIMIT_S:g} s"
    except (ValueError, KeyError):
        return None, (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]
    return found, ""


def vulnerability_findings(
    dependencies: list[dict[str, Any]] | None, why: str, entries: Iterable[Mapping[str, Any]], today: date
) -> list[Finding]:
    if dependencies is None:
        return [Finding(f"NOT CHECKED: the advisory service cannot be asked ({why})", fails=False)]
    findings, used = [], set()
    let_pass = {entry["id"]: entry for entry in entries}
    for one in dependencies:
        for advisory in one.get("vulns", ()):
            names = {advisory["id"], *advisory.get("aliases", ())}
            entry = next((let_pass[name] for name in sorted(names) if name in let_pass), None)
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no version"
            line = f"{one['name']} {one['version']}: {advisory['id']}, fixed in {fixed}"
            if entry is None or entry["package"] != one["name"]:
                findings.append(Finding(f"VULNERABLE: {line}", fails=True))
                continue
            used.add(entry["id"])
            is_over = entry["until"] < today
            kind = "OUT OF DATE" if is_over else "LET PASS"
            findings.append(Finding(f"{kind}: {line} (until {entry['until']}: {entry['reason']})", fails=is_over))
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if skipped:
        some = f"{len(skipped)} of {len(dependencies)} packages"
        findings.append(Finding(f"NOT CHECKED: the advisory service does not know {some}", fails=False))
    else:
        unused = sorted(let_pass.keys() - used)
        findings += [Finding(f"OUT OF DATE: nothing needs the entry {name} any more", fails=True) for name in unused]
    return findings


def licence_of(name: str, stated: Mapping[str, str]) -> str | None:
    """SPDX; "" if the package names none. None: it is not installed here, being for another platform."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return None
    return found["License-Expression"] if "License-Expression" in found else stated.get(name, "")


def is_allowed(expression: str, allowed: Iterable[str]) -> bool:
    """SPDX without exceptions and brackets: of alternatives one must be on the list, of parts all."""
    known = set(allowed)
    return any(set(choice.split(" AND ")) <= known for choice in expression.split(" OR "))


def licence_findings(licences: Mapping[str, str], allowed: Iterable[str]) -> list[Finding]:
    return [
        Finding(f"LICENCE: {name} is under {expression or 'a licence that it does not name'}", fails=True)
        for name, expression in licences.items()
        if not is_allowed(expression, allowed)
    ]


def main() -> int:
    settings = tomllib.loads(ALLOWED.read_text("utf-8"))
    names = locked_names(LOCK.read_text("utf-8"))
    dependencies, why = advisories()
    findings = vulnerability_findings(dependencies, why, settings.get("vulnerability", ()), datetime.now(UTC).date())
    known = {name: licence_of(name, settings["licences"]["of"]) for name in names}
    licences = {name: expression for name, expression in known.items() if expression is not None}
    findings += licence_findings(licences, settings["licences"]["allowed"])
    for finding in findings:
        print(f"audit: {finding.line}")
    kinds = sorted(set(licences.values()))
    print(f"audit: {len(names)} packages; licences of {len(licences)} installed ones: {', '.join(kinds)}")
    failed = sum(finding.fails for finding in findings)
    print(f"audit: {failed} to be repaired" if failed else "audit: nothing to be repaired")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
