"""The whole timed client over real sockets: keep-alive, the retry rule, failures of connecting, TLS, cancellation."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop
from support.certificates import Certificates, make_certificates
from support.scripted_server import Act, ScriptedServer, scripted
from support.wire import GOOD_BODY, HELLO, ROLE, chunked, head, probe, sized

from calibrator.backends.openai import OpenAIBackend
from calibrator.core.records.sample import Failure, FailureKind, Flight, Sample
from calibrator.errors import ConfigurationError
from calibrator.ports.backend import Connection
from calibrator.ports.sweeps import Target

GOOD = chunked(ROLE, GOOD_BODY)


class Run(Protocol):
    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> None: ...


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def run_on_loop(coroutine: Coroutine[Any, Any, None]) -> None:
        factory: Callable[[], asyncio.AbstractEventLoop] = request.param
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 20))

    return run_on_loop


def connect(server: ScriptedServer | str, **target: Any) -> Connection:
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.port}/v1"
    backend = OpenAIBackend(
        Target(url, "m", **target),
        now=time.monotonic,
        forces_length=True,
        stall_timeout_s=10.0,
        total_timeout_s=10.0,
        connect_timeout_s=2.0,
    )
    return backend.connect()


async def send(connection: Connection) -> tuple[Sample, list[Flight]]:
    """One request. `on_start` is called exactly once, whatever happens."""
    flights: list[Flight] = []
    sample = await connection.send(probe(), flights.append)
    assert len(flights) == 1
    assert flights[0].started_s == sample.started_s
    return sample, flights


def failure_of(sample: Sample) -> Failure:
    assert sample.failure is not None
    return sample.failure


def test_requests_share_one_connection(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([GOOD]) as server:
            connection = connect(server)
            samples = [(await send(connection))[0] for _ in range(3)]
            assert [sample.failure for sample in samples] == [None] * 3
            assert server.connections == 1
            assert samples[0].connect_s > 0.0
            assert [sample.connect_s for sample in samples[1:]] == [0.0, 0.0]
            connection.abort()

    run(scenario())


@pytest.mark.parametrize("how", [Act.RESET, Act.CLOSE])
def test_a_reused_connection_that_breaks_before_any_byte_is_retried_once_with_a_new_clock(run: Run, how: Act) -> None:
    async def scenario() -> None:
        async with scripted([GOOD], [how], [GOOD]) as server:
            connection = connect(server)
            await send(connection)
            sample, _ = await send(connection)
            assert sample.failure is None
            assert (server.connections, len(server.requests)) == (2, 3)
            assert sample.connect_s > 0.0
            connection.abort()

    run(scenario())


@pytest.mark.parametrize("how", [Act.RESET, Act.CLOSE])
def test_the_retry_happens_only_once(run: Run, how: Act) -> None:
    async def scenario() -> None:
        async with scripted([GOOD], [how]) as server:
            connection = connect(server)
            await send(connection)
            sample, _ = await send(connection)
            assert failure_of(sample).kind is FailureKind.RESET
            assert len(server.requests) == 3

    run(scenario())


@pytest.mark.parametrize("how", [Act.RESET, Act.CLOSE])
def test_a_fresh_connection_that_breaks_is_a_failure(run: Run, how: Act) -> None:
    async def scenario() -> None:
        async with scripted([how]) as server:
            sample, _ = await send(connect(server))
            assert failure_of(sample).kind is FailureKind.RESET
            assert len(server.requests) == 1

    run(scenario())


@pytest.mark.parametrize(
    ("said", "how", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-", Act.RESET, FailureKind.RESET),
        (b"HTTP/1.1 200 OK\r\nContent-", Act.CLOSE, FailureKind.RESET),
        (chunked(ROLE, HELLO, end=False), Act.RESET, FailureKind.RESET),
        (chunked(ROLE, HELLO, end=False), Act.CLOSE, FailureKind.TRUNCATED),
        (head() + ROLE + HELLO, Act.CLOSE, FailureKind.TRUNCATED),  # close-delimited: only finish_reason tells
    ],
)
def test_an_answer_that_breaks_off_is_a_failure_and_never_retried(
    run: Run, said: bytes, how: Act, kind: FailureKind
) -> None:
    async def scenario() -> None:
        read = asyncio.Event()
        async with scripted([GOOD], [said, read, how]) as server:
            connection = connect(server)
            await send(connection)
            pending = asyncio.create_task(send(connection))
            await asyncio.sleep(0.05)  # a reset would overtake the bytes before it
            read.set()
            sample, _ = await pending
            assert failure_of(sample).kind is kind
            assert len(server.requests) == 2

    run(scenario())


def test_a_connection_that_the_server_closed_in_between_is_replaced(run: Run) -> None:
    async def scenario() -> None:
        async with scripted(
            [sized(GOOD_BODY, "200 OK", "text/event-stream", "Connection: close"), Act.CLOSE]
        ) as server:
            connection = connect(server)
            assert [(await send(connection))[0].failure for _ in range(2)] == [None, None]
            assert server.connections == 2

    run(scenario())


def test_a_close_delimited_stream_is_complete_at_eof(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([head() + GOOD_BODY, Act.CLOSE]) as server:
            sample, _ = await send(connect(server))
            assert (sample.failure, sample.token_events) == (None, 3)

    run(scenario())


def test_stamps_are_visible_while_the_request_runs(run: Run) -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()
        async with scripted([chunked(ROLE, HELLO, end=False), go_on, Act.CLOSE]) as server:
            flights: list[Flight] = []
            pending = asyncio.create_task(connect(server).send(probe(), flights.append))
            while not flights or flights[0].first_token_s is None:  # noqa: ASYNC110 - a Flight is polled by design
                await asyncio.sleep(0.001)
            assert flights[0].started_s < flights[0].first_token_s == flights[0].first_content_s
            go_on.set()
            sample = await pending
            assert sample.ttft_s == flights[0].first_token_s - flights[0].started_s

    run(scenario())


def test_abort_closes_at_once_and_gives_a_cancelled_sample(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([chunked(ROLE, HELLO, end=False), Act.HANG]) as server:
            connection = connect(server)
            pending = asyncio.create_task(connection.send(probe(), lambda _flight: None))
            await server.asked.wait()
            connection.abort()
            sample = await pending
            assert (sample.cancelled, sample.failure) == (True, None)
            await server.all_closed.wait()
            assert server.closed_by_client == 1

    run(scenario())


def test_cancelling_the_task_closes_the_connection(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([Act.HANG]) as server:
            pending = asyncio.create_task(connect(server).send(probe(), lambda _flight: None))
            await server.asked.wait()
            pending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pending
            await server.all_closed.wait()
            assert server.closed_by_client == 1

    run(scenario())


@pytest.fixture
def full_port() -> Any:
    """A port whose backlog is full: connecting neither succeeds nor fails."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    yield listener.getsockname()[1]
    for sock in (*fillers, listener):
        sock.close()


def test_connecting_is_bounded_and_can_be_aborted(run: Run, full_port: int) -> None:
    async def scenario() -> None:
        url = f"http://127.0.0.1:{full_port}/v1"
        sample, _ = await send(connect(url))
        assert failure_of(sample) == Failure(FailureKind.CONNECT, "no connection within 2 s")
        assert sample.duration_s == 0.0
        assert sample.connect_s >= 1.9

        connection = connect(url)
        pending = asyncio.create_task(send(connection))
        await asyncio.sleep(0.01)
        connection.abort()
        sample, _ = await pending
        assert (sample.cancelled, sample.failure) == (True, None)

    run(scenario())


def test_nobody_listening_and_no_such_host_are_connect_failures(run: Run) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed_soon:
            port = closed_soon.getsockname()[1]
        for host in (f"127.0.0.1:{port}", "no-such-host.invalid", "x" * 70 + ".invalid"):
            sample, _ = await send(connect(f"http://{host}/v1"))
            assert failure_of(sample).kind is FailureKind.CONNECT, host

    run(scenario())


def test_a_server_that_speaks_first_is_no_http_server(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([Act.HANG], on_connect=[b"220 mail.example ESMTP\r\n"]) as server:
            sample, _ = await send(connect(server))
            assert failure_of(sample).kind is FailureKind.PROTOCOL

    run(scenario())


# ---------------------------------------------------------------------------------------------------------- TLS
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def server_context(certificates: Certificates, *, client_wanted: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    if client_wanted:
        context.load_verify_locations(certificates.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_tls_with_a_private_authority(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        async with scripted([GOOD], tls=server_context(certificates)) as server:
            connection = connect(f"https://127.0.0.1:{server.port}/v1", ca_file=certificates.ca)
            assert [(await send(connection))[0].failure for _ in range(2)] == [None, None]
            assert server.connections == 1
            connection.abort()

    run(scenario())


@pytest.mark.parametrize(("host_name", "kind"), [("engine.test", None), ("other.test", FailureKind.TLS)])
def test_behind_an_address_the_certificate_is_checked_against_the_name(
    run: Run, certificates: Certificates, host_name: str, kind: FailureKind | None
) -> None:
    """As DNS discovery finds replicas: the URL has the address, the name is sent as Host and in the handshake."""

    async def scenario() -> None:
        context, asked = server_context(certificates), []
        context.sni_callback = lambda _socket, name, _context: asked.append(name)
        async with scripted([GOOD], tls=context) as server:
            url = f"https://127.0.0.1:{server.port}/v1"
            connection = connect(url, ca_file=certificates.ca, host_name=host_name)
            sample, _ = await send(connection)
            assert (None if sample.failure is None else sample.failure.kind) is kind
            assert asked == [host_name]
            if kind is None:
                assert f"Host: {host_name}:{server.port}".encode() in server.requests[0]
            connection.abort()

    run(scenario())


def test_a_client_certificate_is_shown(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        async with scripted([GOOD], tls=server_context(certificates, client_wanted=True)) as server:
            url = f"https://127.0.0.1:{server.port}/v1"
            connection = connect(
                url,
                ca_file=certificates.ca,
                client_cert_file=certificates.client_cert,
                client_key_file=certificates.client_key,
            )
            assert (await send(connection))[0].failure is None
            connection.abort()

    run(scenario())


def refuse_one_client(listener: socket.socket, context: ssl.SSLContext) -> None:
    """One handshake that fails for want of a client certificate (asyncio's servers would not send the alert)."""
    accepted, _ = listener.accept()
    tls = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLError):
        tls.do_handshake()
    with socket.socket(fileno=tls.detach()) as plain:
        while plain.recv(65536):  # closing with unread bytes would be a reset
            pass


def test_a_refused_client_certificate_is_a_tls_failure(run: Run, certificates: Certificates) -> None:
    """TLS 1.3 tells the client only after the handshake, with the first read."""

    async def scenario() -> None:
        context = server_context(certificates, client_wanted=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            refusing = asyncio.create_task(asyncio.to_thread(refuse_one_client, listener, context))
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
            sample, _ = await send(connect(url, ca_file=certificates.ca))
            await refusing
            assert failure_of(sample).kind is FailureKind.TLS
            assert "certificate required" in failure_of(sample).detail

    run(scenario())


def test_an_unknown_authority_and_a_plain_port_are_tls_failures(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        async with scripted([GOOD], tls=server_context(certificates)) as server:
            sample, _ = await send(connect(f"https://127.0.0.1:{server.port}/v1"))
            assert failure_of(sample).kind is FailureKind.TLS
            assert "certificate" in failure_of(sample).detail
        async with scripted([GOOD], on_connect=[b"HTTP/1.1 400 Bad Request\r\n\r\n", Act.HANG]) as server:
            sample, _ = await send(connect(f"https://127.0.0.1:{server.port}/v1"))
            assert failure_of(sample).kind is FailureKind.TLS

    run(scenario())


@pytest.mark.parametrize("how", [Act.CLOSE, Act.DROP, Act.RESET])
def test_the_retry_rule_holds_over_tls(run: Run, certificates: Certificates, how: Act) -> None:
    async def scenario() -> None:
        async with scripted([GOOD], [how], [GOOD], [how], tls=server_context(certificates)) as server:
            url = f"https://127.0.0.1:{server.port}/v1"
            connection = connect(url, ca_file=certificates.ca)
            samples = [(await send(connection))[0] for _ in range(2)]
            assert [sample.failure for sample in samples] == [None, None]
            assert server.connections == 2
            connection.abort()
            fresh, _ = await send(connect(url, ca_file=certificates.ca))
            assert failure_of(fresh).kind is FailureKind.RESET

    run(scenario())


@pytest.mark.parametrize("how", [Act.CLOSE, Act.DROP])
def test_close_delimited_streams_over_tls(run: Run, certificates: Certificates, how: Act) -> None:
    """Complete or not is told by the finish_reason, since many servers end TLS without its farewell."""

    async def scenario() -> None:
        cut = chunked(ROLE, HELLO, end=False)
        async with scripted([head() + GOOD_BODY, how], [cut, how], tls=server_context(certificates)) as server:
            connection = connect(f"https://127.0.0.1:{server.port}/v1", ca_file=certificates.ca)
            assert (await send(connection))[0].failure is None
            assert failure_of((await send(connection))[0]).kind is FailureKind.TRUNCATED

    run(scenario())


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("127.0.0.1:8000/v1", {}),
        ("ftp://host/v1", {}),
        ("http:///v1", {}),
        ("http://host:99999/v1", {}),
        ("http://user:secret@host/v1", {}),
        ("https://host/v1", {"ca_file": "missing.pem"}),
        ("https://host/v1", {"client_cert_file": __file__}),
        ("http://host/v1", {"api_key": "line\nend"}),
        ("http://host/v1", {"api_key": "schlüssel"}),
        ("http://host/v1", {"api": "embeddings"}),
    ],
)
def test_an_impossible_target_is_refused_before_anything_is_sent(url: str, target: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(url, **target)
    assert refused.value.remedy
    assert "secret" not in str(refused.value)


def test_an_unreadable_authority_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"broken\.pem"):
        connect("https://host/v1", ca_file=str(broken))
