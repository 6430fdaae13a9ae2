"""What went wrong with a PostgreSQL, in one sentence each, by the server's own code (SQLSTATE) or the way's failure.

The driver's message is quoted where the server wrote it; those of the driver itself may hold parts of the URL.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from asyncpg.exceptions import ClientConfigurationError, TargetServerAttributeNotMatched
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from calibrator.errors import StoreError

READ_ONLY = "25006"
_URL = "the URL that store.postgresql refers to"
_CAUSES = {  # by the start of SQLSTATE: (cause, remedy)
    "28": ("refuses our credentials", f"Correct user and password in {_URL}, or the server's pg_hba.conf."),
    "3D000": ("does not exist", f"Create it, or correct {_URL}."),
    "3F000": ("has no schema that we may use", f"Create it, or correct search_path in {_URL}."),
    "42501": (
        "does not give this user the rights it needs",
        "Grant it USAGE and CREATE on the schema, and ownership of calibrator's tables.",
    ),
    "42P01": ("lacks a table", 'Restore it, or empty the schema and run "calibrator db upgrade".'),
    READ_ONLY: ("is read-only", f"Point {_URL} to the primary, or add target_session_attrs=read-write to it."),
    "57014": ("took too long", "Check what keeps the server busy."),
    "55P03": ("is kept locked by another session", "Look for it in pg_stat_activity."),
    "53100": ("is on a full disk", "Free some space."),
    "53300": ("has no connection left", "Raise max_connections, or run fewer clients."),
    "57P": ("is stopping or starting", "Wait until it is up."),
    "08": ("closed the connection", "Check whether the server was restarted."),
    "42704": (f"does not know a parameter of {_URL}", "Take it out."),
    "22023": (f"does not take a parameter of {_URL}", "Correct it."),
    "40": ("broke a transaction off, because another one wanted the same rows", "Nothing is to be done."),
}
_NO_TLS = ("does not speak TLS with us", f"Correct sslmode in {_URL}.")
_WAYS: tuple[tuple[type[BaseException], str, str], ...] = (  # the first that fits
    (TargetServerAttributeNotMatched, *_CAUSES[READ_ONLY]),
    (
        ssl.SSLCertVerificationError,
        "shows a certificate that we do not trust",
        "Give its authorities in store.ca_file, and the name it is made out to as host.",
    ),
    (ssl.SSLError, *_NO_TLS),
    (PoolTimeoutError, "has more to do than it manages", "Check what keeps the server busy."),
    (TimeoutError, "does not answer in time", "Check whether the server is up and the network lets us through."),
    (FileNotFoundError, "cannot be reached", f"Check whether the server is up and every file of {_URL} is there."),
    (OSError, "cannot be reached", f"Check whether the server is up, and the host and port in {_URL}."),
    (
        ClientConfigurationError,
        "cannot be reached as asked for",
        f"Correct {_URL}; sslmode=verify-full wants store.ca_file.",
    ),
    (BaseException, "closed the connection", "Check whether the server was restarted."),
)


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Foreign exceptions become StoreError; `name` is the database's, for the message."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise explain(name, error) from error
    except Exception as error:  # asyncpg's have no base of their own; all others pass
        if type(error).__module__.partition(".")[0] != "asyncpg":
            raise
        raise explain(name, error) from error


def explain(name: str, error: BaseException) -> StoreError:
    """One sentence of cause and one of remedy."""
    origin = _origin(error)
    state = getattr(origin, "sqlstate", None) or ""
    reason = str(origin) if state else _reason_of(origin)
    start = next((start for start in _CAUSES if state.startswith(start)), None)
    if start is not None:
        cause, remedy = _CAUSES[start]
    elif type(origin) is ConnectionError:  # none of its kinds: what asyncpg raises for "the server refused TLS"
        cause, remedy = _NO_TLS
    elif state:
        cause, remedy = "failed", "Check the database's message."
    else:
        cause, remedy = next(words for kind, *words in _WAYS if isinstance(origin, kind))
    return StoreError(f"{name[0].upper()}{name[1:]} {cause}{f' ({reason})' if reason else ''}.", remedy)


def _reason_of(error: BaseException) -> str:
    """Of the operating system or OpenSSL; never a driver's own wording."""
    return next((text for name in ("verify_message", "reason", "strerror") if (text := getattr(error, name, ""))), "")


def sqlstate(error: BaseException) -> str:
    """Empty: the server gave none."""
    return getattr(_origin(error), "sqlstate", None) or ""


def _origin(error: BaseException) -> BaseException:
    """Below SQLAlchemy's wrappers."""
    while isinstance(error, SQLAlchemyError) or type(error).__module__.startswith("sqlalchemy."):
        inner = getattr(error, "orig", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return error
