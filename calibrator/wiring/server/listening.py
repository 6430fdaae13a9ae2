"""Sockets that listen, bound before anything else starts."""

from __future__ import annotations

import socket

from calibrator.errors import ConfigurationError


def listen(host: str, port: int, keys: str = "listen") -> socket.socket:
    """Bind first, so that a taken port is one clear sentence. `keys`: where the configuration names host and port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            f"Choose another address or port ({keys}.host, {keys}.port), or end the program that uses it.",
        ) from None
    return listener
