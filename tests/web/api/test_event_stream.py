"""The event stream: whole documents first, then what changes, beats in silence, and an end in every case."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, calibrated, client_of, fallback, running, snapshot

from calibrator.web.api import events
from calibrator.web.wire.backends import BackendDocument
from calibrator.web.wire.events import EventDocument


@dataclass
class Reader:
    """An ASGI client that reads as long as it likes. `is_asleep`: it takes nothing any more."""

    app: Any
    path: str = "/v1/events"
    query: bytes = b""
    status: int = 0
    text: str = ""
    is_whole: bool = False
    is_asleep: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def start(self) -> None:
        scope = {
            "type": "http", "method": "GET", "path": self.path, "raw_path": self.path.encode(), "root_path": "",
            "query_string": self.query, "headers": [], "scheme": "http", "http_version": "1.1",
            "server": ("calibrator", 80), "client": ("test", 1),
        }  # fmt: skip
        self.task = asyncio.create_task(self.app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.is_asleep:
            await asyncio.Event().wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.text += message["body"].decode()
            self.is_whole = not message.get("more_body", False)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for block in self.text.split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines())
            if "event" in lines:
                data = json.loads(lines["data"])
                EventDocument.model_validate(data)
                found.append((lines["event"], data))
        return found

    async def end(self) -> None:
        self.gone.set()
        assert self.task is not None
        await self.task


def kinds(found: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, str | None]]:
    return [(kind, data.get("backend")) for kind, data in found]


def test_a_stream_begins_with_whole_documents_and_goes_on_with_what_changed() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot())
        app = app_of(operator)
        reader = Reader(app)
        reader.start()
        await asyncio.sleep(0.5)
        first, second = reader.events()
        assert kinds([first, second]) == [("backend", "chat"), ("backend", "fresh")]
        async with client_of(app) as client:
            served = (await client.get("/v1/backends/chat")).json()
        BackendDocument.model_validate(first[1]["changed"] | {"trend": []})
        assert first[1]["changed"] == {key: value for key, value in served.items() if key != "trend"}
        operator.put(calibrated(organic_in_flight=13.0))
        await asyncio.sleep(2.0)
        kind, data = reader.events()[2]
        assert (kind, data["changed"]) == (
            "backend",
            {"in_flight": {"organic": 13.0, "probe": 0}, "headroom": 24.0, "headroom_ratio": 0.648649},
        )
        await reader.end()

    run_virtual(scenario())


def test_going_stale_is_a_change_without_a_new_recommendation() -> None:
    async def scenario() -> None:
        reader = Reader(app_of(FakeOperator(snapshot(calibrated()))))
        reader.start()
        await asyncio.sleep(105.0)  # valid for 100 s
        assert [data["changed"] for kind, data in reader.events()[1:] if kind == "backend"] == [{"state": "stale"}]
        await reader.end()

    run_virtual(scenario())


def test_in_silence_the_stream_beats_with_the_servers_clock() -> None:
    async def scenario() -> None:
        reader = Reader(app_of(FakeOperator(snapshot(fallback()))))
        reader.start()
        await asyncio.sleep(35.0)
        beats = [data["at"] for kind, data in reader.events() if kind == "heartbeat"]
        assert len(beats) == 3
        assert beats == sorted(set(beats))
        await reader.end()

    run_virtual(scenario())


def test_a_backend_that_leaves_is_told_and_one_that_comes_is_whole() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot(calibrated()))
        reader = Reader(app_of(operator))
        reader.start()
        await asyncio.sleep(1.5)
        operator.current = snapshot(fallback("new"))
        await asyncio.sleep(2.0)
        assert kinds(reader.events()) == [("backend", "chat"), ("removed", "chat"), ("backend", "new")]
        assert "cap" in reader.events()[-1][1]["changed"]
        await reader.end()

    run_virtual(scenario())


def test_one_backend_alone_can_be_followed() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot())
        app = app_of(operator)
        reader, unknown = Reader(app, query=b"backend=fresh"), Reader(app, query=b"backend=nope")
        reader.start()
        unknown.start()
        operator.put(calibrated(progress=running()))
        await asyncio.sleep(3.0)
        assert kinds(reader.events()) == [("backend", "fresh")]
        assert unknown.status == 404
        await reader.end()
        await unknown.end()

    run_virtual(scenario())


def test_streams_end_as_the_service_stops() -> None:
    async def scenario() -> None:
        stopping = asyncio.Event()
        readers = [Reader(app_of(FakeOperator(snapshot()), is_stopping=stopping.is_set)) for _ in range(3)]
        for reader in readers:
            reader.start()
        await asyncio.sleep(5.0)
        assert not any(reader.is_whole for reader in readers)
        stopping.set()
        await asyncio.sleep(events.REFRESH_S + 0.1)
        assert all(reader.is_whole for reader in readers)
        assert all(reader.task is not None and reader.task.done() for reader in readers)

    run_virtual(scenario())


def test_a_reader_that_sleeps_is_dropped() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot())
        reader = Reader(app_of(operator))
        reader.start()
        await asyncio.sleep(2.0)
        reader.is_asleep = True
        operator.put(calibrated(organic_in_flight=1.0))
        with capture_logs() as logs:
            await asyncio.sleep(events.STALLED_S + 3.0)
        assert reader.task is not None
        assert reader.task.done()
        assert [line["after_s"] for line in logs] == [events.STALLED_S]

    run_virtual(scenario())


def test_more_streams_than_allowed_are_refused_and_a_place_becomes_free_again() -> None:
    async def scenario() -> None:
        app = app_of(FakeOperator(snapshot(fallback())))
        readers = [Reader(app) for _ in range(events.MAX_STREAMS)]
        for reader in readers:
            reader.start()
        await asyncio.sleep(0.1)
        late = Reader(app)
        late.start()
        await asyncio.sleep(0.1)
        assert late.status == 503
        await readers[0].end()
        again = Reader(app)
        again.start()
        await asyncio.sleep(0.1)
        assert again.status == 200
        for reader in (*readers[1:], late, again):
            await reader.end()

    run_virtual(scenario())


def test_documents_are_made_once_for_all_streams_and_only_of_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = events.backend_document

    def counted(view: Any, now: float) -> BackendDocument:
        made.append(view.name)
        return real(view, now)

    monkeypatch.setattr(events, "backend_document", counted)

    async def scenario() -> None:
        operator = FakeOperator(snapshot(*(fallback(f"b{number}") for number in range(20))))
        app = app_of(operator)
        readers = [Reader(app) for _ in range(10)]
        for reader in readers:
            reader.start()
        await asyncio.sleep(5.0)
        assert len(made) == 20
        view = operator.current.backends["b3"]
        operator.put(replace(view, organic_in_flight=2.0))
        await asyncio.sleep(5.0)
        assert made[20:] == ["b3"]
        for reader in readers:
            await reader.end()

    run_virtual(scenario())
