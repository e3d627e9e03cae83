"""Access to the console: logins, sessions, roles, and requests that come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.consoles import ConsoleProcess


@pytest.fixture(scope="module")
def local_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """A console without users."""
    from tests.support import consoles

    folder = tmp_path_factory.mktemp("local")
    _, port = consoles.write_config(folder)
    with consoles.running_console(folder, port) as console:
        yield console


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """A console with a user of each role, who has the name of the role."""
    from tests.support import consoles

    folder = tmp_path_factory.mktemp("users")
    config, port = consoles.write_config(folder)
    consoles.add_users(config)
    with consoles.running_console(folder, port) as running:
        yield running


def test_console_without_users_asks_for_the_token_of_its_file(local_console: ConsoleProcess) -> None:
    from tests.support.consoles import post_login

    token = local_console.local_token
    assert (local_console.config.console_dir / "token").stat().st_mode & 0o777 == 0o600
    browser = local_console.browse()
    assert browser.get("/").headers["location"] == "/login?next=/"
    assert post_login(browser, "", "wrong").status_code == 401
    assert browser.get("/").status_code == 303
    assert post_login(browser, "", token).status_code == 303
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "10.0.0.1"]
)
def test_console_of_this_host_serves_no_other_host_name(local_console: ConsoleProcess, name: str) -> None:
    program = local_console.call(local_console.local_token)
    assert program.get("/api/v1/status", headers={"Host": name}).status_code == 421
    assert program.get("/api/v1/status").status_code == 200


def test_unsafe_request_of_another_origin_changes_nothing(console: ConsoleProcess) -> None:
    browser = console.log_in("viewer")
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": ""},
    ):
        assert browser.post("/logout", headers=headers).status_code == 403, headers
    assert browser.get("/").status_code == 200
    assert browser.post("/logout", headers={"Origin": console.url}).status_code == 303
    assert browser.get("/").status_code == 303
