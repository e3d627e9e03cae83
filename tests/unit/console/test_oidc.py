"""Login by OpenID Connect at a real provider on another port."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

if TYPE_CHECKING:
    from tests.support.consoles import ConsoleProcess


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """A provider with people of several groups, in a process of its own."""
    from tests.support.consoles import running_provider

    users = {
        "anna": {"preferred_username": "anna", "groups": ["pacs-admins", "radiology"], "site": "north"},
        "victor": {"preferred_username": "victor", "groups": "radiology", "site": "north"},
        "guest": {"preferred_username": "guest", "groups": ["visitors"], "site": "north"},
        "elsewhere": {"preferred_username": "elsewhere", "groups": ["pacs-admins"], "site": "south"},
    }
    with running_provider(users) as url:
        yield url


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory, issuer: str) -> Iterator[ConsoleProcess]:
    from tests.support import consoles

    folder = tmp_path_factory.mktemp("oidc")
    section = f"""
[console.oidc]
issuer = "{issuer}"
client_id = "ingest"
client_secret_file = "secret"
title = "the clinic"
viewer = ["radiology"]
admin = ["pacs-admins"]
required_claim = "site"
required_values = ["north"]
"""
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_text("a secret\n")
    _, port = consoles.write_config(folder, section)
    with consoles.running_console(folder, port) as running:
        yield running


def log_in_at_provider(client: httpx.Client, user: str) -> httpx.Response:
    """Do what a browser does: go to the provider, log in there, come back. Returns the last answer."""
    to_provider = client.get("/login/oidc", params={"next": "/studies"})
    assert to_provider.status_code == 303, to_provider.text
    with httpx.Client(trust_env=False) as other:
        back = other.post(to_provider.headers["location"], data={"sub": user})
    assert back.status_code in {302, 303}, back.text
    return client.get(back.headers["location"])


@pytest.mark.parametrize(("user", "role"), [("anna", "admin"), ("victor", "viewer")])
def test_person_gets_the_role_of_the_group(console: ConsoleProcess, user: str, role: str) -> None:
    client = console.browse()
    assert "the clinic" in client.get("/login").text
    landed = log_in_at_provider(client, user)
    assert landed.status_code == 200
    # The page leads on by itself: with a redirect from another site no strict cookie would be sent.
    assert 'content="0;url=/studies"' in landed.text
    status = client.get("/api/v1/status")
    assert status.status_code == 200
    assert client.get("/api/v1/configuration").status_code == (200 if role == "admin" else 403)
    assert f"oidc:{user}" in console.log


@pytest.mark.parametrize("user", ["guest", "elsewhere"])
def test_person_without_a_role_or_of_another_site_is_refused(console: ConsoleProcess, user: str) -> None:
    client = console.browse()
    assert log_in_at_provider(client, user).status_code == 403
    assert client.get("/api/v1/status").status_code == 401
    assert count_refusals(console) > 0


def count_refusals(console: ConsoleProcess) -> int:
    """Return how many refused logins the log has. Each is an audit message, too."""
    return sum('"console_login"' in line and "false" in line for line in console.log.splitlines())


def test_flood_of_wrong_answers_fills_neither_log_nor_audit_trail(console: ConsoleProcess) -> None:
    before, client = count_refusals(console), console.browse()
    client.get("/login/oidc")
    [cookie] = [each for each in client.cookies.jar if "oidc" in each.name]
    for value in ("x", "e30.0", cookie.value or ""):
        stranger = console.browse(cookies={cookie.name: value})
        assert stranger.get("/login/oidc/callback?code=x&state=x").status_code == 403
    assert count_refusals(console) == before, "anybody can send such an answer"
    for _ in range(10):
        query = parse_qs(urlsplit(client.get("/login/oidc").headers["location"]).query)
        wrong = {"code": "wrong", "state": query["state"][0]}
        assert client.get("/login/oidc/callback", params=wrong).status_code == 403
    assert before < count_refusals(console) <= before + 5
    # The flood has kept nobody out who shares its address.
    assert log_in_at_provider(console.browse(), "anna").status_code == 200


def test_request_to_the_provider_is_bound_to_browser_and_verifier(console: ConsoleProcess) -> None:
    address = console.browse().get("/login/oidc").headers["location"]
    query = {name: value for name, [value] in parse_qs(urlsplit(address).query).items()}
    assert query["code_challenge_method"] == "S256"
    assert min(len(query[name]) for name in ("state", "nonce", "code_challenge")) >= 43
    assert query["redirect_uri"] == f"{console.url}/login/oidc/callback"


def test_answer_of_another_browser_or_a_second_use_of_it_is_refused(console: ConsoleProcess) -> None:
    victim, attacker = console.browse(), console.browse()
    address = attacker.get("/login/oidc").headers["location"]
    with httpx.Client(trust_env=False) as other:
        back = other.post(address, data={"sub": "anna"}).headers["location"]
    assert victim.get(back).status_code == 403
    victim.get("/login/oidc")
    assert victim.get(back).status_code == 403
    assert attacker.get(re.sub("state=[^&]*", "state=guessed", back)).status_code == 403
    assert attacker.get(back).status_code == 403  # its flow ended with the wrong answer
    assert victim.get("/api/v1/status").status_code == 401


def test_forged_cookie_of_a_login_is_refused(console: ConsoleProcess) -> None:
    client = console.browse()
    address = client.get("/login/oidc").headers["location"]
    [cookie] = [each for each in client.cookies.jar if "oidc" in each.name]
    with httpx.Client(trust_env=False) as other:
        back = other.post(address, data={"sub": "anna"}).headers["location"]
    for value in (f"A{cookie.value}", f"{cookie.value}0", "", ".", "e30.0"):
        forged = console.browse(cookies={cookie.name: value})
        assert forged.get(back).status_code == 403, value
    assert client.get(back).status_code == 200


def test_token_of_the_host_is_not_taken_beside_a_provider(console: ConsoleProcess) -> None:
    assert console.call(console.local_token).get("/api/v1/status").status_code == 401


def test_provider_that_is_away_is_a_problem_with_a_remedy(tmp_path: Any) -> None:
    from ingest.config.model import Config, OIDCSettings
    from ingest.console.auth.oidc import OIDCClient, OIDCError
    from tests.support.ports import free_port

    settings = OIDCSettings(issuer=f"http://localhost:{free_port()}", client_id="x", viewer=("a",))
    with pytest.raises(OIDCError, match="cannot be asked"):
        OIDCClient(Config(), settings).begin("http://localhost/cb", "/")


def test_provider_that_fails_is_asked_once_for_many_logins() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from ingest.config.model import Config, OIDCSettings
    from ingest.console.auth.oidc import OIDCClient, OIDCError

    asked = []

    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(500)

    with ThreadingHTTPServer(("localhost", 0), Failing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        settings = OIDCSettings(issuer=f"http://localhost:{server.server_port}", client_id="x", viewer=("a",))
        client = OIDCClient(Config(), settings)

        def begin(_number: int) -> str:
            with pytest.raises(OIDCError) as caught:
                client.begin("http://localhost/cb", "/")
            return str(caught.value)

        with ThreadPoolExecutor(8) as threads:
            causes = list(threads.map(begin, range(8)))
        server.shutdown()
    assert len(asked) == 1
    assert all("answered 500" in cause for cause in causes)


class SignedTokens:
    """A provider's tokens, with a client that believes in its keys."""

    def __init__(self) -> None:
        from joserfc.jwk import KeySet, RSAKey

        from ingest.config.model import Config, OIDCSettings
        from ingest.console.auth.oidc import Flow, OIDCClient

        self.key = RSAKey.generate_key(2048, {"kid": "1"})
        settings = OIDCSettings(issuer="https://p.example", client_id="ingest", viewer=("a",))
        self.client = OIDCClient(Config(), settings)
        self.client._keys, self.client._keys_at = KeySet([self.key]), float("inf")
        self.flow = Flow("state", "nonce", "verifier", "", "/", 0)

    def check(self, algorithm: str = "RS256", key: Any = None, **changes: Any) -> dict[str, Any]:
        import time

        from joserfc import jwt

        now = int(time.time())
        claims: dict[str, Any] = {"iss": "https://p.example", "aud": "ingest", "sub": "1", "nonce": "nonce"}
        claims |= {"exp": now + 60, "iat": now}
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        header = {"alg": algorithm, "kid": "1"}
        token = jwt.encode(header, claims, key or self.key, algorithms=[algorithm])
        return self.client._check_token(token, self.flow)


def test_unsound_token_is_refused() -> None:
    import time

    from joserfc.jwk import OctKey, RSAKey

    from ingest.console.auth.oidc import OIDCError

    tokens, now = SignedTokens(), int(time.time())
    assert tokens.check()["sub"] == "1"
    assert tokens.check(exp=now - 30)["sub"] == "1", "clocks may differ by a minute"
    for changes in (
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"aud": ["ingest", "another"], "azp": "another"},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": now - 120},
        {"exp": None},
        {"iat": now + 3600},
        {"sub": None},
        {"key": RSAKey.generate_key(2048, {"kid": "1"})},
        {"algorithm": "HS256", "key": OctKey.import_key(b"x" * 32, {"kid": "1"})},
    ):
        with pytest.raises(OIDCError):
            tokens.check(**changes)
