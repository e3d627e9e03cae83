"""Reading configurations: what is taken, and that every fault names its key."""

import re
import socket
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from ingest.config import model
from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.errors import ConfigError

ROOT = Path(__file__).parents[3]

TLS_FILES = 'certificate = "a.crt"\nprivate_key = "a.key"\ntrusted = ["t.crt"]'
DESTINATION = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "h"\ntls = false\n'


@pytest.fixture
def folder(tmp_path):
    """A folder with a space in its name and files that can stand for certificates."""
    folder = tmp_path / "my node"
    folder.mkdir()
    for name in ("a.crt", "a.key", "t.crt"):
        (folder / name).write_text("-")
    return folder


def read(folder, text, **options):
    file = folder / "ingest.toml"
    file.write_text(text)
    options.setdefault("environ", {})
    return load_config(file, **options)


def faults(folder, text, **options):
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **options)
    return list(caught.value.faults)


def keys(lines):
    return [line.partition(": ")[0] for line in lines]


def test_empty_file_gives_the_defaults_with_data_beside_the_folder(folder):
    config = read(folder, "")
    assert config.data_dir == folder.parent / "var"
    assert config.spool_dir == folder.parent / "var" / "spool"
    assert config.listeners == ()
    assert config == Config.model_validate({"node": {"data_dir": folder.parent / "var"}})


def test_relative_paths_start_at_the_file_wherever_the_command_runs(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (folder / "ingest.toml").write_text(
        f'[node]\ndata_dir = "d"\n[tls.node]\n{TLS_FILES}\n[receive]\nspool_dir = "../s"\n'
        '[store]\nroot = "/abs"\n[log]\nfile = "x.log"\n[ledger]\nurl = "sqlite:///l.db"\n'
    )
    config = load_config(Path("my node/ingest.toml"), environ={})
    assert config.data_dir == folder / "d"
    assert config.tls["node"].certificate == folder / "a.crt"
    assert config.tls["node"].trusted == (folder / "t.crt",)
    assert config.spool_dir == folder.parent / "s"
    assert config.store_root == Path("/abs")
    assert config.log.file == folder / "x.log"
    assert config.ledger_url == f"sqlite:///{folder / 'l.db'}"


def test_empty_optional_paths_mean_their_defaults(folder):
    config = read(folder, '[receive]\nspool_dir = ""\n[store]\nroot = ""\n[log]\nfile = ""\n')
    assert (config.receive.spool_dir, config.store.root, config.log.file) == (None, None, None)


def test_folder_of_trusted_certificates_is_taken(folder):
    (folder / "anchors").mkdir()
    config = read(folder, '[tls.x]\ntrusted = ["anchors"]\n')
    assert config.tls["x"].trusted == (folder / "anchors",)


BAD = [
    # what stands in the file, the key that the fault names, what it says
    ('[node]\nae_titel = "X"', "node.ae_titel", "did you mean ae_title"),
    ('ae_title = "X"', "ae_title", "belongs to [node]"),
    ("[routse]", "routse", "did you mean routes"),
    ("[zzz]\na = 1", "zzz", "known here: node, listeners"),
    (
        '[[destinations]]\nname = "x"\nae_title = "X"\nhost = "h"\ntls = false\nprot = 1',
        "destinations[0].prot",
        "port",
    ),
    ("[tls.node]\ncerificate = 1\ntrusted = ['t.crt']", "tls.node.cerificate", "certificate"),
    ("[node]\nae_title = 5", "node.ae_title", "not a string"),
    ('[node]\nae_title = ""', "node.ae_title", "is empty"),
    ('[node]\nae_title = "   "', "node.ae_title", "PS3.5 6.2"),
    ('[node]\nae_title = "SEVENTEEN LETTERS"', "node.ae_title", "1 to 16"),
    ("[node]\nae_title = 'A\\B'", "node.ae_title", "without backslash"),
    ('[node]\nae_title = "A\\n"', "node.ae_title", "control characters"),
    ("[node]\nae_title = 1979-05-27", "node.ae_title", "not a string"),
    ('[node]\ndata_dir = ""', "node.data_dir", "empty"),
    ('[node]\ndata_dir = "a.crt"', "node.data_dir", "not a folder"),
    ("[node]\ndrain_seconds = true", "node.drain_seconds", "not a number"),
    ("[node]\ndrain_seconds = inf", "node.drain_seconds", "finite"),
    ("[node]\ndrain_seconds = nan", "node.drain_seconds", ""),
    ("[node]\ndrain_seconds = 0", "node.drain_seconds", "> 0"),
    ("[node]\nstable_seconds = 0", "node.stable_seconds", "≥ 1"),
    ('[[routes]]\nto = []\non = "study"', "routes[0].on", "nothing waits"),
    ("[[routes]]\nto = []\nstable_seconds = 5", "routes[0].stable_seconds", "does not wait"),
    ("[node]\nstable_seconds = 1.5", "node.stable_seconds", ""),
    ('[retention]\nat_max_bytes = "stop"', "retention.at_max_bytes", "refuse"),
    ("node = 1", "node", "is not a table"),
    ("[listeners]\nport = 1", "listeners", "write [[listeners]]"),
    ("listeners = [1]", "listeners[0]", "is not a table"),
    ('[[listeners]]\nport = "2762"\ntls = false', "listeners[0].port", "without quotes"),
    ("[[listeners]]\nport = 65536\ntls = false", "listeners[0].port", "≤ 65535"),
    ("[[listeners]]\nport = 1.5\ntls = false", "listeners[0].port", "whole number"),
    ("[[listeners]]\ntls = true", "listeners[0].tls", "NAME"),
    ('[[listeners]]\nhost = ""\ntls = false', "listeners[0].host", "address"),
    ("[[listeners]]", "listeners[0].tls", "no [tls.node]"),
    (
        "[[listeners]]\ntls = false\n[[listeners]]\ntls = false",
        "listeners[1].port",
        "is the address of listeners[0]",
    ),
    (
        '[[listeners]]\ntls = false\n[[listeners]]\nhost = "127.0.0.1"\ntls = false',
        "listeners[1].port",
        "its own port",
    ),
    (
        '[[listeners]]\nport = 8080\ntls = false\n[console]\nhost = "127.0.0.1"\nport = 8080',
        "console.port",
        "is the address of listeners[0]",
    ),
    ("[[listeners]]\n[tls.node]\ntrusted = ['t.crt']", "tls.node.certificate", "ingest certs new"),
    ("[tls]\ncertificate = 'a.crt'", "tls.certificate", "is not a table"),
    ("[tls.n]\ncertificate = 'a.crt'\ntrusted = ['t.crt']", "tls.n.private_key", "both"),
    ("[tls.n]\nprivate_key = 'a.key'\ntrusted = ['t.crt']", "tls.n.certificate", "both"),
    (f"[tls.n]\n{TLS_FILES.replace('a.key', 'b.key')}", "tls.n.private_key", "does not exist"),
    (f"[tls.n]\n{TLS_FILES.replace('a.key', '.')}", "tls.n.private_key", "is a folder"),
    (f"[tls.n]\n{TLS_FILES}\npassword_file = 'p'", "tls.n.password_file", "does not exist"),
    ("[tls.n]\ntrusted = ['t.crt', 'u.crt']", "tls.n.trusted[1]", "does not exist"),
    ("[tls.n]\ntrusted = 't.crt'", "tls.n.trusted", "not a list"),
    ("[tls.n]\ntrusted = ['']", "tls.n.trusted[0]", "empty"),
    ("[tls.n]\ntrusted = []", "tls.n.trusted", "no certificate to verify peers with"),
    ("[tls.n]\ntrusted = ['t.crt']\ncrl = ['a']", "tls.n.crl[0]", "does not exist"),
    ("[tls.n]\npeer_certificate = 'none'\ncrl = ['t.crt']", "tls.n.crl", "contradicts"),
    ("[tls.n]\ntrusted = ['t.crt']\ncrl_missing = 'ask'", "tls.n.crl_missing", "'refuse' or 'allow'"),
    ("[tls.n]\ntrusted = ['t.crt']\ncrl_expired = ''", "tls.n.crl_expired", "'refuse' or 'allow'"),
    (
        "[tls.n]\ntrusted = ['t.crt']\npkcs12 = 't.crt'\ncertificate = 't.crt'",
        "tls.n.certificate",
        "contradicts pkcs12",
    ),
    ("[tls.n]\ntrusted = ['t.crt']\npkcs12 = 'none.p12'", "tls.n.pkcs12", "does not exist"),
    ("[tls.n]\npeer_certificate = 'maybe'\ntrusted = ['t.crt']", "tls.n.peer_certificate", "'optional'"),
    (
        "[tls.n]\npeer_certificate = 'none'\ncheck_server_name = true",
        "tls.n.check_server_name",
        "contradicts",
    ),
    ("[tls.n]\ntrusted = ['t.crt']\nprofile = 'aes'", "tls.n.profile", "'rfc8996',"),
    ("[tls.n]\ntrusted = ['t.crt']\nciphers = 'AES128-SHA'", "tls.n.ciphers", "contradicts profile"),
    (
        "[tls.n]\ntrusted = ['t.crt']\nminimum_version = 'TLSv1.3'",
        "tls.n.minimum_version",
        "contradicts profile",
    ),
    ("[tls.n]\ntrusted = ['t.crt']\nprofile = 'custom'\nciphers = 'FOO'", "tls.n.ciphers", "OpenSSL"),
    (
        "[tls.n]\ntrusted = ['t.crt']\nprofile = 'custom'\nminimum_version = 'SSLv3'",
        "tls.n.minimum_version",
        "TLSv1.2",
    ),
    ("[receive]\nmax_pdu_length = 100", "receive.max_pdu_length", "≥ 4096"),
    ("[receive]\nsegment_max_bytes = 1048577", "receive.segment_max_bytes", "≤ 1048576"),
    ("[receive]\nquarantine = 'yes'", "receive.quarantine", "true or false"),
    ("[receive]\nquarantine = 1", "receive.quarantine", "true or false"),
    ("[receive]\nprocesses = -1", "receive.processes", "≥ 0"),
    ("[receive]\nprocesses = 99999999999999999999999", "receive.processes", ""),
    ("[receive]\ntransfer_syntaxes = []", "receive.transfer_syntaxes", "no instance could be received"),
    ("[receive]\ntransfer_syntaxes = ['jpeg']", "receive.transfer_syntaxes[0]", "UID"),
    ("[receive]\nspool_dir = 'a.crt'", "receive.spool_dir", "not a folder"),
    ("[[peers]]\nae_title = 'A'\nhosts = ['10.1.0.5/16']", "peers[0].hosts[0]", "host bits"),
    ("[[peers]]\nae_title = 'A'\nhosts = ['10.1.0.0/16', 'ct1']", "peers[0].hosts[1]", "10.1.0.0/16"),
    ("[[peers]]\nhosts = []", "peers[0].ae_title", "missing"),
    (
        "".join(
            f"[[destinations]]\nname = '{name}'\nae_title = 'A'\nhost = 'h'\ntls = false\n" for name in "ab"
        )
        + "".join(f"[[peers]]\nae_title = 'CT'\ndestination = '{name}'\n" for name in "aab"),
        "peers[2].destination",
        "peers[0] has the same AE title",
    ),
    (
        "[retention]\nonly_committed = true\nonly_delivered = false",
        "retention.only_committed",
        "would be removed",
    ),
    ("[[peers]]\nae_title = 'A'\nallow = ['find']", "peers[0].allow[0]", "'echo' or 'store'"),
    (
        "[[listeners]]\ntls = false\n[[peers]]\nae_title = 'A'\ncertificate = 'x'",
        "peers[0].certificate",
        "no listener speaks TLS",
    ),
    *(
        (f"[[peers]]\nae_title = 'A'\n{key} = '{value}'", f"peers[0].{key}", words)
        for key, value, words in (
            ("certificate", ":".join(["AB"] * 20), "no SHA-256 fingerprint"),
            ("certificate", "SHA1 Fingerprint=" + ":".join(["AB"] * 20), "no SHA-256 fingerprint"),
            ("certificate", "ab" * 20, "no SHA-256 fingerprint"),
            ("certificate", "C = BE, CN = a, b", "no subject that can be read"),
            ("certificate", "/X=1", "DNS:…"),
            ("certificate", "IP:10.1.0.0/16", "is no address"),
            ("issuer", "Site CA", "neither a whole subject nor a fingerprint"),
            ("issuer", "DNS:ca.example.org", "neither a whole subject nor a fingerprint"),
            ("issuer", "ab" * 20, "no SHA-256 fingerprint"),
        )
    ),
    *(
        (
            f"[[destinations]]\nname = 'p'\nae_title = 'A'\nhost = 'h'\n{extra}",
            f"destinations[0].{key}",
            words,
        )
        for extra, key, words in (
            ("tls = false\ncertificate = 'CN=a'", "certificate", "tls = false"),
            ("tls = false\nissuer = 'CN=a'", "issuer", "tls = false"),
            ("tls = 'n'\ncertificate = 'CN=a'\n[tls.n]\npeer_certificate = 'none'", "certificate", '"none"'),
            (
                "tls = 'n'\nissuer = 'DNS:a'\n[tls.n]\ntrusted = ['t.crt']",
                "issuer",
                "neither a whole subject",
            ),
        )
    ),
    ("[queue]\nurl = 'http://x'", "queue.url", "not a scheme of Redis"),
    ("[queue]\nurl = 'redis://'", "queue.url", "names no server"),
    ("[queue]\nurl = 'unix://'", "queue.url", "names no server"),
    ("[queue]\nurl = 'redis://h:port'", "queue.url", "not a URL"),
    ("[queue]\ncarrier = 'pigeon'", "queue.carrier", "'spool' or 'redis'"),
    ("[queue]\ncarrier_max_waiting = 0", "queue.carrier_max_waiting", "≥ 1"),
    ("[store]\nroot = 'a.crt'", "store.root", "not a folder"),
    ("[store]\npath = '{sop_uid}{patient_id}'", "store.path", "unknown field {patient_id}"),
    ("[store]\npath = '{study_uid}.dcm'", "store.path", "put {sop_uid} into it"),
    ("[store]\npath = '{sop_uid'", "store.path", "not a template"),
    ("[store]\npath = '{sop_uid!r}'", "store.path", "format"),
    ("[store]\npath = '{sop_uid:>99}'", "store.path", "format"),
    ("[store]\npath = '{sop_uid}{sop_uid.__class__}'", "store.path", "unknown field"),
    ("[store]\npath = '../{sop_uid}'", "store.path", "leaves the store"),
    ("[store]\npath = '/{sop_uid}'", "store.path", "leaves the store"),
    ("[store]\npath = '{sop_uid}/'", "store.path", "leaves the store"),
    ("[ledger]\nurl = 'mysql://x'", "ledger.url", "SQLite or PostgreSQL"),
    ("[ledger]\nurl = 'sqlite://'", "ledger.url", "ends with its process"),
    ("[ledger]\nurl = 'sqlite:///:memory:'", "ledger.url", "ends with its process"),
    (DESTINATION.replace("pacs", "a b"), "destinations[0].name", "letters, digits"),
    (DESTINATION.replace('host = "h"', ""), "destinations[0].host", "missing"),
    (DESTINATION.replace("false", '"t"'), "destinations[0].tls", "no [tls.t]"),
    (DESTINATION + DESTINATION, "destinations[1].name", "destinations[0] too"),
    (DESTINATION + "port = 0", "destinations[0].port", "≥ 1"),
    (DESTINATION + "retry_statuses = ['C21']", "destinations[0].retry_statuses[0]", "four hexadecimal"),
    (
        DESTINATION + "dead_statuses = ['A9xx', 'G000']",
        "destinations[0].dead_statuses[1]",
        '"C211" or "Cxxx"',
    ),
    (DESTINATION + "dead_statuses = ['B0xx']", "destinations[0].dead_statuses[0]", "has stored the instance"),
    (
        DESTINATION + "retry_statuses = ['0111']",
        "destinations[0].retry_statuses[0]",
        "has stored the instance",
    ),
    (
        DESTINATION + "retry_statuses = ['Cxxx']\ndead_statuses = ['0xcXXX']",
        "destinations[0].dead_statuses[0]",
        "retry_statuses[0] too",
    ),
    (DESTINATION + "retry_statuses = 'Cxxx'", "destinations[0].retry_statuses", "not a list"),
    (DESTINATION + "retry_first_seconds = 900", "destinations[0].retry_first_seconds", "retry_max_seconds"),
    (DESTINATION + "[[routes]]\nto = ['pacs', 'x']", "routes[0].to[1]", "write one of pacs"),
    (DESTINATION + "[[routes]]\nto = ['pacs', 'pacs']", "routes[0].to", "2 times"),
    (DESTINATION + "[[routes]]\nto = 'pacs'", "routes[0].to", "not a list"),
    (
        DESTINATION + "[[routes]]\nto = ['pacs']\nwhen = { modalty = ['CT'] }",
        "routes[0].when.modalty",
        "is not known",
    ),
    (
        DESTINATION + "[[routes]]\nto = ['pacs']\nwhen = { Rows = { min = 2, max = 1 } }",
        "routes[0].when.Rows",
        "exchange min and max",
    ),
    (
        DESTINATION + "[[routes]]\nto = ['pacs']\nstop = true\n[[routes]]\nto = ['pacs']",
        "routes[1]",
        "no instance reaches it",
    ),
    (
        DESTINATION + "[[routes]]\nto = []\nhold = true",
        "routes[0].hold",
        "there is nothing to hold",
    ),
    (
        DESTINATION + "[[routes]]\nname = 'a'\nto = []\n[[routes]]\nname = 'a'\nto = ['pacs']",
        "routes[1].name",
        "is the name of routes[0] too",
    ),
    ("[[routes]]\nwhen = {}", "routes[0].to", "missing"),
    (DESTINATION + "hours = '22-6'", "destinations[0].hours", "'22-6' is no window of hours"),
    (DESTINATION + "time_zone = 'Mars'", "destinations[0].time_zone", "'Mars' is no time zone"),
    (
        DESTINATION + "bandwidth_by_hours = [{ hours = 'x', mb_per_s = 1 }]",
        "destinations[0].bandwidth_by_hours[0].hours",
        "'x' is no window",
    ),
    (
        DESTINATION + "hours = 'sun 06:00-07:00'\ngive_up_hours = 100",
        "destinations[0].hours",
        "leave out 167 hours at a time",
    ),
    (
        DESTINATION + "hours = '08:00-12:00'\n[[routes]]\nto = ['pacs']\nhours = '13:00-14:00'",
        "routes[0].hours",
        "is never sent to in these hours",
    ),
    (
        DESTINATION + "hours = '08:00-12:00'\n[[groups]]\nname = 'archive'\nmembers = ['pacs']\n"
        "[[routes]]\nto = ['archive']\nhours = '13:00-14:00'",
        "routes[0].hours",
        "is never sent to in these hours",
    ),
    ("[audit]\nhost = 'h'\ntls = false", "audit.tls", "name patients"),
    ("[traces]\nendpoint = 'http://collector:4318'", "traces.endpoint", "plain http"),
    ("[traces]\nendpoint = 'collector:4318'", "traces.endpoint", "no URL"),
    ("[traces]\nendpoint = 'https://c'\nshare = 0", "traces.share", "out of range"),
    ("[audit]\nhost = 'h'\ntls = 'x'", "audit.tls", "there is no [tls.x]"),
    ("[log]\nformat = 'xml'", "log.format", "'console' or 'json'"),
    ("[log]\nfile = 'no/such/x.log'", "log.file", "no folder"),
    ("[log]\nfile = '.'", "log.file", "is a folder"),
]


@pytest.mark.parametrize(("text", "key", "words"), BAD, ids=[f"{key} {words}"[:60] for _, key, words in BAD])
def test_a_fault_names_its_key_cause_and_remedy_alone(folder, text, key, words):
    (line,) = faults(folder, text)
    assert line.startswith(f"{key}: ")
    assert words in line
    assert "; " in line, "no remedy"


def test_all_faults_of_all_sections_are_told_together(folder):
    lines = faults(
        folder,
        """
        [node]
        ae_titel = "X"
        [[listeners]]
        port = "x"
        [[listeners]]
        tls = "nod"
        port = 2762
        [tls.node]
        certificate = "none.crt"
        peer_certificate = "maybe"
        [[peers]]
        hosts = ["x"]
        [queue]
        url = "http://x"
        [[destinations]]
        name = "a b"
        ae_title = "A"
        host = "h"
        [[routes]]
        to = ["a b", "nobody"]
        [store]
        path = "x"
        """,
    )
    assert sorted(keys(lines)) == [
        "destinations[0].name",
        "listeners[0].port",
        "listeners[1].tls",
        "node.ae_titel",
        "peers[0].ae_title",
        "peers[0].hosts[0]",
        "queue.url",
        "routes[0].to[1]",
        "store.path",
        "tls.node.certificate",
        "tls.node.peer_certificate",
        "tls.node.private_key",
        "tls.node.trusted",
    ]


def test_a_faulty_section_does_not_bring_faults_of_those_that_name_it(folder):
    text = DESTINATION.replace("pacs", "a b") + "[[routes]]\nto = ['a b']\n[[listeners]]\n[tls]\nnode = 3\n"
    assert sorted(keys(faults(folder, text))) == ["destinations[0].name", "tls.node"]


def test_syntax_error_names_file_and_line(folder):
    (line,) = faults(folder, "[node]\nae_title = = 3\n")
    assert line.startswith(f"{folder / 'ingest.toml'}:2: ")


def test_a_key_given_twice_names_file_and_line(folder):
    (line,) = faults(folder, '[node]\nae_title = "A"\nae_title = "B"\n')
    assert re.match(rf"{re.escape(str(folder))}/ingest.toml:\d: ", line)


def test_text_that_is_not_utf8_names_file_and_line(folder):
    file = folder / "latin.toml"
    file.write_bytes(b'[node]\n# M\xfcnchen\nae_title = "A"\n')
    with pytest.raises(ConfigError, match=r"latin\.toml:2: is not UTF-8"):
        load_config(file)


@pytest.mark.parametrize("name", ["none.toml", "none.json", "a\0b.toml"])
def test_file_that_cannot_be_read_is_a_fault(folder, name):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(folder / name)


def test_listening_asks_for_a_listener_and_workers_do_not(folder):
    assert keys(faults(folder, "", roles={"listen", "persist"})) == ["listeners"]
    assert read(folder, "", roles={"persist", "forward"}).listeners == ()


def test_two_listeners_may_take_free_ports_or_addresses_of_their_own(folder):
    config = read(
        folder,
        "[[listeners]]\nport = 0\ntls = false\n[[listeners]]\nport = 0\ntls = false\n"
        '[[listeners]]\nport = 5\nhost = "10.0.0.1"\ntls = false\n'
        '[[listeners]]\nport = 5\nhost = "10.0.0.2"\ntls = false\n',
    )
    assert len(config.listeners) == 4


def test_private_file_is_a_fault_for_who_may_not_read_it(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("a.key"))
    assert "cannot be read" in faults(folder, f"[tls.n]\n{TLS_FILES}")[0]


def test_file_in_a_folder_that_is_a_socket_is_no_data_dir(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        assert keys(faults(folder, '[node]\ndata_dir = "s"')) == ["node.data_dir"]


def test_urls_with_passwords_stay_out_of_representations(folder):
    config = read(folder, "[queue]\nurl = 'redis://:secret@h'\n[ledger]\nurl = 'postgresql://u:secret@h/d'\n")
    assert "secret" not in repr(config)


def test_shipped_configuration_holds_every_key_with_its_default():
    text = (ROOT / "config/ingest.toml").read_text()
    data = tomllib.loads("\n".join(re.sub(r"^# (?=\[|\w+ = )", "", line) for line in text.splitlines()))

    def compare(kind: type[BaseModel], table: dict, name: str) -> None:
        fields = {field.alias or key: field for key, field in kind.model_fields.items()}
        assert set(fields) == set(table), name
        for key, field in fields.items():
            if not field.is_required() and name not in {"tls.node", "top"}:
                assert table[key] == _as_toml(field.get_default(call_default_factory=True)), f"{name}.{key}"

    lists = {
        "listeners": model.ListenerSettings,
        "peers": model.PeerSettings,
        "destinations": model.Destination,
    }
    compare(Config, data, "top")
    compare(model.TLS, data["tls"]["node"], "tls.node")
    compare(model.OIDCSettings, data["console"]["oidc"], "console.oidc")
    data["console"]["oidc"] = ""
    compare(model.ConsoleSettings, data["console"], "console")
    compare(model.AuditSettings, data["audit"], "audit")
    compare(model.TraceSettings, data["traces"], "traces")
    for name, kind in (
        lists
        | {
            "groups": model.Group,
            "routes": model.Route,
            "alerts": model.AlertSettings,
            "webhooks": model.WebhookSettings,
        }
    ).items():
        compare(kind, data[name][0], name) if name != "peers" else None
    for name in ("node", "receive", "queue", "store", "workers", "ledger", "retention", "log"):
        compare(type(getattr(Config(), name)), data[name], name)


def _as_toml(value):
    if value is None:
        return ""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def test_documentation_explains_every_key():
    page = (ROOT / "docs/reference/configuration.md").read_text()
    for kind in (*model.Section.__subclasses__(),):
        for key, field in kind.model_fields.items() if kind is not Config else ():
            assert f"`{field.alias or key}`" in page, f"{kind.__name__}.{key}"
