"""`calibrator serve` with `listen.tls`: a real process, mutual TLS, certificates and tokens rotated while it runs."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from support.certificates import Certificates, make_certificates, put_in_place
from support.service_process import Service, serving, wait_for, write_config

FIRST, SECOND = "the-first-operator-token", "the-second-operator-token"


def ask(service: Service, trusted: Certificates, shown: Certificates, token: str) -> int | str:
    """Status, or the kind of failure."""
    context = ssl.create_default_context(cafile=trusted.ca)
    context.load_cert_chain(shown.client_cert, shown.client_key)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with httpx.Client(verify=context, headers=headers, timeout=120.0, trust_env=False) as http:
            return http.get(f"{service.http.base_url}/v1/audit").status_code
    except (httpx.HTTPError, OSError) as error:
        return type(error).__name__


def test_it_serves_https_and_follows_certificates_and_tokens(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "files")]
    for folder in folders:
        folder.mkdir()
    old, new = make_certificates(folders[0]), make_certificates(folders[1])
    files = folders[2]
    put_in_place(files, old)
    (files / "token").write_text(FIRST)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        backend = {
            "url": f"http://127.0.0.1:{nobody.getsockname()[1]}/v1", "model": "m",
            "objectives": ["ttft p99 <= 500ms"], "fallback_cap": 4,
        }  # fmt: skip
        names = {"cert_file": "tls.crt", "key_file": "tls.key", "client_ca_file": "ca.crt"}
        tree = {
            "listen": {"port": 0, "tls": {key: str(files / name) for key, name in names.items()}},
            "auth": {"operator_tokens": [{"file": str(files / "token")}]},
            "load": {"selftest": False},
            "backends": {"chat": backend},
        }
        with serving(write_config(tmp_path, tree)) as service:
            assert str(service.http.base_url).startswith("https://")
            limits = Path(f"/proc/{service.process.pid}/limits").read_text()
            soft = dict(re.findall(r"^(Max [a-z ]+?) {2,}(\S+)", limits, re.MULTILINE))
            assert soft["Max core file size"] == "0", "a core would hold every secret"
            hard = re.search(r"^Max open files +\S+ +(\S+)", limits, re.MULTILINE)
            assert hard is not None
            assert int(soft["Max open files"]) >= min(4096, int(hard[1]))
            assert ask(service, old, old, FIRST) == 200
            assert ask(service, old, old, SECOND) == 401
            assert isinstance(ask(service, old, new, FIRST), str), "a stranger's certificate"
            with pytest.raises(httpx.HTTPError):
                httpx.get(str(service.http.base_url).replace("https", "http"), timeout=120.0, trust_env=False)
            put_in_place(files, new)
            (files / "token").write_text(SECOND)
            wait_for(lambda: ask(service, new, new, SECOND) == 200, "the new files are in force")
            assert ask(service, new, new, FIRST) == 401
            assert isinstance(ask(service, new, old, SECOND), str), "the old authority is gone"
            log = service.log.read_text()
        assert "TLS files changed: new connections use them" in log
        assert FIRST not in log
        assert SECOND not in log
