"""Rising live traffic wakes somebody, falling traffic lets them sleep: with the real Prometheus and Alertmanager.

The same site answers every query of the dashboard, and its sweep is seen as a trace.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import pytest
from support.alert_site import BACKEND, AlertSite, alert_site, shortened
from support.otlp_receiver import attributes
from support.prometheus_process import REPOSITORY, RULES, accepted, as_query

from calibrator.core.report.spans import ProbeTrace

ALERT = "CalibratorHeadroomCritical"
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "dashboard.json"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlertSite]:
    with alert_site(tmp_path_factory.mktemp("alerts")) as site:
        yield site


def test_only_durations_differ_from_the_shipped_rules() -> None:
    def without(text: str) -> str:
        return re.sub(r"for: \w+|\[\d+[smh]\]", "", text)

    assert without(shortened(RULES.read_text())) == without(RULES.read_text())
    assert shortened(RULES.read_text()) != RULES.read_text()


def test_the_real_page_is_clean_for_promtool(site: AlertSite) -> None:
    accepted("check", "metrics", stdin=site.service.http.get("/metrics").text)


def test_the_alert_fires_as_traffic_rises_and_resolves_as_it_falls(site: AlertSite) -> None:
    cap = site.service.backend(BACKEND)["cap"]
    site.wait_until(
        "Prometheus knows the headroom", lambda: bool(site.query("backend:calibrator_headroom_ratio:avg5m"))
    )
    assert site.query(f'ALERTS{{alertname="{ALERT}"}}') == [], "nobody is woken without users"
    for users in range(1, cap + 3):
        site.traffic.users = users
        site.wait_until(
            f"{users} users are in flight",
            lambda users=users: site.engine.stats()["in_flight"] >= users,  # type: ignore[misc]  # a default binds early
        )
    fired_s = site.webhook.wait_for(ALERT, "firing")
    site.traffic.users = 0
    resolved_s = site.webhook.wait_for(ALERT, "resolved")
    assert fired_s < resolved_s
    print(f"\ncap {cap}; timeline of the webhook, in s:")
    for at_s, *what in site.webhook.heard:
        print(f"  {at_s:6.1f}", *what)


def test_every_query_of_every_panel_returns_data(site: AlertSite) -> None:
    """P99 is known where a level has a hundred requests; on a machine so busy that none has, it must have no series."""
    print()
    silent = []
    (sweep, *_) = site.service.document(f"/v1/backends/{BACKEND}/sweeps")["sweeps"]
    levels = site.service.document(f"/v1/backends/{BACKEND}/sweeps/{sweep['sweep_id']}")["levels"]
    has_p99 = any(level["ttft_s"]["p99"] is not None for level in levels)
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        values = []
        for target in panel["targets"]:
            found = site.query(as_query(target["expr"]))
            values.append(found[0]["value"][1] if found else None)
            if bool(found) != (has_p99 or 'percentile="99"' not in target["expr"]):
                silent.append(target["expr"])
        print(f"  {panel['type']:>15}  {panel['title']}: {values}")
    assert not silent


def test_the_annotations_find_the_sweep(site: AlertSite) -> None:
    annotations = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    assert annotations
    for annotation in annotations:
        assert site.query(f"max_over_time(({as_query(annotation['expr'])})[5m:1s])"), annotation["name"]


def test_the_sweep_became_a_trace_whose_levels_are_what_its_probes_named(site: AlertSite) -> None:
    spans = site.collector.wait_for_spans({"sweep", "preflight", "level"})
    (root,), levels = spans["sweep"], spans["level"]
    told = attributes(root)
    assert told["calibrator.backend"] == BACKEND
    assert told["calibrator.outcome"] == "calibrated"
    sweep = site.service.document(f"/v1/backends/{BACKEND}/sweeps/{told['calibrator.sweep_id']}")
    measured = [stage["level"] for stage in sweep["history"]["stages"]]
    concurrencies = [attributes(level)["calibrator.concurrency"] for level in levels]
    assert concurrencies == [level for level, _ in itertools.groupby(measured)]
    for stage, level in enumerate(levels, start=1):
        sent = ProbeTrace(sweep["sweep_id"]).traceparent(0, stage)
        assert sent == f"00-{level.trace_id.hex()}-{level.span_id.hex()}-00"
    moments = [root.start_time_unix_nano]
    moments += [at for level in levels for at in (level.start_time_unix_nano, level.end_time_unix_nano)]
    assert [*moments, root.end_time_unix_nano] == sorted([*moments, root.end_time_unix_nano])
