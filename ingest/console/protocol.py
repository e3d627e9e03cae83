"""HTTP connections with deadlines: uvicorn's protocol, and what it lacks against slow clients.

uvicorn has a deadline for idle connections after a response, but none for the header of a request and none
for a client that does not read its response. A few hundred such clients would take every connection.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0
"""Time from the connection, or from the first byte of a later request, to the end of its header."""

WRITE_SECONDS: Final = 30.0
"""How long a client may read nothing while a response waits for it."""


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, max_connections: int = 256, **more: Any) -> None:
        """Prepare a connection that counts towards `max_connections`."""
        super().__init__(*arguments, **more)
        self._max_connections = max_connections
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def _is_serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection. At the limit, one without a request gives way; otherwise the new one does."""
        super().connection_made(transport)
        self._start_header_timer()
        if len(self.connections) <= self._max_connections:
            return
        waiting = [
            each
            for each in self.connections
            if isinstance(each, BoundedProtocol) and not each._is_serving and each is not self
        ]
        # The oldest timer belongs to the client that has waited longest.
        victim = min(waiting, key=lambda each: each._waits_until(), default=self)
        self.connections.discard(victim)
        victim.transport.abort()

    def _waits_until(self) -> float:
        return self._header_timer.when() if self._header_timer is not None else float("inf")

    def data_received(self, data: bytes) -> None:
        """Take bytes. The deadline of a header does not move with each byte of it."""
        super().data_received(data)
        if self._is_serving or self.transport.is_closing():
            self._cancel_header_timer()
        else:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._cancel_header_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client time to read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on, because the client has read."""
        self._cancel_write_timer()
        super().resume_writing()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
