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
    from pathlib import Path

    import httpx

    from tests.support.consoles import ConsoleNode
    from tests.support.nodes import Node
    from tests.support.pki import Material

API = "/api/v1"
WEBHOOK_CALLS = {"/webhooks/test", "/webhooks/replay"}


@pytest.fixture
def admin(console_node: ConsoleNode) -> httpx.Client:
    return console_node.web.call(console_node.web.tokens["admin"])


def find_ids(admin: httpx.Client, study_uid: str) -> list[int]:
    found = admin.post(f"{API}/instances/search", json={"study_uid": study_uid}).json()
    return [each["id"] for each in found["items"]]


def execute(node: Node, sql: str, *values: object) -> None:
    """Change the ledger behind the node's back."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(node.data / "ledger.db", timeout=10)) as ledger, ledger:
        ledger.execute(sql, values)


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
        "/deliveries": {"to": ["pacs"], "everything": True, "dry_run": True},
        "/deliveries/release": {"destination": "pacs"},
    }
    # Tests of their own: what changes much, and what this node has no settings for.
    left_out = {"/reload", "/ledger/jobs", "/alerts/test", "/audit", "/audit/test", *WEBHOOK_CALLS} | {
        each.path for each in OPERATIONS if each.path.startswith("/quarantine/") and each.tag == "quarantine"
    }
    left_out -= {"/quarantine/search"}
    for operation in OPERATIONS:
        if operation.path in left_out or operation.path.endswith(("/drop", "/retry")):
            continue
        if operation.tag == "access" and operation.method == "POST":
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
    [changed] = stored["changes"]
    assert (changed["destination"], changed["error"]) == ("pacs", "")
    assert [(one["attribute"], one["after"]) for one in changed["changes"]] == [("StationName", "<b>NEW</b>")]
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


def test_stored_instances_are_delivered_to_a_destination_that_is_named(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    uid, path = console_node.study_uid, f"{API}/deliveries"
    assert admin.post(path, json={"to": ["pacs"]}).status_code == 422, "no condition"
    assert admin.post(path, json={"to": ["nowhere"], "everything": True}).status_code == 404
    assert admin.post(path, json={"to": [], "everything": True}).status_code == 422
    node, count = console_node.node, len(console_node.sop_uids)
    execute(node, "UPDATE deliveries SET state = 'delivered' WHERE destination = 'pacs'")
    body = {"to": ["pacs"], "study_uid": uid, "accession_number": "ACC-4711"}
    [left] = admin.post(path, json=body).json()["items"]
    assert left == {"destination": "pacs", "new": 0, "again": 0, "left": {"delivered": count}}
    for dry_run in (True, False):
        answer = admin.post(path, json={**body, "again": True, "dry_run": dry_run}).json()
        assert answer["items"][0]["again"] == count
    assert {state for [state] in node.query("SELECT state FROM deliveries WHERE destination = 'pacs'")} != {
        "delivered"
    }
    events = [each for each in node.events("console_action") if each["target"] == "deliveries/create"]
    assert events[-1]["counts"] == {"pacs": count}
    assert "ACC-4711" not in node.log


def test_retention_is_planned_and_run_as_a_job(console_node: ConsoleNode, admin: httpx.Client) -> None:
    from tests.support.nodes import eventually

    plan = admin.get(f"{API}/retention").json()
    assert (plan["go"], plan["go_count"]) == ([], 0)
    assert plan["left_bytes"] == plan["kept_bytes"] > 0
    assert admin.post(f"{API}/ledger/jobs", json={"kind": "retention"}).status_code == 200

    def job() -> Any:
        found = admin.get(f"{API}/ledger/jobs").json()
        return found["kind"] == "retention" and found["state"] == "done" and found

    assert eventually(job, 20)["result"]["kept_bytes"] == plan["kept_bytes"]


def test_what_the_configuration_has_not_cannot_be_tested(admin: httpx.Client) -> None:
    answer = admin.post(f"{API}/alerts/test")
    assert (answer.status_code, "no [[alerts]]" in answer.text) == (404, True)
    for method, path in (("GET", "audit"), ("POST", "audit/test")):
        answer = admin.request(method, f"{API}/{path}")
        assert (answer.status_code, "no [audit]" in answer.text) == (422, True)


def test_tests_of_alerts_webhooks_and_audit_reach_their_receivers(tmp_path: Path, material: Material) -> None:
    from ingest.ledger import Ledger
    from ingest.ledger.outbox import NewEvent
    from tests.support import consoles
    from tests.support.audit import Rsyslog, audit_section
    from tests.support.nodes import eventually
    from tests.support.receivers import mail_server, secret_file, server_context, web_server

    with contextlib.ExitStack() as running:
        web = running.enter_context(web_server(server_context(material)))
        mail = running.enter_context(mail_server(None))
        repository = Rsyslog(tmp_path / "rsyslog", material)
        running.callback(repository.stop)
        repository.start()
        config, port = consoles.write_config(
            tmp_path / "node",
            more=f"""
[tls.out]
certificate = "{material.certificate("node")}"
private_key = "{material.key("node")}"
trusted = ["{material.trusted}"]
[[alerts]]
name = "hook"
type = "webhook"
url = "https://localhost:{web.port}/path-with-token"
secret_file = "{secret_file(tmp_path)}"
tls = "out"
[[alerts]]
name = "mail"
type = "email"
host = "localhost"
port = {mail.port}
security = "none"
sender = "node@example.org"
recipients = ["pacs@example.org"]
[[webhooks]]
name = "ris"
url = "https://localhost:{web.port}/path-with-token"
secret_file = "{secret_file(tmp_path)}"
events = ["instance.stored"]
tls = "out"
{audit_section(repository.port, tls="out")}""",
        )
        token = consoles.add_users(config)["admin"]
        console = running.enter_context(consoles.running_console(tmp_path / "node", port))
        admin = console.call(token)

        both = admin.post(f"{API}/alerts/test", json={})
        assert [(each["alert"], each["sent"], each["cause"]) for each in both.json()["items"]] == [
            ("hook", True, ""),
            ("mail", True, ""),
        ], both.text
        assert both.json()["items"][0]["event_id"] == web.received[0].payload["id"]
        assert len(mail.mails) == 1
        one = admin.post(f"{API}/alerts/test", json={"name": "hook"})
        assert [each["alert"] for each in one.json()["items"]] == ["hook"]
        assert web.types() == ["test", "test"]
        assert len(mail.mails) == 1
        hooked = admin.post(f"{API}/webhooks/test", json={})
        assert [(each["webhook"], each["sent"]) for each in hooked.json()["items"]] == [("ris", True)]
        assert web.received[-1].payload["type"] == "dicom_ingest.test"
        assert "path-with-token" not in both.text + one.text + hooked.text

        opened = Ledger(config.ledger_url)
        opened.migrate()
        opened.alert_groups.record({}, [NewEvent("id-1", "webhooks.ris", '{"type": "x"}', 1)], 1)
        opened.outbox.expire(2, 2)
        opened.close()
        assert admin.get(f"{API}/webhooks").json()["items"][0]["dead"] == 1
        assert admin.get(f"{API}/webhooks/events").json()["items"][0]["event_id"] == "id-1"
        replay = {"name": "ris", "event_ids": ["id-1", "id-2"]}
        assert admin.post(f"{API}/webhooks/replay", json=replay).json() == {"replayed": 1}
        assert admin.post(f"{API}/webhooks/replay", json={"name": "rsi"}).status_code == 404

        sent = admin.post(f"{API}/audit/test")
        assert sent.status_code == 200, sent.text
        assert f"localhost:{repository.port}" in sent.json()["repository"]
        [said] = eventually(lambda: repository.said)
        assert (said.event, said.outcome, said.detail) == (
            "Security Alert",
            "0",
            "this is a test of the audit trail",
        )
        assert len(said.requestors) == 1
        assert "for-admin" in said.requestors[0], "the token's name"


def test_users_are_added_changed_and_removed(console_node: ConsoleNode, admin: httpx.Client) -> None:
    from tests.support.consoles import post_login

    users, web = f"{API}/users", console_node.web
    name, password = "nurse-anna", "a long enough password"
    added = admin.post(users, json={"name": name, "role": "viewer", "password": password})
    assert added.json() == {"name": name, "role": "viewer"}
    assert admin.post(users, json={"name": name, "role": "viewer", "password": password}).status_code == 409
    assert admin.post(users, json={"name": "short", "password": "short"}).status_code == 409
    browser = web.log_in(name, password)
    assert browser.get("/configuration").status_code == 403
    assert admin.post(f"{users}/{name}/role", json={"role": "admin"}).json()["role"] == "admin"
    assert browser.get("/").status_code == 303, "the session has ended"
    assert web.log_in(name, password).get(users).json()["items"] == admin.get(users).json()["items"]
    admin.post(f"{users}/{name}/password", json={"password": "another long password"})
    assert post_login(web.browse(), name, password).status_code == 401
    web.log_in(name, "another long password")
    left = admin.post(f"{users}/{name}/remove").json()["items"]
    assert name not in [each["name"] for each in left]
    assert admin.post(f"{users}/{name}/remove").status_code == 404
    for path, body in (("admin/remove", None), ("admin/role", {"role": "viewer"})):
        answer = admin.post(f"{users}/{path}", json=body)
        assert (answer.status_code, "last administrator" in answer.text) == (409, True)
    assert admin.post(users, json={"name": "MUSTERMANN", "password": "short"}).status_code == 409
    assert admin.post(f"{users}/MUSTERMANN/remove").status_code == 404
    events = [each for each in console_node.node.events("console_action") if each["action"] == "change users"]
    assert {(each["target"], each["succeeded"]) for each in events} == {
        (f"user/{name}", True),
        ("user", False),
    }
    log = web.log
    assert not any(word in log for word in ("MUSTERMANN", password, "another long password", "argon2"))


def test_tokens_are_made_listed_without_their_text_and_removed(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    tokens = f"{API}/tokens"
    made = admin.post(tokens, json={"name": "reports", "role": "viewer", "days": 30}).json()
    assert made["expires_at"]
    program = console_node.web.call(made["token"])
    assert program.get(f"{API}/status").status_code == 200
    assert program.get(tokens).status_code == 403
    listed = admin.get(tokens)
    assert made["token"] not in listed.text
    assert "sha256" not in listed.text
    [entry] = [each for each in listed.json()["items"] if each["name"] == "reports"]
    assert (entry["role"], entry["is_expired"]) == ("viewer", False)
    assert admin.post(f"{tokens}/reports/remove").status_code == 200
    assert program.get(f"{API}/status").status_code == 401
    assert admin.post(f"{tokens}/reports/remove").status_code == 404
    assert made["token"] not in console_node.web.log


def test_value_that_a_page_cannot_show_is_a_defect_whose_log_does_not_quote_it(
    console_node: ConsoleNode, admin: httpx.Client
) -> None:
    from tests.support.nodes import eventually

    node = console_node.node
    [number, *_] = find_ids(admin, console_node.study_uid)
    [[size]] = node.query("SELECT size FROM instances WHERE id = ?", number)
    execute(node, "UPDATE instances SET size = 'MUSTERMANN' WHERE id = ?", number)
    try:
        answer = console_node.web.call(console_node.web.tokens["viewer"]).get(f"/instances/{number}")
    finally:
        execute(node, "UPDATE instances SET size = ? WHERE id = ?", size, number)
    assert answer.status_code == 500
    assert "MUSTERMANN" not in answer.text
    [defect, *_] = eventually(lambda: node.events("console_defect"), 10, "the defect is logged")
    assert defect["route"] == "/instances/{number}"
    assert "MUSTERMANN" not in node.log


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
