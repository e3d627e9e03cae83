"""`DicomModalities` of an Orthanc configuration: the destinations and peers that they become."""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.config.model import ANY_AE_TITLE
from ingest.config.orthanc.keys import MODALITY_KEYS, MODALITY_KEYS_WITHOUT_EFFECT, MODALITY_MATCHING_VALUES
from ingest.config.orthanc.values import (
    MAX_INTEGER,
    NO_DEADLINE_SECONDS,
    TLS_NAME,
    TYPE_NAMES,
    OrthancValues,
)
from ingest.config.source import ConfigSource

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_PORT: Final = re.compile(r"0*([0-9]{1,5})")
_ARRAY: Final = ("AET", "Host", "Port", "Manufacturer")
_COMMANDS: Final = ("echo", "store")


@dataclass(frozen=True, slots=True)
class Modality:
    """One modality. Orthanc has two forms of them: a list and an object."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: bool = False
    local_ae: str = ""
    timeout: int = 0
    allow: frozenset[str] = frozenset(_COMMANDS)

    @property
    def key(self) -> str:
        """The key of the modality in the file."""
        return f"DicomModalities.{self.name}"


def convert_modalities(values: OrthancValues, source: ConfigSource) -> str:
    """Write destinations and peers into `source`.

    Return the key of the first modality with TLS, or nothing.
    """
    if values.get_value("DicomModalitiesInDatabase"):
        cause = "is true, so modalities are in Orthanc's database, which is not read"
        source.add_note(
            "DicomModalitiesInDatabase", cause, "write them into DicomModalities, and set it to false"
        )
        found: list[Modality] = []
    else:
        found = list(_parse_modalities(values.values.get("DicomModalities", {}), source))
    seconds = values.get_value("DicomScuTimeout")
    for index, modality in enumerate(found):
        _convert_destination(index, modality, modality.timeout or seconds, source)
    if found:
        cause = "modalities become destinations without a route: nothing is forwarded to them"
        source.add_note("DicomModalities", cause, "import it as TOML and add [[routes]] to forward")
    _convert_peers(found, values, source)
    return next((f"{modality.key}.UseDicomTls" for modality in found if modality.tls), "")


def find_keys_without_effect(section: Any) -> set[str]:
    """Return the keys of modalities that mean nothing to this node.

    A key that asks for what this node always does, such as no transcoding, is not one of them.
    """
    ignored = set()
    for value in section.values() if isinstance(section, dict) else ():
        if isinstance(value, dict):
            ignored |= {
                key
                for key in MODALITY_KEYS_WITHOUT_EFFECT & value.keys()
                if value[key] != MODALITY_MATCHING_VALUES.get(key)
            }
        elif isinstance(value, list) and len(value) == len(_ARRAY):
            ignored.add(_ARRAY[-1])
    return ignored


def _parse_modalities(section: Any, source: ConfigSource) -> Iterator[Modality]:
    if not isinstance(section, dict):
        source.add_fault("DicomModalities", "is not an object", 'write it as { "name" : { ... } }')
        return
    for name, value in section.items():
        key = f"DicomModalities.{name}"
        if not _NAME.fullmatch(name):
            source.add_fault(key, "cannot be a name", "use letters, digits, dashes and underscores")
            continue
        if isinstance(value, dict):
            modality = _parse_modality(name, value, source)
        elif isinstance(value, list) and len(value) in {3, 4}:
            modality = _parse_modality(name, dict(zip(_ARRAY, value, strict=False)), source)
        else:
            remedy = 'write [ "AET", "host", port ], or an object with AET, Host and Port'
            source.add_fault(key, "is no modality", remedy)
            continue
        if modality is not None:
            yield modality


def _parse_modality(name: str, value: Mapping[str, Any], source: ConfigSource) -> Modality | None:
    key, faults_before = f"DicomModalities.{name}", len(source.faults)
    unknown = sorted(set(value) - MODALITY_KEYS.keys() - MODALITY_KEYS_WITHOUT_EFFECT)
    if unknown:
        source.add_note(key, f"{', '.join(unknown)}: unknown key of a modality", "it is ignored")

    def get_typed(field: str, kind: type) -> Any:
        found = value.get(field, MODALITY_KEYS[field].default)
        if type(found) is kind and (not isinstance(found, int) or 0 <= found <= MAX_INTEGER):
            return found
        cause = "is missing" if field not in value else f"is not {TYPE_NAMES[kind]}"
        source.add_fault(f"{key}.{field}", cause, f"write {TYPE_NAMES[kind]}")
        return kind()

    title, host = get_typed("AET", str), get_typed("Host", str)
    port = _parse_port(f"{key}.Port", value.get("Port"), source)
    flags = {field: get_typed(field, bool) for field in ("UseDicomTls", "AllowEcho", "AllowStore")}
    modality = Modality(
        name,
        title,
        host,
        port,
        tls=flags["UseDicomTls"],
        local_ae=get_typed("LocalAet", str),
        timeout=get_typed("Timeout", int),
        allow=frozenset(command for command in _COMMANDS if flags[f"Allow{command.title()}"]),
    )
    return modality if len(source.faults) == faults_before else None


def _parse_port(key: str, value: Any, source: ConfigSource) -> int:
    """Parse a port. Orthanc also accepts digits in quotes, which environment variables produce."""
    digits = _PORT.fullmatch(value) if isinstance(value, str) else None
    if digits:
        value = int(digits[1])
    if type(value) is int and 1 <= value <= 65534:
        return value
    source.add_fault(key, "is no port" if value is not None else "is missing", "write 1 to 65534")
    return 1


def _convert_destination(index: int, modality: Modality, seconds: int, source: ConfigSource) -> None:
    fields = {
        "name": ("", modality.name),
        "ae_title": ("AET", modality.ae_title),
        "host": ("Host", modality.host),
        "port": ("Port", modality.port),
        "tls": ("UseDicomTls", TLS_NAME if modality.tls else False),
        "response_seconds": ("Timeout", float(seconds) or NO_DEADLINE_SECONDS),
    }
    if seconds:
        fields["connect_seconds"] = ("Timeout", float(seconds))
    if modality.local_ae:
        fields["calling_ae_title"] = ("LocalAet", modality.local_ae)
    for name, (field, value) in fields.items():
        key = f"{modality.key}.{field}" if field else modality.key
        source.set_value(key, ("destinations", index, name), value)


def _convert_peers(modalities: Sequence[Modality], values: OrthancValues, source: ConfigSource) -> None:
    """Write `[[peers]]` with the services that each caller may use.

    Every caller may use the services that are always allowed. A modality may also use those that it allows.
    If several modalities have one AE title, it may use what all of them allow; if hosts are checked, what one
    with the caller's address allows. As in Orthanc, a caller without an entry is refused if nothing is always
    allowed, and a caller whose entry allows nothing may still associate.
    """
    always = {command for command in _COMMANDS if values.get_value(f"DicomAlwaysAllow{command.title()}")}
    if always == set(_COMMANDS):
        return
    entries: list[tuple[str, dict[str, Any]]] = []
    strict, checked = values.get_value("StrictAetComparison"), values.get_value("DicomCheckModalityHost")
    titles: dict[str, list[Modality]] = {}
    for modality in modalities:
        title = modality.ae_title.strip(" ")
        if title == ANY_AE_TITLE:
            cause = f'is "{ANY_AE_TITLE}", which would mean everybody: the modality admits no caller'
            source.add_note(f"{modality.key}.AET", cause, "list the AE titles that call")
            continue
        titles.setdefault(title if strict else title.lower(), []).append(modality)
    for group in titles.values():
        title, key = group[0].ae_title, group[0].key
        if checked:
            for host, (first, allow) in _group_by_address(group, source).items():
                entry = {"ae_title": title, "hosts": [host], "allow": _sort_commands(always | allow)}
                entries.append((first.key, entry))
            if always:
                entries.append((key, {"ae_title": title, "allow": _sort_commands(always)}))
        else:
            shared = frozenset.intersection(*(modality.allow for modality in group))
            entries.append((key, {"ae_title": title, "allow": _sort_commands(always | shared)}))
    entries.append(("DicomAlwaysAllowEcho", {"ae_title": "*", "allow": _sort_commands(always)}))
    for index, (key, entry) in enumerate(entries):
        for name, value in entry.items():
            source.set_value(key, ("peers", index, name), value)


def _group_by_address(
    group: Sequence[Modality], source: ConfigSource
) -> dict[str, tuple[Modality, frozenset[str]]]:
    """Return, for each address, the first modality there and the services that any modality there allows."""
    found: dict[str, tuple[Modality, frozenset[str]]] = {}
    for modality in group:
        host = _normalize_address(modality.host)
        if not host:
            cause = "is a name, and DicomCheckModalityHost compares addresses: no caller matches it"
            source.add_note(f"{modality.key}.Host", cause, "write the address, as Orthanc requires")
            continue
        first, allow = found.get(host, (modality, frozenset()))
        found[host] = first, allow | modality.allow
    return found


def _sort_commands(commands: set[str] | frozenset[str]) -> list[str]:
    return [command for command in _COMMANDS if command in commands]


def _normalize_address(host: str) -> str:
    """Return an address in its usual spelling, or nothing for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""
