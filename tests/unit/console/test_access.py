"""Access to the console: logins, sessions, roles, and requests that come from elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.support.consoles import ConsoleProcess

PASSWORD = "correct horse battery"


def test_console_without_users_asks_for_the_token_of_its_file(local_console: ConsoleProcess) -> None:
    from tests.support.consoles import post_login

    token = local_console.local_token
    assert (local_console.config.console_dir / "token").stat().st_mode & 0o777 == 0o600
    browser = local_console.browse()
    assert browser.get("/").headers["location"] == "/login?next=/"
    assert post_login(browser, "", "wrong").status_code == 401
    assert browser.get("/").status_code == 303
    assert post_login(browser, "", token).status_code == 303
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "10.0.0.1"]
)
def test_console_of_this_host_serves_no_other_host_name(local_console: ConsoleProcess, name: str) -> None:
    program = local_console.call(local_console.local_token)
    assert program.get("/api/v1/status", headers={"Host": name}).status_code == 421
    assert program.get("/api/v1/status").status_code == 200


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_console_of_this_host_serves_no_proxy_that_it_does_not_know(
    local_console: ConsoleProcess, header: str
) -> None:
    """The proxy has put its own host name into `Host`, so the request looks as if it came from this host."""
    client = local_console.browse()
    for path in ("/metrics", "/login"):
        assert client.get(path, headers={header: "10.0.0.7"}).status_code == 421, path
        assert client.get(path).status_code == 200, path


def test_console_with_a_public_address_serves_its_proxy() -> None:
    from starlette.requests import Request

    from ingest.config.model import ConsoleSettings
    from ingest.console.gate import check_host

    headers = [(b"host", b"pacs.example"), (b"x-forwarded-for", b"10.0.0.7")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    check_host(Request(scope), ConsoleSettings(public_url="https://pacs.example"))


def test_token_of_the_file_is_made_once_and_then_only_read(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from ingest.console.auth.tokens import read_local_token

    folder = tmp_path / "console"
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(read_local_token, [folder] * 32))) == 1
    assert [path.name for path in folder.iterdir()] == ["token"]
    os.utime(folder, ns=(1, 1))
    read_local_token(folder)
    assert folder.stat().st_mtime_ns == 1, "a full disk must not refuse requests"


def test_unsafe_request_of_another_origin_changes_nothing(console: ConsoleProcess) -> None:
    browser = console.log_in("viewer")
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": ""},
    ):
        assert browser.post("/logout", headers=headers).status_code == 403, headers
    assert browser.get("/").status_code == 200
    assert browser.post("/logout", headers={"Origin": console.url}).status_code == 303
    assert browser.get("/").status_code == 303


def fill_path(path: str) -> str:
    return path.replace("{name:path}", "console.css").replace("{name}", "pacs").replace("{id}", "1")


@pytest.mark.parametrize("word", ["nobody", "metrics", "viewer", "operator", "admin"])
def test_every_route_is_open_to_its_roles_and_to_no_lower_one(console: ConsoleProcess, word: str) -> None:
    """Go through the whole table. What is allowed may fail for another reason: there is no node."""
    from ingest.console.app import list_endpoints
    from ingest.console.auth.roles import OPEN_TO_THIS_HOST, ROUTE_ROLES, Role

    role = Role[word.upper()]
    client = console.call(console.tokens[word]) if role else console.browse(headers={})
    endpoints = list_endpoints()
    assert {f"{each.method} {each.path}" for each in endpoints} == set(ROUTE_ROLES)
    wrong = {}
    for each in endpoints:
        key = f"{each.method} {each.path}"
        if each.path == "/login" or key == "POST /api/v1/check":
            continue
        with client.stream(each.method, re.sub(r"\{\w+\}", "1", fill_path(each.path))) as answer:
            is_refused = answer.status_code in {401, 403}
        expected = 401 if role is Role.NOBODY else 403
        is_open = key in OPEN_TO_THIS_HOST or role >= ROUTE_ROLES[key]
        if is_refused is is_open or (is_refused and answer.status_code != expected):
            wrong[key] = answer.status_code
    assert wrong == {}


def test_token_for_metrics_reads_nothing_else_on_a_public_console(tmp_path: Path) -> None:
    from tests.support import consoles

    tokens = consoles.add_users_in(tmp_path / "var" / "console")
    _, port = consoles.write_config(tmp_path, 'public_url = "https://node.example.org"')
    with consoles.running_console(tmp_path, port) as public:
        assert public.browse(headers={}).get("/metrics").status_code == 401
        program = public.call(tokens["metrics"])
        assert "dicom_ingest_" in program.get("/metrics").text
        for path in ("/", "/studies", "/api/v1/status", "/api/v1/openapi.json"):
            assert program.get(path).status_code == 403, path
        assert program.post("/api/v1/studies/search", json={}).status_code == 403
        assert program.get("/ready").json().keys() == {"ok"}
        assert public.call(tokens["viewer"]).get("/ready").json().keys() > {"ok"}


def test_viewer_changes_nothing_with_a_session_either(console: ConsoleProcess) -> None:
    browser = console.log_in("viewer")
    for path in ("deliveries/retry", "deliveries/drop", "quarantine/drop", "reload", "destinations/x/pause"):
        assert browser.post(f"/api/v1/{path}", json={}).status_code == 403, path
    assert browser.get("/api/v1/instances/1/file").status_code == 403


def test_every_answer_has_the_security_headers(console: ConsoleProcess) -> None:
    from ingest.console.gate import SECURITY_HEADERS

    browser = console.log_in("viewer")
    paths = [
        "/",
        "/login",
        "/nothing",
        "/static/console.css",
        "/api/v1/status",
        "/api/v1/configuration",
        "/live",
    ]
    for answer in (*map(browser.get, paths), browser.post("/logout", headers={"Origin": "http://evil"})):
        assert SECURITY_HEADERS.items() <= answer.headers.items(), answer.url
        is_static = answer.url.path.startswith("/static/")
        assert answer.headers["cache-control"] == ("no-cache" if is_static else "no-store")
        assert "server" not in answer.headers
        assert "unsafe-inline" not in answer.headers["content-security-policy"]
    page = browser.get("/").text + console.browse().get("/login").text
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|javascript:", page)


def test_cookie_is_out_of_reach_of_scripts_and_of_other_sites(console: ConsoleProcess) -> None:
    from tests.support.consoles import post_login

    client = console.browse()
    answer = post_login(client, "viewer", PASSWORD)
    [cookie] = [each for each in answer.headers.get_list("set-cookie") if "session" in each]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Max-Age" not in cookie
    assert "expires" not in cookie


def test_login_makes_a_new_session_and_logout_ends_it(console: ConsoleProcess) -> None:
    from tests.support.consoles import post_login

    browser = console.log_in("viewer")
    [old] = [cookie for cookie in browser.client.cookies.jar if "session" in cookie.name]
    planted = console.browse(cookies={old.name: "chosen-by-an-attacker"})
    post_login(planted, "viewer", PASSWORD)
    assert "chosen-by-an-attacker" not in [cookie.value for cookie in planted.cookies.jar if cookie.domain]
    assert browser.post("/logout").status_code == 303
    stolen = console.browse(cookies={old.name: old.value or ""})
    assert stolen.get("/").status_code == 303


def test_login_ends_the_session_that_the_browser_had(console: ConsoleProcess) -> None:
    browser = console.log_in("viewer")
    [old] = [cookie for cookie in browser.client.cookies.jar if "session" in cookie.name]
    login = {"user": "operator", "password": PASSWORD, "csrf_token": browser.csrf}
    assert browser.client.post("/login", data=login).status_code == 303
    assert browser.get("/").status_code == 200
    assert console.browse(cookies={old.name: old.value or ""}).get("/").status_code == 303


def test_logout_everywhere_ends_all_sessions_of_that_user(console: ConsoleProcess) -> None:
    first, second, other = (console.log_in(name) for name in ("operator", "operator", "viewer"))
    assert first.post("/logout-everywhere").status_code == 303
    assert second.get("/").status_code == 303
    assert other.get("/").status_code == 200


def test_change_of_the_password_ends_the_sessions_of_that_user(console: ConsoleProcess) -> None:
    from ingest.console.auth.roles import Role
    from ingest.console.auth.users import UserFile

    users = UserFile(console.config.console_dir)
    users.add_user("leaving", Role.ADMIN, PASSWORD)
    browser = console.log_in("leaving")
    users.change_user("leaving", password="another long password")
    assert browser.get("/").status_code == 303
    again = console.log_in("leaving", "another long password")
    users.remove_user("leaving")
    assert again.get("/").status_code == 303


def test_first_user_of_the_api_is_an_administrator(local_console: ConsoleProcess) -> None:
    token = (local_console.config.console_dir / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=local_console.url, headers=headers, trust_env=False) as client:
        for role in ("viewer", "operator"):
            user = {"name": "first", "role": role, "password": PASSWORD}
            refused = client.post("/api/v1/users", json=user)
            assert (refused.status_code, "administrator" in refused.json()["detail"]) == (409, True)
        assert client.get("/api/v1/users").json() == {"items": []}, "the token still counts"


def test_name_of_a_user_fits_into_a_path_of_the_api(tmp_path: Path) -> None:
    from ingest.console.auth.roles import Role
    from ingest.console.auth.users import UserFile
    from ingest.errors import IngestError

    with pytest.raises(IngestError, match="no name of a user"):
        UserFile(tmp_path).add_user("a/b", Role.ADMIN, PASSWORD)


def test_removed_and_expired_tokens_are_refused(console: ConsoleProcess) -> None:
    from ingest.clock import unix_ms
    from ingest.console.auth.roles import Role
    from ingest.console.auth.tokens import TokenFile

    tokens = TokenFile(console.config.console_dir)
    gone, ended = tokens.add_token("gone", Role.ADMIN), tokens.add_token("ended", Role.ADMIN, unix_ms() - 1)
    assert gone not in (console.config.console_dir / "tokens.json").read_text()
    assert console.call(gone).get("/api/v1/status").status_code == 200
    tokens.remove_token("gone")
    for text in (gone, ended, "ingest_x", console.local_token):
        assert console.call(text).get("/api/v1/status").status_code == 401


def test_guessed_passwords_are_slowed_down_for_one_address_and_user_only(console: ConsoleProcess) -> None:
    from tests.support.consoles import post_login

    attacker = console.browse()
    answers = [post_login(attacker, "admin", f"guess {number}") for number in range(6)]
    assert [each.status_code for each in answers[:3]] == [401] * 3
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) > 0
    # Another spelling of the name is no way around it.
    assert post_login(attacker, "  \uff41dmin ", PASSWORD).status_code == 429
    # The right password does not help while the wait lasts, so that guesses learn nothing.
    assert post_login(attacker, "admin", PASSWORD).status_code == 429
    assert post_login(console.browse(), "viewer", PASSWORD).status_code == 303


def test_passwords_guessed_at_the_same_time_are_limited_as_those_one_after_another(
    console: ConsoleProcess,
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tests.support.consoles import find_csrf_token

    attackers = [console.browse() for _ in range(24)]
    pages = [find_csrf_token(attacker.get("/login")) for attacker in attackers]

    def guess(number: int) -> int:
        data = {"user": "guessed", "password": f"guess {number}", "csrf_token": pages[number], "next": "/"}
        return attackers[number].post("/login", data=data).status_code

    with ThreadPoolExecutor(len(attackers)) as threads:
        answers = list(threads.map(guess, range(len(attackers))))
    assert set(answers) == {401, 429}
    # Three at once. A slow machine takes longer than a wait of 1 s, and lets one or two more pass.
    assert answers.count(401) <= 5


def test_slow_clients_lose_their_connections_and_keep_nobody_out(console: ConsoleProcess) -> None:
    limit = 60
    host, port = "127.0.0.1", int(console.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, port))) for _ in range(3 * limit)]
        for each in slow:
            with contextlib.suppress(OSError):
                each.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        for _ in range(5):
            assert console.browse(headers={}).get("/login").status_code == 200
        deadline = time.monotonic() + 20
        for each in slow:
            each.settimeout(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ConnectionError):
                assert each.recv(100) == b""


def test_endless_header_and_endless_body_are_refused(console: ConsoleProcess) -> None:
    client = console.call(console.tokens["viewer"])
    with contextlib.suppress(httpx.TransportError):  # closed while it is still sent
        assert client.get("/login", headers={"X-A": "a" * 5_000_000}).status_code == 400

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    assert client.post("/api/v1/studies/search", content=endless()).status_code == 413


def test_fifty_open_pages_get_events_while_others_are_served(console: ConsoleProcess) -> None:
    from ingest.console.auth.roles import Role
    from ingest.console.auth.tokens import TokenFile

    viewer = console.tokens["viewer"]
    file = TokenFile(console.config.console_dir)
    walls = [file.add_token(f"wall-{number}", Role.VIEWER) for number in range(5)]
    with contextlib.ExitStack() as stack:
        limits = httpx.Limits(max_connections=60)
        client = stack.enter_context(
            httpx.Client(base_url=console.url, trust_env=False, limits=limits, timeout=20)
        )
        headers = [{"Authorization": f"Bearer {wall}"} for wall in walls for _ in range(10)]
        streams = [
            stack.enter_context(client.stream("GET", "/api/v1/events", headers=each)) for each in headers
        ]
        for stream in streams:
            lines = stream.iter_lines()
            assert any(line.startswith("data: {") for line in lines)
        assert console.call(viewer).get("/api/v1/status").status_code == 200


def test_stream_of_a_token_ends_when_its_role_drops(console: ConsoleProcess) -> None:
    from ingest.console.auth.roles import Role
    from ingest.console.auth.tokens import TokenFile
    from ingest.console.files import read_json, write_json

    folder = console.config.console_dir
    client = console.call(TokenFile(folder).add_token("dropping", Role.ADMIN))
    with client.stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        assert any(line.startswith("data: {") for line in lines)
        content = read_json(folder / "tokens.json")
        content["tokens"]["dropping"]["role"] = "viewer"
        write_json(folder / "tokens.json", content)
        began = time.monotonic()
        assert sum(1 for _ in lines) < 1000
        assert time.monotonic() - began < 15
    assert client.get("/api/v1/status").status_code == 200


@pytest.mark.parametrize(
    ("next_page", "shown"),
    [
        ("/studies", "/studies"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/%0d%0aSet-Cookie:x", "/%0d%0aSet-Cookie:x"),
        ("/\r\nSet-Cookie: x=1", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_login_leads_to_a_page_of_this_console_only(next_page: str, shown: str) -> None:
    from ingest.console.auth.login import find_next_page

    assert find_next_page(next_page) == shown
