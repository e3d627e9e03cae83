"""A store and a ledger with instances to forward, and forward workers as processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.config.model import (
    TLS,
    Config,
    Destination,
    LedgerSettings,
    NodeSettings,
    QueueSettings,
    Route,
)
from ingest.ledger import DeliveryTerms, InstanceState, Ledger, NewInstance
from ingest.ledger.records import DeliveryRow
from ingest.queue.wakeups import send_wake_up
from tests.support.instances import CT, Made
from tests.support.nodes import eventually
from tests.support.peers import AE_TITLE
from tests.support.servers import Valkey

WORKER = (
    "import sys, threading; from ingest.config.model import Config; "
    "from ingest.requestor.remotes import build_remotes;"
    "from ingest.outgoing.plans import build_plans;"
    "from ingest.workers.forward.worker import main; config = Config.model_validate_json(sys.stdin.read());"
    "sys.exit(main(config, threading.Event(), build_remotes(config), build_plans(config)))"
)


@dataclass
class Forwarding:
    """What a forward worker needs, without the rest of a node."""

    folder: Path
    server: Valkey
    tls: TLS | None = None
    destinations: list[Destination] = field(default_factory=list)
    recorded: int = 0
    routes: tuple[Route, ...] = ()

    def __post_init__(self) -> None:
        (self.config.store_root / ".incoming").mkdir(parents=True)
        self.ledger = Ledger(self.config.ledger_url)
        self.ledger.migrate()

    @property
    def config(self) -> Config:
        return Config(
            node=NodeSettings(data_dir=self.folder),
            tls={"node": self.tls} if self.tls else {},
            queue=QueueSettings(url=self.server.url),
            ledger=LedgerSettings(),
            destinations=tuple(self.destinations),
            routes=self.routes,
        )

    def add(self, port: int, name: str = "pacs", **settings: object) -> Destination:
        """Another destination on this host."""
        defaults = {
            "host": "127.0.0.1",
            "linger_seconds": 0.1,
            "response_seconds": 5.0,
            "retry_first_seconds": 0.2,
        }
        destination = Destination(
            name=name,
            ae_title=AE_TITLE,
            port=port,
            tls="node" if self.tls else False,
            **(defaults | settings),  # type: ignore[arg-type]
        )
        self.destinations.append(destination)
        return destination

    def record(
        self,
        *made: Made,
        to: Sequence[str] = ("pacs",),
        state: InstanceState = InstanceState.STORED,
        key: str = "",
        terms: Mapping[str, DeliveryTerms] | None = None,
        calling_ae: str = "CT1",
        called_ae: str = "INGEST",
    ) -> list[Made]:
        """Have instances in store and ledger, to be delivered."""
        rows = []
        now = round(time.time() * 1000)
        for one in made:
            self.recorded += 1
            name = key or f"{one.sop}.dcm"
            (self.config.store_root / name).write_bytes(one.file)
            rows.append(
                NewInstance(
                    state=state,
                    sop_instance_uid=one.sop,
                    sop_class_uid=CT,
                    study_uid=one.study or "",
                    series_uid=one.series or "",
                    transfer_syntax_uid=one.syntax,
                    store_key=name,
                    size=len(one.file),
                    data_set_offset=len(one.file) - len(one.data_set),
                    calling_ae=calling_ae,
                    called_ae=called_ae,
                    source="",
                    spool_ref=f"spool:{self.recorded}",
                    note="",
                    received_at=now,
                    stored_at=now,
                    destinations=tuple(to),
                    terms=terms or {},
                )
            )
        self.ledger.instances.record(rows)
        return list(made)

    def many(
        self, count: int, pixels: bytes = b"\1\2", to: Sequence[str] = ("pacs",), series: int = 1
    ) -> list[Made]:
        """So many CT instances, numbered, in so many series by turns."""
        first = self.recorded
        numbers = range(first + 1, first + count + 1)
        return self.record(
            *(Made(sop=f"1.2.3.{n}", series=f"1.2.3.{n % series + 1}", pixels=pixels) for n in numbers), to=to
        )

    def row(self, sop: str, destination: str = "pacs") -> DeliveryRow:
        (instance,) = self.ledger.instances.find_by_sop_instance_uid(sop)
        return next(
            row
            for row in self.ledger.deliveries.find_by_instance(instance.id)
            if row.destination == destination
        )

    def states(self, destination: str = "pacs") -> dict[str, int]:
        counts = self.ledger.count_rows().deliveries.get(destination, {})
        return {state.value: count for state, count in counts.items() if count}

    def lease_owner(self) -> str:
        """Who holds a lease now; empty where nobody does."""
        with self.ledger.database.begin_read() as connection:
            query = "SELECT lease_owner FROM deliveries WHERE state = 'sending'"
            return connection.exec_driver_sql(query).scalars().first() or ""

    def wake(self, destination: str = "pacs") -> None:
        with contextlib.closing(self.server.client()) as client:
            send_wake_up(client, destination)

    def wait(self, expected: dict[str, int], seconds: float = 20.0, destination: str = "pacs") -> None:
        eventually(
            lambda: self.states(destination) == expected,
            seconds,
            f"{expected}",
        )

    @contextlib.contextmanager
    def worker(self) -> Iterator["WorkerProcess"]:
        """A forward worker; killed at the end if it still runs."""
        process = WorkerProcess(self.config, self.folder / f"worker-{time.monotonic_ns()}.log")
        try:
            yield process
        finally:
            process.kill()


class WorkerProcess:
    """`ingest.workers.forward.worker.main` in a process of its own."""

    def __init__(self, config: Config, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[2],
                env=os.environ | {"PYTHONWARNINGS": "error"},
            )
        assert self.process.stdin
        self.process.stdin.write(config.model_dump_json().encode())
        self.process.stdin.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self, seconds: float = 15.0) -> int:
        self.process.terminate()
        return self.process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
