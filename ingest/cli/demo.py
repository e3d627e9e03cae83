"""`ingest demo`: show a node at work."""

import click

from ingest.cli._base import exit_with


@click.command()
def demo() -> None:
    """Send real DICOM files through two nodes on this machine.

    The nodes use mutual TLS. At the end, the demo compares the received files byte for byte.
    """
    from ingest.cli._demo_run import run_demo

    exit_with(run_demo())
