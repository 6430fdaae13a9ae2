"""Reads an engine's metrics page into a ServerLoad (port `Telemetry`).

The engine is recognised by its metric names. Without `metrics_url` the pages that engines have next to their API are
asked in turn until one is an engine's; that one is kept.

A scrape runs in the process that measures and in the service's only loop, so it must not hold either: a page is read in
parts (`telemetry.page`), a huge one is left when it is too large, a slow one when its time is over.

Never raises: an engine without metrics is a normal case, told as None, with the reason in `problem`: cause and remedy.
Of several pages that were tried, the one that came nearest is told of: a page that answers tells more than a 404.

**Redirects.** One is followed if it stays at the same scheme, host and port (`/metrics` to `/metrics/`, as mounted
applications do it). Elsewhere it is not: our key and certificates are for this host, and the remedy is to name the
other one. Where it led is kept, so it is paid for once.

**Version.** No engine shows its version on that page. Where the table names a path that tells it, it is asked once for
each process start; what does not answer is not asked again before the next.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import IntEnum
from urllib.parse import urljoin, urlsplit

import httpx

from calibrator import __version__
from calibrator.core.records.server_load import ServerLoad
from calibrator.errors import ConfigurationError
from calibrator.ports.sweeps import Target
from calibrator.telemetry.engines import ENGINES, PROCESS_START_HEADER
from calibrator.telemetry.page import PageError, PageReader, server_load

NEW_CONNECTION_FIRST = 4  # scrapes: before anything is measured there
NEW_CONNECTION_EVERY = 5  # scrapes
MAX_VERSION_BYTES = 64 * 1024
PATHS = tuple(dict.fromkeys(row.path for row in ENGINES))
_VERSION_PATHS = {row.engine: row.version_path for row in ENGINES}

_ENGINES_OWN = "Give the metrics_url of the engine itself."
_REMEDIES = {
    401: "Give api_key, or a metrics_url that needs none.",
    403: "Give api_key, or a metrics_url that needs none.",
    404: "Switch the engine's metrics on, or give metrics_url.",
}
_REDIRECTS = (301, 302, 303, 307, 308)


class Nearness(IntEnum):
    """How much a page that was tried tells of what is wrong; the first of the most telling ones is told."""

    NONE = 0
    ABSENT = 1  # 404
    REFUSED = 2  # any other status
    OTHER_PAGE = 3
    SIMILAR = 4  # it looks like an engine's


class HttpTelemetry:
    """Scrapes one replica. Raises ConfigurationError at once if its certificate files cannot be used."""

    def __init__(self, target: Target, *, timeout_s: float = 1.0) -> None:
        self.problem = ""
        self._root = _root(target.url)
        self._pages = (target.metrics_url,) if target.metrics_url else tuple(self._root + path for path in PATHS)
        self._found: str | None = None  # the one that was an engine's last
        self._asked = self._pages[0]
        self._led_to = ""
        self._nearest = Nearness.NONE
        self._model = target.model
        self._timeout_s = timeout_s
        self._scrapes = 0
        self._version_of: tuple[str, str | None] | None = None  # engine and process start
        self._version: str | None = None
        # Compressed pages are not asked for: one that unpacks to gigabytes could not be left in time.
        headers = {"User-Agent": f"calibrator/{__version__}", "Accept-Encoding": "identity"}
        if target.metrics_url is None:  # a foreign host does not get our key
            headers |= dict(target.credentials)
        if target.authority is not None and target.metrics_url is None:
            headers["Host"] = target.authority
        # The URL may hold an address only, while certificates are issued to names.
        self._extensions = {} if target.host_name is None else {"sni_hostname": target.host_name}
        self._client = httpx.AsyncClient(
            headers=headers,
            verify=_tls_context(target) if f"{self._root} {self._pages[0]}".count("https:") else False,
            timeout=timeout_s,
            trust_env=False,
        )

    async def scrape(self) -> ServerLoad | None:
        limit_s = self._timeout_s
        self._scrapes += 1
        self._nearest = Nearness.NONE
        try:
            async with asyncio.timeout(limit_s):
                return await self._first_engine()
        except (TimeoutError, httpx.TimeoutException):
            self._complain(f"did not answer within {limit_s:g} s.", "Check whether the engine hangs.", self._asked)
        except PageError as error:
            self._complain(f"{error}.", _ENGINES_OWN, self._asked)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            self._complain(*_unreachable(error), self._asked)
        return None

    async def close(self) -> None:
        await self._client.aclose()

    async def _first_engine(self) -> ServerLoad | None:
        pages, self._found = self._pages if self._found is None else (self._found,), None
        for url in pages:
            self._asked = url
            load = await self._read(url)
            if load is not None:
                self._found, self.problem = self._led_to, ""
                return await self._with_version(load)
        return None

    async def _read(self, url: str, *, may_follow: bool = True) -> ServerLoad | None:
        """None: not an engine's page."""
        async with self._get(url) as response:
            status = response.status_code
            location = response.headers.get("Location", "")
            reader = PageReader()
            if status == 200:
                async for part in response.aiter_raw():
                    reader.feed(part)
            header = response.headers.get(PROCESS_START_HEADER)
        if status in _REDIRECTS:
            return await self._follow(url, urljoin(url, location), status, may_follow=may_follow)
        if status != 200:
            remedy = _REMEDIES.get(status, "Check the engine's log, or give metrics_url.")
            nearness = Nearness.ABSENT if status == 404 else Nearness.REFUSED
            self._complain(f"answers {status}.", remedy, url, nearness)
            return None
        load = server_load(reader.text(), self._model, header)
        if load is None:
            self._complain(*_unknown(reader), url, Nearness.SIMILAR if reader.similar else Nearness.OTHER_PAGE)
        else:
            self._led_to = url
        return load

    async def _follow(self, url: str, target: str, status: int, *, may_follow: bool) -> ServerLoad | None:
        if may_follow and _origin(target) == _origin(url):
            return await self._read(target, may_follow=False)
        why = "which is elsewhere" if may_follow else "again"
        remedy = "Give metrics_url: the address where the page itself is."
        self._complain(f"answers {status}: it redirects to {target[:200]}, {why}.", remedy, url, Nearness.REFUSED)
        return None

    def _get(self, url: str) -> AbstractAsyncContextManager[httpx.Response]:
        """At first, and now and then, over a new connection: only there a load balancer shows that it is one."""
        is_new = self._scrapes <= NEW_CONNECTION_FIRST or self._scrapes % NEW_CONNECTION_EVERY == 0
        headers = {"Connection": "close"} if is_new else None
        return self._client.stream("GET", url, headers=headers, extensions=self._extensions)

    async def _with_version(self, load: ServerLoad) -> ServerLoad:
        asked_for = (load.engine, load.process_start)
        if self._version_of != asked_for:
            self._version_of, self._version = asked_for, None
            path = _VERSION_PATHS[load.engine]
            self._version = await self._ask_version(self._root + path) if path else None
        return load if self._version is None else replace(load, version=self._version)

    async def _ask_version(self, url: str) -> str | None:
        try:
            async with self._get(url) as response:
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_VERSION_BYTES:
                        return None
            version = json.loads(body)["version"] if response.status_code == 200 else None
        except (httpx.HTTPError, OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return version[:80] if isinstance(version, str) and version else None

    def _complain(self, cause: str, remedy: str, url: str, nearness: Nearness = Nearness.REFUSED) -> None:
        if nearness > self._nearest:
            self._nearest = nearness
            self.problem = f"The metrics page {url} {cause} {remedy}"


def _unknown(reader: PageReader) -> tuple[str, str]:
    """Cause and remedy of a page that no row of the table knows."""
    if reader.is_web_page:
        return "is a web page, no metrics.", _ENGINES_OWN
    if reader.similar:
        names = ", ".join(reader.similar)
        return f"looks like an engine's, but of none that we know: it has {names}.", "Please report its names."
    return "shows no engine that we know.", _ENGINES_OWN


def _unreachable(error: Exception) -> tuple[str, str]:
    words = str(error) or type(error).__name__
    if isinstance(error, (httpx.RemoteProtocolError, httpx.LocalProtocolError)):
        return f"is out of reach: no HTTP comes back ({words[:120]}).", "Check the port, and whether it wants https."
    return f"is out of reach ({words[:120]}).", "Check the address, the port and the network."


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _root(url: str) -> str:
    """`http://host/v1` -> `http://host`."""
    return url.partition("?")[0].rstrip("/").removesuffix("/v1").rstrip("/")


def _tls_context(target: Target) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
        if target.client_cert_file is not None:
            context.load_cert_chain(target.client_cert_file, target.client_key_file)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(f for f in (target.ca_file, target.client_cert_file, target.client_key_file) if f)
        raise ConfigurationError(
            f"The certificate files of the metrics page cannot be used ({files}): {error}.",
            "They must be readable, in PEM form, and belong together.",
        ) from None
    return context
