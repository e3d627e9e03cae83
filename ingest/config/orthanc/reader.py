"""The translation of an Orthanc configuration into tables of this node, with Orthanc's defaults and meaning.

Apart from reading the files, the translation is pure. An Orthanc file has no routes. Its modalities become
peers, and destinations to which nothing is forwarded. Orthanc forwards nothing to them by itself either.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ingest.config.orthanc import files, modalities, transfer_syntaxes
from ingest.config.orthanc.ciphers import sort_cipher_names
from ingest.config.orthanc.keys import ALIASES, HONOURED_KEYS, UNSUPPORTED_KEYS, list_keys_without_effect
from ingest.config.orthanc.values import NO_DEADLINE_SECONDS, TLS_NAME, OrthancValues
from ingest.config.source import ConfigSource
from ingest.cores import usable_cores

_VERSIONS: Final = {1: "TLSv1", 2: "TLSv1", 3: "TLSv1.1", 4: "TLSv1.2", 5: "TLSv1.3"}
"""Values of DicomTlsMinimumProtocolVersion. 1 means SSL 3, which current releases of OpenSSL do not have."""

_DEFAULT_STABLE_SECONDS: Final = 60
"""Orthanc's default, and the meaning of its 0."""

_DEFAULT_THREADS: Final = 4
"""Orthanc's default. It causes no note on a machine with fewer cores."""


def read_orthanc_source(path: Path, environ: Mapping[str, str]) -> ConfigSource:
    """Read and translate the configuration at `path`, a file or a folder.

    Raises:
        ConfigError: A file is not JSON as Orthanc reads it, or a key is in two files.
    """
    return convert_orthanc(files.read_orthanc_files(path, environ))


def convert_orthanc(settings: Mapping[str, Any]) -> ConfigSource:
    """Translate an Orthanc configuration into tables, with every fault and note."""
    source = ConfigSource()
    settings = {
        ALIASES.get(key, key) if ALIASES.get(key) not in settings else key: settings[key] for key in settings
    }
    values = OrthancValues(settings, source)
    _note_ignored_keys(settings, source)
    _convert_node(values, source)
    _convert_receive(values, source)
    _convert_storage(values, source)
    tls_modality = modalities.convert_modalities(values, source)
    _convert_tls(values, source, tls_modality)
    return source


def _note_ignored_keys(settings: Mapping[str, Any], source: ConfigSource) -> None:
    known, without_effect = {*HONOURED_KEYS, *UNSUPPORTED_KEYS}, list_keys_without_effect()
    ignored = sorted(key for key in settings if key in without_effect)
    of_modalities = sorted(modalities.find_keys_without_effect(settings.get("DicomModalities")))
    ignored += [f"{key} of DicomModalities" for key in of_modalities]
    if ignored:
        cause = f"without effect here: {', '.join(ignored)}"
        source.add_note("Orthanc", cause, "docs/reference/orthanc.md says what they are about")
    for key, value in settings.items():
        if key in UNSUPPORTED_KEYS and value not in UNSUPPORTED_KEYS[key][:1]:
            source.add_note(key, "is not honoured", UNSUPPORTED_KEYS[key][1])
        elif key not in known and key not in without_effect and key not in ALIASES:
            similar = difflib.get_close_matches(key, [*known, *without_effect], n=1, cutoff=0.8)
            remedy = f"did you mean {similar[0]}?" if similar else "it is ignored, as Orthanc does"
            source.add_note(key, "is an unknown key of Orthanc", remedy)


def _convert_node(values: OrthancValues, source: ConfigSource) -> None:
    source.set_value("Name", ("node", "name"), values.get_value("Name"))
    source.set_value("DicomAet", ("node", "ae_title"), values.get_value("DicomAet"))
    source.set_value("StorageDirectory", ("node", "data_dir"), values.get_value("StorageDirectory"))
    source.set_value(
        "StableAge", ("node", "stable_seconds"), values.get_value("StableAge") or _DEFAULT_STABLE_SECONDS
    )
    if not values.get_value("DicomServerEnabled"):
        source.tables["listeners"] = []
        source.origins[("listeners",)] = "DicomServerEnabled"
        source.remedies[("listeners",)] = "set it to true: a node without it could receive nothing"
        return
    source.set_value("DicomPort", ("listeners", 0, "port"), values.get_value("DicomPort"))
    source.set_value("DicomPort", ("listeners", 0, "host"), "0.0.0.0")  # noqa: S104 - as Orthanc
    tls = TLS_NAME if values.get_value("DicomTlsEnabled") else False
    source.set_value("DicomTlsEnabled", ("listeners", 0, "tls"), tls)


def _convert_receive(values: OrthancValues, source: ConfigSource) -> None:
    def put(key: str, name: str, value: Any) -> None:
        source.set_value(key, ("receive", name), value)

    length = values.get_value("MaximumPduLength")
    if not 4096 <= length <= 131072:
        source.add_fault(
            "MaximumPduLength", f"{length} is out of range", "write 4096 to 131072, as Orthanc requires"
        )
        length = 16384
    put("DicomThreadsCount", "processes", _convert_threads(values, source))
    put("MaximumPduLength", "max_pdu_length", length)
    put("DicomCheckCalledAet", "check_called_ae", values.get_value("DicomCheckCalledAet"))
    put("StrictAetComparison", "ignore_ae_title_case", not values.get_value("StrictAetComparison"))
    put("UnknownSopClassAccepted", "accept_unknown_sop_classes", values.get_value("UnknownSopClassAccepted"))
    put("AcceptedSopClasses", "sop_classes", values.get_value("AcceptedSopClasses") or ["*"])
    put("RejectedSopClasses", "rejected_sop_classes", values.get_value("RejectedSopClasses"))
    key = "AcceptedTransferSyntaxes"
    switches = {name: values.get_value(name) for name in transfer_syntaxes.GROUPS if name in values.values}
    syntaxes, useless = transfer_syntaxes.choose_transfer_syntaxes(values.get_value(key), switches)
    put(key, "transfer_syntaxes", syntaxes)
    for pattern in useless:
        source.add_note(key, f'"{pattern}" matches no transfer syntax of DICOM', "correct or remove it")
    put("DicomScpTimeout", "idle_seconds", float(values.get_value("DicomScpTimeout")) or NO_DEADLINE_SECONDS)
    put("SyncStorageArea", "durability", "fsync" if values.get_value("SyncStorageArea") else "page-cache")


def _convert_threads(values: OrthancValues, source: ConfigSource) -> int:
    """Return the number of listeners.

    Orthanc needs a thread for each busy association; a listener serves many.
    """
    key, most = "DicomThreadsCount", usable_cores()
    threads: int = values.get_value(key)
    if threads < 1:
        source.add_fault(key, "is 0, so no instance could be received", "write 1 or more")
    if threads <= max(most, _DEFAULT_THREADS):
        return threads
    cause = f"{threads} are more than the cores: one process on each serves any number of associations"
    source.add_note(key, cause, f"write {most}, or leave it for Orthanc")
    return 0


def _convert_storage(values: OrthancValues, source: ConfigSource) -> None:
    duplicates = "overwrite" if values.get_value("OverwriteInstances") else "keep-first"
    source.set_value("OverwriteInstances", ("store", "duplicates"), duplicates)
    megabytes, mode = values.get_value("MaximumStorageSize"), values.get_value("MaximumStorageMode")
    if mode not in {"Recycle", "Reject"}:
        source.add_fault("MaximumStorageMode", "is not known", 'write "Recycle" or "Reject"')
    source.set_value("MaximumStorageSize", ("retention", "max_bytes"), megabytes * 1024**2)
    refuses = mode == "Reject" and megabytes  # 0 is no limit, so the store is never full
    source.set_value("MaximumStorageMode", ("retention", "at_max_bytes"), "refuse" if refuses else "remove")


def _convert_tls(values: OrthancValues, source: ConfigSource, tls_modality: str) -> None:
    """Write `[tls.orthanc]`, if the node or a modality uses it.

    Args:
        values: The Orthanc configuration.
        source: The tables to write into.
        tls_modality: The key of a modality that uses TLS; empty if none does.
    """
    enabled = values.get_value("DicomTlsEnabled") and values.get_value("DicomServerEnabled")
    user = "DicomTlsEnabled" if enabled else tls_modality
    files = {
        "DicomTlsCertificate": "certificate",
        "DicomTlsPrivateKey": "private_key",
        "DicomTlsTrustedCertificates": "trusted",
    }
    named = {key: values.get_value(key) for key in files}
    if not user:
        for key in (*files, "DicomTlsMinimumProtocolVersion", "DicomTlsCiphersAccepted"):
            if values.get_value(key):
                remedy = "set DicomTlsEnabled, or UseDicomTls of a modality"
                source.add_note(key, "is not used: neither the node nor a modality uses TLS", remedy)
        return
    required = values.get_value("DicomTlsRemoteCertificateRequired")
    for key, name in files.items():
        source.origins["tls", TLS_NAME, name] = key
        if named[key]:
            value = [named[key]] if name == "trusted" else named[key]
            source.set_value(key, ("tls", TLS_NAME, name), value)
        elif name != "trusted":
            source.add_fault(key, f"is missing for {user}", "name a PEM file")
        elif required:
            remedy = "name a PEM file, or set DicomTlsRemoteCertificateRequired to false"
            source.add_fault(key, f"is missing for {user}", remedy)
        elif tls_modality:
            cause = f"is missing for {tls_modality}: its certificate could not be verified"
            source.add_fault(key, cause, "name a PEM file with its certificate or that of its authority")
    verify = "required" if required else "optional" if named["DicomTlsTrustedCertificates"] else "none"
    source.set_value("DicomTlsRemoteCertificateRequired", ("tls", TLS_NAME, "peer_certificate"), verify)
    _convert_protocol(values, source)


def _convert_protocol(values: OrthancValues, source: ConfigSource) -> None:
    key, ciphers_key = "DicomTlsMinimumProtocolVersion", "DicomTlsCiphersAccepted"
    version, names = values.get_value(key), values.get_value(ciphers_key)
    if version == 0:
        source.set_value(key, ("tls", TLS_NAME, "profile"), "bcp195")
        if names:
            remedy = f"set {key} to 1 to 5, or remove it"
            source.add_fault(ciphers_key, f"contradicts {key} 0, whose profile (BCP 195) has its own", remedy)
        return
    if version not in _VERSIONS:
        source.add_fault(key, f"{version} is not known", "write 0 (BCP 195) to 5 (TLS 1.3)")
        return
    source.set_value(key, ("tls", TLS_NAME, "profile"), "custom")
    source.set_value(key, ("tls", TLS_NAME, "minimum_version"), _VERSIONS[version])
    ciphers, suites, unknown = sort_cipher_names(names)
    for name in unknown:
        source.add_fault(ciphers_key, f"OpenSSL does not know {name}", "`openssl ciphers -s ALL` lists names")
    if suites:
        cause = f"{', '.join(suites)}: TLS 1.3 suites cannot be chosen, the three of OpenSSL are offered"
        source.add_note(ciphers_key, cause, "remove them, or leave them for Orthanc")
    if ciphers and version < 4:
        ciphers.append("@SECLEVEL=0")  # OpenSSL 3 allows TLS 1.0 and 1.1 at this level only
    elif not ciphers and version == 4:
        ciphers = ["DEFAULT"]  # as Orthanc, which keeps OpenSSL's default
    source.set_value(ciphers_key, ("tls", TLS_NAME, "ciphers"), ":".join(ciphers))
