"""Audit messages as syslog messages: the header of RFC 5424, and the frames of RFC 5425. Without I/O."""

import re
from typing import Final

from ingest.audit.messages import AuditMessage, EventOutcome, format_time

APP_NAME: Final = "dicom-ingest"

MESSAGE_ID: Final = "DICOM+RFC3881"
"""MSGID (PS3.15 A.6): the value for messages that follow the schema of PS3.15 A.5.1."""

# PS3.15 A.6: facility 10 (security/authorization), severity 5 (notice), or 4 (warning) for a failure.
_NOTICE: Final = 10 * 8 + 5
_WARNING: Final = 10 * 8 + 4

# RFC 5424 6.4: MSG-UTF8 begins with the byte order mark.
_BOM: Final = b"\xef\xbb\xbf"

_NOT_PRINTABLE: Final = re.compile(r"[^!-~]")


def encode_syslog(message: AuditMessage, hostname: str, process_id: int) -> bytes:
    """Encode a SYSLOG-MSG of RFC 5424: header, no structured data, byte order mark and XML.

    Args:
        message: The message.
        hostname: Name of this machine.
        process_id: The process that reports.
    """
    priority = _NOTICE if message.outcome is EventOutcome.SUCCESS else _WARNING
    # RFC 5424 6.2.4: PRINTUSASCII, at most 255 characters, "-" if it is unknown
    host = _NOT_PRINTABLE.sub("_", hostname)[:255] or "-"
    header = f"<{priority}>1 {format_time(message.at_ms)} {host} {APP_NAME} {process_id} {MESSAGE_ID} - "
    return header.encode() + _BOM + message.xml


def encode_frame(syslog_message: bytes) -> bytes:
    """Encode a SYSLOG-FRAME (RFC 5425 4.3): the number of octets, a space, and the message."""
    return b"%d %b" % (len(syslog_message), syslog_message)
