"""Fixtures that several folders of tests use; the servers and peers themselves are in tests/support.

pytest loads this file for every test. Fixtures import their helpers themselves, because a pure test
should not wait for the import of TLS, configuration and databases.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import open_databases

if TYPE_CHECKING:
    from tests.support.nodes import Node
    from tests.support.pki import Material
    from tests.support.servers import Valkey


SERVER_FIXTURES = {"make_node", "postgresql_url", "shared_node", "shared_valkey", "start_node"}
"""Fixtures that start servers; `--fast` leaves out the tests that use one, through other fixtures as well."""

STARTS_A_PROCESS = {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}
"""Audit events of the interpreter."""

SHARES = 7


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dicom-ingest")
    group.addoption("--fast", action="store_true", help="leave out tests that start a server or any process")
    group.addoption(
        "--share-of-today",
        action="store_true",
        help=f"run one of {SHARES} shares of the tests; the date chooses it (for tests marked long, in CI)",
    )


def pytest_configure(config: pytest.Config) -> None:
    open_databases.watch_connections()
    if config.option.fast:
        config.pluginmanager.register(NoProcesses())


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Load the settings of properties where a module has properties: importing hypothesis takes a moment."""
    if b"hypothesis" in module_path.read_bytes():
        importlib.import_module("tests.support.properties")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.fast:
        _keep(config, items, lambda item: SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())))
    if config.option.share_of_today:
        today = datetime.datetime.now(datetime.UTC).toordinal() % SHARES
        _keep(config, items, lambda item: zlib.crc32(item.nodeid.encode()) % SHARES == today)


def _keep(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


OPENED_BEFORE = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[OPENED_BEFORE] = open_databases.count_opened()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None and OPENED_BEFORE in item.stash:
        open_databases.excuse_opened_since(item.stash[OPENED_BEFORE])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that leaves a connection of SQLite open. Otherwise the warning would fail a later test."""
    result = yield
    if isinstance(item, pytest.Function):
        item.funcargs.clear()  # the values of fixtures that have ended
    abandoned = open_databases.take_abandoned(item.stash.get(OPENED_BEFORE, 0))
    if abandoned:
        pytest.fail("a connection was not closed:\n" + "\n".join(abandoned), pytrace=False)
    return result


class NoProcesses:
    """Skips a test at the moment at which it starts a process.

    No list or marker says which tests these are. A list would need care, and a new test that starts a process
    would slow the fast loop down until somebody looks.
    """

    def __init__(self) -> None:
        self._test_runs = False
        sys.addaudithook(self._skip_test)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        # Processes that start outside of a test are pytest's own, such as the workers of pytest-xdist.
        self._test_runs = True
        try:
            return (yield)
        finally:
            self._test_runs = False

    def _skip_test(self, event: str, _: object) -> None:
        if event in STARTS_A_PROCESS and self._test_runs:
            pytest.skip("it starts a process")


@pytest.fixture(autouse=True)
def _ledgers_of_tests_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the ledgers that the code of a test makes. The product has to close its own ones."""
    module = sys.modules.get("ingest.ledger.ledger")
    if module is None:
        yield
        return
    made: list[Any] = []
    begin = module.Ledger.__init__

    def begin_and_note(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        if sys._getframe(1).f_globals.get("__name__", "").startswith("tests."):
            made.append(self)

    monkeypatch.setattr(module.Ledger, "__init__", begin_and_note)
    yield
    for ledger in made:
        ledger.close()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Key pairs and trust bundle."""
    from tests.support import pki

    return pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The umask that the tests began with: commands that run in this process may change it."""
    old = os.umask(0)
    os.umask(old)
    yield
    os.umask(old)


@pytest.fixture
def make_node(tmp_path: Path, material: Material) -> Iterator[Callable[..., Node]]:
    """Makes nodes that are not started yet; ends them after the test."""
    from tests.support.nodes import Node, cleaned

    with contextlib.ExitStack() as stack:

        def make_one(name: str = "node", **sections: str) -> Node:
            node = Node(tmp_path / name, material)
            node.configure(**sections)
            return stack.enter_context(cleaned(node))

        yield make_one


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """One running node without destinations."""
    return make_node().start()


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Valkey]:
    """One Valkey for all tests that only need it empty."""
    from tests.support.servers import valkey

    with valkey() as server:
        yield server


@pytest.fixture
def redis_server(shared_valkey: Valkey) -> Iterator[Valkey]:
    """An empty Valkey; a test that kills it starts it again."""
    with contextlib.closing(shared_valkey.client()) as client:
        client.flushall()
    yield shared_valkey
    if shared_valkey.process is None:
        shared_valkey.start()


@pytest.fixture
def second_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than tmp_path."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    folder = Path(tempfile.mkdtemp(dir=shared))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 4 MiB; root alone can make one."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        reason = f"no file system could be mounted: {made.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
