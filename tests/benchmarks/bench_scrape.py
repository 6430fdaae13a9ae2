"""What a scrape costs, over HTTP: 200 backends of which everything is known.

python tests/benchmarks/bench_scrape.py [--backends 200] [--scrapes 20]

The real application on the real server, in a process of its own; this one scrapes as Prometheus does. Printed is the
time until the whole page is here, of the first scrape after a start (every curve is written anew) and of the others.
Wanted: below 100 ms.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import httpx

TESTS = Path(__file__).parents[1]
WANTED_MS = 100.0
SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import uvicorn
from support.full_views import fleet
from support.web_fakes import FakeOperator
from calibrator.clock import SystemClock
from calibrator.web.app import create_app
from calibrator.wiring.server.listening import listen
from calibrator.wiring.server.connection_guard import guarded_config

operator = FakeOperator(fleet(int(sys.argv[2]), int(sys.argv[3])))
app = create_app(operator, clock=SystemClock(), operator_tokens=tuple, read_tokens=tuple, software_version="bench")
with listen("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(guarded_config(app)).run(sockets=[listener])
"""


def scrapes_ms(backends: int, levels: int, scrapes: int) -> tuple[list[float], int]:
    """Milliseconds of each scrape in turn, and the series of one."""
    command = [sys.executable, "-c", SERVER, str(TESTS), str(backends), str(levels)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with httpx.Client(base_url=url, trust_env=False, timeout=60.0) as http:
                http.get("/livez").raise_for_status()
                taken_ms = []
                for _ in range(scrapes):
                    begun_s = time.perf_counter()
                    answer = http.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
                    taken_ms.append(1e3 * (time.perf_counter() - begun_s))
                return taken_ms, sum(not line.startswith("#") for line in answer.text.splitlines())
        finally:
            server.terminate()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backends", type=int, default=200)
    parser.add_argument("--scrapes", type=int, default=20)
    options = parser.parse_args()
    slowest_ms = 0.0
    for levels in (0, 10, 20):
        (first_ms, *others_ms), series = scrapes_ms(options.backends, levels, options.scrapes)
        slowest_ms = max(slowest_ms, median(others_ms))
        print(
            f"{options.backends} backends, {levels:2} levels each: {series:6} series, "
            f"first {first_ms:4.0f} ms, then median {median(others_ms):3.0f} ms, most {max(others_ms):3.0f} ms"
        )
    print(f"wanted {WANTED_MS:.0f} ms")
    return int(slowest_ms > WANTED_MS)


if __name__ == "__main__":
    sys.exit(main())
