"""The verbs as a person or a script meets them: real processes, real HTTP, exit codes, and what is on which stream."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calibrator.backends.simulated.parameters import PARAMETER_SETS, WORKLOADS
from calibrator.backends.simulated.truth import true_capacity
from calibrator.core.records.objective import parse_objective

CALIBRATOR = [sys.executable, "-m", "calibrator"]
OBJECTIVE = "ttft p99 <= 100ms"
SHORT = ("--prompt-tokens", "64", "--output-tokens", "10")


def calibrator(*arguments: str, seconds: float = 400.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CALIBRATOR, *arguments], capture_output=True, text=True, timeout=seconds, check=False)


def sweep(url: str, *arguments: str, model: str = "simulated") -> subprocess.CompletedProcess[str]:
    return calibrator("sweep", "--url", url, "--model", model, "--objective", OBJECTIVE, *arguments)


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The simulated engine with four slots, in a process of its own; its URL ends in /v1."""
    command = [sys.executable, "-m", "calibrator.backends.simulated", "--port", "0", "--parameters", "small"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1] + "/v1"
        finally:
            process.terminate()
            process.wait(120)


def stats(engine: str) -> dict[str, float]:
    with urllib.request.urlopen(engine.removesuffix("/v1") + "/stats", timeout=120) as response:
        document: dict[str, float] = json.load(response)
        return document


def wait_until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@contextlib.contextmanager
def web_server(status: int, body: bytes, content_type: str) -> Iterator[str]:
    """A server that is no LLM: the same answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - names of the base class

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


# ------------------------------------------------------------------------------------------------------------- sweep
def test_a_search_ends_as_one_json_document_with_the_promised_keys(engine: str) -> None:
    done = sweep(engine, *SHORT, "--max", "8", "--requests", "450", "--output", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress where there is no terminal"
    document = json.loads(done.stdout)
    assert set(document) >= {"capacity", "cap", "grade", "requests", "duration_s", "levels"}
    assert set(document["capacity"]) >= {"estimate", "low", "high"}
    assert 1 <= document["cap"] <= document["capacity"]["estimate"] <= 8
    assert set(document["levels"][0]) >= {
        "concurrency", "achieved_concurrency", "n", "exceedances", "verdict", "reasons", "ttft_s", "itl_s", "tpot_s",
        "e2e_s", "requests_per_second", "output_tokens_per_second", "goodput_per_second", "errors",
    }  # fmt: skip
    assert stats(engine)["in_flight"] == 0


def test_given_levels_are_measured_exactly_and_nothing_is_searched(engine: str) -> None:
    done = sweep(engine, *SHORT, "--levels", "2,8", "--requests", "60", "--output", "jsonl")
    assert done.returncode == 0, done.stderr
    *levels, result = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(level["concurrency"], level["n"], level["type"]) for level in levels] == [
        (2, 60, "level"),
        (8, 60, "level"),
    ]
    assert levels[0]["verdict"] != "exceeded"
    assert levels[1]["verdict"] == "exceeded", "eight requests on four slots wait for each other"
    assert (result["capacity"], result["cap"], result["grade"]) == (None, None, None)
    assert levels[0]["ttft_s"]["p50"] > 0
    assert levels[0]["ttft_s"]["p99"] is None, "60 requests cannot support a P99"


def test_the_table_is_for_people(engine: str) -> None:
    done = sweep(engine, *SHORT, "--levels", "2", "--requests", "20")
    assert done.returncode == 0
    assert "ttft p50" in done.stdout
    assert "\x1b[" not in done.stdout


def test_without_streaming_only_the_end_to_end_time_is_judged(engine: str) -> None:
    done = calibrator(
        "sweep", "--url", engine, "--model", "simulated", "--objective", "e2e p95 <= 5s", *SHORT, "--no-stream",
        "--api", "completions", "--levels", "2", "--requests", "40", "--output", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    level = json.loads(done.stdout)["levels"][0]
    assert level["e2e_s"]["p50"] > 0
    assert level["ttft_s"]["p50"] is None
    assert level["exceedances"] == 0


def test_an_sla_that_cannot_be_met_is_infeasible(engine: str) -> None:
    """By far, so that no delay of a busy machine's could have made the violations: those would prove nothing."""
    done = calibrator("sweep", "--url", engine, "--model", "simulated", "--objective", "ttft p99 <= 40ms",
                      "--prompt-tokens", "2000", "--output-tokens", "2", "--output", "json")  # fmt: skip
    document = json.loads(done.stdout)
    assert done.returncode == 5, document["reason"]
    assert (document["outcome"], document["cap"]) == ("infeasible", None)


# ------------------------------------------------------------------------------------------------ errors, one by one
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stderr.startswith("calibrator: ")
    assert done.stderr.count("\n") == 1, "one line: cause and remedy"
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_connection_is_unreachable() -> None:
    assert_refused(sweep(f"http://127.0.0.1:{closed_port()}/v1"), 3, "Nothing answers", "Check the URL")


def test_an_unknown_host_is_unreachable() -> None:
    assert_refused(sweep("http://no-such-host.invalid/v1"), 3, "Check the URL")


def test_refused_credentials_are_unauthorised() -> None:
    body = b'{"error": {"message": "Unauthorized", "code": 401}}'
    with web_server(401, body, "application/json") as url:
        assert_refused(sweep(url), 3, "401")


def test_an_unknown_model_names_the_served_ones(engine: str) -> None:
    assert_refused(sweep(engine, model="another"), 2, "another", "simulated")


def test_a_prompt_that_does_not_fit_the_context_is_a_configuration_error(engine: str) -> None:
    assert_refused(sweep(engine, "--prompt-tokens", "99999"), 2, "99999", "context")


def test_a_server_that_is_not_an_llm_is_a_configuration_error() -> None:
    with web_server(200, b"<html>hello</html>", "text/html") as url:
        assert_refused(sweep(url), 2, "OpenAI")


def test_a_wrong_path_is_a_configuration_error(engine: str) -> None:
    assert_refused(sweep(engine.removesuffix("/v1")), 2, "/v1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--objective", "ttft 99 <= 5ms"), ("not an objective",)),
        (("--requests", "40"), ("certify", "Allow")),
        (("--min", "5", "--max", "2"), ("bounds",)),
        (("--output", "xml"), ("output format",)),
    ],
)
def test_impossible_options_end_before_any_request(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(sweep("http://127.0.0.1:1/v1", *arguments), 2, *words)


def test_an_unknown_option_is_a_usage_error() -> None:
    done = sweep("http://127.0.0.1:1/v1", "--concurency", "5")
    assert done.returncode == 2
    assert "No such option" in done.stderr


# ---------------------------------------------------------------------------------------------------------- Ctrl-C
def test_one_interrupt_ends_a_sweep_cleanly_and_prints_what_was_measured(engine: str) -> None:
    command = [*CALIBRATOR, "sweep", "--url", engine, "--model", "simulated", "--objective", OBJECTIVE, *SHORT]
    with subprocess.Popen([*command, "--output", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        before = stats(engine)["requests_total"]
        wait_until(lambda: stats(engine)["requests_total"] > before + 200)  # the looks, and more than one whole stage
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out)["outcome"] == "interrupted"
    wait_until(lambda: stats(engine)["in_flight"] == 0, seconds=120.0)


# ------------------------------------------------------------------------------------------------------------- demo
def test_the_demo_finds_the_capacity_of_its_engine() -> None:
    done = calibrator("demo", "--once", "--port", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    cap = int(done.stdout.split("Published cap: ")[1].split()[0])
    truth = true_capacity(
        PARAMETER_SETS["seed"], WORKLOADS["seed"], (parse_objective("ttft p99 <= 300ms"),), max_level=128
    ).capacity
    # One sweep on real time; how near sweeps come is tested on virtual time, over several seeds and engines.
    assert 0.3 * truth <= cap <= 1.2 * truth, (cap, truth)
    assert "curl http://127.0.0.1:" in done.stdout


def read_until(process: subprocess.Popen[bytes], word: str, seconds: float = 300.0) -> str:
    """From the pipe itself: a buffered reader would hide from `select` what it has read ahead."""
    assert process.stdout is not None
    deadline, seen = time.monotonic() + seconds, ""
    while word not in seen:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, seen
        piece = os.read(process.stdout.fileno(), 65536)
        assert piece, seen
        seen += piece.decode()
    return seen


def test_the_demo_goes_on_serving_until_interrupted(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    command = [*CALIBRATOR, "demo", "--port", "0", "--parameters", "small", "--objective", OBJECTIVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=environment) as process:
        try:
            seen = read_until(process, "Serving until Ctrl-C")
            url = seen.split("curl ")[1].split()[0]
            with urllib.request.urlopen(url, timeout=120) as response:
                document = json.load(response)
            assert document["cap"] == int(seen.split("Published cap: ")[1].split()[0])
            assert document["state"] == "calibrated"
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
        finally:
            process.kill()  # a test that failed must not wait for a demo that serves for ever
    assert list(tmp_path.iterdir()) == [], "nothing is left on disk"
