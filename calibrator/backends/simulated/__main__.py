"""`python -m calibrator.backends.simulated --port 0 --parameters seed`; prints one line when it is ready.

With `--truth` it answers one question from standard input instead (see `truth.TruthQuestion`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from calibrator.backends.simulated.parameters import PARAMETER_SETS
from calibrator.backends.simulated.truth import TruthQuestion

LOW_PRIORITY = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m calibrator.backends.simulated")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--parameters", choices=sorted(PARAMETER_SETS), default="seed")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--arrivals", type=Path, default=None, help="write down here when each request came and went")
    parser.add_argument("--truth", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.truth:
        os.nice(LOW_PRIORITY)
        question = TruthQuestion.loads(sys.stdin.read())
        objectives = [str(objective) for objective in question.objectives]
        answer = {"objectives": objectives, "workload": str(question.workload), **asdict(question.answer())}
        sys.stdout.write(json.dumps(answer))
        return
    from calibrator.backends.simulated.server import run_server

    def ready(port: int) -> None:
        sys.stdout.write(f"READY http://{options.host}:{port}\n")
        sys.stdout.flush()

    run_server(
        PARAMETER_SETS[options.parameters],
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        arrivals=options.arrivals,
        ready=ready,
    )


if __name__ == "__main__":
    main()
