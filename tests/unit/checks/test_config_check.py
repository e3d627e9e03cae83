"""`ingest check`: what lies beyond the file, and what a node says at its start."""

import hashlib
import sqlite3
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes

from ingest.checks.node import check_node, list_start_notices
from ingest.checks.weak_settings import find_weak_settings
from ingest.cli import main
from ingest.config.reader import load_config
from ingest.config.serialization import format_as_toml, mask_url_password
from ingest.tls.keys import pairs
from tests.support.ports import free_port

NOW = datetime.now(UTC)


@pytest.fixture
def site(tmp_path):
    """A folder with a sound pair `node` that trusts itself."""
    made = pairs.create_pair(tmp_path / "node", "localhost", key_type="ec")
    pairs.add_to_bundle(made.anchor, tmp_path / "trusted.crt")
    return tmp_path


@pytest.fixture
def config(site):
    """Reads a configuration with a TLS listener and what a test adds; without the embedded server's probe."""

    def read(extra="", tls="", receive="min_free_bytes = 0", listeners='port = 0\ntls = "node"'):
        (site / "ingest.toml").write_text(
            f"""
            [node]
            data_dir = "var"
            [receive]
            {receive}
            [[listeners]]
            {listeners}
            [tls.node]
            certificate = "node.crt"
            private_key = "node.key"
            trusted = ["trusted.crt"]
            {tls}
            {extra}
            """
        )
        return load_config(site / "ingest.toml", environ={})

    return read


def told(faults):
    return {(fault.key, fault.is_note) for fault in faults}


def write(site, name, pair):
    return pairs.write_pair(pair, site / name, force=True)


def test_sound_configuration_has_neither_faults_nor_notes_and_leaves_nothing_behind(config, site):
    before = sorted(site.iterdir())
    settings = config()
    assert check_node(settings) == []
    assert sorted(site.iterdir()) == sorted([*before, site / "ingest.toml"])


def test_pair_that_does_not_fit_is_a_fault(config, site):
    write(site, "node", pairs.issue_self_signed("a", key_type="ec"))
    key = site / "node.key"
    key.unlink()
    write(site, "other", pairs.issue_self_signed("b", key_type="ec"))[1].rename(key)
    (fault,) = check_node(config())
    assert (fault.key, fault.is_note) == ("tls.node", False)
    assert "does not belong" in fault.cause
    assert "; " in fault.explanation


@pytest.mark.parametrize(
    ("start", "days", "note", "words"),
    [(-9, 1, False, "ended on"), (-1, 10, True, "ends on"), (2, 40, False, "is not valid before")],
)
def test_end_and_begin_of_the_own_certificate_are_told(config, site, start, days, note, words):
    pair = pairs.issue_self_signed("localhost", key_type="ec", start=NOW + timedelta(days=start), days=days)
    write(site, "node", pair)
    (fault,) = check_node(config())
    assert (fault.key, fault.is_note) == ("tls.node.certificate", note)
    assert words in fault.cause


def test_own_certificate_that_ends_within_a_day_is_a_warning(config, site):
    pair = pairs.issue_self_signed("localhost", key_type="ec", start=NOW - timedelta(days=1), days=1.9)
    write(site, "node", pair)
    (fault,) = check_node(config())
    assert (fault.key, fault.kind) == ("tls.node.certificate", "warning")
    assert "within 24 hours" in fault.cause
    command = ["check", "-c", str(site / "ingest.toml")]
    assert CliRunner().invoke(main, command).exit_code == 0
    strict = CliRunner().invoke(main, [*command, "--strict"])
    assert (strict.exit_code, strict.output.splitlines()[-1].endswith(": 1 warning")) == (1, True)


def test_expired_trusted_certificate_is_a_note(config, site):
    old = pairs.issue_self_signed("ct1", key_type="ec", start=NOW - timedelta(days=9), days=1)
    pairs.add_to_bundle(old.certificate, site / "trusted.crt")
    (fault,) = check_node(config())
    assert (fault.key, fault.is_note) == ("tls.node.trusted[0]", True)
    assert "CN=ct1" in fault.cause


def test_chain_out_of_order_is_a_fault(config, site):
    issuer, stranger = (pairs.issue_authority(name, key_type="ec") for name in ("a", "b"))
    certificate, _ = write(site, "node", pairs.issue_signed("n", issuer, key_type="ec"))
    with certificate.open("ab") as file:
        file.write(issuer.certificate_pem)
    assert check_node(config()) == []
    with certificate.open("ab") as file:
        file.write(stranger.certificate_pem)
    (fault,) = check_node(config())
    assert "is not signed by the next certificate" in fault.cause


def test_certificate_for_clients_only_is_a_fault_for_a_listener(config, site, monkeypatch):
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    monkeypatch.setattr(
        "ingest.tls.keys.issuance._BOTH_ROLES", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    )
    write(site, "node", pairs.issue_self_signed("n", key_type="ec"))
    (fault,) = check_node(config())
    assert "lacks serverAuth" in fault.cause


def test_key_that_others_may_read_is_a_note(config, site):
    (site / "node.key").chmod(0o644)
    assert told(check_node(config())) == {("tls.node.private_key", True)}


def test_full_disk_is_a_fault_of_each_folder_on_it(config):
    faults = check_node(config(receive="min_free_bytes = 9000000000000000000"))
    assert told(faults) == {("node.data_dir", False), ("receive.spool_dir", False), ("store.root", False)}


def test_folder_that_cannot_be_written_is_a_fault(config):
    faults = check_node(config(receive='min_free_bytes = 0\nspool_dir = "/proc/spool"'))
    assert ("receive.spool_dir", False) in told(faults)
    assert ("store.root", True) in told(faults)  # and it is another file system


def test_redis_that_does_not_answer_is_a_fault_without_its_password(config):
    (fault,) = check_node(config(f'[queue]\nurl = "redis://:geheim@127.0.0.1:{free_port()}"'))
    assert (fault.key, fault.is_note) == ("queue.url", False)
    assert "geheim" not in str(fault)


def test_redis_elsewhere_needs_a_shared_spool_or_the_redis_carrier_and_a_ledger_for_all(config, monkeypatch):
    monkeypatch.setattr("ingest.checks.node._check_redis", lambda _: iter(()))
    spool, ledger = check_node(config('[queue]\nurl = "redis://10.0.0.1"'))
    assert (spool.key, spool.is_note) == ("queue.carrier", True)
    assert 'carrier = "redis"' in spool.remedy
    assert (ledger.key, ledger.is_note) == ("ledger.url", True)
    assert check_node(config('[queue]\nurl = "redis://[::1]:6379"')) == []
    assert check_node(config('[queue]\nurl = "unix:///run/redis.sock"')) == []
    carried, _ = check_node(config('[queue]\nurl = "redis://10.0.0.1"\ncarrier = "redis"'))
    assert "patient data" in carried.cause


def test_embedded_server_that_does_not_run_is_a_fault(config, monkeypatch, tmp_path):
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("ingest.queue.server_program.find_server_program", lambda: program)
    (fault,) = check_node(config())
    assert "does not run" in fault.cause


def test_ledger_that_is_no_database_is_a_fault_and_a_sound_one_is_not_changed(config, site):
    (site / "var").mkdir()
    ledger = site / "var" / "ledger.db"
    ledger.write_text("hello, this is no database" * 50)
    (fault,) = check_node(config())
    assert (fault.key, fault.is_note) == ("ledger.url", False)
    ledger.unlink()
    sqlite3.connect(ledger).close()
    assert check_node(config()) == []
    assert ledger.stat().st_size == 0


def test_postgresql_that_does_not_answer_or_has_no_driver_is_a_fault_without_its_password(config):
    url = f"postgresql+psycopg://u:geheim@127.0.0.1:{free_port()}/d"
    (fault,) = check_node(config(f'[ledger]\nurl = "{url}"'))
    assert (fault.key, fault.is_note) == ("ledger.url", False)
    assert "geheim" not in str(fault)


def test_parts_of_no_use_together_are_notes(config):
    extra = '[[destinations]]\nname = "p"\nae_title = "P"\nhost = "h"\ntls = false\n'
    assert told(check_node(config(extra))) == {("destinations[0]", True)}
    extra += '[[routes]]\nto = ["p"]\n[workers]\nforward = 0\n'
    assert told(check_node(config(extra))) == {("workers.forward", True)}


def test_choices_that_weaken_the_node_are_said_at_every_start(config):
    settings = config(
        receive='durability = "page-cache"\nmin_free_bytes = 0',
        tls='profile = "custom"\nminimum_version = "TLSv1"\npeer_certificate = "optional"',
    )
    assert told(list_start_notices(settings)) == {
        ("receive.durability", True),
        ("tls.node.ciphers", True),
        ("tls.node.minimum_version", True),
        ("tls.node.peer_certificate", True),
    }
    assert told(check_node(settings)) >= told(list_start_notices(settings))


def test_shown_configuration_is_read_again_as_the_same(config, site):
    settings = config(
        '[[destinations]]\nname = "p"\nae_title = "A\\"B"\nhost = "h"\ntls = "node"\n[[routes]]\nto = ["p"]\n'
        '[[peers]]\nae_title = "CT1"\nhosts = ["10.0.0.0/8"]\ncertificate = "CN=a\\\\, b"\n'
        '[tls."odd name.x"]\npeer_certificate = "none"\n'
    )
    (site / "elsewhere").mkdir()
    (site / "elsewhere" / "shown.toml").write_text(format_as_toml(settings))
    again = load_config(site / "elsewhere" / "shown.toml", environ={})
    assert format_as_toml(again) == format_as_toml(settings)
    assert again.destinations == settings.destinations
    assert again.tls == settings.tls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:p%40ss@h/0", "redis://:***@h/0"),
        ("rediss://u:p@h:1/0?x=1", "rediss://u:***@h:1/0?x=1"),
        ("unix:///run/r.sock?db=1&password=geheim", "unix:///run/r.sock?db=1&password=***"),
        ("postgresql+psycopg://u:p:q@[::1]/d", "postgresql+psycopg://u:***@[::1]/d"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("sqlite:////a/b:c@d.db", "sqlite:////a/b:c@d.db"),
        ("redis://[h", "redis://[h"),
        ("redis://user@h:6379/0", "redis://user@h:6379/0"),
        ("redis://a@b:geheim@h", "redis://a@b:***@h"),
        ("postgresql+psycopg://dicom@srv:geheim@h/d", "postgresql+psycopg://dicom@srv:***@h/d"),
        ("redis://u:geheim@[h", "redis://u:***@[h"),
        ("postgresql+psycopg://u:ge/heim@h:1/d", "postgresql+psycopg://u:***@h:1/d"),
        ("postgresql+psycopg://u:ge#heim@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql+psycopg://u:ge?he@im@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql+psycopg:///d?Password=geheim&host=h", "postgresql+psycopg:///d?Password=***&host=h"),
        ("postgresql+psycopg:///d?passwd=geheim", "postgresql+psycopg:///d?passwd=***"),
        ("postgresql+psycopg:///d?sslpassword=geheim", "postgresql+psycopg:///d?sslpassword=***"),
    ],
)
def test_passwords_in_urls_are_masked(url, shown):
    assert mask_url_password(url) == shown


def test_certificate_that_only_openssl_can_read_is_a_note_and_stops_no_node(config, site):
    """Of a version that X.509 does not have: OpenSSL does not mind."""
    path = site / "node.crt"
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    path.write_text(ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05")))
    settings = config()
    assert list_start_notices(settings) == []
    found = check_node(settings)
    assert {(fault.key, fault.is_note) for fault in found} == {
        ("tls.node", True),
        ("tls.node.certificate", True),
    }
    assert all(str(path) in fault.cause for fault in found)


BOUND = '[[peers]]\nae_title = "CT1"\ncertificate = "CN=ct1"\n'


@pytest.mark.parametrize(
    ("authorities", "tls", "extra", "key", "words"),
    [
        (2, "", BOUND, "peers[0].certificate", "CN=one, CN=two"),
        (1, "", BOUND, None, ""),
        (2, "", BOUND + 'issuer = "CN=one"', None, ""),
        (2, "", BOUND.replace("CN=ct1", "ab" * 32), None, ""),
        (0, 'peer_certificate = "none"', BOUND, "peers[0].certificate", "no listener asks"),
        (0, "", BOUND + '[[peers]]\nae_title = "CT1"', "peers[1]", "peers[0] is bound"),
        (0, "", BOUND + '[[peers]]\nae_title = "ct1 "', "peers[1]", "peers[0] is bound"),
        (0, "", BOUND + '[[peers]]\nae_title = "CT1"\nallow = []', None, ""),
        (0, "", BOUND + '[[peers]]\nae_title = "*"', None, ""),
    ],
)
def test_bindings_that_mean_less_than_they_seem_to_are_noted(
    config, site, authorities, tls, extra, key, words
):
    for name in ("one", "two")[:authorities]:
        pairs.add_to_bundle(pairs.issue_authority(name, key_type="ec").certificate, site / "trusted.crt")
    found = [note for note in find_weak_settings(config(extra, tls)) if note.key.startswith("peers")]
    assert [(note.key, note.is_note) for note in found] == ([(key, True)] if key else [])
    assert words in "".join(str(note) for note in found)
    assert set(found) <= set(list_start_notices(config(extra, tls)))


TOWARDS = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "h"\n'


@pytest.mark.parametrize(
    ("authorities", "tls", "extra", "key", "words"),
    [
        (1, "", TOWARDS, "tls.node.trusted", "could answer as pacs"),
        (0, "", TOWARDS, None, ""),  # the one that is trusted is its own
        (1, "check_server_name = true", TOWARDS, None, ""),
        (1, "", TOWARDS + 'certificate = "CN=pacs"', None, ""),
        (1, "", TOWARDS + 'issuer = "CN=one"', None, ""),
        (1, "", TOWARDS + "tls = false", None, ""),
        (2, "", TOWARDS + 'certificate = "CN=pacs"', "destinations[0].certificate", "CN=one, CN=two"),
        (2, "", TOWARDS + 'certificate = "CN=pacs"\nissuer = "CN=one"', None, ""),
    ],
)
def test_a_destination_for_which_others_pass_is_noted(config, site, authorities, tls, extra, key, words):
    for name in ("one", "two")[:authorities]:
        pairs.add_to_bundle(pairs.issue_authority(name, key_type="ec").certificate, site / "trusted.crt")
    found = find_weak_settings(config(extra, tls))
    assert [(note.key, note.is_note) for note in found] == ([(key, True)] if key else [])
    assert words in "".join(str(note) for note in found)
    assert set(found) <= set(list_start_notices(config(extra, tls)))


@pytest.mark.parametrize(
    ("certificate", "issuer", "key"),
    [
        ("CN=ct1", "CN=site", "issuer"),
        ("", "CN=site", "issuer"),
        ("CN=site", "", "certificate"),
        ("localhost", "", "certificate"),
        ("", "FINGERPRINT", None),
        ("localhost", "FINGERPRINT", None),
        ("FINGERPRINT", "CN=site", None),
        ("CN=ct1", "CN=localhost", None),
        ("CN=ct1", "", None),
    ],
)
def test_a_name_that_several_trusted_certificates_have_is_noted(config, site, certificate, issuer, key):
    vendor = pairs.issue_self_signed("site", names=["localhost"], key_type="ec").certificate
    for each in (pairs.issue_authority("site", key_type="ec").certificate, vendor):
        pairs.add_to_bundle(each, site / "trusted.crt")
    fingerprint = vendor.fingerprint(hashes.SHA256()).hex()
    bound = f'[[peers]]\nae_title = "CT1"\ncertificate = "{certificate}"\nissuer = "{issuer}"'
    settings = config(bound.replace("FINGERPRINT", fingerprint))
    found = [note for note in find_weak_settings(settings) if note.key.startswith("peers")]
    assert [(note.key, note.is_note) for note in found] == ([(f"peers[0].{key}", True)] if key else [])
    assert all(fingerprint in note.cause and "bind by fingerprint" in note.remedy for note in found)


def test_a_trusted_certificate_that_is_read_in_part_has_a_subject_too(config, site):
    """Its alternative names end early, which does not keep it from standing for an authority."""
    pairs.add_to_bundle(pairs.issue_authority("localhost", key_type="ec").certificate, site / "trusted.crt")
    der = ssl.PEM_cert_to_DER_cert((site / "node.crt").read_text())
    broken = der.replace(b"\x82\x09localhost", b"\xa2\x09localhost")
    assert broken != der
    with (site / "trusted.crt").open("a") as bundle:
        bundle.write(ssl.DER_cert_to_PEM_cert(broken))
    settings = config('[[peers]]\nae_title = "CT1"\nissuer = "CN=localhost"')
    (found,) = [note for note in find_weak_settings(settings) if note.key == "peers[0].issuer"]
    assert hashlib.sha256(broken).hexdigest() in found.cause


def test_audit_messages_over_udp_are_noted():
    from ingest.config.model import Config

    plain = Config.model_validate({"audit": {"host": "arr", "tls": False, "allow_plain": True}})
    assert [note.key for note in find_weak_settings(plain)] == ["audit.allow_plain"]
    assert find_weak_settings(Config.model_validate({"audit": {"host": "arr"}})) == []


def test_settings_of_completion_that_do_not_fit_together_are_notes(config):
    destinations = """
        [[destinations]]
        name = "pacs"
        ae_title = "PACS"
        host = "localhost"
        port = 104
        tls = false
        one_association_per_study = true
        [[routes]]
        to = ["pacs"]
    """
    key = "destinations[0].one_association_per_study"
    assert (key, True) in told(check_node(config(destinations)))
    notes = told(check_node(config(f'{destinations}\non = "study"')))
    assert key not in {name for name, _ in notes}
    assert ("routes[0].on", True) in told(check_node(config(f'{destinations}\non = "study"\nhold = true')))
