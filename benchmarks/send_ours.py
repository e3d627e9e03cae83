"""`python send_ours.py HOST PORT CALLED CALLING CERTIFICATE KEY TRUSTED LIST`: our sender, one association.

Started by `sending.py`. It does with each instance what the forward worker does between ledger and network.
LIST has what the ledger would say, a line each: the SOP instance UID, where its data set begins, the file.
"""

import os
import sys
from pathlib import Path

from ingest.config.model import TLS
from ingest.requestor.store_scu import Context, Remote, StoreSCU, make_proposals
from ingest.tls.contexts import build_client_context

CT: Context = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")


def send(association: StoreSCU, uid: str, offset: int, path: str) -> None:
    """One instance.

    Raises:
        SystemExit: It was answered with another status than 0000H.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size - offset
        number = association.send_instance(
            fd, offset, size, sop_class=CT[0], sop_instance=uid, transfer_syntax=CT[1]
        )
    finally:
        os.close(fd)
    answered, response = association.receive_response()
    if answered != number or response.status:
        sys.exit(f"{uid} was answered with {response.status:04X}H")


def main(argv: list[str]) -> None:
    """Send all of the list."""
    host, port, called, calling, certificate, key, trusted, listed = argv
    tls = TLS(certificate=Path(certificate), private_key=Path(key), trusted=(Path(trusted),))
    remote = Remote(host, int(port), called, calling, build_client_context(tls))
    with StoreSCU.open(remote, make_proposals([CT])) as association, open(listed) as lines:
        for line in lines:
            uid, offset, path = line.rstrip("\n").split(" ", 2)
            send(association, uid, int(offset), path)


if __name__ == "__main__":
    main(sys.argv[1:])
