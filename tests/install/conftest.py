"""Fixtures of the tests of installation. All of them carry the marker `install`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.install.artefacts import Dist, Venv
    from tests.install.chroots import Chroot
    from tests.install.containerfile import Image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("install")
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    """The sdist and the wheel, built once."""
    from tests.install.artefacts import build_dist

    return build_dist(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def venv(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """A virtual environment with the wheel and no extra; tests may not change what is installed."""
    from tests.install.artefacts import create_venv

    made = create_venv(tmp_path_factory.mktemp("home") / "venv")
    made.install(dist)
    return made


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chroot]:
    """Makes the base system of a release of Debian, or returns the one of an earlier test."""
    from tests.install import chroots

    made: dict[str, Chroot] = {}

    def make(release: str) -> Chroot:
        if release not in made:
            made[release] = chroots.make_base(tmp_path_factory.mktemp(release) / "base", release)
        return made[release]

    return make


@pytest.fixture
def make_chroot(make_base: Callable[[str], Chroot], tmp_path: Path) -> Iterator[Callable[..., Chroot]]:
    """Makes Debian systems for one test: `make_chroot("bookworm")`."""
    from tests.install import chroots

    with contextlib.ExitStack() as stack:

        def make(release: str = "bookworm") -> Chroot:
            return stack.enter_context(chroots.copied(make_base(release), tmp_path / f"{release}-root"))

        yield make


@pytest.fixture(scope="session")
def image(make_base: Callable[[str], Chroot], tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The container image, built once; tests may not change its root."""
    from tests.install.image import build_image

    return build_image(make_base, tmp_path_factory.mktemp("image"))
