"""The preflight check of a server before a sweep: who responds, does it know the model, does the workload fit.

    GET {base}/models     names and context size; many servers have no list (404, 500), which is not an error
    short probe           with forced length; if the server rejects the fields (400, 422), without them
    long probe            about as long as the longest class: two points fit the tokenizer scale (`TokenScale.fit`)
    stub check            at most twelve: is there a model at all, and does it read what we send (`suspect_looks`)

One request at a time. Each fault of a probe ends in one sentence of cause and one of remedy:

| seen | error | exit |
|---|---|---|
| refused, no such host, TLS, 401, 403, 429, 5xx, no answer in time | UnreachableError | 3 |
| model not listed or unknown, workload beyond the context, redirect, not an LLM | ConfigurationError | 2 |

llama.cpp serves any model name, so there a name that is not listed is only a warning.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from calibrator import __version__
from calibrator.backends.http1_client import Endpoint, endpoint
from calibrator.backends.openai import PATHS, OpenAIBackend
from calibrator.backends.suspect_looks import LookPlan, take_looks
from calibrator.core.records.sample import Failure, FailureKind, Label, Phase, ProbeRequest, Sample
from calibrator.core.report.spans import ProbeTrace
from calibrator.core.workload.classes import TokenScale, Workload, WorkloadClass, make_text
from calibrator.core.workload.stub_detection import suspicions
from calibrator.errors import CalibratorError, ConfigurationError, GeneratorError, UnreachableError
from calibrator.ports.backend import BackendFacts
from calibrator.ports.sweeps import Permit, Target, forever

SHORT_WORDS = 16
FORCED_TOKENS = 8  # long enough to see that forcing works, short enough to be polite
MAX_LONG_WORDS = 2048  # a longer probe fits the scale no better
MAX_LIST_S = 10.0
CONTEXT_RESERVE_TOKENS = 64  # chat template and the tokens generated
UNKNOWN_CONTEXT_TOKENS = 1800  # fits the 2,048 of small models; some servers die of more than theirs
CAUTIOUS_TOKENS_PER_WORD = 3.0  # where the server counts nothing

_ENGINES = {"vllm": "vllm", "llamacpp": "llama.cpp"}  # `owned_by` -> name as in `telemetry.engines`
_NO_ROUTE = (404, 405, 501)
_NEED_LLM = "Give the base URL of an OpenAI-compatible server, ending in /v1."


@dataclass(frozen=True, slots=True)
class _Listing:
    """What `/models` said; all None where there is no list."""

    names: tuple[str, ...] = ()
    max_context_tokens: int | None = None
    engine: str | None = None


class OpenAIInspector:
    """Port `Inspector`."""

    def __init__(
        self,
        target: Target,
        *,
        now: Callable[[], float],
        timeout_s: float = 60.0,
        seed: int = 0,
        trace: ProbeTrace | None = None,
        permit: Permit = forever,
    ) -> None:
        self._target = target
        self._trace = trace
        self._now = now
        self._permit = permit
        self._timeout_s = timeout_s
        self._rng = random.Random(f"{seed}-inspect")  # noqa: S311 - prompts, not secrets

    async def inspect(self, workload: Workload) -> BackendFacts:
        server = endpoint(
            self._target.url,
            ca_file=self._target.ca_file,
            client_cert_file=self._target.client_cert_file,
            client_key_file=self._target.client_key_file,
            host_name=self._target.host_name,
        )
        listing = await self._listing(server)
        warnings = self._check_name(listing)
        self._check_context(workload, listing)

        short, forces_length = await self._short_probe(workload, listing)
        long_words = _long_words(workload.longest, listing, short)
        long = await self._probe(long_words, 1, forces_length=forces_length, workload=workload)
        if long.failure is not None and long.failure.status in (400, 413):
            raise ConfigurationError(
                f"The server refuses a prompt of about {long.wanted_prompt_tokens} words: {long.failure.detail}.",
                f"Shorten the prompts of workload class '{workload.longest.name}'.",
            )
        _raise_for(long, self._target, listing)
        if not forces_length:
            warnings.append("The server does not force output lengths: answers may be shorter than planned.")
        if short.prompt_tokens is None or long.prompt_tokens is None:
            warnings.append("The server reports no token usage: prompt lengths are estimates, tpot is unknown.")
            scale = TokenScale()
        else:
            scale = TokenScale.fit((SHORT_WORDS, short.prompt_tokens), (long_words, long.prompt_tokens))
        warnings += await self._suspicions(workload, listing, short, long, scale, forces_length=forces_length)
        return BackendFacts(
            model=self._target.model,
            token_scale=scale,
            forces_length=forces_length,
            max_context_tokens=listing.max_context_tokens,
            engine=listing.engine,
            warnings=tuple(warnings),
        )

    # -------------------------------------------------------------------------------------------- listing
    async def _listing(self, server: Endpoint) -> _Listing:
        headers = {"User-Agent": f"calibrator/{__version__}"}
        if self._target.api_key is not None:
            headers["Authorization"] = f"Bearer {self._target.api_key}"
        url = self._target.url.rstrip("/") + "/models"
        verify = server.tls or False  # a plain URL needs no context, and building one takes 20 ms
        patience_s = min(self._timeout_s, MAX_LIST_S)
        try:
            async with httpx.AsyncClient(headers=headers, verify=verify, timeout=patience_s, trust_env=False) as client:
                response = await client.get(
                    url, headers={"Host": server.authority}, extensions={"sni_hostname": server.tls_name}
                )
        except (httpx.HTTPError, httpx.InvalidURL, OSError):  # a late refusal of TLS is none of httpx's errors
            return _Listing()  # whatever it is, the probe meets it too, and our own client tells it better
        if response.status_code in (401, 403):
            raise _failure_error(Failure(FailureKind.STATUS, "", response.status_code), self._target, _Listing())
        return _read_listing(response, self._target.model)

    def _check_name(self, listing: _Listing) -> list[str]:
        model = self._target.model
        if not listing.names or model in listing.names:
            return []
        served = ", ".join(listing.names)
        if listing.engine == "llama.cpp":
            return [f"The server lists {served}, not '{model}'; llama.cpp answers to any name."]
        raise ConfigurationError(f"The server has no model '{model}'.", f"It serves: {served}.")

    def _check_context(self, workload: Workload, listing: _Listing) -> None:
        longest = workload.longest
        prompt, total = longest.longest_prompt_tokens, longest.longest_total_tokens
        limit = listing.max_context_tokens
        if limit is not None and total > limit:
            raise ConfigurationError(
                f"Workload class '{longest.name}' needs up to {total} tokens, {prompt} of them for a prompt; "
                f"the model's context has {limit}.",
                "Shorten its prompt or its output.",
            )

    # --------------------------------------------------------------------------------------------- probes
    async def _short_probe(self, workload: Workload, listing: _Listing) -> tuple[Sample, bool]:
        """The sample, and whether the length was forced."""
        sample = await self._probe(SHORT_WORDS, FORCED_TOKENS, forces_length=True, workload=workload)
        forces_length = sample.completion_tokens in (None, FORCED_TOKENS)
        if sample.failure is not None and sample.failure.status in (400, 422):
            sample = await self._probe(SHORT_WORDS, FORCED_TOKENS, forces_length=False, workload=workload)
            forces_length = False
        _raise_for(sample, self._target, listing)
        return sample, forces_length

    async def _suspicions(
        self,
        workload: Workload,
        listing: _Listing,
        short: Sample,
        long: Sample,
        scale: TokenScale,
        *,
        forces_length: bool,
    ) -> tuple[str, ...]:
        if short.prompt_tokens is None:
            scale = TokenScale(per_word=CAUTIOUS_TOKENS_PER_WORD)
        context = listing.max_context_tokens
        plan = LookPlan(
            scale,
            UNKNOWN_CONTEXT_TOKENS if context is None else context - CONTEXT_RESERVE_TOKENS,
            slope_s=_slope_s(short, long),
        )

        async def send(text: str, output_tokens: int) -> Sample:
            return await self._send(text, output_tokens, forces_length=forces_length, workload=workload)

        return suspicions(await take_looks(send, self._now, self._rng, plan), scale.overhead)

    async def _probe(self, words: int, output_tokens: int, *, forces_length: bool, workload: Workload) -> Sample:
        text = make_text(self._rng, words)
        return await self._send(text, output_tokens, forces_length=forces_length, workload=workload)

    async def _send(self, text: str, output_tokens: int, *, forces_length: bool, workload: Workload) -> Sample:
        if self._now() >= self._permit():
            raise GeneratorError("The lease ran out before the sweep began.", "The next holder sweeps.")
        backend = OpenAIBackend(
            self._target,
            now=self._now,
            forces_length=forces_length,
            stall_timeout_s=self._timeout_s,
            total_timeout_s=self._timeout_s,
            trace=self._trace,
        )
        connection = backend.connect()
        request = ProbeRequest(
            request_id=0,
            label=Label(0, Phase.RAMP),
            class_name="inspect",
            text=text,
            prompt_tokens=len(text.split()),
            output_tokens=output_tokens,
            stream=any(cls.stream for cls in workload.classes),
        )
        try:
            return await connection.send(request, lambda _flight: None)
        finally:
            connection.abort()


def _read_listing(response: httpx.Response, model: str) -> _Listing:
    try:
        entries = [entry for entry in response.json()["data"] if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError):
        return _Listing()
    if response.status_code != 200 or not entries:
        return _Listing()
    ours = next((entry for entry in entries if entry.get("id") == model), entries[0])
    return _Listing(
        names=tuple(str(entry.get("id")) for entry in entries),
        max_context_tokens=_context_tokens(ours),
        engine=_ENGINES.get(str(ours.get("owned_by"))),
    )


def _context_tokens(entry: dict[str, Any]) -> int | None:
    """vLLM: `max_model_len`; llama.cpp: `meta.n_ctx`, of one slot."""
    meta = entry.get("meta")
    for value in (entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None):
        if isinstance(value, int) and value > 0:
            return value
    return None


def _long_words(longest: WorkloadClass, listing: _Listing, short: Sample) -> int:
    """Words of the long probe: the longest class, as far as the context and politeness allow."""
    # The short prompt's tokens hold its template too, so the ratio is an upper bound of tokens a word.
    short_tokens = short.prompt_tokens or 2 * SHORT_WORDS
    tokens = max(longest.longest_prompt_tokens, 4 * short_tokens)
    if listing.max_context_tokens is not None:
        tokens = min(tokens, listing.max_context_tokens - CONTEXT_RESERVE_TOKENS)
    return max(SHORT_WORDS, min(MAX_LONG_WORDS, round(tokens * SHORT_WORDS / short_tokens)))


def _slope_s(short: Sample, long: Sample) -> float:
    """Estimated seconds a prompt token. Without a first token to see, the long answer's whole time is blamed on it."""
    more_tokens = (long.prompt_tokens or 0) - (short.prompt_tokens or 0)
    if more_tokens <= 0:
        return 0.0
    if short.ttft_s is None or long.ttft_s is None:
        return long.duration_s / more_tokens
    return max(0.0, long.ttft_s - short.ttft_s) / more_tokens


# ------------------------------------------------------------------------------------------------------- errors
def _raise_for(sample: Sample, target: Target, listing: _Listing) -> None:
    if sample.failure is not None:
        raise _failure_error(sample.failure, target, listing)


def _failure_error(failure: Failure, target: Target, listing: _Listing) -> CalibratorError:
    url, detail = target.url, failure.detail
    if failure.kind is FailureKind.CONNECT:
        return UnreachableError(f"Nothing answers at {url}: {detail}.", "Check the URL, and that the server runs.")
    if failure.kind is FailureKind.TLS:
        return UnreachableError(
            f"No TLS connection to {url}: {detail}.", "Check http/https, the CA file and the client certificate."
        )
    if failure.kind in (FailureKind.STALLED, FailureKind.TIMEOUT):
        return UnreachableError(
            f"{url} takes connections but does not answer: {detail}.",
            "Look at the server's log, or wait until it is idle.",
        )
    if failure.kind is FailureKind.PROTOCOL:
        return ConfigurationError(f"What answers at {url} is not an OpenAI-compatible server: {detail}.", _NEED_LLM)
    if failure.kind is FailureKind.STATUS:
        return _status_error(failure, target, listing)
    remedy = "Look at the server's log."
    if failure.kind is FailureKind.RESET and url.startswith("https:"):  # so some servers refuse a client certificate
        remedy = "Look at the server's log, and whether it wants another client certificate, or any."
    return UnreachableError(f"A single request to {url} failed: {detail}.", remedy)


def _status_error(failure: Failure, target: Target, listing: _Listing) -> CalibratorError:
    url, detail, status = target.url, failure.detail, failure.status or 0
    if status in (401, 403):
        how = "refuses our API key" if target.api_key is not None else "wants an API key"
        return UnreachableError(f"{url} {how} (status {status}).", "Give a valid API key, by file or environment.")
    if status in _NO_ROUTE:
        if "model" in detail.lower():
            served = f"It serves: {', '.join(listing.names)}." if listing.names else "Ask the server for its models."
            return ConfigurationError(f"The server has no model '{target.model}': {detail}.", served)
        return ConfigurationError(f"{url} has no {PATHS[target.api]} (status {status}).", _NEED_LLM)
    if 300 <= status < 400:
        return ConfigurationError(f"{url} {detail}.", "Give the URL it redirects to; redirects are not followed.")
    if status == 429 or status >= 500:
        return UnreachableError(f"{url} answers {status}: {detail}.", "Wait until the server is ready, or see its log.")
    return ConfigurationError(
        f"{url} refuses a plain request ({status}): {detail}.", "Correct what it complains about."
    )
