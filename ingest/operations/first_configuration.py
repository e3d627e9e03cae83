"""The first configuration of a node: `ingest init`.

It has only what a new node needs, with a comment for each choice. config/ingest.toml has every key.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from ingest.config.model import AETitle
from ingest.config.reader import load_config
from ingest.config.serialization import format_toml_value
from ingest.errors import IngestError
from ingest.tls.keys import pairs

WIDTH: Final = 80
"""Longest line of the file, in characters."""

_EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_COMMENT_COLUMN: Final = 32
_CERTIFICATE: Final = Path("pki/node.crt")
_KEY: Final = Path("pki/node.key")
_TRUSTED: Final = Path("pki/trusted.crt")

_REMOTE: Final = re.compile(
    r"(?P<ae>[^@]+)@(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:@\[\]\s]+)):(?P<port>\d{1,5})"
)


@dataclass(frozen=True, slots=True)
class FirstDestination:
    """The destination that a person names as AE@HOST:PORT.

    Attributes:
        is_tls: Whether it takes TLS; otherwise plain DICOM.
    """

    ae_title: str
    host: str
    port: int
    is_tls: bool = True

    @property
    def name(self) -> str:
        """The name in `[[destinations]]`, made of the AE title."""
        return re.sub(r"[^a-z0-9_.-]+", "-", self.ae_title.strip().lower()).strip("-") or "destination"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstChoices:
    """The choices of a person.

    Attributes:
        machine_name: Name of this machine in the certificate.
        console_port: Port of the console on this machine; None for no console.
    """

    machine_name: str
    ae_title: str = "INGEST"
    host: str = "0.0.0.0"  # noqa: S104 - a receiving node listens
    port: int = 2762
    data_dir: str = "var"
    destination: FirstDestination | None = None
    console_port: int | None = 8080


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """The files of a first configuration."""

    configuration: Path
    certificate: Path
    key: Path
    trusted: Path


@dataclass(frozen=True, slots=True)
class NodeUser:
    """The user that the node runs as, by its numbers."""

    uid: int
    gid: int


def parse_ae_title(text: str) -> str:
    """Return an AE title.

    Raises:
        ValueError: The text is no AE title.
    """
    try:
        return str(TypeAdapter(AETitle).validate_python(text))
    except ValidationError:
        raise ValueError(f"{text!r} is no AE title; write 1 to 16 characters without backslash") from None


def parse_destination(text: str, *, is_tls: bool = True) -> FirstDestination:
    """Return the destination that AE@HOST:PORT names.

    Raises:
        ValueError: The text names no destination.
    """
    found = _REMOTE.fullmatch(text.strip())
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise ValueError(
            f"{text!r} is no destination; write AE@HOST:PORT, as ARCHIVE@archive.example.org:2762"
        )
    host = found["v6"] or found["host"]
    return FirstDestination(parse_ae_title(found["ae"].strip()), host, int(found["port"]), is_tls)


def write_first_configuration(
    folder: Path, choices: FirstChoices, user: NodeUser | None = None
) -> WrittenFiles:
    """Write a configuration, a key pair and a trust bundle. Nothing that exists is replaced.

    Args:
        folder: Where to write.
        choices: The choices of a person.
        user: The user that can read the configuration, and that owns keys and data folder; None for this one.

    Raises:
        ConfigError: No node could start with the choices. Nothing was written.
        IngestError: One of the files exists, or a name cannot be in a certificate.
        OSError: A file or folder cannot be written.
    """
    files = WrittenFiles(folder / "ingest.toml", *(folder / each for each in (_CERTIFICATE, _KEY, _TRUSTED)))
    existing = [
        str(path)
        for path in (files.configuration, files.certificate, files.key, files.trusted)
        if os.path.lexists(path)
    ]
    if existing:
        raise IngestError(f"{', '.join(existing)} exists, and nothing is replaced; name another folder")
    if user is not None:
        _make_folder(folder, 0o750, 0, user.gid)
    folder.mkdir(parents=True, exist_ok=True)
    files.key.parent.mkdir(exist_ok=True, mode=0o700)
    # What a failure left would be in the way of the next attempt, because nothing is replaced.
    with tempfile.TemporaryDirectory(prefix=".init-", dir=folder) as name:
        draft = Path(name)
        _write_draft(draft, choices)
        if user is not None:
            os.chown(files.key.parent, user.uid, user.gid)
            os.chown(draft / files.configuration.name, 0, user.gid)
            for path in (_CERTIFICATE, _KEY, _TRUSTED):
                os.chown(draft / path, user.uid, user.gid)
            _make_folder(folder / choices.data_dir, 0o750, user.uid, user.gid)
        for path in (files.certificate, files.key, files.trusted, files.configuration):
            (draft / path.relative_to(folder)).rename(path)
    return files


def _write_draft(folder: Path, choices: FirstChoices) -> None:
    """Write all files, and read them as a node does.

    Raises:
        ConfigError: No node could start with the choices.
        IngestError: A name cannot be in a certificate or a file.
    """
    (folder / _KEY).parent.mkdir()
    names = ["localhost", "127.0.0.1", "::1"]
    if choices.host not in _EVERY_ADDRESS:
        names.append(choices.host)
    made = pairs.create_pair(folder / _CERTIFICATE.with_suffix(""), choices.machine_name, san=names)
    # A node that trusts its own certificate can be tried out with it.
    pairs.add_to_bundle(made.anchor, folder / _TRUSTED)
    try:
        content = format_first_configuration(choices).encode()
    except UnicodeEncodeError:
        raise IngestError("a name has bytes that are no UTF-8; choose another one") from None
    path = folder / "ingest.toml"
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o640)
        file.write(content)
    load_config(path, environ={})


def _make_folder(folder: Path, mode: int, uid: int, gid: int) -> None:
    """Make a folder with this owner. One that exists stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=mode)
    except FileExistsError:
        return
    os.chown(folder, uid, gid)


def format_first_configuration(choices: FirstChoices) -> str:
    """Return the text of the configuration."""
    return (
        "\n".join((*_format_head(choices), *_format_destination(choices), *_format_console(choices))) + "\n"
    )


def _format_head(choices: FirstChoices) -> Iterator[str]:
    yield from (
        "# Configuration of this node, written by `ingest init`.",
        "#",
        "# `ingest check -c FILE` reports each fault with its remedy. A running node",
        "# takes changes with `ingest reload -c FILE`. Relative paths start at the folder",
        "# of this file. docs/reference/configuration.md explains every key.",
        "",
        "[node]",
        *_format_key("ae_title", choices.ae_title, "our AE title, as receiver and as sender"),
        *_format_key("data_dir", choices.data_dir, "spool, store, ledger and quarantine"),
        "",
        "# Devices call this address. Port 2762 is that of DICOM over TLS. A port below",
        "# 1024, such as 104, needs the capability CAP_NET_BIND_SERVICE.",
        "[[listeners]]",
        *_format_key("host", choices.host, "0.0.0.0: every address of this machine"),
        *_format_key("port", choices.port, ""),
        *_format_key("tls", "node", "the section below; false: plain DICOM"),
        "",
        "# Both sides show a certificate. A peer may call if its certificate, or that of",
        "# its authority, is in trusted.crt. This adds one:",
        "#     ingest certs trust pki/trusted.crt PEER.crt",
        "# The peer, in turn, has to trust pki/node.crt.",
        "[tls.node]",
        *_format_key("certificate", str(_CERTIFICATE), ""),
        *_format_key("private_key", str(_KEY), "no other user may read it"),
        *_format_key("trusted", [str(_TRUSTED)], ""),
        *_format_key("check_server_name", True, "destinations: their name must fit"),
        "",
        "# Without entries, every caller that TLS admits may send; with entries, only",
        "# these. Each of them can be bound to an address and to a certificate.",
        "# [[peers]]",
        '# ae_title = "CT1"',
        '# hosts = ["10.1.0.0/16"]',
        "",
    )


def _format_destination(choices: FirstChoices) -> Iterator[str]:
    chosen = choices.destination
    shown = chosen or FirstDestination("ARCHIVE", "archive.example.org", 2762)
    mark = "" if chosen else "# "
    yield from (
        "# A destination gets the instances that a route sends to it. Several of both",
        "# are possible; docs/reference/routing.md has the conditions of routes.",
        f"{mark}[[destinations]]",
        *_format_key(f"{mark}name", shown.name, "its name in commands, as in --to NAME"),
        *_format_key(f"{mark}ae_title", shown.ae_title, ""),
        *_format_key(f"{mark}host", shown.host, ""),
        *_format_key(f"{mark}port", shown.port, ""),
        *_format_key(f"{mark}tls", "node" if shown.is_tls else False, "a [tls.NAME]; false: plain DICOM"),
        f"{mark}[[routes]]",
        *_format_key(f"{mark}to", [shown.name], "every instance"),
        "",
    )


def _format_console(choices: FirstChoices) -> Iterator[str]:
    mark = "# " if choices.console_port is None else ""
    yield from (
        "# Pages that show what arrives, what waits and why. `ingest console -c FILE`",
        "# prints their address, and the token of the first login.",
        f"{mark}[console]",
        *_format_key(f"{mark}host", "127.0.0.1", "other addresses need tls and users"),
        *_format_key(f"{mark}port", choices.console_port or 8080, ""),
    )


def _format_key(name: str, value: object, comment: str) -> Iterator[str]:
    """Yield a key with its comment behind it, or above it where the line would be too long."""
    line = f"{name} = {format_toml_value(value)}"
    if not comment:
        yield line
    elif len(commented := f"{line:<{_COMMENT_COLUMN}}# {comment}") <= WIDTH:
        yield commented
    else:
        yield from (f"# {comment}", line)
