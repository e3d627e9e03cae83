"""Certificates that end: what is said of them, when, and how often."""

import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.checks.node import check_node
from ingest.config.reader import load_config
from ingest.status.report import gather_status
from ingest.tls import expiry
from ingest.tls.expiry import CertificateLocation, ExpiringCertificate, find_due_warnings
from ingest.tls.identity import CertificateIdentity
from ingest.tls.keys import pairs
from ingest.tls.observed_certificates import FOLDER, KEPT_MAX, ObservedCertificates
from tests.support.keymaterial import PASSWORD, Keys
from tests.support.peers import require_program

END = datetime(2030, 6, 1, 12, tzinfo=UTC)


def dated(name="a", section="tls.node", end=END):
    identity = CertificateIdentity(name * 64, f"CN={name}", "CN=x", (), end)
    return ExpiringCertificate(
        CertificateLocation(section, "certificate", Path("a.crt"), None), "own", (), identity
    )


def walk(days, found, step=timedelta(hours=1)):
    """What a node says that looks every `step`, from `days` before the end on: days left, thresholds."""
    said, told = set(), []
    now = END - timedelta(days=days)
    while now < END + timedelta(days=2, hours=10):
        for due in find_due_warnings(now, found, said):
            said.add(due.mark)
            told.append(((END - now) / timedelta(days=1), due.days))
        now += step
    return told


def test_each_threshold_is_said_once_and_the_end_once_a_day():
    told = walk(40, [dated()])
    # The end is at noon: on that day, and on the two that follow.
    assert [days for _, days in told] == [30, 7, 1, 0, 0, 0]
    assert [left for left, _ in told[:4]] == [30, 7, 1, 0]


def test_who_starts_late_says_the_nearest_threshold_alone():
    assert [days for _, days in walk(5, [dated()])] == [7, 1, 0, 0, 0]
    assert [days for _, days in walk(0.5, [dated()])] == [1, 0, 0, 0]
    assert [days for _, days in walk(-1, [dated()])] == [0, 0]


def test_certificate_that_is_there_twice_is_said_once_for_each_section():
    found = [dated(), dated(), dated(section="tls.old"), dated("b"), dated("c", end=END + timedelta(days=99))]
    due = find_due_warnings(END - timedelta(days=3), found, ())
    assert [(d.certificate.location.section, d.certificate.identity.subject) for d in due] == [
        ("tls.node", "CN=a"),
        ("tls.old", "CN=a"),
        ("tls.node", "CN=b"),
    ]
    assert find_due_warnings(END - timedelta(days=2), found, {d.mark for d in due}) == []


def pair(name, days):
    """A pair that ends in (or ended before) so many days."""
    now = datetime.now(UTC)
    begin = now - timedelta(days=100)
    return pairs.issue_self_signed(name, key_type="ec", start=begin, days=100 + days)


@pytest.fixture
def site(tmp_path):
    """Makes a folder with a configuration: a node, a bound peer CT1, a destination, somebody else."""

    def make(node=90.0, ct1=90.0, pacs=90.0, other=90.0):
        pairs.write_pair(pair("node", node), tmp_path / "node")
        for name, days, bundle in (("ct1", ct1, "in"), ("other", other, "in"), ("pacs", pacs, "out")):
            pairs.add_to_bundle(pair(name, days).certificate, tmp_path / f"{bundle}.crt")
        (tmp_path / "ingest.toml").write_text(
            """
            [node]
            data_dir = "var"
            [receive]
            min_free_bytes = 0
            [[listeners]]
            port = 0
            tls = "node"
            [[peers]]
            ae_title = "CT1"
            certificate = "CN=ct1"
            [[peers]]
            ae_title = "*"
            [[destinations]]
            name = "pacs"
            ae_title = "PACS"
            host = "127.0.0.1"
            port = 104
            tls = "out"
            [[routes]]
            to = ["pacs"]
            [tls.node]
            certificate = "node.crt"
            private_key = "node.key"
            trusted = ["in.crt"]
            [tls.out]
            trusted = ["out.crt"]
            """
        )
        return load_config(tmp_path / "ingest.toml", environ={})

    return make


def test_check_has_nothing_to_say_of_what_is_good_for_long(site):
    assert check_node(site()) == []


@pytest.mark.parametrize(
    ("who", "key", "note", "words"),
    [
        ("node", "tls.node.certificate", False, "the certificate (CN=node) ended"),
        ("ct1", "tls.node.trusted[0]", False, "the certificate of CT1 (CN=ct1) ended"),
        ("other", "tls.node.trusted[0]", True, "a trusted certificate (CN=other) ended"),
        ("pacs", "tls.out.trusted[0]", False, "used for pacs, (CN=pacs) ended"),
    ],
)
def test_end_is_a_fault_where_somebody_is_stopped_and_soon_is_a_note(site, who, key, note, words, tmp_path):
    (fault,) = check_node(site(**{who: -1}))
    assert (fault.key, fault.is_note) == (key, note)
    assert words in fault.cause
    for name in ("node.crt", "node.key", "in.crt", "out.crt"):
        (tmp_path / name).unlink()
    (fault,) = check_node(site(**{who: 29}))
    assert (fault.key, fault.is_note) == (key, True)
    assert words.replace("ended", "ends") in fault.cause


def test_status_tells_whose_certificates_end(site):
    told = {row["subject"]: row for row in gather_status(site(ct1=12, pacs=-3))["certificates"]}
    assert {name: (row["role"], row["whose"]) for name, row in told.items()} == {
        "CN=node": ("own", []),
        "CN=ct1": ("peer", ["CT1"]),
        "CN=other": ("trusted", []),
        "CN=pacs": ("trusted", ["pacs"]),
    }
    assert told["CN=ct1"]["days_left"] == pytest.approx(12, abs=0.1)
    assert told["CN=pacs"]["days_left"] == pytest.approx(-3, abs=0.1)


def test_own_chain_in_pkcs12_is_told_too(tmp_path):
    require_program("openssl")
    keys = Keys(tmp_path / "keys")
    keys.pkcs12("store.p12", "ec")
    text = '[node]\ndata_dir = "var"\n[[listeners]]\nport = 0\n[receive]\nmin_free_bytes = 0\n[tls.node]\n'
    text += 'pkcs12 = "keys/store.p12"\npassword_file = "keys/password"\ntrusted = ["keys/root.crt"]\n'
    (tmp_path / "ingest.toml").write_text(text)
    config = load_config(tmp_path / "ingest.toml", environ={})
    rows = gather_status(config)["certificates"]
    assert [(row["subject"], row["role"]) for row in rows] == [
        ("CN=ec", "own"),
        ("CN=authority", "issuer"),
        ("CN=root", "trusted"),
    ]
    told = {(fault.key, fault.is_note) for fault in check_node(config)}  # all of them end in 30 days
    assert told >= {("tls.node.pkcs12", True), ("tls.node.trusted[0]", True)}
    assert PASSWORD not in str(check_node(config))


def test_password_and_key_store_that_others_may_read_are_notes(tmp_path):
    require_program("openssl")
    keys = Keys(tmp_path / "keys")
    store = keys.pkcs12("store.p12", "ec")
    text = '[node]\ndata_dir = "var"\n[[listeners]]\nport = 0\n[receive]\nmin_free_bytes = 0\n[tls.node]\n'
    text += 'pkcs12 = "keys/store.p12"\npassword_file = "keys/password"\ntrusted = ["keys/root.crt"]\n'
    (tmp_path / "ingest.toml").write_text(text)
    for first, second in itertools.product((0o600, 0o640, 0o604), repeat=2):
        store.chmod(first)
        keys["password"].chmod(second)
        found = {
            fault.key
            for fault in check_node(load_config(tmp_path / "ingest.toml", environ={}))
            if "chmod" in fault.remedy
        }
        expected = {"tls.node.pkcs12": first, "tls.node.password_file": second}
        assert found == {key for key, mode in expected.items() if mode != 0o600}


def test_watch_says_what_is_in_force_once(site, tmp_path, capsys):
    from structlog.testing import capture_logs

    watch = expiry.ExpiryWatch()
    with capture_logs() as said:
        watch.watch_configuration(site(node=5, ct1=-1))
        watch.log_due_warnings()
        watch.log_due_warnings()
    assert [(line["event"], line["log_level"], line["subject"], line["whose"]) for line in said] == [
        ("certificate_ends", "warning", "CN=node", []),
        ("certificate_ended", "error", "CN=ct1", ["CT1"]),
    ]
    (tmp_path / "node.crt").unlink()  # what happens to the file does not matter until a reload
    with capture_logs() as said:
        watch._next = 0.0
        watch.log_due_warnings()
    assert said == []


def test_what_was_shown_is_forgotten_in_time_and_only_so_much_is_kept(site, tmp_path):
    config, now = site(), datetime.now(UTC)
    folder = config.run_dir / FOLDER
    config.run_dir.mkdir(parents=True)
    sightings = ObservedCertificates(config.run_dir)
    for whose, subject, days in (("PACS", "gone", -31), ("PACS", "ended", -29), ("CT1", "good", 9)):
        sightings.record(
            "destination", whose, CertificateIdentity(subject, subject, "", (), now + timedelta(days=days))
        )
    for number in range(KEPT_MAX + 3):
        before = set(folder.iterdir())
        sightings.record(
            "peer", "CT1", CertificateIdentity(f"{number}", f"{number}", "", (), now + timedelta(days=1))
        )
        (new,) = set(folder.iterdir()) - before
        os.utime(new, (number, number))
    (folder / "left.0123").write_text("{")
    os.utime(folder / "left.0123", (1, 1))
    (folder / "new.0123").write_text("{")
    watch = expiry.ExpiryWatch()
    watch.watch_configuration(config)
    watch.log_due_warnings()
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == ["new.0123"]
    told = [json.loads(path.read_text())["subject"] for path in folder.glob("*.json")]
    assert sorted(told) == sorted(["ended", "good", *map(str, range(3, KEPT_MAX + 3))])


def test_joined_file_that_others_may_read_is_a_note(site, tmp_path):
    site()
    joined = tmp_path / "node.crt"
    joined.write_bytes(joined.read_bytes() + (tmp_path / "node.key").read_bytes())
    text = (tmp_path / "ingest.toml").read_text().replace('private_key = "node.key"', "")
    (tmp_path / "ingest.toml").write_text(text)
    for mode, expected in ((0o640, ["tls.node.certificate"]), (0o600, [])):
        joined.chmod(mode)
        config = load_config(tmp_path / "ingest.toml", environ={})
        assert [fault.key for fault in check_node(config) if "chmod" in fault.remedy] == expected
