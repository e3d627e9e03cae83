"""Rules that concern several keys: contradictions, names that must exist, files that must exist.

Apart from examining the files that a configuration names, the rules are pure. Each rule yields its faults,
and no fault keeps another rule from running.
"""

import os
import ssl
import stat
import string
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingest.config import (
    alert_rules,
    balancer_rules,
    change_rules,
    console_rules,
    extra_rules,
    group_rules,
    passwords,
    retention_rules,
    route_rules,
)
from ingest.config.faults import Fault
from ingest.config.model import TLS, Config, ConsoleSettings, Destination, ListenerSettings
from ingest.dicom.statuses import StatusPattern, means_stored_only
from ingest.ext.tls_context import TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3, Context
from ingest.filesystem.barriers import find_barrier

TLS_VERSIONS = {
    "TLSv1": TLS_1_0,
    "TLSv1.1": TLS_1_1,
    "TLSv1.2": TLS_1_2,
    "TLSv1.3": TLS_1_3,
}
"""Values of `minimum_version`."""

TEMPLATE_FIELDS = ("study_uid", "series_uid", "sop_uid")
QUEUE_SCHEMES = ("redis", "rediss", "unix")
_LEDGER_BACKENDS = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class SectionNames:
    """Names that the file gives to sections, including sections that have faults."""

    tls: frozenset[str]
    destinations: frozenset[str]
    groups: frozenset[str] = frozenset()

    @classmethod
    def of_tables(cls, tables: Mapping[str, Any]) -> "SectionNames":
        """Collect the names from the tables of a file."""
        sections = tables.get("tls", {})
        return cls(
            frozenset(sections) if isinstance(sections, dict) else frozenset(),
            _collect_names(tables.get("destinations", [])),
            _collect_names(tables.get("groups", [])),
        )


def _collect_names(entries: Any) -> frozenset[str]:
    if not isinstance(entries, list):
        return frozenset()
    return frozenset(str(each["name"]) for each in entries if isinstance(each, dict) and "name" in each)


def check_rules(config: Config, names: SectionNames, roles: Collection[str]) -> Iterator[Fault]:
    """Yield every fault that the rules find in a configuration whose types are valid."""
    yield from _check_listeners(config, names, roles)
    listening = {listener.tls for listener in config.listeners}
    if config.console is not None:
        listening.add(config.console.tls)
    for name, tls in config.tls.items():
        yield from _check_tls(f"tls.{name}", tls, name in listening)
    yield from _check_receive(config)
    if config.peers or any(each.is_bound for each in config.destinations):
        from ingest.config import binding_rules  # noqa: PLC0415 - it imports cryptography, which is slow

        yield from binding_rules.check_bindings(config)
    yield from _check_queue(config)
    yield from _check_store(config)
    yield from _check_ledger(config)
    yield from passwords.check_password_files(config)
    yield from retention_rules.check_retention(config, roles)
    yield from _check_destinations(config, names)
    yield from balancer_rules.check_balanced_peers(config)
    yield from group_rules.check_groups(config, names.destinations)
    yield from route_rules.check_routes(config, names.destinations | names.groups)
    yield from _check_peer_destinations(config, names)
    yield from _check_commitment(config)
    yield from alert_rules.check_alerts(config, names.tls)
    yield from alert_rules.check_webhooks(config, names.tls)
    yield from _check_audit(config, names)
    yield from _check_traces(config, names)
    if config.console is not None:
        yield from console_rules.check_console(config.console, config.console_dir, names.tls)
    yield from _check_folders(config)
    yield from extra_rules.check_extras(config, roles)


def _check_listeners(config: Config, names: SectionNames, roles: Collection[str]) -> Iterator[Fault]:
    if "listen" in roles and not config.listeners:
        yield Fault("listeners", "there is no listener", "add a [[listeners]] with port and tls")
    for index, listener in enumerate(config.listeners):
        yield from _check_tls_name(f"listeners[{index}].tls", listener.tls, names)
        yield from balancer_rules.check_balancers(f"listeners[{index}]", listener)
        for other in range(index):
            first = config.listeners[other]
            if _share_address(listener, first):
                cause = f"{listener.host}:{listener.port} is the address of listeners[{other}] too"
                yield Fault(f"listeners[{index}].port", cause, "give each listener its own port")
                break
    for index, listener in enumerate(config.listeners):
        if config.console is not None and _share_address(config.console, listener):
            cause = f"{config.console.host}:{config.console.port} is the address of listeners[{index}] too"
            yield Fault("console.port", cause, "give the console a port of its own")
            break


def _share_address(one: ListenerSettings | ConsoleSettings, other: ListenerSettings) -> bool:
    """Return whether only one of two could listen."""
    hosts = {one.host, other.host}
    return one.port == other.port != 0 and (len(hosts) == 1 or not hosts.isdisjoint({"0.0.0.0", "::"}))  # noqa: S104 - compared, not bound


def _check_audit(config: Config, names: SectionNames) -> Iterator[Fault]:
    """Require TLS for audit messages, because they name patients; `allow_plain` permits UDP."""
    if config.audit is None:
        return
    yield from _check_tls_name("audit.tls", config.audit.tls, names)
    if config.audit.tls is False and not config.audit.allow_plain:
        remedy = "name a [tls.NAME], or set allow_plain = true to send them over UDP that anyone can read"
        yield Fault("audit.tls", "is false, and audit messages name patients", remedy)


def _check_traces(config: Config, names: SectionNames) -> Iterator[Fault]:
    tls = config.traces.tls if config.traces is not None else ""
    if not tls:
        return
    if tls not in names.tls:
        remedy = "add that section, or leave it empty for the authorities of the operating system"
        yield Fault("traces.tls", f"there is no [tls.{tls}]", remedy)
    elif (section := config.tls.get(tls)) is not None and not section.trusted:
        remedy = f"name the authorities of the collector in [tls.{tls}] trusted"
        yield Fault("traces.tls", f"[tls.{tls}] trusts nobody", remedy)


def _check_tls_name(key: str, name: str | bool, names: SectionNames) -> Iterator[Fault]:
    if name is not False and name not in names.tls:
        known = f"one of {', '.join(sorted(names.tls))}" if names.tls else "false for plain DICOM"
        yield Fault(key, f"there is no [tls.{name}]", f"add that section, or write {known}")


def _check_tls(key: str, tls: TLS, listening: bool) -> Iterator[Fault]:
    yield from _check_pair(key, tls, listening)
    for index, path in enumerate(tls.trusted):
        yield from _check_file(f"{key}.trusted[{index}]", path, may_be_folder=True)
    if tls.peer_certificate != "none" and not tls.trusted:
        remedy = 'name PEM bundles, or set peer_certificate = "none"'
        yield Fault(f"{key}.trusted", "no certificate to verify peers with", remedy)
    for index, path in enumerate(tls.crl):
        yield from _check_file(f"{key}.crl[{index}]", path, may_be_folder=True)
    if tls.crl and tls.peer_certificate == "none":
        remedy = "an unverified certificate cannot be checked for revocation; change one of the two"
        yield Fault(f"{key}.crl", 'contradicts peer_certificate = "none"', remedy)
    if tls.check_server_name and tls.peer_certificate == "none":
        remedy = "an unverified certificate proves no name; change one of the two"
        yield Fault(f"{key}.check_server_name", 'contradicts peer_certificate = "none"', remedy)
    yield from _check_protocol(key, tls)


def _check_pair(key: str, tls: TLS, listening: bool) -> Iterator[Fault]:
    for name in ("certificate", "private_key", "pkcs12", "password_file"):
        path = getattr(tls, name)
        if path is not None:
            yield from _check_file(f"{key}.{name}", path)
    if tls.pkcs12 is not None:
        for name in ("certificate", "private_key"):
            if getattr(tls, name) is not None:
                remedy = "name one or the other: pkcs12 contains certificate and key"
                yield Fault(f"{key}.{name}", "contradicts pkcs12", remedy)
        return
    if listening and tls.certificate is None:
        remedy = "name a PEM file (`ingest certs new` creates one), or a pkcs12"
        yield Fault(f"{key}.certificate", "a listener needs a certificate", remedy)
    elif tls.certificate is None and tls.private_key is not None:
        yield Fault(f"{key}.certificate", "is missing for private_key", "name both, or neither")
    if tls.private_key is None and tls.certificate is not None and not _has_private_key(tls.certificate):
        remedy = "name both, or a certificate file that contains the key too"
        yield Fault(f"{key}.private_key", "is missing for certificate", remedy)


def _has_private_key(path: Path) -> bool:
    """Return whether the file of a certificate contains a private key too."""
    try:
        return b"PRIVATE KEY-----" in path.read_bytes()
    except OSError:
        return False


def _check_protocol(key: str, tls: TLS) -> Iterator[Fault]:
    if tls.minimum_version and tls.minimum_version not in TLS_VERSIONS:
        yield Fault(
            f"{key}.minimum_version",
            f'"{tls.minimum_version}" is not known',
            f"write {' or '.join(TLS_VERSIONS)}",
        )
    if tls.ciphers:
        try:
            Context(is_server=True).set_ciphers(tls.ciphers)
        except (ssl.SSLError, ValueError):
            remedy = (
                "write an OpenSSL cipher list (`openssl ciphers -v LIST` shows one); TLS 1.3 is always on"
            )
            yield Fault(f"{key}.ciphers", "OpenSSL finds no cipher in it", remedy)
    if tls.profile != "custom":
        for name in ("minimum_version", "ciphers"):
            if getattr(tls, name):
                yield Fault(
                    f"{key}.{name}",
                    f'contradicts profile = "{tls.profile}"',
                    'remove it, or set profile = "custom"',
                )


def _check_receive(config: Config) -> Iterator[Fault]:
    if not config.receive.transfer_syntaxes:
        yield Fault(
            "receive.transfer_syntaxes", "is empty, so no instance could be received", 'write ["*"] for all'
        )
    if not config.receive.sop_classes:
        yield Fault(
            "receive.sop_classes", "is empty, so no instance could be received", 'write ["*"] for all'
        )
    for index, uid in enumerate(config.receive.transfer_syntaxes):
        if not uid or set(uid) - set("0123456789.*?"):
            key = f"receive.transfer_syntaxes[{index}]"
            yield Fault(
                key,
                f'"{uid}" is not a transfer syntax UID',
                'write a UID, or a pattern such as "1.2.840.10008.1.2.4.*"',
            )


def _check_queue(config: Config) -> Iterator[Fault]:
    url = config.queue.url
    if not url:
        return
    remedy = "write redis://HOST:6379/0, rediss://HOST:6379/0 or unix:///run/redis.sock, or leave it empty"
    try:
        parts = urlsplit(url)
        names_server = bool(parts.path if parts.scheme == "unix" else parts.hostname) and parts.port != 0
    except ValueError:
        yield Fault("queue.url", "is not a URL", remedy)
        return
    if parts.scheme not in QUEUE_SCHEMES:
        yield Fault("queue.url", f'"{parts.scheme}" is not a scheme of Redis', remedy)
    elif not names_server:
        yield Fault("queue.url", "names no server", remedy)


def _check_store(config: Config) -> Iterator[Fault]:
    key, template = "store.path", config.store.path
    known = ", ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        yield Fault(key, f"is not a template: {error}", f"use {known}")
        return
    fields = [name for _, name, _, _ in parts if name is not None]
    for name in fields:
        if name not in TEMPLATE_FIELDS:
            yield Fault(key, f"unknown field {{{name}}}", f"use {known}")
    if any(spec or conversion for _, _, spec, conversion in parts):
        yield Fault(key, "a field has a format", f"use {known} as they are")
    if "sop_uid" not in fields:
        yield Fault(key, "two instances would get one name", "put {sop_uid} into it")
    pieces = template.split("/")
    if template.startswith("/") or "\0" in template or {"", ".", ".."} & set(pieces):
        yield Fault(key, "leaves the store, or names no file", "write names separated by single slashes")


def _check_ledger(config: Config) -> Iterator[Fault]:
    url = config.ledger.url
    if not url:
        return
    remedy = "write postgresql+psycopg://USER@HOST/DATABASE or sqlite:////FILE, or leave it empty"
    backend = url.partition(":")[0].partition("+")[0]
    if "://" not in url or backend not in _LEDGER_BACKENDS:
        yield Fault("ledger.url", "is not the URL of SQLite or PostgreSQL", remedy)
    elif backend == "sqlite" and url.partition("://")[2] in {"", "/", "/:memory:"}:
        yield Fault("ledger.url", "a ledger in memory ends with its process", remedy)


def _check_destinations(config: Config, names: SectionNames) -> Iterator[Fault]:
    first: dict[str, int] = {}
    members = {name for group in config.groups for name in group.members}
    for index, destination in enumerate(config.destinations):
        key = f"destinations[{index}]"
        if destination.name in first:
            cause = f'"{destination.name}" is the name of destinations[{first[destination.name]}] too'
            yield Fault(f"{key}.name", cause, "give each destination its own name")
        first.setdefault(destination.name, index)
        yield from _check_tls_name(f"{key}.tls", destination.tls, names)
        if destination.retry_first_seconds > destination.retry_max_seconds:
            cause = f"is longer than retry_max_seconds, {destination.retry_max_seconds:g}"
            yield Fault(f"{key}.retry_first_seconds", cause, "make it shorter, or retry_max_seconds longer")
        if destination.one_association_per_study and destination.associations > 1:
            cause = "studies go one after the other, so that no two associations carry the same one"
            yield Fault(f"{key}.associations", cause, "set it to 1, or remove one_association_per_study")
        if destination.one_association_per_study and destination.name in members:
            cause = "a member of a group cannot have it: the group chooses the deliveries of an association"
            remedy = "remove it, or name the destination in routes instead of its group"
            yield Fault(f"{key}.one_association_per_study", cause, remedy)
        yield from _check_statuses(key, destination)
        yield from route_rules.check_destination_hours(key, destination)
        if destination.changes_attributes or destination.map_unmatched != "send":
            yield from change_rules.check_changes(key, destination)
        yield from change_rules.check_transcoding(key, destination)
        if destination.map is not None:
            yield from _check_file(f"{key}.map", destination.map, may_be_certificate=False)


def _check_commitment(config: Config) -> Iterator[Fault]:
    reporting = {peer.destination for peer in config.peers}
    for index, destination in enumerate(config.destinations):
        if destination.commitment and destination.name not in reporting:
            cause = "its reports would be refused: no [[peers]] entry stands for it"
            remedy = f'add a [[peers]] with its AE title and destination = "{destination.name}"'
            yield Fault(f"destinations[{index}].commitment", cause, remedy)


def _check_peer_destinations(config: Config, names: SectionNames) -> Iterator[Fault]:
    for index, peer in enumerate(config.peers):
        if peer.destination and peer.destination not in names.destinations:
            all_known = ", ".join(sorted(names.destinations))
            remedy = f"write one of {all_known}" if all_known else "add a [[destinations]] of that name"
            yield Fault(
                f"peers[{index}].destination", f'there is no destination "{peer.destination}"', remedy
            )
    yield from _check_same_titles(config)


def _check_same_titles(config: Config) -> Iterator[Fault]:
    """Yield entries of one AE title with several destinations.

    A request for storage commitment is kept with its AE title only. Its report might go to the wrong place.
    """
    first: dict[str, int] = {}
    for index, peer in enumerate(config.peers):
        if not peer.destination:
            continue
        title = peer.ae_title.lower() if config.receive.ignore_ae_title_case else peer.ae_title
        other = first.setdefault(title, index)
        named = config.peers[other].destination
        if named != peer.destination:
            cause = f'peers[{other}] has the same AE title, and the destination "{named}"'
            remedy = "name one destination in both, or give the callers different AE titles"
            yield Fault(f"peers[{index}].destination", cause, remedy)


def _check_statuses(key: str, destination: Destination) -> Iterator[Fault]:
    first: dict[StatusPattern, str] = {}
    for name in ("retry_statuses", "dead_statuses"):
        for index, text in enumerate(getattr(destination, name)):
            here = f"{name}[{index}]"
            try:
                pattern = StatusPattern.parse(text)
            except ValueError as error:
                remedy = 'write four hexadecimal digits, x for any digit, as "C211" or "Cxxx"'
                yield Fault(f"{key}.{here}", str(error), remedy)
                continue
            if means_stored_only(pattern):
                cause = f"{pattern} means that the remote has stored the instance, so it is delivered"
                yield Fault(f"{key}.{here}", cause, "remove it")
            elif first.setdefault(pattern, here) != here:
                cause = f"{pattern} is {first[pattern]} too"
                yield Fault(f"{key}.{here}", cause, "keep one of the two")


def _check_folders(config: Config) -> Iterator[Fault]:
    for key, path in (
        ("node.data_dir", config.data_dir),
        ("receive.spool_dir", config.receive.spool_dir),
        ("store.root", config.store.root),
    ):
        if path is not None and _file_type(path) not in {None, stat.S_IFDIR}:
            yield Fault(
                key, f"{path} is not a folder", "name a folder; the node creates it if it does not exist"
            )
    if config.log.file is not None:
        if _file_type(config.log.file) == stat.S_IFDIR:
            yield Fault("log.file", f"{config.log.file} is a folder", "name a file in it")
        elif _file_type(config.log.file.parent) != stat.S_IFDIR:
            yield Fault(
                "log.file", f"there is no folder {config.log.file.parent}", "create it, or name another file"
            )


def _check_file(
    key: str, path: Path, *, may_be_folder: bool = False, may_be_certificate: bool = True
) -> Iterator[Fault]:
    kind = _file_type(path)
    if kind is None and (barrier := find_barrier(path)) is not None:
        yield Fault(
            key,
            f"{path} cannot be reached: this user may not enter {barrier}",
            "let this user enter that folder, or move the file",
        )
    elif kind is None:
        hint = " (`ingest certs new` creates certificates)" if may_be_certificate else ""
        yield Fault(key, f"{path} does not exist", f"create it{hint}, or correct the path")
    elif kind == stat.S_IFDIR and not may_be_folder:
        yield Fault(key, f"{path} is a folder", "name a file")
    elif not os.access(path, os.R_OK):
        yield Fault(key, f"{path} cannot be read", "let this user read it")


def _file_type(path: Path) -> int | None:
    """Return the file type of `path` (S_IF… of stat), or None if it does not exist or cannot be reached."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return None
