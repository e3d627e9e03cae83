"""What tests of the remover share: studies, time that goes by, and what is left."""

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import update

from ingest.clock import unix_ms
from ingest.ledger import DeliveryState, InstanceState
from ingest.ledger.schema import deliveries, instances
from ingest.workers.retention.policy import DAY_MS
from ingest.workers.retention.remover import Remover, RetentionReport
from tests.support.instances import Made
from tests.support.persisting import Site

NOBODY = {"routes": [{"to": []}]}


def made(study: int, number: int = 1, **how: Any) -> Made:
    """An instance of a study; two series of each."""
    return Made(sop=f"1.{study}.{number}", study=f"2.{study}", series=f"2.{study}.{number % 2}", **how)


def fill(site: Site, *ones: Made) -> None:
    """Have a worker store them."""
    for one in ones:
        site.receive(one)
    site.work()


def states(site: Site) -> dict[str, list[InstanceState]]:
    found: dict[str, list[InstanceState]] = {}
    for row in site.instances():
        found.setdefault(row.study_uid, []).append(row.state)
    return found


def left(site: Site) -> list[str]:
    """Studies that have rows in the store; each of these has its file, and no other file is there."""
    kept = [row for row in site.instances() if row.state in {InstanceState.STORED, InstanceState.VARIANT}]
    assert site.stored() == sorted(row.store_key for row in kept)
    return sorted({row.study_uid for row in kept})


def folders(site: Site) -> list[str]:
    root = site.config.store_root
    found = [path for path in root.rglob("*") if path.is_dir()]
    return sorted(str(path.relative_to(root)) for path in found if ".incoming" not in path.parts)


def deliver(site: Site, state: DeliveryState, study: int | None = None) -> None:
    """Give the deliveries of a study, or all, a state."""
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        change = update(deliveries).values(state=state.value)
        if study is not None:
            of_study = instances.c.id == deliveries.c.instance_id, instances.c.study_uid == f"2.{study}"
            change = change.where(*of_study)
        connection.execute(change)


@contextlib.contextmanager
def remover(site: Site, *, days: float = 0.0, **limits: Any) -> Iterator[Remover]:
    """A remover for which `days` have gone by, with other keys of `[retention]`."""
    retention = site.config.retention.model_copy(update=limits)
    how = {key: limits.pop(key) for key in ("statvfs", "stopping") if key in limits}
    config = site.config.model_copy(update={"retention": retention})
    with site.ledger() as ledger:
        yield Remover(config, ledger, now=lambda: unix_ms() + int(days * DAY_MS), **how)


def remove(site: Site, **limits: Any) -> RetentionReport:
    with remover(site, **limits) as one:
        return one.run()
