"""The verbs in a real terminal: live view, curve, budgets, colours, and Ctrl-C once and twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.service_process import Engine, simulated_engine, wait_for
from support.terminal import COLOUR, CTRL_C, HIDE_CURSOR, SHOW_CURSOR, terminal

CALIBRATOR = [sys.executable, "-m", "calibrator"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with simulated_engine("small") as running:
        yield running


def sweep(engine: Engine, *more: str) -> list[str]:
    return [
        *CALIBRATOR, "sweep", "--url", engine.api_url, "--model", "simulated", "--objective", "ttft p99 <= 100ms",
        "--prompt-tokens", "64", "--output-tokens", "10", *more,
    ]  # fmt: skip


def test_a_sweep_is_watched_and_ends_with_its_curve(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    with terminal(sweep(engine, "--levels", "1,2,8", "--requests", "40", "--save", str(file))) as seen:
        assert seen.end() == 0, seen.plain
    assert COLOUR.search(seen.seen)
    assert HIDE_CURSOR in seen.seen
    assert seen.seen.rindex(SHOW_CURSOR) > seen.seen.rindex(HIDE_CURSOR), "the terminal gets its cursor back"
    assert "of 120" in seen.plain, "the budget of requests"
    for words in ("overload", "Level 8: measuring", "ttft against requests in flight", "100 ms", " SLA", "exceeded"):
        assert words in seen.plain, words
    result = seen.plain[seen.plain.rindex("ttft against requests in flight") :].splitlines()
    assert max(map(len, result[:16])) <= 80, "nothing wraps in the picture"
    assert [level["concurrency"] for level in json.loads(file.read_text())["levels"]] == [1, 2, 8]
    assert "calibrator report" in seen.plain


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["no colour", "dumb"])
def test_colours_and_cursor_only_where_they_are_wanted(engine: Engine, environ: dict[str, str]) -> None:
    with terminal(sweep(engine, "--levels", "2,8", "--requests", "20"), (120, 40), environ) as seen:
        assert seen.end() == 0, seen.plain
    assert not COLOUR.search(seen.seen)
    assert (HIDE_CURSOR in seen.seen) == ("NO_COLOR" in environ)
    assert ("level 2: ttft p50" in seen.plain) == ("TERM" in environ), "a line a level where nothing can move"


def test_in_a_pipe_progress_is_a_line_a_level_and_stdout_the_result(engine: Engine) -> None:
    command = sweep(engine, "--levels", "1,2", "--requests", "20")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["level 1", "level 2"]
    assert "level 1:" not in done.stdout
    assert "verdict" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_ctrl_c_once_ends_the_probes_and_keeps_what_was_measured(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    with terminal(sweep(engine, "--save", str(file))) as seen:
        seen.read_until("Latency against concurrency")  # a level is done
        seen.press(CTRL_C)
        assert seen.end() == 130, seen.plain
    assert "Outcome: interrupted" in seen.plain
    assert "Traceback" not in seen.plain
    assert seen.seen.rindex(SHOW_CURSOR) > seen.seen.rindex(HIDE_CURSOR)
    document = json.loads(file.read_text())
    assert document["outcome"] == "interrupted"
    assert document["levels"]
    wait_for(lambda: engine.is_idle, "the probes ended")


def test_ctrl_c_twice_does_not_wait_for_a_clean_end(tmp_path: Path) -> None:
    """A verb that would take a minute to end, with a child that would outlive it."""
    program = tmp_path / "stubborn.py"
    program.write_text(
        textwrap.dedent("""
        import asyncio, multiprocessing, time
        from calibrator.cli import interrupt

        async def stubborn():
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
            child.start()
            print("child", child.pid, flush=True)
            try:
                await asyncio.sleep(60)
            finally:
                print("ending", flush=True)
                await asyncio.sleep(60)

        if __name__ == "__main__":
            raise SystemExit(interrupt.run(stubborn()))
    """)
    )
    with terminal([sys.executable, str(program)]) as seen:
        seen.read_until(r"child \d+")
        seen.press(CTRL_C)
        seen.read_until("ending")
        seen.press(CTRL_C)
        assert seen.end() == 130, seen.plain
    assert "second Ctrl-C" in seen.plain
    assert SHOW_CURSOR in seen.seen
    child = int(re.findall(r"child (\d+)", seen.plain)[0])  # the terminal echoes ^C wherever it is
    wait_for(lambda: not Path(f"/proc/{child}").exists(), "the child was ended too")


def test_the_demo_interrupted_in_its_sweep_shows_what_it_has_and_leaves_nothing(tmp_path: Path) -> None:
    command = [*CALIBRATOR, "demo", "--port", "0", "--parameters", "small", "--objective", "ttft p99 <= 100ms"]
    with terminal(command, environ={"TMPDIR": str(tmp_path)}) as seen:
        seen.read_until("Latency against concurrency")
        os.kill(seen.process.pid, signal.SIGINT)
        assert seen.end() == 130, seen.plain
    assert "Outcome: interrupted" in seen.plain
    assert "Published cap" not in seen.plain
    assert list(tmp_path.iterdir()) == []
