"""The bootstrap patch for Envoy Gateway, applied to a bootstrap of its shape, with the real Envoy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from support.envoy_process import ENVOY, envoy
from support.gateway_site import CALIBRATOR, DEPLOYED, TOKEN, TOKENS, calibrator_config, in_own_network, pin
from support.quiet_machine import real_time
from support.service_process import serving

PATCH = DEPLOYED / "envoy" / "envoy-gateway.yaml"
CLUSTER = "httproute/default/llm/rule/0"  # as Envoy Gateway names it

# What Envoy Gateway renders, as far as the patch touches it and Envoy needs it to start.
BOOTSTRAP = """
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 19000}}
layered_runtime:
  layers:
  - name: global_config
    static_layer: {re2.max_program_size.error_level: 4294967295}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{envoy_grpc: {cluster_name: xds_cluster}}]
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds_cluster
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds_cluster
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 18001}}}}]}]
"""


def patched() -> dict[str, Any]:
    """JSON Patch (RFC 6902), as far as the file uses it: appending to lists."""
    proxy, _policy = yaml.safe_load_all(PATCH.read_text())
    assert proxy["spec"]["bootstrap"]["type"] == "JSONPatch"
    bootstrap: dict[str, Any] = yaml.safe_load(BOOTSTRAP)
    for patch in proxy["spec"]["bootstrap"]["jsonPatches"]:
        *path, last = patch["path"].split("/")[1:]
        assert (patch["op"], last) == ("add", "-")
        node: Any = bootstrap
        for key in path:
            node = node[key]
        node.append(patch["value"])
    return bootstrap


@real_time
def test_the_merged_bootstrap_is_valid(tmp_path: Path) -> None:
    config = tmp_path / "bootstrap.json"
    config.write_text(json.dumps(patched()))
    command = [str(ENVOY), "--mode", "validate", "-c", str(config), "--service-node", "pod", "--service-cluster", "eg"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert checked.returncode == 0, checked.stderr


@real_time
def test_the_merged_bootstrap_polls_the_cap_of_a_route(tmp_path: Path) -> None:
    """Only the calibrator's address is another; nothing answers as Envoy Gateway itself."""

    def scenario() -> None:
        text = json.dumps(patched())
        for shipped, here in (("calibrator.calibrator.svc.cluster.local", "127.0.0.1"), ("8300", str(CALIBRATOR))):
            assert text.count(shipped) == 1
            text = text.replace(shipped, here)
        bootstrap = tmp_path / "bootstrap.json"
        bootstrap.write_text(text)
        config = calibrator_config(tmp_path, envoy={"clusters": {CLUSTER: "llm"}})
        with serving(config, token=TOKEN, environ=TOKENS) as service:
            pin(service, 23)
            with envoy(tmp_path, "eg-pod-1", bootstrap, "--service-cluster", "eg") as gateway:
                gateway.wait_for_cap(23, cluster=CLUSTER)

    in_own_network(scenario)
