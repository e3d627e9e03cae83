"""Messages to the service manager, systemd, over the socket that it gives (sd_notify(3))."""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """The service manager that started this process. Without one every method does nothing.

    No message waits: a manager that does not read loses messages, and the node does not wait for it.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Take the variables of the service manager out of the environment: no child may write to it."""
        environ = os.environ if environ is None else environ
        address, microseconds, pid = (environ.pop(name, "") for name in VARIABLES)
        # A name that begins with @ stands for an abstract one (unix(7)).
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._beat_seconds: float | None = None
        if microseconds.isdecimal() and int(microseconds) and pid in {"", str(os.getpid())}:
            self._beat_seconds = int(microseconds) / 1e6 / 2
        self._beat_at = 0.0
        self._status = ""

    def report_ready(self, status: str) -> None:
        """Report that the start, or a reload, is complete."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def report_reloading(self) -> None:
        """Report that a reload begins; `report_ready` ends it."""
        # systemd ignores a READY=1 that was sent before the time given here.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reloading the configuration")

    def report_stopping(self, status: str, within_seconds: float) -> None:
        """Report that the node ends, and how long that takes at most.

        systemd kills what is left after TimeoutStopSec, or after this time if that is longer. A long drain
        therefore needs no other setting in the unit.
        """
        self._status = status
        extension = f"EXTEND_TIMEOUT_USEC={int(within_seconds * 1e6)}"
        self._send("STOPPING=1", f"STATUS={status}", extension)

    def report_status(self, status: str) -> None:
        """Report the present state of the node, if it has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def beat(self, now: float) -> None:
        """Tell the watchdog that the node lives, if it is time. Without beats systemd ends the node."""
        if self._beat_seconds is not None and now >= self._beat_at:
            self._beat_at = now + self._beat_seconds
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), self._address)
