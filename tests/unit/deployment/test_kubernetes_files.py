"""The manifests of config/kubernetes are sound, and fit each other and the program."""

import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingest.config.reader import load_config
from ingest.supervisor.supervisor import END_SECONDS
from tests.support.pages import DOCS, SHELL, Walk, read_blocks
from tests.support.pki import Material

# A checkout whose packages are older than its lock has no such module. CI has.
if os.environ.get("CI") != "true":
    pytest.importorskip("kubernetes_validate")
kubernetes_validate: Any = importlib.import_module("kubernetes_validate")

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "config/kubernetes"
KUBERNETES = "1.32"
OVERLAYS = ("base", "overlays/example")

Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def read_base() -> list[Manifest]:
    kustomization = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())
    return [each for name in kustomization["resources"] for each in read(FOLDER / "base" / name)]


BASE = read_base()


def find(kind: str, name: str) -> Manifest:
    (found,) = [each for each in BASE if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


WORKLOADS = [find("StatefulSet", "dicom-ingest"), find("Deployment", "dicom-ingest-forward")]


def list_containers(workload: Manifest) -> Iterator[Manifest]:
    pod = workload["spec"]["template"]["spec"]
    yield from (*pod.get("initContainers", []), *pod["containers"])


def build(folder: str) -> list[Manifest]:
    """Build with kustomize, as `kubectl apply -k` does. Debian 12 has no kubectl that is new enough."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    told = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, check=False
    )
    if not json.loads(told.stdout or "{}").get("kustomizeVersion", "").startswith("v5"):
        pytest.skip("kubectl has no kustomize of version 5")
    done = subprocess.run(
        [kubectl, "kustomize", FOLDER / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def require_valid(manifest: Manifest) -> None:
    """Compare a manifest with the schema of Kubernetes; the Prometheus operator's kinds have none there."""
    if manifest["apiVersion"] != "monitoring.coreos.com/v1":
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", BASE, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_a_manifest_fits_the_schema_of_kubernetes(manifest: Manifest) -> None:
    require_valid(manifest)


def test_a_manifest_with_an_unknown_key_does_not_fit() -> None:
    wrong = {**find("PodDisruptionBudget", "dicom-ingest"), "spec": {"maxAvailable": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        require_valid(wrong)


@pytest.mark.parametrize("folder", OVERLAYS)
def test_kustomize_builds_valid_manifests(folder: str) -> None:
    built = build(folder)
    for manifest in built:
        require_valid(manifest)
    kinds = sorted(each["kind"] for each in built)
    assert kinds == sorted([*(each["kind"] for each in BASE), "ConfigMap"])
    if folder != "base":
        (node,) = [each for each in built if each["kind"] == "StatefulSet"]
        images = {each["image"] for each in list_containers(node)}
        assert images == {"registry.example.org/dicom-ingest:0.2.0"}
        assert {each["metadata"]["namespace"] for each in built} == {"radiology"}
        (policy,) = [
            each
            for each in built
            if each["kind"] == "NetworkPolicy" and "forward" not in str(each["metadata"])
        ]
        assert policy["spec"]["ingress"][0]["from"] == [{"ipBlock": {"cidr": "10.20.0.0/16"}}]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_every_file_that_kustomize_needs_is_there_and_none_is_left_over(folder: str) -> None:
    here = FOLDER / folder
    kustomization = yaml.safe_load((here / "kustomization.yaml").read_text())
    named = {"kustomization.yaml", *(each for each in kustomization["resources"] if each.endswith(".yaml"))}
    for generator in kustomization.get("configMapGenerator", []):
        named |= set(generator["files"])
    for each in kustomization["resources"]:
        assert (here / each).exists(), each
    assert {path.name for path in here.iterdir()} == named
    known = {(each["kind"], each["metadata"]["name"]) for each in BASE}
    for patch in kustomization.get("patches", []):
        assert (patch["target"]["kind"], patch["target"]["name"]) in known


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each["metadata"]["name"])
def test_pods_keep_the_restricted_standard(workload: Manifest) -> None:
    """Pod Security Standards, restricted: a namespace may enforce them."""
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all(
        volume.keys() & {"persistentVolumeClaim", "emptyDir", "configMap", "secret"}
        for volume in pod["volumes"]
    )
    for container in list_containers(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert not [
            each for each in container.get("env", []) if re.search(r"PASS|TOKEN|SECRET", each["name"])
        ]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each["metadata"]["name"])
def test_pods_have_probes_that_the_program_knows_and_volumes_that_exist(workload: Manifest) -> None:
    from ingest.cli.check import check

    pod = workload["spec"]["template"]["spec"]
    claims = [each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])]
    volumes = {*(each["name"] for each in pod["volumes"]), *claims}
    flags = {flag for option in check.params for flag in option.opts}
    for container in list_containers(workload):
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
    (main,) = pod["containers"]
    for probe, flag in (
        ("startupProbe", "--ready"),
        ("readinessProbe", "--ready"),
        ("livenessProbe", "--live"),
    ):
        assert main[probe]["exec"]["command"] == ["ingest", "check", flag]
        assert flag in flags


def test_a_node_has_time_to_drain_before_it_is_killed() -> None:
    """preStop comes first, then drain_seconds, then the end of workers, console and queue."""
    pod = WORKLOADS[0]["spec"]["template"]["spec"]
    text = (FOLDER / "base/ingest.toml").read_text()
    drain = float(re.search(r"^drain_seconds = (\d+)$", text, re.MULTILINE)[1])
    (container,) = pod["containers"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + drain + END_SECONDS


def test_what_has_promised_keeps_its_own_volume() -> None:
    spec = WORKLOADS[0]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert WORKLOADS[0]["spec"]["serviceName"] == find("Service", "dicom-ingest-pods")["metadata"]["name"]
    assert WORKLOADS[1]["spec"]["template"]["spec"]["containers"][0]["args"] == ["work", "forward"]


def test_services_policies_and_budgets_select_pods_and_ports_that_exist() -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in WORKLOADS]
    ports = {port["name"] for each in list_containers(WORKLOADS[0]) for port in each.get("ports", [])}
    for manifest in BASE:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if manifest["kind"] == "ServiceMonitor" or selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= each.items() for each in labels), manifest["metadata"]["name"]
        if manifest["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if manifest["kind"] == "NetworkPolicy":
            named = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
            assert named <= ports
    monitor = find("ServiceMonitor", "dicom-ingest")["spec"]
    pods = find("Service", "dicom-ingest-pods")
    assert monitor["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in pods["spec"]["ports"]}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_configuration_can_be_used_by_both_kinds_of_pods(
    folder: str, tmp_path: Path, material: Material
) -> None:
    shutil.copy(FOLDER / folder / "ingest.toml", tmp_path)
    (tmp_path / "pki").mkdir()
    shutil.copy(material.certificate("node"), tmp_path / "pki/node.crt")
    shutil.copy(material.key("node"), tmp_path / "pki/node.key")
    shutil.copy(material.trusted, tmp_path / "pki/trusted.crt")
    (tmp_path / "password").write_text("secret")
    for workload in WORKLOADS:
        data = tmp_path / workload["metadata"]["name"]
        environment = {
            "INGEST_NODE__DATA_DIR": str(data),
            "INGEST_QUEUE__PASSWORD_FILE": str(tmp_path / "password"),
            "INGEST_LEDGER__PASSWORD_FILE": str(tmp_path / "password"),
        }
        if workload["kind"] == "StatefulSet":  # what the init container copies
            (data / "console").mkdir(parents=True)
            (data / "console/users.json").write_text('{"users": {"admin": {}}}')
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        environment |= {each["name"]: each["value"] for each in container["env"] if "value" in each}
        config = load_config(tmp_path / "ingest.toml", environ=environment)
        mounts = {each["mountPath"] for each in container["volumeMounts"]}
        assert str(config.store_root) in mounts
        assert config.listeners[0].port == find("Service", "dicom-ingest")["spec"]["ports"][0]["port"]


def test_the_commands_of_the_page_make_every_file_of_the_secrets(tmp_path: Path) -> None:
    blocks = read_blocks(DOCS / "how-to/install-kubernetes.md")
    shutil.copytree(FOLDER, tmp_path / "config/kubernetes")
    # The passwords of servers that a site has.
    given = {"redis-password", "postgres-password"}
    with Walk(tmp_path) as walk:
        walk.typed = "long enough for a test\n"
        for block in blocks:
            if "kubectl" not in block.commands or shutil.which("kubectl"):
                walk.follow(block)
    asked = {
        name
        for block in blocks
        if block.language not in SHELL
        for name in re.findall(r"--from-file=(?:[\w.]+=)?(\S+)", block.text)
    }
    assert given < asked
    assert [name for name in sorted(asked - given) if not (tmp_path / name).stat().st_size] == []
