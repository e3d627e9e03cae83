"""Runs the migrations for alembic, on the connection and in the transaction of the caller."""

from typing import Any

from alembic import context

from ingest.ledger.schema import metadata


def _report_step(ctx: object, step: Any, heads: object, run_args: object) -> None:  # noqa: ARG001 - alembic's names
    report = context.config.attributes.get("report_step")
    if report is not None:
        report(step.up_revision_id)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    on_version_apply=_report_step,
)
with context.begin_transaction():
    context.run_migrations()
