"""Debian's Chromium, driven by Playwright, for the pages of the console."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.peers import require_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

AXE = Path(__file__).parents[1] / "interop/axe/node_modules/axe-core/axe.min.js"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


def require_axe() -> str:
    """Return the source of axe-core; skips where it is not installed, fails in CI."""
    if not AXE.exists():
        reason = "axe-core is not installed; run npm ci in tests/interop/axe"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return AXE.read_text()


@contextlib.contextmanager
def running_browser() -> Iterator["Browser"]:
    """Run a headless Chromium."""
    program = require_program("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


def open_context(
    browser: "Browser", *, phone: bool = False, dark: bool = False, **more: Any
) -> "BrowserContext":
    """Open a window of its own, with its own cookies."""
    return browser.new_context(
        viewport=PHONE if phone else DESKTOP,
        color_scheme="dark" if dark else "light",
        is_mobile=phone,
        has_touch=phone,
        device_scale_factor=2 if phone else 1,
        reduced_motion="reduce",
        **more,
    )


def log_in(page: "Page", url: str, user: str, password: str) -> None:
    """Fill in the login page."""
    page.goto(f"{url}/login")
    page.fill("#user", user)
    page.fill("#password", password)
    page.click("button.primary")
    page.wait_for_selector("nav", state="attached")


def find_violations(page: "Page", axe: str) -> list[tuple[str, str]]:
    """Return what axe-core objects to: the rule, and the first element.

    The policy of the page allows no script of ours, so it is run by the debugger.
    """
    debugger = page.context.new_cdp_session(page)
    try:
        debugger.send("Runtime.evaluate", {"expression": axe})
        answer = debugger.send(
            "Runtime.evaluate",
            {
                "expression": "axe.run().then(found => JSON.stringify(found.violations.map("
                "each => [each.id, each.nodes[0].html.slice(0, 200)])))",
                "awaitPromise": True,
                "returnByValue": True,
            },
        )
    finally:
        debugger.detach()
    return [(rule, html) for rule, html in json.loads(answer["result"]["value"])]
