"""From a failed probe of the preflight to one sentence of cause, in the server's words, and a remedy that fits it.

| seen | error | exit |
|---|---|---|
| refused, no such host, TLS, 401, 403, 429, 529, 5xx, no answer in time, a quota | UnreachableError | 3 |
| http for https, or the reverse; a redirect; no LLM; an unreadable body; unknown model | ConfigurationError | 2 |
"""

from __future__ import annotations

import re

from calibrator.backends.model_list import Listing
from calibrator.backends.openai import PATHS
from calibrator.core.records.sample import REFUSALS, Failure, FailureKind, Fault
from calibrator.errors import QUOTA_REMEDY, CalibratorError, ConfigurationError, UnreachableError
from calibrator.ports.sweeps import BEARER, Target

NEED_LLM = "Give the base URL of an OpenAI-compatible server, ending in /v1."
_NO_ROUTE = (404, 405, 501)
_NO_MODEL = re.compile(
    r"(invalid|unknown|unrecogni[sz]ed|no such|not find|no)\b.{0,40}\bmodel|"
    r"\bmodels?\b.{0,120}(not found|not exist|unknown|not available|not served|not loaded|invalid|no access)",
    re.IGNORECASE,
)
_HTTP_TO_TLS = re.compile(r"http request (was sent )?to (an )?https", re.IGNORECASE)
_REMEDIES = {
    Fault.TLS_PORT: "Write https:// in the URL.",
    Fault.PLAIN_PORT: "Write http:// in the URL, or give the port that speaks TLS.",
    Fault.ENCODING: "Turn compression off for this route in the proxy before the engine: it delays tokens, too.",
    Fault.NOT_STREAMED: "Let the server or the proxy stream, or do not stream (--no-stream, stream: false), for e2e.",
    Fault.STREAMED: "Let the server answer plain requests with one document, or stream.",
    Fault.NO_EVENTS: "Check the server's log, and the proxy before it.",
}


def failure_error(failure: Failure, target: Target, listing: Listing) -> CalibratorError:
    url, detail = target.url, failure.detail.rstrip(". ")  # our sentence ends by itself
    if failure.kind is FailureKind.QUOTA:
        return UnreachableError(f"{url}: refused by a quota: {detail}.", QUOTA_REMEDY)
    if failure.fault is not None:
        return _fault_error(failure.fault, url, detail)
    if failure.kind is FailureKind.STATUS or failure.is_our_mistake:
        return _status_error(failure, target, listing)
    return _broken_error(failure.kind, url, detail)


def _broken_error(kind: FailureKind, url: str, detail: str) -> CalibratorError:
    if kind is FailureKind.PROTOCOL:
        return ConfigurationError(f"What answers at {url} is not an OpenAI-compatible server: {detail}.", NEED_LLM)
    cause, remedy = f"A single request to {url} failed", "Check the server's log."
    if kind is FailureKind.CONNECT:
        cause, remedy = f"Nothing answers at {url}", "Check the URL, and that the server runs."
    elif kind is FailureKind.TLS:
        cause, remedy = f"No TLS connection to {url}", "Check http/https, the CA file and the client certificate."
    elif kind in (FailureKind.STALLED, FailureKind.TIMEOUT):
        cause = f"{url} takes connections but does not answer"
        remedy = "Check the server's log, or wait until it is idle."
    elif kind is FailureKind.RESET and url.startswith("https:"):  # so some servers refuse a client certificate
        remedy = "Check the server's log, and whether it wants another client certificate, or any."
    return UnreachableError(f"{cause}: {detail}.", remedy)


def _fault_error(fault: Fault, url: str, detail: str) -> CalibratorError:
    causes = {
        Fault.TLS_PORT: f"{url} speaks TLS, and was asked without: {detail}.",
        Fault.PLAIN_PORT: f"No TLS connection to {url}: nothing there speaks TLS ({detail}).",
    }
    return ConfigurationError(causes.get(fault, f"The answers of {url} cannot be read: {detail}."), _REMEDIES[fault])


def _status_error(failure: Failure, target: Target, listing: Listing) -> CalibratorError:
    url, detail, status = target.url, failure.detail.rstrip(". "), failure.status or 0
    if status in (401, 403):
        return _key_error(failure, target)
    if _is_about_the_model(failure, target.model):
        served = f"It serves: {listing.nearest(target.model)}." if listing.names else "Ask the server for its models."
        return ConfigurationError(f"The server has no model '{target.model}': {detail}.", served)
    if status == 400 and url.startswith("http:") and _HTTP_TO_TLS.search(detail):
        return _fault_error(Fault.TLS_PORT, url, detail)
    if status in _NO_ROUTE and failure.kind is FailureKind.STATUS:
        return ConfigurationError(f"{url} has no {PATHS[target.api]} (status {status}): {detail}.", NEED_LLM)
    return _other_status_error(url, status, detail)


def _other_status_error(url: str, status: int, detail: str) -> CalibratorError:
    if 300 <= status < 400:
        return ConfigurationError(f"{url} {detail}.", "Give the URL it redirects to; redirects are not followed.")
    if status in REFUSALS or status >= 500:
        return UnreachableError(f"{url} answers {status}: {detail}.", "Wait until the server is ready, or see its log.")
    return ConfigurationError(
        f"{url} refuses a plain request ({status}): {detail}.", "Correct what it complains about."
    )


def _key_error(failure: Failure, target: Target) -> CalibratorError:
    has_key = bool(target.secrets)
    how = "refuses our API key" if has_key else "wants an API key"
    said = f": {failure.detail}" if failure.detail else ""
    remedy = "Give a valid API key, by file or environment."
    if has_key and target.api_key_in == BEARER:
        remedy = "Give a valid API key, or say where it belongs: --api-key-in header:api-key (api_key_in)."
    return UnreachableError(f"{target.url} {how} (status {failure.status}){said}.", remedy)


def _is_about_the_model(failure: Failure, model: str) -> bool:
    if failure.status in _NO_ROUTE:
        return "model" in failure.detail.lower()
    return failure.status in (400, 422) and (_NO_MODEL.search(failure.detail) is not None or model in failure.detail)
