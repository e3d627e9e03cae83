"""What errors of sockets and TLS are said to mean."""

import ssl

import pytest

from ingest.errors import Cause
from ingest.requestor.failures import cause_of, failed


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    return error


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_a_remote_that_answers_the_handshake_with_something_else_speaks_no_tls(reason: str) -> None:
    assert "is it plain DICOM?" in failed(tls_error(reason), shaking=True)
    assert cause_of(tls_error(reason), shaking=True, anonymous=False) is Cause.NOT_TLS


def test_a_damaged_record_after_the_handshake_is_not_taken_for_plain_dicom() -> None:
    error = tls_error("RECORD_LAYER_FAILURE")
    assert failed(error) == "TLS failed: record layer failure"
    assert cause_of(error, shaking=False, anonymous=False) is None


@pytest.mark.parametrize("name", ["SSLV3_ALERT_BAD_CERTIFICATE", "SSL/TLS_ALERT_BAD_CERTIFICATE"])
def test_an_alert_means_the_same_however_openssl_names_it(name: str) -> None:
    error = tls_error(name)
    assert cause_of(error, shaking=True, anonymous=False) is Cause.OURS_REFUSED
    assert "the TLS alert 'bad certificate'" in failed(error, shaking=True)
