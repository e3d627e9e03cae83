"""docs/how-to/install-with-pip.md on a minimal Debian: its commands are run as they are printed."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.install.artefacts import ROOT, Dist
from tests.install.chroots import Chroot
from tests.support.nodes import eventually
from tests.support.pages import read_blocks
from tests.support.ports import free_port

PAGE = ROOT / "docs/how-to/install-with-pip.md"
CONFIG = "/etc/dicom-ingest/ingest.toml"
PKI = "/etc/dicom-ingest/pki"

# systemd is not process 1 of a chroot. What it does with the unit is tested with the unit.
PREAMBLE = "set -euxo pipefail\nsystemctl() { :; }\ncd /release\n"


def read_commands(*headings: str) -> str:
    """Return the commands of some sections of the page."""
    blocks = [block.commands for heading in headings for block in read_blocks(PAGE, heading)]
    assert blocks
    return "\n".join(blocks)


def run_commands(machine: Chroot, dist: Dist, text: str) -> str:
    text = re.sub(r"dicom_ingest-[\d.]+-….whl", dist.wheel.name, text)
    return machine.run("bash", "-c", PREAMBLE + text, timeout=600)


@contextmanager
def running(machine: Chroot, port: int, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run the node as its unit does: as the user of the service."""
    command = f"exec runuser -u dicom-ingest -- /opt/dicom-ingest/bin/ingest serve -c {CONFIG}"
    with log.open("w") as stream:
        process = machine.start(
            "bash",
            "-c",
            command,
            environ=[f"INGEST_LISTENERS__0__PORT={port}", f"INGEST_CONSOLE__PORT={free_port()}"],
            stderr=stream,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready "), log.read_text()
        yield process
    finally:
        machine.send_signal(process, signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()


def test_page_leads_from_a_minimal_debian_to_a_stored_image(
    dist: Dist, make_chroot: Callable[..., Chroot], tmp_path: Path
) -> None:
    machine = make_chroot("bookworm")
    for file in (dist.wheel, dist.constraints):
        machine.add(file, f"/release/{file.name}")
    name = machine.run("hostname").strip()
    (machine.root / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n")

    said = run_commands(machine, dist, read_commands("Install with pip", "Install", "Configure"))
    assert "compared byte for byte in the remote" in said
    assert f"{CONFIG}: sound" in said
    start, look = (block.commands for block in read_blocks(PAGE, "Start"))
    # The node is not started by systemd here, and so its state is asked below.
    run_commands(machine, dist, start.replace("ingest status", "true ingest status"))
    unit = (machine.root / "etc/systemd/system/dicom-ingest.service").read_text()
    assert "Type=notify" in unit
    data = machine.root / "var/lib/dicom-ingest"
    assert data.stat().st_mode & 0o777 == 0o750
    assert (machine.root / PKI.lstrip("/") / "node.key").stat().st_mode & 0o077 == 0

    port = free_port()
    with running(machine, port, tmp_path / "log"):
        found = "FILE=$(find /opt/dicom-ingest -name CT_small.dcm)\n"
        said = run_commands(machine, dist, found + look.replace("2762", str(port)))
        assert "1 of 1 stored" in said
        assert "token: ingest_" in said
        listing = ("ingest", "instances", "-c", CONFIG, "--json")
        assert eventually(lambda: "1.3.6.1.4.1.5962" in machine.run(*listing), 60)
    assert list((data / "store").rglob("*.dcm"))

    run_commands(machine, dist, read_commands("Update", "Install without the internet"))
    assert "ingest, version" in machine.run("ingest", "--version")
    run_commands(machine, dist, read_commands("Remove"))
    assert not (machine.root / "opt/dicom-ingest").exists()
    assert list((data / "store").rglob("*.dcm"))
