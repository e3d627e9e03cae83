"""Listeners behind HAProxy and nginx of Debian, with the settings that docs/how-to/load-balancer.md shows."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE

from tests.interop import dcmtk
from tests.interop.files import by_uid
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, cleaned, count_refusals, eventually
from tests.support.pages import DOCS, read_blocks
from tests.support.peers import require_program, storescp
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.tls_peers import ssl_client_context

PAGE = DOCS / "how-to/load-balancer.md"
WORKSTATION, STRANGER = "127.0.0.7", "127.0.0.8"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
CALLED_UNKNOWN, CALLING_UNKNOWN = (1, 1, 7), (1, 1, 3)
"""PS3.8 Table 9-21: result, source and reason."""


@dataclass
class Site:
    """A node with two listeners, its destinations, and a load balancer."""

    node: Node
    folder: Path
    material: Material
    port: int = 0

    def arrived(self, destination: str) -> dict[str, Path]:
        """Files at a destination by SOP Instance UID."""
        return by_uid((self.folder / destination).iterdir())

    def store(self, made: Made, address: str, called: str = "INGEST") -> tuple[int, ...]:
        """Store an instance as WS1 through the balancer. Returns the statuses, or the A-ASSOCIATE-RJ."""
        ae = AE("WS1")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        ae.add_requested_context(CT, EXPLICIT)
        association = ae.associate(
            "127.0.0.1",
            self.port,
            ae_title=called,
            tls_args=(ssl_client_context(self.material.tls("peer")), "localhost"),
            bind_address=(address, 0),
        )
        if association.is_rejected:
            answer = association.acceptor.primitive
            assert answer is not None
            return (answer.result, answer.result_source, answer.diagnostic)
        assert association.is_established, self.node.log[-3000:]
        status = association.send_c_store(pydicom.dcmread(BytesIO(made.file))).Status
        association.release()
        return (int(status),)


def replace_all(text: str, changes: dict[str, str]) -> str:
    """Replace what a test cannot have as the page has it."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def read_example(heading: str, language: str) -> list[str]:
    return [each.text for each in read_blocks(PAGE, heading) if each.language == language]


def write_config(ports: tuple[int, int], destinations: dict[str, int]) -> dict[str, str]:
    """Return the sections of the page, on ports and addresses of the test."""
    listener = read_example("Let the listener expect the header", "toml")[0]
    [several] = read_example("Take over several AE titles", "toml")
    receive, _, routes = several.partition("[[routes]]")
    listeners = (
        replace_all(
            listener,
            {"10.0.0.5/32": "127.0.0.1/32", "port = 2762": f'host = "127.0.0.1"\nport = {port}'},
        )
        for port in ports
    )
    return {
        "listeners": "".join(listeners),
        "receive": f"{receive}processes = 1\nmin_free_bytes = 0\nmax_failures_per_minute = 10\n",
        "peers": f'[[peers]]\nae_title = "WS1"\nhosts = ["{WORKSTATION}/32"]\ndestination = "ws1"\n'
        '[[peers]]\nae_title = "STORESCU"\n',
        "destinations": "".join(
            f'[[destinations]]\nname = "{name}"\nae_title = "ANY"\nhost = "localhost"\nport = {port}\n'
            for name, port in destinations.items()
        ),
        "routes": f"[[routes]]{routes}",
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Site]:
    """The node without a balancer."""
    folder = tmp_path_factory.mktemp("balanced")
    with contextlib.ExitStack() as stack:
        destinations = {
            name: stack.enter_context(storescp(folder / name, material.tls("remote"), "--promiscuous"))
            for name in ("archive", "second-site", "ws1")
        }
        node = stack.enter_context(cleaned(Node(folder / "node", material)))
        node.plain_port = free_port()
        node.start(**write_config((node.tls_port, node.plain_port), destinations))
        yield Site(node, folder, material)


def write_haproxy(folder: Path, port: int, servers: dict[str, str]) -> list[str]:
    [sections] = read_example("Pass TLS through", "haproxy")
    sections = replace_all(
        sections, {**servers, "bind :2762": f"bind 127.0.0.1:{port}", "inter 5s": "inter 100ms"}
    )
    (folder / "haproxy.cfg").write_text(f"global\n    stats socket {folder}/stats\n{sections}")
    return [require_program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]


def write_nginx(folder: Path, port: int, servers: dict[str, str]) -> list[str]:
    [blocks] = read_example("Pass TLS through", "nginx")
    blocks = replace_all(blocks, {**servers, "listen 2762": f"listen 127.0.0.1:{port}"})
    program = require_program("nginx")
    if not STREAM_MODULE.exists():
        reason = "libnginx-mod-stream is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    (folder / "nginx.conf").write_text(
        f"load_module {STREAM_MODULE};\ndaemon off; master_process off; pid {folder}/pid;\n"
        f"error_log {folder}/error.log;\nevents {{}}\nstream {{\n{blocks}}}\n"
    )
    return [program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


@contextlib.contextmanager
def balancing(
    site: Site, folder: Path, write: Callable[[Path, int, dict[str, str]], list[str]]
) -> Iterator[Site]:
    """A load balancer in front of the node."""
    port, ports = free_port(), (site.node.tls_port, site.node.plain_port)
    addresses = ("10.0.0.11:2762", "10.0.0.12:2762")
    servers = {old: f"127.0.0.1:{new}" for old, new in zip(addresses, ports, strict=True)}
    command = write(folder, port, servers)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:

        def listens() -> bool:
            assert process.poll() is None, (folder / "output").read_text()
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens, 20, "the load balancer")
        yield Site(site.node, site.folder, site.material, port)
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize(
    ("write", "number"), [(write_haproxy, 1), (write_nginx, 2)], ids=["haproxy", "nginx"]
)
def test_senders_behind_a_load_balancer_are_known_by_their_own_address(
    site: Site, tmp_path: Path, write: Callable[[Path, int, dict[str, str]], list[str]], number: int
) -> None:
    ours, research = Made(sop=f"1.2.3.{number}", study="1.2.4"), Made(sop=f"1.2.5.{number}", study="1.2.6")
    (tmp_path / "research.dcm").write_bytes(research.file)
    with balancing(site, tmp_path, write) as balanced:
        for _ in range(2):  # the balancer takes one listener after the other
            assert balanced.store(ours, STRANGER) == CALLING_UNKNOWN
            assert balanced.store(ours, WORKSTATION, called="OTHER") == CALLED_UNKNOWN
        assert balanced.store(ours, WORKSTATION) == (0,)
        options = ["-aet", "STORESCU", "-aec", "RESEARCH", *dcmtk.authenticated(site.material, "peer")]
        sent = dcmtk.storescu(balanced.port, *options, files=[tmp_path / "research.dcm"])
        assert sent.returncode == 0, sent.stdout

        eventually(lambda: balanced.arrived("ws1").keys() >= {ours.sop}, 20, "the image is back")
        eventually(lambda: balanced.arrived("archive").keys() >= {ours.sop}, 20, "the archive has it")
        eventually(lambda: balanced.arrived("second-site").keys() >= {research.sop}, 20, "the second site")
    assert research.sop not in balanced.arrived("archive")
    sources = dict(site.node.query("SELECT sop_instance_uid, source FROM instances"))
    assert sources[ours.sop].startswith(f"dicom-tls://{WORKSTATION}:")
    assert sources[research.sop].startswith("dicom-tls://127.0.0.1:")
    refused = {event["address"] for event in site.node.events("association_rejected")}
    assert refused == {WORKSTATION, STRANGER}


def test_health_checks_of_haproxy_find_the_node_up_and_count_as_nothing(site: Site, tmp_path: Path) -> None:
    def count_checks() -> int:
        return len(site.node.events("closed_before_handshake"))

    def read_states() -> dict[str, list[str]]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "stats"))
            sock.sendall(b"show stat\n")
            with sock.makefile() as answer:
                names, *rows = (line.lstrip("# ").split(",") for line in answer if line.strip())
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return {each["svname"]: [each["status"], each["check_status"], each["chkfail"]] for each in found}

    checks = count_checks()
    with balancing(site, tmp_path, write_haproxy) as balanced:
        eventually(lambda: count_checks() > checks + 12, 20, "health checks")
        states = read_states()
        assert states["node1"] == states["node2"] == ["UP", "L4OK", "0"]
        assert balanced.store(Made(sop="1.2.7", study="1.2.8"), WORKSTATION) == (0,)
    # The limit is 10 failures in a minute.
    assert site.node.events("address_refused") == []
    assert not [key for key in count_refusals(site.node) if key.endswith(" 127.0.0.1")]
