"""`ingest audit`: the queue of audit messages, and a test message."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import FAILED, CommandGroup, config_option, exit_with, load_config
from ingest.cli._tables import format_count, format_local_time, print_line
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.operations.audit import AuditStatus


@click.group(cls=CommandGroup)
def audit() -> None:
    """Show the queue of audit messages, or send a test message."""


@audit.command()
@config_option
@options.json_option
def status(path: Path, *, as_json: bool) -> None:
    """Show how many audit messages wait, and why.

    \b
    ingest audit status -c ingest.toml

    Exits with 1 while the repository takes no messages, or while messages are dropped. A running node is not
    needed. Run it as the user of the node: no other user can read the queue.
    """
    from ingest.operations.audit import read_audit_status

    found = read_audit_status(load_config(path))
    if as_json:
        print_line(json.dumps(found.to_json()))
    else:
        _print_status(found)
    exit_with(0 if found.is_well else FAILED)


@audit.command(name="send-test")
@config_option
def send_test(path: Path) -> None:
    """Send one test message to the audit repository.

    \b
    ingest audit send-test -c ingest.toml

    The message is a Security Alert with outcome 0 that says it is a test. It does not pass the queue. Look
    for it in the repository, because syslog has no answer that proves its arrival.
    """
    from ingest.operations.audit import send_test_message

    print_line(f"sent to {send_test_message(load_config_as_owner(path))}; look for it there")


def _print_status(found: "AuditStatus") -> None:
    print_line(f"repository  {found.repository}")
    if found.failing_since:
        print_line(f"away since  {format_local_time(found.failing_since)}: {found.error}")
    print_line(f"sent        {format_count(found.sent, 'message')}{_format_last(found.sent_at)}")
    share = 100 * found.waiting_bytes // found.max_bytes
    print_line(f"waiting     {format_count(found.waiting, 'message')}, {share} % of queue_max_bytes")
    if found.oldest_at:
        print_line(f"oldest      {format_local_time(found.oldest_at)}")
    if found.unreported:
        print_line(f"in ledger   {format_count(found.unreported, 'transfer')} without a message yet")
    if found.dropped:
        since = ", and it is still full" if found.is_dropping else ""
        print_line(f"dropped     {format_count(found.dropped, 'message')} by a full queue{since}")


def _format_last(unix_ms: int) -> str:
    return f", the last at {format_local_time(unix_ms)}" if unix_ms else ""
