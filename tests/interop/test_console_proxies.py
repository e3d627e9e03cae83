"""The console behind nginx and HAProxy of Debian, with the settings that docs/how-to/give-access.md shows."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ingest.config.model import ConsoleSettings
from tests.support.consoles import (
    PASSWORD,
    Browser,
    ConsoleProcess,
    add_users_in,
    find_csrf_token,
    post_login,
    running_console,
    write_config,
)
from tests.support.nodes import eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.ports import free_port

PAGE = Path(__file__).parents[2] / "docs/how-to/give-access.md"
HOST = "node.example.org"


@dataclass
class Site:
    """A console, and the proxy in front of it."""

    console: ConsoleProcess
    port: int
    ca: Path

    def browse(self, address: str = "127.0.0.1") -> httpx.Client:
        """Return a browser at this address of the loopback network, which has looked up the proxy's name."""
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = False  # the certificate of the tests names localhost
        transport = httpx.HTTPTransport(verify=context, local_address=address)
        client = httpx.Client(
            transport=transport,
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": HOST, "Accept": "text/html", "X-Forwarded-For": "203.0.113.66"},
            timeout=20,
        )
        return self.console.clients.enter_context(client)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.console.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


def read_example(language: str) -> str:
    """Return the settings of the page."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return found[1]


def write_nginx(folder: Path, port: int, backend: int, material: Material) -> list[str]:
    server = read_example("nginx")
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/certs/node.pem", str(material.certificate("node"))),
        ("/etc/ssl/private/node.key", str(material.key("node"))),
        ("127.0.0.1:8080", f"127.0.0.1:{backend}"),
    ):
        assert old in server
        server = server.replace(old, new)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {paths} {server} }}\n"
    )
    return [require_program("nginx"), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


def write_haproxy(folder: Path, port: int, backend: int, material: Material) -> list[str]:
    sections = read_example("haproxy")
    pair = material.certificate("node").read_text() + material.key("node").read_text()
    (folder / "node.pem").write_text(pair)
    for old, new in (
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("/etc/ssl/private/node.pem", str(folder / "node.pem")),
        ("127.0.0.1:8080", f"127.0.0.1:{backend}"),
    ):
        assert old in sections
        sections = sections.replace(old, new)
    timeouts = "defaults\n timeout client 60s\n timeout connect 5s\n timeout server 130s\n"
    (folder / "haproxy.cfg").write_text(f"{timeouts}{sections}")
    return [require_program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]


@pytest.fixture(scope="module", params=[write_nginx, write_haproxy], ids=["nginx", "haproxy"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, material: Material
) -> Iterator[Site]:
    """A console behind a proxy."""
    write: Callable[[Path, int, int, Material], list[str]] = request.param
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    add_users_in(folder / "node" / "var" / "console")
    settings = f'public_url = "https://{HOST}"\ntrusted_proxies = ["127.0.0.1"]'
    _, backend = write_config(folder / "node", settings)
    command = write(folder, port, backend, material)
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(running_console(folder / "node", backend))
        with (folder / "output").open("wb") as output:
            proxy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        stack.callback(proxy.wait, 10)
        stack.callback(proxy.kill)
        found = Site(console, port, material.certificate("node"))

        def answers() -> bool:
            assert proxy.poll() is None, (folder / "output").read_text()
            with contextlib.suppress(httpx.TransportError):
                return found.browse().get("/live").status_code in {200, 503}
            return False

        eventually(answers, 20, "the proxy")
        yield found


def test_people_behind_one_proxy_have_a_login_limit_each_by_their_own_address(site: Site) -> None:
    guessing, other = site.browse("127.0.0.2"), site.browse("127.0.0.3")
    answers = [post_login(guessing, "admin", f"guess {number}").status_code for number in range(6)]
    assert (answers[0], answers[-1]) == (401, 429)
    login = post_login(other, "admin", PASSWORD)
    assert login.status_code == 303
    assert {event["address"] for event in site.events("console_login")} == {"127.0.0.2", "127.0.0.3"}
    [cookie] = [
        each for each in login.headers.get_list("set-cookie") if "ingest-session" in each and "=" in each
    ]
    assert cookie.startswith("__Host-")
    assert "Secure" in cookie


def test_host_and_origin_must_still_be_those_of_the_public_address(site: Site) -> None:
    client = site.browse("127.0.0.4")
    assert client.get("/login", headers={"Host": "evil.example"}).status_code == 421
    token = find_csrf_token(client.get("/login"))
    form = {"user": "viewer", "password": PASSWORD, "csrf_token": token, "next": "/"}
    for origin, status in (("https://evil.example", 403), (f"http://{HOST}", 403), (f"https://{HOST}", 303)):
        assert client.post("/login", data=form, headers={"Origin": origin}).status_code == status, origin


def test_events_pass_at_once_and_one_by_one(site: Site) -> None:
    client = site.browse("127.0.0.5")
    assert post_login(client, "viewer", PASSWORD).status_code == 303
    assert Browser(client).get("/").status_code == 200
    with client.stream("GET", "/events?page=overview") as stream:
        names = (line for line in stream.iter_lines() if line.startswith("event: "))
        assert [next(names) for _ in range(3)][:2] == ["event: parts", "event: versions"]


def test_console_behind_a_proxy_is_public() -> None:
    assert ConsoleSettings(public_url="http://localhost", trusted_proxies=("127.0.0.1",)).is_public
    assert not ConsoleSettings(public_url="http://localhost").is_public
