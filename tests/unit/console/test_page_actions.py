"""Buttons of the pages on a real node: which rows they change, who may press them, and what is recorded."""

from __future__ import annotations

import contextlib
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
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as ledger:
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


def test_held_deliveries_are_released_by_button_and_api_and_recorded(
    console_node: ConsoleNode, read_states: Read
) -> None:
    path = console_node.node.data / "ledger.db"
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as ledger:
        ledger.execute("UPDATE deliveries SET state = 'held' WHERE destination IN (?, ?)", (ARCHIVE, LEGACY))
        ledger.commit()
    browser = console_node.web.log_in("operator")
    [form] = wait_for_forms(browser, "/deliveries/release", ARCHIVE)
    assert "Release 2 deliveries?" in press(browser, "/deliveries/release", form)
    assert read_states(ARCHIVE) == ["waiting", "waiting"]
    assert browser.post("/deliveries/release", data={}).status_code == 422
    assert browser.post("/api/v1/deliveries/release", json={}).status_code == 422
    one = {"destination": LEGACY, "sop_instance_uid": console_node.sop_uids[0]}
    assert browser.post("/api/v1/deliveries/release", json=one).json()["counts"] == {LEGACY: 1}
    assert sorted(read_states(LEGACY)) == ["held", "waiting"]
    [form] = find_forms(
        browser, f"/deliveries/list?destination={LEGACY}&state=held", "/deliveries/release", LEGACY
    )
    press(browser, "/deliveries/release", form)
    assert read_states(LEGACY) == ["waiting", "waiting"]
    assert ("release held deliveries", True) in find_recorded(console_node, "deliveries")
    refused = console_node.web.log_in("viewer").post("/api/v1/deliveries/release", json=one)
    assert refused.status_code == 403


def find_recorded(node: ConsoleNode, target: str) -> list[tuple[str, bool]]:
    events = node.node.events("console_action")
    return [(event["action"], event["succeeded"]) for event in events if event["target"] == target]


def test_looking_is_recorded_and_a_refresh_by_the_page_is_no_look(console_node: ConsoleNode) -> None:
    program = console_node.web.call(console_node.web.tokens["admin"])
    found = program.post("/api/v1/instances/search", json={"study_uid": console_node.study_uid}).json()
    number = found["items"][0]["id"]
    browser = console_node.web.log_in("viewer")
    for path, target in (
        (f"/studies/{console_node.study_uid}", f"study/{console_node.study_uid}"),
        (f"/instances/{number}", f"instance/{number}"),
    ):
        before = len(find_recorded(console_node, target))
        assert browser.get(path).status_code == 200
        assert browser.get(path, headers={"X-Live": "1"}).status_code == 200
        assert program.get(f"/api/v1{path}").status_code == 200
        assert find_recorded(console_node, target)[before:] == [("view study", True)] * 2


def test_action_that_fails_is_recorded_as_failed(console_node: ConsoleNode) -> None:
    browser = console_node.web.log_in("operator")
    form = {"destination": "no-such-place", "reason": "x", "confirmed": "1"}
    assert browser.post("/deliveries/pause", data=form).status_code == 404
    # The name was typed, and may be that of a person: the log has none that is not configured.
    assert ("pause destination", False) in find_recorded(console_node, "destination/other")
    assert find_recorded(console_node, "destination/no-such-place") == []
    decided = browser.post("/quarantine/drop", data={"id": "987654", "confirmed": "1"})
    assert decided.status_code == 303
    assert find_recorded(console_node, "instance/987654") == [("drop from quarantine", False)]


def test_viewer_sees_no_attributes_of_files(console_node: ConsoleNode) -> None:
    viewer = console_node.web.log_in("viewer")
    assert viewer.get("/quarantine").status_code == 200
    assert viewer.get("/quarantine/1").status_code == 403
    assert viewer.get("/api/v1/quarantine/1/comparison").status_code == 403


def test_wrong_present_passwords_are_delayed_as_at_the_login(console_node: ConsoleNode) -> None:
    browser = console_node.web.log_in("viewer")
    form = {"old": "wrong", "new": "quite another word", "again": "quite another word"}
    statuses = [browser.post("/account/password", data=form).status_code for _ in range(5)]
    assert statuses == [422, 422, 422, 429, 429]


def test_patient_in_searches_actions_and_errors_is_neither_in_the_log_nor_in_answers_of_errors(
    console_node: ConsoleNode,
) -> None:
    name, number = "PLANTED^NAME", "PLANTED-ID"
    browser = console_node.web.log_in("operator")
    assert browser.post("/studies/search", data={"name": name, "patient": number}).status_code == 303
    patient = {"accession_number": name, "patient_id": number}
    assert browser.post("/api/v1/deliveries/search", json=patient).json()["items"] == []
    assert browser.post("/api/v1/deliveries/retry", json=patient).json()["counts"] == {}
    dropped = browser.post("/api/v1/deliveries/drop", json={**patient, "reason": f"{name} moved"})
    assert dropped.json()["counts"] == {}
    errors = [
        browser.post("/api/v1/instances/search", json={**patient, "date_from": number}),
        browser.post("/api/v1/quarantine/search", json={"modality": [name, number]}),
        browser.post("/api/v1/trace", json={"wanted": number}),
        browser.post("/deliveries/drop", data={"destination": "pacs", "dead_reason": name}),
        browser.post("/quarantine/drop", data={"id": number, "confirmed": "1"}),
        browser.get(f"/studies/{number}"),
    ]
    assert [answer.status_code for answer in errors] == [422, 422, 404, 422, 404, 404]
    assert "PLANTED" not in "".join(answer.text for index, answer in enumerate(errors) if index != 2)
    assert "PLANTED" not in console_node.node.log


def test_routes_are_explained_for_a_file_and_for_a_stored_instance(console_node: ConsoleNode) -> None:
    browser = console_node.web.log_in("operator")
    content = max(console_node.node.store.rglob("*.dcm")).read_bytes()
    answer = browser.post("/routes/test", files={"file": ("x.dcm", content + bytes(2_000_000))})
    assert "It goes to pacs" in answer.text
    stored = browser.post("/routes/test", data={"uid": console_node.sop_uids[0]})
    assert "It goes to pacs" in stored.text
    for text in (answer.text, stored.text):
        assert "Changes for pacs" in text
        assert "<ins>&lt;b&gt;NEW&lt;/b&gt;</ins>" in text
