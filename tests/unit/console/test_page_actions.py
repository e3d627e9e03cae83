"""Buttons of the pages on a real node: which rows they change, and which they leave alone."""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.consoles import Browser, ConsoleNode

ARCHIVE, LEGACY = "old-archive", "old-viewer"
FORM = re.compile(r'<form[^>]* action="([^"]*)".*?</form>', re.DOTALL)
VALUE = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">')
Read = Callable[[str], list[str]]


@pytest.fixture
def read_states(console_node: ConsoleNode) -> Iterator[Read]:
    """Add deliveries of the two instances to two destinations, and return what reads their states."""
    path = console_node.node.data / "ledger.db"
    # To the archive one was delivered and one was dropped; the viewer refused both, with other answers.
    rows = [(ARCHIVE, "delivered", 0, ""), (ARCHIVE, "dropped", None, "moved")]
    rows += [(LEGACY, "dead", None, ""), (LEGACY, "dead", 0xA700, "")]
    ledger = sqlite3.connect(path, timeout=10)
    ids = [number for [number] in ledger.execute("SELECT id FROM instances ORDER BY id LIMIT 2")]
    for number, (destination, state, status, error) in zip(ids * 2, rows, strict=True):
        ledger.execute(
            "INSERT INTO deliveries (instance_id, destination, state, attempts, next_at, last_status, "
            "last_error, created_at, updated_at) VALUES (?, ?, ?, 1, 0, ?, ?, 1, 1)",
            (number, destination, state, status, error),
        )
    ledger.commit()

    def read(destination: str) -> list[str]:
        query = "SELECT state FROM deliveries WHERE destination = ? ORDER BY instance_id"
        return [state for [state] in ledger.execute(query, (destination,))]

    yield read
    ledger.execute("DELETE FROM deliveries WHERE destination IN (?, ?)", (ARCHIVE, LEGACY))
    ledger.commit()
    ledger.close()


def find_forms(browser: Browser, page: str, action: str, *wanted: str) -> list[dict[str, str]]:
    """Return the values of the forms of a page that do an action and have all the wanted values."""
    forms = [
        {name: html.unescape(value) for name, value in VALUE.findall(form[0])}
        for form in FORM.finditer(browser.get(page).text)
        if form[1] == action
    ]
    return [form for form in forms if set(wanted) <= set(form.values())]


def press(browser: Browser, action: str, form: dict[str, str], **more: str) -> str:
    """Press the button of a form, confirm, and return the question."""
    question = browser.post(action, data=form)
    assert question.status_code == 200, question.text
    [confirmed] = [dict(VALUE.findall(each[0])) for each in FORM.finditer(question.text) if each[1] == action]
    values = {name: html.unescape(value) for name, value in confirmed.items()}
    assert browser.post(action, data={**values, **more}).status_code == 303
    return question.text


def wait_for_forms(browser: Browser, action: str, *wanted: str) -> list[dict[str, str]]:
    from tests.support.nodes import eventually

    return eventually(lambda: find_forms(browser, "/deliveries", action, *wanted), 20, "the page shows it")


def test_retry_of_a_destination_leaves_what_was_delivered_or_dropped(
    console_node: ConsoleNode, read_states: Read
) -> None:
    browser = console_node.web.log_in("operator")
    [form] = wait_for_forms(browser, "/deliveries/retry", ARCHIVE)
    assert "Retry 0 deliveries?" in press(browser, "/deliveries/retry", form)
    [form] = find_forms(browser, f"/deliveries/list?destination={ARCHIVE}", "/deliveries/retry", ARCHIVE)
    press(browser, "/deliveries/retry", form)
    press(browser, "/deliveries/retry", {"destination": ARCHIVE})
    answer = browser.post("/api/v1/deliveries/retry", json={"destination": ARCHIVE})
    assert answer.json()["counts"] == {}
    assert read_states(ARCHIVE) == ["delivered", "dropped"]
    named = browser.post("/api/v1/deliveries/retry", json={"destination": ARCHIVE, "states": ["dropped"]})
    assert named.json()["counts"] == {ARCHIVE: 1}


def test_study_that_is_sent_again_leaves_what_was_dropped(
    console_node: ConsoleNode, read_states: Read
) -> None:
    browser = console_node.web.log_in("operator")
    [form] = find_forms(browser, f"/studies/{console_node.study_uid}", "/deliveries/retry", ARCHIVE)
    press(browser, "/deliveries/retry", form)
    assert read_states(ARCHIVE) == ["waiting", "dropped"]


def test_button_of_a_reason_changes_the_deliveries_of_that_reason_only(
    console_node: ConsoleNode, read_states: Read
) -> None:
    browser = console_node.web.log_in("operator")
    [form] = wait_for_forms(browser, "/deliveries/drop", LEGACY, '[null, ""]')
    press(browser, "/deliveries/drop", form, reason="gone")
    assert read_states(LEGACY) == ["dropped", "dead"]
    [form] = wait_for_forms(browser, "/deliveries/retry", LEGACY, '[42752, ""]')
    press(browser, "/deliveries/retry", form)
    assert read_states(LEGACY) == ["dropped", "waiting"]
    unread = browser.post("/deliveries/retry", data={"destination": LEGACY, "dead_reason": "[0]"})
    assert unread.status_code == 422
