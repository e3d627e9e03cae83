"""What DCMTK and Orthanc sent is read as what their command lines say (tests/vectors/associate/README.md)."""

import hashlib
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from ingest.dicom import wire
from ingest.dicom.negotiate import Accepted, AcceptorPolicy, negotiate
from ingest.dicom.wire import ContextResult, ProposedContext, RoleSelection
from ingest.errors import PeerError

ROOT = Path(__file__).parents[3]
CAPTURES = {path.stem: path.read_bytes() for path in sorted((ROOT / "tests/vectors/associate").glob("*.bin"))}
REQUESTS = [name for name in CAPTURES if name.startswith("rq-")]
ANSWERS = [name for name in CAPTURES if name.startswith("ac-")]
DECODERS = {
    1: wire.decode_associate_rq,
    2: wire.decode_associate_ac,
    3: wire.decode_associate_rj,
    7: wire.decode_abort,
}

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG, JPEG_2000, RLE = (f"1.2.840.10008.1.2.{arc}" for arc in ("1.99", "4.50", "4.90", "5"))
CT, MR, SC, RT_PLAN = (f"1.2.840.10008.5.1.4.1.1.{arc}" for arc in ("2", "4", "7", "481.5"))
VERIFICATION, WORKLIST = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.31"
UNCOMPRESSED = (EXPLICIT, BIG, IMPLICIT)


def request(name: str) -> wire.AssociateRequest:
    return wire.decode_associate_rq(CAPTURES[name])


def accept(name: str) -> wire.AssociateAccept:
    return wire.decode_associate_ac(CAPTURES[name])


@pytest.mark.parametrize(
    ("name", "called", "calling", "max_pdu_length", "contexts"),
    [
        ("rq-echoscu", "NODE", "ECHO A", 32768, 3),
        ("rq-echoscu-default", "ANY-SCP", "ECHOSCU", 16384, 1),
        ("rq-storescu-all", "INGEST", "MODALITY", 16384, 128),
        ("rq-storescu-jpeg2000", "INGEST", "A234567890123456", 16384, 2),
        ("rq-storescu-combined", "INGEST", "STORESCU", 16384, 2),
        ("rq-storescu-identity", "ANY-SCP", "STORESCU", 16384, 2),
        ("rq-findscu-worklist", "ANY-SCP", "FINDSCU", 16384, 1),
        ("rq-getscu-roles", "ANY-SCP", "GETSCU", 16384, 121),
        ("rq-dcmsend", "INGEST", "SENDER", 16384, 2),
        ("rq-orthanc-echo", "INGEST", "ORTHANC", 65536, 5),
        ("rq-orthanc-store", "INGEST", "ORTHANC", 65536, 127),
    ],
)
def test_requests_say_what_their_command_lines_said(
    name: str, called: str, calling: str, max_pdu_length: int, contexts: int
) -> None:
    rq = request(name)
    assert (rq.called_ae, rq.calling_ae, rq.max_pdu_length) == (called, calling, max_pdu_length)
    assert [context.context_id for context in rq.contexts] == list(range(1, 2 * contexts, 2))
    assert rq.application_context == "1.2.840.10008.3.1.1.1"
    assert rq.implementation_class_uid == "1.2.276.0.7230010.3.0.3.6.7"
    assert rq.implementation_version == "OFFIS_DCMTK_367"
    assert rq.protocol_version == 1
    assert rq.async_operations is None
    assert rq.user_identity == (name == "rq-storescu-identity")


def test_every_captured_request_is_in_the_table_above() -> None:
    assert len(REQUESTS) == 11


def test_proposed_contexts_are_those_of_the_options() -> None:
    assert request("rq-echoscu").contexts == tuple(
        ProposedContext(number, VERIFICATION, (IMPLICIT, EXPLICIT, BIG, JPEG)) for number in (1, 3, 5)
    )
    assert request("rq-storescu-jpeg2000").contexts == (
        ProposedContext(1, SC, (JPEG_2000,)),
        ProposedContext(3, SC, UNCOMPRESSED),
    )
    assert request("rq-storescu-combined").contexts == (
        ProposedContext(1, CT, (DEFLATED, *UNCOMPRESSED)),
        ProposedContext(3, RT_PLAN, (DEFLATED, *UNCOMPRESSED)),
    )
    assert request("rq-dcmsend").contexts == (
        ProposedContext(1, MR, UNCOMPRESSED),
        ProposedContext(3, MR, (RLE, *UNCOMPRESSED)),
    )
    assert request("rq-findscu-worklist").contexts == (ProposedContext(1, WORKLIST, UNCOMPRESSED),)


def test_roles_of_a_c_get_requestor_are_scp() -> None:
    roles = request("rq-getscu-roles").roles
    assert len(roles) == 120
    assert {(role.scu, role.scp) for role in roles} == {(False, True)}
    assert RoleSelection(CT, scu=False, scp=True) in roles


def test_acceptances_say_what_was_accepted() -> None:
    everything = accept("ac-storescp-all")
    assert (everything.called_ae, everything.calling_ae) == ("INGEST", "MODALITY")
    assert everything.max_pdu_length == 65536
    assert Counter(c.transfer_syntax for c in everything.contexts) == {EXPLICIT: 64, BIG: 64}
    assert accept("ac-storescp-jpeg2000").contexts == (
        ContextResult(1, 0, JPEG_2000),
        ContextResult(3, 0, EXPLICIT),
    )
    assert accept("ac-storescp-worklist").contexts == (ContextResult(1, 3, ""),)
    assert Counter(c.result for c in accept("ac-orthanc-all").contexts) == {0: 128}
    assert accept("ac-orthanc-all").max_pdu_length == 65536
    assert len(accept("ac-orthanc-getscu").roles) == 120


def test_rejections_and_abort_say_why() -> None:
    assert wire.decode_associate_rj(CAPTURES["rj-orthanc-called"]) == wire.CALLED_AE_NOT_RECOGNIZED
    refused = wire.decode_associate_rj(CAPTURES["rj-storescp-refuse"])
    assert (refused.result, refused.source, refused.reason, refused.permanent) == (1, 1, 1, True)
    assert wire.decode_abort(CAPTURES["abort-echoscu"]) == wire.Abort(0, 0)
    assert CAPTURES["release-rq-echoscu"] == wire.RELEASE_RQ


@pytest.mark.parametrize("name", REQUESTS)
def test_request_written_again_is_read_the_same(name: str) -> None:
    rq = request(name)
    again = wire.decode_associate_rq(wire.encode_associate_rq(rq))
    assert again.user_identity is False  # what it said was not kept
    assert (again.contexts, again.roles, again.title_fields) == (rq.contexts, rq.roles, rq.title_fields)
    assert (again.max_pdu_length, again.implementation_version) == (
        rq.max_pdu_length,
        rq.implementation_version,
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_our_answer_is_read_by_pynetdicom(name: str) -> None:
    rq = request(name)
    answer = negotiate(rq, AcceptorPolicy("INGEST"))
    assert isinstance(answer, Accepted)
    data = wire.encode_associate_ac(answer.pdu)
    theirs = A_ASSOCIATE_AC()
    theirs.decode(data)
    assert [(c.context_id, c.result) for c in theirs.presentation_context] == [
        (c.context_id, c.result) for c in answer.pdu.contexts
    ]
    assert data[10:74] == CAPTURES[name][10:74]  # PS3.8 Table 9-17: as received
    assert theirs.encode() == data


@pytest.mark.parametrize("name", REQUESTS)
def test_pynetdicom_reads_the_same_contexts_from_a_whole_request(name: str) -> None:
    theirs = A_ASSOCIATE_RQ()
    theirs.decode(CAPTURES[name])
    assert [
        (c.context_id, c.abstract_syntax, tuple(c.transfer_syntax)) for c in theirs.presentation_context
    ] == [(c.context_id, c.abstract_syntax, c.transfer_syntaxes) for c in request(name).contexts]


def outcome(data: bytes) -> str:
    """What decoding gives, as text; anything but a value or a PeerError escapes."""
    try:
        value = DECODERS[data[0]](data) if data and data[0] in DECODERS else None
    except PeerError as error:
        return f"PeerError {error.reason}"
    return repr(value)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four places changed, cut or stuffed; mostly with the PDU length made right afterwards."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(out), 600))
        match chance.randrange(4):
            case 0 | 1:
                out[at] = chance.choice(
                    (0, 1, 2, 4, 0x20, 0x40, 0x50, 0x7F, 0x80, 0xFF, chance.randrange(256))
                )
            case 2:
                del out[at : at + chance.choice((1, 2, 4, 30))]
            case _:
                out[at:at] = out[at : at + chance.choice((1, 4, 30))]
        if not out:
            break
    if len(out) > 6 and chance.random() < 0.8:
        out[2:6] = (len(out) - 6).to_bytes(4)
    return bytes(out)


def digest_of_mutations(rounds: int) -> str:
    """One digest over the outcomes of a fixed series of mutations of every capture."""
    digest = hashlib.sha256()
    for name, data in CAPTURES.items():
        chance = random.Random(name)  # seeded: the series is the same in every process
        for _ in range(rounds):
            digest.update(outcome(mutated(data, chance)).encode())
    return digest.hexdigest()


@given(st.sampled_from(sorted(CAPTURES)), st.randoms(use_true_random=False))
def test_any_mutation_of_a_capture_gives_a_value_or_a_peer_error(name: str, chance: random.Random) -> None:
    outcome(mutated(CAPTURES[name], chance))


@given(st.sampled_from(sorted(CAPTURES)), st.integers(0, 20000))
def test_any_beginning_of_a_capture_is_a_peer_error(name: str, length: int) -> None:
    data = CAPTURES[name]
    if data[0] in DECODERS and 0 < length < len(data):
        with pytest.raises(PeerError):
            DECODERS[data[0]](data[:length])


def test_mutations_have_the_same_outcomes_without_assertions() -> None:
    script = "import runpy, sys; print(runpy.run_path(sys.argv[1])['digest_of_mutations'](120))"
    command = [sys.executable, "-O", "-c", script, __file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest_of_mutations(120)
