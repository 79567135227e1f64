"""infra/k8s: against Kubernetes' own schemas, KEDA's, and the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator

from tests.unit.infra.test_compose import FOREIGN, variables
from workers.cli import SERVICES
from workers.covers.publishes import GROUP as PUBLISH_GROUP
from workers.covers.refreshes import GROUP as REFRESH_GROUP
from workers.events import ItemPublish, ItemRefresh

K8S = Path(__file__).resolve().parents[3] / "infra" / "k8s"
VERSIONS = ("1.34", "1.37")

_POLICY = {
    "type": "object",
    "required": ["type", "value", "periodSeconds"],
    "properties": {"type": {"enum": ["Pods", "Percent"]}, "value": {"type": "integer"}},
}
_BEHAVIOR = {
    "type": "object",
    "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "policies": {"type": "array", "items": _POLICY},
    },
    "additionalProperties": False,
}
KEDA = {
    # What the custom resource definitions of KEDA 2 say of the fields that are used here.
    "ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {name: {"type": "string"} for name in ("name", "kind", "envSourceContainerName")},
            },
            **{
                name: {"type": "integer", "minimum": 0}
                for name in ("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod")
            },
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "horizontalPodAutoscalerConfig": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "behavior": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {"scaleDown": _BEHAVIOR, "scaleUp": _BEHAVIOR},
                            }
                        },
                    }
                },
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"const": "kafka"},
                        "metadata": {
                            "type": "object",
                            "required": ["bootstrapServersFromEnv", "consumerGroup", "topic"],
                            "additionalProperties": False,
                            # Every value is a string: numbers and booleans are refused.
                            "properties": {
                                "bootstrapServersFromEnv": {"type": "string"},
                                "consumerGroup": {"type": "string"},
                                "topic": {"type": "string"},
                                "lagThreshold": {"type": "string", "pattern": r"^\d+$"},
                                "offsetResetPolicy": {"enum": ["earliest", "latest"]},
                                "allowIdleConsumers": {"enum": ["true", "false"]},
                                "sasl": {"enum": ["none", "plaintext", "scram_sha256", "scram_sha512"]},
                                "tls": {"enum": ["enable", "disable"]},
                            },
                        },
                        "authenticationRef": {"type": "object", "required": ["name"]},
                    },
                },
            },
        },
    },
    "TriggerAuthentication": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["parameter", "name", "key"],
                    "additionalProperties": False,
                    "properties": {name: {"type": "string"} for name in ("parameter", "name", "key")},
                },
            }
        },
    },
}


def load(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


FILES = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")
BASE = [resource for path in FILES if path.parent.name == "base" for resource in load(path.read_text())]


def check(resource: dict[str, Any]) -> None:
    if resource["kind"] in KEDA:
        assert resource["apiVersion"] == "keda.sh/v1alpha1"
        errors = [error.message for error in Draft7Validator(KEDA[resource["kind"]]).iter_errors(resource["spec"])]
        assert errors == []
        return
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


def one(kind: str, name: str, resources: list[dict[str, Any]] = BASE) -> dict[str, Any]:
    [found] = [each for each in resources if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods(resources: list[dict[str, Any]] = BASE) -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for each in resources if each["kind"] in {"Deployment", "Job"}]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(K8S).as_posix())
def test_a_file_is_what_kubernetes_takes(path: Path) -> None:
    for resource in load(path.read_text()):
        check(resource)


def test_a_wrong_file_is_found() -> None:
    deployment = one("Deployment", "covers")
    wrong = {**deployment, "spec": {**deployment["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)
    scaled = one("ScaledObject", "covers")
    with pytest.raises(AssertionError):
        check({**scaled, "spec": {**scaled["spec"], "maxReplicas": 3}})


@pytest.mark.parametrize("file", sorted(K8S.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_a_kustomization_names_files_that_are_there(file: Path) -> None:
    written = yaml.safe_load(file.read_text())
    for name in written.get("resources", ()):
        assert (file.parent / name).exists(), name
    for generator in written.get("configMapGenerator", ()):
        assert all((file.parent / name).is_file() for name in generator.get("envs", ()))
    listed = {name for name in written.get("resources", ()) if name.endswith(".yaml")}
    there = {path.name for path in file.parent.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert listed == there


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
@pytest.mark.parametrize("sasl", [False, True])
def test_an_overlay_can_be_built(overlay: str, sasl: bool, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / overlay
    if sasl:
        with (folder / "kustomization.yaml").open("a") as file:
            file.write("components: [../../components/kafka-sasl]\n")
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    resources = load(built.stdout)
    for resource in resources:
        check(resource)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "icg"
    worker = one("Deployment", "covers", resources)["spec"]["template"]["spec"]["containers"][0]
    given = {each["name"]: each["value"] for each in worker["env"]}
    assert given.keys() <= variables()
    assert given["ICG_COVERS_DEVICE"] == {"cpu": "cpu", "gpu": "cuda"}[overlay]
    assert worker["resources"]["limits"].get("nvidia.com/gpu") == {"cpu": None, "gpu": "1"}[overlay]
    images = {each["image"] for pod in pods(resources) for each in containers(pod)}
    assert images == {"icg-services:0.1.0", {"cpu": "icg-covers:0.1.0", "gpu": "icg-covers-gpu:0.1.0"}[overlay]}
    triggers = one("ScaledObject", "covers", resources)["spec"]["triggers"]
    assert all(("authenticationRef" in trigger) is sasl for trigger in triggers)
    [config] = [each["data"] for each in resources if each["kind"] == "ConfigMap"]
    assert ("ICG_KAFKA_SECURITY_PROTOCOL" in config) is sasl
    assert {name for name in config if not name.startswith(FOREIGN)} <= variables()


def test_settings_and_secrets_are_known_to_the_code() -> None:
    config = re.findall(r"^([A-Z0-9_]+)=", (K8S / "base" / "config.env").read_text(), re.MULTILINE)
    secrets = list(one("Secret", "icg")["stringData"])
    ours = {name for name in (*config, *secrets) if not name.startswith(FOREIGN)}
    assert ours <= variables()
    assert len(ours) > 8
    assert not {name for name in config if re.search("KEY|TOKEN|PASSWORD|SECRET", name)}
    listed = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["resources"]
    assert "secret.example.yaml" not in listed


@pytest.mark.parametrize("pod", pods(), ids=lambda pod: pod["containers"][0]["name"])
def test_a_pod_has_no_rights_and_a_size(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert {each["mountPath"] for each in container["volumeMounts"]} == {"/var/lib/icg", "/tmp"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_probed_scraped_and_protected(service: str) -> None:
    deployment = one("Deployment", service)
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    [port] = container["ports"]
    assert container["args"] == ["run", service]
    assert port["containerPort"] == (8080 if service == "api" else 9400)
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert template["spec"]["terminationGracePeriodSeconds"] > 10
    budget = one("PodDisruptionBudget", service)["spec"]["selector"]
    assert budget == deployment["spec"]["selector"]
    assert template["metadata"]["labels"].items() >= budget["matchLabels"].items()


def test_cover_workers_are_scaled_by_the_groups_that_they_are_in() -> None:
    triggers = one("ScaledObject", "covers")["spec"]["triggers"]
    scaled = {(each["metadata"]["consumerGroup"], each["metadata"]["topic"]) for each in triggers}
    assert scaled == {(PUBLISH_GROUP, ItemPublish.topic), (REFRESH_GROUP, ItemRefresh.topic)}
    # Whoever is scaled has no number of replicas of its own: an apply would undo the scaler's.
    for service in ("covers", "api"):
        assert "replicas" not in one("Deployment", service)["spec"]


def test_only_readers_and_prometheus_get_in_and_no_metadata_service_is_reached() -> None:
    default = one("NetworkPolicy", "default")["spec"]
    assert default["podSelector"] == {}
    assert set(default["policyTypes"]) == {"Ingress", "Egress"}
    blocks = [to["ipBlock"] for rule in default["egress"] for to in rule.get("to", ()) if "ipBlock" in to]
    assert "169.254.0.0/16" in blocks[0]["except"]
    open_to_all = [rule for rule in one("NetworkPolicy", "api")["spec"]["ingress"] if "from" not in rule]
    assert [port["port"] for rule in open_to_all for port in rule["ports"]] == [8080]
