"""Reading a trace file (`core.workload.trace_file` has its format), bounded before anything of it is kept."""

from __future__ import annotations

from pathlib import Path

from calibrator.core.workload.classes import WorkloadClass
from calibrator.core.workload.trace_file import MAX_TRACE_BYTES, parse_trace
from calibrator.errors import ConfigurationError

_REMEDY = "Give the path of a file with one JSON object a line."


def read_trace(path: Path) -> tuple[WorkloadClass, ...]:
    """Raises ConfigurationError with cause, remedy and line number."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TRACE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{path}: cannot be read ({reason}).", _REMEDY) from None
    if len(content) > MAX_TRACE_BYTES:
        raise ConfigurationError(f"{path}: is larger than {MAX_TRACE_BYTES // 2**20} MiB.", "Give a random part of it.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: is not UTF-8.", _REMEDY) from None
    return parse_trace(text.split("\n"), str(path))
