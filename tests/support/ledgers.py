"""Rows for tests of the ledger."""

import uuid
from collections.abc import Iterable
from typing import Any

from ingest.config.model import Config
from ingest.ledger import DeliveryState, Instance, InstanceState, Ledger, NewInstance
from ingest.ledger.instance_filter import InstanceFilter
from tests.support.instances import CT, EXPLICIT


def row(number: int, **changes: Any) -> NewInstance:
    """Instance number `number`, with what a test wants otherwise."""
    values: dict[str, Any] = {
        "state": InstanceState.STORED,
        "sop_instance_uid": f"1.2.{number}",
        "sop_class_uid": CT,
        "study_uid": "1",
        "series_uid": "1",
        "transfer_syntax_uid": EXPLICIT,
        "store_key": f"1/1/1.2.{number}.dcm",
        "size": 1000,
        "data_set_offset": 300,
        "calling_ae": "CT1",
        "called_ae": "INGEST",
        "source": "",
        "spool_ref": f"s:{number}",
        "note": "",
        "received_at": 10,
        "stored_at": 20,
        "destinations": ("pacs",),
    }
    return NewInstance(**{**values, **changes})


def hold(settings: Config, spool: str, names: Iterable[str]) -> Ledger:
    """The ledger of a configuration, with a row for each of these places of a spool; the caller closes it."""
    ledger = Ledger(settings.ledger_url)
    ledger.migrate()
    # Numbers of their own, however often this is called.
    numbered = {uuid.uuid4().int: name for name in names}
    ledger.instances.record([row(number, spool_ref=f"{spool}:{name}") for number, name in numbered.items()])
    return ledger


def delivery_states(ledger: Ledger, instance: int) -> dict[str, DeliveryState]:
    """The states of one instance's deliveries, by destination."""
    return {delivery.destination: delivery.state for delivery in ledger.deliveries.find_by_instance(instance)}


def find_newest_instances(
    ledger: Ledger,
    limit: int = 100,
    *,
    before: int | None = None,
    state: InstanceState | None = None,
    study_uid: str | None = None,
) -> list[Instance]:
    """Instances without their deliveries, the newest first."""
    which = InstanceFilter(states=() if state is None else (state,), study_uid=study_uid)
    return [found.instance for found in ledger.instance_lists.find_instances(which, limit, before=before)]
