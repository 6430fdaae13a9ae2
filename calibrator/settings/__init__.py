"""The only reader of the environment and of files; frozen values go inward (`calibrator.ports`)."""

from calibrator.settings.load import load_settings, parse_settings
from calibrator.settings.plans import Tokens, backend_plans, database_url, redacted, tokens
from calibrator.settings.reference import reference_markdown
from calibrator.settings.tree import Settings

__all__ = [
    "Settings",
    "Tokens",
    "backend_plans",
    "database_url",
    "load_settings",
    "parse_settings",
    "redacted",
    "reference_markdown",
    "tokens",
]
