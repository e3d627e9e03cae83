"""Names in the store: those of the template, and never one outside it, whatever a peer calls things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import StoreError
from ingest.spool.reference import Reference
from ingest.workers.store.keys import (
    StoreKeyTemplate,
    make_quarantine_key,
    make_safe_name,
    make_variant_key,
    split_key,
)

DEFAULT = "{study_uid}/{series_uid}/{sop_uid}.dcm"

ESCAPES = [
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "1.2/../../3",
    "1.2\0",
    "9" * 65,
    "1" * 10_000,
    ".1",
    "1.2 3",
    "ü",
    "\udc80",
    "1.2\n",
    "~",
    "{sop_uid}",
]


def test_default_layout_is_study_series_instance() -> None:
    assert StoreKeyTemplate(DEFAULT).make_key("1.2", "1.2.3", "1.2.3.4") == "1.2/1.2.3/1.2.3.4.dcm"


def test_missing_uids_get_a_name_made_for_them() -> None:
    assert StoreKeyTemplate(DEFAULT).make_key("", "", "1.2.3.4") == "no-study/no-series/1.2.3.4.dcm"


@pytest.mark.parametrize("uid", ESCAPES, ids=ascii)
def test_uid_made_to_escape_becomes_one_safe_name(uid: str) -> None:
    key = StoreKeyTemplate(DEFAULT).make_key(uid, uid, uid)
    parts = split_key(key)
    assert len(parts) == 3
    assert all(part.startswith("x") and part.removesuffix(".dcm").isalnum() for part in parts)
    assert len(key) < 200


@given(st.text(), st.text(), st.text())
def test_no_uids_whatever_lead_out_of_the_store(study: str, series: str, sop: str) -> None:
    parts = split_key(StoreKeyTemplate(DEFAULT).make_key(study, series, sop))
    assert len(parts) == 3
    assert all(len(part.encode()) < 100 for part in parts)


@given(st.text(), st.text())
def test_different_uids_have_different_names(one: str, other: str) -> None:
    assert (make_safe_name(one, "no") == make_safe_name(other, "no")) == (one == other)


@pytest.mark.parametrize(
    "template",
    [
        "{study_uid}.dcm",
        "/abs/{sop_uid}",
        "../{sop_uid}",
        "a/../{sop_uid}",
        "a//{sop_uid}",
        ".incoming/{sop_uid}",
        "{patient_name}/{sop_uid}",
        "{sop_uid",
        "{sop_uid.__class__}",
        "{}",
        "",
    ],
)
def test_template_that_cannot_be_safe_is_refused_and_named(template: str) -> None:
    with pytest.raises(StoreError, match="store"):
        StoreKeyTemplate(template)


def test_variant_has_a_name_of_its_own_for_each_transfer_syntax() -> None:
    assert make_variant_key("1/2/3.4.dcm", "1.2.840.10008.1.2") == "1/2/3.4~1.2.840.10008.1.2.dcm"
    assert split_key(make_variant_key("1.5/2/name", "../x"))[:2] == ("1.5", "2")


def test_quarantined_file_has_one_flat_name_for_its_reference() -> None:
    reference = Reference("spool", "ab12", "L0/ready/0001-2.A900.dcm")
    assert (
        make_quarantine_key(reference)
        == make_quarantine_key(reference)
        == "ab12.L0.ready.0001-2.A900.dcm.0.dcm"
    )
    assert "/" not in make_quarantine_key(Reference("spool", "../..", "../../../etc/passwd"))
    assert len(make_quarantine_key(Reference("redis", "s", "x" * 10_000))) < 255
