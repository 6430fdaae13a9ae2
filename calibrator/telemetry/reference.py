"""The table of engines as documentation (deploy/docs/engines.md): written from `telemetry.engines`, never by hand."""

from __future__ import annotations

from calibrator.telemetry.engines import ENGINES, SPELLINGS, Column, EngineMetrics

_HEAD = "| engine | seen in | known from | in flight | latency | tokens of a request | KV use | preemptions | refused |"
_LABELS = "| engine | added up | once (lowest rank) | total beside its parts | page |"
NONE = "-"


def engines_markdown() -> str:
    """Three tables: what is read, what labels mean, how prefixes may be spelt."""
    names = [_HEAD, "|" + "---|" * _HEAD.count(" | ") + "---|", *map(_names_row, ENGINES)]
    labels = [_LABELS, "|" + "---|" * _LABELS.count(" | ") + "---|", *map(_labels_row, ENGINES)]
    spellings = ["| on the page | read as | seen |", "|---|---|---|"]
    spellings += [f"| `{written}` | `{prefix}` | {seen} |" for written, prefix, seen in SPELLINGS]
    return "\n".join([*names, "", *labels, "", *spellings]) + "\n"


def _names_row(row: EngineMetrics) -> str:
    waiting = _shown(row.waiting_requests)
    in_flight = _shown(row.running_requests)
    if row.waiting_requests:
        in_flight += f" (holds {waiting})" if row.running_holds_waiting else f" + {waiting}"
    latency = ", ".join(_shown(column) for column in (row.ttft_s, row.e2e_s, row.tpot_s) if column) or NONE
    tokens = ", ".join(_shown(column) for column in (row.prompt_tokens, row.output_tokens) if column) or NONE
    rest = (_shown(column) for column in (row.kv_usage_ratio, row.preemptions_total, row.refused_total))
    return "| " + " | ".join((row.engine, row.seen, row.basis, in_flight, latency, tokens, *rest)) + " |"


def _labels_row(row: EngineMetrics) -> str:
    totals = ", ".join(f'`{label}="{value}"`' for label, value in row.totals) or NONE
    return "| " + " | ".join((row.engine, _list(row.partition), _list(row.repeats), totals, f"`{row.path}`")) + " |"


def _list(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or NONE


def _shown(column: Column) -> str:
    """Its current name, with what chooses among its samples; older names are in the code."""
    if not column:
        return NONE
    parts = []
    for series in column[0]:
        chosen = f"{{{series.label}={'/'.join(series.values)}}}" if series.label else ""
        parts.append(f"`{series.name}{chosen}`")
    return " + ".join(parts)
