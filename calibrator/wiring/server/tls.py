"""TLS of the service itself: certificate, key and, for mutual TLS, the authority of the clients; followed when rotated.

A new context is made from the files whenever one of them has changed, and new connections get it through the callback
that OpenSSL calls with each ClientHello: that exchanges authorities as well, which cannot be taken out of a live
context. Files that do not work leave the last good ones in force, and the reason is logged, once a change.

With a client authority there are no session tickets: a resumed session would not show its certificate again.

The end of the certificate is read from its DER form (RFC 5280 section 4.1), for which the standard library has nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from calibrator.core.records.objective import format_duration
from calibrator.errors import ConfigurationError
from calibrator.ports.clock import Clock
from calibrator.settings.sections.tls import TlsSettings

CHECK_EVERY_S = 5.0  # so soon is a rotation noticed
WARN_S = 7 * 86_400.0  # before the end of the certificate
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


class ServerTls:
    """Raises ConfigurationError at once if the files cannot be used."""

    def __init__(self, settings: TlsSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._loaded = _stamps(settings)
        self._current = server_context(settings)
        self.context = server_context(settings)
        self.context.sni_callback = self._hand_over
        self._warn()

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(CHECK_EVERY_S)
            self.reload_changed()

    def reload_changed(self) -> None:
        """Take what has changed, if it works."""
        stamps = _stamps(self._settings)
        if stamps == self._loaded:
            return
        self._loaded = stamps
        try:
            self._current = server_context(self._settings)
        except ConfigurationError as error:
            structlog.get_logger().error("TLS files changed and do not work: the last ones go on", reason=str(error))
            return
        structlog.get_logger().info("TLS files changed: new connections use them")
        self._warn()

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _warn(self) -> None:
        left_s = not_after(Path(self._settings.cert_file).read_text("ascii")) - self._clock.wall()
        file = str(self._settings.cert_file)
        if left_s <= 0:
            structlog.get_logger().error("the certificate has expired: clients refuse it", file=file)
        elif left_s < WARN_S:
            structlog.get_logger().warning("the certificate ends soon", file=file, left=format_duration(left_s // 1))


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Raises ConfigurationError that names the file and what is wrong with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.cert_file, settings.key_file or settings.cert_file, password=_no_password)
        not_after(Path(settings.cert_file).read_text("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"listen.tls: the certificate {settings.cert_file} with the key {settings.key_file or settings.cert_file} "
            f"cannot be used: {_reason(error)}.",
            "Both must be readable, in PEM form without a password, and belong together.",
        ) from None
    if settings.client_ca_file is not None:
        try:
            context.load_verify_locations(settings.client_ca_file)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"listen.tls.client_ca_file: {settings.client_ca_file} cannot be used: {_reason(error)}.",
                "It must be readable and hold certificates in PEM form.",
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    return context


def not_after(pem: str) -> float:
    """When the first certificate of the text ends, in Unix seconds. Raises ValueError for what is no certificate."""
    begin, end = pem.find("-----BEGIN CERTIFICATE-----"), pem.find("-----END CERTIFICATE-----")
    if begin < 0 or end < begin:
        raise ValueError("it holds no certificate")
    der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len("-----END CERTIFICATE-----")])
    (_, certificate), *_ = _parts(der)
    (_, signed), *_ = _parts(certificate)
    fields = [content for tag, content in _parts(signed) if tag != _VERSION]
    _, (tag, text) = _parts(fields[3])  # after serial number, algorithm and issuer; its second: notAfter
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, in order."""
    at = 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, start = int.from_bytes(der[start : start + size]), start + size
        yield tag, der[start : start + length]
        at = start + length


def _stamps(settings: TlsSettings) -> tuple[Any, ...]:
    """Differs between two states of the files; symbolic links are followed, as Kubernetes swaps them."""
    return tuple(_stamp(path) for path in (settings.cert_file, settings.key_file, settings.client_ca_file) if path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _no_password() -> str:
    """Instead of OpenSSL's question on the terminal."""
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
