"""Whether an instance came from a destination: only where AE title and host agree, and never by guessing."""

from pathlib import Path
from typing import Any

import pytest

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.dicom.file_header import InstanceHeader
from ingest.errors import ConfigError
from ingest.routing.node_router import NodeRouter
from ingest.routing.origin import is_certified_as, is_sent_from, is_title_of

HOST = "pacs.example.org"
ADDRESSES = ("10.0.0.7", "2001:db8::7")


def config(**route: Any) -> Config:
    """A node with two destinations, and one route to both."""
    pacs = {"name": "pacs", "ae_title": "PACS", "host": HOST}
    return Config.model_validate(
        {
            "node": {"ae_title": "INGEST"},
            "destinations": [pacs, {**pacs, "name": "ai", "ae_title": "AI", "host": "10.0.0.7"}],
            "routes": [{"name": "all", "to": ["pacs", "ai"], **route}],
        }
    )


def received(
    calling: str = "PACS", source: str = "10.0.0.7", certificate: tuple[str, ...] = ()
) -> InstanceHeader:
    return InstanceHeader(
        calling_ae=calling, called_ae="INGEST", source=f"dicom://{source}:4711", certificate=certificate
    )


def destinations(one: InstanceHeader, made: Config | None = None) -> tuple[str, ...]:
    return NodeRouter(made or config(), lambda _: ADDRESSES).route_instance(one).destinations


def test_sender_is_known_by_title_and_address() -> None:
    routing = NodeRouter(config(), lambda _: ADDRESSES).route_instance(received())
    assert (routing.destinations, routing.routed) == (("ai",), "all; not sent back to pacs")
    assert routing.exclusions == ("not sent back to pacs",)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (received("PACS ", "[2001:db8:0::7]"), ("ai",)),
        (received("PACS", "[::ffff:10.0.0.7]"), ("ai",)),
        (received("PACS", "10.9.9.9", certificate=("ab", "CN=pacs", f"DNS:{HOST.upper()}")), ("ai",)),
        (received("AI", "10.0.0.7"), ("pacs",)),
        # One of the two alone says nothing.
        (received("PACS", "10.9.9.9"), ("pacs", "ai")),
        (received("PACS", "10.9.9.9", certificate=("ab", f"CN={HOST}", "DNS:*.example.org")), ("pacs", "ai")),
        (received("CT1", "10.0.0.7"), ("pacs", "ai")),
        (received("pacs", "10.0.0.7"), ("pacs", "ai")),
        (InstanceHeader(calling_ae="PACS", called_ae="INGEST"), ("pacs", "ai")),
        (received("", ""), ("pacs", "ai")),
    ],
)
def test_nothing_is_kept_from_who_may_not_have_it(one: InstanceHeader, expected: tuple[str, ...]) -> None:
    assert destinations(one) == expected


@pytest.mark.parametrize("ours", ["node", "other", "destination"])
def test_title_that_is_also_ours_tells_nobody_apart(ours: str) -> None:
    made = config()
    if ours == "node":
        made = made.model_copy(update={"node": made.node.model_copy(update={"ae_title": "PACS"})})
    elif ours == "other":
        receive = made.receive.model_copy(update={"other_ae_titles": ("PACS",)})
        made = made.model_copy(update={"receive": receive})
    else:
        pacs = made.destinations[0].model_copy(update={"calling_ae_title": "PACS"})
        made = made.model_copy(update={"destinations": (pacs, *made.destinations[1:])})
    assert destinations(received(), made) == ("pacs", "ai")


def test_route_that_says_so_sends_back() -> None:
    assert destinations(received(), config(**{"return": True})) == ("pacs", "ai")


def test_addresses_are_asked_for_only_where_the_title_fits() -> None:
    asked: list[str] = []

    def addresses(destination: Any) -> tuple[str, ...]:
        asked.append(destination.name)
        return ADDRESSES

    router = NodeRouter(config(), addresses)
    router.route_instance(received("CT1"))
    assert asked == []
    router.route_instance(received("AI"))
    assert asked == ["ai"]


def test_host_without_an_address_gets_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no name server")

    monkeypatch.setattr("ingest.routing.node_router.RESOLVER.resolve", fail)
    assert NodeRouter(config()).route_instance(received()).destinations == ("pacs", "ai")


def test_localhost_is_found_at_its_address() -> None:
    made = config()
    pacs = made.destinations[0].model_copy(update={"host": "localhost"})
    made = made.model_copy(update={"destinations": (pacs, *made.destinations[1:])})
    assert NodeRouter(made).route_instance(received(source="127.0.0.1")).destinations == ("ai",)


def test_key_is_called_return_in_a_file(tmp_path: Path) -> None:
    text = '[[destinations]]\nname = "p"\nae_title = "P"\nhost = "h"\ntls = false\n[[routes]]\nto = ["p"]\n'
    path = tmp_path / "node.toml"
    path.write_text(text + "return = true\n")
    made = load_config(path)
    assert made.routes[0].sends_back
    assert Config.model_validate_json(made.model_dump_json()) == made
    path.write_text(text + "sends_back = true\n")
    with pytest.raises(ConfigError, match="sends_back"):
        load_config(path)


def test_odd_values_match_nothing() -> None:
    assert not is_sent_from("", ("",))
    assert not is_sent_from("nonsense", ("nonsense",))
    assert not is_certified_as((), HOST)
    assert not is_title_of("", "PACS", ())


def test_sender_in_a_route_is_the_destination_of_its_peer_entry_and_no_address() -> None:
    made = config(to=["ai", "@sender"], hold=True, priority="urgent")
    peers = [{"ae_title": "PACS", "destination": "pacs"}, {"ae_title": "*"}]
    made = Config.model_validate({**made.model_dump(by_alias=True), "peers": peers})
    router = NodeRouter(made, lambda _: ADDRESSES)
    back = router.route_instance(received())
    assert (back.destinations, back.routed, back.return_allowed) == (("ai", "pacs"), "all", {"pacs"})
    assert (back.held, back.priorities["pacs"]) == ({"ai", "pacs"}, {"urgent"})
    # Its address is that of "pacs", but its entry names no destination. Nothing else is lost by that.
    unknown = router.route_instance(received("CT1"))
    assert (unknown.destinations, unknown.held) == (("ai",), {"ai"})
    assert unknown.routed == "all; no [[peers]] entry names a destination for its sender"


def test_sender_in_a_route_needs_a_peer_that_has_a_destination(tmp_path: Path) -> None:
    path = tmp_path / "ingest.toml"
    path.write_text(
        f'[node]\ndata_dir = "{tmp_path}"\n[[peers]]\nae_title = "CT1"\n[[routes]]\nto = ["@sender"]\n'
    )
    with pytest.raises(ConfigError, match=r"routes\[0\]\.to\[0\].*no \[\[peers\]\] entry has a destination"):
        load_config(path)
