"""deploy/kubernetes and deploy/compose.yaml against the schemas of Kubernetes and of Compose: `make test-deploy`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from servers import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
# Their schemas belong to operators and come with no package; what they hold is looked at below and in tests/unit/test_deploy.py.
FOREIGN = {"ScaledObject", "ServiceMonitor"}
VERSIONS = ("1.27", "1.37")


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """Render a folder as `kubectl apply -k` does."""
    tool = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    done = subprocess.run([*tool, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", ["base", "overlays/hpa", "overlays/keda", "overlays/gpu"])
def test_kubernetes_knows_every_field(folder: str, version: str) -> None:
    """Strictly: an unknown field is an error."""
    import kubernetes_validate

    for item in kustomize(DEPLOY / "kubernetes" / folder):
        if item["kind"] not in FOREIGN:
            kubernetes_validate.validate(item, version, strict=True)


def test_the_overlay_of_the_docs_is_one(tmp_path: Path) -> None:
    """With the GPU besides, it changes one Deployment in four ways."""
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    own = tmp_path / "kubernetes" / "overlays" / "search"
    own.mkdir()
    [text] = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "deployment.md").read_text(), re.DOTALL)
    kustomization = yaml.safe_load(text)
    kustomization["components"].append("../../components/gpu")
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    items = kustomize(own)
    [deployment] = [item for item in items if (item["kind"], item["metadata"]["name"]) == ("Deployment", "reranker")]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert {item["metadata"]["namespace"] for item in items} == {"search"}
    assert "replicas" not in deployment["spec"]
    assert container["image"] == "registry.example.com/reranker:1"
    assert {each["name"] for each in container["env"]} == {
        "BENTOML_HOME",
        "RERANKER_TORCH_THREADS",
        "RERANKER_DEVICE",
        "RERANKER_API_KEYS_FILE",
    }
    assert {each["name"] for each in container["volumeMounts"]} == {"tmp", "keys"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    [settings] = [item["data"] for item in items if item["kind"] == "ConfigMap"]
    assert settings["RERANKER_WORKERS"] == "2"
    assert settings["RERANKER_DRAIN_SECONDS"] == "10"


def test_a_changed_setting_rolls_the_pods_over() -> None:
    """The Deployment reads a ConfigMap whose name tells its content."""
    items = kustomize(DEPLOY / "kubernetes" / "base")
    [settings] = [item["metadata"]["name"] for item in items if item["kind"] == "ConfigMap"]
    assert settings.startswith("reranker-settings-")
    [deployment] = [item for item in items if (item["kind"], item["metadata"]["name"]) == ("Deployment", "reranker")]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": settings}}]


def test_compose_knows_every_field() -> None:
    """By the schema of the Compose specification."""
    files = [str(DEPLOY / name) for name in ("compose.yaml", "compose.gpu.yaml")]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("servers", [None, "localhost:3000"])
def test_haproxy_takes_its_file(servers: str | None) -> None:
    """With servers named in it, and with those that a name stands for, as in compose.yaml."""
    environment = dict(os.environ) | ({"SERVERS_DNS": servers} if servers else {})
    done = subprocess.run(
        ["haproxy", "-c", "-f", DEPLOY / "haproxy.cfg"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
