"""The chart as Helm renders it. A missing program is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from generate_chart import CHART

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
Manifest = dict[str, Any]


def tool(name: str) -> str:
    """A program of the development packages."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert path is not None, f"{name} is not installed: make setup"
    return path


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Helm with nothing of the user's own."""
    with tempfile.TemporaryDirectory() as home:
        places = {f"HELM_{name}_HOME": f"{home}/{name.lower()}" for name in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [tool("helm"), *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "HOME": home, **places},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def notes(case: str, *settings: str) -> str:
    """What `helm install` tells, which `helm template` leaves out: rendered as an object of a copied chart."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(CHART, Path(folder) / "calibrator"))
        text = (copy / "templates" / "NOTES.txt").read_text()
        (copy / "templates" / "_shown.tpl").write_text('{{ define "shown" }}' + text + "{{ end }}")
        (copy / "templates" / "shown.yaml").write_text('kind: Notes\ntext: {{ include "shown" . | toJson }}\n')
        found: str = only(render(case, *settings, chart=copy), "Notes")["text"]
        return found


def render(case: str, *settings: str, release: str = "r", chart: Path = CHART) -> list[Manifest]:
    """Every object of the chart with `ci/CASE-values.yaml` and settings such as `service.port=80`."""
    answer = template(case, *settings, release=release, chart=chart)
    assert answer.returncode == 0, answer.stderr
    return [manifest for manifest in yaml.load_all(answer.stdout, LOADER) if manifest]


@cache  # most tests look at the same few renderings
def template(case: str, *settings: str, release: str = "r", chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    given = [part for setting in settings for part in ("--set-json", setting)]
    return helm("template", release, chart, "-f", CHART / "ci" / f"{case}-values.yaml", *given)


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: Sequence[Manifest], kind: str) -> Manifest:
    (manifest,) = of_kind(manifests, kind)
    return manifest


def pod(manifests: Sequence[Manifest]) -> Manifest:
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def configuration(manifests: Sequence[Manifest]) -> Manifest:
    """What the rendered pod would read."""
    name = next(volume["configMap"]["name"] for volume in pod(manifests)["volumes"] if volume["name"] == "config")
    (found,) = [one for one in of_kind(manifests, "ConfigMap") if one["metadata"]["name"] == name]
    values: Manifest = yaml.safe_load(found["data"]["calibrator.yaml"])
    return values
