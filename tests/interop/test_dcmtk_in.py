"""DCMTK's echoscu and storescu call the node: who is let in, and that what they send is kept as it came."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop import dcmtk
from tests.interop.files import assert_read_by_others, by_uid, data_set, distinct, read, storable, write_made
from tests.support.nodes import Node, eventually
from tests.support.peers import storescp
from tests.support.pki import Material

# DCMTK's option, and the transfer syntax that it makes storescu offer.
PROPOSALS = {
    "--propose-little": "1.2.840.10008.1.2.1",
    "--propose-big": "1.2.840.10008.1.2.2",
    "--propose-implicit": "1.2.840.10008.1.2",
    "--propose-lossless": "1.2.840.10008.1.2.4.70",
    "--propose-jpeg8": "1.2.840.10008.1.2.4.50",
    "--propose-jpeg12": "1.2.840.10008.1.2.4.51",
    "--propose-j2k-lossless": "1.2.840.10008.1.2.4.90",
    "--propose-j2k-lossy": "1.2.840.10008.1.2.4.91",
    "--propose-jls-lossless": "1.2.840.10008.1.2.4.80",
    "--propose-jls-lossy": "1.2.840.10008.1.2.4.81",
    "--propose-rle": "1.2.840.10008.1.2.5",
    "--propose-deflated": "1.2.840.10008.1.2.1.99",
}


def tls_section(material: Material, peer_certificate: str) -> str:
    return (
        f'[tls.node]\ncertificate = "{material.certificate("node")}"\n'
        f'private_key = "{material.key("node")}"\n'
        f'trusted = ["{material.trusted}"]\npeer_certificate = "{peer_certificate}"'
    )


def refusals(node: Node, verify_message: str = "") -> list[dict[str, object]]:
    """Handshakes that the node refused."""
    return [
        event
        for event in node.events("tls_handshake_failed")
        if verify_message in event.get("verify_message", "")
    ]


# --- who is let in


@pytest.mark.parametrize("name", ["peer", "other"], ids=["rsa", "ec"])
def test_echo_with_a_trusted_certificate_succeeds(shared_node: Node, material: Material, name: str) -> None:
    done = dcmtk.echoscu(shared_node.tls_port, *dcmtk.authenticated(material, name))

    assert done.returncode == 0, done.stdout
    assert "Received Echo Response (Success)" in done.stdout


@pytest.mark.parametrize("profile", ["--profile-bcp195-nd", "--profile-bcp195", "--profile-bcp195-ex"])
def test_each_profile_of_bcp_195_shakes_hands(shared_node: Node, material: Material, profile: str) -> None:
    done = dcmtk.echoscu(shared_node.tls_port, *dcmtk.authenticated(material, "peer"), profile)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["--profile-aes", "--profile-null"])
def test_retired_profiles_are_refused(shared_node: Node, material: Material, profile: str) -> None:
    before = len(refusals(shared_node))

    done = dcmtk.echoscu(shared_node.tls_port, *dcmtk.authenticated(material, "peer"), profile)

    assert done.returncode != 0, done.stdout
    eventually(lambda: len(refusals(shared_node)) > before, 5, "a refused handshake in the log")


@pytest.mark.parametrize(
    ("name", "why"), [("stranger", "self-signed certificate"), ("expired", "certificate has expired")]
)
def test_certificate_that_does_not_verify_is_refused_and_named(
    shared_node: Node, material: Material, name: str, why: str
) -> None:
    done = dcmtk.echoscu(shared_node.tls_port, *dcmtk.authenticated(material, name))

    assert done.returncode != 0, done.stdout
    event = eventually(lambda: refusals(shared_node, why), 5, "the refusal in the log")[-1]
    assert event["address"] in {"127.0.0.1", "::1"}
    assert event["verify_code"]


def test_caller_that_does_not_trust_the_node_ends_the_handshake(
    shared_node: Node, material: Material
) -> None:
    options = dcmtk.authenticated(material, "peer", trusted=material.certificate("stranger"))

    done = dcmtk.echoscu(shared_node.tls_port, *options)

    assert done.returncode != 0, done.stdout
    eventually(
        lambda: [e for e in refusals(shared_node) if "UNKNOWN_CA" in str(e["error"])],
        5,
        "its alert in the log",
    )


def test_no_certificate_is_refused_where_one_is_required(shared_node: Node, material: Material) -> None:
    done = dcmtk.echoscu(shared_node.tls_port, *dcmtk.anonymous(material))

    assert done.returncode != 0, done.stdout
    eventually(
        lambda: [e for e in refusals(shared_node) if "CERTIFICATE" in str(e["error"])],
        5,
        "a missing certificate in the log",
    )


@pytest.mark.parametrize("peer_certificate", ["optional", "none"])
def test_no_certificate_is_taken_where_none_is_required(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, peer_certificate: str
) -> None:
    node = make_node(tls=tls_section(material, peer_certificate)).start()
    files = write_made(tmp_path / "made", 3)

    done = dcmtk.storescu(node.tls_port, *dcmtk.anonymous(material), files=files)

    assert done.returncode == 0, done.stdout
    stored = eventually(lambda: len(found := node.stored()) == 3 and found)
    assert {uid: data_set(path) for uid, path in stored.items()} == {
        uid: data_set(path) for uid, path in by_uid(files).items()
    }


def test_optional_certificate_that_does_not_verify_is_still_refused(
    make_node: Callable[..., Node], material: Material
) -> None:
    node = make_node(tls=tls_section(material, "optional")).start()

    stranger = dcmtk.echoscu(node.tls_port, *dcmtk.authenticated(material, "stranger"))
    trusted = dcmtk.echoscu(node.tls_port, *dcmtk.authenticated(material, "peer"))

    assert stranger.returncode != 0, stranger.stdout
    assert trusted.returncode == 0, trusted.stdout


def test_plain_caller_is_served_by_the_plain_listener(shared_node: Node) -> None:
    done = dcmtk.echoscu(shared_node.plain_port)

    assert done.returncode == 0, done.stdout


def test_plain_caller_on_the_tls_listener_is_refused_and_told_apart(shared_node: Node) -> None:
    done = dcmtk.echoscu(shared_node.tls_port)

    assert done.returncode != 0, done.stdout
    eventually(
        lambda: [e for e in refusals(shared_node) if "plain DICOM" in str(e.get("remedy"))],
        5,
        "the mismatch in the log",
    )


def test_tls_caller_on_the_plain_listener_is_refused_and_told_apart(
    shared_node: Node, material: Material
) -> None:
    done = dcmtk.echoscu(shared_node.plain_port, *dcmtk.authenticated(material, "peer"))

    assert done.returncode != 0, done.stdout
    eventually(
        lambda: [
            e
            for e in shared_node.events("peer_broke_protocol")
            if "TLS to a plain port" in str(e.get("remedy"))
        ],
        5,
        "the mismatch in the log",
    )


def test_user_identity_is_passed_over_and_stays_out_of_the_log(shared_node: Node, material: Material) -> None:
    options = ["-usr", "someone", "-pwd", "secret"]

    done = dcmtk.storescu(
        shared_node.tls_port,
        *dcmtk.authenticated(material, "peer"),
        *options,
        "-R",
        files=write_made(shared_node.folder / "identity", 1, first=700),
    )

    assert done.returncode == 0, done.stdout
    assert "secret" not in shared_node.log


# --- what they send


def files_by_syntax(each: int = 4) -> dict[str, list[Path]]:
    """For each transfer syntax up to `each` shipped files, no SOP instance UID twice in all of them."""
    among: Counter[str] = Counter()
    small = [item for item in storable() if item.size < 1_000_000]
    rarity = Counter(item.transfer_syntax_uid for item in small)
    chosen = {}
    for syntax in sorted(PROPOSALS.values(), key=rarity.__getitem__):
        found = distinct([item for item in small if item.transfer_syntax_uid == syntax], among)
        chosen[syntax] = [item.path for item in found[:each]]
    return chosen


@pytest.mark.parametrize("option", PROPOSALS)
def test_storescu_in_every_transfer_syntax_is_kept_as_it_was_on_the_wire(
    shared_node: Node, material: Material, tmp_path: Path, option: str
) -> None:
    """What was on the wire is what DCMTK's own storescp wrote, which keeps data sets as they come (+B)."""
    files = files_by_syntax()[PROPOSALS[option]]
    assert files
    with storescp(tmp_path / "wire", material.tls("remote")) as port:
        reference = dcmtk.storescu(
            port, *dcmtk.authenticated(material, "peer"), option, "-R", "--no-halt", files=files
        )
    wire = by_uid((tmp_path / "wire").iterdir())
    assert wire, reference.stdout

    done = dcmtk.storescu(
        shared_node.tls_port, *dcmtk.authenticated(material, "peer"), option, "-R", "--no-halt", files=files
    )

    assert done.returncode == reference.returncode, done.stdout
    stored = eventually(lambda: (found := shared_node.stored()).keys() >= wire.keys() and found)
    for uid, path in wire.items():
        expected, kept = read(path), read(stored[uid])
        assert kept[0].transfer_syntax_uid == expected[0].transfer_syntax_uid == PROPOSALS[option]
        assert kept[1] == expected[1]
    assert_read_by_others(stored[uid] for uid in wire)


def test_many_files_over_one_association_are_all_kept(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    node = make_node().start()
    files = write_made(tmp_path / "made", 300)

    done = dcmtk.storescu(
        node.tls_port,
        *dcmtk.authenticated(material, "peer"),
        "-aet",
        "MANY",
        "+sd",
        files=[tmp_path / "made"],
    )

    assert done.returncode == 0, done.stdout[-2000:]
    stored = eventually(lambda: len(found := node.stored()) == len(files) and found)
    expected = by_uid(files)
    assert all(data_set(path) == data_set(expected[uid]) for uid, path in stored.items())
    assert_read_by_others(stored.values())
    assert node.query("SELECT DISTINCT calling_ae, state FROM instances") == [("MANY", "stored")]
    eventually(lambda: not node.spooled(), what="an empty spool")
    assert len(node.events("association_accepted")) == 1


def test_storescu_that_leaves_nagle_on_waits_for_no_delayed_acknowledgement(
    shared_node: Node, material: Material, tmp_path: Path
) -> None:
    """It does so by default; every instance would take the 40 ms after which Linux acknowledges at last."""
    files = write_made(tmp_path / "made", 100, first=2000)

    began = time.monotonic()
    done = dcmtk.storescu(
        shared_node.tls_port, *dcmtk.authenticated(material, "peer"), files=files, no_delay=False
    )

    assert done.returncode == 0, done.stdout[-2000:]
    assert time.monotonic() - began < 0.040 * len(files) * 0.75


@pytest.mark.parametrize("length", [4096, 131072])
def test_files_are_kept_whatever_the_pdu_length(
    shared_node: Node, material: Material, tmp_path: Path, length: int
) -> None:
    files = write_made(tmp_path / "made", 2, size=600_000, first=800 + length)

    done = dcmtk.storescu(
        shared_node.tls_port,
        *dcmtk.authenticated(material, "peer"),
        "--max-send-pdu",
        str(length),
        files=files,
    )

    assert done.returncode == 0, done.stdout
    expected = by_uid(files)
    stored = eventually(lambda: (found := shared_node.stored()).keys() >= expected.keys() and found)
    assert all(data_set(stored[uid]) == data_set(path) for uid, path in expected.items())


def test_aborted_association_leaves_what_was_answered(
    shared_node: Node, material: Material, tmp_path: Path
) -> None:
    files = write_made(tmp_path / "made", 2, first=900)

    done = dcmtk.storescu(
        shared_node.tls_port, *dcmtk.authenticated(material, "peer"), "--abort", files=files
    )

    assert done.returncode == 0, done.stdout
    expected = by_uid(files)
    eventually(lambda: shared_node.stored().keys() >= expected.keys())
    eventually(lambda: not shared_node.partials(), what="no partial file")
