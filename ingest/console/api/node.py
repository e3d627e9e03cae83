"""Operations of the API about the node: status, certificates, routes, configuration, check, reload."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from ingest.audit.recorder import Action
from ingest.config.reader import load_config, read_notes
from ingest.config.serialization import config_to_values
from ingest.console.api import models, request_models
from ingest.console.api.actions import record_action
from ingest.console.api.lists import record_search
from ingest.console.api.operation import Call, Operation
from ingest.console.changes import compare_with_file
from ingest.errors import ConfigError, IngestError
from ingest.operations import charts, webhooks
from ingest.operations.alerts import list_alerts, send_test_events
from ingest.operations.audit import read_audit_status, send_test_message
from ingest.operations.callers import list_callers, list_refusals
from ingest.operations.commitment import (
    commitment_to_json,
    list_commitments,
    list_sent_commitments,
    sent_commitment_to_json,
)
from ingest.operations.completions import completion_to_json, list_completions
from ingest.operations.trace import trace
from ingest.status.report import gather_status
from ingest.supervisor import reload_client

CHECK_SECONDS: Final = 120.0
SEND_SECONDS: Final = 120.0
EVENTS_MAX: Final = 1000
"""Deadline of test messages; each receiver has one of its own."""
RELOAD_SECONDS: Final = reload_client.WAIT_SECONDS + 5


def show_status(call: Call) -> dict[str, Any]:
    """Show the status of the node."""
    return gather_status(call.config)


def list_alarms(call: Call) -> dict[str, Any]:
    """List the conditions that need a person."""
    return {"items": gather_status(call.config)["problems"]}


def list_destinations(call: Call) -> dict[str, Any]:
    """List the destinations."""
    return {"items": gather_status(call.config)["ledger"].get("destinations", [])}


def list_certificates(call: Call) -> dict[str, Any]:
    """List certificates."""
    return {"items": gather_status(call.config)["certificates"]}


def show_callers(call: Call) -> dict[str, Any]:
    """List the callers with their certificates."""
    return {"items": [each.to_json() for each in list_callers(call.config)]}


def show_refusals(call: Call) -> dict[str, Any]:
    """List the refused callers by cause."""
    return {"items": [each.to_json() for each in list_refusals(call.config)]}


def show_commitments(call: Call) -> dict[str, Any]:
    """List the newest requests for storage commitment."""
    return {"items": [commitment_to_json(each) for each in list_commitments(call.config)]}


def show_completions(call: Call) -> dict[str, Any]:
    """List the newest completions of studies and series."""
    return {"items": [completion_to_json(each) for each in list_completions(call.config)]}


def show_sent_commitments(call: Call) -> dict[str, Any]:
    """List the newest requests for storage commitment to destinations."""
    return {"items": [sent_commitment_to_json(each) for each in list_sent_commitments(call.config)]}


def show_alerts(call: Call) -> dict[str, Any]:
    """List the receivers of alerts with what they were sent."""
    return {"items": [each.to_json() for each in list_alerts(call.config)]}


def test_alerts(call: Call) -> dict[str, Any]:
    """Send a test event to one alert, or to all."""
    body: request_models.AlertTest = call.body
    results = send_test_events(call.config, body.name)
    sent = {each.alert: each.is_sent for each in results}
    record_action(call, Action.OTHER, "alerts/test", succeeded=all(sent.values()), sent=sent)
    return {"items": [each.to_json() for each in results]}


def show_webhooks(call: Call) -> dict[str, Any]:
    """List the webhooks with the number of events that wait or were given up."""
    return {"items": [each.to_json() for each in webhooks.list_webhooks(call.config)]}


def show_webhook_events(call: Call) -> dict[str, Any]:
    """List the newest events of webhooks that wait or were given up."""
    found = webhooks.list_webhook_events(call.config, None, (), EVENTS_MAX)
    return {"items": [each.to_json() for each in found]}


def test_webhooks(call: Call) -> dict[str, Any]:
    """Send a test event to one webhook, or to all."""
    body: request_models.WebhookTest = call.body
    results = webhooks.send_test_events(call.config, body.name)
    sent = {each.webhook: each.is_sent for each in results}
    record_action(call, Action.OTHER, "webhooks/test", succeeded=all(sent.values()), sent=sent)
    return {"items": [each.to_json() for each in results]}


def replay_webhook(call: Call) -> dict[str, Any]:
    """Send events of a webhook again that were given up."""
    body: request_models.WebhookReplay = call.body
    count = webhooks.replay_dead_events(call.config, body.name, body.event_ids)
    record_action(call, Action.OTHER, f"webhooks/{body.name}/replay", replayed=count)
    return {"replayed": count}


def show_audit(call: Call) -> dict[str, Any]:
    """Show the queue of audit messages."""
    return read_audit_status(call.config).to_json()


def test_audit(call: Call) -> dict[str, Any]:
    """Send a test message to the audit repository."""
    repository = send_test_message(call.config, call.principal.name, call.address)
    record_action(call, Action.OTHER, "audit/test")
    return {"repository": repository}


def show_trace(call: Call) -> dict[str, Any]:
    """Show what happened to a study or an instance, and what happens next."""
    record_search(call, "trace")
    body: request_models.TraceRequest = call.body
    return trace(call.config, body.wanted).to_json()


def show_charts(call: Call) -> dict[str, Any]:
    """Show what the monitor has sampled."""
    query: request_models.ChartQuery = call.query
    return charts.show_charts(call.config, query.span).to_json()


def list_routes(call: Call) -> dict[str, Any]:
    """List the routes."""
    return {"items": [route.model_dump(mode="json") for route in call.config.routes]}


def show_configuration(call: Call) -> dict[str, Any]:
    """Show the configuration in force."""
    return {"values": config_to_values(call.config)}


def list_changes(call: Call) -> dict[str, Any]:
    """List what a reload would change."""
    found = compare_with_file(call.config, call.console.path)
    return {"items": [asdict(each) for each in found.items], "faults": list(found.faults)}


def check(call: Call) -> dict[str, Any]:
    """Check the configuration in its file, and everything that it names."""
    # Checks and C-ECHO import much that the rest of the console does not need.
    from ingest.checks import connect as connections  # noqa: PLC0415
    from ingest.checks.node import check_node  # noqa: PLC0415

    body: request_models.Check = call.body
    try:
        config = load_config(call.console.path)
    except ConfigError as error:
        refused = [{"key": "", "cause": fault, "remedy": "", "is_note": False} for fault in error.faults]
        return {"items": refused, "answers": []}
    found = [*read_notes(call.console.path), *check_node(config)]
    answers: list[dict[str, Any]] = []
    if body.connect:
        reached, faults = connections.check_connections(config)
        found += faults
        answers = [
            {"destination": each.name, "remote": str(each.remote), "seconds": each.seconds}
            for each in reached
        ]
    items = [
        {"key": each.key, "cause": each.cause, "remedy": each.remedy, "is_note": each.is_note}
        for each in found
    ]
    return {"items": items, "answers": answers, "checked_at": datetime.now(UTC).isoformat()}


def reload(call: Call) -> dict[str, Any]:
    """Make the node read its configuration again. The console ends and comes back with it."""
    try:
        generation = reload_client.request_reload(call.config)
    except IngestError:
        record_action(call, Action.RELOAD, "node", succeeded=False)
        raise
    record_action(call, Action.RELOAD, "node", generation=generation)
    return {"generation": generation}


OPERATIONS: Final = (
    Operation("GET", "/status", "Show the status, as `ingest status --json`", show_status, models.Status),
    Operation("GET", "/alarms", "List what needs a person, the worst first", list_alarms, models.Alarms),
    Operation(
        "GET",
        "/destinations",
        "List destinations with circuit and backlog",
        list_destinations,
        models.Destinations,
        tag="destinations",
    ),
    Operation(
        "GET", "/certificates", "List certificates and their ends", list_certificates, models.Certificates
    ),
    Operation(
        "GET",
        "/callers",
        "List the callers with their certificates, the last one first",
        show_callers,
        models.Callers,
    ),
    Operation(
        "GET",
        "/refusals",
        "List refused callers by cause, each cause with its remedy",
        show_refusals,
        models.Refusals,
    ),
    Operation(
        "GET",
        "/commitments",
        "List the 100 newest requests for storage commitment, the newest first",
        show_commitments,
        models.Commitments,
    ),
    Operation(
        "GET",
        "/commitments/sent",
        "List the 100 newest requests for storage commitment to destinations, the newest first",
        show_sent_commitments,
        models.SentCommitments,
    ),
    Operation(
        "GET",
        "/completions",
        "List the 100 newest completions of studies and series, the newest first",
        show_completions,
        models.Completions,
    ),
    Operation("GET", "/alerts", "List receivers of alerts, and what is due", show_alerts, models.Alerts),
    Operation(
        "POST",
        "/alerts/test",
        "Send a test event at once",
        test_alerts,
        models.TestedAlerts,
        body=request_models.AlertTest,
        seconds=SEND_SECONDS,
    ),
    Operation("GET", "/webhooks", "List webhooks, and what is due", show_webhooks, models.Webhooks),
    Operation(
        "GET",
        "/webhooks/events",
        "List the 1000 newest events of webhooks that wait or were given up, the newest first",
        show_webhook_events,
        models.WebhookEvents,
    ),
    Operation(
        "POST",
        "/webhooks/test",
        "Send a test event at once",
        test_webhooks,
        models.TestedWebhooks,
        body=request_models.WebhookTest,
        seconds=SEND_SECONDS,
    ),
    Operation(
        "POST",
        "/webhooks/replay",
        "Send events again that were given up",
        replay_webhook,
        models.Replayed,
        body=request_models.WebhookReplay,
    ),
    Operation("GET", "/audit", "Show the queue of audit messages", show_audit, models.AuditStatus),
    Operation(
        "POST",
        "/audit/test",
        "Send a test message to the audit repository",
        test_audit,
        models.AuditTest,
        seconds=SEND_SECONDS,
    ),
    Operation(
        "POST",
        "/trace",
        "Show what happened to a study or an instance, and what happens next",
        show_trace,
        models.Trace,
        body=request_models.TraceRequest,
        tag="studies",
    ),
    Operation(
        "GET",
        "/samples",
        "Show rates, waits and backlogs of the last hour or day",
        show_charts,
        models.Charts,
        query=request_models.ChartQuery,
    ),
    Operation("GET", "/routes", "List the routes in their order", list_routes, models.Routes, tag="routes"),
    Operation(
        "GET",
        "/configuration",
        "Show the configuration in force, without secrets",
        show_configuration,
        models.Configuration,
        tag="configuration",
    ),
    Operation(
        "GET",
        "/configuration/changes",
        "List what a reload would change",
        list_changes,
        models.Changes,
        tag="configuration",
    ),
    Operation(
        "POST",
        "/check",
        "Check the configuration in its file, and what it names",
        check,
        models.Faults,
        body=request_models.Check,
        tag="configuration",
        seconds=CHECK_SECONDS,
    ),
    Operation(
        "POST",
        "/reload",
        "Reload configuration and certificates",
        reload,
        models.Reloaded,
        tag="configuration",
        seconds=RELOAD_SECONDS,
    ),
)
