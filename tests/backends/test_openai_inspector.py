"""The first look at a server: what it finds out, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.scripted_server import Act, read_request, scripted
from support.wire import DONE, HELLO, chunk, event, sized

from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.core.workload.classes import Workload, WorkloadClass
from calibrator.errors import ConfigurationError, UnreachableError
from calibrator.ports.backend import BackendFacts
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
                if head.startswith(b"GET /v1/models "):
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
    assert 2 + 2 * 3 < len(server.bodies) <= 2 + 12
    longest = 5 + 3 * len(str(server.bodies[1]).split())
    assert max(len(str(body).split()) for body in server.bodies) * 3 < 4096
    assert 450 < longest <= 640  # about the longest prompt of the workload, and not above the context
    assert all(b"authorization: bearer key" in head.lower() for head in server.heads)


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


def test_a_server_without_usage_is_used_with_a_warning() -> None:
    facts, _ = look(VLLM_LIST, lambda body: answer(body, reports_usage=False))
    assert (facts.token_scale.per_word, facts.forces_length) == (1.0, True)
    assert "usage" in facts.warnings[0]


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
BUSY = {"error": {"message": "loading", "code": 503}}


@pytest.mark.parametrize(
    ("models", "complete", "error", "words"),
    [
        (UNAUTHORIZED, answer, UnreachableError, "API key"),
        (VLLM_LIST, lambda _: UNAUTHORIZED, UnreachableError, "API key"),
        (NO_LIST, says(NO_MODEL, "404 Not Found"), ConfigurationError, "no model 'm'"),
        (as_json({"data": [{"id": "a"}, {"id": "b"}]}), answer, ConfigurationError, "It serves: a, b"),
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

    async def plain_port() -> None:
        async with scripted([Act.HANG], on_connect=[b"HTTP/1.1 400 Bad Request\r\n\r\n", Act.HANG]) as server:
            with pytest.raises(UnreachableError, match="No TLS connection"):
                await inspect(f"https://127.0.0.1:{server.port}/v1")

    asyncio.run(plain_port())
