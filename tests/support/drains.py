"""Drains in this process: a forward worker without its loop."""

import contextlib
import threading
from collections.abc import Iterator

from ingest.clock import unix_ms
from ingest.outgoing.plans import build_plans
from ingest.queue.wakeups import hold_key
from ingest.requestor.remotes import build_remotes
from ingest.workers.forward.worker import ForwardWorker
from tests.support.forwarding import Forwarding
from tests.support.nodes import eventually


@contextlib.contextmanager
def open_worker(forwarding: Forwarding, stop: threading.Event | None = None) -> Iterator[ForwardWorker]:
    config = forwarding.config
    remotes, plans = build_remotes(config), build_plans(config)
    made = ForwardWorker(config, stop or threading.Event(), remotes, "forward-test", plans)
    try:
        yield made
    finally:
        made.close()


def drain_once(forwarding: Forwarding, name: str = "pacs") -> None:
    with open_worker(forwarding) as worker:
        worker.drain_destination(name)


def wait_until_due(forwarding: Forwarding, sops: list[str], name: str = "pacs") -> None:
    """Wait until retries are due, and until nothing holds the destination off."""
    with contextlib.closing(forwarding.server.client()) as client:
        eventually(lambda: not client.exists(hold_key(name)), 10, "the hold ends")
    eventually(lambda: all(forwarding.row(sop, name).next_at <= unix_ms() for sop in sops), 10, "due")
