"""Listeners whose address or port cannot be had: what a later start can mend is no wrong configuration."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
[node]
data_dir = "var"
[[listeners]]
host = "{host}"
port = {port}
tls = false
"""


def serve(folder: Path, host: str, port: int) -> "subprocess.CompletedProcess[str]":
    file = folder / "ingest.toml"
    file.write_text(CONFIG.format(host=host, port=port))
    command = [sys.executable, "-m", "ingest.cli", "serve", "-c", str(file)]
    environ = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


@pytest.mark.parametrize("is_taken", [True, False], ids=["port in use", "address that is not there"])
def test_start_fails_with_a_code_after_which_a_service_manager_tries_again(
    tmp_path: Path, *, is_taken: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # 192.0.2.0/24 is for documentation: no machine has an address of it.
        done = serve(tmp_path, "127.0.0.1" if is_taken else "192.0.2.1", port)
    assert (
        f":{port}: {'Address already in use' if is_taken else 'Cannot assign requested address'}"
        in done.stderr
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
