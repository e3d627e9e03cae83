"""The sender's connection: what it can tell of the other end."""

import socket

from ingest.requestor.transport import Remote, Transport
from tests.support.nodes import eventually


def test_unread_is_what_the_remote_has_not_confirmed() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        ours.setblocking(False)
        transport = Transport(Remote("127.0.0.1", 0, "A", "B"), ours)
        assert not transport.has_unacknowledged_bytes()
        assert not transport.is_readable()
        sent = ours.send(bytes(1 << 18))
        assert transport.has_unacknowledged_bytes()
        while sent > 0:
            sent -= len(theirs.recv(1 << 16))
        eventually(lambda: not transport.has_unacknowledged_bytes(), 10, "everything is confirmed")
        theirs.sendall(b"x")
        eventually(transport.is_readable, 10, "a byte has come")
        transport.close()
