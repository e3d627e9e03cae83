"""Links of README, CONTRIBUTING and docs/ lead to files and headings that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchor(heading: str) -> str:
    """Compute the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(page: Path) -> Iterator[str]:
    for link in _LINK.findall(_CODE_BLOCK.sub("", page.read_text())):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists():
            yield f"{link}: no such file"
        elif fragment and fragment not in map(anchor, _HEADING.findall(target.read_text())):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_index_names_every_page() -> None:
    docs = ROOT / "docs"
    linked = {
        (docs / link.partition("#")[0]).resolve() for link in _LINK.findall((docs / "README.md").read_text())
    }
    decisions = docs / "decisions"
    missing = {page for page in docs.rglob("*.md") if page.parent != decisions} - linked
    assert missing - {docs / "README.md"} == set()


def test_tests_named_in_the_table_of_faults_exist() -> None:
    page = (ROOT / "docs/reference/durability.md").read_text()
    cells = [line.rstrip(" |").rpartition(" | ")[2] for line in page.splitlines() if "| tests/" in line]
    missing = []
    for cell in cells:
        path = ""
        for named in cell.split(", "):
            before, _, name = named.rpartition("::")
            path = before or (named if named.endswith(".py") else path)
            text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
            if not text or (name != path and f"def {name}(" not in text):
                missing.append(named)
    assert cells
    assert missing == []


def test_files_of_the_code_that_pages_name_exist() -> None:
    named = re.compile(r"`((?:ingest|workers|ext|tests|benchmarks)/[\w./-]*)`")
    missing = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        if page.name not in {"CHANGELOG.md", "0020-packages-and-names.md"}
        for path in named.findall(page.read_text())
        if not (ROOT / path).exists()
    ]
    assert missing == []


def test_every_command_is_in_the_reference() -> None:
    import click

    from ingest.cli import main

    def leaves(command: click.Command, name: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for each in command.commands:
                yield from leaves(command.commands[each], f"{name} {each}")
        else:
            yield name

    page = (ROOT / "docs/reference/commands.md").read_text()
    assert [name for name in leaves(main, "ingest") if f"`{name}`" not in page] == []


def test_functions_that_keep_invariants_exist() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    missing = []
    for paragraph in re.findall(r"^Kept by: .*?(?=\n\n)", page, re.DOTALL | re.MULTILINE):
        named = re.findall(r"`([\w./]+)`", paragraph)
        files = [ROOT / name for name in named if name.endswith((".py", ".pyx"))]
        files += [file for name in named if name.endswith("/") for file in (ROOT / name).glob("*.py")]
        code = "\n".join(file.read_text() for file in files)
        words = [word for name in named if "/" not in name for word in name.split(".")]
        missing += [word for word in words if not re.search(rf"\b{word}\b", code)]
    assert missing == [], "name today's functions in docs/explanation/architecture.md, Invariants"


def test_files_that_keep_an_invariant_carry_its_number() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    sections = re.findall(r"^### (\d+)\. .*?^(Kept by: .*?)(?=\n\n)", page, re.DOTALL | re.MULTILINE)
    assert len(sections) == 14
    missing = [
        f"{file} lacks INVARIANT {number}"
        for number, paragraph in sections
        for file in re.findall(r"`([\w./]+\.(?:py|pyx))`", paragraph)
        if not re.search(rf"INVARIANT {number}\b", (ROOT / file).read_text())
    ]
    assert missing == [], "mark the line that keeps the invariant with its number"
