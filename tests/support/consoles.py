"""Real consoles for tests: `ingest work console` as a process of its own, and browsers that log in to it."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.console.auth.roles import ROLES_BY_WORD
from ingest.console.auth.tokens import TokenFile, read_local_token
from ingest.console.auth.users import UserFile
from tests.support.nodes import eventually
from tests.support.ports import free_port

PASSWORD = "correct horse battery"
CSRF = re.compile(r'name="csrf_token" value="([^"]*)"')


@dataclass
class ConsoleProcess:
    """A console with its folder and address."""

    folder: Path
    url: str
    process: "subprocess.Popen[bytes]"
    ca: Path | None = None
    clients: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def config(self) -> Config:
        return load_config(self.folder / "ingest.toml")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def local_token(self) -> str:
        return read_local_token(self.config.console_dir)

    def browse(self, **options: Any) -> httpx.Client:
        """Return a browser without a login."""
        verify: Any = str(self.ca) if self.ca else True
        options.setdefault("headers", {"Accept": "text/html"})
        client = httpx.Client(base_url=self.url, timeout=20, verify=verify, trust_env=False, **options)
        return self.clients.enter_context(client)

    def log_in(self, user: str = "", password: str = PASSWORD, **options: Any) -> "Browser":
        """Return a browser that has logged in."""
        client = self.browse(**options)
        response = post_login(client, user, password)
        assert response.status_code == 303, response.text
        return Browser(client)

    def call(self, token: str, **options: Any) -> httpx.Client:
        """Return a program with a token."""
        return self.browse(headers={"Authorization": f"Bearer {token}"}, **options)


class Browser:
    """A browser with a session, which sends the CSRF token of its pages."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.csrf = find_csrf_token(client.get("/"))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        headers = {"X-CSRF-Token": self.csrf, **options.pop("headers", {})}
        return self.client.post(path, headers=headers, **options)


def find_csrf_token(page: httpx.Response) -> str:
    found = CSRF.search(page.text)
    assert found, page.text
    return found[1]


def post_login(client: httpx.Client, user: str, password: str) -> httpx.Response:
    """Fill in the login page and send it."""
    csrf = find_csrf_token(client.get("/login"))
    return client.post("/login", data={"user": user, "password": password, "csrf_token": csrf, "next": "/"})


def add_users(config: Config) -> dict[str, str]:
    """Add a user and a token of each role, and return the tokens by role."""
    for word, role in ROLES_BY_WORD.items():
        UserFile(config.console_dir).add_user(word, role, PASSWORD)
    return {
        word: TokenFile(config.console_dir).add_token(f"for-{word}", role)
        for word, role in ROLES_BY_WORD.items()
    }


def write_config(folder: Path, console: str = "", more: str = "") -> tuple[Config, int]:
    """Write a configuration with a console, and return it with the console's port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    text = f'[node]\ndata_dir = "var"\n[log]\nformat = "json"\nlevel = "debug"\n[console]\nport = {port}\n'
    (folder / "ingest.toml").write_text(f"{text}{console}\n{more}\n")
    return load_config(folder / "ingest.toml"), port


@contextlib.contextmanager
def running_console(
    folder: Path, port: int, *, https: bool = False, ca: Path | None = None
) -> Iterator[ConsoleProcess]:
    """Run `ingest work console` until the context ends."""
    root = Path(__file__).parents[2]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest.cli", "work", "console", "-c", str(folder / "ingest.toml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(root), "NO_COLOR": "1"},
        )
    console = ConsoleProcess(folder, f"http{'s' if https else ''}://localhost:{port}", process, ca)
    try:
        eventually(lambda: "console_ready" in console.log or process.poll() is not None, 30, "console_ready")
        assert process.poll() is None, console.log[-4000:]
        yield console
    finally:
        console.clients.close()
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
