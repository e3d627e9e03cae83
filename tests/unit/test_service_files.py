"""The units of config/systemd and the parts of the Debian package, examined without installing them."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ingest.config.model import NodeSettings

CONFIG = Path(__file__).parents[2] / "config"
UNITS = CONFIG / "systemd"
DEBIAN = CONFIG / "debian"
DOCS = CONFIG.parent / "docs"

MOST_EXPOSURE = 2.0


def analyze(*arguments: object) -> str:
    if shutil.which("systemd-analyze") is None:
        reason = "systemd-analyze is missing; apt-get install systemd"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    command = ["systemd-analyze", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr}"
    return done.stdout + done.stderr


def settings(path: Path, section: str) -> dict[str, list[str]]:
    """The settings of a section; a name that is set again keeps all its values."""
    found: dict[str, list[str]] = {}
    text = path.read_text().partition(f"[{section}]\n")[2].partition("\n[")[0]
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a host, with a program that exists."""
    for unit in UNITS.glob("*.service"):
        name = unit.name.replace("@.", "@persist.")
        text = unit.read_text().replace("/opt/dicom-ingest/bin/ingest", "/bin/true")
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("unit", "drop_ins"),
    [
        ("dicom-ingest.service", ()),
        ("dicom-ingest.service", ("port-104.conf", "storage.conf")),
        ("dicom-ingest.service", ("listen-only.conf",)),
        ("dicom-ingest-work@persist.service", ()),
    ],
)
def test_units_are_sound_and_exposed_at_most_two_of_ten(
    installed: Path, unit: str, drop_ins: tuple[str, ...]
) -> None:
    folder = installed / f"{unit}.d"
    folder.mkdir()
    for name in drop_ins:
        text = (UNITS / name).read_text().replace("/opt/dicom-ingest/bin/ingest", "/bin/true")
        (folder / name).write_text(text)
    assert analyze("verify", "--man=no", installed / unit) == ""
    report = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSURE * 10:.0f}", installed / unit)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", report)
    assert exposure is not None, report
    assert 0 < float(exposure[1]) <= MOST_EXPOSURE


def test_both_units_have_the_same_sandbox() -> None:
    node, work = (
        settings(UNITS / name, "Service") for name in ("dicom-ingest.service", "dicom-ingest-work@.service")
    )
    for unit in (node, work):
        # A worker alone has no embedded queue, and must not remove the folder of a node beside it.
        for own in ("ExecStart", "ExecReload", "TimeoutStartSec", "RuntimeDirectory", "RuntimeDirectoryMode"):
            unit.pop(own, None)
    assert work == node


def test_unit_waits_longer_than_the_drain_of_the_default_configuration() -> None:
    from ingest.supervisor.supervisor import END_SECONDS

    (seconds,) = settings(UNITS / "dicom-ingest.service", "Service")["TimeoutStopSec"]
    assert float(seconds) >= NodeSettings().drain_seconds + END_SECONDS


@pytest.mark.parametrize("page", ["install-debian", "install-with-pip"])
def test_first_step_of_the_pages_and_the_unit_name_the_same_folders(page: str) -> None:
    service = settings(UNITS / "dicom-ingest.service", "Service")
    (line,) = re.findall(r"ingest init (.*)", (DOCS / f"how-to/{page}.md").read_text())
    folder, *options = line.split()
    given = dict(zip(options[::2], options[1::2], strict=False))
    assert service["ExecStart"][0].endswith(f"--config {folder}/ingest.toml")
    assert Path(given["--data-dir"]) == Path("/var/lib") / service["StateDirectory"][0]
    assert given["--user"] == service["User"][0]


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_valid_shell(name: str) -> None:
    done = subprocess.run(["sh", "-n", str(DEBIAN / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_purge_keeps_a_data_folder_that_cannot_be_searched(tmp_path: Path) -> None:
    data, programs = tmp_path / "data", tmp_path / "bin"
    data.mkdir()
    programs.mkdir()
    (programs / "find").write_text("#!/bin/sh\nexit 1\n")
    (programs / "find").chmod(0o755)
    functions = (DEBIAN / "postrm").read_text().partition("has_debconf=false")[0]
    for path, expected in ((f"{programs}:{os.environ['PATH']}", "holds"), (os.environ["PATH"], "empty")):
        script = f'{functions}\nif is_empty "{data}"; then echo empty; else echo holds; fi'
        done = subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True)
        assert done.stdout.strip() == expected


def test_control_file_of_the_package_can_be_parsed() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string("[control]\n" + (DEBIAN / "control").read_text())
    assert parser["control"]["Package"] == "dicom-ingest"
