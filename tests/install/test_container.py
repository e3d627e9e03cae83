"""The image of config/container/Containerfile, built and run for real; no engine is needed.

The steps are those of the file: `Builder` reads and runs them in chroots. The entry point then runs as an
engine would start it: without root and capabilities, on a read-only root, as PID 1, within control groups.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.install.containerfile import Image
from tests.install.containers import Container, Limits, Mount, Network, removed
from tests.install.engine import Engine
from tests.install.image import ARGUMENTS, ROOT
from tests.support.nodes import Node, eventually
from tests.support.pages import read_blocks
from tests.support.senders import Modality, kept_whole, nothing_half_there

if TYPE_CHECKING:
    from tests.support.pki import Material

USER = 10001

PAGE = ROOT / "docs/how-to/install-containers.md"

LOG_IN = """
import http.cookiejar, re, ssl, time, urllib.parse, urllib.request as u
context = ssl._create_unverified_context()
cookies = u.HTTPCookieProcessor(http.cookiejar.CookieJar())
browser = u.build_opener(u.HTTPSHandler(context=context), cookies)
for _ in range(100):
    try:
        login = browser.open("https://localhost:8443/login", timeout=10).read().decode()
        break
    except OSError:
        time.sleep(0.2)
(token,) = re.findall('name="csrf_token" value="([^"]+)"', login)
form = {"user": "admin", "password": "long enough for a test", "csrf_token": token}
browser.addheaders = [("Origin", "https://localhost:8443")]
browser.open("https://localhost:8443/login", urllib.parse.urlencode(form).encode(), timeout=10)
print(browser.open("https://localhost:8443/studies", timeout=10).read().decode())
"""

CONFIGURATION = """
[node]
data_dir = "/var/lib/dicom-ingest"
drain_seconds = 20
[[listeners]]
host = "127.0.0.1"
port = {port}
[tls.node]
certificate = "pki/node.crt"
private_key = "pki/node.key"
trusted = ["pki/trusted.crt"]
[receive]
min_free_bytes = 0
[log]
format = "json"
"""


@pytest.fixture
def make_container(
    image: Image, material: Material, tmp_path: Path
) -> Iterator[Callable[..., tuple[Container, Node]]]:
    """Makes containers that are not started yet, each with a volume, and the node in it as tests see it."""
    made: list[Container] = []

    def make(limits: Limits | None = None, **more: str) -> tuple[Container, Node]:
        folder = tmp_path / "container"
        volume = folder / "volume"
        volume.mkdir(parents=True)
        os.chown(volume, USER, USER)
        node = Node(folder, material, data_folder=volume)
        settings = folder / "etc"
        (settings / "pki").mkdir(parents=True)
        (settings / "ingest.toml").write_text(CONFIGURATION.format(port=node.tls_port))
        for source, name in (
            (material.certificate("node"), "node.crt"),
            (material.key("node"), "node.key"),
            (material.trusted, "trusted.crt"),
        ):
            path = settings / "pki" / name
            path.write_bytes(source.read_bytes())
            path.chmod(0o400)
            os.chown(path, USER, USER)
        container = Container(
            image,
            "node",
            environment=more,
            mounts=[
                Mount(volume, "/var/lib/dicom-ingest", is_read_only=False),
                Mount(settings, "/etc/dicom-ingest"),
            ],
            tmpfs={"/tmp": "mode=1777,size=64m"},
            limits=limits or Limits(),
            output=folder / "log",
        )
        made.append(container)
        return container, node

    yield make
    for container in made:
        container.remove()


def start(container: Container, node: Node) -> None:
    container.start()
    eventually(container.check_health, 60, f"the health check passes\n{node.log[-3000:]}")


def test_the_image_holds_what_runs_and_nothing_to_build_with(image: Image) -> None:
    # Given the root of the last stage
    names = {
        path.relative_to(image.root).as_posix() for path in image.root.rglob("*") if not path.is_symlink()
    }
    # Then the program, its extensions and tini are in it
    assert "usr/bin/tini" in names
    assert any(
        re.fullmatch(r"opt/dicom-ingest/lib/python3\.\d+/site-packages/ingest/ext/pdu\..*\.so", name)
        for name in names
    )
    # And no compiler, pip, sources of C, keys or configuration
    unwanted = re.compile(
        r"(bin/(gcc|cc|pip3?)$|site-packages/pip/|^(src|opt/(build|wheels))/|ext/\w+\.c$|\.key$)"
    )
    assert [name for name in names if unwanted.search(name)] == []
    assert list((image.root / "etc/dicom-ingest").iterdir()) == []
    # And its user can change nothing but the volume
    (user,) = [line for line in (image.root / "etc/passwd").read_text().splitlines() if ":10001:" in line]
    assert user.startswith("dicom-ingest:x:10001:10001:")
    owned = [path for path in image.root.rglob("*") if path.lstat().st_uid == USER]
    assert owned == [image.root / "var/lib/dicom-ingest"]
    assert (image.user, image.volumes, image.stop_signal) == (
        "10001:10001",
        ("/var/lib/dicom-ingest",),
        "SIGTERM",
    )
    assert image.labels["org.opencontainers.image.version"]
    assert image.labels["org.opencontainers.image.revision"] == ARGUMENTS["REVISION"]


def test_a_container_without_a_configuration_says_what_to_mount(image: Image, tmp_path: Path) -> None:
    container = Container(image, "empty", tmpfs={"/tmp": "mode=1777"}, output=tmp_path / "log")
    with removed(container):
        container.start()
        assert container.wait(30) == 2
    assert "/etc/dicom-ingest/ingest.toml: cannot be read: No such file" in (tmp_path / "log").read_text()


def test_a_node_runs_without_root_on_a_read_only_root_and_loses_nothing_when_it_is_stopped(
    make_container: Callable[..., tuple[Container, Node]], tmp_path: Path
) -> None:
    # Given a container with half a core
    container, node = make_container(Limits(cores=0.5))
    start(container, node)
    # Then tini is PID 1, and every process is without root, capabilities and a way to get them
    processes = container.list_processes()
    assert processes[container.pid] == "tini"
    assert {"ingest-listen", "ingest-persist", "valkey-server"} <= set(processes.values())
    for pid in processes:
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{USER}\s+{USER}\s+{USER}\s+{USER}$", status, re.MULTILINE), status
        assert re.search(r"^CapPrm:\s+0+$", status, re.MULTILINE), status
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE), status
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), status
    assert container.run("/usr/bin/touch", "/opt/dicom-ingest/changed").returncode != 0
    # And the program knows the commit that it was built from
    version = container.run("ingest", "--version").stdout
    assert f"{ARGUMENTS['REVISION']} of {ARGUMENTS['REVISION_DATE']}" in version
    # And the quota decides how many listeners there are; the log and the status say so
    assert list(processes.values()).count("ingest-listen") == 1
    (planned,) = node.events("listeners_planned")
    assert (planned["listeners"], planned["usable_cores"], planned["quota"]) == (1, 1, 0.5)
    shown = container.run("ingest", "status").stdout
    assert re.search(
        rf"^listen +1 +1 +1 usable: affinity {len(os.sched_getaffinity(0))}, quota 0.5$", shown, re.M
    ), shown

    # When orphans end
    container.run("/bin/sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &)")
    # Then PID 1 reaps them
    time.sleep(0.3)
    eventually(
        lambda: not {"zombie", "sleep"} & set(container.list_processes().values()), 10, "no orphan is left"
    )

    # When a modality sends over TLS and the container is stopped meanwhile
    with Modality(node, tmp_path / "modality", associations=2) as modality:
        modality.until(50)
        began = time.monotonic()
        assert container.stop(30) == 0
        assert time.monotonic() - began < 28
        modality.stop()
    # Then everything that was acknowledged is there after the next start
    assert len(modality.acknowledged) >= 50
    start(container, node)
    eventually(lambda: kept_whole(node, modality.acknowledged), 30, "all acknowledged instances are stored")
    assert container.stop(30) == 0
    nothing_half_there(node, modality)


def test_a_worker_that_the_kernel_ends_for_its_memory_is_replaced(
    make_container: Callable[..., tuple[Container, Node]], tmp_path: Path
) -> None:
    # Given a container with a limit of its memory, and a sender
    container, node = make_container(Limits(memory_bytes=1 << 30))
    start(container, node)
    group = container.limits.folder("memory") / "worker"
    with Modality(node, tmp_path / "modality", associations=2) as modality:
        modality.until(20)
        (worker,) = [pid for pid, name in container.list_processes().items() if name == "ingest-persist"]
        # When the persist worker needs more than it may have. A group of its own below that of the container
        # makes the kernel choose it.
        group.mkdir()
        try:
            (group / "memory.limit_in_bytes").write_text("4096")
            (group / "cgroup.procs").write_text(str(worker))
            eventually(
                lambda: worker not in container.list_processes(), 30, "the kernel has ended the worker"
            )
            assert re.search(r"^oom_kill [1-9]", (group / "memory.oom_control").read_text(), re.MULTILINE)
        finally:
            eventually(lambda: not (group / "cgroup.procs").read_text(), 10, "the group is empty")
            group.rmdir()
        # Then the others go on, and another one takes its place
        modality.until(20)
        died = eventually(lambda: node.events("child_died"), 10, "the supervisor reports it")
        assert (died[0]["child"], died[0]["code"]) == ("persist", -signal.SIGKILL)
        eventually(lambda: "ingest-persist" in container.list_processes().values(), 10, "a new worker")
        modality.stop()
    eventually(lambda: kept_whole(node, modality.acknowledged), 30, "all acknowledged instances are stored")
    assert container.check_health()
    assert container.stop(30) == 0


def test_the_health_check_fails_once_no_listener_receives(
    make_container: Callable[..., tuple[Container, Node]],
) -> None:
    container, node = make_container()
    start(container, node)
    (supervisor,) = [
        pid
        for pid in container.list_processes()
        if Path(f"/proc/{pid}/status").read_text().count(f"PPid:\t{container.pid}\n")
    ]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        eventually(lambda: not container.check_health(), 30, "the health check fails")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    eventually(container.check_health, 30, "the health check passes again")
    assert container.stop(30) == 0


def test_the_page_leads_from_the_image_to_the_first_image_in_the_console(
    image: Image, tmp_path: Path
) -> None:
    """docs/how-to/install-containers.md, for one node: each command as it is printed."""
    blocks = {heading: read_blocks(PAGE, heading) for heading in ("Run one node", "See the first image")}
    with Network() as network, Engine(image, tmp_path, network) as engine:
        # When somebody follows the page
        said = "".join(engine.follow(block.commands) for block in blocks["Run one node"])
        # Then the node runs, and only its user can read the key
        assert "healthy" in said
        keys = (tmp_path / "node/pki/node.key").stat()
        assert (keys.st_uid, keys.st_mode & 0o077) == (USER, 0)
        assert (tmp_path / "node/ingest.toml").stat().st_mode & 0o007 == 0
        # And it takes an image
        first, user, console, reload = blocks["See the first image"]
        assert "1 of 1 stored" in engine.follow(first.commands)
        # And the console shows it to a user who has logged in
        engine.typed = "long enough for a test\n"
        assert "added as admin" in engine.follow(user.commands)
        path = tmp_path / "node/ingest.toml"
        head, mark, _ = path.read_text().partition("# [console]")
        assert mark
        path.write_text(head + console.text)
        assert "generation 2" in engine.follow(reload.commands)
        page = engine.containers["dicom-ingest"].run("python3", "-c", LOG_IN)
        assert page.returncode == 0, page.stderr
        assert "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322" in page.stdout
        assert engine.containers["dicom-ingest"].stop(60) == 0
