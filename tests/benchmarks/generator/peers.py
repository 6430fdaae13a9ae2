"""How each client of the benchmark is installed, run, and read. A client is a literal row of `CLIENTS`.

Every client runs as a program of its own for the same time against the same server. What it reports is taken as it says
it; CPU, events and concurrency are seen from outside. A client that fails is a row that says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
GRACE_S = 90.0  # start and end of the slowest peer
LOOK_S = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Meter:
    """CPU of all processes of one session, by looking: a peer that does not wait for its workers hides their use."""

    seconds: dict[int, float] = field(default_factory=dict)

    def look(self, session: int) -> None:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = path.read_text().rsplit(")", 1)[1].split()
            except OSError:  # it ended meanwhile
                continue
            if int(words[3]) == session:
                self.seconds[int(path.parent.name)] = (int(words[11]) + int(words[12])) / TICKS_PER_S

    @property
    def cpu_s(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class Task:
    """One run of one client."""

    port: int
    streams: int
    seconds: int
    python: str  # of the client's environment
    folder: Path  # for its files
    meter: Meter


@dataclass(frozen=True, slots=True)
class Reported:
    """What a client says about the server. None: it does not say."""

    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p99_s: float | None = None
    widest_gap_s: float | None = None  # median over the requests
    says_it_is_saturated: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    packages: tuple[str, ...]  # none: calibrator's own environment
    run: Callable[[Task], Reported]


def _called(command: list[str], task: Task, **environment: str) -> str:
    with (task.folder / "out").open("w+") as out:
        process = subprocess.Popen(
            command,
            cwd=task.folder,
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        give_up_s = time.monotonic() + task.seconds + GRACE_S
        while process.poll() is None and time.monotonic() < give_up_s:
            task.meter.look(process.pid)
            time.sleep(LOOK_S)
        process.kill()
        process.wait()
        out.seek(0)
        said = out.read()
    if process.returncode:
        raise RuntimeError(said.strip()[-300:])
    return said


def _line(command: list[str], task: Task) -> Reported:
    """Our own programs print one JSON line."""
    said = json.loads(_called(command, task).strip().splitlines()[-1])
    keys = ("ttft_p50_s", "ttft_p99_s", "itl_p99_s", "widest_gap_s")
    return Reported(*(said.get(key) for key in keys), says_it_is_saturated=bool(said.get("reasons")))


def ours(processes: int) -> Callable[[Task], Reported]:
    def run(task: Task) -> Reported:
        words = (task.port, task.streams, task.seconds, processes)
        return _line([sys.executable, str(HERE / "client_ours.py"), *map(str, words)], task)

    return run


def bound(task: Task) -> Reported:
    return _line([str(task.folder.parent / "bound_client"), str(task.port), str(task.streams), str(task.seconds)], task)


def library(name: str) -> Callable[[Task], Reported]:
    def run(task: Task) -> Reported:
        words = (name, task.port, task.streams, task.seconds)
        return _line([task.python, str(HERE / "client_http.py"), *map(str, words)], task)

    return run


def aiperf(task: Task) -> Reported:
    out = task.folder / "aiperf"
    command = [
        str(Path(task.python).parent / "aiperf"), "profile", "--model-names", "m", "--url", f"http://127.0.0.1:{task.port}",
        "--endpoint-type", "chat", "--streaming", "--concurrency", str(task.streams),
        "--benchmark-duration", str(task.seconds), "--benchmark-grace-period", "5", "--tokenizer", _tokenizer(task),
        "--isl", "8", "--osl", "50", "--num-dataset-entries", "100", "--ui", "none", "--use-server-token-count",
        "--artifact-dir", str(out),
    ]  # fmt: skip
    _called(command, task)  # not HF_HUB_OFFLINE: it then refuses a tokenizer given as a folder
    found = json.loads(next(out.rglob("profile_export_aiperf.json")).read_text())
    first, gap = found["time_to_first_token"], found.get("inter_token_latency", {})
    return Reported(first["p50"] / 1e3, first["p99"] / 1e3, gap["p99"] / 1e3 if "p99" in gap else None)


def guidellm(task: Task) -> Reported:
    out = task.folder / "guidellm.json"
    command = [
        str(Path(task.python).parent / "guidellm"), "run",
        "--backend", f"kind=openai_http,target=http://127.0.0.1:{task.port},model=m",
        "--profile", f"kind=concurrent,streams={task.streams}",
        "--constraint", f"kind=max_duration,seconds={task.seconds}",
        "--tokenizer", f"kind=huggingface_auto,model={_tokenizer(task)}",
        "--data", "kind=synthetic_text,prompt_tokens=8,output_tokens=50",
        "--output", f"kind=json,path={out}", "--disable-console",
    ]  # fmt: skip
    _called(command, task, HF_HUB_OFFLINE="1")
    metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]
    first = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    gap = metrics["inter_token_latency_ms"]["successful"]["percentiles"]
    return Reported(first["p50"] / 1e3, first["p99"] / 1e3, gap["p99"] / 1e3)


def _tokenizer(task: Task) -> str:
    """Both want one, to make prompts; a thousand words are enough, and no download is needed."""
    folder = task.folder.parent / "tokenizer"
    folder.mkdir(exist_ok=True)
    vocabulary = {"<unk>": 0, **{f"w{index}": index for index in range(1, 1000)}}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model, **nothing}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    return str(folder)


CLIENTS = {
    client.name: client
    for client in (
        Client("ours-1", (), ours(1)),
        Client("ours-2", (), ours(2)),
        Client("c-bound", (), bound),
        Client("aiohttp", ("aiohttp", "uvloop"), library("aiohttp")),
        Client("httpx", ("httpx", "uvloop"), library("httpx")),
        Client("aiperf", ("aiperf",), aiperf),
        Client("guidellm", ("guidellm",), guidellm),
    )
}
