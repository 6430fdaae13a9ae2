"""One token a word, and a fixed overhead: deterministic, and linear like a real chat template."""

from __future__ import annotations

from collections.abc import Sequence

OVERHEAD_TOKENS = 4  # what a chat template adds


def words(text: str) -> Sequence[str]:
    return text.split()


def prompt_tokens(prompt: Sequence[str]) -> int:
    return len(prompt) + OVERHEAD_TOKENS
