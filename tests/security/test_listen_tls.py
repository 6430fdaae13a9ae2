"""HTTPS of the service: clients verify it, it verifies clients, rotated files are followed, wrong ones refused."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs
from support.certificates import Certificates, make_certificates, put_in_place
from support.real_processes import on_uvloop
from support.web_fakes import FakeOperator, app_of, snapshot

from calibrator.clock import LoopClock, SystemClock
from calibrator.errors import ConfigurationError
from calibrator.settings.sections.tls import TlsSettings
from calibrator.wiring.server.connection_guard import guarded_config
from calibrator.wiring.server.tls import ServerTls, not_after, server_context

DAY_S = 86_400.0


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificates, Certificates]:
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    return make_certificates(folders[0]), make_certificates(folders[1])


def put(folder: Path, certificates: Certificates) -> TlsSettings:
    put_in_place(folder, certificates)
    return TlsSettings(cert_file=folder / "tls.crt", key_file=folder / "tls.key", client_ca_file=folder / "ca.crt")


@asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[str]:
    app = app_of(FakeOperator(snapshot()))
    server = uvicorn.Server(guarded_config(app, tls=tls))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def ask(url: str, trusted: Certificates, shown: Certificates | None = None) -> httpx.Response:
    context = ssl.create_default_context(cafile=trusted.ca)
    if shown is not None:
        context.load_cert_chain(shown.client_cert, shown.client_key)
    async with httpx.AsyncClient(verify=context, timeout=120.0) as client:
        return await client.get(f"{url}/v1/session")


def test_clients_verify_the_service_and_sessions_are_secure(
    authorities: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    first, second = authorities
    settings = put(tmp_path, first).model_copy(update={"client_ca_file": None})

    async def scenario() -> None:
        async with serving(ServerTls(settings, SystemClock())) as url:
            answer = await ask(url, first)
            assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
            with pytest.raises(httpx.ConnectError, match="verify failed"):
                await ask(url, second)
            async with httpx.AsyncClient() as client:
                with pytest.raises(httpx.HTTPError):
                    await client.get(url.replace("https", "http"))

    on_uvloop(scenario)


def test_rotated_files_are_followed_without_a_restart_authorities_included(
    authorities: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    first, second = authorities

    async def scenario() -> None:
        tls = ServerTls(put(tmp_path, first), SystemClock())
        async with serving(tls) as url:
            assert (await ask(url, first, first)).status_code == 200
            for shown in (None, second):
                with pytest.raises(httpx.HTTPError):
                    await ask(url, first, shown)
            put(tmp_path, second)
            tls.reload_changed()
            assert (await ask(url, second, second)).status_code == 200
            with pytest.raises(httpx.HTTPError):
                await ask(url, second, first)
            with pytest.raises(httpx.ConnectError, match="verify failed"):
                await ask(url, first, second)

    with capture_logs() as lines:
        on_uvloop(scenario)
    assert [line["event"] for line in lines] == [
        "the certificate ends soon",
        "TLS files changed: new connections use them",
        "the certificate ends soon",
    ]


def test_a_rotation_that_does_not_work_leaves_the_last_files_in_force(
    authorities: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    first, second = authorities

    async def scenario() -> None:
        tls = ServerTls(put(tmp_path, first), SystemClock())
        async with serving(tls) as url:
            shutil.copy(second.server_key, tmp_path / "tls.key")
            tls.reload_changed()
            tls.reload_changed()
            assert (await ask(url, first, first)).status_code == 200
            (tmp_path / "tls.crt").unlink()
            tls.reload_changed()
            assert (await ask(url, first, first)).status_code == 200

    with capture_logs() as lines:
        on_uvloop(scenario)
    errors = [line for line in lines if line["log_level"] == "error"]
    assert len(errors) == 2, "once a change"
    assert "key values mismatch" in errors[0]["reason"]
    assert "No such file" in errors[1]["reason"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no certificate", ("tls.crt", "No such file")),
        ("no key", ("tls.key", "No such file")),
        ("another's key", ("tls.key", "key values mismatch", "belong together")),
        ("no PEM", ("tls.crt", "cannot be used")),
        ("key with a password", ("the key has a password", "without a password")),
        ("no authority", ("client_ca_file", "No such file")),
        ("an empty authority", ("client_ca_file", "cannot be used")),
    ],
)
def test_files_that_do_not_work_are_one_sentence_at_the_start(
    damage: str, words: tuple[str, ...], authorities: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    first, second = authorities
    settings = put(tmp_path, first)
    match damage:
        case "no certificate":
            (tmp_path / "tls.crt").unlink()
        case "no key":
            (tmp_path / "tls.key").unlink()
        case "another's key":
            shutil.copy(second.server_key, tmp_path / "tls.key")
        case "no PEM":
            (tmp_path / "tls.crt").write_bytes(b"\x30\x82\xff\x00")
        case "key with a password":
            command = ["openssl", "ec", "-in", first.server_key, "-aes256", "-passout", "pass:x"]
            subprocess.run([*command, "-out", tmp_path / "tls.key"], check=True, capture_output=True)
        case "no authority":
            (tmp_path / "ca.crt").unlink()
        case _:
            (tmp_path / "ca.crt").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        server_context(settings)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("days", "event"), [(0.0, "the certificate ends soon"), (30.0, "the certificate has expired: clients refuse it")]
)
def test_the_end_of_the_certificate_is_told_in_time(
    days: float, event: str, authorities: tuple[Certificates, Certificates], tmp_path: Path
) -> None:
    settings = put(tmp_path, authorities[0])
    now = SystemClock().wall()
    with capture_logs() as lines:
        asyncio.run(_made(settings, now + days * DAY_S))
    assert [line["event"] for line in lines] == [event]
    assert lines[0]["file"] == str(tmp_path / "tls.crt")


async def _made(settings: TlsSettings, wall: float) -> None:
    ServerTls(settings, LoopClock(wall))


def test_the_end_is_what_openssl_says(authorities: tuple[Certificates, Certificates]) -> None:
    for file in (authorities[0].server_cert, authorities[1].ca):
        shown = subprocess.run(
            ["openssl", "x509", "-in", file, "-noout", "-enddate"], check=True, capture_output=True, text=True
        )
        expected = ssl.cert_time_to_seconds(shown.stdout.strip().removeprefix("notAfter="))
        assert not_after(Path(file).read_text()) == expected
