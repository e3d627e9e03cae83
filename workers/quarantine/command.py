"""`ingest quarantine release`, `retry` and `drop`: apply decisions, and print what was done."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import redis
from rich.console import Console

from ingest.alarms import QUARANTINE_FULL, clear_alarm
from ingest.config.model import Config
from ingest.errors import NotQuarantinedError
from ingest.ledger import Ledger
from ingest.queue.client import connect
from ingest.queue.wakeups import send_wake_up
from ingest.workers.quarantine.decisions import QuarantineDecisions, open_quarantine

RETRIED_MAX: Final = 100_000
"""Instances that one `ingest quarantine retry --all` stores again."""


def release_instances(config: Config, ids: Sequence[int]) -> int:
    """Release instances from quarantine, and wake their destinations. Returns the exit code."""
    to_wake: set[str] = set()

    def release(decisions: QuarantineDecisions, number: int) -> None:
        destinations = decisions.release(number)
        to_wake.update(destinations)
        _print_line(f"{number}: released; to {', '.join(destinations) or 'no destination'}")

    code = _apply_to_each(config, lambda _: ids, release)
    _wake_destinations(config, to_wake)
    return code


def retry_instances(config: Config, ids: Sequence[int]) -> int:
    """Store acknowledged instances again, and wake their destinations. Returns the exit code.

    Args:
        config: The configuration.
        ids: Ids of their rows; all acknowledged instances in quarantine if there are none.
    """
    to_wake: set[str] = set()

    def retry(decisions: QuarantineDecisions, number: int) -> None:
        destinations = decisions.retry(number)
        to_wake.update(destinations or ())
        if destinations is None:
            _print_line(f"{number}: stored already; gone")
        else:
            _print_line(f"{number}: stored; to {', '.join(destinations) or 'no destination'}")

    code = _apply_to_each(
        config, lambda ledger: ids or ledger.quarantine.list_acknowledged_ids(RETRIED_MAX), retry
    )
    _wake_destinations(config, to_wake)
    return code


def drop_instances(config: Config, ids: Sequence[int]) -> int:
    """Remove instances from quarantine for good. Returns the exit code."""

    def drop(decisions: QuarantineDecisions, number: int) -> None:
        decisions.drop(number)
        _print_line(f"{number}: dropped")

    code = _apply_to_each(config, lambda _: ids, drop)
    _clear_alarm_if_below_limit(config)
    return code


def _clear_alarm_if_below_limit(config: Config) -> None:
    """Clear the alarm of a full quarantine, if the quarantine may take refused copies again."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        limit = config.receive.quarantine_max_bytes
        if not limit or ledger.quarantine.sum_refused_bytes() < limit:
            clear_alarm(config.run_dir, QUARANTINE_FULL)


def _wake_destinations(config: Config, destinations: set[str]) -> None:
    client = connect(config, timeout=2.0)
    try:
        for destination in sorted(destinations):
            send_wake_up(client, destination)
    except redis.RedisError as error:
        # INVARIANT 2: Redis is a hint. The ledger has the deliveries.
        _print_error(f"the queue is away ({error}); workers find them by themselves within seconds")
    finally:
        client.close()


def _apply_to_each(
    config: Config,
    find_ids: Callable[[Ledger], Sequence[int]],
    decide: Callable[[QuarantineDecisions, int], None],
) -> int:
    """Apply a decision to each instance. A failure is printed, and does not stop the others."""
    code = 0
    ledger = Ledger(config.ledger_url)
    try:
        ledger.require_schema()
        with open_quarantine(config, ledger) as decisions:
            for number in dict.fromkeys(find_ids(ledger)):
                try:
                    decide(decisions, number)
                except NotQuarantinedError as error:
                    _print_error(str(error))
                    code = 1
                except OSError as error:
                    _print_error(f"{number}: its file cannot be read or kept now: {error}; try again later")
                    code = 1
    finally:
        ledger.close()
    return code


def _print_line(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def _print_error(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
