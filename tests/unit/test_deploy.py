"""deploy/: what its files say agrees with the service's settings, routes and metrics, and with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bento_service.settings import Settings, known_variables
from servers import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
COMPONENTS = DEPLOY / "kubernetes" / "components"
# Read by BentoML.
FOREIGN_VARIABLES = {"BENTOML_HOME"}


def documents(path: Path) -> list[Any]:
    """Read the YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def variables(path: Path) -> dict[str, str]:
    """Read an env file; lines that are commented out count too, since they wait to be used."""
    found = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE)
    return dict(found)


@pytest.fixture
def compose() -> Any:
    """Read compose.yaml."""
    [whole] = documents(DEPLOY / "compose.yaml")
    return whole


@pytest.fixture
def pod() -> Any:
    """Read the pod of the Deployment."""
    [deployment] = documents(BASE / "deployment.yaml")
    return deployment["spec"]["template"]["spec"]


def seconds(text: str) -> float:
    """Read Compose's seconds."""
    return float(text.removesuffix("s"))


def test_every_variable_is_a_setting(compose: Any, pod: Any) -> None:
    """An unknown one would stop the start."""
    given = set(variables(DEPLOY / "compose.env")) | set(variables(BASE / "settings.env"))
    [gpu] = documents(DEPLOY / "compose.gpu.yaml")
    given |= set(compose["services"]["reranker"]["environment"]) | set(gpu["services"]["reranker"]["environment"])
    given |= {each["name"] for each in pod["containers"][0]["env"]}
    for path in (COMPONENTS / "gpu" / "gpu.yaml", COMPONENTS / "keys" / "keys.yaml"):
        [patch] = documents(path)
        given |= {each["name"] for each in patch["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert given - FOREIGN_VARIABLES <= set(known_variables())
    assert {"RERANKER_TORCH_THREADS", "RERANKER_DRAIN_SECONDS", "RERANKER_SHUTDOWN_SECONDS", "REDIS_URL"} <= given


def test_a_server_has_the_time_that_it_takes_to_end(compose: Any, pod: Any) -> None:
    """It is killed later than RERANKER_SHUTDOWN_SECONDS, which leaves room for the drain and for requests under way."""
    timeout = Settings().request_timeout_seconds
    for given, grace in (
        (variables(DEPLOY / "compose.env"), seconds(compose["services"]["reranker"]["stop_grace_period"])),
        (variables(BASE / "settings.env"), float(pod["terminationGracePeriodSeconds"])),
    ):
        drain, shutdown = float(given["RERANKER_DRAIN_SECONDS"]), float(given["RERANKER_SHUTDOWN_SECONDS"])
        assert grace > shutdown >= timeout + drain


def test_balancers_see_a_drain_before_it_ends(compose: Any, pod: Any) -> None:
    """HAProxy's checks and Kubernetes' readiness fail within RERANKER_DRAIN_SECONDS."""
    interval, fall = re.findall(r"check inter (\d+)s fall (\d+)", (DEPLOY / "haproxy.cfg").read_text())[0]
    assert int(interval) * int(fall) < float(variables(DEPLOY / "compose.env")["RERANKER_DRAIN_SECONDS"])
    probe = pod["containers"][0]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < float(variables(BASE / "settings.env")["RERANKER_DRAIN_SECONDS"])
    assert "reranker" in compose["services"]


def test_balancers_repeat_no_429() -> None:
    """The next server would get the overload of all."""
    nginx, haproxy = ((DEPLOY / name).read_text() for name in ("nginx.conf", "haproxy.cfg"))
    [nginx_rules] = re.findall(r"^\s*proxy_next_upstream (.*);", nginx, re.MULTILINE)
    [haproxy_rules] = re.findall(r"^\s*retry-on (.*)$", haproxy, re.MULTILINE)
    assert set(nginx_rules.split()) == {"error", "http_503", "non_idempotent"}
    assert set(haproxy_rules.split()) == {"conn-failure", "empty-response", "503"}


def test_nothing_runs_with_more_rights_than_it_needs(compose: Any, pod: Any) -> None:
    """Not as root, on a read-only root file system, without capabilities."""
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
    redis = documents(BASE / "redis.yaml")[0]["spec"]["template"]["spec"]
    for each in (pod, redis):
        assert each["enableServiceLinks"] is each["automountServiceAccountToken"] is False
        assert each["securityContext"]["runAsNonRoot"] is True
        assert each["securityContext"]["runAsUser"] > 0
        assert each["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        [container] = each["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_only_the_balancer_is_reached_from_other_machines(compose: Any) -> None:
    """Redis and the servers are on a network of their own; the pages of Prometheus and Grafana on this machine's address."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"balancer", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for name, ports in published.items() for port in ports if name != "balancer")
    assert compose["networks"]["inside"] == {"internal": True}
    assert all(compose["services"][name]["networks"] == ["inside"] for name in ("reranker", "redis"))


def test_everything_mounted_is_there(compose: Any) -> None:
    """The files come with the repository; names without a path are volumes."""
    mounts = [mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", [])]
    assert {mount for mount in mounts if not mount.startswith("./")} == set(compose["volumes"])
    for mount in mounts:
        assert not mount.startswith("./") or (DEPLOY / mount).exists(), mount


def test_both_autoscalers_read_the_queue() -> None:
    """By the same metric, threshold and bounds."""
    [autoscaler], [scaled] = (documents(COMPONENTS / path) for path in ("hpa/autoscaler.yaml", "keda/scaled-object.yaml"))
    [metric], [trigger] = autoscaler["spec"]["metrics"], scaled["spec"]["triggers"]
    assert metric["pods"]["metric"]["name"] == "reranker_queue_pairs"
    assert "reranker_queue_pairs" in trigger["metadata"]["query"]
    assert metric["pods"]["target"]["averageValue"] == trigger["metadata"]["threshold"]
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (
        scaled["spec"]["minReplicaCount"],
        scaled["spec"]["maxReplicaCount"],
    )
    assert autoscaler["spec"]["behavior"] == scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert "`reranker_queue_pairs`" in (REPOSITORY / "docs" / "metrics.md").read_text()
    [rule] = documents(COMPONENTS / "hpa" / "adapter-values.yaml")[0]["rules"]["custom"]
    assert rule["name"]["as"] == "reranker_queue_pairs"


def test_compose_scrapes_as_the_rules_expect() -> None:
    """The job is called reranker, and the rules lie where Prometheus looks for them."""
    [prometheus] = documents(DEPLOY / "compose" / "prometheus.yml")
    assert [job["job_name"] for job in prometheus["scrape_configs"]] == ["reranker"]
    assert prometheus["rule_files"] == ["rules/*.yml"]
