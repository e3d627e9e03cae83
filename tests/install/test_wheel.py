"""The wheel, installed into fresh virtual environments that know nothing of the checkout."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.install.artefacts import BUILD_SECONDS, ROOT, Dist, Venv, create_venv, run

NODE = """
[node]
data_dir = "var"
[[listeners]]
host = "127.0.0.1"
port = 0
tls = "node"
[tls.node]
certificate = "node.crt"
private_key = "node.key"
trusted = ["trusted.crt"]
[receive]
processes = 1
min_free_bytes = 0
"""

CONSOLE = '[console]\nhost = "127.0.0.1"\nport = 0\n'


def write_node(venv: Venv, folder: Path, more: str = "") -> Path:
    """Make a configuration with its certificate by the commands of the wheel."""
    folder.mkdir()
    made = venv.call(
        "certs", "new", folder / "node", "--name", "localhost", "--trust", folder / "trusted.crt"
    )
    assert made.returncode == 0, made.stdout
    (folder / "ingest.toml").write_text(NODE + more)
    return folder / "ingest.toml"


@contextlib.contextmanager
def running(venv: Venv, config: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a node until the block ends; fails if the node does not end well."""
    log = config.parent / "log"
    process = venv.start("serve", "-c", config, log=log)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready "), log.read_text()
        yield process
    finally:
        process.terminate()
        code = process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
    assert code == 0, log.read_text()


def list_processes(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def list_libraries(pid: int, name: str) -> set[str]:
    """Return the files of a library in a process. A copy in a wheel is named `libssl-6a9b88ec.so.3`."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    files = {line.split()[-1] for line in maps.splitlines() if ".so" in line}
    return {path for path in files if re.match(rf"{name}[-.]", Path(path).name)}


def require_one_openssl(venv: Venv, pids: Iterable[int]) -> None:
    """Check that no process has more than one libssl or libcrypto, and that it is the one of the system."""
    of_python = venv.run(
        "-c",
        "import _ssl; print(*sorted({line.split()[-1] for line in open('/proc/self/maps')"
        " if '/libssl.so' in line or '/libcrypto.so' in line}))",
    ).split()
    for pid in pids:
        for name in ("libssl", "libcrypto"):
            found = list_libraries(pid, name)
            assert len(found) <= 1, found
            assert not any(Path(path).is_relative_to(venv.folder) for path in found), found
            if of_python:  # this Python has no OpenSSL of its own inside
                assert found <= set(of_python)


def test_demo_runs_from_the_wheel_alone(venv: Venv) -> None:
    done = venv.call("demo")
    assert done.returncode == 0, done.stdout
    assert "compared byte for byte in the remote" in done.stdout
    where = venv.run("-c", "import ingest; print(ingest.__file__)").strip()
    assert Path(where).is_relative_to(venv.folder)


def test_version_and_help_are_told_quickly(venv: Venv, dist: Dist) -> None:
    lines = venv.call("--version").stdout.splitlines()
    version = dist.wheel.name.split("-")[1]
    assert lines[0] == f"ingest, version {version}"
    said = dict(line.split(maxsplit=1) for line in lines[1:])
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)? of \d{4}-\d\d-\d\d", said["commit"])
    assert said["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert said["OpenSSL"].startswith("3.")
    assert said["extras"] == "none"
    assert venv.run("-c", "import ingest; print(ingest.__version__)").strip() == version
    venv.call("--help")  # Python compiles the modules
    before = os.times()
    assert venv.call("--help").returncode == 0
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.25


def test_manual_pages_and_example_files_are_installed(venv: Venv) -> None:
    share = venv.folder / "share"
    assert ".TH" in (share / "man/man1/ingest-serve.1").read_text()
    example = share / "dicom-ingest/ingest.toml"
    shown = venv.call("config", "show", "-c", example)
    assert "pki/node.crt does not exist" in shown.stdout or shown.returncode == 0, shown.stdout


def test_running_node_has_one_openssl_and_it_is_that_of_the_system(venv: Venv, tmp_path: Path) -> None:
    config = write_node(venv, tmp_path / "node")
    with running(venv, config) as node:
        children = list_processes(node.pid)
        assert children
        require_one_openssl(venv, (node.pid, *children))
        with_tls = [pid for pid in children if list_libraries(pid, "libssl")]
        assert with_tls, "no process has loaded the extensions"


def test_alert_by_webhook_and_metrics_need_no_extra(venv: Venv, tmp_path: Path) -> None:
    from tests.support.receivers import secret_file, web_server

    with web_server(None) as server:
        secret = secret_file(tmp_path)
        config = write_node(
            venv,
            tmp_path / "node",
            f'[[alerts]]\nname = "ward"\ntype = "webhook"\nsecret_file = "{secret}"\n'
            f'url = "http://127.0.0.1:{server.port}/"\n',
        )
        with running(venv, config):
            assert venv.call("status", "-c", config).returncode == 0
            assert "ingest_build_info" in venv.call("metrics", "-c", config).stdout
            sent = venv.call("alerts", "test", "-c", config)
        assert sent.returncode == 0, sent.stdout
        assert server.types() == ["test"]


@pytest.mark.parametrize(
    ("more", "key", "extra"),
    [
        (CONSOLE, "console", "console"),
        ('[ledger]\nurl = "postgresql+psycopg://u@127.0.0.1:1/d"\n', "ledger.url", "postgresql"),
    ],
)
def test_missing_extra_is_a_fault_with_the_command_that_helps(
    venv: Venv, tmp_path: Path, more: str, key: str, extra: str
) -> None:
    config = write_node(venv, tmp_path / "node", more)
    cause = rf"{re.escape(key)}: needs the extra `{extra}`, which is not installed: no .*"
    words = cause + rf"pip install './dicom_ingest-….whl\[{extra}\]'"
    for command, code in (("check", 1), ("serve", 2)):
        done = venv.call(command, "-c", config)
        assert done.returncode == code, done.stdout
        assert len(re.findall(words, done.stdout)) == 1, done.stdout
        assert "Traceback" not in done.stdout
    listed = venv.call("instances", "-c", config)
    assert "Traceback" not in listed.stdout


def test_reload_to_a_missing_extra_is_refused_and_the_node_goes_on(venv: Venv, tmp_path: Path) -> None:
    config = write_node(venv, tmp_path / "node")
    with running(venv, config):
        before = config.read_text()
        config.write_text(before + CONSOLE)
        refused = venv.call("reload", "-c", config)
        assert refused.returncode == 2
        assert "needs the extra `console`" in refused.stdout
        added = venv.call("console", "user", "add", "anna", "-c", config)
        assert added.returncode == 2
        assert "pip install" in added.stdout
        assert "Traceback" not in added.stdout
        config.write_text(before)
        assert venv.call("reload", "-c", config).returncode == 0


def test_extras_bring_console_and_postgresql_and_no_other_openssl(dist: Dist, tmp_path: Path) -> None:
    from tests.support.nodes import eventually
    from tests.support.ports import free_port
    from tests.support.servers import postgresql, require_postgresql

    require_postgresql()
    venv = create_venv(tmp_path / "venv")
    venv.install(dist, "console", "postgresql")
    assert "extras   console, postgresql" in venv.call("--version").stdout
    port = free_port()
    with postgresql() as url, contextlib.ExitStack() as stack:
        sections = CONSOLE.replace("port = 0", f"port = {port}") + f'[ledger]\nurl = "{url}"\n'
        config = write_node(venv, tmp_path / "node", sections)
        assert venv.call("check", "-c", config).returncode == 0
        node = stack.enter_context(running(venv, config))
        token = venv.call("console", "-c", config).stdout.split("token: ")[1].strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/v1/status", headers={"Authorization": f"Bearer {token}"}
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    status = json.load(answer)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert status

        # Every process that uses the ledger has loaded libpq, which brings libssl.
        def list_clients() -> list[int]:
            return [pid for pid in list_processes(node.pid) if list_libraries(pid, "libpq")]

        eventually(lambda: len(list_clients()) >= 3, 30, "persist, forward and console")
        require_one_openssl(venv, (node.pid, *list_processes(node.pid)))


def test_unpacked_sdist_knows_its_commit_and_makes_the_same_sdist(dist: Dist, tmp_path: Path) -> None:
    with tarfile.open(dist.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {member.name for member in archive}
    (root,) = tmp_path.iterdir()
    code = "from ingest.build_info import find_commit; print(find_commit())"
    assert "Commit(name=" in run([sys.executable, "-c", code], cwd=root)
    run([sys.executable, "setup.py", "-q", "sdist"], cwd=root)
    (again,) = (root / "dist").glob("*.tar.gz")
    with tarfile.open(again) as archive:
        assert {member.name for member in archive} == names


def list_other_pythons() -> list[str]:
    """Return other Pythons of pyproject.toml that can build: on the path or beside ours."""
    named = re.findall(r"Python :: 3\.(\d+)", (ROOT / "pyproject.toml").read_text())
    found = []
    for minor in set(map(int, named)) - {sys.version_info.minor}:
        name = f"python3.{minor}"
        beside = Path(sys.base_prefix).parent.glob(f"*3.{minor}*/bin/{name}")
        for path in (shutil.which(name), *map(str, beside)):
            if path is not None and has_headers(path):
                found.append(path)
                break
    return found


def has_headers(python: str) -> bool:
    code = "import sysconfig; print(sysconfig.get_path('include'))"
    return Path(run([python, "-c", code], check=False).strip(), "Python.h").is_file()


@pytest.mark.parametrize("python", list_other_pythons())
def test_demo_runs_with_another_python(dist: Dist, tmp_path: Path, python: str) -> None:
    """The sdist builds there. tests/pythons.sh does the same with the Pythons of other Debian releases."""
    venv = create_venv(tmp_path / "venv", python)
    command = ("-m", "pip", "install", "--quiet", "--constraint", dist.constraints, dist.sdist)
    venv.run(*command, timeout=BUILD_SECONDS)
    done = venv.call("demo")
    assert done.returncode == 0, done.stdout
