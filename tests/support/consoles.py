"""Real consoles for tests: `ingest work console` as a process of its own, and browsers that log in to it."""

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.console.auth.roles import ROLES_BY_WORD, USER_ROLES_BY_WORD
from ingest.console.auth.tokens import TokenFile, read_local_token
from ingest.console.auth.users import UserFile
from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.pki import Material
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
    tokens: dict[str, str] = field(default_factory=dict)
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
        verify: Any = ssl.create_default_context(cafile=self.ca) if self.ca else True
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
    """Add a user and a token of each role that they may have, and return the tokens by role."""
    return add_users_in(config.console_dir)


def add_users_in(folder: Path) -> dict[str, str]:
    """Do the same in the folder of a console whose configuration is not sound without users."""
    for word, role in USER_ROLES_BY_WORD.items():
        UserFile(folder).add_user(word, role, PASSWORD)
    tokens = TokenFile(folder)
    return {word: tokens.add_token(f"for-{word}", role) for word, role in ROLES_BY_WORD.items()}


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


PROVIDER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import oidc_provider_mock
from werkzeug.serving import make_server
users = [oidc_provider_mock.User(sub=sub, claims=claims) for sub, claims in json.loads(sys.argv[2]).items()]
app = oidc_provider_mock.app(user_claims=users, require_nonce=True)
make_server("localhost", int(sys.argv[1]), app, threaded=True).serve_forever()
"""
"""An OpenID provider, as a program of its own: it brings a web server and many warnings."""


@contextlib.contextmanager
def running_provider(users: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Run an OpenID provider, and return its issuer."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", PROVIDER, str(port), json.dumps(users)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    issuer = f"http://localhost:{port}"

    def is_serving() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{issuer}/jwks", trust_env=False).status_code == 200
        return False

    try:
        eventually(is_serving, 30, "the provider")
        yield issuer
    finally:
        process.kill()
        process.wait(10)


HOSTILE_NAME = "<script>alert(1)</script>^'; DROP TABLE instances; --"
HOSTILE_ID = "../../etc/passwd' OR 1=1"
HOSTILE_DESCRIPTION = '"><img src=x onerror=alert(2)>'


@dataclass
class ConsoleNode:
    """A whole node with a console, and what it has received.

    Attributes:
        node: The node.
        web: Its console.
        study_uid: The study that it has received.
        sop_uids: Its instances.
    """

    node: Node
    web: ConsoleProcess
    study_uid: str = "1.2.826.0.1.3680043.9.1"
    sop_uids: tuple[str, ...] = ()


@contextlib.contextmanager
def running_node(folder: Path, material: Material) -> Iterator[ConsoleNode]:
    """Run a node with a console, users and a study that waits for a destination that is away."""
    port, node = free_port(), Node(folder, material)
    node.configure(
        console=f"[console]\nport = {port}",
        receive="[receive]\nprocesses = 1\nmin_free_bytes = 0",
        destinations=destination(
            "pacs", free_port(), tls=False, connect_seconds=1, retry_first_seconds=1
        ).replace("[[routes]]", 'set = { StationName = "<b>NEW</b>" }\n[[routes]]'),
    )
    tokens = add_users(load_config(node.config_path))
    with cleaned(node):
        node.start()
        assert node.process is not None
        web = ConsoleProcess(folder, f"http://localhost:{port}", node.process, tokens=tokens)
        eventually(lambda: "console_ready" in web.log, 30, "console_ready")
        running = ConsoleNode(node, web)
        running.sop_uids = send_hostile_study(node, running.study_uid)
        program = web.call(tokens["viewer"])

        def is_recorded() -> bool:
            status = program.get("/api/v1/status").json()
            return bool(status["ledger"]["instances"].get("stored", 0) == len(running.sop_uids))

        eventually(is_recorded, 30, "instances in the ledger")
        try:
            yield running
        finally:
            web.clients.close()


def send_hostile_study(node: Node, study_uid: str, count: int = 2) -> tuple[str, ...]:
    """Send instances whose attributes try to break out of pages, statements and paths."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
    from pynetdicom import AE

    entity = AE("CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", node.plain_port, ae_title="INGEST")
    assert association.is_established
    uids = []
    for number in range(1, count + 1):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{study_uid}.1.{number}"
        data.StudyInstanceUID, data.SeriesInstanceUID = study_uid, f"{study_uid}.1"
        data.PatientName, data.PatientID = HOSTILE_NAME, HOSTILE_ID
        data.AccessionNumber, data.StudyDescription = "ACC-4711", HOSTILE_DESCRIPTION
        data.Modality, data.StudyDate = "CT", "20260102"
        assert association.send_c_store(data).Status == 0
        uids.append(str(data.SOPInstanceUID))
    association.release()
    return tuple(uids)
