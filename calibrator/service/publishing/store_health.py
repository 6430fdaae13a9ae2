"""Whether the database works, by the latest outcome of each use of it.

Each use has a name, because one may work while another fails: a database that was made read-only answers every read
and grants no lease. What is served does not depend on it; the snapshot reports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class StoreHealth:
    """Owned by the supervisor, written by its parts."""

    _problems: dict[str, str] = field(default_factory=dict)  # by use
    changes: int = 0

    def works(self, use: str) -> None:
        if self._problems.pop(use, None) is not None:
            self.changes += 1

    def fails(self, use: str, error: BaseException) -> None:
        problem = str(error) or type(error).__name__
        if self._problems.get(use) != problem:
            self._problems[use] = problem
            self.changes += 1

    @property
    def problem(self) -> str:
        """In words; empty: it works."""
        return next(iter(self._problems.values()), "")
