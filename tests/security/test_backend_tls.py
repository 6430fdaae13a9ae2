"""A backend behind a private authority that wants a client certificate: probes, scrapes and the first look all show it,
and whatever is wrong with it is one sentence in each of the three places. A real TLS server answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from support.certificates import Certificates, make_certificates
from support.real_processes import on_uvloop
from support.service_process import run_calibrator, serving, wait_for, write_config

from calibrator.backends.openai import OpenAIBackend
from calibrator.backends.openai_inspector import OpenAIInspector
from calibrator.backends.simulated.parameters import PARAMETER_SETS, workload_for
from calibrator.backends.simulated.routes import Api
from calibrator.clock import SystemClock
from calibrator.core.records.sample import FailureKind, Label, Phase, ProbeRequest, Sample
from calibrator.errors import ConfigurationError, UnreachableError
from calibrator.ports.sweeps import Target
from calibrator.settings.sections.tls import TlsSettings
from calibrator.telemetry.scrape import HttpTelemetry
from calibrator.wiring.server.connection_guard import guarded_config
from calibrator.wiring.server.tls import ServerTls

ENGINE = PARAMETER_SETS["small"]
WORKLOAD = workload_for(ENGINE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificates, Certificates]:
    """Ours, and a stranger's."""
    return make_certificates(tmp_path_factory.mktemp("ours")), make_certificates(tmp_path_factory.mktemp("strange"))


@pytest.fixture(scope="module")
def good(certificates: tuple[Certificates, Certificates]) -> Iterator[Target]:
    """The simulated engine over mutual TLS, and the target that fits it."""
    own, server = certificates[0], []
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(serve(own, listener, server)), daemon=True)
    thread.start()
    wait_for(lambda: server and server[0].started, "the engine answers")
    url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
    yield Target(url, "simulated", ca_file=own.ca, client_cert_file=own.client_cert, client_key_file=own.client_key)
    server[0].should_exit = True
    thread.join(20.0)
    assert not thread.is_alive()


async def serve(own: Certificates, listener: socket.socket, started: list[uvicorn.Server]) -> None:
    api = Api(ENGINE, WORKLOAD, SystemClock(), None)
    settings = TlsSettings(cert_file=own.server_cert, key_file=own.server_key, client_ca_file=own.ca)
    server = uvicorn.Server(guarded_config(api.app(), tls=ServerTls(settings, SystemClock())))
    api.open_connections = lambda: len(server.server_state.connections)
    api.driver.start()
    started.append(server)
    with listener:
        await server._serve([listener])
    await api.close()


@pytest.fixture(scope="module")
def strict_url(certificates: tuple[Certificates, Certificates]) -> Iterator[str]:
    """A server that wants a certificate and says why it refuses one, as OpenSSL does; asyncio's just close."""
    own, context = certificates[0], ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.server_cert, own.server_key)
    context.load_verify_locations(own.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the test is over
            with connection, contextlib.suppress(OSError):
                talk = context.wrap_socket(connection.dup(), server_side=True, do_handshake_on_connect=False)
                with talk, contextlib.suppress(ssl.SSLError):
                    talk.do_handshake()
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(20.0)
    assert not thread.is_alive()


async def probe(target: Target) -> Sample:
    backend = OpenAIBackend(target, now=time.monotonic, forces_length=True, stall_timeout_s=99.0, total_timeout_s=99.0)
    connection = backend.connect()
    request = ProbeRequest(0, Label(0, Phase.RAMP), "a", "some words", 2, 3, stream=True)
    try:
        return await connection.send(request, lambda _flight: None)
    finally:
        connection.abort()


async def scrape(target: Target) -> tuple[str | None, str]:
    """The engine that was seen, and the problem."""
    telemetry = HttpTelemetry(target, timeout_s=120.0)
    try:
        load = await telemetry.scrape()
        return None if load is None else load.engine, telemetry.problem
    finally:
        await telemetry.close()


def inspector(target: Target) -> OpenAIInspector:
    return OpenAIInspector(target, now=time.monotonic, timeout_s=120.0)


def test_all_three_ways_show_the_certificate_and_trust_the_authority(
    good: Target,
) -> None:
    async def scenario() -> None:
        sample = await probe(good)
        assert (sample.failure, sample.completion_tokens) == (None, 3)
        assert await scrape(good) == ("vllm", "")
        assert (await inspector(good).inspect(WORKLOAD)).model == "simulated"

    on_uvloop(scenario)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("no client certificate", "certificate required"),
        ("a stranger's client certificate", "unknown ca"),
        ("a stranger's authority", "verify failed"),
        ("the system's authorities", "verify failed"),
    ],
)
def test_what_the_other_side_refuses_is_one_sentence_everywhere(
    wrong: str, words: str, strict_url: str, good: Target, certificates: tuple[Certificates, Certificates]
) -> None:
    _, strange = certificates
    good = replace(good, url=strict_url)
    target = {
        "no client certificate": replace(good, client_cert_file=None, client_key_file=None),
        "a stranger's client certificate": replace(
            good, client_cert_file=strange.client_cert, client_key_file=strange.client_key
        ),
        "a stranger's authority": replace(good, ca_file=strange.ca),
        "the system's authorities": replace(good, ca_file=None),
    }[wrong]

    async def scenario() -> None:
        failure = (await probe(target)).failure
        assert failure is not None
        assert failure.kind is FailureKind.TLS
        assert words in failure.detail
        seen, problem = await scrape(target)
        assert seen is None
        assert words in problem.lower().replace("_", " ")
        with pytest.raises(UnreachableError, match=words) as caught:
            await inspector(target).inspect(WORKLOAD)
        assert "Check http/https, the CA file and the client certificate." in str(caught.value)
        for told in (problem, str(caught.value)):
            assert "\n" not in told

    on_uvloop(scenario)


@pytest.mark.parametrize("damage", ["no PEM", "another's key", "missing"])
def test_files_that_do_not_work_are_one_sentence_everywhere(
    damage: str, certificates: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    ours, strange = certificates
    broken = tmp_path / "client.key"
    match damage:
        case "no PEM":
            broken.write_text("nothing")
        case "another's key":
            shutil.copy(strange.client_key, broken)
    target = Target(
        "https://127.0.0.1:1/v1", "m", ca_file=ours.ca, client_cert_file=ours.client_cert, client_key_file=str(broken)
    )

    async def scenario() -> None:
        for attempt in (probe(target), scrape(target), inspector(target).inspect(WORKLOAD)):
            with pytest.raises(ConfigurationError, match="client") as caught:
                await attempt
            assert "belong together" in str(caught.value)
            assert "\n" not in str(caught.value)

    asyncio.run(scenario())


def test_check_refuses_files_that_cannot_work_and_the_service_goes_on_without_that_backend(
    certificates: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    ours, strange = certificates
    backend = {
        "url": "https://127.0.0.1:1/v1", "model": "m", "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 8,
        "client_cert_file": ours.client_cert, "client_key_file": strange.client_key,
    }  # fmt: skip
    config = write_config(tmp_path, {"backends": {"chat": backend}})
    done = run_calibrator("check", "--config", config)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in ("client.pem", "belong together"):
        assert word in done.stderr
    with serving(config) as service:
        seen = service.wait_for_backend("chat", lambda one: one["health"] == "error", "says what is wrong")
        assert "client.pem" in seen["health_reason"]
        assert "belong together" in seen["health_reason"]
        assert service.document("/v1/backends/chat/cap")["cap"] == 8
