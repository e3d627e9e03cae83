"""Writes the tables of docs/reference/conformance.md from the code: `python -m tests.support.conformance`."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pydicom._uid_dict import UID_dictionary

from ingest.config.model import Destination, ReceiveSettings
from ingest.dicom import pdus, uids
from ingest.dicom.dimse import Status
from ingest.dicom.statuses import STORE_STATUSES, Meaning
from ingest.tls.profiles import PROFILES
from ingest.workers.forward import circuit, retry_policy

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
_BLOCK: Final = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(uid: str) -> str:
    return str(UID_dictionary[uid][0]) if uid in UID_dictionary else "(private, or of a newer edition)"


def _retired(uid: str) -> str:
    return "retired" if uid in UID_dictionary and UID_dictionary[uid][3] else ""


def _sop_classes() -> str:
    classes = sorted(uids.storage_classes(), key=lambda uid: [int(arc) for arc in uid.split(".")])
    return _table(("SOP class", "UID", ""), ((_name(uid), uid, _retired(uid)) for uid in classes))


def _transfer_syntaxes() -> str:
    known = [
        uid
        for uid, (_, kind, *_) in UID_dictionary.items()
        if kind == "Transfer Syntax" and uids.is_data_set_transfer_syntax(uid)
    ]
    known.sort(key=lambda uid: [int(arc) for arc in uid.split(".")])
    return _table(("transfer syntax", "UID", ""), ((_name(uid), uid, _retired(uid)) for uid in known))


_MEANINGS: Final = {
    Status.SUCCESS: "Stored. With the default `durability`, the data set is on stable storage.",
    Status.INVALID_SOP_INSTANCE: "The Affected SOP Instance UID is not a valid UID.",
    Status.SOP_CLASS_NOT_SUPPORTED: "The Affected SOP Class UID differs from the presentation context.",
    Status.DUPLICATE_INVOCATION: "An operation with this Message ID still waits for its response.",
    Status.UNRECOGNIZED_OPERATION: "The operation is neither C-STORE, C-ECHO nor N-ACTION.",
    Status.OUT_OF_RESOURCES: "The disk or the store is full, or fails. A later attempt may succeed.",
    Status.DATA_SET_MISMATCH: "SOP Class or Instance UID of data set and command differ.",
    Status.CANNOT_UNDERSTAND: (
        "The data set cannot be read in its transfer syntax, or is larger than `max_instance_bytes` (with "
        '`carrier = "redis"` also `carrier_max_bytes`). Another attempt fails as well; the comment says why.'
    ),
}
_NOT_SENT: Final = {
    Status.PROCESSING_FAILURE,
    Status.DUPLICATE_SOP_INSTANCE,
    Status.NOT_AUTHORIZED,
    Status.CANCEL,
    Status.NO_SUCH_SOP_INSTANCE,
    Status.NO_SUCH_EVENT_TYPE,
    Status.INVALID_ARGUMENT,
    Status.NO_SUCH_ACTION,
    Status.RESOURCE_LIMITATION,
}
"""Statuses that do not answer a C-STORE here: only remotes send them, or they answer an N-ACTION."""


def _statuses() -> str:
    rows = ((f"{status:04X}H", _MEANINGS[status]) for status in Status if status not in _NOT_SENT)
    return _table(("status", "meaning"), rows)


def _answers() -> str:
    follows = {
        Meaning.STORED: "delivered",
        Meaning.STORED_WITH_WARNING: "delivered; the status is recorded",
        Meaning.ALREADY_STORED: "delivered; the status is recorded",
        Meaning.TRY_AGAIN: "retry, with growing pauses",
        Meaning.TRY_A_FEW_TIMES: f"retry, up to {retry_policy.FEW_ATTEMPTS} attempts",
        Meaning.NEGOTIATE_AGAIN: "once more over a new association, then dead",
    }
    rows = [
        (", ".join(f"{text}H" for text, each in STORE_STATUSES if each is meaning), said)
        for meaning, said in follows.items()
    ]
    rows.append(("any other", "dead; `ingest retry` sends it again"))
    return _table(("status of the remote", "delivery"), rows)


def _rejections() -> str:
    said = [
        (
            pdus.CALLING_AE_NOT_RECOGNIZED,
            "the caller is not in `[[peers]]`, or its certificate does not match",
        ),
        (
            pdus.CALLED_AE_NOT_RECOGNIZED,
            "no called AE title, or with `check_called_ae` none of ours",
        ),
        (pdus.APPLICATION_CONTEXT_NOT_SUPPORTED, "the application context is not DICOM's"),
        (pdus.PROTOCOL_VERSION_NOT_SUPPORTED, "bit 0 of the protocol version is not set"),
        (pdus.NO_REASON_GIVEN, "no presentation context is proposed"),
        (
            pdus.LOCAL_LIMIT_EXCEEDED,
            "too many associations, a full spool or store, or a draining node",
        ),
    ]
    rows = ((str(pdu.result), str(pdu.source), str(pdu.reason), why) for pdu, why in said)
    return _table(("result", "source", "reason", "when"), rows)


def _limits() -> str:
    receive, destination = ReceiveSettings(), Destination(name="x", ae_title="X", host="x")
    at_a_time, window = "associations at a time", "operations in an asynchronous window"
    rows = [
        ("maximum PDU length offered", f"{receive.max_pdu_length} bytes", "`[receive] max_pdu_length`"),
        (f"{at_a_time}, as acceptor", str(receive.max_associations), "`[receive] max_associations`"),
        (f"{window}, as acceptor", str(receive.max_operations), "`[receive] max_operations`"),
        ("ARTIM timer", f"{receive.artim_seconds:g} s", "`[receive] artim_seconds`"),
        (f"{at_a_time}, as requestor", str(destination.associations), "`[[destinations]] associations`"),
        (f"{window}, as requestor", "not proposed", "`[[destinations]] async_operations`"),
        ("failures in a row before a C-ECHO probes", str(circuit.OPEN_AFTER_FAILURES), "not configurable"),
    ]
    return _table(("limit", "default", "key"), rows)


def _profiles() -> str:
    rows = (
        (f"`{name}`", profile.section, " ".join(profile.ciphers), "retired" if profile.is_retired else "")
        for name, profile in PROFILES.items()
    )
    return _table(("profile", "PS3.15", "suites of TLS 1.2", ""), rows)


def _identity() -> str:
    rows = [
        ("Implementation Class UID", uids.IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", uids.IMPLEMENTATION_VERSION),
        ("Application Context Name", uids.APPLICATION_CONTEXT),
    ]
    return _table(("item", "value"), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "identity": _identity,
    "sop_classes": _sop_classes,
    "transfer_syntaxes": _transfer_syntaxes,
    "statuses": _statuses,
    "answers": _answers,
    "rejections": _rejections,
    "limits": _limits,
    "profiles": _profiles,
}


def made(page: str) -> str:
    """The page with its tables as the code has them now."""
    return _BLOCK.sub(lambda block: f"<!-- table: {block[1]} -->\n{TABLES[block[1]]()}\n<!-- end -->", page)


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text()))
