"""The JSON API on a real node: what it lists, what it changes, and what it makes of hostile values."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from tests.support.consoles import ConsoleNode

API = "/api/v1"


@pytest.fixture
def admin(console_node: ConsoleNode) -> httpx.Client:
    return console_node.web.call(console_node.web.tokens["admin"])


def find_ids(admin: httpx.Client, study_uid: str) -> list[int]:
    found = admin.post(f"{API}/instances/search", json={"study_uid": study_uid}).json()
    return [each["id"] for each in found["items"]]


def test_description_is_valid_openapi_and_has_every_route_of_the_api() -> None:
    from ingest.console.api.v1 import describe
    from ingest.console.app import list_endpoints

    validator = pytest.importorskip(
        "openapi_spec_validator", reason="`make setup` installs it", exc_type=ImportError
    )
    validator.validate(describe())
    described = {
        f"{method.upper()} {path}" for path, methods in describe()["paths"].items() for method in methods
    }
    served = {f"{each.method} {each.path}" for each in list_endpoints() if each.path.startswith(API)}
    assert served - described == {f"GET {API}/openapi.json"}


def test_answers_hold_what_the_description_promises(console_node: ConsoleNode, admin: httpx.Client) -> None:
    from ingest.console.api.v1 import OPERATIONS

    [number, *_] = find_ids(admin, console_node.study_uid)
    values = {"study_uid": console_node.study_uid, "id": number, "name": "pacs"}
    bodies: dict[str, Any] = {
        "/routes/test": {"id": number},
        "/check": {"connect": True},
        "/trace": {"wanted": console_node.study_uid},
    }
    left_out = {"/reload", "/ledger/jobs"} | {
        each.path for each in OPERATIONS if each.path.startswith("/quarantine/") and each.tag == "quarantine"
    }
    left_out -= {"/quarantine/search"}
    for operation in OPERATIONS:
        if operation.path in left_out or operation.path.endswith(("/drop", "/retry")):
            continue
        path = API + operation.path.format(**values)
        options = {"json": bodies.get(operation.path, {})} if operation.body else {}
        answer = admin.request(operation.method, path, **options)
        assert answer.status_code == 200, (path, answer.text)
        operation.output.model_validate(answer.json())


def test_study_is_listed_with_its_series_instances_and_deliveries(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    uid = console_node.study_uid
    [study] = admin.post(f"{API}/studies/search", json={"study_uid": uid}).json()["items"]
    assert study["instances"] == len(console_node.sop_uids)
    [series] = admin.get(f"{API}/studies/{uid}/series").json()["items"]
    assert series["instances"] == len(console_node.sop_uids)
    first = admin.post(f"{API}/instances/search", json={"study_uid": uid, "limit": 1}).json()
    more = admin.post(
        f"{API}/instances/search", json={"study_uid": uid, "limit": 1, "before": first["next"]}
    ).json()
    found = [each["sop_instance_uid"] for page in (first, more) for each in page["items"]]
    assert sorted(found) == sorted(console_node.sop_uids)
    listed = admin.post(f"{API}/deliveries/search", json={"destination": "pacs", "study_uid": uid}).json()
    assert {each["sop_instance_uid"] for each in listed["items"]} == set(console_node.sop_uids)


def test_pause_retry_and_resume_reach_the_ledger_with_the_name_of_the_person(
    console_node: ConsoleNode,
) -> None:
    operator = console_node.web.log_in("operator")
    paused = operator.post(f"{API}/destinations/pacs/pause", json={"reason": "moved"}).json()
    assert (paused["paused"], paused["paused_by"], paused["pause_reason"]) == (True, "operator", "moved")
    assert operator.post(f"{API}/deliveries/retry", json={}).status_code == 422
    assert operator.post(f"{API}/deliveries/retry", json={"destination": "pacs"}).status_code == 200
    resumed = operator.post(f"{API}/destinations/pacs/resume").json()
    assert (resumed["was_paused"], resumed["paused"]) == (True, False)
    dropped = operator.post(f"{API}/deliveries/drop", json={"destination": "pacs", "reason": "gone"}).json()
    assert dropped["counts"] == {"pacs": len(console_node.sop_uids)}
    listed = operator.post(f"{API}/deliveries/search", json={"states": ["dropped"]}).json()
    assert {each["last_error"] for each in listed["items"]} == {"operator: gone"}
    actions = [event["action"] for event in console_node.node.events("console_action")]
    assert {"pause destination", "retry deliveries", "resume destination", "drop deliveries"} <= set(actions)
    assert operator.post(f"{API}/destinations/nowhere/pause", json={}).status_code == 404


def test_downloaded_file_is_the_stored_one_under_a_harmless_name(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    [number, *_] = find_ids(admin, console_node.study_uid)
    answer = admin.get(f"{API}/instances/{number}/file")
    assert answer.content[128:132] == b"DICM"
    assert any(path.read_bytes() == answer.content for path in console_node.node.store.rglob("*.dcm"))
    assert answer.headers["content-type"] == "application/dicom"
    assert re.fullmatch(r'attachment; filename="[0-9.]+\.dcm"', answer.headers["content-disposition"])


def test_text_that_a_person_typed_into_a_field_is_not_in_the_log(console_node: ConsoleNode) -> None:
    operator = console_node.web.call(console_node.web.tokens["operator"])
    assert operator.post(f"{API}/destinations/MUSTERMANN/pause", json={}).status_code == 404
    for field in ("study_uid", "destination"):
        operator.post(f"{API}/deliveries/retry", json={field: "MUSTERMANN"})
    browser = console_node.web.log_in("operator")
    for values in ({"study_uid": "MUSTERMANN"}, {"destination": "MUSTERMANN"}):
        browser.post("/deliveries/retry", data={**values, "confirmed": "1"})
    assert "MUSTERMANN" not in console_node.web.log
    uid = console_node.study_uid
    operator.post(f"{API}/deliveries/retry", json={"study_uid": uid})
    actions = [event.get("conditions", "") for event in console_node.node.events("console_action")]
    assert f"study_uid={uid}" in actions


def test_question_for_the_headers_of_a_file_is_no_download(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    [number, *_] = find_ids(admin, console_node.study_uid)

    def count_downloads() -> int:
        actions = console_node.node.events("console_action")
        return sum(event["target"] == f"instance/{number}" for event in actions)

    before = count_downloads()
    answer = admin.head(f"{API}/instances/{number}/file")
    assert (answer.status_code, answer.content) == (200, b"")
    assert count_downloads() == before
    file = admin.get(f"{API}/instances/{number}/file")
    assert answer.headers["content-length"] == str(len(file.content))
    assert count_downloads() == before + 1


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static//etc/passwd",
        "/static/%00",
        f"{API}/instances/..%2f..%2fetc%2fpasswd/file",
        f"{API}/instances/1%20OR%201=1/file",
        f"{API}/instances/99999999999999999999/file",
        f"{API}/studies/1' OR '1'='1",
    ],
)
def test_path_that_tries_to_leave_finds_nothing(admin: httpx.Client, path: str) -> None:
    assert admin.get(path).status_code in {404, 422}


def test_store_key_that_leaves_the_store_is_not_opened(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    [number, *_] = find_ids(admin, console_node.study_uid)
    change = "UPDATE instances SET store_key = ? WHERE id = ?"
    path = console_node.node.data / "ledger.db"
    with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as ledger:
        [[key]] = ledger.execute("SELECT store_key FROM instances WHERE id = ?", (number,))
        ledger.execute(change, ("../../../../../../etc/passwd", number))
        try:
            answer = admin.get(f"{API}/instances/{number}/file")
        finally:
            ledger.execute(change, (key, number))
    assert answer.status_code == 503
    assert "root:" not in answer.text


def test_hostile_criteria_match_nothing_and_stay_out_of_the_log(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    for criteria in (
        {"calling_ae": "' OR '1'='1"},
        {"calling_ae": "CT1'; DROP TABLE instances; --"},
        {"calling_ae": "PLANTED-IN-A-SEARCH"},
    ):
        answer = admin.post(f"{API}/instances/search", json=criteria)
        assert answer.json()["items"] == [], criteria
    assert find_ids(admin, console_node.study_uid)
    assert "PLANTED-IN-A-SEARCH" not in console_node.node.log


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 422),
        (b"[" * 60_000, 400),
        (b'{"limit": 1000000}', 422),
        (b'{"limit": -1}', 422),
        (b'{"study_uid": "1.2; DROP"}', 422),
        (b'{"calling_ae": "\\u0000"}', 422),
        (b'{"calling_ae": "\\ud800"}', 422),
        (b'{"unknown": 1}', 422),
        (b'{"since": "yesterday"}', 422),
        (b"x" * 100_000, 413),
    ],
)
def test_malformed_body_is_refused_with_a_problem(admin: httpx.Client, content: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = admin.post(f"{API}/instances/search", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"title", "status", "detail", "remedy"} <= set(answer.json())
    assert "Traceback" not in answer.text


def test_routes_are_explained_for_a_stored_and_for_a_sent_file(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    [number, *_] = find_ids(admin, console_node.study_uid)
    content = admin.get(f"{API}/instances/{number}/file").content
    stored = admin.post(f"{API}/routes/test", json={"id": number}).json()
    sent = admin.post(f"{API}/routes/test-file", content=content, params={"calling_ae": "CT9"}).json()
    assert stored["destinations"] == sent["destinations"] == ["pacs"]
    assert admin.post(f"{API}/routes/test-file", content=b"no DICOM").status_code == 422


def test_configuration_is_shown_with_what_a_reload_would_change(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    path = console_node.node.config_path
    before = path.read_text()
    assert admin.get(f"{API}/configuration/changes").json() == {"items": [], "faults": []}
    path.write_text(before.replace("connect_seconds = 1", "connect_seconds = 2"))
    try:
        [change] = admin.get(f"{API}/configuration/changes").json()["items"]
        assert change == {"key": "destinations[pacs].connect_seconds", "before": 1.0, "after": 2.0}
        path.write_text(before + "\nwrong = 1\n")
        assert admin.get(f"{API}/configuration/changes").json()["faults"]
    finally:
        path.write_text(before)


def test_ledger_is_verified_in_the_background(console_node: ConsoleNode, admin: httpx.Client) -> None:
    from tests.support.nodes import eventually

    assert admin.post(f"{API}/ledger/jobs", json={"kind": "verify"}).json()["state"] in {"running", "done"}

    def result() -> Any:
        job = admin.get(f"{API}/ledger/jobs").json()
        return job["state"] == "done" and job["result"]

    assert eventually(result, 20)["files"] == len(console_node.sop_uids)


def test_metrics_and_health_need_no_login_on_this_host(console_node: ConsoleNode) -> None:
    client = console_node.web.browse(headers={})
    assert "dicom_ingest_" in client.get("/metrics").text
    assert client.get("/live").json() == {"ok": True}
    assert client.get("/ready").json() == {"ok": True}
    detailed = console_node.web.call(console_node.web.tokens["viewer"]).get("/ready").json()
    assert detailed["ok"] is True
    assert detailed["roles"]["listen"]["running"] == 1


def test_reload_answers_and_the_login_outlives_it(console_node: ConsoleNode) -> None:
    from tests.support.nodes import eventually

    browser = console_node.web.log_in("admin")
    before = len(console_node.node.events("console_ready"))
    answer = browser.post(f"{API}/reload")
    assert answer.status_code == 200, answer.text
    assert answer.json()["generation"] == 2
    eventually(lambda: len(console_node.node.events("console_ready")) > before, 30)
    assert browser.get("/").status_code == 200


def test_nothing_of_the_patient_is_in_the_log(console_node: ConsoleNode) -> None:
    log = console_node.node.log
    for text in ("alert(1)", "etc/passwd", "ACC-4711", "onerror"):
        assert text not in log
    assert json.loads(log.splitlines()[-1])
    assert os.stat(console_node.node.data / "console" / "users.json").st_mode & 0o777 == 0o600
