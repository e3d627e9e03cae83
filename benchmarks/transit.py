"""How long an instance is on its way: from the last byte in to the remote's Success, at a modest rate.

The remote is the floor, which renames an instance's file right before it answers: the time of the rename, by
the kernel's clock (a tick of it is 4 ms or less), is that of its Success. The senders say when their last
byte went out.
"""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import rounds
from benchmarks.floor import floor
from benchmarks.forwarding import FORWARDERS
from benchmarks.load import Result, run
from benchmarks.messages import instance_uid
from benchmarks.receivers import Pki
from benchmarks.workloads import Entrant, Work

ARRIVE_SECONDS: Final = 60.0


def measure(work: Work, setting: rounds.Setting, taken: dict[str, rounds.Taken]) -> None:
    """All rounds of a work.

    Raises:
        LoadError: The node broke off.
        NotStartedError: Node or floor did not start.
        TimeoutError: Not everything arrived.
        Unavailable: There is no floor.
    """
    for number in range(work.pairs):
        for entrant in rounds.order(work.entrants, number):
            setting.step(number, entrant.label)
            base = setting.disk / f"transit-{number}"
            try:
                sample = _one(entrant, base, setting.keys, taken[entrant.label])
                taken[entrant.label].samples.append({"round": number, **sample})
            finally:
                shutil.rmtree(base, ignore_errors=True)


def _one(entrant: Entrant, base: Path, keys: Pki, own: rounds.Taken) -> rounds.Sample:
    with ExitStack() as stack:
        sink = stack.enter_context(floor(base / "sink", keys, durability="page-cache"))
        factory = FORWARDERS[entrant.receiver]
        node = stack.enter_context(factory(base / "node", keys, durability="fsync", to=sink.target))
        own.facts, own.counted_by = node.facts, node.group.kind
        result = run(node.target, entrant.load)
        deadline = time.monotonic() + ARRIVE_SECONDS
        while sink.stored() < result.instances:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sink.stored()} of {result.instances} arrived; see {node.folder}")
            time.sleep(0.1)
        came = {path.stem: path.stat().st_ctime for path in (sink.folder / "files").iterdir()}
        return summed(result, came, time.time() - time.perf_counter())


def summed(result: Result, came: dict[str, float], offset: float) -> rounds.Sample:
    """One run.

    Args:
        result: Of the load.
        came: When the remote stored each instance, Unix seconds by SOP instance UID.
        offset: Unix seconds less time.perf_counter(), which the senders use.
    """
    took = [
        came[uid] - offset - sent
        for association, times in enumerate(result.sent)
        for number, sent in enumerate(times)
        if (uid := instance_uid(f"{result.root}.{association}", number)) in came
    ]
    p50, p99 = np.percentile(took, (50, 99)) * 1e3
    return {
        "instances": len(took),
        "rate": result.instances / result.seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "failed": result.failed,
        "missing": result.instances - len(took),
    }
