"""Signals of a supervisor: handlers only queue them, and its loop takes them from the queue."""

import os
import select
import signal
from collections import deque
from types import FrameType

from ingest.supervisor.child import SIGNALS


class SignalQueue:
    """Signals that arrived and are not handled yet.

    A handler runs between any two instructions, and also inside a system call. It may therefore do no work of
    its own. The pipe of `signal.set_wakeup_fd` wakes the loop.
    """

    def __init__(self) -> None:
        self._pending: deque[int] = deque()
        self._pipe: tuple[int, int] = (-1, -1)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Both ends of the pipe; a child closes them."""
        return self._pipe

    def catch(self) -> None:
        """Queue all signals of a supervisor from now on."""
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

        def queue_signal(number: int, _frame: FrameType | None) -> None:
            self._pending.append(number)

        for number in SIGNALS:
            signal.signal(number, queue_signal)

    def wait(self, seconds: float) -> None:
        """Wait until a signal arrives, for at most `seconds`."""
        select.select([self._pipe[0]], [], [], seconds)
        while select.select([self._pipe[0]], [], [], 0)[0]:
            os.read(self._pipe[0], 4096)

    def take(self, *, keep_reload: bool) -> list[signal.Signals]:
        """Return the queued signals in the order of their arrival.

        Args:
            keep_reload: Leave one SIGHUP in the queue. The supervisor asks for this during a reload, and
                starts the next reload when the current one is finished.
        """
        numbers = [signal.Signals(self._pending.popleft()) for _ in range(len(self._pending))]
        if not keep_reload:
            return numbers
        if signal.SIGHUP in numbers:
            self._pending.append(signal.SIGHUP)
        return [number for number in numbers if number != signal.SIGHUP]
