"""A database's URL as libpq writes it, to what asyncpg takes; the driver itself understands most of it.

Its text is a secret: no message repeats any of it but host, port and database. A password that is not percent-encoded
makes parsers disagree about where the host begins, so it is refused instead of guessed at.

| parameter | here |
|---|---|
| `sslmode`, `sslrootcert`, `sslcert`, `host`, `target_session_attrs` and whatever else asyncpg knows | as in libpq |
| `connect_timeout` | as in libpq, but at most `CONNECT_LIMIT_S`: a lease does not wait longer |
| `options`, `search_path` and other settings of a session | sent to the server |
| what only libpq knows, such as `channel_binding` | refused: passing over it could weaken the connection unnoticed |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from calibrator.errors import ConfigurationError

CONNECT_LIMIT_S = 3.0
EXAMPLE = "Write it like postgresql://user:password@host:5432/name?sslmode=verify-full."
_ONLY_LIBPQ = frozenset(
    {
        "channel_binding", "client_encoding", "fallback_application_name", "gssencmode", "hostaddr", "keepalives",
        "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "replication",
        "require_auth", "requiressl", "sslcompression", "sslcrldir", "sslsni", "tcp_user_timeout",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is."""

    dsn: str = field(repr=False)
    name: str  # for messages
    connect_limit_s: float


def parse_url(url: str, ca_file: str | None = None) -> Address:
    """Raises ConfigurationError that repeats nothing of the URL."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise _refusal("does not begin with postgresql://", EXAMPLE)
    try:
        parts = urlsplit(url)
        if parts.netloc.count("@") > 1 or "@" in parts.path + parts.query or parts.fragment:
            raise _refusal("holds a bare '@', '/', '?' or '#'", "Write such signs as %40, %2F, %3F and %23.")
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _refusal("cannot be read", EXAMPLE) from None
    _, _, hosts = parts.netloc.rpartition("@")
    for host in hosts.split(","):
        _, colon, port = host.rpartition("]")[2].partition(":")
        if colon and not port.isdigit():
            raise _refusal("has a port that is no number", EXAMPLE)
    if odd := sorted(query.keys() & _ONLY_LIBPQ):
        raise _refusal(f"holds the parameter '{odd[0]}', which is not supported", "Take it out.")
    limit = query.pop("connect_timeout", "") or str(CONNECT_LIMIT_S)
    try:
        limit_s = float(limit)
    except ValueError:
        raise _refusal("has a connect_timeout that is no number", "Give seconds.") from None
    if ca_file is not None:
        query = {"sslmode": "verify-full"} | query | {"sslrootcert": ca_file}
    database = unquote(parts.path.lstrip("/")) or query.get("dbname", "") or query.get("database", "")
    place = unquote(hosts) or query.get("host") or "this machine"
    return Address(
        parts._replace(query=urlencode(query)).geturl(),
        f"the database {database or '(of the same name as its user)'} at {place}",
        min(limit_s, CONNECT_LIMIT_S) if limit_s > 0.0 else CONNECT_LIMIT_S,
    )


def _refusal(cause: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"The database URL that store.postgresql refers to {cause}.", remedy)
