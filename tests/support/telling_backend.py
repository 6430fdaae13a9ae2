"""A server that tells what it should not: it quotes our key in its errors, and its completions carry a mark."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Telling:
    """`mark` stands in every completion. `refuses`: every request is a 400 that quotes its credentials."""

    mark: str
    refuses: bool = False
    seen: list[str] = field(default_factory=list)  # Authorization and X-Org of each request
    url: str = ""


@contextmanager
def telling_backend(telling: Telling) -> Iterator[Telling]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if telling.refuses or self.path != "/v1/models":
                self._refuse(404)
            else:
                self._send(200, "application/json", json.dumps({"data": [{"id": "m"}]}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if telling.refuses:
                self._refuse(400)
                return
            prompt = sum(len(message["content"].split()) for message in asked["messages"])
            chunk = {"choices": [{"index": 0, "delta": {"content": telling.mark}}]}
            usage = {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": asked["max_tokens"]}}
            events = [json.dumps(chunk)] * asked["max_tokens"] + [json.dumps(usage), "[DONE]"]
            self._send(200, "text/event-stream", "".join(f"data: {event}\n\n" for event in events))

        def _refuse(self, status: int) -> None:
            said = f"Incorrect credentials: {self.headers.get('Authorization')} of {self.headers.get('X-Org')}"
            self._send(status, "application/json", json.dumps({"error": {"message": said}}))

        def _send(self, status: int, kind: str, text: str) -> None:
            telling.seen += [str(self.headers.get("Authorization")), str(self.headers.get("X-Org"))]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    telling.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield telling
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
