"""The pages of the console in Debian's Chromium, on a real node with real senders and destinations."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support.browsers import find_violations, log_in, open_context, require_axe, running_browser
from tests.support.nodes import eventually
from tests.support.pki import Material
from tests.support.scenes import PASSWORD, STUDIES, Scene, Study, fill, running_scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = {
    "overview": "/",
    "studies": "/studies",
    "deliveries": "/deliveries",
    "delivery list": "/deliveries/list?state=dead",
    "quarantine": "/quarantine",
    "peers": "/peers",
    "routes": "/routes",
    "configuration": "/configuration",
    "account": "/account",
    "users": "/users",
}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Scene]:
    """One node with its destinations for all tests of this file."""
    with running_scene(tmp_path_factory.mktemp("scene"), material) as running:
        fill(running)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


class Watched:
    """A page with everything that it asked for and complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or "data"))
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
        page.on("dialog", self._refuse)

    def _note(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{self.page.url}: {message.text}")

    def _refuse(self, dialog: Any) -> None:
        self.complaints.append(f"{self.page.url}: a script has opened a dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def open_page(browser: Browser, scene: Scene) -> Iterator[Any]:
    """Opens pages of a user; at the end no page may have complained or left this host."""
    contexts, watched = [], []

    def open_one(user: str = "admin", **options: Any) -> Page:
        context = open_context(browser, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        watched.append(Watched(page))
        log_in(page, scene.url, user, PASSWORD)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [line for each in watched for line in each.complaints] == []
    assert {host for each in watched for host in each.hosts} == {"localhost"}


def confirm(page: Page, button: str, within: str = "main", **fields: str) -> None:
    """Press a button, answer the question in the dialog, and wait for the page behind it."""
    page.locator(within).get_by_role("button", name=button, exact=True).first.click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    for name, value in fields.items():
        dialog.locator(f"[name={name}]").fill(value)
    with page.expect_navigation():
        dialog.locator("button.primary").click()


def list_details(page: Page, url: str) -> dict[str, str]:
    """Return the addresses of one study, one instance and one quarantined instance."""
    found = {}
    page.goto(f"{url}/studies")
    found["study"] = str(page.locator("tbody th a").first.get_attribute("href"))
    page.goto(url + found["study"])
    found["instance"] = str(page.locator("a.uid[href^='/instances/']").first.get_attribute("href"))
    page.goto(f"{url}/quarantine")
    found["quarantined"] = str(page.locator("tbody th a").first.get_attribute("href"))
    return found


@pytest.mark.parametrize("mode", ["light", "dark", "phone"])
def test_every_page_renders_without_complaint_and_axe_finds_no_violation(
    scene: Scene, open_page: Any, mode: str
) -> None:
    axe = require_axe()
    page = open_page(phone=mode == "phone", dark=mode == "dark")
    for name, path in {**PAGES, **list_details(page, scene.url)}.items():
        response = page.goto(scene.url + path)
        assert response is not None
        assert response.status == 200, name
        page.wait_for_selector("[data-live-state][data-state=on]", state="attached")
        assert find_violations(page, axe) == [], f"{name}, {mode}"
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) <= 0, f"{name}, {mode}"


def test_login_page_and_error_page_have_no_violation(scene: Scene, browser: Browser) -> None:
    axe = require_axe()
    context = open_context(browser)
    page = context.new_page()
    page.goto(f"{scene.url}/login")
    assert find_violations(page, axe) == []
    page.fill("#user", "admin")
    page.fill("#password", "wrong")
    page.click("button.primary")
    assert "wrong" in page.locator("[role=alert]").inner_text()
    log_in(page, scene.url, "viewer", PASSWORD)
    response = page.goto(f"{scene.url}/configuration")
    assert response is not None
    assert response.status == 403
    assert "it needs admin" in page.locator("main").inner_text()
    assert find_violations(page, axe) == []
    context.close()


def test_stored_image_appears_within_two_seconds(scene: Scene, open_page: Any) -> None:
    page, overview = open_page(), open_page()
    page.goto(f"{scene.url}/studies")
    overview.goto(f"{scene.url}/")
    for each in (page, overview):
        each.wait_for_selector("[data-live-state][data-state=on]", state="attached")
    study = Study(700, "US", "Live^Test", "P-700", "US heart", ("Cine",), 1)
    before = len(scene.node.stored())
    scene.send(study.write(scene.folder / "live"), "US3")
    eventually(lambda: len(scene.node.stored()) > before, 10, "it is stored")
    began = time.monotonic()
    page.locator(f"a[href='/studies/{study.uid}']").wait_for(timeout=2000)
    assert time.monotonic() - began < 2
    store = overview.locator(".flow.wide a[href='/studies'] .big")
    eventually(lambda: store.text_content() == str(before + 1), 4, "the picture shows it")


def test_retry_pause_and_resume_of_a_destination(scene: Scene, open_page: Any) -> None:
    page = open_page("operator")
    page.goto(f"{scene.url}/deliveries")
    dead = scene.node.query("SELECT count(*) FROM deliveries WHERE state = 'dead'")[0][0]
    assert dead
    row = "section:has(h2:text('by reason')) tbody tr"
    confirm(page, "Retry", row)
    assert f"{dead} deliveries will be sent again" in page.locator(".toast").first.inner_text()
    eventually(
        lambda: scene.node.query("SELECT count(*) FROM deliveries WHERE state = 'dead'")[0][0] == dead,
        20,
        "the old viewer refuses them again",
    )
    confirm(page, "Pause", "tr:has(a:text-is('archive'))", reason="disk is replaced")
    assert page.locator("tr:has(a:text-is('archive'))").get_by_text("paused", exact=True).is_visible()
    assert scene.node.query("SELECT paused_by, pause_reason FROM circuits WHERE destination = 'archive'") == [
        ("operator", "disk is replaced")
    ]
    confirm(page, "Resume", "tr:has(a:text-is('archive'))")
    assert scene.node.query("SELECT paused_at FROM circuits WHERE destination = 'archive'") == [(0,)]


def test_dead_deliveries_are_dropped_with_a_reason(scene: Scene, open_page: Any) -> None:
    page = open_page("operator")
    page.goto(f"{scene.url}/deliveries")
    confirm(page, "Drop", "section:has(h2:text('by reason')) tbody tr", reason="the viewer is gone")
    assert "dropped" in page.locator(".toast").first.inner_text()
    errors = scene.node.query("SELECT DISTINCT last_error FROM deliveries WHERE state = 'dropped'")
    assert errors == [("dropped by operator: the viewer is gone",)]


def test_quarantined_instance_is_released_after_a_question(scene: Scene, open_page: Any) -> None:
    scene.send(STUDIES[3].write(scene.folder / "second", pixel=3, only=1), "CT1")
    uid = f"{STUDIES[3].uid}.1.1"
    eventually(
        lambda: scene.node.query(
            "SELECT 1 FROM instances WHERE state = 'quarantined' AND sop_instance_uid = ?", uid
        ),
        10,
        "it is set aside",
    )
    page = open_page("operator")
    page.goto(f"{scene.url}/quarantine")
    page.locator(f"th a:text-is('{uid}')").click()
    page.get_by_role("button", name="Release").click()
    page.locator("dialog[open]").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    confirm(page, "Release")
    assert "is released" in page.locator(".toast").first.inner_text()
    states = scene.node.query(
        "SELECT state, count(*) FROM instances WHERE sop_instance_uid = ? GROUP BY state ORDER BY state", uid
    )
    assert dict(states) == {"quarantined": 1, "replaced": 1, "stored": 1}
    assert scene.node.query("SELECT size FROM instances WHERE state = 'stored' AND sop_instance_uid = ?", uid)


def test_search_finds_a_patient_and_leaves_no_trace_in_addresses(scene: Scene, open_page: Any) -> None:
    page = open_page("viewer")
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    for field, value in (("name", "lindqvist"), ("patient", "P-2044*"), ("accession", STUDIES[0].accession)):
        page.goto(f"{scene.url}/studies")
        page.fill(f"#f-{field}", value)
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name="Clear").wait_for()
        found = page.locator("#list tbody th").all_inner_texts()
        assert any("CT thorax with contrast" in text for text in found), field
        assert not any("MR knee" in text for text in found), field
        assert page.locator(f"#f-{field}").input_value() == value
        page.reload()
        assert page.locator(f"#f-{field}").input_value() == value
    joined = " ".join(addresses).lower()
    assert not any(word in joined for word in ("lindqvist", "p-2044", STUDIES[0].accession.lower()))
    log = scene.node.log.lower()
    assert not any(word in log for word in ("lindqvist", "p-2044", STUDIES[0].accession.lower()))


def test_refused_callers_are_grouped_with_their_remedy(scene: Scene, open_page: Any) -> None:
    page = open_page("viewer")
    page.goto(f"{scene.url}/peers")
    refused = page.locator("section:has(h2:text('Refused'))")
    eventually(lambda: page.reload() and "UNKNOWN9" in refused.inner_text(), 15, "the refusal is shown")
    assert "CN=stranger" in refused.inner_text()
    assert "Remedy: " in refused.inner_text()
    called = page.locator("section:has(h2:text('Who called')) tbody tr:has-text('CT1')").first
    assert "CN=peer" in called.inner_text()
    assert "valid" in called.inner_text()


def test_file_is_downloaded_by_an_operator_only(scene: Scene, open_page: Any) -> None:
    uid = f"{STUDIES[4].uid}.1.1"
    number = scene.node.query("SELECT id FROM instances WHERE sop_instance_uid = ?", uid)[0][0]
    page = open_page("operator")
    page.goto(f"{scene.url}/instances/{number}")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    content = Path(str(waiting.value.path())).read_bytes()
    assert content == scene.node.stored()[uid].read_bytes()
    viewer = open_page("viewer")
    viewer.goto(f"{scene.url}/instances/{number}")
    assert viewer.get_by_role("link", name="Download").count() == 0
    assert viewer.request.get(f"{scene.url}/api/v1/instances/{number}/file").status == 403


def test_viewer_sees_no_actions_and_may_do_none(scene: Scene, open_page: Any) -> None:
    page = open_page("viewer")
    quarantined = list_details(page, scene.url)["quarantined"]
    for path in ("/deliveries", "/quarantine", "/routes", quarantined):
        page.goto(scene.url + path)
        assert page.locator("main form").count() == 0, path
    assert page.locator("nav a[href='/configuration']").count() == 0
    page.goto(f"{scene.url}/account")
    token = page.locator("[name=csrf_token]").first.input_value()
    before = scene.node.deliveries()
    for path in ("/deliveries/drop", "/deliveries/pause", "/quarantine/drop", "/configuration/reload"):
        form = {"csrf_token": token, "confirmed": "1", "destination": "archive", "reason": "x", "id": "1"}
        assert page.request.post(scene.url + path, form=form).status == 403, path
    assert scene.node.deliveries() == before


def test_action_without_the_token_of_the_page_does_nothing(scene: Scene, open_page: Any) -> None:
    page = open_page("operator")
    form = {"confirmed": "1", "destination": "archive", "reason": "x"}
    assert page.request.post(f"{scene.url}/deliveries/pause", form=form).status == 403
    assert page.request.post(f"{scene.url}/deliveries/pause", form={**form, "csrf_token": "0"}).status == 403
    assert scene.node.query("SELECT 1 FROM circuits WHERE destination = 'archive' AND paused_at > 0") == []


def test_logout_ends_the_session_and_its_stream(scene: Scene, open_page: Any) -> None:
    page = open_page("operator")
    cookies = page.context.cookies()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.context.add_cookies(cookies)
    page.goto(f"{scene.url}/studies")
    assert urlsplit(page.url).path == "/login"


def test_markup_in_the_attributes_of_an_image_does_nothing(scene: Scene, open_page: Any) -> None:
    study = Study(
        701, "CT", f"{SCRIPT}^Eve", f"{SCRIPT}", f"{SCRIPT}\"'><img src=x onerror=alert(1)>", (SCRIPT,), 1
    )
    scene.send(study.write(scene.folder / "markup"), "CT1")
    eventually(lambda: f"{study.uid}.1.1" in scene.node.stored(), 10, "it is stored")
    page = open_page("admin")
    for path in ("/studies", f"/studies/{study.uid}"):
        page.goto(scene.url + path)
        assert page.locator("main script, main img").count() == 0
    page.goto(f"{scene.url}/routes")
    page.set_input_files("#file", scene.folder / "markup" / "701-1-1-7.dcm")
    page.get_by_role("button", name="Test").click()
    page.get_by_text("It goes to archive").wait_for()
    assert page.locator("main script, main img").count() == 0


def test_route_tester_explains_a_stored_instance(scene: Scene, open_page: Any) -> None:
    page = open_page("operator")
    page.goto(f"{scene.url}/routes")
    page.fill("#uid", f"{STUDIES[1].uid}.1.1")
    page.get_by_role("button", name="Test").click()
    answer = page.locator("section[role=status]")
    assert answer.locator("h2").inner_text() == "It goes to archive, legacy, research"
    assert re.search(r"night shift\s+passed", answer.inner_text())
    assert "modality: MR" in answer.inner_text()


def test_configuration_shows_what_a_reload_would_change_and_reloads(scene: Scene, open_page: Any) -> None:
    page = open_page("admin")
    text = scene.node.config_path.read_text()
    scene.node.config_path.write_text(text.replace("stable_seconds = 20", "stable_seconds = 25"))
    page.goto(f"{scene.url}/configuration")
    change = page.locator("tr:has-text('node.stable_seconds')")
    assert change.locator("td").all_inner_texts() == ["20", "25"]
    page.get_by_role("button", name="Check and connect").click()
    result = page.locator("section[role=status]")
    result.wait_for(timeout=30_000)
    assert "answered the C-ECHO" in result.inner_text()
    assert "telerad: " in result.inner_text()
    scene.node.config_path.write_text(text)
    page.goto(f"{scene.url}/configuration")
    assert "The file says what is in force" in page.locator("main").inner_text()


def test_charts_have_their_figures_as_a_table_for_keyboard_and_screen_reader(
    scene: Scene, open_page: Any
) -> None:
    page = open_page("viewer")
    page.goto(f"{scene.url}/")
    figures = page.locator("details.figures:has([data-figures=backlog])")
    figures.wait_for(timeout=50_000)  # the monitor takes a sample every 20 s, and the page asks as often
    figures.locator("summary").focus()
    page.keyboard.press("Enter")
    table = figures.get_by_role("table", name="What waits, instances")
    assert table.locator("thead th").all_inner_texts() == [
        "Time",
        "In the spool",
        "In the queue",
        "To deliver",
    ]
    times = table.locator("tbody th").all_inner_texts()
    assert times == sorted(times, reverse=True)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", each) for each in times)
    assert all(re.fullmatch(r"\d+(\.\d)?|–", each) for each in table.locator("td").all_inner_texts())
    assert find_violations(page, require_axe()) == []


def test_pages_work_without_javascript(scene: Scene, browser: Browser) -> None:
    context = open_context(browser, java_script_enabled=False)
    page = context.new_page()
    log_in(page, scene.url, "operator", PASSWORD)
    for path in ("/", "/studies", "/deliveries", "/quarantine"):
        response = page.goto(scene.url + path)
        assert response is not None
        assert response.status == 200
    page.goto(f"{scene.url}/deliveries")
    page.locator("tr:has(a:text-is('archive'))").get_by_role("button", name="Pause").click()
    assert page.locator("main h2").inner_text() == "Pause archive?"
    page.get_by_role("link", name="Cancel").click()
    assert urlsplit(page.url).path == "/deliveries"
    context.close()


def test_keyboard_alone_reaches_content_and_opens_a_question(scene: Scene, open_page: Any) -> None:
    page = open_page("operator")
    page.goto(f"{scene.url}/deliveries")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == "Pause":
            break
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    assert page.locator("dialog h2").inner_text().startswith("Pause ")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
