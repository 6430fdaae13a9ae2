"""A fleet of real processes: the cap counts on those that answer, and falls when one ends."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from support.quiet_machine import real_time
from support.service_process import serving, simulated_engine, write_config

from calibrator.core.publish.balance import Balance
from calibrator.core.publish.fleet import Balancing

SCRAPE_PERIOD_S = 1.0
SLACK_S = 3.0  # of a busy machine


@real_time
def test_a_replica_that_is_gone_lowers_the_cap_within_a_scrape(tmp_path: Path) -> None:
    evenly = Balance(Balancing.LEAST_REQUESTS)
    with ExitStack() as stack:
        lives = [stack.enter_context(ExitStack()) for _ in range(3)]
        engines = [life.enter_context(simulated_engine()) for life in lives]
        config = write_config(
            tmp_path,
            {
                "backends": {
                    "chat": {
                        "model": "simulated",
                        "objectives": ["ttft p90 <= 1s"],  # a busy machine, too, finds the highest level
                        "fallback_cap": 9,
                        "every": "1h",
                        "bounds": {"max": 8},
                        "budget": {"requests": 500, "requests_per_level": 0},
                        "workload": {"classes": [{"prompt_tokens": 64, "output_tokens": 10, "spread_ratio": 0.3}]},
                        "replicas": {
                            "urls": [engine.api_url for engine in engines],
                            "balancing": "least_requests",
                        },
                    }
                }
            },
        )
        with serving(config) as service:
            swept = service.wait_for_backend("chat", lambda seen: seen["state"] == "calibrated", "is calibrated")
            assert swept["ready_replicas"] == 3
            per_replica, three = swept["replica_cap"], swept["cap"]
            assert three == evenly.fleet_cap(per_replica, 3), swept
            assert [replica["status"] for replica in swept["replicas"]] == ["ready"] * 3

            lives[1].close()
            gone_s = time.monotonic()
            fallen = service.wait_for_backend("chat", lambda seen: seen["cap"] < three, "the cap falls")
            assert time.monotonic() - gone_s < SCRAPE_PERIOD_S + SLACK_S
            assert fallen["ready_replicas"] == 2
            assert (fallen["replica_cap"], fallen["cap"]) == (per_replica, evenly.fleet_cap(per_replica, 2))
            assert [replica["status"] for replica in fallen["replicas"]] == ["ready", "down", "ready"]
            assert fallen["state"] == "calibrated"
