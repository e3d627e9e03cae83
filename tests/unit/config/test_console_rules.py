"""Rules of `[console]`: what other hosts reach needs users and TLS."""

from pathlib import Path

import pytest

from ingest.config.console_rules import USERS, check_console
from ingest.config.model import ConsoleSettings, OIDCSettings

OIDC = OIDCSettings(issuer="https://p.example", client_id="x", admin=("a",))


def keys(folder: Path, **settings: object) -> list[str]:
    return [fault.key for fault in check_console(ConsoleSettings(**settings), folder, {"web"})]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_console_of_this_host_needs_nothing(tmp_path: Path, host: str) -> None:
    assert keys(tmp_path, host=host) == []


def test_public_console_needs_users_and_tls(tmp_path: Path) -> None:
    public = {"host": "10.0.0.1"}
    assert keys(tmp_path, **public) == ["console.tls", "console.host"]
    assert keys(tmp_path, **public, tls="web") == ["console.host"]
    (tmp_path / USERS).write_text('{"users": {}}')
    assert keys(tmp_path, **public, tls="web") == ["console.host"]
    (tmp_path / USERS).write_text('{"users": {"anna": {}}}')
    assert keys(tmp_path, **public, tls="web") == []
    assert keys(tmp_path, **public) == ["console.tls"]
    (tmp_path / USERS).unlink()
    assert keys(tmp_path, **public, tls="web", oidc=OIDC) == []


def test_users_that_cannot_be_read_do_not_stop_the_node(tmp_path: Path) -> None:
    (tmp_path / USERS).write_text("damaged")
    assert keys(tmp_path, host="10.0.0.1", tls="web") == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0", "tls": "web", "oidc": OIDC}, ["console.public_url"]),
        ({"host": "0.0.0.0", "tls": "web", "oidc": OIDC, "public_url": "https://n.example:8443"}, []),
        ({"public_url": "https://n.example"}, ["console.public_url"]),
        ({"public_url": "https://n.example", "oidc": OIDC}, []),
        ({"public_url": "http://n.example", "oidc": OIDC}, ["console.public_url"]),
        ({"public_url": "http://localhost:9000"}, []),
        ({"public_url": "n.example", "oidc": OIDC}, ["console.public_url"]),
        ({"public_url": "https://n.example/path", "oidc": OIDC}, ["console.public_url"]),
        ({"public_url": "https://[::1", "oidc": OIDC, "tls": "web"}, ["console.public_url"]),
        ({"tls": "nowhere"}, ["console.tls"]),
        ({"oidc": OIDC.model_copy(update={"issuer": "http://p.example"})}, ["console.oidc.issuer"]),
        ({"oidc": OIDC.model_copy(update={"admin": ()})}, ["console.oidc.viewer"]),
        ({"oidc": OIDC.model_copy(update={"scopes": ("email",)})}, ["console.oidc.scopes"]),
        ({"oidc": OIDC.model_copy(update={"required_claim": "x"})}, ["console.oidc.required_claim"]),
    ],
)
def test_contradictions_are_faults(tmp_path: Path, settings: dict[str, object], expected: list[str]) -> None:
    assert keys(tmp_path, **settings) == expected
