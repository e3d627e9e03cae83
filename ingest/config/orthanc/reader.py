"""An Orthanc configuration as tables of ours: defaults and meaning are Orthanc's, what runs is this node.

Pure but for reading the files. An Orthanc file has no routes: its modalities become callers, and
destinations that nothing is forwarded to by itself, as Orthanc does not either.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ingest.config.orthanc import files, modalities, transfer_syntaxes
from ingest.config.orthanc.ciphers import translated
from ingest.config.orthanc.keys import ALIASES, HONOURED, NOT_HONOURED, without_effect
from ingest.config.orthanc.source import NO_DEADLINE, TLS_NAME, Reader, Source
from ingest.cores import usable_cores

_VERSIONS: Final = {1: "TLSv1", 2: "TLSv1", 3: "TLSv1.1", 4: "TLSv1.2", 5: "TLSv1.3"}
"""DicomTlsMinimumProtocolVersion; 1 is SSL 3 for Orthanc, which no OpenSSL of today has."""

_USUAL_AGE: Final = 60
"""Orthanc's default, in seconds, which its 0 is too."""

_USUAL_THREADS: Final = 4
"""Orthanc's default, for which no word is needed on a small machine."""


def read(path: Path, environ: Mapping[str, str]) -> Source:
    """The configuration at `path`, a file or a folder.

    Raises:
        ConfigError: It is not JSON as Orthanc reads it, or a key is in two files.
    """
    return convert(files.read(path, environ))


def convert(values: Mapping[str, Any]) -> Source:
    """The tables of an Orthanc configuration, with every fault and note."""
    source = Source()
    values = {ALIASES.get(key, key) if ALIASES.get(key) not in values else key: values[key] for key in values}
    reader = Reader(values, source)
    _unknown(values, source)
    _node(reader, source)
    _receive(reader, source)
    _storage(reader, source)
    secured = modalities.convert(reader, source)
    _tls(reader, source, secured)
    return source


def _unknown(values: Mapping[str, Any], source: Source) -> None:
    known, idle = {*HONOURED, *NOT_HONOURED}, without_effect()
    quiet = sorted(key for key in values if key in idle)
    modal = sorted(modalities.without_effect(values.get("DicomModalities")))
    quiet += [f"{key} of DicomModalities" for key in modal]
    if quiet:
        cause = f"without effect here: {', '.join(quiet)}"
        source.note("Orthanc", cause, "docs/reference/orthanc.md says what they are about")
    for key, value in values.items():
        if key in NOT_HONOURED and value not in NOT_HONOURED[key][:1]:
            source.note(key, "is not honoured", NOT_HONOURED[key][1])
        elif key not in known and key not in idle and key not in ALIASES:
            near = difflib.get_close_matches(key, [*known, *idle], n=1, cutoff=0.8)
            remedy = f"did you mean {near[0]}?" if near else "it is ignored, as Orthanc does"
            source.note(key, "is no key of Orthanc's that is known here", remedy)


def _node(reader: Reader, source: Source) -> None:
    source.set("Name", ("node", "name"), reader.get("Name"))
    source.set("DicomAet", ("node", "ae_title"), reader.get("DicomAet"))
    source.set("StorageDirectory", ("node", "data_dir"), reader.get("StorageDirectory"))
    source.set("StableAge", ("node", "stable_seconds"), reader.get("StableAge") or _USUAL_AGE)
    if not reader.get("DicomServerEnabled"):
        source.tables["listeners"] = []
        source.origins[("listeners",)] = "DicomServerEnabled"
        source.remedies[("listeners",)] = "set it to true: a node without it could receive nothing"
        return
    source.set("DicomPort", ("listeners", 0, "port"), reader.get("DicomPort"))
    source.set("DicomPort", ("listeners", 0, "host"), "0.0.0.0")  # noqa: S104 - as Orthanc
    tls = TLS_NAME if reader.get("DicomTlsEnabled") else False
    source.set("DicomTlsEnabled", ("listeners", 0, "tls"), tls)


def _receive(reader: Reader, source: Source) -> None:
    def put(key: str, name: str, value: Any) -> None:
        source.set(key, ("receive", name), value)

    length = reader.get("MaximumPduLength")
    if not 4096 <= length <= 131072:
        source.fault("MaximumPduLength", f"{length} is out of range", "write 4096 to 131072, as Orthanc asks")
        length = 16384
    put("DicomThreadsCount", "processes", _processes(reader, source))
    put("MaximumPduLength", "max_pdu_length", length)
    put("DicomCheckCalledAet", "check_called_ae", reader.get("DicomCheckCalledAet"))
    put("StrictAetComparison", "ignore_ae_title_case", not reader.get("StrictAetComparison"))
    put("UnknownSopClassAccepted", "accept_unknown_sop_classes", reader.get("UnknownSopClassAccepted"))
    put("AcceptedSopClasses", "sop_classes", reader.get("AcceptedSopClasses") or ["*"])
    put("RejectedSopClasses", "rejected_sop_classes", reader.get("RejectedSopClasses"))
    key = "AcceptedTransferSyntaxes"
    switches = {name: reader.get(name) for name in transfer_syntaxes.GROUPS if name in reader.values}
    syntaxes, vain = transfer_syntaxes.accepted(reader.get(key), switches)
    put(key, "transfer_syntaxes", syntaxes)
    for pattern in vain:
        source.note(key, f'"{pattern}" chooses no transfer syntax that DICOM defines', "correct or remove it")
    put("DicomScpTimeout", "idle_seconds", float(reader.get("DicomScpTimeout")) or NO_DEADLINE)
    put("SyncStorageArea", "durability", "fsync" if reader.get("SyncStorageArea") else "page-cache")


def _processes(reader: Reader, source: Source) -> int:
    """Orthanc has a thread for each association that is busy; here a process has many."""
    key, most = "DicomThreadsCount", usable_cores()
    threads: int = reader.get(key)
    if threads < 1:
        source.fault(key, "is 0, so nothing could be received", "write 1 or more")
    if threads <= max(most, _USUAL_THREADS):
        return threads
    cause = (
        f"{threads} are more than the cores: a process on each takes images, from any number of associations"
    )
    source.note(key, cause, f"write {most}, or leave it for Orthanc")
    return 0


def _storage(reader: Reader, source: Source) -> None:
    duplicates = "overwrite" if reader.get("OverwriteInstances") else "keep-first"
    source.set("OverwriteInstances", ("store", "duplicates"), duplicates)
    megabytes, mode = reader.get("MaximumStorageSize"), reader.get("MaximumStorageMode")
    if mode not in {"Recycle", "Reject"}:
        source.fault("MaximumStorageMode", "is not known", 'write "Recycle" or "Reject"')
    source.set("MaximumStorageSize", ("retention", "max_bytes"), megabytes * 1024**2)
    refuses = mode == "Reject" and megabytes  # 0 is no limit, at which nothing could happen
    source.set("MaximumStorageMode", ("retention", "at_max_bytes"), "refuse" if refuses else "remove")


def _tls(reader: Reader, source: Source, secured: str) -> None:
    """`[tls.orthanc]`, if anything uses it; `secured` is the modality that does, empty if none does."""
    enabled = reader.get("DicomTlsEnabled") and reader.get("DicomServerEnabled")
    user = "DicomTlsEnabled" if enabled else secured
    files = {
        "DicomTlsCertificate": "certificate",
        "DicomTlsPrivateKey": "private_key",
        "DicomTlsTrustedCertificates": "trusted",
    }
    named = {key: reader.get(key) for key in files}
    if not user:
        for key in (*files, "DicomTlsMinimumProtocolVersion", "DicomTlsCiphersAccepted"):
            if reader.get(key):
                remedy = "set DicomTlsEnabled, or UseDicomTls of a modality"
                source.note(key, "is not used: nothing speaks TLS", remedy)
        return
    required = reader.get("DicomTlsRemoteCertificateRequired")
    for key, name in files.items():
        source.origins["tls", TLS_NAME, name] = key
        if named[key]:
            value = [named[key]] if name == "trusted" else named[key]
            source.set(key, ("tls", TLS_NAME, name), value)
        elif name != "trusted":
            source.fault(key, f"is missing for {user}", "name a PEM file")
        elif required:
            remedy = "name a PEM file, or set DicomTlsRemoteCertificateRequired to false"
            source.fault(key, f"is missing for {user}", remedy)
        elif secured:
            cause = f"is missing for {secured}: whom it calls could not be verified"
            source.fault(key, cause, "name a PEM file with its certificate, or its authority's")
    verify = "required" if required else "optional" if named["DicomTlsTrustedCertificates"] else "none"
    source.set("DicomTlsRemoteCertificateRequired", ("tls", TLS_NAME, "peer_certificate"), verify)
    _protocol(reader, source)


def _protocol(reader: Reader, source: Source) -> None:
    key, ciphers_key = "DicomTlsMinimumProtocolVersion", "DicomTlsCiphersAccepted"
    version, names = reader.get(key), reader.get(ciphers_key)
    if version == 0:
        source.set(key, ("tls", TLS_NAME, "profile"), "bcp195")
        if names:
            remedy = f"set {key} to 1 to 5, or remove it"
            source.fault(ciphers_key, f"contradicts {key} 0, whose profile (BCP 195) has its own", remedy)
        return
    if version not in _VERSIONS:
        source.fault(key, f"{version} is not known", "write 0 (BCP 195) to 5 (TLS 1.3)")
        return
    source.set(key, ("tls", TLS_NAME, "profile"), "custom")
    source.set(key, ("tls", TLS_NAME, "minimum_version"), _VERSIONS[version])
    ciphers, suites, unknown = translated(names)
    for name in unknown:
        source.fault(ciphers_key, f"OpenSSL does not know {name}", "`openssl ciphers -s ALL` lists names")
    if suites:
        cause = f"{', '.join(suites)}: TLS 1.3 suites cannot be chosen, OpenSSL's three are offered"
        source.note(ciphers_key, cause, "remove them, or leave them for Orthanc")
    if ciphers and version < 4:
        ciphers.append("@SECLEVEL=0")  # where OpenSSL 3 has TLS 1.0 and 1.1
    elif not ciphers and version == 4:
        ciphers = ["DEFAULT"]  # OpenSSL's, as Orthanc leaves it
    source.set(ciphers_key, ("tls", TLS_NAME, "ciphers"), ":".join(ciphers))
