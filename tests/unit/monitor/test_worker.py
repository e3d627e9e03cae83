"""The monitor's loop: a task that fails costs its turn, and its error tells the log nothing of a patient."""

import sqlite3
import threading
from pathlib import Path

from ingest.config.model import Config, ConsoleSettings, NodeSettings
from ingest.ledger import Ledger
from ingest.log import configure_logging
from ingest.workers.monitor.worker import run
from tests.support.nodes import eventually

NAME = "MUSTERMANN"


def test_error_of_the_database_that_quotes_a_patient_stays_out_of_the_log(tmp_path: Path) -> None:
    config = Config(node=NodeSettings(data_dir=tmp_path), console=ConsoleSettings())
    (tmp_path / "run").mkdir()
    ledger = Ledger(config.ledger_url)
    ledger.migrate()
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute(
            f"CREATE TRIGGER quoting BEFORE INSERT ON samples BEGIN SELECT RAISE(ABORT, '{NAME}'); END"
        )
    database.close()
    log = tmp_path / "log"
    configure_logging("info", "json", log)
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(config, stop))
    thread.start()
    try:
        eventually(lambda: log.exists() and "monitor_task_failed" in log.read_text(), 20, "the task fails")
    finally:
        stop.set()
        thread.join(20)
        configure_logging("info", "console", None)
    text = log.read_text()
    assert "IntegrityError" in text
    assert "add_sample" in text, "the place is told"
    assert NAME not in text
