"""What `GET /models` says: names, the context's size, who owns it.

A name that is not listed may be served all the same: Ollama lists `m:latest` and answers to `m`, gateways list
wildcards (`openai/*`), a resolver of LoRA adapters lists its base model only, llama.cpp and TGI answer to any name. So
the list never decides; a probe does, and what is not listed is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

MAX_NAMES = 6
MAX_NAME_CHARACTERS = 100
_ENGINES = {"vllm": "vllm", "llamacpp": "llama.cpp"}  # `owned_by` -> name as in `telemetry.engines`


@dataclass(frozen=True, slots=True)
class Listing:
    """All empty where there is no list."""

    names: tuple[str, ...] = ()
    max_context_tokens: int | None = None
    engine: str | None = None

    def warnings(self, model: str) -> list[str]:
        if not self.names or model in self.names:
            return []
        if self.engine == "llama.cpp":
            return [f"The server lists {self.nearest(model)}, not '{model}'; llama.cpp answers to any name."]
        shown = f"The server lists {self.nearest(model)}, not '{model}', and answers to that name all the same"
        return [f"{shown}: see whether it is the model that you mean."]

    def nearest(self, model: str) -> str:
        """All names, or of a long list those that look like the wanted one."""
        names = self.names
        if len(names) > MAX_NAMES:
            similar = difflib.get_close_matches(model, names, MAX_NAMES, cutoff=0.3)
            names = tuple(similar) or names[:MAX_NAMES]
        shown = ", ".join(name[:MAX_NAME_CHARACTERS] for name in names)
        return shown if len(names) == len(self.names) else f"{len(self.names)} models, of them {shown}"


def read_listing(response: httpx.Response, model: str) -> Listing:
    try:
        entries = [entry for entry in response.json()["data"] if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError):
        return Listing()
    if response.status_code != 200 or not entries:
        return Listing()
    ours = _ours(entries, model)
    return Listing(
        names=tuple(str(entry.get("id")) for entry in entries),
        max_context_tokens=None if ours is None else _context_tokens(ours),
        engine=_ENGINES.get(str((ours or entries[0]).get("owned_by"))),
    )


def _ours(entries: Sequence[dict[str, Any]], model: str) -> dict[str, Any] | None:
    """The entry that must be meant; of several others none says anything about ours."""
    for name in (model, f"{model}:latest"):
        for entry in entries:
            if entry.get("id") == name:
                return entry
    return entries[0] if len(entries) == 1 else None


def _context_tokens(entry: dict[str, Any]) -> int | None:
    """vLLM: `max_model_len`; llama.cpp: `meta.n_ctx`, of one slot."""
    meta = entry.get("meta")
    for value in (entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None):
        if isinstance(value, int) and value > 0:
            return value
    return None
