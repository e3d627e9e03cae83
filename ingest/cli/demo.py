"""`ingest demo`: show a node at work."""

import click

from ingest.cli._base import exit_with


@click.command()
@click.option("--keep", is_flag=True, help="Let the nodes run until Ctrl-C, and say where to look.")
def demo(keep: bool) -> None:
    """Send real DICOM files through two nodes on this machine.

    \b
    ingest demo
    ingest demo --keep

    The nodes use mutual TLS. At the end, the demo compares the received files byte for byte. With --keep
    both nodes run on, with the files in them: the demo prints the address and the token of the console, the
    folder of the store, and commands to try. Ctrl-C stops both nodes and removes everything.
    """
    from ingest.cli._demo_run import run_demo

    exit_with(run_demo(keep=keep))
