"""How files of Orthanc are read, their ciphers named, and which keys are documented."""

import errno
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingest.config.orthanc.ciphers import find_openssl_name, sort_cipher_names
from ingest.config.orthanc.files import parse_orthanc_file, read_orthanc_files, substitute_variables
from ingest.config.orthanc.keys import (
    ALIASES,
    HONOURED_KEYS,
    MODALITY_KEYS,
    MODALITY_KEYS_WITHOUT_EFFECT,
    UNSUPPORTED_KEYS,
    list_keys_without_effect,
)
from ingest.config.reader import load_config
from ingest.config.source import is_orthanc_file
from ingest.errors import ConfigError
from tests.support.peers import require_program

ROOT = Path(__file__).parents[3]
NEWEST = ["TLS_AES_128_GCM_SHA256", "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "one"),
        ("${NONE}", ""),
        ("${A:-two}", "one"),
        ("${NONE:-two}", "two"),
        ("${NONE:-}", ""),
        ("${NONE:-'t w o'}", "t w o"),
        ('${NONE:-"two"}', "two"),
        ("${EMPTY:-two}", ""),
        ("$A ${A", "$A ${A"),
        ("${A}${A}", "oneone"),
    ],
)
def test_variables_are_replaced_as_orthanc_does(text: str, expected: str) -> None:
    assert substitute_variables(text, {"A": "one", "EMPTY": ""}) == expected


def test_comments_trailing_commas_and_what_follows_the_object_pass() -> None:
    text = """\ufeff// { "a" : 0 }
    { "a" : [ 1, 2, ], /* , } */ "b" : "// no, ] /* comment */ \\" ,}", // end
      "c" : { }, "a" : 3,
    } trailing"""
    found = parse_orthanc_file(Path("x"), text.removeprefix("\ufeff"), {})
    assert found == {"a": 3, "b": '// no, ] /* comment */ " ,}', "c": {}}


def test_a_variable_may_bring_a_number(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{ "DicomPort" : ${PORT:-104} }')
    assert read_orthanc_files(tmp_path / "x.json", {}) == {"DicomPort": 104}
    assert read_orthanc_files(tmp_path / "x.json", {"PORT": "105"}) == {"DicomPort": 105}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('\n// x\n{\n  "a" : 1\n  "b" : 2\n}', r"x\.json:5: .*correct the JSON"),
        ('{ "a" : NaN }', "out of range"),
        ("[" * 100_000, "too deep|correct the JSON"),
        ("[]", "is not an object"),
        ("", "x.json:1: "),
        ('{ "a" : /* open }', "correct the JSON"),
    ],
)
def test_text_that_is_not_json_names_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "x.json")


def test_secrets_of_a_broken_file_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{ "RegisteredUsers" : { "alice" : "hunter2" "x" } }')
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "x.json")
    assert "hunter2" not in str(caught.value)


def test_files_of_a_folder_are_merged_and_paths_start_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{ "DicomAet" : "A" }')
    (tmp_path / "b.JSON").write_text('{ "DicomPort" : 11112 }')
    (tmp_path / "c.txt").write_text("no JSON")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "d.json").write_text("no JSON")
    config = load_config(tmp_path, environ={})
    assert (config.node.ae_title, config.listeners[0].port) == ("A", 11112)
    assert config.data_dir == tmp_path / "OrthancStorage"


def test_a_key_of_two_files_and_an_empty_folder_are_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains no \*\.json"):
        load_config(tmp_path)
    (tmp_path / "a.json").write_text('{ "DicomModalities" : {} }')
    (tmp_path / "b.json").write_text('{ "DicomModalities" : {}, "Name" : "B" }')
    (tmp_path / "c.json").write_text("nothing")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    first, second = caught.value.faults
    assert "b.json: DicomModalities is in" in first
    assert "a.json" in first
    assert "c.json:1" in second


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a folder"])
@pytest.mark.parametrize("name", ["x.json", "x.toml"])
def test_what_is_no_regular_file_is_a_fault_and_not_waited_for(
    tmp_path: Path, name: str, alone: bool
) -> None:
    os.mkfifo(tmp_path / name)  # opening it would wait for a writer
    (tmp_path / "a.json").write_text("{}")
    if alone or name == "x.json":
        with pytest.raises(ConfigError, match=r"x\.\w+: is not a regular file; name a file"):
            load_config(tmp_path / name if alone else tmp_path)
    else:
        load_config(tmp_path, environ={})


def test_a_link_that_leads_nowhere_is_a_fault_as_for_orthanc(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").symlink_to(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"b\.json: cannot be read: No such file"):
        load_config(tmp_path)
    (tmp_path / "none").write_text("{}")
    load_config(tmp_path, environ={})


@pytest.mark.parametrize(("call", "name"), [("iterdir", "folder"), ("stat", "a.json")])
def test_a_folder_that_may_not_be_listed_or_searched_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    real = getattr(Path, call)

    def denied(path: Path, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, call, denied)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_orthanc_files(folder, {})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{ "Name" : "${SITE}" }', "Name"),
        ('{ "DicomModalities" : { "a" : [ "A", "\\ud800" ] } }', r"DicomModalities\.a\[1\]"),
        ('{ "Dictionary" : { "x" : { "\\udfff" : 1 } } }', r"Dictionary\.x\.\\udfff"),
        ('{ "\\ud800" : 1 }', r"\\ud800"),
        ('{ "a" : ' + "[" * 900 + '"\\ud800"' + "]" * 900 + " }", "a"),
    ],
)
def test_half_a_character_is_a_fault_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"x\.json: {place}.*: contains half a surrogate pair"):
        load_config(tmp_path / "x.json", environ={"SITE": "H\udcf4pital"})


def test_pairs_of_surrogates_and_what_is_not_ascii_pass(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{ "Name" : "H\u00f4pital \\ud83d\\ude00" }')
    assert load_config(tmp_path / "x.json", environ={}).node.name == "H\u00f4pital \U0001f600"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.json", "", True),
        ("x.JSON", "", True),
        ("x.conf", '\ufeff\n // c\n{ "a" : 1 }', True),
        ("x.conf", "{}", True),
        ("x.conf", "/* */ {}", True),
        ("x.conf", "[node]\n", False),
        ("x.toml", "# {}\n", False),
    ],
)
def test_an_orthanc_file_is_known_by_its_name_or_its_begin(
    tmp_path: Path, name: str, text: str, expected: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert is_orthanc_file(tmp_path / name) is expected


def test_every_name_of_iana_is_translated_as_openssl_has_it() -> None:
    printed = subprocess.run(
        [require_program("openssl"), "ciphers", "-s", "-stdname", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout
    pairs = re.findall(r"^(TLS_\w+_WITH_\w+)\s+- (\S+)", printed, re.MULTILINE)
    usual = [
        (iana, ours)
        for iana, ours in pairs
        if re.search(r"TLS_(EC)?DHE_|TLS_RSA_WITH", iana) and "PSK" not in iana
    ]
    assert len(usual) > 20
    assert {iana: find_openssl_name(iana) for iana, _ in usual} == dict(usual)
    ciphers, suites, unknown = sort_cipher_names([iana for iana, _ in usual] + [*NEWEST, "TLS_NONE"])
    assert ciphers == [ours for _, ours in usual]
    assert (suites, unknown) == (NEWEST, ["TLS_NONE"])


def test_every_key_is_in_one_table_and_in_the_documentation() -> None:
    tables = [set(HONOURED_KEYS), set(UNSUPPORTED_KEYS), set(list_keys_without_effect()), set(ALIASES)]
    assert sum(map(len, tables)) == len(set.union(*tables))
    page = (ROOT / "docs/reference/orthanc.md").read_text()
    for key in (*set.union(*tables), *MODALITY_KEYS, *MODALITY_KEYS_WITHOUT_EFFECT):
        assert f"`{key}`" in page, key
    for key, honoured in (HONOURED_KEYS | MODALITY_KEYS).items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert honoured.becomes in row
    for key, (_, why) in UNSUPPORTED_KEYS.items():
        assert any(line.startswith(f"| `{key}` |") and why in line for line in page.splitlines())


def test_the_configuration_that_orthanc_writes_holds_no_key_unknown_here(tmp_path: Path) -> None:
    written = tmp_path / "default.json"
    subprocess.run(
        [require_program("Orthanc"), f"--config={written}"], check=True, capture_output=True, timeout=30
    )
    found = read_orthanc_files(written, {})
    assert len(found) > 90
    known = {*HONOURED_KEYS, *UNSUPPORTED_KEYS, *list_keys_without_effect()}
    assert set(found) <= known
    for key, honoured in HONOURED_KEYS.items():
        if key in found and honoured.default is not None:
            default = list(honoured.default) if isinstance(honoured.default, tuple) else honoured.default
            assert found[key] == default, key
    commented = re.findall(r'^ +(?:// )?"(\w+)" *:', written.read_text(), re.MULTILINE)
    nested = {"Module", "Pin", "Verbose", "Url", "Username", "Password", "HttpHeaders", "CertificateFile"}
    nested |= {"CertificateKeyFile", "CertificateKeyPassword", "alice", "sample", "sample2", "vitrea", "peer"}
    nested |= {"peer2", "Sample", "untrusted"}
    # Of ExtraMainDicomTags, Warnings and JobsEngineThreadsCount, which newer versions of Orthanc write.
    nested |= {"Instance", "Series", "Study", "Patient", "ResourceModification"}
    nested |= {key for key in commented if re.fullmatch(r"W0\d\d_\w+", key)}
    assert set(commented) - known - nested - MODALITY_KEYS.keys() - MODALITY_KEYS_WITHOUT_EFFECT == set()
    assert load_config(written, environ={}).receive.transfer_syntaxes == ("*",)
