"""Rules of `[console]`: an address that other hosts reach needs users and TLS."""

import json
from collections.abc import Collection, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ingest.config.faults import Fault
from ingest.config.model import ConsoleSettings, OIDCSettings, is_loopback

USERS: Final = "users.json"
"""File of the console's users, in `Config.console_dir`."""

_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def check_console(console: ConsoleSettings, folder: Path, tls_names: Collection[str]) -> Iterator[Fault]:
    """Yield every fault of the section; `folder` is that of the console's users."""
    yield from _check_public_url(console)
    yield from _check_proxies(console)
    if console.tls and console.tls not in tls_names:
        known = f"one of {', '.join(sorted(tls_names))}" if tls_names else "an empty text for plain http"
        yield Fault("console.tls", f"there is no [tls.{console.tls}]", f"add that section, or write {known}")
    if console.oidc is not None:
        yield from _check_oidc(console.oidc, tls_names)
    if not console.is_public:
        return
    if not is_loopback(console.host) and not console.tls:
        yield Fault(
            "console.tls",
            f"other hosts reach {console.host}, and passwords would travel in the clear",
            'name a [tls.NAME] with certificate and key, or set host = "127.0.0.1"',
        )
    if console.oidc is None and not has_users(folder):
        key = "console.public_url" if is_loopback(console.host) else "console.host"
        yield Fault(
            key,
            "other hosts reach the console, and it has no users",
            "add one with `ingest console user add NAME --role admin`, or let only this host reach it",
        )


def _check_public_url(console: ConsoleSettings) -> Iterator[Fault]:
    key, remedy = (
        "console.public_url",
        "write the address that browsers use, such as https://node.example.org",
    )
    if console.public_url:
        try:
            parts = urlsplit(console.public_url)
            is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_sound = False
            parts = urlsplit("")
        if not is_sound or parts.path not in {"", "/"} or parts.query or parts.username:
            yield Fault(key, "is not an address without a path", remedy)
        elif parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            yield Fault(key, "is plain http, so passwords would travel in the clear", remedy)
    elif console.host in _WILDCARDS:
        yield Fault(key, f"is needed, because {console.host} is not the name of a host", remedy)


def _check_proxies(console: ConsoleSettings) -> Iterator[Fault]:
    for index, text in enumerate(console.trusted_proxies):
        key = f"console.trusted_proxies[{index}]"
        try:
            network = ip_network(text)
        except ValueError as error:
            yield Fault(key, str(error), "write an address or a network, such as 10.1.2.3 or 10.1.2.0/28")
            continue
        if network.prefixlen == 0:
            cause = "has every address, so each client could pretend to have another address"
            yield Fault(key, cause, "name the addresses of the proxies alone")
    if console.trusted_proxies and not console.public_url:
        cause = "is needed with trusted_proxies, because pages and cookies depend on it"
        yield Fault(
            "console.public_url", cause, "write the proxy's address, such as https://node.example.org"
        )


def _check_oidc(oidc: OIDCSettings, tls_names: Collection[str]) -> Iterator[Fault]:
    key = "console.oidc"
    parts = urlsplit(oidc.issuer)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        remedy = "write the provider's address as its metadata has it, such as https://login.example.org"
        yield Fault(f"{key}.issuer", "is not https", remedy)
    if oidc.tls and oidc.tls not in tls_names:
        remedy = "add that section, or leave it empty for the authorities of the operating system"
        yield Fault(f"{key}.tls", f"there is no [tls.{oidc.tls}]", remedy)
    if "openid" not in oidc.scopes:
        yield Fault(f"{key}.scopes", "lacks openid, so the provider sends no ID token", 'add "openid"')
    if not (oidc.viewer or oidc.operator or oidc.admin):
        cause = "nobody gets a role, so nobody can log in"
        yield Fault(f"{key}.viewer", cause, f"list values of the claim {oidc.role_claim} for a role")
    if bool(oidc.required_claim) != bool(oidc.required_values):
        yield Fault(
            f"{key}.required_claim", "works only with required_values", "write both, or neither of them"
        )
    path = oidc.client_secret_file
    if path is not None and not path.is_file():
        yield Fault(f"{key}.client_secret_file", f"there is no file {path}", "create it, or correct the path")


def has_users(folder: Path) -> bool:
    """Return whether the console has users. A file that cannot be read now counts as one with users.

    The console itself refuses to serve without them. A disk that fails must not stop the node.
    """
    try:
        return bool(json.loads((folder / USERS).read_bytes())["users"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True
