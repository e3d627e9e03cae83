"""The floor as a receiver: builds floor.c with the machine's C compiler and runs it."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.accounting import Group
from benchmarks.peers import FileReceiver
from benchmarks.receivers import Durability, Facts, Pki, Receiver, Unavailable, target_of, wait_until

SOURCE: Final = Path(__file__).with_name("floor.c")
FLAGS: Final = ("-O2", "-std=gnu11")
LIBRARIES: Final = ("-lssl", "-lcrypto")
BUILD_SECONDS: Final = 60


@contextlib.contextmanager
def floor(base: Path, keys: Pki, *, durability: Durability) -> Iterator[Receiver]:
    """Run the floor: TLS, framing and files, with or without fsync before Success."""
    program = build()
    files, log = base / "files", base / "log"
    files.mkdir(parents=True, exist_ok=True)
    durable = durability == "fsync"
    options = ["-s"] if durable else []
    command = [str(program), *options, *map(str, (keys.certificate, keys.key, keys.trusted, files))]
    facts = Facts("floor", f"{_digest()[:8]}, OpenSSL {_openssl(program)}", durable)
    with Group(facts.name) as group:
        with log.open("wb") as output:
            process = group.popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        wait_until(lambda: log.read_text().endswith("\n"), process, log)
        target = target_of(keys, int(log.read_text()))
        yield FileReceiver(facts, target, group, base, files, lambda uid: f"{uid}.dcm")


def build() -> Path:
    """Build the program unless this source was built before. It stays in the cache of the user.

    Raises:
        Unavailable: There is no C compiler, or OpenSSL's headers or libraries are missing.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable("the floor needs a C compiler (gcc or clang as `cc`, or name it in CC)")
    folder = _cache()
    program = folder / f"floor-{_digest()[:16]}"
    if program.exists():
        return program
    with tempfile.TemporaryDirectory(dir=folder) as private:
        made = Path(private) / "floor"
        done = subprocess.run(
            [compiler, *FLAGS, "-o", made, SOURCE, *LIBRARIES],
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            hint = (
                "install OpenSSL's headers (libssl-dev, openssl-devel)" if "openssl/" in done.stderr else ""
            )
            raise Unavailable(f"the floor cannot be built; {hint or 'its compiler says'}:\n{done.stderr}")
        made.replace(program)
    return program


def _cache() -> Path:
    """Return a folder of the user's own, because folders for temporary files may forbid programs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "dicom-ingest"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"the floor cannot be built in {folder}: {error.strerror}") from error
    return folder


def _digest() -> str:
    text = SOURCE.read_bytes() + " ".join((*FLAGS, *LIBRARIES)).encode()
    return hashlib.sha256(text).hexdigest()


def _openssl(program: Path) -> str:
    """Return the version of OpenSSL that the program is linked with."""
    return subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout.strip()
