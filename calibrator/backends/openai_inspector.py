"""The preflight check of a server before a sweep: who responds, what it accepts, does the workload fit.

    GET {base}/models     names and context size; many servers have no list (404, 500), which is not an error
    short probe           all that we would like to send; what is rejected is left out or renamed (`negotiation`)
    lengths               if length is not enforced: do responses get the length of the workload by themselves?
    long probe            about as long as the longest class: two points fit the tokenizer scale (`TokenScale.fit`)
    buffered?             if the short response came in one piece: a few more, short and long (`arrival`)
    stub check            at most twelve: is there a model at all, and does it read what we send (`stub_checks`)

One request at a time. Each fault of a probe ends in one sentence of cause and one of remedy (`preflight_errors`). A
metric that cannot be measured here is a fact, with its reason: whoever knows the objectives refuses the sweep.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import httpx

from calibrator import __version__
from calibrator.backends.arrival import SHORT_TOKENS, held_back
from calibrator.backends.http1_client import Endpoint, endpoint
from calibrator.backends.model_list import Listing, read_listing
from calibrator.backends.negotiation import FORCING, negotiate
from calibrator.backends.openai import OpenAIBackend
from calibrator.backends.preflight_errors import failure_error
from calibrator.backends.schemes import speaks_plain_http, speaks_tls
from calibrator.backends.stub_checks import StubCheckPlan, run_stub_checks
from calibrator.core.records.objective import Metric
from calibrator.core.records.sample import Failure, FailureKind, Fault, Label, Phase, ProbeRequest, Sample
from calibrator.core.report.spans import ProbeTrace
from calibrator.core.workload.classes import TokenScale, Workload, WorkloadClass, make_text
from calibrator.core.workload.stub_detection import suspicions
from calibrator.errors import ConfigurationError, GeneratorError, UnreachableError
from calibrator.ports.backend import Adjustment, BackendFacts, Blindness, Unmeasurable
from calibrator.ports.sweeps import Permit, Target, forever

SHORT_WORDS = 16
FIRST_REQUEST_ID = 1_000_000_000  # above the sweep's own: some engines take X-Request-ID for the name of a request
FORCED_TOKENS = SHORT_TOKENS  # long enough to see that forcing works, short enough to be polite
MAX_LENGTH_TOKENS = 256  # of the answer that shows whether lengths hold without being forced
MAX_LONG_WORDS = 2048  # a longer probe fits the scale no better
MAX_LIST_S = 10.0
CONTEXT_RESERVE_TOKENS = 64  # chat template and the tokens generated
UNKNOWN_CONTEXT_TOKENS = 1800  # fits the 2,048 of small models; some servers die of more than theirs
CAUTIOUS_TOKENS_PER_WORD = 3.0  # where the server counts nothing
_SCHEME_MAY_BE_WRONG = (FailureKind.CONNECT, FailureKind.TLS, FailureKind.RESET, FailureKind.PROTOCOL)


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
        _check_context(workload, listing)
        preflight = _Preflight(
            self._target,
            server,
            listing,
            workload,
            self._rng,
            self._now,
            self._permit,
            self._timeout_s,
            self._trace,
        )
        short = await preflight.short_probe()
        long_words, long = await preflight.long_probe(short)
        has_usage = short.prompt_tokens is not None and long.prompt_tokens is not None
        scale = TokenScale()
        if short.prompt_tokens is not None and long.prompt_tokens is not None:
            scale = TokenScale.fit((SHORT_WORDS, short.prompt_tokens), (long_words, long.prompt_tokens))
        unmeasurable = await preflight.unmeasurable(short)
        warnings = [
            *listing.warnings(self._target.model),
            *preflight.warnings(unmeasurable, has_usage=has_usage),
            *dict.fromkeys(one.cause for one in unmeasurable if one.reason is Blindness.BUFFERED),
            *await preflight.suspicions(short, long, scale),
        ]
        return BackendFacts(
            model=self._target.model,
            token_scale=scale,
            forces_length=preflight.forces_length,
            max_context_tokens=listing.max_context_tokens,
            engine=listing.engine,
            warnings=tuple(warnings),
            adjustments=preflight.adjustments,
            unmeasurable=unmeasurable,
        )

    async def _listing(self, server: Endpoint) -> Listing:
        target = self._target
        headers = {"User-Agent": f"calibrator/{__version__}", **dict(target.credentials)}
        scheme, place, *_ = urlsplit(target.url)
        url = f"{scheme}://{place}{server.target('/models', target.key_query)}"
        verify = server.tls or False  # a plain URL needs no context, and building one takes 20 ms
        patience_s = min(self._timeout_s, MAX_LIST_S)
        try:
            async with httpx.AsyncClient(headers=headers, verify=verify, timeout=patience_s, trust_env=False) as client:
                response = await client.get(
                    url, headers={"Host": server.authority}, extensions={"sni_hostname": server.tls_name}
                )
        except (httpx.HTTPError, httpx.InvalidURL, OSError):  # a late refusal of TLS is none of httpx's errors
            return Listing()  # whatever it is, the probe meets it too, and our own client tells it better
        if response.status_code in (401, 403):
            raise failure_error(Failure(FailureKind.STATUS, "", response.status_code), target, Listing())
        return read_listing(response, target.model)


@dataclass(slots=True)
class _Preflight:
    """The preflight of one server, and what it has learned so far."""

    target: Target
    server: Endpoint
    listing: Listing
    workload: Workload
    rng: random.Random
    now: Callable[[], float]
    permit: Permit
    timeout_s: float
    trace: ProbeTrace | None
    forces_length: bool = True
    adjustments: tuple[Adjustment, ...] = ()
    request_ids: Iterator[int] = field(default_factory=lambda: itertools.count(FIRST_REQUEST_ID))

    async def short_probe(self) -> Sample:
        async def ask(adjustments: tuple[Adjustment, ...]) -> Sample:
            self.adjustments = adjustments
            return await self._probe(SHORT_WORDS, FORCED_TOKENS)

        sample, self.adjustments = await negotiate(ask, stream=self._stream)
        await self._raise_for(sample)
        refused = {one.parameter for one in self.adjustments if one.sent_as is None}
        if "ignore_eos" in refused or refused.issuperset(FORCING):
            self.forces_length = await self._lengths_hold()
        elif sample.completion_tokens is not None:  # nobody counts: then it is as the server accepted it
            self.forces_length = sample.completion_tokens == FORCED_TOKENS
        return sample

    async def _lengths_hold(self) -> bool:
        """Does an answer get the workload's length without being forced? Some models never end by themselves."""
        wanted = min(MAX_LENGTH_TOKENS, max(cls.output_tokens for cls in self.workload.classes))
        sample = await self._probe(SHORT_WORDS, wanted)
        return sample.completed and (sample.completion_tokens or sample.token_events) == wanted

    async def long_probe(self, short: Sample) -> tuple[int, Sample]:
        """How many words, and the answer."""
        longest = self.workload.longest
        words = _long_words(longest, self.listing, short)
        sample = await self._probe(words, 1)
        failure = sample.failure  # the short probe went well, so the length is what the server refuses
        if failure is not None and (failure.status in (400, 413) or failure.kind is FailureKind.ERROR_EVENT):
            raise ConfigurationError(
                f"The server refuses a prompt of about {sample.wanted_prompt_tokens} words: "
                f"{failure.detail.rstrip('. ')}.",
                f"Shorten the prompts of workload class '{longest.name}', or cut their tail with max_prompt_tokens "
                "(--max-prompt-tokens).",
            )
        await self._raise_for(sample)
        return words, sample

    async def unmeasurable(self, short: Sample) -> tuple[Unmeasurable, ...]:
        """What would read something else here than what a user feels."""
        if not self._stream:
            return ()
        found = await held_back(short, lambda tokens: self._probe(SHORT_WORDS, tokens))
        is_counted = short.completion_tokens is not None or short.tpot_s is not None
        return found if found or is_counted else (self._uncounted(),)

    def _uncounted(self) -> Unmeasurable:
        refuses = any(one.parameter == "stream_options" for one in self.adjustments)
        why = ", and it refuses stream_options, which ask for it" if refuses else ""
        return Unmeasurable(
            Metric.TPOT,
            Blindness.NO_USAGE,
            f"The server counts no tokens with its answers{why}.",
            "Let it report usage in streams (stream_options.include_usage), or judge itl, ttft or e2e.",
        )

    def warnings(self, unmeasurable: Sequence[Unmeasurable], *, has_usage: bool) -> list[str]:
        found = []
        if not self.forces_length:
            found.append("The server does not force output lengths: answers may be shorter than planned.")
        if not has_usage:
            is_blind = not self._stream or any(one.metric is Metric.TPOT for one in unmeasurable)
            tpot = "tpot is unknown" if is_blind else "tokens are counted from the stream"
            found.append(f"The server reports no token usage: prompt lengths are estimates, {tpot}.")
        if self.adjustments:
            changed = ", ".join(map(str, self.adjustments))
            found.append(f"The server refuses parameters that probes carry by default: {changed}.")
        return found

    async def suspicions(self, short: Sample, long: Sample, scale: TokenScale) -> tuple[str, ...]:
        if short.prompt_tokens is None:
            scale = TokenScale(per_word=CAUTIOUS_TOKENS_PER_WORD)
        context = self.listing.max_context_tokens
        plan = StubCheckPlan(
            scale,
            UNKNOWN_CONTEXT_TOKENS if context is None else context - CONTEXT_RESERVE_TOKENS,
            slope_s=_slope_s(short, long),
        )
        check = await run_stub_checks(self._send, self.now, self.rng, plan)
        if not check.short or not check.long:
            await self._survived(plan.long_words)
        return suspicions(check, scale.overhead)

    async def _survived(self, words: int) -> None:
        """A stub check failed. Some engines die of a prompt beyond their KV memory: does this one still answer?"""
        sample = await self._probe(SHORT_WORDS, FORCED_TOKENS)
        if sample.failure is not None:
            raise UnreachableError(
                f"{self.target.url} stopped answering after a prompt of about {words} words, which the preflight sent: "
                f"{sample.failure.detail.rstrip('.')}.",
                "Restart the engine, and give it the memory, or the context limit, that such a prompt needs.",
            )

    @property
    def _stream(self) -> bool:
        return any(cls.stream for cls in self.workload.classes)

    async def _probe(self, words: int, output_tokens: int) -> Sample:
        return await self._send(make_text(self.rng, words), output_tokens)

    async def _send(self, text: str, output_tokens: int) -> Sample:
        if self.now() >= self.permit():
            raise GeneratorError("The lease ran out before the sweep began.", "The next holder sweeps.")
        backend = OpenAIBackend(
            self.target,
            now=self.now,
            forces_length=self.forces_length,
            stall_timeout_s=self.timeout_s,
            total_timeout_s=self.timeout_s,
            trace=self.trace,
            adjustments=self.adjustments,
        )
        connection = backend.connect()
        request = ProbeRequest(
            request_id=next(self.request_ids),
            label=Label(0, Phase.RAMP),
            class_name="inspect",
            text=text,
            prompt_tokens=len(text.split()),
            output_tokens=output_tokens,
            stream=self._stream,
        )
        try:
            return await connection.send(request, lambda _flight: None)
        finally:
            connection.abort()

    async def _raise_for(self, sample: Sample) -> None:
        if sample.failure is not None:
            raise failure_error(await self._told(sample.failure), self.target, self.listing)

    async def _told(self, failure: Failure) -> Failure:
        """A connection that broke, and whether the wrong scheme is why."""
        server = self.server
        if failure.fault is not None or failure.kind not in _SCHEME_MAY_BE_WRONG:
            return failure
        is_tls = await speaks_tls(server.host, server.port)
        if is_tls and server.tls is None:
            return replace(failure, fault=Fault.TLS_PORT)
        if not is_tls and server.tls is not None and await speaks_plain_http(server.host, server.port):
            return replace(failure, fault=Fault.PLAIN_PORT)
        return failure


def _check_context(workload: Workload, listing: Listing) -> None:
    longest = workload.longest
    prompt, total = longest.longest_prompt_tokens, longest.longest_total_tokens
    limit = listing.max_context_tokens
    if limit is None or total <= limit:
        return
    room = limit - (total - prompt)
    cut = f", or cut its longest prompts: max_prompt_tokens: {room} (--max-prompt-tokens)" if room > 0 else ""
    raise ConfigurationError(
        f"Workload class '{longest.name}' needs up to {total} tokens, {prompt} of them for a prompt; "
        f"the model's context has {limit}.",
        f"Shorten its prompt or its output{cut}.",
    )


def _long_words(longest: WorkloadClass, listing: Listing, short: Sample) -> int:
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
