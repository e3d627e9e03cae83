"""`python pynetdicom_scp.py PORT FOLDER PDU CERTIFICATE KEY TRUSTED DURABILITY`: a storage SCP on pynetdicom.

Started by `peers.pynetdicom`. It does what pynetdicom's makers advise for speed: it writes the data set as it
came and decodes nothing.
"""

import os
import ssl
import sys
from pathlib import Path
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, evt

SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


class Keep:
    """The handler: a temporary file, renamed when it is whole."""

    def __init__(self, folder: Path, durability: str) -> None:
        self._folder = folder
        self._durable = durability == "fsync"

    def __call__(self, event: Any) -> int:
        """Write one instance; returns the status (PS3.4 B.2.3)."""
        path = self._folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
        partial = path.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                file.write(event.encoded_dataset())
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
            if self._durable:
                self._sync_names()
        except OSError:
            return OUT_OF_RESOURCES
        return SUCCESS

    def _sync_names(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def main(argv: list[str]) -> None:
    """Listen until the process is ended."""
    port, folder, pdu, certificate, key, trusted, durability = argv
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(trusted)
    ae = AE("ANY-SCP")
    ae.maximum_pdu_size = int(pdu)
    ae.maximum_associations = 1024
    for presentation in AllStoragePresentationContexts:
        ae.add_supported_context(presentation.abstract_syntax)
    handlers = [(evt.EVT_C_STORE, Keep(Path(folder), durability))]
    ae.start_server(("127.0.0.1", int(port)), ssl_context=context, evt_handlers=handlers)


if __name__ == "__main__":
    main(sys.argv[1:])
