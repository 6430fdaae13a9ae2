"""The example in deploy/ray is a valid configuration, and the cluster it names is the one beside it."""

from __future__ import annotations

from pathlib import Path

import yaml

from calibrator.settings import load_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"


def test_the_example_fits_the_cluster_beside_it() -> None:
    settings = load_settings(FOLDER / "calibrator.yaml", {})
    plan = settings.load.value()
    cluster, policy = yaml.safe_load_all((FOLDER / "raycluster.yaml").read_text())
    name = cluster["metadata"]["name"]
    assert plan.kind == "ray"
    assert plan.ray_address == f"ray://{name}-head-svc:10001", "KubeRay's name for the head's service"
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": name}
    (group,) = cluster["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cores = int(container["resources"]["limits"]["cpu"])
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert plan.most_workers == cores * group["maxReplicas"], "each worker finds its core"
