"""What pages ask by themselves: it costs the same for one viewer and for many, and searches no spool."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.consoles import ConsoleNode
    from tests.support.persisting import Site

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "ingest/console/templates"
LIVE = {"X-Live": "1"}

PAGES = {
    "studies.html": "/studies?sort=-date",
    "study.html": "/studies/{study_uid}",
    "instance.html": "/instances/{id}",
    "deliveries.html": "/deliveries",
    "delivery_list.html": "/deliveries/list?destination=pacs",
    "quarantine.html": "/quarantine",
    "peers.html": "/peers",
}
"""A page of each template whose list follows the node."""

VIEWERS = 20

WATCHED = """
import asyncio, collections, json, sys, threading
from pathlib import Path
import httpx
from ingest.config.reader import load_config
from ingest.console.app import build_app, build_console
from ingest.console.live.snapshot import SnapshotSource
from ingest.supervisor.console_watch import ConsoleLink

seen, here = collections.Counter(), threading.local()

class Source(SnapshotSource):
    def _take(self):
        here.takes_snapshot = True
        try:
            return super()._take()
        finally:
            here.takes_snapshot = False

def note(event, arguments):
    if event in {"os.scandir", "os.listdir", "subprocess.Popen", "socket.connect", "sqlite3.connect"}:
        if not getattr(here, "takes_snapshot", False):
            path = str(arguments[0]) if event.startswith("os.") else ""
            seen[event + (" spool" if "spool" in path else "")] += 1

path, token, viewers, pages = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
config = load_config(path)
console = build_console(config, path, ConsoleLink())
console.snapshots = Source(config)
app = build_app(console)

async def main():
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/html"}
    url = f"http://localhost:{config.console.port}"
    transport = httpx.ASGITransport(app)
    result = {}
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers, timeout=60) as client:
        for page in pages:
            person = await client.get(page)
            before, seen_by_person = seen.copy(), seen.copy()
            live = {"X-Live": "1"}
            answers = await asyncio.gather(*(client.get(page, headers=live) for _ in range(viewers)))
            by_viewers = seen - before
            result[page] = {
                "status": sorted({person.status_code, *(each.status_code for each in answers)}),
                "person": dict(seen_by_person), "live": dict(by_viewers),
            }
            seen.clear()
    print(json.dumps(result))

sys.addaudithook(note)
asyncio.run(main())
for pool in console.pools:
    pool.close()
"""
"""A console in a process of its own that counts what its pages ask of the system, apart from the snapshot."""


def test_list_of_pages_has_every_template_that_follows_the_node() -> None:
    found = {path.name for path in TEMPLATES.glob("*.html") if "data-live-list" in path.read_text()}
    assert found == PAGES.keys()


def test_refresh_searches_no_spool_and_many_viewers_share_one_reading(console_node: ConsoleNode) -> None:
    node = console_node.node
    number = node.query("SELECT max(id) FROM instances WHERE study_uid = ?", console_node.study_uid)[0][0]
    paths = [each.format(study_uid=console_node.study_uid, id=number) for each in PAGES.values()]
    paths.append("/overview/charts?range=day")
    token = console_node.web.tokens["operator"]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, node.config_path, token, str(VIEWERS), json.dumps(paths)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for path, found in result.items():
        assert found["status"] == [200], path
        live = found["live"]
        assert (
            not {"os.scandir spool", "os.listdir spool", "subprocess.Popen", "socket.connect"} & live.keys()
        ), path
        for event, count in live.items():
            assert count <= found["person"].get(event, 0), (path, event)
    # The test sees a search: a person who opens a study makes one.
    assert result[paths[1]]["person"]["os.scandir spool"] > 0


def test_page_that_refreshes_itself_gets_nothing_that_is_not_shared(console_node: ConsoleNode) -> None:
    program = console_node.web.call(console_node.web.tokens["admin"])
    for path in ("/configuration", "/account", "/api/v1/status", "/metrics"):
        assert program.get(path, headers=LIVE).status_code == 400, path
        assert program.get(path).status_code == 200, path
    stranger = console_node.web.browse()
    answer = stranger.get("/studies", headers=LIVE)
    assert (answer.status_code, "location" in answer.headers) == (401, False)


def test_refreshed_list_says_which_version_it_shows(console_node: ConsoleNode) -> None:
    browser = console_node.web.log_in("viewer")
    versions = [
        re.search(r'data-version="(\w+)"', browser.get("/studies", headers=headers).text)
        for headers in ({}, LIVE)
    ]
    assert all(versions)


def test_refreshes_of_many_pages_keep_a_third_of_one_thread_busy_at_most() -> None:
    from ingest.console.live.shared import BUSY_FACTOR, SharedReadings

    now = busy = 0.0
    shared = SharedReadings(lambda: now)

    async def read() -> None:
        nonlocal now, busy
        now, busy = now + 0.2, busy + 0.2

    async def refresh() -> None:
        nonlocal now
        for turn in range(5000):
            for page in range(20):
                await shared.read(page, f"version {turn}", read)
            now += 0.02

    asyncio.run(refresh())
    assert 0.2 < busy / now < 1 / BUSY_FACTOR + 0.02


def test_viewers_wait_for_one_reading_and_get_its_version_and_its_error() -> None:
    from ingest.console.live.shared import SharedReadings

    now, count = 0.0, 0
    shared = SharedReadings(lambda: now)

    async def read() -> int:
        nonlocal count, now
        count += 1
        await asyncio.sleep(0.01)
        now += 1.0
        if count == 2:
            raise ValueError("the ledger is away")
        return count

    async def view() -> None:
        nonlocal now
        found = await asyncio.gather(*(shared.read("page", f"v{number}", read) for number in range(10)))
        assert {(each.value, each.version) for each in found} == {(1, "v0")}
        assert (await shared.read("page", "v9", read)).version == "v0", "it is not old enough yet"
        now += 5.0
        for _ in range(2):
            with pytest.raises(ValueError, match="away"):
                await shared.read("page", "v9", read)
        now += 5.0
        assert (await shared.read("page", "v9", read)).value == 3

    asyncio.run(view())
    assert count == 3


def test_full_spool_does_not_hold_up_the_page_of_a_study(site: Site) -> None:
    from ingest.console.pages.studies import _read_study
    from tests.support.instances import Made

    made = Made()
    site.receive(made)
    site.work()
    first = site.config.spool_dir / site.spooled(made.file)
    for number in range(10_000):
        first.with_name(f"{number:032x}.dcm").hardlink_to(first)
    began = time.monotonic()
    details, way = _read_study(site.config, made.study, None, None)
    assert time.monotonic() - began < 2
    assert details is not None
    assert way.trace is not None
    assert way.search is not None
    assert way.search.found
    assert not way.search.is_complete
    assert "the spool has more entries than were looked at" in way.trace.notes


def test_last_search_of_the_spool_is_kept_for_refreshes_and_is_said_to_be_old() -> None:
    from ingest.console.live.shared import SEARCHES_MAX, SpoolSearches
    from ingest.operations.waiting import SpoolSearch

    searches = SpoolSearches()
    searches.keep("/studies/1", SpoolSearch((), is_complete=False))
    assert searches.find("/studies/1") == SpoolSearch((), is_complete=False, is_fresh=False)
    assert not searches.find("/studies/2").is_fresh
    for number in range(SEARCHES_MAX):
        searches.keep(f"/studies/{number + 10}", SpoolSearch((), is_complete=True))
    assert searches.find("/studies/1").is_complete, "the oldest one is forgotten"
