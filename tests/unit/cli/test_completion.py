"""`ingest completion`, in the shells that this machine has, and the manual pages."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest.cli._man_pages import write_man_pages

INGEST = Path(sys.executable).with_name("ingest")
NODE = """
[node]
data_dir = "var"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
tls = false
[[destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
tls = false
"""


def complete(*words: str, config: Path | None = None) -> list[str]:
    """Return what bash completes for the last of `words`."""
    script = f"""
    source <({INGEST} completion bash)
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ingest_completion ingest "${{@: -1}}"
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environ = {**os.environ, "PATH": f"{INGEST.parent}:{os.environ['PATH']}"}
    environ.pop("INGEST_CONFIG", None)
    if config is not None:
        environ["INGEST_CONFIG"] = str(config)
    command = ["bash", "-c", script, "bash", "ingest", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=True)
    return done.stdout.split()


def test_bash_completes_commands_and_options() -> None:
    assert complete("stu") == ["studies"]
    assert set(complete("quarantine", "")) == {"list", "compare", "release", "retry", "drop"}
    assert "--state" in complete("deliveries", "--st")
    assert complete("deliveries", "--state", "de") == ["delivered", "dead"]


def test_bash_completes_destinations_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(NODE)
    assert complete("retry", "--destination", "", config=config) == ["pacs", "archive"]
    assert complete("deliver", "-c", str(config), "--to", "p") == ["pacs"]
    assert complete("send", "-c", str(config), "--to", "a") == ["archive"]
    assert complete("echo", "--to", "", config=config) == ["pacs", "archive"]
    config.write_text("[node")
    assert complete("retry", "--destination", "p", config=config) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_is_read_by_its_shell(shell: str) -> None:
    script = subprocess.run([INGEST, "completion", shell], capture_output=True, check=True, timeout=60).stdout
    assert b"_INGEST_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, check=True, timeout=60)


def test_every_command_has_a_manual_page(tmp_path: Path) -> None:
    written = write_man_pages(tmp_path, datetime(2026, 1, 31, tzinfo=UTC), "1.2.3")
    pages = {path.name: path.read_text() for path in written}
    assert {"ingest.1", "ingest-serve.1", "ingest-quarantine-retry.1", "ingest-certs-p12-make.1"} <= set(
        pages
    )
    assert not any("\b" in page for page in pages.values())
    retry = pages["ingest-retry.1"]
    assert "2026-01-31" in retry
    assert "1.2.3" in retry
    assert ".nf\ningest retry -c ingest.toml --destination pacs\ningest retry" in retry
    for page in pages.values() if shutil.which("groff") else ():
        command = ["groff", "-man", "-ww", "-z", "-Tutf8", "-Kutf8"]
        assert subprocess.run(command, input=page.encode(), capture_output=True, timeout=60).stderr == b""


def test_watching_the_status_fills_the_screen_and_gives_it_back(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(NODE)
    pid, terminal = pty.fork()
    if pid == 0:
        # A test run in the background ignores the signal, and its children would too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "20"}
        os.execve(INGEST, ["ingest", "status", "-c", str(config), "--watch", "0.2"], environ)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while shown.count(b"Ctrl-C ends") < 2 and time.monotonic() < deadline:
            shown += os.read(terminal, 65536)
        os.write(terminal, b"\x03")
        while b"\x1b[?1049l" not in shown and time.monotonic() < deadline:
            shown += os.read(terminal, 65536)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)
    assert code == 2  # no node runs
    assert b"\x1b[?1049h" in shown
    assert b"no node runs" in shown
    assert b"more lines below" in shown
