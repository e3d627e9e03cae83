"""`ingest metrics`: print the metrics of a node."""

from pathlib import Path

import click

from ingest.cli._base import config_option, load_config


@click.command()
@config_option
def metrics(path: Path) -> None:
    """Print the metrics of the node in the text format of Prometheus.

    \b
    ingest metrics -c ingest.toml
    ingest metrics -c ingest.toml > /var/lib/node_exporter/ingest.prom

    The console serves the same under /metrics. A part that cannot be read is left out, and counted in
    dicom_ingest_scrape_errors_total.
    """
    from ingest.status.exposition import render_metrics

    click.echo(render_metrics(load_config(path)), nl=False)
