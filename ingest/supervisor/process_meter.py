"""CPU time and memory of the processes of a node, by role, on the metrics board."""

import contextlib
import os
import resource
from collections import Counter
from collections.abc import Mapping
from typing import Final

from ingest.metrics.board import MetricsBoard
from ingest.metrics.families import PROCESS_CPU, PROCESS_MEMORY, ROLE

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessMeter:
    """Adds up what processes use. What a process has used stays in the sum after its end."""

    def __init__(self, board: MetricsBoard) -> None:
        """Start with no process."""
        self._board = board
        self._cpu_ns: dict[int, int] = {}  # of each process, as far as the board has it

    def measure(self, roles: Mapping[int, str]) -> None:
        """Measure processes, given by pid with their roles."""
        memory: Counter[str] = Counter(dict.fromkeys(ROLE.values, 0))
        for pid, role in roles.items():
            with contextlib.suppress(OSError, ValueError, IndexError):
                cpu_ns, resident_bytes = _read_use(pid)
                self._add_cpu(pid, role, cpu_ns)
                memory[role] += resident_bytes
        for role, resident_bytes in memory.items():
            self._board.set(PROCESS_MEMORY, resident_bytes, role)
        self._cpu_ns = {pid: cpu_ns for pid, cpu_ns in self._cpu_ns.items() if pid in roles}

    def record_end(self, pid: int, role: str, use: resource.struct_rusage) -> None:
        """Add the last CPU time of a process that has ended."""
        self._add_cpu(pid, role, round((use.ru_utime + use.ru_stime) * 1e9))
        del self._cpu_ns[pid]

    def _add_cpu(self, pid: int, role: str, cpu_ns: int) -> None:
        # /proc counts in ticks, and the end of a process in microseconds, so the sum may run ahead by a tick.
        known_ns = self._cpu_ns.get(pid, 0)
        self._cpu_ns[pid] = max(known_ns, cpu_ns)
        self._board.add(PROCESS_CPU, role, value=max(0, cpu_ns - known_ns))


def _read_use(pid: int) -> tuple[int, int]:
    """Return CPU time in nanoseconds and resident memory in bytes.

    Raises:
        OSError: There is no such process.
        ValueError: The kernel has another format of /proc/PID/stat (proc_pid_stat(5)).
        IndexError: Likewise.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name of the process stands in parentheses, and may hold any character.
        fields = file.read().rpartition(b")")[2].split()
    # Field 3, the state, is the first one here: utime is field 14, stime 15 and rss 24.
    return (int(fields[11]) + int(fields[12])) * _TICK_NS, int(fields[21]) * _PAGE_BYTES
