"""Live events (server-sent events) for many browsers, gathered once for all of them."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ingest.console.auth.login import is_principal_valid
from ingest.console.problems import ProblemError
from ingest.console.web import get_console, get_principal
from ingest.log import RateLimitedLog, describe_defect

PERIOD_SECONDS: Final = 1.0
"""Pause between two gatherings, while a browser listens."""

MAX_STREAMS: Final = 100
MAX_STREAMS_PER_PRINCIPAL: Final = 16

STREAM_SECONDS: Final = 600.0
"""A stream ends after this time. The browser opens another one by itself."""

ALIVE_SECONDS: Final = 15.0
"""A comment is sent after this time without an event, so that a vanished browser is noticed."""


class EventHub:
    """One gathering task, and the streams that get its newest result.

    A slow browser gets the newest event and misses older ones, so no queue can grow. Without a stream nothing
    is gathered.
    """

    def __init__(self, gather: Callable[[], Awaitable[Any]]) -> None:
        """Prepare; `gather` returns the values of the next event, for JSON."""
        self._gather = gather
        self._newest: Any = None
        self._number = 0
        self._changed = asyncio.Condition()
        self._streams: Counter[str] = Counter()
        self._is_wanted = asyncio.Event()
        self._log = RateLimitedLog()
        self._is_closed = False

    async def run(self) -> None:
        """Gather while a stream is open; the body of a task."""
        while not self._is_closed:
            await self._is_wanted.wait()
            try:
                values = await self._gather()
            except Exception as error:  # the next gathering tries again
                self._log.warning("console_events_failed", **describe_defect(error))
            else:
                async with self._changed:
                    self._number += 1
                    self._newest = values
                    self._changed.notify_all()
            await asyncio.sleep(PERIOD_SECONDS)

    async def close(self) -> None:
        """End all streams."""
        self._is_closed = True
        self._is_wanted.set()
        async with self._changed:
            self._changed.notify_all()

    def open_stream(
        self, name: str, is_allowed: Callable[[], bool], encode: Callable[[Any], bytes]
    ) -> StreamingResponse:
        """Return a response that streams events until `is_allowed` is false.

        Args:
            name: Name of the principal.
            is_allowed: Whether the principal may still see them.
            encode: Writes what was gathered as the events of this stream.

        Raises:
            ProblemError: Too many streams are open.
        """
        if self._streams.total() >= MAX_STREAMS or self._streams[name] >= MAX_STREAMS_PER_PRINCIPAL:
            raise ProblemError(503, "too many pages are open", "close some of them", {"Retry-After": "30"})
        # Count now: the stream begins later, and many requests at the same time would all pass.
        self._streams[name] += 1
        self._is_wanted.set()
        return _CountedResponse(self._stream(is_allowed, encode), lambda: self._forget_stream(name))

    def _forget_stream(self, name: str) -> None:
        self._streams[name] -= 1
        if not self._streams[name]:
            del self._streams[name]
        if not self._streams:
            self._is_wanted.clear()

    async def _stream(
        self, is_allowed: Callable[[], bool], encode: Callable[[Any], bytes]
    ) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        until, seen = loop.time() + STREAM_SECONDS, 0
        yield b"retry: 3000\n\n"
        while not self._is_closed and loop.time() < until and is_allowed():
            if await self._wait_for_newer(seen):
                seen = self._number
                yield encode(self._newest)
            else:
                yield b":\n\n"

    async def _wait_for_newer(self, seen: int) -> bool:
        if self._number != seen and self._number and seen == 0:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALIVE_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._number != seen or self._is_closed)
                return self._number != seen
        return False


def open_stream(request: Request, encode: Callable[[Any], bytes]) -> StreamingResponse:
    """Return a stream of events for the principal of a request; see `EventHub.open_stream`."""
    principal = get_principal(request)
    return get_console(request).events.open_stream(
        principal.name, functools.partial(is_principal_valid, request, principal), encode
    )


class _CountedResponse(StreamingResponse):
    """A stream that reports its end, also if the browser vanished before its first event."""

    def __init__(self, content: AsyncIterator[bytes], forget: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._forget = forget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._forget()
