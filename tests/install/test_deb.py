"""The Debian package: built, installed by apt, run by a real systemd, upgraded, removed and purged.

The tests of this file share one machine and run in their order: each begins with what the one before it left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.install.artefacts import ROOT, Dist, require_programs, run
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.pages import SHELL, read_blocks

if TYPE_CHECKING:
    from tests.install.chroots import Chroot
    from tests.install.machines import Machine

RELEASE = os.environ.get("DEBIAN") or "bookworm"
"""`make test-install DEBIAN=trixie` builds and installs the package on another release, in a chroot."""

NODE = "dicom-ingest.service"
CONFIG = "/etc/dicom-ingest/ingest.toml"
DATA = "/var/lib/dicom-ingest"
DROP_INS = f"/etc/systemd/system/{NODE}.d"

PEER = """
[node]
ae_title = "PACS"
data_dir = "var"
[[listeners]]
host = "127.0.0.1"
port = 11113
tls = false
[receive]
processes = 1
min_free_bytes = 0
"""

PAGE = ROOT / "docs/how-to/install-debian.md"
UPGRADE = ROOT / "docs/how-to/upgrade.md"
PREAMBLE = r"""
# There is no sudo in a minimal system, and root needs none.
sudo() {
  local code=0 command=("$@")
  if [ "$1" = -u ]; then command=(runuser -u "$2" -- "${@:3}"); fi
  "${command[@]}" || code=$?
  # A node that a person should look at, or that has no ledger yet, is no fault of the page.
  if [ "$*" = "-u dicom-ingest ingest status" ] && [ "$code" -le 2 ]; then return 0; fi
  return "$code"
}
"""
FIRST_IMAGE = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
"""The SOP Instance UID of CT_small.dcm."""

MORE = """
[receive]
processes = 2
min_free_bytes = 0

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "localhost"
port = 11113
tls = false

[[routes]]
to = ["pacs"]
"""


@pytest.fixture(scope="module")
def deb(
    request: pytest.FixtureRequest,
    make_base: Callable[[str], Chroot],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The package of this checkout, or the one that INGEST_DEB names."""
    if ready := os.environ.get("INGEST_DEB"):
        return Path(ready)
    dist: Dist = request.getfixturevalue("dist")
    folder = tmp_path_factory.mktemp("deb")
    if _read_own_release() != RELEASE:
        return _build_in_chroot(dist, make_base(RELEASE), folder)
    require_programs("dpkg-deb", "dpkg-shlibdeps", "strip")
    script = ROOT / "config" / "debian" / "build.py"
    folders = ["--work", folder / "work", "--output", folder]
    return Path(run(["/usr/bin/python3", script, "--wheel", dist.wheel, *folders], timeout=480).split()[-1])


def _read_own_release() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _build_in_chroot(dist: Dist, base: Chroot, folder: Path) -> Path:
    from tests.install.chroots import copied

    with copied(base, folder / "builder") as chroot:
        chroot.apt_install("gcc", "libc6-dev", "libssl-dev", "python3-dev", "dpkg-dev", "binutils")
        chroot.add(dist.sdist, "/srv/sdist.tar.gz")
        build = "mkdir /srv/src && tar -xzf /srv/sdist.tar.gz -C /srv/src --strip-components=1 && "
        build += "python3 /srv/src/config/debian/build.py --output /srv/dist"
        chroot.run("sh", "-c", build, environ=["SOURCE_DATE_EPOCH=1767225600"], timeout=600)
        (made,) = (chroot.root / "srv/dist").glob("*.deb")
        return Path(shutil.move(made, folder))


@pytest.fixture(scope="module")
def content(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package, with its control files in DEBIAN."""
    folder = tmp_path_factory.mktemp("content") / "root"
    run(["dpkg-deb", "-R", deb, folder])
    return folder


@pytest.fixture(scope="module")
def machine(
    deb: Path, make_base: Callable[[str], Chroot], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A running Debian on which apt has just installed the package."""
    from tests.install.chroots import copied
    from tests.install.machines import booted

    with copied(make_base(RELEASE), tmp_path_factory.mktemp("machine") / "root") as chroot:
        # It may be lost with the machine: waits for the disk would take most of the time of this file.
        (chroot.root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        chroot.apt_install("systemd", "systemd-sysv", "logrotate", "procps")
        chroot.add(deb, f"/srv/dist/{deb.name}")
        # What a person answers, and what a small machine has in its settings.
        answers = 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n'
        (chroot.root / "etc/apt/apt.conf.d/answers").write_text(answers)
        (install,) = read_commands("Install")
        chroot.run("bash", "-euc", f"{PREAMBLE}\ncd /srv\n{install}", timeout=600)
        # It kept daemons from starting in a system without a service manager.
        (chroot.root / "usr/sbin/policy-rc.d").unlink()
        with booted(chroot) as made:
            # As an installed Debian has it, so that `hostname -f` has an answer.
            made.write("/etc/hosts", f"127.0.0.1 localhost {made.run('hostname').strip()}\n")
            yield made


def read_commands(heading: str) -> list[str]:
    """Return the blocks of commands below a heading of the page."""
    return [block.commands for block in read_blocks(PAGE, heading) if block.language in SHELL]


def follow(machine: Machine, commands: str) -> str:
    """Run commands of the page as they are printed."""
    return machine.run("bash", "-euc", PREAMBLE + commands)


def ingest(machine: Machine, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command as the user of the node, as the pages say."""
    return machine.call("runuser", "-u", "dicom-ingest", "--", "ingest", *arguments)


def list_processes(machine: Machine) -> dict[int, dict[str, str]]:
    """Process id to the fields of /proc/PID/status, for each process of the unit."""
    group = machine.show(NODE, "ControlGroup")
    found = {}
    for pid in machine.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split():
        status = machine.call("cat", f"/proc/{pid}/status").stdout
        fields = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
        if fields:
            found[int(pid)] = fields
    return found


def count_stored(machine: Machine) -> int:
    done = ingest(machine, "instances", "--json")
    # A node that has just started may have no ledger yet.
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return sum(json.loads(line)["state"] == "stored" for line in lines if line.startswith("{"))


def send(machine: Machine, sop: str, *, port: int = 2762) -> None:
    """Send one instance as a scanner with its own certificate."""
    made = Made(sop=sop)
    machine.path("/srv/image.dcm").write_bytes(made.meta + made.data_set)
    pair = ("--tls-cert", "/srv/scanner.crt", "--tls-key", "/srv/scanner.key")
    trusted = ("--tls-trusted", "/etc/dicom-ingest/pki/node.crt")
    machine.run("ingest", "send", "localhost", port, "/srv/image.dcm", *pair, *trusted)


def read_journal(machine: Machine, *arguments: str) -> list[dict[str, str]]:
    lines = machine.run("journalctl", "--unit", NODE, "--output", "json", *arguments).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_package_names_no_machine_no_index_and_no_folder_of_the_build(content: Path, deb: Path) -> None:
    words = [os.fsencode(name) for name in (ROOT, deb.parent, *_list_index_hosts()) if len(str(name)) > 4]
    found = [
        (path.relative_to(content), word)
        for path in content.rglob("*")
        if path.is_file() and not path.is_symlink()
        for word in words
        if word in path.read_bytes()
    ]
    assert found == []
    assert not list(content.rglob("direct_url.json")), "pip's note of the folder that a wheel came from"
    assert not list(content.rglob("pip")), "the package brings no installer"


def _list_index_hosts() -> set[str]:
    """The hosts of the indexes that this machine installs from, but for the public one."""
    settings = run(["/usr/bin/python3", "-m", "pip", "config", "list"], check=False)
    settings += " ".join(value for name, value in os.environ.items() if name.startswith("PIP_"))
    return {*re.findall(r"https?://(?:[^@/\s]*@)?([\w.-]+)", settings)} - {"pypi.org"}


def test_extensions_use_the_openssl_of_debian_and_programs_their_own_python(content: Path) -> None:
    control = (content / "DEBIAN/control").read_text()
    depends = re.search(r"^Depends: (.*)$", control, re.MULTILINE)
    assert depends is not None
    assert {"libssl3", "libc6", "libpq5", "adduser", "python3"} <= {
        each.split()[0] for each in depends[1].split(", ")
    }
    # Nothing brings a copy of OpenSSL, which the updates of Debian would not reach.
    assert not [path for path in content.rglob("*.so*") if re.match(r"lib(ssl|crypto)\b", path.name)]
    version = run(["/usr/bin/python3", "-c", "import sys; print('3.%d' % sys.version_info[1])"]).strip()
    following = f"3.{int(version.partition('.')[2]) + 1}"
    assert f"python3 (>= {version}), python3 (<< {following}~)" in depends[1]
    home = content / "usr/lib/dicom-ingest"
    assert os.readlink(home / "bin/python") == f"/usr/bin/python{version}"
    linked = [
        run(["readelf", "-d", path]) for path in home.glob("lib/python3*/site-packages/ingest/ext/tls_*.so")
    ]
    assert linked
    assert all("[libssl.so.3]" in each and "RUNPATH" not in each for each in linked), "Debian updates it"
    assert (home / "bin/ingest").read_text().splitlines()[0] == "#!/usr/lib/dicom-ingest/bin/python -I"
    assert sorted(path.name for path in (home / "bin").iterdir()) == ["ingest", "python", "python3"]


def test_installation_makes_user_and_folders_and_starts_nothing(machine: Machine) -> None:
    assert machine.call("systemctl", "is-enabled", NODE).stdout.strip() == "disabled"
    assert machine.call("systemctl", "is-active", NODE).stdout.strip() == "inactive"
    assert machine.call("pgrep", "-u", "dicom-ingest").stdout == ""
    assert machine.run("getent", "passwd", "dicom-ingest").strip().endswith(f"{DATA}:/usr/sbin/nologin")
    shown = machine.run("stat", "-c", "%a %U %G", DATA, "/etc/dicom-ingest", "/etc/dicom-ingest/pki")
    assert shown.splitlines() == [
        "750 dicom-ingest dicom-ingest",
        "750 root dicom-ingest",
        "750 dicom-ingest dicom-ingest",
    ]
    assert not machine.path(CONFIG).exists()
    assert machine.run("ingest", "--version").startswith("ingest")
    assert machine.path("/usr/share/man/man1/ingest-serve.1.gz").is_file()
    assert "_ingest_completion" in machine.path("/usr/share/bash-completion/completions/ingest").read_text()


def test_node_under_systemd_receives_stores_forwards_and_shows_itself(
    machine: Machine, tmp_path: Path
) -> None:
    # Given the first step of the page
    initialize, check, start = read_commands("Configure and start")
    follow(machine, initialize)
    pki = "/etc/dicom-ingest/pki"
    assert machine.run("stat", "-c", "%a %U %G", CONFIG, f"{pki}/node.key").splitlines() == [
        "640 root dicom-ingest",
        "600 dicom-ingest dicom-ingest",
    ]
    machine.run(
        "ingest", "certs", "new", "/srv/scanner", "--name", "scanner", "--trust", f"{pki}/trusted.crt"
    )
    configuration = machine.path(CONFIG)
    configuration.write_text(configuration.read_text() + MORE)
    # and an archive without a sandbox
    machine.write("/srv/pacs/ingest.toml", PEER)
    machine.start("ingest", "serve", "-c", "/srv/pacs/ingest.toml", log=tmp_path / "pacs.log")
    assert "sound" in follow(machine, check)
    # and a filter that kills. By default a call outside it fails, and nobody might notice.
    machine.write(f"{DROP_INS}/kill.conf", "[Service]\nSystemCallErrorNumber=kill\n")
    machine.run("systemctl", "daemon-reload")
    # When the node starts as the page says
    follow(machine, start)
    # Then it has reported that it is ready, because the start has ended
    assert machine.show(NODE, "StatusText").startswith("configuration 1; processes: ")
    assert machine.show(NODE, "WatchdogUSec") == "2min"
    # And it takes the first image, and names the console
    first, console = read_commands("See the first image")
    said = follow(machine, f"FILE=$(find /usr/lib/dicom-ingest -name CT_small.dcm)\n{first}\n{console}")
    assert "1 of 1 stored" in said
    assert "http://127.0.0.1:8080/" in said
    assert "token: ingest_" in said
    eventually(lambda: count_stored(machine) == 1, 20, "stored")
    rows = ["runuser", "-u", "dicom-ingest", "--", "ingest", "deliveries", "--state", "delivered", "--json"]
    eventually(lambda: FIRST_IMAGE in machine.run(*rows), 30, "delivered")
    ready = "import urllib.request as u; print(u.urlopen('http://localhost:8080/ready', timeout=5).status)"
    eventually(lambda: machine.call("python3", "-c", ready).stdout.strip() == "200", 30, "console")
    status = ingest(machine, "status")
    assert status.returncode == 0, status.stdout


def test_every_process_is_confined(machine: Machine) -> None:
    processes = list_processes(machine)
    names = {fields["Name"] for fields in processes.values()}
    roles = {f"ingest-{role}" for role in ("listen", "persist", "forward", "monitor", "console")}
    assert roles <= names
    assert any(name.startswith("valkey") for name in names)
    user = machine.run("id", "-u", "dicom-ingest").strip()
    for fields in processes.values():
        assert fields["Seccomp"] == "2", "a filter of system calls"
        assert fields["NoNewPrivs"] == "1"
        assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert fields["Uid"].split()[0] == user
    main = machine.show(NODE, "MainPID")
    host = machine.run("readlink", "/proc/1/ns/user")
    assert machine.run("readlink", f"/proc/{main}/ns/user") != host, "PrivateUsers"
    mounts = machine.run("cat", f"/proc/{main}/mountinfo").splitlines()
    writable = {line.split()[4] for line in mounts if "rw" in line.split()[5].split(",")}
    assert {DATA, "/var/log/dicom-ingest"} <= writable
    assert writable.isdisjoint({"/", "/usr", "/etc", "/etc/dicom-ingest", "/var"})
    # Nothing of the node has met the filter: no process died, nothing was refused.
    events = [entry["MESSAGE"] for entry in read_journal(machine, "--priority", "warning")]
    assert not [
        event for event in events if re.search(r"child_died|not permitted|EPERM|failed", str(event))
    ], events


def test_journal_has_each_event_with_its_priority(machine: Machine) -> None:
    ready = [entry for entry in read_journal(machine) if "ready" in entry["MESSAGE"]]
    assert {entry["PRIORITY"] for entry in ready} == {"6"}
    assert not [entry for entry in ready if entry["MESSAGE"].startswith("<")]


def test_reload_succeeds_or_fails_with_the_reasons(machine: Machine) -> None:
    configuration = machine.path(CONFIG)
    text = configuration.read_text()
    machine.run("systemctl", "reload", NODE)
    assert machine.show(NODE, "StatusText").startswith("configuration 2; ")
    configuration.write_text(text + "\n[nonsense]\nkey = 1\n")
    refused = machine.call("systemctl", "reload", NODE)
    configuration.write_text(text)
    assert refused.returncode != 0
    assert machine.show(NODE, "ActiveState") == "active"
    assert machine.show(NODE, "StatusText").startswith("configuration 2; ")
    assert any("nonsense" in str(entry["MESSAGE"]) for entry in read_journal(machine))
    messages = " ".join(str(entry["MESSAGE"]) for entry in read_journal(machine))
    assert "child_died" not in messages, "a call outside the filter"
    machine.path(f"{DROP_INS}/kill.conf").unlink()
    machine.run("systemctl", "daemon-reload")


def test_log_file_is_opened_again_after_its_rotation(machine: Machine) -> None:
    configuration = machine.path(CONFIG)
    text = configuration.read_text()
    log = machine.path("/var/log/dicom-ingest/ingest.log")
    configuration.write_text(text + '\n[log]\nfile = "/var/log/dicom-ingest/ingest.log"\n')
    machine.run("systemctl", "restart", NODE)
    machine.run("logrotate", "--force", "/etc/logrotate.d/dicom-ingest")
    rotated = log.with_name("ingest.log.1")
    eventually(rotated.exists, 5, "rotated")
    send(machine, "1.2.3.11")
    eventually(lambda: log.exists() and "association" in log.read_text(), 10, "a line in the new file")
    configuration.write_text(text)
    machine.run("systemctl", "restart", NODE)


def test_supervisor_that_dies_or_hangs_is_started_again_and_a_child_is_replaced(machine: Machine) -> None:
    # A child that the kernel kills is the supervisor's concern (OOMPolicy=continue).
    main = machine.show(NODE, "MainPID")
    victim = next(pid for pid, each in list_processes(machine).items() if each["Name"] == "ingest-forward")
    machine.run("kill", "-KILL", victim)
    eventually(lambda: victim not in list_processes(machine), 10, "it is gone")
    assert machine.show(NODE, "MainPID") == main
    # A supervisor that dies
    machine.run("kill", "-KILL", main)
    eventually(lambda: machine.show(NODE, "NRestarts") == "1", 20, "restart")
    eventually(lambda: machine.show(NODE, "ActiveState") == "active", 20, "active")
    # A supervisor that hangs
    machine.write(f"{DROP_INS}/watchdog.conf", "[Service]\nWatchdogSec=3\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", NODE)
    machine.run("kill", "-STOP", machine.show(NODE, "MainPID"))
    eventually(lambda: machine.show(NODE, "NRestarts") == "1", 30, "restart by the watchdog")
    eventually(lambda: machine.show(NODE, "ActiveState") == "active", 20, "active")
    assert any("Watchdog timeout" in str(entry["MESSAGE"]) for entry in read_journal(machine))
    machine.path(f"{DROP_INS}/watchdog.conf").unlink()
    machine.run("systemctl", "daemon-reload")
    send(machine, "1.2.3.12")
    eventually(lambda: count_stored(machine) == 3, 20, "stored")


def test_port_104_needs_the_drop_in(machine: Machine) -> None:
    configuration = machine.path(CONFIG)
    text = configuration.read_text()
    configuration.write_text(text + '\n[[listeners]]\nhost = "127.0.0.1"\nport = 104\ntls = "node"\n')
    refused = machine.call("systemctl", "restart", NODE)
    assert refused.returncode != 0
    assert machine.show(NODE, "ExecMainStatus") == "3"
    assert machine.show(NODE, "ActiveState") == "failed", "a restart would fail again, so there is none"
    drop_in = machine.path(f"{DROP_INS}/port-104.conf")
    shutil.copy(machine.path("/usr/share/dicom-ingest/systemd/port-104.conf"), drop_in)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", NODE)
    send(machine, "1.2.3.13", port=104)
    eventually(lambda: count_stored(machine) == 4, 20, "stored")
    only = 1 << 10  # CAP_NET_BIND_SERVICE
    assert {int(fields["CapBnd"], 16) for fields in list_processes(machine).values()} == {only}
    configuration.write_text(text)
    drop_in.unlink()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", NODE)


def test_node_starts_as_soon_as_a_port_is_free(machine: Machine, tmp_path: Path) -> None:
    machine.run("systemctl", "stop", NODE)
    holder = "import os, socket, time; s = socket.create_server(('', 2762))\nopen('/srv/taken', 'w')\n"
    holder += "while os.path.exists('/srv/taken'): time.sleep(0.05)"
    machine.start("python3", "-c", holder, log=tmp_path / "holder.log")
    eventually(lambda: machine.path("/srv/taken").exists(), 10, "the port is taken")
    assert machine.call("systemctl", "start", NODE).returncode != 0
    assert machine.show(NODE, "ExecMainStatus") == "1"
    machine.path("/srv/taken").unlink()
    eventually(lambda: machine.show(NODE, "ActiveState") == "active", 20, "active")


def test_commands_reach_the_queue_of_a_node_whose_data_folder_can_hold_no_socket(machine: Machine) -> None:
    configuration = machine.path(CONFIG)
    text = configuration.read_text()
    too_long = f"{DATA}/{'long' * 25}"
    changed = re.sub(r'^data_dir = ".*"', f'data_dir = "{too_long}"', text, flags=re.MULTILINE)
    assert changed != text
    configuration.write_text(changed)
    machine.run("systemctl", "restart", NODE)
    assert "valkey.sock" in machine.run("find", "/run/dicom-ingest")
    # In the private /tmp of the unit it would not be found.
    eventually(lambda: ingest(machine, "status").returncode == 0, 30, "well")
    configuration.write_text(text)
    machine.run("systemctl", "restart", NODE)
    machine.run("rm", "-r", too_long)


def test_role_of_several_hosts_runs_in_the_same_sandbox(machine: Machine) -> None:
    machine.run("systemctl", "start", "dicom-ingest-work@forward")
    assert machine.show("dicom-ingest-work@forward", "StatusText").startswith("configuration 1; ")
    machine.run("systemctl", "reload", "dicom-ingest-work@forward")
    eventually(
        lambda: machine.show("dicom-ingest-work@forward", "StatusText").startswith("configuration 2; "),
        20,
        "reloaded",
    )
    machine.run("systemctl", "stop", "dicom-ingest-work@forward")
    assert machine.show("dicom-ingest-work@forward", "ExecMainStatus") == "0"


def test_upgrade_keeps_images_and_configuration_and_starts_the_node_again(
    machine: Machine, content: Path, tmp_path: Path
) -> None:
    # It runs, but does not start at boot.
    machine.run("systemctl", "disable", NODE)
    before = machine.show(NODE, "MainPID")
    configuration = machine.path(CONFIG).read_text()
    newer = tmp_path / "newer"
    shutil.copytree(content, newer, symlinks=True)
    control = newer / "DEBIAN/control"
    version = re.search(r"^Version: (.*)$", control.read_text(), re.MULTILINE)
    assert version is not None
    control.write_text(control.read_text().replace(version[0], f"{version[0]}.1"))
    run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", newer, machine.path("/srv/newer.deb")])
    # Beforehand the newer release says what it would do, as the page about upgrades shows.
    unpacking = [block for block in read_blocks(UPGRADE, "Upgrade one host") if "dpkg -x" in block.text]
    command = unpacking[0].text.replace("dicom-ingest_NEWER.deb", "/srv/newer.deb")
    assert follow(machine, command).endswith("nothing to do\n")
    machine.run("dpkg", "--install", "/srv/newer.deb")
    assert machine.run("dpkg-query", "-W", "-f", "${Version}", "dicom-ingest") == f"{version[1]}.1"
    assert machine.show(NODE, "ActiveState") == "active"
    assert machine.show(NODE, "MainPID") != before
    assert machine.path(CONFIG).read_text() == configuration
    assert count_stored(machine) == 4
    send(machine, "1.2.3.14")
    eventually(lambda: count_stored(machine) == 5, 20, "stored")


def test_removal_that_is_aborted_starts_the_node_again(machine: Machine) -> None:
    # These are the calls of dpkg if another package keeps the removal from going on.
    machine.run("/var/lib/dpkg/info/dicom-ingest.prerm", "remove")
    assert machine.show(NODE, "ActiveState") == "inactive"
    machine.run("/var/lib/dpkg/info/dicom-ingest.postinst", "abort-remove", "in-favour", "other", "1")
    assert machine.show(NODE, "ActiveState") == "active"


COMMANDS_OF_ROOT = {
    "upgrade": "", "check": "", "status": "", "metrics": "", "sweep": "",
    "studies": "", "instances": "", "trace": "1.2.3.12", "callers": "", "refusals": "",
    "deliveries list": "", "deliveries release": "--all", "retry": "--state delivered --all",
    "drop": "--all --yes", "pause": "pacs --reason test", "resume": "pacs",
    "deliver": "--to pacs --all --again",
    "quarantine list": "", "quarantine compare": "1", "quarantine release": "1", "quarantine retry": "--all",
    "quarantine drop": "1 --yes", "commitment list": "", "commitment sent": "", "retention": "",
    "completed": "",
    "ledger verify": "", "ledger rebuild": "", "ledger reindex": "",
    "console user add": "root --role admin", "console user passwd": "root", "console user list": "",
    "console user role": "root admin", "console user remove": "root",
    "console token add": "root --role metrics", "console token list": "", "console token remove": "root",
    "webhooks list": "", "webhooks events": "", "webhooks test": "", "webhooks replay": "ris",
    "console": "", "alerts test": "", "alerts list": "", "audit status": "", "audit send-test": "",
    "config show": "", "routes test": "/srv/image.dcm", "reload": "",
}  # fmt: skip
"""Every command that reads a configuration and ends by itself, with its arguments."""

COMMANDS_WITHOUT_DATA = {
    "init", "serve", "listen", "work", "send", "echo", "certs", "config import-orthanc", "demo", "completion",
}  # fmt: skip
"""Commands that touch no data folder, or run as the user of the node."""


def list_commands() -> set[str]:
    import click

    from ingest.cli import main

    def leaves(command: click.Command, name: str) -> Iterator[str]:
        if not isinstance(command, click.Group):
            yield name
            return
        if command.invoke_without_command and name:
            yield name
        for each in command.commands:
            yield from leaves(command.commands[each], f"{name} {each}".strip())

    return {name for name in leaves(main, "") if not {name, name.split()[0]} & COMMANDS_WITHOUT_DATA}


def test_commands_of_root_leave_no_file_that_the_node_cannot_use(machine: Machine) -> None:
    assert list_commands() == COMMANDS_OF_ROOT.keys()
    # Given a stopped node with alerts and audit messages whose receivers are away
    machine.run("systemctl", "stop", NODE)
    configuration = machine.path(CONFIG)
    text = configuration.read_text()
    receiver = 'url = "https://localhost:9/"\nsecret_file = "/srv/secret"\n'
    away = f'[[alerts]]\nname = "ward"\ntype = "webhook"\n{receiver}'
    away += f'[[webhooks]]\nname = "ris"\nevents = ["delivery.dead"]\n{receiver}'
    away += '[audit]\nhost = "localhost"\nport = 9\n[retention]\nkeep_days = 30\n'
    configuration.write_text(f"{text}\n{away}")
    machine.write("/srv/secret", "secret\n")
    machine.write("/srv/password", "long enough for a test\n")
    machine.run("chown", "dicom-ingest:", "/srv/secret")
    machine.run("chmod", "600", "/srv/secret")
    # and without the files that it makes at its start: root must not make them in its place
    for name in ("format.json", "ledger.db.lock", "run", "console"):
        machine.run("rm", "-rf", f"{DATA}/{name}")
    # When root runs every command
    strange = {}
    for name, arguments in COMMANDS_OF_ROOT.items():
        line = f"ingest {name} {arguments} </srv/password"
        said = machine.call("sh", "-c", line).stdout
        assert "Traceback" not in said, f"{line}\n{said}"
        assert "Usage:" not in said, f"{line}\n{said}"
        if found := machine.run("find", DATA, "!", "-user", "dicom-ingest"):
            strange[line] = found
            machine.run("chown", "-R", "dicom-ingest:dicom-ingest", DATA)
    # Then the node can use every file
    assert strange == {}
    configuration.write_text(text)
    machine.run("rm", "-rf", f"{DATA}/console")
    machine.run("systemctl", "start", NODE)


def test_removal_keeps_everything_and_a_purge_keeps_the_images(machine: Machine) -> None:
    machine.run("dpkg", "--remove", "dicom-ingest")
    assert machine.call("systemctl", "is-active", NODE).stdout.strip() in {"inactive", "unknown", "failed"}
    assert machine.call("pgrep", "-u", "dicom-ingest").stdout == ""
    assert machine.path(CONFIG).exists()
    images = list(machine.path(DATA).glob("store/**/*.dcm"))
    assert len(images) == 5
    said = machine.run("dpkg", "--purge", "dicom-ingest")
    assert f"{DATA} stays, because it holds images" in said
    assert list(machine.path(DATA).glob("store/**/*.dcm")) == images
    assert not machine.path("/etc/dicom-ingest").exists()
    assert not machine.path("/var/log/dicom-ingest").exists()
    assert not machine.path("/usr/lib/dicom-ingest").exists()
    assert not machine.path(f"/etc/systemd/system/multi-user.target.wants/{NODE}").is_symlink()


def test_purge_takes_no_folder_for_empty_that_it_cannot_search(machine: Machine, content: Path) -> None:
    images = list(machine.path(DATA).glob("store/**/*.dcm"))
    assert images
    machine.write("/srv/failing/find", "#!/bin/sh\necho 'find: Input/output error' >&2\nexit 1\n")
    machine.path("/srv/failing/find").chmod(0o755)
    shutil.copy(content / "DEBIAN/postrm", machine.path("/srv/postrm"))
    path = "PATH=/srv/failing:/usr/sbin:/usr/bin:/sbin:/bin"
    said = machine.run("env", path, "/srv/postrm", "purge")
    assert "Input/output error" in said
    assert f"{DATA} stays" in said
    assert list(machine.path(DATA).glob("store/**/*.dcm")) == images


def test_purge_removes_images_only_after_a_yes(machine: Machine) -> None:
    machine.run("dpkg", "--install", "/srv/newer.deb")
    assert machine.show(NODE, "ActiveState") == "inactive", "it was not running before"
    machine.write("/srv/answer", "dicom-ingest dicom-ingest/remove-images boolean true\n")
    machine.run("debconf-set-selections", "/srv/answer")
    machine.run("dpkg", "--purge", "dicom-ingest")
    assert not machine.path(DATA).exists()


def test_purge_removes_empty_folders_without_a_question(machine: Machine) -> None:
    machine.path(f"{DATA}/store/1.2").mkdir(parents=True)
    machine.run("/srv/postrm", "purge")
    assert not machine.path(DATA).exists()
