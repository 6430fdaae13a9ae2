"""Metrics pages for tests. vLLM's and llama.cpp's are real ones (`fixtures/metrics`); the others are built from the
table of engines, so they prove that the table is read as it stands, and not that an engine writes such a page.
"""

from __future__ import annotations

from pathlib import Path

from calibrator.core.records.server_load import HISTOGRAMS
from calibrator.telemetry.engines import EngineMetrics, Series

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
BOUNDS = ("0.5", "10.0", "+Inf")


def real_page(engine: str) -> str:
    return (PAGES / f"{engine}.txt").read_text()


def built_page(row: EngineMetrics, model: str = "m") -> str:
    """Every column's current series; its values are 2, or 1 of 3 observations in each bucket."""
    lines = ["# HELP something else\n# TYPE something gauge", "something 1"]
    for part, column in row.columns():
        for series in column[0] if column else ():
            if part in HISTOGRAMS:
                lines += [
                    f"{series.name}_bucket{_labels(row, series, model, le=bound)} {count}"
                    for count, bound in enumerate(BOUNDS, start=1)
                ]
                lines += [f"{series.name}_sum{_labels(row, series, model)} 9.5"]
                lines += [f"{series.name}_count{_labels(row, series, model)} 3"]
            else:
                lines.append(f"{series.name}{_labels(row, series, model)} 2")
                if series.label:
                    lines.append(f"{series.name}{_labels(row, Series(series.name, series.label, ('x',)), model)} 77")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _labels(row: EngineMetrics, series: Series, model: str, **more: str) -> str:
    labels = {row.model_label: model} if row.model_label else {}
    labels |= {series.label: series.values[0]} if series.label else {}
    text = ",".join(f'{name}="{value}"' for name, value in (labels | more).items())
    return f"{{{text}}}" if text else ""


def relabelled(page: str, old: str, new: str) -> str:
    """The samples once more, with another label."""
    return "".join(f"{line.replace(old, new)}\n" for line in page.splitlines() if old in line)
