"""`python pynetdicom_scp.py PORT FOLDER PDU CERTIFICATE KEY TRUSTED DURABILITY [TO]`: a storage SCP.

Started by `peers.pynetdicom`. It does what pynetdicom's makers advise for speed: it writes the data set as it
came and decodes nothing. With TO, which is HOST PORT CALLED CALLING of another, it sends everything on from a
thread of its own.
"""

import os
import queue
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, _config, evt

from benchmarks.pynetdicom_scu import Sender

SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


class Keep:
    """The handler: a temporary file, renamed when it is whole."""

    def __init__(self, folder: Path, durability: str, kept: Callable[[Path], None]) -> None:
        self._folder = folder
        self._kept = kept
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
        self._kept(path)
        return SUCCESS

    def _sync_names(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def forwarder(whom: list[str]) -> Callable[[Path], None]:
    """Start a thread that sends on what the function is called with."""
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    _config.STORE_SEND_CHUNKED_DATASET = True
    sender = Sender(whom)

    def work() -> None:
        while True:
            sender.store(waiting.get())

    threading.Thread(target=work, name="forward", daemon=True).start()
    return waiting.put


def main(argv: list[str]) -> None:
    """Listen until the process is ended."""
    port, folder, pdu, certificate, key, trusted, durability, *to = argv
    kept = forwarder([*to, certificate, key, trusted]) if to else lambda _path: None
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
        ae.add_supported_context(str(presentation.abstract_syntax))
    handlers: list[Any] = [(evt.EVT_C_STORE, Keep(Path(folder), durability, kept))]
    ae.start_server(("127.0.0.1", int(port)), ssl_context=context, evt_handlers=handlers)


if __name__ == "__main__":
    main(sys.argv[1:])
