"""One probe request: what is asked, what is seen while it runs, what is left when it ended.

Times are seconds as float on the monotonic clock of the process that ran the request; durations count from
`started_s`, the moment its bytes were handed to an open connection (DESIGN section 2: connect time is ours to report,
never the backend's latency).

`Flight` is the only mutable value here: the protocol stamps it, the load generator reads it to decide bits early.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

EVENTS_A_READ = 3.0  # and more: the gaps between tokens are not the engine's; a busy machine reads two at once


class Phase(StrEnum):
    """Why a request was sent: its bits count only in `counted`."""

    RAMP = "ramp"  # warming a level up: watched, may fail a level, never passes it
    COUNTED = "counted"


class RequestOutcome(StrEnum):
    """Contract words of `probe_requests_total{outcome}` and of exports."""

    OK = "ok"
    VIOLATION = "violation"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    UNMEASURED = "unmeasured"  # complete, but it does not show what an objective asks (`records.unmeasured`)


class FailureKind(StrEnum):
    """Every form in which a request can fail (DESIGN section 2)."""

    CONNECT = "connect"  # refused, unreachable, DNS
    TLS = "tls"
    RESET = "reset"  # the connection broke
    STATUS = "status"  # 4xx/5xx
    ERROR_EVENT = "error_event"  # HTTP 200 stream that carries an error in place of an answer
    TRUNCATED = "truncated"  # an answer that broke off: without a finish_reason, or with an error after its first token
    STALLED = "stalled"  # no progress for the stall timeout
    TIMEOUT = "timeout"  # the total timeout passed
    PROTOCOL = "protocol"  # not HTTP, not SSE, not JSON
    QUOTA = "quota"  # so many requests or tokens a minute are used up: says nothing about the engine


class Fault(StrEnum):
    """What exactly is wrong with the way to a server, where the remedy depends on it."""

    TLS_PORT = "tls_port"  # plain HTTP was spoken to a port that wants TLS
    PLAIN_PORT = "plain_port"  # TLS was spoken to a port that knows none
    ENCODING = "encoding"  # a compressed body that nobody asked for
    NOT_STREAMED = "not_streamed"  # one document where a stream was asked for
    STREAMED = "streamed"  # a stream where one document was asked for
    NO_EVENTS = "no_events"  # a stream, but not of the events that make an answer


REFUSALS = (429, 503, 529)  # Dynamo's and Anthropic's "overloaded" is 529
_MISTAKES = (400, 401, 403, 404, 405, 413, 415, 422)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed. `detail` is the server's or the system's text, never a prompt or a completion."""

    kind: FailureKind
    detail: str
    status: int | None = None  # of the answer, or the code that an error event names
    fault: Fault | None = None

    @property
    def is_refusal(self) -> bool:
        """Turned away because of load, as engines say it: by a status, or by an error in place of an answer."""
        if self.kind is FailureKind.ERROR_EVENT:
            return not self.is_our_mistake
        return self.kind is FailureKind.QUOTA or self.status in REFUSALS

    @property
    def is_our_mistake(self) -> bool:
        """Credentials, model name, address, body or context length: says nothing about capacity, stops the sweep.

        An engine that finds the mistake after it has begun to answer says so in an event, with the same code.
        """
        if self.status is None or self.kind not in (FailureKind.STATUS, FailureKind.ERROR_EVENT):
            return False
        is_redirect = self.kind is FailureKind.STATUS and self.status < 400
        return is_redirect or self.status in _MISTAKES


@dataclass(frozen=True, slots=True)
class Label:
    """Where a request belongs: the stage it started in, and its phase there."""

    stage: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What one virtual user sends next. `text` is never logged."""

    request_id: int  # unique in the sweep, ascending in the order of creation
    label: Label
    class_name: str
    text: str
    prompt_tokens: int  # wanted, by our calibration of the tokenizer
    output_tokens: int  # forced where the engine can
    stream: bool
    gap_quantiles: tuple[float, ...] = (0.5, 0.9, 0.99)


@dataclass(slots=True)
class Flight:
    """Live view of a request in flight; stamps are absolute seconds on the client's monotonic clock."""

    request: ProbeRequest
    started_s: float  # bytes handed to the open connection
    first_token_s: float | None = None
    first_content_s: float | None = None
    bits: list[bool | None] = field(default_factory=list)  # one per objective, None = undecided


@dataclass(frozen=True, slots=True)
class Sample:
    """One ended request. A duration that was not reached is None (never 0)."""

    request_id: int
    label: Label
    class_name: str
    stream: bool
    wanted_prompt_tokens: int
    started_s: float
    duration_s: float  # start to end, failure or cancellation
    ttft_s: float | None = None
    ttfc_s: float | None = None
    last_token_s: float | None = None  # start to last token event
    gaps_s: tuple[tuple[float, float], ...] = ()  # (quantile, seconds) of this request's token gaps
    token_events: int = 0
    token_reads: int = 0  # reads off the wire that brought some; far fewer than events: something on the way buffers
    prompt_tokens: int | None = None  # by the server's usage
    completion_tokens: int | None = None  # by the server's usage
    cached_tokens: int | None = None
    failure: Failure | None = None
    cancelled: bool = False
    connect_s: float = 0.0  # 0.0: the connection was open already
    send_delay_s: float = 0.0  # wanted start to real start: ours, never the backend's
    wanted_output_tokens: int | None = None

    @property
    def is_invalid(self) -> bool:
        return self.failure is not None and self.failure.is_our_mistake

    @property
    def completed(self) -> bool:
        return self.failure is None and not self.cancelled

    @property
    def e2e_s(self) -> float | None:
        return self.duration_s if self.completed else None

    @property
    def is_buffered(self) -> bool:
        """Token events came several at a time: their stamps say when something on the way handed them over."""
        if self.token_events < 2:
            return False
        if not self.token_reads:  # not counted
            return self.last_token_s == self.ttft_s
        return self.token_reads == 1 or self.token_events >= EVENTS_A_READ * self.token_reads

    @property
    def tpot_range_s(self) -> tuple[float, float] | None:
        """(last - first token) / (completion tokens - 1): least and most that it may be.

        One value by the server's token count. Without, an answer has at least as many tokens as events (engines merge
        tokens, none splits one), and at most those asked for.
        """
        if not self.completed or self.ttft_s is None or self.last_token_s is None or self.is_buffered:
            return None
        span_s = self.last_token_s - self.ttft_s
        if span_s <= 0.0:
            return None
        if self.completion_tokens:
            return None if self.completion_tokens < 2 else (span_s / (self.completion_tokens - 1),) * 2
        fewest, most = self.token_events, self.wanted_output_tokens or 0
        return (span_s / (most - 1), span_s / (fewest - 1)) if 2 <= fewest <= most else None

    @property
    def tpot_s(self) -> float | None:
        """The most that it may be: exact where the server counts tokens."""
        return None if self.tpot_range_s is None else self.tpot_range_s[1]

    def latency_s(self, metric: str, quantile: float = 0.99) -> float | None:
        """Value of a metric, or None if this request never reached it. `quantile` matters for `itl` only."""
        if metric == "ttft":
            return self.ttft_s
        if metric == "ttfc":
            return self.ttfc_s
        if metric == "tpot":
            return self.tpot_s
        if metric == "e2e":
            return self.e2e_s
        if self.is_buffered:
            return None
        return next((gap_s for q, gap_s in self.gaps_s if abs(q - quantile) < 1e-9), None)
