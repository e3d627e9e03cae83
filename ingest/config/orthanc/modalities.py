"""`DicomModalities` of an Orthanc configuration: whom it calls, and who may call it."""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.config.orthanc.keys import MODALITY_IDLE, MODALITY_KEYS, MODALITY_WITHOUT_EFFECT
from ingest.config.orthanc.source import MOST, NO_DEADLINE, TLS_NAME, TYPES, Reader, Source
from ingest.dicom.admission import ANY

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_PORT: Final = re.compile(r"0*([0-9]{1,5})")
_ARRAY: Final = ("AET", "Host", "Port", "Manufacturer")
_COMMANDS: Final = ("echo", "store")


@dataclass(frozen=True, slots=True)
class Modality:
    """One modality, in either form."""

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
        """Its place in the file."""
        return f"DicomModalities.{self.name}"


def convert(reader: Reader, source: Source) -> str:
    """Write destinations and peers; returns the key of the first that uses TLS, or nothing."""
    if reader.get("DicomModalitiesInDatabase"):
        cause = "is true, so modalities are in Orthanc's database, which is not read"
        source.note(
            "DicomModalitiesInDatabase", cause, "write them into DicomModalities, and set it to false"
        )
        found: list[Modality] = []
    else:
        found = list(_modalities(reader.values.get("DicomModalities", {}), source))
    seconds = reader.get("DicomScuTimeout")
    for index, modality in enumerate(found):
        _destination(index, modality, modality.timeout or seconds, source)
    if found:
        cause = "modalities are destinations without a route: nothing is forwarded to them"
        source.note("DicomModalities", cause, "import it as TOML and add [[routes]] to forward")
    _peers(found, reader, source)
    return next((f"{modality.key}.UseDicomTls" for modality in found if modality.tls), "")


def without_effect(section: Any) -> set[str]:
    """The keys of modalities that mean nothing here; that nothing is transcoded holds anyway."""
    idle = set()
    for value in section.values() if isinstance(section, dict) else ():
        if isinstance(value, dict):
            idle |= {
                key for key in MODALITY_WITHOUT_EFFECT & value.keys() if value[key] != MODALITY_IDLE.get(key)
            }
        elif isinstance(value, list) and len(value) == len(_ARRAY):
            idle.add(_ARRAY[-1])
    return idle


def _modalities(section: Any, source: Source) -> Iterator[Modality]:
    if not isinstance(section, dict):
        source.fault("DicomModalities", "is not an object", 'write it as { "name" : { ... } }')
        return
    for name, value in section.items():
        key = f"DicomModalities.{name}"
        if not _NAME.fullmatch(name):
            source.fault(key, "cannot be a name", "use letters, digits, dashes and underscores")
            continue
        if isinstance(value, dict):
            modality = _object(name, value, source)
        elif isinstance(value, list) and len(value) in {3, 4}:
            modality = _object(name, dict(zip(_ARRAY, value, strict=False)), source)
        else:
            remedy = 'write [ "AET", "host", port ], or an object with AET, Host and Port'
            source.fault(key, "is no modality", remedy)
            continue
        if modality is not None:
            yield modality


def _object(name: str, value: Mapping[str, Any], source: Source) -> Modality | None:
    key, sound = f"DicomModalities.{name}", len(source.faults)
    idle = sorted(set(value) - MODALITY_KEYS.keys() - MODALITY_WITHOUT_EFFECT)
    if idle:
        source.note(key, f"{', '.join(idle)}: no key of a modality that is known here", "it is ignored")

    def typed(field: str, kind: type) -> Any:
        found = value.get(field, MODALITY_KEYS[field].default)
        if type(found) is kind and (not isinstance(found, int) or 0 <= found <= MOST):
            return found
        cause = "is missing" if field not in value else f"is not {TYPES[kind]}"
        source.fault(f"{key}.{field}", cause, f"write {TYPES[kind]}")
        return kind()

    title, host = typed("AET", str), typed("Host", str)
    port = _port(f"{key}.Port", value.get("Port"), source)
    flags = {field: typed(field, bool) for field in ("UseDicomTls", "AllowEcho", "AllowStore")}
    modality = Modality(
        name,
        title,
        host,
        port,
        tls=flags["UseDicomTls"],
        local_ae=typed("LocalAet", str),
        timeout=typed("Timeout", int),
        allow=frozenset(command for command in _COMMANDS if flags[f"Allow{command.title()}"]),
    )
    return modality if len(source.faults) == sound else None


def _port(key: str, value: Any, source: Source) -> int:
    """Orthanc takes digits in quotes too, as a variable of the environment puts them."""
    digits = _PORT.fullmatch(value) if isinstance(value, str) else None
    if digits:
        value = int(digits[1])
    if type(value) is int and 1 <= value <= 65534:
        return value
    source.fault(key, "is no port" if value is not None else "is missing", "write 1 to 65534")
    return 1


def _destination(index: int, modality: Modality, seconds: int, source: Source) -> None:
    fields = {
        "name": ("", modality.name),
        "ae_title": ("AET", modality.ae_title),
        "host": ("Host", modality.host),
        "port": ("Port", modality.port),
        "tls": ("UseDicomTls", TLS_NAME if modality.tls else False),
        "response_seconds": ("Timeout", float(seconds) or NO_DEADLINE),
    }
    if seconds:
        fields["connect_seconds"] = ("Timeout", float(seconds))
    if modality.local_ae:
        fields["calling_ae_title"] = ("LocalAet", modality.local_ae)
    for name, (field, value) in fields.items():
        key = f"{modality.key}.{field}" if field else modality.key
        source.set(key, ("destinations", index, name), value)


def _peers(modalities: Sequence[Modality], reader: Reader, source: Source) -> None:
    """Who may do what: what is always allowed, everybody; the rest, the modalities to which it is allowed.

    An AE title that several have may do what all of them may; where hosts are checked, what any with the
    caller's address may. Where nothing is always allowed, who has no entry is refused, and who has one is let
    in even if it allows nothing, as Orthanc does.
    """
    always = {command for command in _COMMANDS if reader.get(f"DicomAlwaysAllow{command.title()}")}
    if always == set(_COMMANDS):
        return
    entries: list[tuple[str, dict[str, Any]]] = []
    strict, checked = reader.get("StrictAetComparison"), reader.get("DicomCheckModalityHost")
    titles: dict[str, list[Modality]] = {}
    for modality in modalities:
        title = modality.ae_title.strip(" ")
        if title == ANY:
            cause = f'is "{ANY}", which would stand for everybody: no caller is let in by it'
            source.note(f"{modality.key}.AET", cause, "list the AE titles that call")
            continue
        titles.setdefault(title if strict else title.lower(), []).append(modality)
    for group in titles.values():
        title, key = group[0].ae_title, group[0].key
        if checked:
            for host, (first, allow) in _by_address(group, source).items():
                entry = {"ae_title": title, "hosts": [host], "allow": _listed(always | allow)}
                entries.append((first.key, entry))
            if always:
                entries.append((key, {"ae_title": title, "allow": _listed(always)}))
        else:
            shared = frozenset.intersection(*(modality.allow for modality in group))
            entries.append((key, {"ae_title": title, "allow": _listed(always | shared)}))
    entries.append(("DicomAlwaysAllowEcho", {"ae_title": "*", "allow": _listed(always)}))
    for index, (key, entry) in enumerate(entries):
        for name, value in entry.items():
            source.set(key, ("peers", index, name), value)


def _by_address(group: Sequence[Modality], source: Source) -> dict[str, tuple[Modality, frozenset[str]]]:
    """Of modalities with one AE title: the first at each address, and what any of those there may."""
    found: dict[str, tuple[Modality, frozenset[str]]] = {}
    for modality in group:
        host = _address(modality.host)
        if not host:
            cause = "is a name, and DicomCheckModalityHost compares addresses: it is never the caller's"
            source.note(f"{modality.key}.Host", cause, "write the address, as Orthanc asks")
            continue
        first, allow = found.get(host, (modality, frozenset()))
        found[host] = first, allow | modality.allow
    return found


def _listed(commands: set[str] | frozenset[str]) -> list[str]:
    return [command for command in _COMMANDS if command in commands]


def _address(host: str) -> str:
    """An address in its usual spelling; empty for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""
