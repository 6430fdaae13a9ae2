"""Writes the generated parts of the documentation (`make docs`); tests compare them with the code.

A part is named by a pair of comments in a Markdown file; what stands between them is made here, never by hand. The
routes come from the service with the fakes of tests/support behind it, hence `PYTHONPATH=tests`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import import_matrix
import measurements
import yaml
from support.web_fakes import FakeOperator, app_of, snapshot

from calibrator.settings.reference import reference_markdown as settings_markdown
from calibrator.telemetry.reference import engines_markdown
from calibrator.web.prometheus.metrics import reference_markdown as metrics_markdown

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DESIGN = ROOT / "calibrator" / "DESIGN.md"
DOCS = Path(__file__).parent
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"


def alerts_markdown() -> str:
    """A row per alert: how bad, after how long, what it says; the name leads to its section of the runbook."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    rows = [
        f"| [`{rule['alert']}`](../prometheus/RUNBOOK.md#{rule['alert'].lower()}) | {rule['labels']['severity']} "
        f"| {rule.get('for', '0s')} | {rule['annotations']['summary']} |"
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    ]
    return "\n".join(["| alert | severity | after | meaning |", "|---|---|---|---|", *rows]) + "\n"


def routes_markdown() -> str:
    """A row per path of the OpenAPI document, with who may ask; protocols of gateways have routes beside it."""
    app = app_of(FakeOperator(snapshot()), operator_tokens=("t" * 40,))
    document = json.loads(asyncio.run(_asked(app, "/openapi.json")))
    rows = [
        f"| `{method.upper()} {path}` | {_ACCESS[len(operation['security'])]} | {operation['summary']} |"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return "\n".join(["| route | who | what |", "|---|---|---|", *rows]) + "\n"


_ACCESS = {0: "all", 1: "operators", 2: "readers", 3: "readers, in a browser too"}


async def _asked(app: Any, path: str) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return (await client.get(path)).text


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings_markdown,
    "metrics": metrics_markdown,
    "alerts": alerts_markdown,
    "routes": routes_markdown,
    "layers": import_matrix.matrices,
    "engines": engines_markdown,
    "curve": measurements.curve,
    "long_prompts": measurements.long_prompts,
    "single_points": measurements.single_points,
}
OPENING = re.compile(r"<!-- generated: (\w+) -->")


def pages() -> list[Path]:
    """Files with generated parts."""
    return [page for page in (README, DESIGN, *sorted(DOCS.glob("*.md"))) if OPENING.search(page.read_text())]


def generated(text: str) -> str:
    """`text` with every generated part made anew."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{PARTS[match[1]]().strip()}\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in pages():
        page.write_text(generated(page.read_text()))
