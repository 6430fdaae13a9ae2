"""Reads an engine's `/metrics` page into a ServerLoad (port `Telemetry`).

The engine is recognised by its metric names. One process may show several engines (data-parallel ranks, label
`engine`): requests and preemptions are summed over them, KV use is the fullest one's. A page may show several models:
where one carries our name only its series count; where none does (an alias, an adapter) all count, because they share
the engine.

A scrape runs in the process that measures, so it must not hold its event loop: a vLLM page has over a thousand lines,
and the exposition parser takes some 10 us for each. Only the handful of wanted lines reaches it.

Never raises: an engine without metrics is a normal case, told as None.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from calibrator import __version__
from calibrator.core.server_load import ServerLoad
from calibrator.errors import ConfigurationError
from calibrator.ports import Target
from calibrator.telemetry.engines import ENGINES, PROCESS_START_HEADER, PROCESS_START_METRIC, EngineMetrics

NEW_CONNECTION_EVERY = 5  # scrapes
MAX_PAGE_BYTES = 8 * 1024 * 1024

_WANTED = (*(name for row in ENGINES for name in row.names), PROCESS_START_METRIC)


class HttpTelemetry:
    """Scrapes one replica. Raises ConfigurationError at once if its certificate files cannot be used."""

    def __init__(self, target: Target, *, timeout_s: float = 1.0) -> None:
        self._url = target.metrics_url or derived_metrics_url(target.url)
        self._model = target.model
        self._timeout_s = timeout_s
        self._scrapes = 0
        headers = {"User-Agent": f"calibrator/{__version__}"}
        if target.api_key is not None and target.metrics_url is None:  # a foreign host does not get our key
            headers["Authorization"] = f"Bearer {target.api_key}"
        if target.authority is not None and target.metrics_url is None:
            headers["Host"] = target.authority
        # The URL may hold an address only, while certificates are issued to names.
        self._extensions = {} if target.host_name is None else {"sni_hostname": target.host_name}
        self._client = httpx.AsyncClient(
            headers=headers,
            verify=_tls_context(target) if self._url.startswith("https:") else False,
            timeout=timeout_s,
            trust_env=False,
        )

    async def scrape(self) -> ServerLoad | None:
        try:
            async with asyncio.timeout(self._timeout_s), self._get() as response:
                if response.status_code != 200:
                    return None
                page = bytearray()
                async for part in response.aiter_bytes():
                    page += part
                    if len(page) > MAX_PAGE_BYTES:
                        return None
                header = response.headers.get(PROCESS_START_HEADER)
            return parse_server_load(page.decode("utf-8", "replace"), self._model, header)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError):
            return None  # out of reach or unreadable: None is the answer, and the caller says so

    def _get(self) -> AbstractAsyncContextManager[httpx.Response]:
        """Now and then over a new connection: a load balancer shows only there that it leads to several engines."""
        self._scrapes += 1
        headers = {"Connection": "close"} if self._scrapes % NEW_CONNECTION_EVERY == 0 else None
        return self._client.stream("GET", self._url, headers=headers, extensions=self._extensions)

    async def close(self) -> None:
        await self._client.aclose()


def derived_metrics_url(url: str) -> str:
    """`http://host/v1` -> `http://host/metrics`."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/") + "/metrics"


def parse_server_load(text: str, model: str, header: str | None = None) -> ServerLoad | None:
    """None: no engine we know. `header`: the value of `Process-Start-Time-Unix`. Raises ValueError on a broken page."""
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    series: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(wanted + "\n"):
        for sample in family.samples:
            if not math.isnan(sample.value):
                series.setdefault(sample.name, []).append(sample)
    row = next((row for row in ENGINES if _first(series, row.running)), None)
    if row is None:
        return None
    return ServerLoad(
        engine=row.engine,
        running_requests=_sum(_of_model(_first(series, row.running), row, model)),
        waiting_requests=_sum(_of_model(_first(series, row.waiting), row, model)),
        kv_usage_ratio=_max(_of_model(_first(series, row.kv_usage_ratio), row, model)),
        preemptions_total=_sum(_of_model(_first(series, row.preemptions_total), row, model)),
        process_start=_process_start(series, header),
    )


def _first(series: dict[str, list[Sample]], names: Sequence[str]) -> list[Sample]:
    return next((series[name] for name in names if name in series), [])


def _of_model(samples: list[Sample], row: EngineMetrics, model: str) -> list[Sample]:
    if row.model_label is None:
        return samples
    return [sample for sample in samples if sample.labels.get(row.model_label) == model] or samples


def _sum(samples: list[Sample]) -> float | None:
    return float(sum(sample.value for sample in samples)) if samples else None


def _max(samples: list[Sample]) -> float | None:
    return float(max(sample.value for sample in samples)) if samples else None


def _process_start(series: dict[str, list[Sample]], header: str | None) -> str | None:
    started = series.get(PROCESS_START_METRIC)
    return repr(started[0].value) if started else header


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
