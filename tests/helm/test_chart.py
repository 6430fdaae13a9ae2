"""The chart, rendered by Helm for every file in `ci/`: valid objects, a configuration that the program accepts, and
what each value switches."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from generate_chart import CHART, REPOSITORY
from support.helm_chart import CASES, Manifest, configuration, helm, notes, of_kind, only, pod, render
from support.prometheus_process import accepted
from support.service_process import serving, write_config

from calibrator.settings import parse_settings
from calibrator.wiring.server.connection_guard import GRACEFUL_TIMEOUT_S

KUBERNETES = ("1.30", "1.32", "1.34", "1.37")
WITHOUT_SCHEMA = {"ServiceMonitor", "PrometheusRule"}  # the Prometheus operator's; checked below
ALWAYS = {"ConfigMap", "Deployment", "PersistentVolumeClaim", "Pod", "Service", "ServiceAccount"}
NAMES = [path.name.removesuffix("-values.yaml") for path in CASES]


def kinds(manifests: list[Manifest]) -> set[str]:
    return {manifest["kind"] for manifest in manifests}


def container(manifests: list[Manifest]) -> Manifest:
    found: Manifest = pod(manifests)["containers"][0]
    return found


# -------------------------------------------------------------------------------------------------------- every case
@pytest.mark.parametrize("values", CASES, ids=NAMES)
def test_lint_finds_nothing(values: Path) -> None:
    answer = helm("lint", "--strict", "--quiet", CHART, "-f", values)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_lint_of_the_defaults_finds_nothing() -> None:
    answer = helm("lint", "--strict", "--quiet", CHART)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_of_every_case_is_valid(version: str) -> None:
    """Each once: most cases share most objects."""
    different = {json.dumps(one, sort_keys=True): (case, one) for case in NAMES for one in render(case)}
    unknown = set()
    for case, manifest in different.values():
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(manifest["kind"])
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{case}, {manifest['kind']} {manifest['metadata']['name']}: {error.message}")
    assert unknown == WITHOUT_SCHEMA


def test_the_validation_can_fail() -> None:
    manifest = only(render("minimal"), "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES[0], strict=True)


@pytest.mark.parametrize("case", NAMES)
def test_the_program_accepts_the_configuration(case: str) -> None:
    settings = parse_settings(configuration(render(case)))
    assert settings.listen.host == "0.0.0.0"
    in_database = settings.store.postgresql is not None
    assert (str(settings.store.path) == "/var/lib/calibrator/calibrator.db") is not in_database
    assert in_database == (case in {"postgresql", "tls"})
    assert set(settings.backends) == {"chat"}


@pytest.mark.parametrize("case", NAMES)
def test_objects_find_each_other(case: str) -> None:
    manifests = render(case)
    deployment, service = only(manifests, "Deployment"), only(manifests, "Service")
    pods = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    for kind, key in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        selectors += [manifest["spec"][key]["matchLabels"] for manifest in of_kind(manifests, kind)]
    for selector in selectors:
        assert selector == {"app.kubernetes.io/name": "calibrator", "app.kubernetes.io/instance": "r"}
        assert selector.items() <= pods.items()
    ports = {port["name"] for port in container(manifests)["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    volumes = {volume["name"] for volume in pod(manifests)["volumes"]}
    assert {mount["name"] for mount in container(manifests)["volumeMounts"]} == volumes
    test_labels = only(manifests, "Pod")["metadata"]["labels"]
    assert not selectors[1].items() <= test_labels.items(), "the Service would send polls to the test's pod"


@pytest.mark.parametrize("case", NAMES)
def test_pods_are_nobody_and_ask_nothing_of_the_cluster(case: str) -> None:
    manifests = render(case)
    assert kinds(manifests).isdisjoint({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Secret"})
    assert all(account["automountServiceAccountToken"] is False for account in of_kind(manifests, "ServiceAccount"))
    for spec in (pod(manifests), only(manifests, "Pod")["spec"]):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("case", NAMES)
def test_every_object_of_the_release_is_labelled_and_has_no_namespace(case: str) -> None:
    ours = [one for one in render(case) if one["metadata"]["name"] not in {"r-more", "r-text"}]
    for manifest in ours:
        wanted = {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/managed-by",
            "helm.sh/chart",
        }
        assert wanted <= manifest["metadata"]["labels"].keys()
        assert "namespace" not in manifest["metadata"]


# ---------------------------------------------------------------------------------------------------------- defaults
def test_the_least_that_installs() -> None:
    manifests = render("minimal")
    assert kinds(manifests) == ALWAYS
    deployment = only(manifests, "Deployment")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert container(manifests)["image"] == "calibrator:0.1.0"
    assert container(manifests)["args"] == ["serve", "--config", "/etc/calibrator/calibrator.yaml"]
    writable = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    assert writable["tmp"] == {"name": "tmp", "emptyDir": {}}
    assert writable["state"]["persistentVolumeClaim"] == {"claimName": "r-calibrator"}


def test_probes_look_at_this_process_only() -> None:
    spec = container(render("minimal"))
    looks = {name: spec[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert looks == {
        "startupProbe": {"path": "/livez", "port": "http"},
        "livenessProbe": {"path": "/livez", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }


def test_stopping_fits_into_the_grace_period() -> None:
    manifests = render("minimal")
    sleep_s = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep_s == 5
    assert sleep_s + 15 <= pod(manifests)["terminationGracePeriodSeconds"] == 30
    assert GRACEFUL_TIMEOUT_S < 15
    assert "lifecycle" not in container(render("ephemeral"))


def test_a_changed_configuration_rolls_the_pod_and_nothing_else_does() -> None:
    def checksum(*settings: str) -> str:
        found: str = only(render("minimal", *settings), "Deployment")["spec"]["template"]["metadata"]["annotations"][
            "checksum/config"
        ]
        return found

    assert checksum() == checksum("service.port=80")
    assert checksum() != checksum('config.log.level="debug"')


def test_the_image_is_the_one_that_is_built() -> None:
    built = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    uid = pod(render("minimal"))["securityContext"]["runAsUser"]
    assert f"USER {uid}:{uid}" in built
    assert 'ENTRYPOINT ["/app/bin/calibrator"]' in built
    assert str(container(render("minimal"))["args"]).replace("'", '"') in built
    assert only(render("minimal"), "Pod")["spec"]["containers"][0]["command"] == ["/app/bin/python", "-c"]


# ----------------------------------------------------------------------------------------------------------- toggles
def test_without_persistence_there_is_no_claim() -> None:
    manifests = render("ephemeral")
    assert kinds(manifests) == ALWAYS - {"PersistentVolumeClaim", "ServiceAccount"}
    assert {"name": "state", "emptyDir": {}} in pod(manifests)["volumes"]
    assert pod(manifests)["serviceAccountName"] == "default"


def test_secrets_become_files_that_only_the_program_reads() -> None:
    manifests = render("secrets")
    (volume,) = [one for one in pod(manifests)["volumes"] if one["name"] == "secrets"]
    sources = {one["secret"]["items"][0]["path"]: one["secret"] for one in volume["projected"]["sources"]}
    assert sources["engine-key"] == {"name": "llama-70b", "items": [{"key": "api-key", "path": "engine-key"}]}
    assert set(sources) == {"operator-token", "read-token", "engine-key"}
    assert stat.filemode(volume["projected"]["defaultMode"]) == "?r--r-----"
    settings = parse_settings(configuration(manifests))
    assert str(settings.auth.operator_tokens[0].file) == "/run/secrets/calibrator/operator-token"
    assert settings.backends["chat"].cap.max == 1_000_000
    assert settings.backends["chat"].burst == "off"


def test_a_network_policy_lets_in_gateways_and_the_test_and_lets_out_to_engines() -> None:
    manifests = render("network")
    policy = only(manifests, "NetworkPolicy")["spec"]
    (inward,) = policy["ingress"]
    assert {port["port"] for port in inward["ports"]} == {"http", "haproxy-agent"}
    test_peer, gateways = inward["from"]
    assert test_peer["podSelector"]["matchLabels"].items() <= only(manifests, "Pod")["metadata"]["labels"].items()
    assert "namespaceSelector" in gateways
    dns, engines = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert engines["ports"] == [{"port": 8000, "protocol": "TCP"}]
    everybody = only(render("network", "networkPolicy.from=[]"), "NetworkPolicy")["spec"]["ingress"][0]
    assert "from" not in everybody


def test_the_agent_port_is_served_where_it_is_wanted() -> None:
    manifests = render("network")
    assert parse_settings(configuration(manifests)).gateways.haproxy.port == 8301
    ports = {port["name"]: port["port"] for port in only(manifests, "Service")["spec"]["ports"]}
    assert ports == {"http": 80, "haproxy-agent": 9001}
    assert parse_settings(configuration(render("minimal"))).gateways.haproxy.port is None


def test_scheduling() -> None:
    manifests = render("scheduling")
    spec = pod(manifests)
    assert spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "calibrator",
        "app.kubernetes.io/instance": "r",
    }
    assert spec["priorityClassName"] == "high"
    assert spec["nodeSelector"] == {"node-pool": "cpu"}
    assert only(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 0
    least = render("minimal", 'podDisruptionBudget={"enabled":true,"minAvailable":0}')
    assert only(least, "PodDisruptionBudget")["spec"]["minAvailable"] == 0


def test_extras() -> None:
    manifests = render("extras")
    assert kinds(manifests) == ALWAYS - {"PersistentVolumeClaim"}
    spec = container(manifests)
    assert spec["image"].startswith("registry.example.com/calibrator@sha256:")
    assert spec["env"] == [{"name": "CALIBRATOR_LOG__LEVEL", "value": "debug"}]
    assert "/etc/ssl/private-ca" in {mount["mountPath"] for mount in spec["volumeMounts"]}
    assert [one["name"] for one in pod(manifests)["containers"]] == ["calibrator", "side"]
    added = {one["metadata"]["name"]: one["data"] for one in of_kind(manifests, "ConfigMap")}
    assert added["r-more"] == {"answer": "42"}
    assert added["r-text"] == {"service": "caps"}


def test_long_names_stay_usable() -> None:
    names = [one["metadata"]["name"] for one in render("monitoring", release="r" * 53)]
    assert max(map(len, names)) <= 63


# -------------------------------------------------------------------------------------------------------- PostgreSQL
def test_replicas_share_a_database_whose_url_is_a_file() -> None:
    manifests = render("postgresql")
    assert kinds(manifests).isdisjoint({"PersistentVolumeClaim"})
    assert {volume["name"] for volume in pod(manifests)["volumes"]} == {"config", "tmp", "secrets"}
    store = parse_settings(configuration(manifests)).store
    assert store.postgresql is not None
    assert str(store.postgresql.file) == "/run/secrets/calibrator/postgresql-url"
    assert str(store.ca_file) == "/run/secrets/calibrator/postgresql-ca"
    assert store.keep_sweeps == 500
    (volume,) = [one for one in pod(manifests)["volumes"] if one["name"] == "secrets"]
    sources = {one["secret"]["items"][0]["path"]: one["secret"] for one in volume["projected"]["sources"]}
    assert sources == {
        "postgresql-url": {"name": "calibrator-database", "items": [{"key": "url", "path": "postgresql-url"}]},
        "postgresql-ca": {"name": "database-ca", "items": [{"key": "ca.crt", "path": "postgresql-ca"}]},
    }


def test_replicas_roll_one_by_one_and_migrate_by_themselves() -> None:
    """The program migrates at its start, under a lock of the database; a job would need hooks and an order."""
    manifests = render("postgresql")
    deployment = only(manifests, "Deployment")["spec"]
    assert deployment["replicas"] == 3
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    assert "Job" not in kinds(manifests)
    assert only(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_replicas_are_kept_apart_unless_told_otherwise() -> None:
    (apart,) = pod(render("postgresql"))["topologySpreadConstraints"]
    assert (apart["topologyKey"], apart["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert apart["matchLabelKeys"] == ["pod-template-hash"], "pods of the last rollout do not count"
    assert apart["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "r"
    zones = '[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule"}]'
    (own,) = pod(render("postgresql", f"topologySpreadConstraints={zones}"))["topologySpreadConstraints"]
    assert own["topologyKey"] == "topology.kubernetes.io/zone"
    assert "topologySpreadConstraints" not in pod(render("minimal"))


def test_the_way_to_the_database_is_let_out() -> None:
    dns, engines, database = only(render("postgresql"), "NetworkPolicy")["spec"]["egress"]
    assert [rule["ports"][0]["port"] for rule in (dns, engines, database)] == [53, 8000, 5432]


def test_one_replica_may_use_a_database_too() -> None:
    manifests = render("tls")
    assert only(manifests, "Deployment")["spec"]["replicas"] == 1
    (secret,) = [
        one["secret"]
        for volume in pod(manifests)["volumes"]
        for one in volume.get("projected", {}).get("sources", ())
        if one["secret"]["items"][0]["path"] == "postgresql-url"
    ]
    assert secret["items"][0]["key"] == "DATABASE_URL"


# --------------------------------------------------------------------------------------------------------------- TLS
def test_https_reaches_probes_monitor_test_and_notes() -> None:
    manifests = render("tls")
    spec = container(manifests)
    looks = [spec[name]["httpGet"]["scheme"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert looks == ["HTTPS"] * 3
    (endpoint,) = only(manifests, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["serverName"] == "calibrator.example.com"
    assert "https://r-calibrator:8300" in only(manifests, "Pod")["spec"]["containers"][0]["args"]
    assert "https://r-calibrator.default:8300" in notes("tls")
    listen = parse_settings(configuration(manifests)).listen
    assert (listen.host, listen.port) == ("0.0.0.0", 8300)
    assert listen.tls is not None


# -------------------------------------------------------------------------------------------------------- monitoring
def test_the_monitor_selects_the_service_and_a_port_that_it_has() -> None:
    manifests = render("monitoring")
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert (endpoint["path"], endpoint["interval"], endpoint["scrapeTimeout"]) == ("/metrics", "30s", "10s")


def source_groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules.yaml").read_text())[
        "groups"
    ]
    return groups


def test_untouched_rules_are_those_of_the_source() -> None:
    manifests = render("minimal", "prometheusRule.enabled=true")
    assert only(manifests, "PrometheusRule")["spec"]["groups"] == source_groups()


def test_rules_are_filtered_labelled_and_still_rules(tmp_path: Path) -> None:
    spec = only(render("monitoring"), "PrometheusRule")["spec"]
    rules = [rule for group in spec["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    known = {rule["alert"] for group in source_groups() for rule in group["rules"] if "alert" in rule}
    assert known - alerts.keys() == {"CalibratorCapShrank"}
    for name, alert in alerts.items():
        assert alert["labels"]["team"] == "inference"
        assert alert["annotations"]["runbook_url"] == f"https://runbooks.example.com/calibrator.md#{name.lower()}"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    accepted("check", "rules", tmp_path / "rules.yaml")


def test_every_dashboard_is_handed_to_the_sidecar_as_it_is() -> None:
    committed = {
        f"calibrator-{path.name}": path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")
    }
    found = [
        one for one in of_kind(render("monitoring"), "ConfigMap") if "grafana_dashboard" in one["metadata"]["labels"]
    ]
    assert committed
    assert {name: text for one in found for name, text in one["data"].items()} == committed
    assert {one["metadata"]["annotations"]["grafana_folder"] for one in found} == {"LLM"}


# ------------------------------------------------------------------------------------------------ what the user is told
def test_the_notes_say_what_is_off_and_what_is_risky() -> None:
    told = notes("minimal")
    assert "calibrator measures chat." in told
    assert "http://r-calibrator.default:8300/v1/backends/NAME/cap" in told
    assert {line.split(":")[0] for line in told.splitlines() if line[:4].isupper()} == {"OFF", "OPEN"}
    for off in ("operator_tokens", "read_tokens", "serviceMonitor.enabled", "prometheusRule.enabled"):
        assert off in told


def test_the_notes_fall_silent_where_all_is_well_and_warn_of_choices() -> None:
    assert "serviceMonitor" not in notes("monitoring")
    assert "tokens" not in notes("secrets")
    assert "RISK: state is lost" in notes("ephemeral")
    assert "RISK: the disruption budget blocks" in notes("scheduling")
    assert "HAProxy polls  r-calibrator.default:9001" in notes("network")
    several = notes("postgresql")
    assert "RISK" not in several
    assert "RISK: a single replica" in notes("tls")
    for blocking in (
        '{"enabled":true,"minAvailable":3,"maxUnavailable":null}',
        '{"enabled":true,"maxUnavailable":"0%"}',
    ):
        assert "blocks node drains: it allows none of 3 pods" in notes("postgresql", f"podDisruptionBudget={blocking}")


# --------------------------------------------------------------------------------------------------------- helm test
def look(*backends: str, at: str) -> subprocess.CompletedProcess[str]:
    """What the test's pod runs, with its own first argument."""
    python, _ = only(render("minimal"), "Pod")["spec"]["containers"][0]["command"]
    script, service, backend = only(render("minimal"), "Pod")["spec"]["containers"][0]["args"]
    assert (python, service, backend) == ("/app/bin/python", "http://r-calibrator:8300", "chat")
    command = [sys.executable, "-c", script, at, *backends]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_test_pod_sees_caps_and_misses_them(tmp_path: Path) -> None:
    values = configuration(render("minimal"))
    values["listen"] = {"host": "127.0.0.1", "port": 0}
    values["store"] = {"path": str(tmp_path / "calibrator.db")}
    values["load"] = {"selftest": False}
    values["backends"]["chat"] |= {"url": "http://127.0.0.1:9/v1", "mode": "observe"}
    with serving(write_config(tmp_path, values)) as service:
        url = str(service.http.base_url).rstrip("/")
        seen, missed = look("chat", at=url), look("chat", "other", at=url)
    assert (seen.returncode, seen.stdout) == (0, "chat: cap 16.0\n")
    assert (missed.returncode, missed.stdout) == (1, "chat: cap 16.0\nother: cap missing\n")
