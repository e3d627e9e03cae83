"""The client of a request that proxies have passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PROXIES = ("10.0.0.0/8", "2001:db8::1")


def restore(client: str, **headers: list[str] | str) -> tuple[str, str]:
    """Return address and scheme of a request from `client` with these headers."""
    from ingest.console.proxies import TrustedProxies

    lines = [
        (name.replace("_", "-").encode(), value.encode())
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    scope: dict[str, Any] = {"type": "http", "scheme": "http", "client": (client, 4711), "headers": lines}
    TrustedProxies(PROXIES).restore_client(scope)
    return scope["client"][0], scope["scheme"]


@pytest.mark.parametrize(
    ("client", "hops", "address"),
    [
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),  # no proxy that we know
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the first was sent by the client
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),  # HAProxy adds a line
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),  # two proxies
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),  # a person in the network of the proxies
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.2"),  # who may have written the first
        ("10.0.0.1", "10.0.0.4, unknown, 10.0.0.3, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:51234", "198.51.100.1"),
        ("::ffff:10.0.0.1", "[2001:db8::5]:51234", "2001:db8::5"),
        ("2001:db8::1", "2001:db8::5", "2001:db8::5"),
        ("10.0.0.1", ",, ,", "10.0.0.1"),
        ("10.0.0.1", "a" * 20_000, "10.0.0.1"),
    ],
)
def test_last_hop_that_is_no_trusted_proxy_is_the_client(
    client: str, hops: list[str] | str, address: str
) -> None:
    assert restore(client, x_forwarded_for=hops)[0] == address


@pytest.mark.parametrize(
    ("client", "hops", "schemes", "scheme"),
    [
        ("10.0.0.1", "198.51.100.1", "https", "https"),
        ("10.0.0.1", "", "https", "https"),
        ("192.0.2.7", "198.51.100.1", "https", "http"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "https", "https"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "https, http", "https"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1", "ftp, https", "https"),
        ("10.0.0.1", "198.51.100.1", "javascript", "http"),
    ],
)
def test_scheme_is_that_of_the_client(client: str, hops: str, schemes: str, scheme: str) -> None:
    assert restore(client, x_forwarded_for=hops, x_forwarded_proto=schemes)[1] == scheme


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            'public_url = "https://n.example"\ntrusted_proxies = ["10.0.0.1/8"]',
            r"console\.trusted_proxies\[0\]",
        ),
        ('public_url = "https://n.example"\ntrusted_proxies = ["proxy"]', r"console\.trusted_proxies\[0\]"),
        (
            'public_url = "https://n.example"\ntrusted_proxies = ["10.1.2.3", "0.0.0.0/0"]',
            r"console\.trusted_proxies\[1\]: has every address",
        ),
        (
            'public_url = "https://n.example"\ntrusted_proxies = ["::/0"]',
            r"console\.trusted_proxies\[0\]: has every address",
        ),
        ('trusted_proxies = ["127.0.0.1"]', r"console\.public_url: is needed with trusted_proxies"),
        (
            'public_url = "http://localhost"\ntrusted_proxies = ["127.0.0.1"]',
            r"console\.public_url: other hosts reach",
        ),
    ],
)
def test_proxies_need_networks_a_public_address_and_users(tmp_path: Path, text: str, key: str) -> None:
    from ingest.config.reader import load_config
    from ingest.errors import ConfigError

    path = tmp_path / "ingest.toml"
    path.write_text(f"[console]\n{text}\n")
    with pytest.raises(ConfigError, match=key):
        load_config(path)


@pytest.mark.parametrize(
    ("networks", "is_noted"),
    [
        (("10.1.2.3", "10.1.2.0/24", "2001:db8::1", "2001:db8::/64"), False),
        (("10.0.0.0/8",), True),
        (("2001:db8::/32",), True),
    ],
)
def test_a_wide_network_of_proxies_gets_a_note(networks: tuple[str, ...], is_noted: bool) -> None:
    from ingest.checks.weak_settings import find_weak_settings
    from ingest.config.model import Config, ConsoleSettings

    console = ConsoleSettings(public_url="https://n.example", trusted_proxies=networks)
    keys = [note.key for note in find_weak_settings(Config(console=console))]
    assert ("console.trusted_proxies[0]" in keys) == is_noted, keys
