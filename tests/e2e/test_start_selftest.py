"""The service rates its own load generator once, while it already answers."""

from __future__ import annotations

from pathlib import Path

from support.service_process import serving, wait_for, write_config

METRIC = "calibrator_generator_events_per_second "


def test_the_result_is_a_metric_and_what_cannot_be_measured_is_a_warning(tmp_path: Path) -> None:
    backend = {
        "url": "http://127.0.0.1:9/v1",  # nobody listens: nothing else loads this machine
        "model": "m",
        "objectives": ["ttft p99 <= 500ms"],
        "fallback_cap": 4,
        "bounds": {"max": 100_000},
    }
    config = write_config(tmp_path, {"backends": {"chat": backend}})
    with serving(config) as service:

        def rated() -> float:
            lines = service.http.get("/metrics").text.splitlines()
            return float(next((line.split()[1] for line in lines if line.startswith(METRIC)), "0"))

        def warned() -> str | None:
            return next((line["reason"] for line in service.log_lines() if line.get("backend") == "chat"
                         and line["event"].startswith("this machine cannot")), None)  # fmt: skip

        assert wait_for(rated, "the self-test ended") > 1000.0
        assert wait_for(warned, "the log says what is beyond this machine").startswith("bounds.max is 100000")
        events = [line["event"] for line in service.log_lines()]
        assert events.index("serving") < events.index("load generator tested"), "it did not delay the service"
