"""The only reader of the environment and of files; passes frozen values inwards (`calibrator.ports`).

Does:      reads and validates the YAML file and `CALIBRATOR_...` variables; generates the reference of all settings.
Comes in:  a file, the environment.
Goes out:  `Settings`, backend plans, tokens; ConfigurationError with cause and remedy.
Imports:   `ports`, `core`, `errors`; no adapter.
"""

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
