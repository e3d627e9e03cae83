"""`ingest init`: the files it writes, what it asks, and the commands that it prints, pasted as they are."""

import contextlib
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.checks.node import check_node
from ingest.cli import main
from ingest.config.reader import load_config
from ingest.operations.first_configuration import (
    FirstChoices,
    FirstDestination,
    format_first_configuration,
    parse_destination,
)
from tests.support.peers import storescp
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.users import NOBODY, as_nobody, shared_folder, with_reachable_python

ENVIRON = {
    **{name: value for name, value in os.environ.items() if name != "INGEST_CONFIG"},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


def init(folder: Path, *options: object) -> str:
    command = ["ingest", "init", *map(str, options)]
    done = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands_of(text: str) -> list[str]:
    """The commands of an output; a backslash continues the line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("ingest ")]


def paste(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=60
    )


@contextlib.contextmanager
def serving(command: str, folder: Path) -> Iterator[None]:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            shlex.split(command), cwd=folder, env=ENVIRON, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready"), (folder / "log").read_text()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_printed_commands_check_run_and_call_the_node(tmp_path: Path) -> None:
    said = init(tmp_path, "my site", "--yes", "--port", free_port(), "--console-port", free_port())
    assert max(map(len, said.splitlines())) <= 80
    check, serve, echo, console = commands_of(said)
    checked = paste(check, tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "my site/ingest.toml: sound\n"), checked.stderr
    with serving(serve, tmp_path):
        assert "answered the C-ECHO" in paste(echo, tmp_path).stdout
        assert paste(console, tmp_path).stdout.startswith("http://127.0.0.1:")
        assert "sound" in paste(check, tmp_path).stdout


def test_destination_answers_the_printed_command(tmp_path: Path, material: Material) -> None:
    ours = tmp_path / "site" / "pki" / "node.crt"
    tls, port = material.tls("remote"), free_port()
    options = ("--yes", "--port", free_port(), "--no-console", "--destination")
    said = init(tmp_path, "site", *options, f"STORESCP@localhost:{port}")
    *_, trust, echo = commands_of(said)
    trusting = tls.model_copy(update={"trusted": (ours,)})
    with storescp(tmp_path / "scp", trusting, port=port):
        assert paste(echo, tmp_path).returncode == 1
        trust = trust.replace("ITS-CERTIFICATE", str(material.certificate("remote")))
        assert paste(trust, tmp_path).returncode == 0
        assert paste(echo, tmp_path).returncode == 0
    plain = init(tmp_path, "plain", *options, f"STORESCP@localhost:{port}", "--plain")
    with storescp(tmp_path / "scp", None, port=port):
        assert paste(commands_of(plain)[-1], tmp_path).returncode == 0


@pytest.mark.parametrize("existing", ["ingest.toml", "pki/node.key", "pki/trusted.crt"])
def test_nothing_is_replaced(tmp_path: Path, existing: str) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / existing).write_text("mine")
    result = CliRunner().invoke(main, ["init", str(tmp_path), "--yes"])
    assert (result.exit_code, existing in result.stderr) == (1, True)
    assert (tmp_path / existing).read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / existing]


def test_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    CliRunner().invoke(main, ["init", str(tmp_path / "site"), "--yes"])
    assert (tmp_path / "site/pki").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "site/pki/node.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "site/ingest.toml").stat().st_mode & 0o007 == 0


def test_user_of_the_service_can_use_what_root_has_written(tmp_path: Path) -> None:
    as_user, before = as_nobody(), with_reachable_python()
    with shared_folder() as folder:
        options = ["--data-dir", folder / "data", "--user", "nobody", "--port", free_port(), "--no-console"]
        command = [*before, sys.executable, "-m", "ingest.cli", "init", folder / "etc", "--yes", *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        site = folder / "etc"
        owners = {path: (path.stat().st_uid, oct(path.stat().st_mode & 0o777)) for path in site.rglob("*")}
        assert owners[site / "ingest.toml"] == (0, "0o640"), "the node may not change its configuration"
        assert owners[site / "pki"] == (NOBODY, "0o700")
        assert owners[site / "pki/node.key"] == (NOBODY, "0o600")
        command = [*as_user, sys.executable, "-m", "ingest.cli", "check", "-c", site / "ingest.toml"]
        checked = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "sound" in checked.stdout


def test_port_in_use_is_told_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = init(tmp_path, "site", "--yes", "--port", taken.getsockname()[1], "--no-console")
    assert "fault   listeners[0].port: 0.0.0.0:" in said
    assert f"process {os.getpid()} (" in said


@pytest.mark.parametrize(
    "choices",
    [
        FirstChoices(machine_name="n"),
        FirstChoices(machine_name="n", console_port=None, destination=FirstDestination("A", "b", 1)),
        FirstChoices(
            machine_name="n",
            ae_title='A "QUOTED" ONE',
            host="2001:db8:1:2:3:4:5:6",
            data_dir="/var/lib/dicom-ingest",
            destination=FirstDestination(
                "SIXTEEN LETTERS!", "archive.of.the.radiology.example.org", 65535, False
            ),
        ),
    ],
    ids=["least", "destination", "long"],
)
def test_text_fits_into_80_columns_and_is_a_sound_configuration(
    tmp_path: Path, choices: FirstChoices
) -> None:
    from ingest.operations.first_configuration import write_first_configuration

    text = format_first_configuration(choices)
    assert max(map(len, text.splitlines())) <= 80
    files = write_first_configuration(tmp_path, choices)
    config = load_config(files.configuration, environ={})
    assert (config.node.ae_title, config.listeners[0].host) == (choices.ae_title, choices.host)
    assert [each.ae_title for each in config.destinations] == [
        each.ae_title for each in [choices.destination] if each
    ]
    assert (config.console is None) == (choices.console_port is None)
    about_ports = ("listeners", "console", "node.data_dir", "receive", "store", "ledger")
    assert [fault for fault in check_node(config) if not fault.key.startswith(about_ports)] == []


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("PACS@pacs.example.org:104", ("PACS", "pacs.example.org", 104, "pacs")),
        ("MY PACS@10.1.0.1:11112", ("MY PACS", "10.1.0.1", 11112, "my-pacs")),
        ("P@[2001:db8::1]:104", ("P", "2001:db8::1", 104, "p")),
    ],
)
def test_destination_is_read_as_a_person_writes_it(text: str, meant: tuple[object, ...]) -> None:
    found = parse_destination(text)
    assert (found.ae_title, found.host, found.port, found.name) == meant


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "@host:104", "PACS@host:0", "SEVENTEEN LETTERS@host:104"]
)
def test_destination_that_cannot_be_one_is_a_usage_error(tmp_path: Path, text: str) -> None:
    result = CliRunner().invoke(main, ["init", str(tmp_path / "site"), "--yes", "--destination", text])
    assert (result.exit_code, "--destination" in result.stderr) == (2, True)
    assert not (tmp_path / "site").exists()


def test_without_a_terminal_it_does_not_ask(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["init", str(tmp_path / "site"), "--port", str(free_port())], input="X\n"
    )
    assert result.exit_code == 0
    assert "AE title of this node" not in result.output
    assert load_config(tmp_path / "site" / "ingest.toml", environ={}).node.ae_title == "INGEST"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--data-dir", ""], "data_dir: is empty"),
        (["--data-dir", b"d\xff"], "no UTF-8"),
        (["--name", "x" * 65], "common name"),
        (["--host", "no such host"], "neither a host name nor an address"),
        (["--port", "8080", "--console"], "console.port"),
    ],
)
def test_choices_that_no_node_can_start_with_leave_no_file(
    tmp_path: Path, options: list[str | bytes], fault: str
) -> None:
    done = subprocess.run(
        ["ingest", "init", "site", "--yes", *options],
        cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode in {1, 2}
    assert fault in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    init(tmp_path, "site", "--yes", "--port", free_port(), "--no-console")


def test_in_a_terminal_it_asks_for_what_no_option_says(tmp_path: Path) -> None:
    answers = ["BAD\\TITLE", "CT-NODE", "PACS@pacs.example.org:104", "n", ""]
    said = _talk(["ingest", "init", "site", "--port", str(free_port())], answers, tmp_path)
    config = load_config(tmp_path / "site" / "ingest.toml", environ={})
    assert config.node.ae_title == "CT-NODE"
    assert [(each.ae_title, each.tls) for each in config.destinations] == [("PACS", False)]
    assert config.console is not None
    assert "is no AE title" in said
    assert "Port for DICOM" not in said, "an option said it"
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", said)) <= 80


def _talk(command: list[str], answers: list[str], folder: Path) -> str:
    """Run a command in a terminal, and answer each question that ends with ": "."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, {**ENVIRON, "TERM": "dumb", "COLUMNS": "80"})
    said, asked, deadline = "", 0, time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            try:
                said += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the program has ended
                break
            if said.endswith(": ") and len(said) > asked and answers:
                asked = len(said)
                os.write(terminal, f"{answers.pop(0)}\n".encode())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said
    finally:
        os.close(terminal)
    return said
