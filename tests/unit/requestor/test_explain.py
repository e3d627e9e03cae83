"""What errors of sockets and TLS are said to mean."""

import ssl

import pytest

from ingest.errors import Cause
from ingest.requestor.failures import describe_error, find_cause


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    return error


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_a_remote_that_answers_the_handshake_with_something_else_speaks_no_tls(reason: str) -> None:
    assert "is it plain DICOM?" in describe_error(tls_error(reason), in_handshake=True)
    assert find_cause(tls_error(reason), in_handshake=True, is_anonymous=False) is Cause.NOT_TLS


def test_a_damaged_record_after_the_handshake_is_not_taken_for_plain_dicom() -> None:
    error = tls_error("RECORD_LAYER_FAILURE")
    assert describe_error(error) == "TLS failed: record layer failure"
    assert find_cause(error, in_handshake=False, is_anonymous=False) is None


@pytest.mark.parametrize("name", ["SSLV3_ALERT_BAD_CERTIFICATE", "SSL/TLS_ALERT_BAD_CERTIFICATE"])
def test_an_alert_means_the_same_however_openssl_names_it(name: str) -> None:
    error = tls_error(name)
    assert find_cause(error, in_handshake=True, is_anonymous=False) is Cause.OURS_REFUSED
    assert "the TLS alert 'bad certificate'" in describe_error(error, in_handshake=True)
