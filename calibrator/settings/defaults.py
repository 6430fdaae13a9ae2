"""A default stands once, beside the code that it steers: settings read theirs from the policies of `core` and `ports`.

What only the file knows (a port, the path of the database) keeps its default in the section that declares it.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import Enum
from typing import Any


def default_of(policy: type, name: str) -> Any:
    """The default of a policy's field as the file would spell it: an enumeration's value instead of its member.

    A misspelt field, or one without a plain default, fails at import: TypeError.
    """
    for field in fields(policy):
        if field.name == name and field.default is not MISSING:
            return field.default.value if isinstance(field.default, Enum) else field.default
    raise TypeError(f"{policy.__name__}.{name} has no default that a setting could share")
