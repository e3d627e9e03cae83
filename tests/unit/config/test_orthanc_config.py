"""What becomes of each key of an Orthanc configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.config.model import Config
from ingest.config.reader import load_config, read_notes
from ingest.errors import ConfigError
from ingest.requestor.remotes import build_remotes
from tests.support.pki import Material

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, material: Material) -> Path:
    for name in ("node.crt", "node.key", "trusted.crt"):
        (tmp_path / name).write_bytes((material.folder / name).read_bytes())
    return tmp_path


TLS = {
    "DicomTlsEnabled": True,
    "DicomTlsCertificate": "node.crt",
    "DicomTlsPrivateKey": "node.key",
    "DicomTlsTrustedCertificates": "trusted.crt",
}
CLOSED = {"DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False}


def read(folder: Path, **values: Any) -> Config:
    (folder / "orthanc.json").write_text(json.dumps(values))
    return load_config(folder / "orthanc.json", roles={"listen"}, environ={})


def faults(folder: Path, **values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, **values)
    return list(caught.value.faults)


def said(folder: Path, **values: Any) -> dict[str, str]:
    read(folder, **values)
    return {note.key: f"{note.cause}; {note.remedy}" for note in read_notes(folder / "orthanc.json", {})}


def test_an_empty_object_is_orthanc_with_its_defaults(folder: Path) -> None:
    config = read(folder)
    assert (config.node.name, config.node.ae_title) == ("MyOrthanc", "ORTHANC")
    assert config.data_dir == folder / "OrthancStorage"
    assert [(item.host, item.port, item.tls) for item in config.listeners] == [("0.0.0.0", 4242, False)]
    receive = config.receive
    assert (receive.max_pdu_length, receive.processes, receive.idle_seconds) == (16384, 4, 30)
    assert (receive.accept_unknown_sop_classes, receive.check_called_ae) == (False, False)
    assert (receive.ignore_ae_title_case, receive.durability) == (True, "fsync")
    assert (receive.sop_classes, receive.rejected_sop_classes) == (("*",), ())
    assert receive.transfer_syntaxes == ("*",)
    assert config.store.duplicates == "keep-first"
    assert not config.retention.needs_remover
    assert (config.peers, config.destinations, config.routes, config.tls) == ((), (), (), {})


@pytest.mark.parametrize(
    ("key", "value", "place", "expected"),
    [
        ("Name", "Gate", "node.name", "Gate"),
        ("DicomAet", "GATE", "node.ae_title", "GATE"),
        ("DicomCheckCalledAet", True, "receive.check_called_ae", True),
        ("StrictAetComparison", True, "receive.ignore_ae_title_case", False),
        ("UnknownSopClassAccepted", True, "receive.accept_unknown_sop_classes", True),
        ("AcceptedSopClasses", ["1.2.3*"], "receive.sop_classes", ("1.2.3*",)),
        ("RejectedSopClasses", ["1.2.4"], "receive.rejected_sop_classes", ("1.2.4",)),
        ("RejectSopClasses", ["1.2.4"], "receive.rejected_sop_classes", ("1.2.4",)),
        (
            "AcceptedTransferSyntaxes",
            "1.2.840.10008.1.2",
            "receive.transfer_syntaxes",
            ("1.2.840.10008.1.2",),
        ),
        ("AcceptedTransferSyntaxes", ["1.2.840.10008.1.*"], "receive.transfer_syntaxes", ("*",)),
        ("AcceptedTransferSyntaxes", ["*", "1.2.3"], "receive.transfer_syntaxes", ("*", "1.2.3")),
        ("MaximumPduLength", 131072, "receive.max_pdu_length", 131072),
        ("DicomThreadsCount", 2, "receive.processes", 2),
        ("DicomScpTimeout", 5, "receive.idle_seconds", 5.0),
        ("DicomScpTimeout", 0, "receive.idle_seconds", 1e9),
        ("SyncStorageArea", False, "receive.durability", "page-cache"),
        ("OverwriteInstances", True, "store.duplicates", "overwrite"),
        ("MaximumStorageSize", 3, "retention.max_bytes", 3 * 1024**2),
        ("StableAge", 5, "node.stable_seconds", 5),
        ("StableAge", 0, "node.stable_seconds", 60),
    ],
)
def test_key_sets_what_it_means(folder: Path, key: str, value: Any, place: str, expected: object) -> None:
    section, name = place.split(".")
    assert getattr(getattr(read(folder, **{key: value}), section), name) == expected


def test_tls_is_one_section_for_both_directions(folder: Path) -> None:
    modality = {"AET": "PACS", "Host": "pacs", "Port": 2762, "UseDicomTls": True}
    config = read(folder, **TLS, DicomPort=2762, DicomModalities={"pacs": modality})
    assert [(item.port, item.tls) for item in config.listeners] == [(2762, "orthanc")]
    assert config.destinations[0].tls == "orthanc"
    section = config.tls["orthanc"]
    assert (section.certificate, section.private_key) == (folder / "node.crt", folder / "node.key")
    assert section.trusted == (folder / "trusted.crt",)
    assert (section.peer_certificate, section.profile) == ("required", "bcp195")


@pytest.mark.parametrize(("trusted", "expected"), [("trusted.crt", "optional"), ("", "none")])
def test_certificate_not_required_is_still_verified_where_it_can_be(
    folder: Path, trusted: str, expected: str
) -> None:
    changed = TLS | {"DicomTlsTrustedCertificates": trusted, "DicomTlsRemoteCertificateRequired": False}
    assert read(folder, **changed).tls["orthanc"].peer_certificate == expected


@pytest.mark.parametrize(
    ("version", "minimum", "ciphers"),
    [(1, "TLSv1", ""), (2, "TLSv1", ""), (3, "TLSv1.1", ""), (4, "TLSv1.2", "DEFAULT"), (5, "TLSv1.3", "")],
)
def test_minimum_protocol_version_is_a_custom_profile(
    folder: Path, version: int, minimum: str, ciphers: str
) -> None:
    section = read(folder, **TLS, DicomTlsMinimumProtocolVersion=version).tls["orthanc"]
    assert (section.profile, section.minimum_version, section.ciphers) == ("custom", minimum, ciphers)


def test_ciphers_are_openssl_names_or_those_of_iana(folder: Path) -> None:
    names = ["ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"]
    values = {**TLS, "DicomTlsMinimumProtocolVersion": 4, "DicomTlsCiphersAccepted": names}
    assert "TLS_AES_128_GCM_SHA256" in said(folder, **values)["DicomTlsCiphersAccepted"]
    expected = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
    assert read(folder, **values).tls["orthanc"].ciphers == expected
    old = read(folder, **(values | {"DicomTlsMinimumProtocolVersion": 2})).tls["orthanc"]
    assert old.ciphers == f"{expected}:@SECLEVEL=0"


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (
            {"DicomTlsEnabled": True},
            ["DicomTlsCertificate", "DicomTlsPrivateKey", "DicomTlsTrustedCertificates"],
        ),
        ({**TLS, "DicomTlsTrustedCertificates": ""}, ["DicomTlsTrustedCertificates"]),
        ({**TLS, "DicomTlsPrivateKey": "none.key"}, ["DicomTlsPrivateKey (tls.orthanc.private_key)"]),
        (
            {**TLS, "DicomTlsTrustedCertificates": "none"},
            ["DicomTlsTrustedCertificates (tls.orthanc.trusted[0])"],
        ),
        ({**TLS, "DicomTlsMinimumProtocolVersion": 6}, ["DicomTlsMinimumProtocolVersion"]),
        ({**TLS, "DicomTlsCiphersAccepted": ["AES128-SHA"]}, ["DicomTlsCiphersAccepted"]),
        (
            {
                **TLS,
                "DicomTlsMinimumProtocolVersion": 4,
                "DicomTlsCiphersAccepted": ["AES128-SHA", "NO-SUCH"],
            },
            ["DicomTlsCiphersAccepted"],
        ),
        ({"DicomAet": "TOO LONG FOR AN AE TITLE"}, ["DicomAet (node.ae_title)"]),
        ({"DicomPort": "4242"}, ["DicomPort"]),
        ({"DicomPort": 70000}, ["DicomPort (listeners[0].port)"]),
        ({"DicomServerEnabled": False}, ["DicomServerEnabled (listeners)"]),
        ({"DicomCheckCalledAet": 1}, ["DicomCheckCalledAet"]),
        ({"MaximumPduLength": 100}, ["MaximumPduLength"]),
        ({"DicomThreadsCount": 0}, ["DicomThreadsCount"]),
        ({"MaximumStorageSize": -1}, ["MaximumStorageSize"]),
        (
            {"MaximumStorageSize": 2**32, "DicomScpTimeout": 10**400},
            ["DicomScpTimeout", "MaximumStorageSize"],
        ),
        ({"DicomTlsEnabled": 1}, ["DicomTlsEnabled"]),
        ({"StorageDirectory": "a\0b"}, ["StorageDirectory (node.data_dir)"]),
        ({**TLS, "DicomTlsCertificate": "a\0b"}, ["DicomTlsCertificate (tls.orthanc.certificate)"]),
        ({"AcceptedTransferSyntaxes": ["1.2.3.*"]}, ["AcceptedTransferSyntaxes (receive.transfer_syntaxes)"]),
        (
            {"AcceptedTransferSyntaxes": ["1.[2]*"]},
            ["AcceptedTransferSyntaxes (receive.transfer_syntaxes[0])"],
        ),
        ({"MaximumStorageMode": "Forget"}, ["MaximumStorageMode"]),
        ({"AcceptedTransferSyntaxes": [1]}, ["AcceptedTransferSyntaxes"]),
        ({"AcceptedTransferSyntaxes": ["JPEG"]}, ["AcceptedTransferSyntaxes (receive.transfer_syntaxes[0])"]),
        ({"DicomModalities": []}, ["DicomModalities"]),
        ({"DicomModalities": {"a b": ["A", "h", 104]}}, ["DicomModalities.a b"]),
        ({"DicomModalities": {"a": ["A", "h"]}}, ["DicomModalities.a"]),
        ({"DicomModalities": {"a": ["A", "h", 65535]}}, ["DicomModalities.a.Port"]),
        ({"DicomModalities": {"a": ["A", "h", "9" * 5000]}}, ["DicomModalities.a.Port"]),
        (
            {"DicomModalities": {"a": {"AET": "A", "Host": "h", "Port": 1, "Timeout": 10**400}}},
            ["DicomModalities.a.Timeout"],
        ),
        ({"DicomModalities": {"a": {"AET": "A"}}}, ["DicomModalities.a.Host", "DicomModalities.a.Port"]),
        ({"DicomModalities": {"a": ["\\", "h", 1]}}, ["DicomModalities.a.AET (destinations[0].ae_title)"]),
        (
            {"DicomModalities": {"a": {"AET": "A", "Host": "h", "Port": 1, "UseDicomTls": True}}},
            ["DicomTlsCertificate", "DicomTlsPrivateKey", "DicomTlsTrustedCertificates"],
        ),
        ({"Name": 1, "DicomAet": 2, "DicomPort": False}, ["Name", "DicomAet", "DicomPort"]),
    ],
)
def test_faults_are_told_together_under_the_keys_of_orthanc(
    folder: Path, values: dict[str, Any], keys: list[str]
) -> None:
    lines = faults(folder, **values)
    assert [line.partition(": ")[0] for line in lines] == keys
    assert all("; " in line for line in lines)


def test_a_modality_is_a_destination_without_a_route(folder: Path) -> None:
    values = {
        "DicomScuTimeout": 7,
        "DicomModalities": {
            "array": ["A", "10.0.0.1", 104, "Generic"],
            "object": {"AET": "B", "Host": "b", "Port": "105", "LocalAet": "ME", "Timeout": 3},
        },
    }
    config = read(folder, **values)
    first, second = config.destinations
    assert (first.name, first.ae_title, first.host, first.port) == ("array", "A", "10.0.0.1", 104)
    assert (first.tls, first.calling_ae_title) == (False, "")
    assert (first.connect_seconds, first.response_seconds) == (7, 7)
    assert (second.name, second.port, second.calling_ae_title) == ("object", 105, "ME")
    assert (second.connect_seconds, second.response_seconds) == (3, 3)
    assert config.routes == ()
    called = build_remotes(config)
    assert (called["array"].calling_ae, called["object"].calling_ae) == ("ORTHANC", "ME")
    assert "[[routes]]" in said(folder, **values)["DicomModalities"]


def test_modalities_of_a_database_are_not_there(folder: Path) -> None:
    values = {"DicomModalities": {"a": ["A", "h", 1]}, "DicomModalitiesInDatabase": True}
    assert "database" in said(folder, **values)["DicomModalitiesInDatabase"]
    assert read(folder, **values).destinations == ()


def test_destinations_are_not_called_unverified(folder: Path) -> None:
    modality = {"AET": "PACS", "Host": "pacs", "Port": 2762, "UseDicomTls": True}
    values = {**TLS, "DicomTlsRemoteCertificateRequired": False, "DicomModalities": {"pacs": modality}}
    assert read(folder, **values).tls["orthanc"].peer_certificate == "optional"
    del values["DicomTlsTrustedCertificates"]
    (line,) = faults(folder, **values)
    assert line.startswith("DicomTlsTrustedCertificates: is missing for DicomModalities.pacs.UseDicomTls")


def test_faults_speak_of_what_stands_in_the_file(folder: Path) -> None:
    (line,) = faults(folder, DicomServerEnabled=False)
    assert "[[" not in line
    modality = {"AET": "A", "Host": "h", "Port": 1, "LocalAet": " "}
    (line,) = faults(folder, DicomModalities={"a": modality})
    assert '" " is not an AE title' in line
    (line,) = faults(folder, DicomAet="\x1b[2J")
    assert '"\\x1b[2J" is not' in line


def test_keys_of_modalities_without_effect_are_in_the_one_line(folder: Path) -> None:
    modality = {"AET": "A", "Host": "h", "Port": 1, "AllowFind": False, "AllowTranscoding": False}
    modalities = {"a": modality, "b": ["B", "h", 1, "GE"], "c": ["C", "h", 1]}
    found = said(folder, HttpPort=1, DicomModalities=modalities)["Orthanc"]
    assert "HttpPort, AllowFind of DicomModalities, Manufacturer of DicomModalities;" in found
    modality["AllowTranscoding"] = True  # which nothing does here
    assert "AllowTranscoding" in said(folder, DicomModalities={"a": modality})["Orthanc"]


def test_keys_without_effect_share_a_line_and_unknown_ones_name_the_nearest(folder: Path) -> None:
    found = said(folder, HttpPort=1, LuaScripts=[], DicomPrt=1, ReadOnly=True, StorageCompression=True)
    assert "HttpPort, LuaScripts" in found["Orthanc"]
    assert "did you mean DicomPort?" in found["DicomPrt"]
    assert {"ReadOnly", "StorageCompression"} <= set(found)
    assert not said(folder, StorageCompression=False)
    assert "\\x1b[2J\\n" in said(folder, **{"\x1b[2J\n": 1})


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [(5, "Recycle", "remove"), (5, "Reject", "refuse"), (0, "Reject", "remove")],
)
def test_a_full_store_removes_or_refuses(folder: Path, size: int, mode: str, expected: str) -> None:
    section = read(folder, MaximumStorageSize=size, MaximumStorageMode=mode).retention
    assert (section.max_bytes, section.at_max_bytes) == (size * 1024**2, expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DicomTlsCertificate", "none.crt"),
        ("DicomTlsMinimumProtocolVersion", 9),
        ("DicomTlsCiphersAccepted", ["NONE"]),
    ],
)
def test_settings_of_tls_that_nothing_uses_are_said(folder: Path, key: str, value: object) -> None:
    assert "neither the node nor a modality uses TLS" in said(folder, **{key: value})[key]


def test_environment_overrides_what_a_key_became(folder: Path) -> None:
    (folder / "orthanc.json").write_text('{"DicomAet": "A"}')
    assert load_config(folder / "orthanc.json", environ={"INGEST_NODE__AE_TITLE": "B"}).node.ae_title == "B"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {**TLS, "DicomTlsMinimumProtocolVersion": 4, "DicomPort": 11112},
        {"DicomModalities": {"a": ["A", "10.0.0.1", 1]}, "DicomCheckModalityHost": True, **CLOSED},
        {"Name": 'quo"te\n', "RejectedSopClasses": ["1.2"], "MaximumStorageSize": 1},
        {"MaximumStorageSize": 1, "MaximumStorageMode": "Reject", "StableAge": 1},
    ],
)
def test_imported_toml_is_the_same_configuration_from_another_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    config = read(folder, **values)
    output = tmp_path_factory.mktemp("toml") / "node.toml"
    done = CliRunner().invoke(
        main, ["config", "import-orthanc", str(folder / "orthanc.json"), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert load_config(output, environ={}) == config
    assert "# DicomAet" in output.read_text()
    again = CliRunner().invoke(
        main, ["config", "import-orthanc", str(folder / "orthanc.json"), "-o", str(output)]
    )
    assert again.exit_code == 1
    assert "--force" in again.output


def test_a_line_break_in_the_name_of_the_file_stays_within_the_comment(folder: Path) -> None:
    path = folder / "a\n[x]\n.json"
    path.write_text("{}")
    done = CliRunner().invoke(main, ["config", "import-orthanc", str(path), "-o", str(folder / "node.toml")])
    assert done.exit_code == 0, done.output
    assert load_config(folder / "node.toml", environ={}) == load_config(path, environ={})


def test_import_of_a_bad_configuration_names_each_fault(folder: Path) -> None:
    (folder / "orthanc.json").write_text('{"DicomPort": "x", "DicomTlsEnabled": true}')
    done = CliRunner().invoke(main, ["config", "import-orthanc", str(folder / "orthanc.json")])
    assert done.exit_code == 2
    assert "DicomPort" in done.output
    assert "DicomTlsCertificate" in done.output


def test_shipped_example_runs(folder: Path) -> None:
    text = (ROOT / "config/orthanc.json").read_text()
    (folder / "pki").mkdir()
    for name in ("node.crt", "node.key", "trusted.crt"):
        (folder / "pki" / name).write_bytes((folder / name).read_bytes())
    (folder / "orthanc.json").write_text(text)
    config = load_config(folder / "orthanc.json", roles={"listen"}, environ={"ORTHANC_NAME": "Here"})
    assert config.node.name == "Here"
    assert [peer.ae_title for peer in config.peers] == ["CT1", "PACS", "*"]
    assert config.destinations[1].calling_ae_title == "GATEWAY"
