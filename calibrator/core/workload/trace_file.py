"""A recorded workload: one request per line (JSON Lines), turned into classes with exactly its lengths.

| our own field | Mooncake's name | meaning |
|---|---|---|
| `prompt_tokens` | `input_length` | required |
| `output_tokens` | `output_length` | required |
| `stream` | | optional, default true |
| `class` | | optional, the name in reports; default "default" |
| | `timestamp`, `hash_ids` | accepted but not used |

Mooncake: the traces published with Qin et al., "Mooncake" (FAST 2025). Their timestamps say when requests arrive; a
closed loop sends the next request when one has ended, so only lengths and mix are used. Their block hashes say which
prefixes repeat; how much of a prompt is shared is the workload's own setting (`prefix_reuse`).

Anything else is rejected with its line number: ignoring a misspelt field would silently change the workload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from calibrator.core.workload.classes import WorkloadClass
from calibrator.errors import ConfigurationError

MAX_TRACE_BYTES = 64 * 2**20
MAX_TRACE_REQUESTS = 200_000  # more add nothing to a mix, and the sweep's process gets its own copy
MAX_TRACE_CLASSES = 64  # more would be a column of ids, not of classes
MAX_TOKENS = 10_000_000

_PROMPT, _OUTPUT = ("prompt_tokens", "input_length"), ("output_tokens", "output_length")
_KNOWN = {*_PROMPT, *_OUTPUT, "stream", "class", "timestamp", "hash_ids"}
_EXAMPLE = 'Write it like {"prompt_tokens": 512, "output_tokens": 64} or {"input_length": 512, "output_length": 64}.'


def parse_trace(lines: Iterable[str], name: str) -> tuple[WorkloadClass, ...]:
    """One class per (class, stream) of the trace, in order of appearance. `name`: the file, for messages.

    Raises ConfigurationError with the number of the first line that is wrong.
    """
    sizes: dict[tuple[str, bool], list[tuple[int, int]]] = {}
    requests = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        requests += 1
        if requests > MAX_TRACE_REQUESTS:
            raise ConfigurationError(
                f"{name}: has more than {MAX_TRACE_REQUESTS:,} requests.", "Use a random sample of it."
            )
        try:
            key, size = _request(line)
        except ValueError as error:
            raise ConfigurationError(f"{name}, line {number}: {error}.", _EXAMPLE) from None
        sizes.setdefault(key, []).append(size)
        if len(sizes) > MAX_TRACE_CLASSES:
            raise ConfigurationError(
                f"{name}, line {number}: more than {MAX_TRACE_CLASSES} different classes.", "Use few, broad classes."
            )
    if not sizes:
        raise ConfigurationError(f"{name}: holds no request.", _EXAMPLE)
    both = {cls for cls, stream in sizes if (cls, not stream) in sizes}
    return tuple(
        WorkloadClass.recorded(f"{cls}, not streamed" if cls in both and not stream else cls, of_class, stream=stream)
        for (cls, stream), of_class in sizes.items()
    )


def _request(line: str) -> tuple[tuple[str, bool], tuple[int, int]]:
    """((class, stream), (prompt, output) tokens). Raises ValueError with the cause."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - one class of error for anything wrong with a line
    unknown = next((key for key in fields if key not in _KNOWN), None)
    if unknown is not None:
        raise ValueError(f"has the unknown field '{unknown[:40]}'")
    stream, cls = fields.get("stream", True), fields.get("class", "default")
    if not isinstance(stream, bool):
        raise ValueError("'stream' is neither true nor false")  # noqa: TRY004 - as above
    if not isinstance(cls, str) or not 0 < len(cls) <= 64 or not cls.isprintable():
        raise ValueError("'class' is not a name of 1 to 64 characters")
    return (cls, stream), (_tokens(fields, _PROMPT), _tokens(fields, _OUTPUT))


def _tokens(fields: dict[str, object], names: tuple[str, str]) -> int:
    given = [name for name in names if name in fields]
    if len(given) != 1:
        raise ValueError(f"needs {' or '.join(names)}, once")
    value = fields[given[0]]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TOKENS:
        raise ValueError(f"'{given[0]}' is not a whole number from 1 to {MAX_TOKENS:,}")
    return value
