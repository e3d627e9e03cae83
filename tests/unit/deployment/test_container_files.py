"""The files of config/container are sound, and fit each other and the program."""

import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.supervisor.supervisor import END_SECONDS
from tests.install.containerfile import is_ignored, parse
from tests.support.peers import require_program
from tests.support.pki import Material

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "config/container"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("node", "remote")
IGNORED = [
    line
    for line in (FOLDER / "Containerfile.dockerignore").read_text().splitlines()
    if line and line[0] != "#"
]


def load_like_in_the_container(name: str, folder: Path, material: Material) -> Config:
    """Read the configuration of a service with files where the container has them."""
    shutil.copy(FOLDER / name / "ingest.toml", folder)
    (folder / "pki").mkdir()
    shutil.copy(material.certificate("node"), folder / "pki" / f"{name}.crt")
    shutil.copy(material.key("node"), folder / "pki" / f"{name}.key")
    shutil.copy(material.trusted, folder / "pki/trusted.crt")
    (folder / "console").mkdir()
    (folder / "console/users.json").write_text('{"users": {"admin": {}}}')
    environment = {"INGEST_NODE__DATA_DIR": str(folder)}
    if name == "node":
        (folder / "password").write_text("secret")
        environment |= {
            "INGEST_QUEUE__PASSWORD_FILE": str(folder / "password"),
            "INGEST_LEDGER__PASSWORD_FILE": str(folder / "password"),
        }
    return load_config(folder / "ingest.toml", environ=environment)


def test_the_image_is_built_in_stages_and_runs_without_root() -> None:
    steps = parse((FOLDER / "Containerfile").read_text())
    names = [step.name for step in steps]
    bases = [step.text for step in steps if step.name == "FROM"]
    assert [base.partition(" AS ")[0] for base in bases] == ["docker.io/library/debian:${DEBIAN}-slim"] * 2
    last = steps[len(names) - names[::-1].index("FROM") :]
    final = {step.name: step.text for step in last}
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final["USER"]), "a number, for runAsNonRoot"
    assert final["ENTRYPOINT"] == '["/usr/bin/tini", "--", "ingest"]'
    assert final["HEALTHCHECK"].endswith("CMD ingest check --ready || exit 1")
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert [step.text for step in last if step.name == "COPY"] == [
        "--from=builder /opt/dicom-ingest /opt/dicom-ingest"
    ], "nothing of the sources is in the image"
    for step in steps:
        if "apt-get install" in step.text:
            assert "--no-install-recommends" in step.text
            assert "rm -rf /var/lib/apt/lists/*" in step.text
        if step.name in {"ENV", "ARG"}:
            assert not re.search(r"pass|secret|token|key", step.text, re.IGNORECASE)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "config/pki/node.key",
        "config/container/secrets/redis-password",
        "ext/pdu.c",
        "ext/pdu.cpython-311-x86_64-linux-gnu.so",
        "ingest/__pycache__/log.pyc",
        "tests/conftest.py",
    ],
)
def test_the_build_gets_no_keys_and_nothing_that_was_built_elsewhere(path: str) -> None:
    assert is_ignored(path, IGNORED)


@pytest.mark.parametrize(
    "path",
    [
        "pyproject.toml",
        "setup.py",
        "requirements.lock",
        "ext/pdu.pyx",
        "ingest/ext",
        "ingest/tls/keys/pairs.py",
        "workers/backoff.py",
        "config/ingest.toml",
        "README.md",
    ],
)
def test_the_build_gets_the_sources(path: str) -> None:
    assert (ROOT / path).exists()
    assert not is_ignored(path, IGNORED)


def read_lock(path: Path) -> dict[str, str]:
    """Name to version of each package in a lock."""
    return dict(re.findall(r"^([a-z0-9_.-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_the_image_has_the_packages_that_the_tests_run_with() -> None:
    locked, image = read_lock(ROOT / "requirements.lock"), read_lock(FOLDER / "runtime.lock")
    assert {name: locked[name] for name in image} == image, "run `make lock`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w.-]+", each)[0].lower() for each in wanted}
    assert names <= image.keys(), "run `make lock`"
    assert not {"pytest", "mypy", "ruff"} & image.keys()


def test_the_build_has_every_package_that_it_asks_for() -> None:
    steps = "".join(step.text for step in parse((FOLDER / "Containerfile").read_text()))
    names = re.search(r"wanted = /\^\(([\w|-]+)\)==/", steps)[1].split("|")
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert sorted(names) == sorted(re.match(r"[\w.-]+", each)[0] for each in asked)


def test_compose_passes_the_commit_to_the_build() -> None:
    arguments = SERVICES["setup"]["build"]["args"]
    steps = parse((FOLDER / "Containerfile").read_text())
    known = {step.text.partition("=")[0]: step.text.partition("=")[2] for step in steps if step.name == "ARG"}
    for name, value in arguments.items():
        assert value == f"${{{name}:-{known[name]}}}", (
            "without the variable, the default of the Containerfile"
        )
    assert set(arguments) == {"REVISION", "REVISION_DATE"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_root_capabilities_and_a_writable_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name == "setup":
        # It gives files to other users, once, and talks to nobody.
        assert (service["network_mode"], service["restart"]) == ("none", "no")
    else:
        assert "cap_add" not in service
        assert service["user"].split(":")[0] != "0"
    assert re.fullmatch(r"dicom-ingest|docker\.io/.+:\S+", service["image"]), (
        "a release of another image is named"
    )


def test_secrets_are_files_and_everything_named_exists() -> None:
    used_volumes, used_secrets = set(), set()
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"PASS|SECRET|TOKEN", variable) or value.startswith("/run/secrets/"), (
                variable
            )
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists() or source == "./images", source
            else:
                used_volumes.add(source)
        used_secrets |= set(service.get("secrets", []))
        assert service.get("depends_on", {}).keys() <= SERVICES.keys(), name
        for other, options in service.get("depends_on", {}).items():
            assert (
                "healthcheck" in SERVICES[other] or options["condition"] == "service_completed_successfully"
            )
    assert used_volumes == set(COMPOSE["volumes"])
    assert used_secrets == set(COMPOSE["secrets"])
    made = (FOLDER / "make-secrets.sh").read_text()
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"./secrets/{name}"
        assert name in made


@pytest.mark.parametrize("name", OURS)
def test_a_node_has_time_to_drain_before_it_is_killed(name: str, tmp_path: Path, material: Material) -> None:
    config = load_like_in_the_container(name, tmp_path, material)
    grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace >= config.node.drain_seconds + END_SECONDS


def test_the_configurations_fit_the_services(tmp_path: Path, material: Material) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "remote").mkdir()
    node = load_like_in_the_container("node", tmp_path / "node", material)
    remote = load_like_in_the_container("remote", tmp_path / "remote", material)
    (destination,) = node.destinations
    assert destination.host in SERVICES
    assert (destination.ae_title, destination.port) == (remote.node.ae_title, remote.listeners[0].port)
    assert remote.peers[0].ae_title == node.node.ae_title
    assert "@redis:6379/" in node.queue.url
    assert "@postgres/" in node.ledger.url
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] in node.ledger.url
    assert f"{node.listeners[0].port}:{node.listeners[0].port}" in SERVICES["node"]["ports"]
    assert node.console is not None
    targets = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert targets["static_configs"][0]["targets"] == [node.console.public_url.removeprefix("https://")]


def test_keys_and_images_of_the_quick_starts_stay_out_of_git_and_of_the_image() -> None:
    private = ("site/pki/node.key", "site/var/a.dcm", "config/container/images/a.dcm")
    for name in private:
        assert is_ignored(name, IGNORED), name
        done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert done.returncode == 0 or not (ROOT / ".git").exists(), name


def test_setup_does_not_walk_the_store() -> None:
    script = (FOLDER / "setup.sh").read_text()
    assert re.findall(r'chown -R \S+ "\$data(.*)"', script) == ["/console"]


@pytest.mark.parametrize("name", ["make-secrets.sh", "setup.sh"])
def test_the_scripts_are_sound_for_a_plain_shell(name: str) -> None:
    done = subprocess.run(["sh", "-n", FOLDER / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.interop
def test_promtool_accepts_the_configuration_of_prometheus(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "prometheus/prometheus.yml", tmp_path)
    shutil.copy(ROOT / "config/prometheus/dicom-ingest.rules.yml", tmp_path)
    command = [
        require_program("promtool"),
        "check",
        "config",
        "--syntax-only",
        str(tmp_path / "prometheus.yml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.interop
def test_yamllint_accepts_every_file_of_deployments() -> None:
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: disable}}"
    folders = [str(FOLDER), str(ROOT / "config/kubernetes")]
    command = [require_program("yamllint"), "--strict", "-d", rules, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
