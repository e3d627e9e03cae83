"""What is logged, in which form, and where."""

import json
import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest
import structlog

from ingest.config.model import LogSettings
from ingest.errors import BootError, LedgerError
from ingest.log import configure_logging, reopen_log, set_log_role

log = structlog.get_logger()  # made before anything is configured, as in every module


def configure(settings: LogSettings) -> None:
    configure_logging(settings.level, settings.format, settings.file)


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    set_log_role("node")
    configure(LogSettings())  # gives the file of a test back
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers, root.level = handlers, level


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ingest.log"


def events(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_json_has_one_event_a_line_with_time_level_event_role_and_pid(file):
    configure(LogSettings(format="json", file=file))
    set_log_role("listen")
    log.info("association_accepted", calling_ae="CT1", where=file, data=b"\n")
    log.warning("second")
    first, second = events(file)
    assert list(first)[:5] == ["timestamp", "level", "event", "role", "pid"]
    assert first["timestamp"].endswith("Z")
    assert (first["level"], first["event"], first["role"], first["pid"]) == (
        "info",
        "association_accepted",
        "listen",
        os.getpid(),
    )
    assert (first["calling_ae"], first["where"]) == ("CT1", str(file))
    assert second["event"] == "second"


def test_a_process_is_named_in_all_that_it_logs(file):
    configure(LogSettings(format="json", file=file))
    set_log_role("persist")
    try:
        log.info("event")
        thread = threading.Thread(target=log.info, args=("from_a_thread",))
        thread.start()
        thread.join()
    finally:
        set_log_role("node")
    assert [event["role"] for event in events(file)] == ["persist", "persist"]


def test_events_below_the_level_are_left_out(file):
    configure(LogSettings(format="json", file=file, level="warning"))
    log.info("quiet")
    log.error("loud")
    assert [event["event"] for event in events(file)] == ["loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_traceback_is_told_without_local_variables_and_messages_that_may_quote_them(file, form):
    configure(LogSettings(format=form, file=file))
    patient = "".join(("DOE", "^", "JANE"))
    try:
        try:
            int(patient)
        except ValueError as error:
            raise LedgerError("the ledger is away") from error
    except LedgerError:
        log.exception("failed")
    logging.getLogger("library").error("it failed", exc_info=KeyError(patient))
    text = file.read_text()
    assert "LedgerError: the ledger is away" in text
    assert "test_traceback_is_told" in text
    assert "ValueError" in text
    assert "KeyError" in text
    assert patient not in text


def test_console_cannot_be_made_to_write_lines_or_move_the_cursor(file):
    configure(LogSettings(file=file))
    log.warning("peer", calling_ae="X\n2025 [info] forged\x1b[2J")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        log.exception("failed")
    text = file.read_text()
    assert "\x1b" not in text
    assert text.splitlines()[0].count("forged") == 1
    assert "forged" not in "".join(text.splitlines()[1:])


def test_console_in_a_file_has_no_colours(file):
    configure(LogSettings(file=file))
    log.error("event")
    assert "\x1b" not in file.read_text()


def test_standard_error_is_written_where_no_file_is_named(capfd):
    configure(LogSettings(format="json"))
    log.info("hello")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "hello"


def test_libraries_are_heard_from_warning_on_in_the_same_form(file):
    configure(LogSettings(format="json", file=file, level="debug"))
    logging.getLogger("redis.connection").warning("lost %s", "it")
    logging.getLogger("rq.worker").setLevel(logging.DEBUG)
    logging.getLogger("rq.worker").info("chatter")
    logging.getLogger("asyncio").critical("worse")
    logging.getLogger("rq.worker").setLevel(logging.NOTSET)
    first, second = events(file)
    assert (first["event"], first["library"], first["message"]) == ("library", "redis.connection", "lost it")
    assert (second["level"], second["message"]) == ("critical", "worse")


def test_warnings_of_python_are_events_too(file):
    configure(LogSettings(format="json", file=file))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("mind the gap", stacklevel=1)
    assert "mind the gap" in events(file)[0]["message"]


def test_reopen_follows_rotation(file, tmp_path):
    configure(LogSettings(format="json", file=file))
    log.info("before")
    file.rename(tmp_path / "rotated")
    log.info("still_before")
    reopen_log()
    log.info("after")
    assert [event["event"] for event in events(tmp_path / "rotated")] == ["before", "still_before"]
    assert [event["event"] for event in events(file)] == ["after"]


def test_reopen_that_fails_keeps_the_old_file_and_says_why(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    configure(LogSettings(format="json", file=folder / "ingest.log"))
    folder.rename(tmp_path / "moved")
    reopen_log()
    (event,) = events(tmp_path / "moved" / "ingest.log")
    assert event["event"] == "log_not_reopened"
    assert str(folder) in event["error"]


def test_reopen_without_set_up_or_file_does_nothing(capfd):
    reopen_log()
    configure(LogSettings())
    reopen_log()
    assert capfd.readouterr().err == ""


def test_file_that_cannot_be_opened_is_a_boot_error_and_the_old_set_up_stays(file, tmp_path):
    configure(LogSettings(format="json", file=file))
    with pytest.raises(BootError, match=r"log\.file"):
        configure(LogSettings(file=tmp_path / "none" / "x.log"))
    log.info("still_here")
    assert events(file)[0]["event"] == "still_here"


def test_configuring_again_moves_loggers_that_were_used_before(file, tmp_path):
    configure(LogSettings(format="json", file=file))
    bound = log.bind(a=1)
    log.info("first")
    configure(LogSettings(format="json", file=tmp_path / "second.log", level="error"))
    log.info("left_out")
    log.error("second")
    bound.error("third")
    assert [event["event"] for event in events(file)] == ["first"]
    assert "second" in (tmp_path / "second.log").read_text()
    assert "third" in (tmp_path / "second.log").read_text()
    assert "left_out" not in (tmp_path / "second.log").read_text()


def test_descriptors_do_not_leak_over_reloads(file):
    configure(LogSettings(file=file))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        configure(LogSettings(file=file))
        reopen_log()
    assert len(os.listdir("/proc/self/fd")) == before


def test_full_disk_loses_the_line_and_not_the_node():
    configure(LogSettings(file="/dev/full"))
    log.error("event")


def test_lines_of_several_threads_do_not_mix(file):
    configure(LogSettings(format="json", file=file))
    threads = [
        threading.Thread(target=lambda: [log.info("event", text="x" * 5000) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(events(file)) == 200


LOG_THREE_EVENTS = """
import structlog
from ingest.log import configure_logging
configure_logging("debug", "console", None)
log = structlog.get_logger()
log.info("first")
log.warning("second")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("third")
"""


@pytest.mark.parametrize("is_journal", [True, False])
def test_each_line_for_the_journal_begins_with_its_priority(file, is_journal):
    with file.open("wb") as stream:
        status = os.fstat(stream.fileno())
        journal = f"{status.st_dev}:{status.st_ino + (not is_journal)}"
        environ = {**os.environ, "JOURNAL_STREAM": journal, "NO_COLOR": "1"}
        subprocess.run([sys.executable, "-c", LOG_THREE_EVENTS], stderr=stream, env=environ, check=True)
    first, second, *third = file.read_text().splitlines()
    assert ("first" in first, "second" in second, "third" in third[0], len(third) > 2) == (True,) * 4
    assert first.startswith("<6>") == second.startswith("<4>") == is_journal
    assert all(line.startswith("<3>") == is_journal for line in third), "also the lines of the traceback"
