"""What no single key can say: rules over two sections, names that must exist, files that must be there.

Pure but for a look at the files that the configuration names. Each rule yields its faults; none stops the
others.
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

from ingest.config import retention_rules, route_rules
from ingest.config.faults import Fault, dotted
from ingest.config.model import TLS, Config, Destination
from ingest.dicom.statuses import StatusPattern, says_stored_only

TLS_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
"""Names for `minimum_version`."""

TEMPLATE_FIELDS = ("study_uid", "series_uid", "sop_uid")
QUEUE_SCHEMES = ("redis", "rediss", "unix")
_LEDGERS = ("sqlite", "postgresql")

__all__ = ["QUEUE_SCHEMES", "TEMPLATE_FIELDS", "TLS_VERSIONS", "Names", "dotted", "faults"]


@dataclass(frozen=True, slots=True)
class Names:
    """Names that the file gives to sections, whether or not what stands in them is sound."""

    tls: frozenset[str]
    destinations: frozenset[str]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Names":
        """Collect them from a file's tables."""
        sections, destinations = data.get("tls", {}), data.get("destinations", [])
        return cls(
            frozenset(sections) if isinstance(sections, dict) else frozenset(),
            frozenset(str(d["name"]) for d in destinations if isinstance(d, dict) and "name" in d)
            if isinstance(destinations, list)
            else frozenset(),
        )


def faults(config: Config, names: Names, roles: Collection[str]) -> Iterator[Fault]:
    """Every fault that the rules find in a configuration whose types are sound."""
    yield from _listeners(config, names, roles)
    listening = {listener.tls for listener in config.listeners}
    for name, tls in config.tls.items():
        yield from _tls(f"tls.{name}", tls, name in listening)
    yield from _receive(config)
    if config.peers or any(each.certificate or each.issuer for each in config.destinations):
        from ingest.config import bindings  # noqa: PLC0415 - needs cryptography, which takes time to import

        yield from bindings.faults(config)
    yield from _queue(config)
    yield from _store(config)
    yield from _ledger(config)
    yield from retention_rules.faults(config, roles)
    yield from _destinations(config, names)
    yield from route_rules.faults(config, names.destinations)
    yield from _folders(config)


def _listeners(config: Config, names: Names, roles: Collection[str]) -> Iterator[Fault]:
    if "listen" in roles and not config.listeners:
        yield Fault("listeners", "there is none", "add a [[listeners]] with port and tls")
    for index, listener in enumerate(config.listeners):
        yield from _tls_name(f"listeners[{index}].tls", listener.tls, names)
        for other in range(index):
            first = config.listeners[other]
            same_host = listener.host == first.host or {listener.host, first.host} & {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
            if listener.port == first.port != 0 and same_host:
                cause = f"{listener.host}:{listener.port} is taken by listeners[{other}]"
                yield Fault(f"listeners[{index}].port", cause, "give each listener its own port")
                break


def _tls_name(key: str, name: str | bool, names: Names) -> Iterator[Fault]:
    if name is not False and name not in names.tls:
        known = f"one of {', '.join(sorted(names.tls))}" if names.tls else "false for plain DICOM"
        yield Fault(key, f"there is no [tls.{name}]", f"add that section, or write {known}")


def _tls(key: str, tls: TLS, listening: bool) -> Iterator[Fault]:
    yield from _pair(key, tls, listening)
    for index, path in enumerate(tls.trusted):
        yield from _file(f"{key}.trusted[{index}]", path, folder_too=True)
    if tls.peer_certificate != "none" and not tls.trusted:
        remedy = 'name PEM bundles, or set peer_certificate = "none"'
        yield Fault(f"{key}.trusted", "nothing to verify peers with", remedy)
    for index, path in enumerate(tls.crl):
        yield from _file(f"{key}.crl[{index}]", path, folder_too=True)
    if tls.crl and tls.peer_certificate == "none":
        remedy = "what is not verified cannot be found revoked; change one of the two"
        yield Fault(f"{key}.crl", 'contradicts peer_certificate = "none"', remedy)
    if tls.check_server_name and tls.peer_certificate == "none":
        remedy = "an unverified certificate proves no name; change one of the two"
        yield Fault(f"{key}.check_server_name", 'contradicts peer_certificate = "none"', remedy)
    yield from _protocol(key, tls)


def _pair(key: str, tls: TLS, listening: bool) -> Iterator[Fault]:
    for name in ("certificate", "private_key", "pkcs12", "password_file"):
        path = getattr(tls, name)
        if path is not None:
            yield from _file(f"{key}.{name}", path)
    if tls.pkcs12 is not None:
        for name in ("certificate", "private_key"):
            if getattr(tls, name) is not None:
                remedy = "name the one or the other: pkcs12 holds certificate and key"
                yield Fault(f"{key}.{name}", "contradicts pkcs12", remedy)
        return
    if listening and tls.certificate is None:
        remedy = "name a PEM file (`ingest certs new` makes one), or a pkcs12"
        yield Fault(f"{key}.certificate", "a listener needs a certificate", remedy)
    elif tls.certificate is None and tls.private_key is not None:
        yield Fault(f"{key}.certificate", "is missing for private_key", "name both, or neither")
    if tls.private_key is None and tls.certificate is not None and not _joined(tls.certificate):
        remedy = "name both, or a certificate's file that holds the key too"
        yield Fault(f"{key}.private_key", "is missing for certificate", remedy)


def _joined(path: Path) -> bool:
    """Whether a certificate's file holds a private key too."""
    try:
        return b"PRIVATE KEY-----" in path.read_bytes()
    except OSError:
        return False


def _protocol(key: str, tls: TLS) -> Iterator[Fault]:
    if tls.minimum_version and tls.minimum_version not in TLS_VERSIONS:
        yield Fault(
            f"{key}.minimum_version",
            f'"{tls.minimum_version}" is not known',
            f"write {' or '.join(TLS_VERSIONS)}",
        )
    if tls.ciphers:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(tls.ciphers)
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


def _receive(config: Config) -> Iterator[Fault]:
    if not config.receive.transfer_syntaxes:
        yield Fault(
            "receive.transfer_syntaxes", "is empty, so nothing could be received", 'write ["*"] for all'
        )
    if not config.receive.sop_classes:
        yield Fault("receive.sop_classes", "is empty, so nothing could be received", 'write ["*"] for all')
    for index, uid in enumerate(config.receive.transfer_syntaxes):
        if not uid or set(uid) - set("0123456789.*?"):
            key = f"receive.transfer_syntaxes[{index}]"
            yield Fault(
                key,
                f'"{uid}" is not a transfer syntax UID',
                'write a UID, or a pattern such as "1.2.840.10008.1.2.4.*"',
            )


def _queue(config: Config) -> Iterator[Fault]:
    url = config.queue.url
    if not url:
        return
    remedy = "write redis://HOST:6379/0, rediss://HOST:6379/0 or unix:///run/redis.sock, or leave it empty"
    try:
        parts = urlsplit(url)
        sound = bool(parts.path if parts.scheme == "unix" else parts.hostname) and parts.port != 0
    except ValueError:
        yield Fault("queue.url", "is not a URL", remedy)
        return
    if parts.scheme not in QUEUE_SCHEMES:
        yield Fault("queue.url", f'"{parts.scheme}" is not a scheme of Redis', remedy)
    elif not sound:
        yield Fault("queue.url", "names no server", remedy)


def _store(config: Config) -> Iterator[Fault]:
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
        yield Fault(
            key, "leads out of the store, or names no file", "write names separated by single slashes"
        )


def _ledger(config: Config) -> Iterator[Fault]:
    url = config.ledger.url
    if not url:
        return
    remedy = "write postgresql+psycopg://USER@HOST/DATABASE or sqlite:////FILE, or leave it empty"
    backend = url.partition(":")[0].partition("+")[0]
    if "://" not in url or backend not in _LEDGERS:
        yield Fault("ledger.url", "is not the URL of SQLite or PostgreSQL", remedy)
    elif backend == "sqlite" and url.partition("://")[2] in {"", "/", "/:memory:"}:
        yield Fault("ledger.url", "a ledger in memory does not outlive the process", remedy)


def _destinations(config: Config, names: Names) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, destination in enumerate(config.destinations):
        key = f"destinations[{index}]"
        if destination.name in first:
            cause = f'"{destination.name}" is the name of destinations[{first[destination.name]}] too'
            yield Fault(f"{key}.name", cause, "give each destination its own name")
        first.setdefault(destination.name, index)
        yield from _tls_name(f"{key}.tls", destination.tls, names)
        if destination.retry_first_seconds > destination.retry_max_seconds:
            cause = f"is longer than retry_max_seconds, {destination.retry_max_seconds:g}"
            yield Fault(f"{key}.retry_first_seconds", cause, "make it shorter, or retry_max_seconds longer")
        yield from _statuses(key, destination)


def _statuses(key: str, destination: Destination) -> Iterator[Fault]:
    """Faults of `retry_statuses` and `dead_statuses`."""
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
            if says_stored_only(pattern):
                cause = f"{pattern} says that the remote has the instance, which is then delivered"
                yield Fault(f"{key}.{here}", cause, "remove it")
            elif first.setdefault(pattern, here) != here:
                cause = f"{pattern} is {first[pattern]} too"
                yield Fault(f"{key}.{here}", cause, "keep one of the two")


def _folders(config: Config) -> Iterator[Fault]:
    for key, path in (
        ("node.data_dir", config.data_dir),
        ("receive.spool_dir", config.receive.spool_dir),
        ("store.root", config.store.root),
    ):
        if path is not None and _mode(path) not in {None, stat.S_IFDIR}:
            yield Fault(key, f"{path} is not a folder", "name a folder; it is made if it is not there")
    if config.log.file is not None:
        if _mode(config.log.file) == stat.S_IFDIR:
            yield Fault("log.file", f"{config.log.file} is a folder", "name a file in it")
        elif _mode(config.log.file.parent) != stat.S_IFDIR:
            yield Fault(
                "log.file", f"there is no folder {config.log.file.parent}", "make it, or name another file"
            )


def _file(key: str, path: Path, *, folder_too: bool = False) -> Iterator[Fault]:
    kind = _mode(path)
    if kind is None:
        yield Fault(
            key,
            f"{path} does not exist",
            "make it (`ingest certs new` makes certificates) or correct the path",
        )
    elif kind == stat.S_IFDIR and not folder_too:
        yield Fault(key, f"{path} is a folder", "name a file")
    elif not os.access(path, os.R_OK):
        yield Fault(key, f"{path} cannot be read", "let this user read it")


def _mode(path: Path) -> int | None:
    """The kind of what is at `path` (stat's S_IF…), None where there is nothing or no way to it."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return None
