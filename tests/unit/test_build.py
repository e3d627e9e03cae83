"""The build tells what it lacks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_build_without_openssl_names_the_package_to_install(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\necho "fatal error: openssl/ssl.h: not found" >&2\nexit 1\n')
    compiler.chmod(0o755)
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=ROOT,
        env={**os.environ, "CC": str(compiler)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 1
    assert built.stderr.splitlines()[-1].endswith("apt-get install libssl-dev")
    assert "fatal error" not in built.stderr
