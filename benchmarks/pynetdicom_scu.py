"""`python pynetdicom_scu.py HOST PORT CALLED CALLING CERTIFICATE KEY TRUSTED LIST`: pynetdicom's SCU.

Started by `sending.py`, with the list that `send_ours.py` gets; `pynetdicom_scp.py` forwards with it too.
With CHUNKED in its environment data sets go from their files in pieces and are not decoded, which pynetdicom
does only where an option of its own asks for it.
"""

import os
import ssl
import sys
from pathlib import Path

from pynetdicom import AE, _config
from pynetdicom.association import Association

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ANSWER_SECONDS = 2
ATTEMPTS = 5


class Sender:
    """Sends over one association, and makes another where it ended.

    Now and then pynetdicom's own thread takes the answer that `send_c_store` waits for ("Received unexpected
    C-STORE service message"); without another attempt hardly any run would come to its end.
    """

    def __init__(self, argv: list[str]) -> None:
        """Describe the remote: HOST PORT CALLED CALLING CERTIFICATE KEY TRUSTED."""
        self._host, port, self._called, calling, certificate, key, trusted = argv
        self._port = int(port)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._tls.load_cert_chain(certificate, key)
        self._tls.load_verify_locations(trusted)
        self._ae = AE(calling)
        self._ae.dimse_timeout = ANSWER_SECONDS
        self._ae.add_requested_context(CT, EXPLICIT_LITTLE_ENDIAN)
        self._association: Association | None = None

    def store(self, path: Path) -> None:
        """One instance.

        Raises:
            RuntimeError: It was answered with another status than 0000H, or never.
        """
        status = None
        for _ in range(ATTEMPTS):
            if self._association is None or not self._association.is_established:
                self._association = self._ae.associate(
                    self._host,
                    self._port,
                    ae_title=self._called,
                    tls_args=(self._tls, None),  # type: ignore[arg-type]  # no name is checked
                )
            if self._association.is_established:
                status = self._association.send_c_store(path).get("Status")
            if status is not None:
                break
        if status != 0:
            raise RuntimeError(f"{path} was answered with {status}")

    def release(self) -> None:
        """End the association."""
        if self._association is not None:
            self._association.release()


def main(argv: list[str]) -> None:
    """Send all of the list."""
    *whom, listed = argv
    _config.STORE_SEND_CHUNKED_DATASET = "CHUNKED" in os.environ
    sender = Sender(whom)
    for line in Path(listed).read_text().splitlines():
        sender.store(Path(line.split(" ", 2)[2]))
    sender.release()


if __name__ == "__main__":
    main(sys.argv[1:])
