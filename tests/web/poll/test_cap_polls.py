"""The polling contract, byte by byte."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual_time import run_virtual
from support.web_fakes import EPOCH_S, FakeOperator, app_of, calibrated, client_of, fallback, snapshot

from calibrator.core.publish.snapshot import Override, Rates, State
from calibrator.ports.sharing import Poll
from calibrator.web.poll.cap import LOOK_S, matches

CAP = "/v1/backends/chat/cap"


def get(
    operator: FakeOperator, url: str = CAP, *, at_s: float = 0.0, method: str = "GET", **headers: str
) -> httpx.Response:
    async def scenario() -> httpx.Response:
        await asyncio.sleep(at_s)
        async with client_of(app_of(operator)) as client:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, url, headers=sent)

    return run_virtual(scenario())


def test_the_cap_and_its_headers_exactly() -> None:
    response = get(FakeOperator(snapshot()))
    assert response.status_code == 200
    assert response.content == (
        b'{"backend":"chat","cap":37,"replica_cap":37,"share":37,"clients_seen":0,"max_queue_wait_s":0.12,'
        b'"requests_per_second":30.0,"tokens_per_minute":{"prompt":180000.0,"output":90000.0},"state":"calibrated","grade":"certified",'
        b'"version":12,"measured_at":"2027-01-15T06:58:19.500Z","valid_until":"2027-01-15T08:01:40.000Z"}'
    )
    assert dict(response.headers) == {
        "etag": '"37-37-12-calibrated.0"',
        "cache-control": "max-age=5, stale-if-error=86400",
        "ratelimit-policy": '"llm";q=37;qu="concurrent-requests"',
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "content-type": "application/json",
        "content-length": str(len(response.content)),
    }


def test_a_fallback_is_a_usable_cap_and_unknown_limits_are_left_out() -> None:
    response = get(FakeOperator(snapshot()), "/v1/backends/fresh/cap")
    assert response.content == (
        b'{"backend":"fresh","cap":8,"replica_cap":8,"share":8,"clients_seen":0,"state":"fallback","grade":null,"version":1,'
        b'"measured_at":null,"valid_until":null}'
    )


def test_rates_of_zero_are_left_out_because_gateways_would_block_everything() -> None:
    view = calibrated()
    view = replace(view, recommendation=replace(view.recommendation, rates=Rates(0.0, 100.0, 0.0)))
    document = get(FakeOperator(snapshot(view))).json()
    assert "requests_per_second" not in document
    assert "tokens_per_minute" not in document


def test_bytes_are_stable_while_nothing_changed() -> None:
    operator = FakeOperator(snapshot())
    first = get(operator)
    operator.current = replace(operator.current, taken_at=EPOCH_S + 50.0)
    operator.put(calibrated(organic_in_flight=30.0, up=False))
    later = get(operator, at_s=50.0)
    assert (later.content, later.headers["etag"]) == (first.content, first.headers["etag"])


def test_a_cap_past_its_validity_is_still_answered_marked_stale_under_another_etag() -> None:
    operator = FakeOperator(snapshot())
    response = get(operator, at_s=100.5, If_None_Match='"37-37-12-calibrated.0"')
    assert response.status_code == 200
    assert response.headers["etag"] == '"37-37-12-stale.0"'
    assert response.json()["state"] == "stale"
    assert response.json()["version"] == 12


@pytest.mark.parametrize(
    "if_none_match",
    [
        '"37-37-12-calibrated.0"',
        'W/"37-37-12-calibrated.0"',
        '"a", "37-37-12-calibrated.0"',
        "*",
        ' , "x,y" ,W/"37-37-12-calibrated.0",',
    ],
)
def test_a_known_etag_answers_304_without_body(if_none_match: str) -> None:
    response = get(FakeOperator(snapshot()), If_None_Match=if_none_match)
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == '"37-37-12-calibrated.0"'
    assert response.headers["cache-control"] == "max-age=5, stale-if-error=86400"
    assert "content-length" not in response.headers
    assert "content-type" not in response.headers


@pytest.mark.parametrize(
    "if_none_match",
    [
        '"36-37-12-calibrated.0"',
        "37-37-12-calibrated.0",
        '"37-37-12-calibrated.0',
        '"a" "37-37-12-calibrated.0"',
        '*, "a"',
        "",
        '"*"',
    ],
)
def test_everything_else_answers_with_the_cap(if_none_match: str) -> None:
    assert get(FakeOperator(snapshot()), If_None_Match=if_none_match).status_code == 200


OPAQUE = st.text(st.sampled_from("abc,*/W -37!#~\x80ÿ".replace(" ", "")), max_size=12)


@given(st.lists(st.tuples(st.booleans(), OPAQUE), min_size=1, max_size=6), OPAQUE, st.sampled_from([",", ", ", " ,, "]))
def test_a_list_matches_exactly_when_one_opaque_tag_is_equal(
    tags: list[tuple[bool, str]], current: str, comma: str
) -> None:
    field = comma.join(("W/" if weak else "") + f'"{tag}"' for weak, tag in tags)
    assert matches(field, f'"{current}"') == (current in [tag for _, tag in tags])


@given(st.text(max_size=200))
def test_no_field_value_breaks_the_parser(field: str) -> None:
    assert matches(field, '"37-37-12-calibrated.0"') in (True, False)


@pytest.mark.timeout(60)
def test_a_hostile_field_costs_no_backtracking() -> None:
    """The server's own header limit is 64 KB: a quadratic parser would take minutes."""
    for field in ('"a",' * 16_000, ", " * 32_000, '"a"' + " " * 64_000, '"a" ' + "," * 64_000, '"' * 64_000):
        assert not matches(field + "x", '"b"')


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("client=a%20b", "client"),
        ("client=", "client"),
        ("client=" + "x" * 129, "client"),
        ("in_flight=-1", "in_flight"),
        ("in_flight=many", "in_flight"),
        ("in_flight=1e99", "in_flight"),
        ("rejected=-3", "rejected"),
        ("rejected=1.5", "rejected"),
        ("wait=61", "wait"),
        ("wait=-1", "wait"),
        ("wait=nan", "wait"),
        ("wait=30s", "wait"),
    ],
)
def test_a_bad_parameter_is_named_and_not_counted(query: str, parameter: str) -> None:
    operator = FakeOperator(snapshot())
    response = get(operator, f"{CAP}?{query}")
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert [found["parameter"] for found in response.json()["errors"]] == [parameter]
    assert operator.polls == {}


def test_good_parameters_are_accepted_and_each_poll_is_counted() -> None:
    operator = FakeOperator(snapshot())
    assert get(operator, f"{CAP}?client=envoy-1.zone/a:9901&in_flight=12&rejected=0&unknown=x").status_code == 200
    assert get(operator, CAP, If_None_Match="*").status_code == 304
    assert operator.polls == {"chat": 2}


def test_before_the_state_is_loaded_there_is_503_with_retry_after() -> None:
    response = get(FakeOperator(snapshot(ready=False)))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.headers["content-type"] == "application/problem+json"


def test_head_answers_with_the_headers_of_get() -> None:
    operator = FakeOperator(snapshot())
    assert dict(get(operator, method="HEAD").headers) == dict(get(operator).headers)


# ------------------------------------------------------------------------------------------------------------- shares
def test_a_client_is_told_its_share_and_how_many_there_are() -> None:
    operator = FakeOperator(snapshot(), shares={"envoy-1": 19, "envoy-2": 18})
    response = get(operator, f"{CAP}?client=envoy-2&in_flight=12&rejected=3")
    document = response.json()
    assert (document["share"], document["cap"], document["clients_seen"]) == (18, 37, 2)
    assert response.headers["etag"] == '"18-37-12-calibrated.2"'
    assert response.headers["ratelimit-policy"] == '"llm";q=18;qu="concurrent-requests"'
    assert operator.asked_polls == [Poll("envoy-2", 12, 3)]


def test_who_gives_no_name_gets_the_whole_cap() -> None:
    operator = FakeOperator(snapshot(), shares={"envoy-1": 37})
    assert get(operator).json()["share"] == 37
    assert operator.asked_polls == [Poll("")]


def test_what_probes_take_is_taken_off_the_answer_under_another_etag() -> None:
    view = calibrated(reserved_for_probes=12)
    response = get(FakeOperator(snapshot(view)), If_None_Match='"37-37-12-calibrated.0"')
    assert (response.status_code, response.json()["cap"], response.json()["share"]) == (200, 25, 25)
    assert response.headers["etag"] == '"25-25-12-calibrated.0"'


def test_a_joiner_waits_with_503_and_keeps_its_static_cap() -> None:
    response = get(FakeOperator(snapshot(), shares={"new": None}), f"{CAP}?client=new", If_None_Match="*")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/problem+json"
    assert "etag" not in response.headers


def test_a_joiner_that_can_wait_gets_its_share_as_soon_as_there_is_one() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot(), shares={"new": None})
        async with client_of(app_of(operator)) as client:
            waiting = asyncio.create_task(client.get(f"{CAP}?client=new&wait=30&rejected=4"))
            await asyncio.sleep(7.0)
            operator.shares["new"] = 12
            operator.notify()
            assert (await waiting).json()["share"] == 12
            assert asyncio.get_running_loop().time() == pytest.approx(7.0)
            again = [poll for poll in operator.asked_polls if poll.is_waiting]
            assert again
            assert set(again) == {Poll("new", is_waiting=True)}, "what it refused is told once"
            assert operator.polls == {"chat": 1}

    run_virtual(scenario())


def test_an_override_is_marked_and_two_of_them_never_share_an_etag() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot())
        async with client_of(app_of(operator)) as client:
            seen = []
            for ends_at in (EPOCH_S + 60.0, EPOCH_S + 90.0):
                await operator.override("chat", Override(20, "incident", "ada", EPOCH_S, ends_at))
                response = await client.get(CAP)
                seen.append((response.headers["etag"], response.json()["valid_until"], response.json()["state"]))
        assert seen == [
            ('"20-20-12-overridden-1800000060000.0"', "2027-01-15T08:01:00.000Z", "overridden"),
            ('"20-20-12-overridden-1800000090000.0"', "2027-01-15T08:01:30.000Z", "overridden"),
        ]

    run_virtual(scenario())


# ---------------------------------------------------------------------------------------------------------- long poll
def test_another_client_that_comes_ends_a_long_poll_only_if_the_share_changes() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot(), shares={"a": 19, "b": 18})
        known = {"If-None-Match": '"19-37-12-calibrated.2"'}
        async with client_of(app_of(operator)) as client:
            waiting = asyncio.create_task(client.get(f"{CAP}?client=a&wait=30", headers=known))
            await asyncio.sleep(10.0)
            operator.shares["c"] = None
            operator.notify()
            await asyncio.sleep(5.0)
            assert not waiting.done()
            operator.shares["a"] = 13
            operator.notify()
            response = await waiting
            assert (response.json()["share"], response.json()["clients_seen"]) == (13, 3)
            assert asyncio.get_running_loop().time() == pytest.approx(15.0)

    run_virtual(scenario())


def test_a_long_poll_hears_of_a_change_and_otherwise_ends_in_304() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot(calibrated(), fallback()))
        known = {"If-None-Match": '"8-8-1-fallback.0"'}
        url = "/v1/backends/fresh/cap?wait=30"
        now = asyncio.get_running_loop().time
        async with client_of(app_of(operator)) as client:
            response = await client.get(url, headers=known)
            assert (response.status_code, now()) == (304, pytest.approx(30.0))

            waiting = asyncio.create_task(client.get(url, headers=known))
            await asyncio.sleep(10.0)
            operator.put(calibrated("fresh"))
            response = await waiting
            assert now() == pytest.approx(40.0)
            assert (response.status_code, response.json()["cap"]) == (200, 37)

            response = await client.get(url, headers=known)  # differs already: no waiting
            assert response.status_code == 200
            assert now() == pytest.approx(40.0)

    run_virtual(scenario())


def test_going_stale_ends_a_long_poll() -> None:
    async def scenario() -> None:
        async with client_of(app_of(FakeOperator(snapshot()))) as client:
            await asyncio.sleep(90.0)
            response = await client.get(f"{CAP}?wait=60", headers={"If-None-Match": '"37-37-12-calibrated.0"'})
            assert response.json()["state"] == State.STALE
            assert asyncio.get_running_loop().time() == pytest.approx(100.0, abs=LOOK_S)

    run_virtual(scenario())


def test_going_stale_between_two_polls_shows_though_nothing_else_changed() -> None:
    async def scenario() -> None:
        async with client_of(app_of(FakeOperator(snapshot(), shares={"a": 19}))) as client:
            for at_s, state in ((99.0, State.CALIBRATED), (99.5, State.CALIBRATED), (100.5, State.STALE)):
                await asyncio.sleep(at_s - asyncio.get_running_loop().time())
                for query in ("client=a", "wait=0&client=a"):
                    response = await client.get(f"{CAP}?{query}")
                    assert response.json()["state"] == state
                    assert response.headers["etag"] == f'"19-37-12-{state}.1"'

    run_virtual(scenario())


def test_without_if_none_match_there_is_nothing_to_wait_for() -> None:
    async def scenario() -> None:
        async with client_of(app_of(FakeOperator(snapshot()))) as client:
            assert (await client.get(f"{CAP}?wait=60")).status_code == 200
            assert asyncio.get_running_loop().time() == 0.0

    run_virtual(scenario())


def test_a_shutdown_answers_every_long_poll_at_once() -> None:
    async def scenario() -> None:
        stopping, operator = asyncio.Event(), FakeOperator(snapshot())
        async with client_of(app_of(operator, is_stopping=stopping.is_set)) as client:
            polls = [
                asyncio.create_task(client.get(f"{CAP}?wait=60", headers={"If-None-Match": "*"})) for _ in range(20)
            ]
            await asyncio.sleep(5.0)
            stopping.set()
            operator.notify()
            responses = await asyncio.gather(*polls)
            assert {response.status_code for response in responses} == {304}
            assert asyncio.get_running_loop().time() == pytest.approx(5.0)

    run_virtual(scenario())


def test_a_backend_removed_while_a_poll_waits_is_a_404() -> None:
    async def scenario() -> None:
        operator = FakeOperator(snapshot())
        async with client_of(app_of(operator)) as client:
            waiting = asyncio.create_task(client.get(f"{CAP}?wait=60", headers={"If-None-Match": "*"}))
            await asyncio.sleep(1.0)
            operator.current = snapshot(fallback())
            operator.notify()
            assert (await waiting).status_code == 404

    run_virtual(scenario())


def test_a_client_that_leaves_a_long_poll_is_not_asked_for_any_longer() -> None:
    """Or its looks would keep alive a share that nobody has."""

    async def scenario() -> None:
        operator, asked = FakeOperator(snapshot(), shares={"a": 19}), asyncio.Event()

        async def receive() -> dict[str, object]:
            if not asked.is_set():
                asked.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.sleep(7.0)
            return {"type": "http.disconnect"}

        async def send(_message: object) -> None: ...

        known = [(b"if-none-match", b'"19-37-12-calibrated.1"')]
        query = {"query_string": b"client=a&wait=60", "headers": known}
        await app_of(operator)(
            {"type": "http", "method": "GET", "path": CAP, "raw_path": CAP.encode(), "root_path": "", **query},
            receive, send,
        )  # fmt: skip
        assert asyncio.get_running_loop().time() <= 7.0 + LOOK_S
        assert len(operator.asked_polls) <= 1 + 3

    run_virtual(scenario())
