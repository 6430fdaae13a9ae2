"""The short way to the cap says what the ordinary one says, byte for byte, and takes the usual polls."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request
from support.virtual_time import run_virtual
from support.web_fakes import FakeOperator, app_of, client_of, snapshot

from calibrator.client.follower import Follower
from calibrator.errors import StoreError
from calibrator.ports.sharing import Poll, Share
from calibrator.web.http.requests import parsed_query
from calibrator.web.poll.fast_path import plain_poll, plain_request
from calibrator.web.wire.backends import CapQuery

PATH = "/v1/backends/chat/cap"
SHORT, ORDINARY = "client=a&in_flight=3&rejected=1", "in_flight=3&rejected=1&client=a"


def scope(query: bytes, path: str = PATH, method: str = "GET") -> dict[str, object]:
    return {"type": "http", "method": method, "path": path, "query_string": query, "headers": [], "root_path": ""}


def takes(asked: dict[str, object]) -> bool:
    return plain_request(asked) is not None


def test_the_client_library_and_the_documented_spelling_go_the_short_way() -> None:
    written = httpx.QueryParams(Follower(static_cap=1, client="host:1/x").query(3, 1))
    assert takes(scope(str(written).encode()))
    assert takes(scope(SHORT.encode()))
    assert takes(scope(b"client=envoy-1"))


@pytest.mark.parametrize(
    "asked",
    [
        scope(ORDINARY.encode()),
        scope(b""),
        scope(b"client=a&wait=30"),
        scope(b"client="),
        scope(b"client=a&in_flight=1&in_flight=2"),
        scope(b"client=a&in_flight=12345678901"),
        scope(SHORT.encode(), method="HEAD"),
        scope(SHORT.encode(), method="POST"),
        scope(SHORT.encode(), "/v1/backends//cap"),
        scope(SHORT.encode(), "/v1/backends/a/b/cap"),
        scope(SHORT.encode(), "/v1/backends/cap"),
        {**scope(SHORT.encode(), "/under/v1/backends/chat/cap"), "root_path": "/under"},
        {"type": "websocket", "path": PATH, "query_string": SHORT.encode(), "headers": []},
    ],
)
def test_everything_else_goes_the_ordinary_way(asked: dict[str, object]) -> None:
    assert not takes(asked)


FIELDS = st.one_of(
    st.sampled_from(["client=a", "client=a%41", "client=", "client=a+b", "client=a%3ab%2Fc%40", "client=%zz%40"]),
    st.sampled_from(
        ["in_flight=0", "in_flight=999999999", "in_flight=-1", "in_flight=1_0", "rejected=7", "rejected=٤"]
    ),
    st.sampled_from(["wait=0", "wait=5", "x=1"]),
)


@given(st.one_of(st.lists(FIELDS, max_size=5).map("&".join), st.text(max_size=30)))
@example("client=" + "a" * 128)
@example("client=" + "a" * 129)
@example("client=a&in_flight=000000007")
def test_what_it_reads_is_what_the_model_reads(query: str) -> None:
    raw = query.encode()
    short = plain_poll(raw)
    if short is not None:
        asked = parsed_query(CapQuery, Request(scope(raw)))
        assert short == Poll(asked.client or "", asked.in_flight, asked.rejected)
        assert asked.wait == 0.0


CASES: list[tuple[str, dict[str, str | None], list[tuple[str, str]]]] = [
    (PATH, {}, []),
    (PATH, {}, [("If-None-Match", '"19-37-12-calibrated.2"')]),
    (PATH, {}, [("If-None-Match", 'W/"x", "19-37-12-calibrated.2"')]),
    (PATH, {}, [("If-None-Match", '"x"'), ("If-None-Match", '"19-37-12-calibrated.2"')]),
    (PATH, {}, [("If-None-Match", '"\xe9"')]),
    (PATH, {}, [("If-None-Match", "*")]),
    ("/v1/backends/none/cap", {}, []),
    ("/v1/backends/%63hat/cap", {}, []),
    ("/v1/backends/a%2Fb/cap", {}, []),
    (PATH, {"joiner": ""}, []),
    (PATH, {"unready": ""}, []),
    (PATH, {"token": "reader"}, []),
    (PATH, {"token": "reader"}, [("Authorization", "Bearer wrong")]),
    (PATH, {"token": "reader"}, [("Authorization", "Bearer reader")]),
    (PATH, {"token": "reader"}, [("Authorization", "Bearer wrong"), ("Authorization", "Bearer reader")]),
    (PATH, {"token": "reader"}, [("Authorization", "Basic eDpyZWFkZXI=")]),
]


@pytest.mark.parametrize(("path", "given_", "headers"), CASES)
def test_both_ways_answer_alike(path: str, given_: dict[str, str | None], headers: list[tuple[str, str]]) -> None:
    async def answers() -> list[tuple[int, bytes, list[tuple[bytes, bytes]]]]:
        operator = FakeOperator(snapshot(), shares={"a": None if "joiner" in given_ else 19, "b": 18})
        operator.current = replace(operator.current, ready="unready" not in given_)
        tokens = [str(given_["token"])] if "token" in given_ else []
        async with client_of(app_of(operator, read_tokens=tokens)) as client:
            sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
            found = [await client.get(f"{path}?{query}", headers=sent) for query in (SHORT, ORDINARY)]
        assert [poll.client for poll in operator.asked_polls] in ([], ["a", "a"])
        assert len(set(operator.asked_polls)) <= 1
        return [(answer.status_code, answer.content, answer.headers.raw) for answer in found]

    short, ordinary = run_virtual(answers())
    assert short == ordinary


class BrokenOperator(FakeOperator):
    """Raises whatever a test gives it."""

    error: Exception = RuntimeError("a defect")

    def poll(self, backend: str, poll: Poll) -> Share:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("a defect"), 500), (StoreError("The database is gone.", "Start it."), 503)]
)
def test_both_ways_fail_alike(error: Exception, status: int) -> None:
    async def scenario() -> list[tuple[int, bytes, list[tuple[bytes, bytes]]]]:
        operator = BrokenOperator(snapshot())
        operator.error = error
        async with client_of(app_of(operator), raises=False) as client:
            found = [await client.get(f"{PATH}?{query}") for query in (SHORT, ORDINARY)]
        return [(answer.status_code, answer.content, answer.headers.raw) for answer in found]

    short, ordinary = run_virtual(scenario())
    assert short == ordinary
    assert short[0] == status


def test_a_defect_reaches_the_server_and_its_log() -> None:
    async def scenario() -> None:
        async with client_of(app_of(BrokenOperator(snapshot())), raises=True) as client:
            await client.get(f"{PATH}?{SHORT}")

    with pytest.raises(RuntimeError, match="a defect"):
        run_virtual(scenario())


def test_ten_polls_a_second_of_one_client_are_ten_answers_and_one_sharer() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot(), shares={"a": 19})
        async with client_of(app_of(operator)) as client:
            for _ in range(50):
                assert (await client.get(f"{PATH}?{SHORT}")).json()["share"] == 19
                await asyncio.sleep(0.1)
        assert operator.polls == {"chat": 50}

    run_virtual(scenario())
