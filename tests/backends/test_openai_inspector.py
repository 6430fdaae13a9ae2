"""The first look at a server: what it finds out, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificates
from support.scripted_server import Act, Step, read_request, scripted
from support.wire import DONE, HELLO, chunk, event, sized

from calibrator.backends.arrival import ROUNDS
from calibrator.backends.negotiation import MAX_TRIES
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.backends.stub_checks import MAX_REQUESTS
from calibrator.core.records.objective import Metric
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError, UnreachableError
from calibrator.ports.backend import BackendFacts, Blindness
from calibrator.ports.sweeps import Target

Reply = bytes | None  # None: never answer
Body = dict[str, Any]


def as_json(payload: object, status: str = "200 OK") -> bytes:
    return sized(json.dumps(payload).encode(), status, "application/json")


VLLM_LIST = as_json({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]})
PREFILL_S_PER_BYTE = 2e-6  # it reads its prompts
LLAMA_LIST = as_json({"data": [{"id": "tiny", "owned_by": "llamacpp", "meta": {"n_ctx": 2048, "n_ctx_train": 8192}}]})
NO_LIST = as_json({"detail": "Not Found"}, "404 Not Found")


def answer(body: Body, *, forced: bool = True, reports_usage: bool = True) -> bytes:
    """A tokenizer of 5 + 3 tokens a word; an unforced answer stops after two."""
    text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    completion = body["max_tokens"] if forced and body.get("ignore_eos") else min(2, body["max_tokens"])
    usage = {"prompt_tokens": 5 + 3 * len(text.split()), "completion_tokens": completion}
    more = {"usage": usage} if reports_usage else {}
    if body["stream"]:
        return sized(HELLO * completion + chunk({}, finish="length") + event({"choices": [], **more}) + DONE)
    return as_json({"choices": [{"message": {"content": "x"}, "finish_reason": "length"}], **more})


class FakeServer:
    def __init__(self, models: Reply, complete: Callable[[Body], Reply]) -> None:
        self.models = models
        self.complete = complete
        self.bodies: list[Body] = []
        self.heads: list[bytes] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader)) is not None:
                head, _, body = request.partition(b"\r\n\r\n")
                self.heads.append(head)
                if head.split()[1].partition(b"?")[0].endswith(b"/models"):
                    reply = self.models
                else:
                    self.bodies.append(json.loads(body))
                    reply = self.complete(self.bodies[-1])
                    await asyncio.sleep(PREFILL_S_PER_BYTE * len(body))
                if reply is None:
                    await reader.read()
                    return
                writer.write(reply)
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(models: Reply, complete: Callable[[Body], Reply] = answer) -> AsyncIterator[FakeServer]:
    server = FakeServer(models, complete)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()


SMALL = Workload((WorkloadClass(prompt_tokens=600, output_tokens=32),))


async def inspect(url: str, workload: Workload = SMALL, **target: Any) -> BackendFacts:
    model = target.pop("model", "m")
    return await OpenAIInspector(Target(url, model, **target), now=time.monotonic, timeout_s=0.3).inspect(workload)


def look(
    models: Reply, complete: Callable[[Body], Reply] = answer, workload: Workload = SMALL, **target: Any
) -> tuple[BackendFacts, FakeServer]:
    async def run() -> tuple[BackendFacts, FakeServer]:
        async with serving(models, complete) as server:
            return await inspect(server.url, workload, **target), server

    return asyncio.run(run())


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_what_a_good_server_tells(api: str, stream: bool) -> None:  # noqa: FBT001 - pytest passes parameters by name
    workload = Workload((WorkloadClass(prompt_tokens=600, output_tokens=32, stream=stream),))
    facts, server = look(VLLM_LIST, workload=workload, api=api, api_key="key")
    assert (facts.model, facts.engine, facts.max_context_tokens) == ("m", "vllm", 4096)
    assert (facts.token_scale.overhead, facts.token_scale.per_word) == (5.0, 3.0)
    assert (facts.forces_length, facts.warnings) == (True, ())
    assert 2 + 2 * 3 < len(server.bodies) <= 2 + 2 * ROUNDS + MAX_REQUESTS
    longest = 5 + 3 * len(str(server.bodies[1]).split())
    assert max(len(str(body).split()) for body in server.bodies) * 3 < 4096
    assert 450 < longest <= 640  # about the longest prompt of the workload, and not above the context
    assert all(b"authorization: bearer key" in head.lower() for head in server.heads)


def test_each_probe_has_a_name_of_its_own() -> None:
    """Some engines take X-Request-ID for the name of a request, and answer one of two alike."""
    _, server = look(VLLM_LIST)
    names = [line for head in server.heads for line in head.split(b"\r\n") if line.startswith(b"X-Request-ID")]
    assert len(names) == len(set(names)) == len(server.bodies)


def test_an_engine_that_dies_of_the_longest_prompt_is_not_swept() -> None:
    """Without a context size in its list nobody knows how much is too much (transformers 5.24, a small KV pool)."""
    died: list[int] = []

    def complete(body: Body) -> Reply:
        words = len(body["messages"][0]["content"].split())
        if words > 400:
            died.append(words)
        return sized(event({"error": "worker is dead"})) if died else answer(body)

    with pytest.raises(UnreachableError, match=r"about \d+ words.*worker is dead") as refused:
        look(NO_LIST, complete)
    assert len(died) == 1
    assert refused.value.remedy


@pytest.mark.parametrize(
    "refusal",
    [
        as_json({"error": {"message": "too long."}}, "400 Bad Request"),
        sized(event({"error": "No requests can be scheduled."})),
    ],
    ids=["status", "error event"],
)
def test_a_prompt_that_does_not_fit_is_named_as_such(refusal: bytes) -> None:
    def complete(body: Body) -> Reply:
        return refusal if len(body["messages"][0]["content"].split()) > 100 else answer(body)

    with pytest.raises(ConfigurationError, match=r"refuses a prompt of about \d+ words: [^.]+\.") as refused:
        look(NO_LIST, complete)
    assert ".." not in str(refused.value)
    assert "max_prompt_tokens" in refused.value.remedy


def test_what_a_probe_looks_like_on_the_wire() -> None:
    _, server = look(VLLM_LIST)
    body, head = server.bodies[0], server.heads[1].decode()
    assert body.pop("messages")[0]["role"] == "user"
    assert body == {
        "model": "m", "max_tokens": 8, "temperature": 1, "stream": True, "stream_options": {"include_usage": True},
        "ignore_eos": True, "min_tokens": 8,
    }  # fmt: skip
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert lines["Host"] == server.url.removeprefix("http://").removesuffix("/v1")
    assert lines["User-Agent"].startswith("calibrator/")
    assert lines["X-Request-ID"].startswith("calibrator-")
    assert [len(part) for part in lines["traceparent"].split("-")] == [2, 32, 16, 2]
    assert "Authorization" not in lines


@pytest.mark.parametrize("models", [NO_LIST, as_json({}, "500 Internal Server Error"), sized(b"<html>"), None])
def test_a_server_without_a_list_of_models_is_fine(models: Reply) -> None:
    facts, _ = look(models)
    assert (facts.engine, facts.max_context_tokens, facts.token_scale.per_word) == (None, None, 3.0)


def test_llama_cpp_answers_to_any_name() -> None:
    facts, _ = look(LLAMA_LIST)
    assert (facts.engine, facts.max_context_tokens) == ("llama.cpp", 2048)
    assert "tiny" in facts.warnings[0]


def refuses_fields(body: Body) -> bytes:
    if "ignore_eos" in body:
        return as_json({"detail": "Unexpected fields: ignore_eos"}, "422 Unprocessable Entity")
    return answer(body)


@pytest.mark.parametrize(
    "complete", [refuses_fields, lambda body: answer(body, forced=False)], ids=["refuses the fields", "ignores them"]
)
def test_a_server_that_cannot_force_lengths_is_used_without(complete: Callable[[Body], Reply]) -> None:
    facts, server = look(VLLM_LIST, complete)
    assert not facts.forces_length
    assert "length" in facts.warnings[0]
    assert "ignore_eos" not in server.bodies[-1]
    assert facts.token_scale.per_word == 3.0


@pytest.mark.parametrize("zero", [False, True])
def test_a_server_without_usage_is_used_with_a_warning(zero: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    def complete(body: Body) -> bytes:
        if not zero:
            return answer(body, reports_usage=False)
        nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        done = chunk({}, finish="length") + event({"choices": [], "usage": nothing})
        return sized(HELLO * body["max_tokens"] + done + DONE)

    facts, _ = look(VLLM_LIST, complete)
    assert (facts.token_scale.per_word, facts.forces_length) == (1.0, True)
    assert "usage" in facts.warnings[0]
    assert [(one.metric, one.reason) for one in facts.unmeasurable] == [(Metric.TPOT, Blindness.NO_USAGE)]


# --------------------------------------------------------------------------------------------- refused parameters
def pydantic(names: Sequence[str]) -> bytes:
    complaints = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"} for name in names
    ]
    message = {"detail": complaints}
    return as_json({"object": "error", "message": message, "type": "invalid_request_error"}, "422 Unprocessable Entity")


def openai(names: Sequence[str]) -> bytes:
    if names[0] == "max_tokens":
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return as_json({"error": {"message": words, "param": "max_tokens"}}, "400 Bad Request")
    return as_json({"error": {"message": f"Unrecognized request argument supplied: {names[0]}"}}, "400 Bad Request")


def gemini(names: Sequence[str]) -> bytes:
    words = f'Invalid JSON payload received. Unknown name "{names[0]}": Cannot find field.'
    return as_json([{"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}], "400 Bad Request")


def transformers(names: Sequence[str]) -> bytes:
    return as_json({"detail": f"Unexpected fields in the request: {set(names)}"}, "422 Unprocessable Entity")


def type_error(names: Sequence[str]) -> bytes:
    words = f"generate() got an unexpected keyword argument '{names[0]}'"
    return as_json({"error": {"message": words}}, "500 Internal Server Error")


def param_only(names: Sequence[str]) -> bytes:
    return as_json({"error": {"message": "Invalid value", "param": names[0]}}, "400 Bad Request")


def in_the_stream(names: Sequence[str]) -> bytes:
    return sized(event({"error": {"message": f"{names[0]} is not supported", "code": 400}}) + DONE)


def wordless(_: Sequence[str]) -> bytes:
    return sized(b"Bad Request", "400 Bad Request", "text/plain")


def strict(
    refused: Sequence[str], say: Callable[[Sequence[str]], bytes], *, length: int | None = None
) -> Callable[[Body], Reply]:
    """Refuses parameters in somebody's words; answers have `length` tokens, or as many as were forced."""

    def complete(body: Body) -> bytes:
        if names := [name for name in refused if name in body]:
            return say(names)
        wanted = body.get("max_tokens") or body["max_completion_tokens"]
        tokens = min(wanted, length or wanted)
        text = body["messages"][0]["content"]
        usage = {"prompt_tokens": 5 + 3 * len(text.split()), "completion_tokens": tokens}
        return sized(HELLO * tokens + chunk({}, finish="length", usage=usage) + DONE)

    return complete


ALL = ["stream_options", "ignore_eos", "min_tokens"]


@pytest.mark.parametrize(
    ("refused", "say", "adjusted"),
    [
        (ALL, pydantic, ["stream_options left out", "ignore_eos left out", "min_tokens left out"]),
        (
            ["ignore_eos", "min_tokens", "max_tokens"],
            openai,
            ["ignore_eos left out", "min_tokens left out", "max_tokens sent as max_completion_tokens"],
        ),
        (["temperature"], openai, ["temperature left out"]),
        (["ignore_eos", "min_tokens"], gemini, ["ignore_eos left out", "min_tokens left out"]),
        (["ignore_eos", "min_tokens"], transformers, ["ignore_eos left out", "min_tokens left out"]),
        (["min_tokens"], type_error, ["min_tokens left out"]),
        (["stream_options"], param_only, ["stream_options left out"]),
        (["ignore_eos"], in_the_stream, ["ignore_eos left out"]),
        (["ignore_eos"], wordless, ["ignore_eos left out"]),
        (["stream_options", "temperature"], wordless, ["stream_options left out", "temperature left out"]),
        (["max_tokens", "min_tokens"], wordless, ["max_tokens sent as max_completion_tokens", "min_tokens left out"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_server_refuses_is_left_out_or_renamed_one_by_one(
    refused: Sequence[str], say: Callable[[Sequence[str]], bytes], adjusted: list[str]
) -> None:
    facts, server = look(VLLM_LIST, strict(refused, say))
    assert list(map(str, facts.adjustments)) == adjusted
    assert not set(refused) & server.bodies[-1].keys()
    assert {"model", "messages", "stream"} < server.bodies[-1].keys()
    assert any(", ".join(adjusted) in warning for warning in facts.warnings)
    tries = next(i for i, body in enumerate(server.bodies) if not set(refused) & body.keys()) + 1
    assert tries <= MAX_TRIES
    assert facts.token_scale.per_word == 3.0  # usage came all the same
    assert facts.unmeasurable == ()
    steps = [len(refused and set(refused) & body.keys()) for body in server.bodies[:tries]]
    if say is not wordless:
        assert steps == sorted(steps, reverse=True), "one after the other, none twice"


@pytest.mark.parametrize(("length", "holds"), [(None, True), (6, False)])
def test_the_lengths_achieved_decide_whether_output_is_still_forced(length: int | None, holds: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    facts, server = look(VLLM_LIST, strict(["ignore_eos", "min_tokens"], openai, length=length))
    assert facts.forces_length is holds
    assert 32 in [body["max_tokens"] for body in server.bodies], "asked for an answer as long as the workload's"


def test_a_server_that_refuses_everything_is_asked_a_bounded_number_of_times() -> None:
    async def run() -> None:
        async with serving(VLLM_LIST, lambda _: wordless(())) as server:
            with pytest.raises(ConfigurationError, match="Bad Request"):
                await inspect(server.url)
            assert 1 < len(server.bodies) <= MAX_TRIES

    asyncio.run(run())


def test_usage_that_is_refused_and_does_not_come_by_itself_makes_tpot_unmeasurable() -> None:
    def complete(body: Body) -> bytes:
        return pydantic(["stream_options"]) if "stream_options" in body else answer(body, reports_usage=False)

    facts, _ = look(VLLM_LIST, complete)
    (found,) = facts.unmeasurable
    assert (found.metric, found.reason) == (Metric.TPOT, Blindness.NO_USAGE)
    assert "stream_options" in found.cause


# ------------------------------------------------------------------------------------------- names and addresses
@pytest.mark.parametrize(
    ("names", "model", "shown"),
    [
        (["m:latest"], "m", "m:latest"),  # Ollama
        (["openai/*", "base"], "openai/gpt-x", "openai/*, base"),  # a gateway's wildcard
        (["base"], "base-lora-7", "base"),  # a resolver of adapters
        ([f"org/model-{i}" for i in range(300)] + ["org/modal-x"], "org/model-x", "301 models, of them org/mod"),
    ],
)
def test_a_name_that_is_not_listed_is_told_and_the_probe_decides(names: list[str], model: str, shown: str) -> None:
    listing = as_json({"data": [{"id": name, "owned_by": "x", "max_model_len": 4096} for name in names]})
    facts, server = look(listing, model=model)
    assert shown in facts.warnings[0]
    assert len(facts.warnings[0]) < 400
    assert {body["model"] for body in server.bodies} == {model}
    assert facts.max_context_tokens == (4096 if len(names) == 1 else None)  # of several others none is ours
    with pytest.raises(ConfigurationError) as raised:
        look(listing, says({"error": f"model '{model}' not found, try pulling it first"}, "404 Not Found"), model=model)
    assert shown in raised.value.remedy
    with pytest.raises(ConfigurationError) as raised:
        look(listing, says({"message": f"Invalid model: {model}"}, "400 Bad Request"), model=model)
    assert shown in raised.value.remedy


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("bearer", b"Authorization: Bearer k-12345"),
        ("header:api-key", b"api-key: k-12345"),
        ("header:x-api-key", b"x-api-key: k-12345"),
        ("query:key", b"/v1/chat/completions?api-version=1&key=k-12345 "),
    ],
)
def test_keys_headers_and_the_query_go_with_each_request(place: str, line: bytes) -> None:
    async def run() -> FakeServer:
        async with serving(VLLM_LIST) as server:
            headers = (("OpenAI-Organization", "org-7"),)
            url = f"{server.url}?api-version=1"
            await inspect(url, api_key="k-12345", api_key_in=place, headers=headers)
            return server

    server = asyncio.run(run())
    assert all(b"?api-version=1" in head.split(b"\r\n")[0] for head in server.heads)
    assert all(b"openai-organization: org-7" in head.lower() for head in server.heads)
    lines = [head for head in server.heads if line.lower() in head.lower()]
    assert len(lines) >= len(server.heads) - 1
    assert sum(b"k-12345" in head for head in server.heads) == len(server.heads)
    assert (b"authorization" in server.heads[-1].lower()) == (place == "bearer")


def test_a_server_that_quotes_our_header_does_not_get_it_into_a_record() -> None:
    refusal = says({"error": {"message": "key k-12345 of org-77777 is not valid"}}, "401 Unauthorized")
    with pytest.raises(UnreachableError) as raised:
        look(NO_LIST, refusal, api_key="k-12345", api_key_in="header:api-key", headers=(("X-Org", "org-77777"),))
    assert "is not valid" in str(raised.value)
    assert "12345" not in str(raised.value)
    assert "77777" not in str(raised.value)


def says(payload: object, status: str) -> Callable[[Body], Reply]:
    return lambda _body: as_json(payload, status)


def refuses_long(body: Body) -> bytes:
    if len(str(body)) > 600:
        return as_json({"error": {"message": "prompt has 605 tokens, context 512"}}, "400 Bad Request")
    return answer(body)


UNAUTHORIZED = as_json({"error": "no"}, "401 Unauthorized")
HTML_404 = sized(b"<h1>Not Found</h1>", "404 Not Found", "text/html")
NO_MODEL = {"error": {"message": "The model `m` does not exist.", "code": 404}}
MOVED = sized(b"", "308 Permanent Redirect", "text/plain", "Location: https://else/v1")
BROTLI = sized(b"\x1b", "200 OK", "text/event-stream", "Content-Encoding: br")
TO_HTTPS = "The plain HTTP request was sent to HTTPS port"
BUSY = {"error": {"message": "loading", "code": 503}}


@pytest.mark.parametrize(
    ("models", "complete", "error", "words"),
    [
        (UNAUTHORIZED, answer, UnreachableError, "API key"),
        (VLLM_LIST, lambda _: UNAUTHORIZED, UnreachableError, "API key"),
        (NO_LIST, says(NO_MODEL, "404 Not Found"), ConfigurationError, "no model 'm'"),
        (as_json({"data": [{"id": "a"}, {"id": "b"}]}), says(NO_MODEL, "404 X"), ConfigurationError, "It serves: a, b"),
        (VLLM_LIST, says({"error": "12 requests per minute"}, "429 X"), UnreachableError, "refused by a quota"),
        (VLLM_LIST, says(BUSY, "529 Overloaded"), UnreachableError, "529"),
        (VLLM_LIST, lambda _: sized(b"upstream connect error"), ConfigurationError, "upstream connect error"),
        (VLLM_LIST, lambda _: as_json({"choices": [{"message": {}}]}), ConfigurationError, "do not stream"),
        (VLLM_LIST, lambda _: BROTLI, ConfigurationError, "compression"),
        (VLLM_LIST, lambda _: sized(b"event: error\n: out of memory\n\n"), UnreachableError, "out of memory"),
        (VLLM_LIST, says({"error": TO_HTTPS}, "400 Bad Request"), ConfigurationError, "https://"),
        (HTML_404, lambda _: HTML_404, ConfigurationError, "OpenAI-compatible"),
        (HTML_404, lambda _: sized(b"<html></html>", "200 OK", "text/html"), ConfigurationError, "OpenAI-compatible"),
        (HTML_404, lambda _: b"220 smtp\r\n", ConfigurationError, "OpenAI-compatible"),
        (NO_LIST, says({"detail": "Not Found"}, "404 Not Found"), ConfigurationError, "has no /chat/completions"),
        (NO_LIST, says({}, "501 Not Implemented"), ConfigurationError, "has no /chat/completions"),
        (NO_LIST, lambda _: MOVED, ConfigurationError, "https://else/v1"),
        (VLLM_LIST, says(BUSY, "503 Service Unavailable"), UnreachableError, "loading"),
        (VLLM_LIST, says(BUSY, "429 Too Many Requests"), UnreachableError, "429"),
        (VLLM_LIST, lambda _: sized(event(BUSY) + DONE), UnreachableError, "loading"),
        (VLLM_LIST, lambda _: None, UnreachableError, "does not answer"),
        (VLLM_LIST, refuses_long, ConfigurationError, "605 tokens"),
        (VLLM_LIST, says({"message": "bad temperature"}, "400 Bad Request"), ConfigurationError, "bad temperature"),
    ],
)
def test_each_fault_has_one_clear_error(
    models: Reply, complete: Callable[[Body], Reply], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        look(models, complete)
    assert words in str(raised.value)
    assert raised.value.cause  # type: ignore[attr-defined] # both classes have it
    assert raised.value.remedy  # type: ignore[attr-defined] # both classes have it


def test_a_workload_beyond_the_context_is_refused_with_the_numbers_before_any_probe() -> None:
    async def run() -> None:
        async with serving(VLLM_LIST) as server:
            workload = Workload((WorkloadClass("long", prompt_tokens=3500, output_tokens=300, spread_ratio=0.1),))
            with pytest.raises(ConfigurationError, match=r"'long' needs up to 4180 tokens, 3850 of them.* has 4096"):
                await inspect(server.url, workload)
            assert server.bodies == []

    asyncio.run(run())


def test_nobody_there_no_host_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    for url, words in (
        (f"http://127.0.0.1:{port}/v1", "Nothing answers"),
        ("http://no-such-host.invalid/v1", "Nothing answers"),
    ):
        with pytest.raises(UnreachableError, match=words):
            asyncio.run(inspect(url))


@pytest.mark.parametrize(
    "on_connect",
    [
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", Act.HANG],  # speaks at once
        [],  # answers requests only
    ],
)
def test_tls_to_a_port_without_it_is_named(on_connect: list[Step]) -> None:
    async def run() -> None:
        async with scripted([as_json({}, "404 Not Found"), Act.CLOSE], on_connect=on_connect) as server:
            with pytest.raises(ConfigurationError) as raised:
                await inspect(f"https://127.0.0.1:{server.port}/v1")
            assert "nothing there speaks TLS" in raised.value.cause
            assert "http://" in raised.value.remedy

    asyncio.run(run())


def test_plain_http_to_a_port_of_tls_is_named(tmp_path: Path) -> None:
    own, context = make_certificates(tmp_path), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.server_cert, own.server_key)

    async def run() -> None:
        async with scripted([as_json({})], tls=context) as server:
            with pytest.raises(ConfigurationError) as raised:
                await inspect(f"http://127.0.0.1:{server.port}/v1")
            assert "speaks TLS" in raised.value.cause
            assert "https://" in raised.value.remedy

    asyncio.run(run())
