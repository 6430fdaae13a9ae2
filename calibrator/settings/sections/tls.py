"""`listen.tls:` of the service itself. Certificates of the engines are settings of each backend."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from calibrator.settings.problems import Problem, refuse
from calibrator.settings.values import File, Frozen


class TlsSettings(Frozen):
    """HTTPS instead of HTTP."""

    cert_file: File = Field(description="certificate chain (PEM); reloaded when the file changes")
    key_file: File | None = Field(default=None, description="its private key; default: in cert_file")
    client_ca_file: File | None = Field(
        default=None,
        description="CA bundle for clients, which must then present a certificate; default: no client certificates",
    )


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        refuse(
            Problem("", f"'{value[:80]}' is neither an address nor a network.", "Write it like 10.0.0.7 or 10.0.0.0/8.")
        )
    return value


Network = Annotated[str, AfterValidator(_network)]
