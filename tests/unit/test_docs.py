"""Links of README, CONTRIBUTING and docs/ lead to files and headings; pages say what the code does."""

import ast
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


def test_every_command_has_a_route_of_the_api_or_a_reason_to_have_none() -> None:
    import click

    from ingest.cli import main
    from ingest.console.auth.roles import ROUTE_ROLES

    def leaves(command: click.Command, name: str) -> Iterator[str]:
        if not isinstance(command, click.Group) or name in {"ingest certs", "ingest work"}:
            yield name
            return
        if command.invoke_without_command:
            yield name
        for each in command.commands:
            yield from leaves(command.commands[each], f"{name} {each}")

    page = (ROOT / "docs/reference/api.md").read_text()
    rows = dict(re.findall(r"^\| `(ingest [^`]*)` \| (.*) \|$", page, re.MULTILINE))
    assert set(leaves(main, "ingest")) == rows.keys()
    for command, cell in rows.items():
        routes = [f"{method} {path}" for method, path in re.findall(r"`(GET|POST) (/\S*)`", cell)]
        known = [each for each in routes if {each, each.replace(" /", " /api/v1/", 1)} & ROUTE_ROLES.keys()]
        assert routes == known, command
        assert routes or cell.startswith("none: "), command
    listed = page[: page.index("## Commands and routes")]
    described = {
        f"{method} /api/v1{path}" for method, path in re.findall(r"`(GET|POST) (/[^`]*)`", listed)
    } | {"GET /api/v1/openapi.json"}
    assert {route for route in ROUTE_ROLES if "/api/v1/" in route} == described


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


TASKS = sorted(
    [
        ROOT / "README.md",
        *(page for folder in ("how-to", "tutorial") for page in (ROOT / "docs" / folder).glob("*.md")),
    ]
)
NO_COMMANDS = {
    "toml",
    "json",
    "python",
    "lua",
    "mermaid",
    "text",
    "dockerfile",
    "yaml",
    "ini",
    "nginx",
    "haproxy",
}
"""Languages of blocks that hold no commands."""


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.stem)
def test_commands_of_a_page_are_run_or_say_why_not(page: Path) -> None:
    from tests.support.pages import SHELL, read_blocks

    silent = [
        block.text.splitlines()[0]
        for block in read_blocks(page)
        if block.language not in NO_COMMANDS | SHELL and not block.remark
    ]
    assert silent == [], "mark commands as ```sh or ```console, or say <!-- not run: why --> above the block"


def test_pages_that_follow_from_the_code_are_as_the_code_has_them() -> None:
    from tests.support import reference

    old = [path.name for path, text in reference.pages().items() if path.read_text() != text]
    assert old == [], f"write them anew: {reference.COMMAND}"


def test_every_key_has_a_meaning() -> None:
    rows = [
        line for line in (ROOT / "docs/reference/configuration.md").read_text().splitlines() if "|  |" in line
    ]
    assert [row for row in rows if row.startswith("| `")] == []


# --- log events

LEVELS = {"warning", "error", "critical", "exception"}
NAMED_ELSEWHERE = {"ingest/log.py", "workers/backoff.py"}
"""Modules that log the events of their callers, and one of their own."""


def logged_events() -> Iterator[tuple[str, str]]:
    """Every event of level warning and above in the code, with its level."""
    for base in ("ingest", "workers"):
        for path in sorted((ROOT / base).rglob("*.py")):
            if not {"workers", "ext"} & set(path.relative_to(ROOT).parts[1:]):
                yield from _events_of(path)


def _events_of(path: Path) -> Iterator[tuple[str, str]]:
    tree = ast.parse(path.read_text())
    # `write = log.warning if … else log.debug`
    names = {
        target.id: attribute.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
        for attribute in ast.walk(node.value)
        if isinstance(attribute, ast.Attribute) and attribute.attr in LEVELS
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            level, event = node.func.attr, node.args[0]
        elif isinstance(node.func, ast.Name) and node.func.id in names:
            level, event = names[node.func.id], node.args[0]
        elif isinstance(node.func, ast.Name) and node.func.id == "Backoff":
            level, event = "warning", node.args[1]
        else:
            continue
        found = [each.value for each in ast.walk(event) if isinstance(each, ast.Constant)]
        texts = [value for value in found if isinstance(value, str) and re.fullmatch("[a-z0-9_]+", value)]
        assert texts or str(path.relative_to(ROOT)) in NAMED_ELSEWHERE, (
            f"{path}:{node.lineno}: name the event"
        )
        yield from ((text, "error" if level == "exception" else level) for text in texts)


def test_every_warning_and_error_of_the_code_is_in_the_reference() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs/reference/log-events.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    described = {(row[0].strip("`"), level) for row in rows for level in row[1].split(", ")}
    logged = {*logged_events(), ("library", "warning"), ("library", "error")}
    assert sorted(logged - described) == [], "describe them in docs/reference/log-events.md"
    assert sorted(described - logged) == [], "the code has no such event any more"
    assert all(len(row) == 4 and row[2] and row[3] for row in rows)
