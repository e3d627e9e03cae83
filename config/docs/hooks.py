"""Hooks of MkDocs: navigation, files outside docs/, and scripts that the site carries with it.

docs/ stays readable on a plain git host. Three things there need a translation for the site:

- The navigation is the list of pages in docs/README.md, so that no page is listed twice.
- Links may leave docs/. A page beside it (CHANGELOG.md) becomes a page of the site. Another file is copied to
  `files/`. A folder becomes a page that lists its files.
- Material for MkDocs loads Mermaid, and a help for searching from file://, from a host of the internet. The
  site has its own copies, from config/docs/node_modules.
"""

import logging
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MODULES = Path(__file__).parent / "node_modules"
PROJECT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
SCRIPTS = {
    "assets/mermaid.min.js": "mermaid/dist/mermaid.min.js",
    "assets/iframe-worker.js": "iframe-worker/shim/index.js",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_MARK = re.compile(r"(?:\d+\.|[-*]) (?=\S)")
_ENTRY = re.compile(
    r"^(?:## (?P<part>.+)|### (?P<group>.+)|- \[(?P<title>[^]]+)\]\((?P<page>[^)#]+\.md)\).*)$"
)

log = logging.getLogger("mkdocs.hooks.dicom-ingest")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the navigation from docs/README.md, and require the scripts."""
    missing = [str(path) for path in (MODULES / name for name in SCRIPTS.values()) if not path.is_file()]
    if missing:
        raise PluginError(f"{missing[0]} is missing; run: npm ci --prefix config/docs")
    config.nav = read_navigation((DOCS / "README.md").read_text())
    return config


def read_navigation(index: str) -> list[Any]:
    """Read headings and list entries of the index as a navigation; parts without an entry are left out."""
    parts: list[tuple[str, list[Any]]] = []
    into: list[Any] = []
    for line in index.splitlines():
        found = _ENTRY.match(line)
        if found is None:
            continue
        if found["part"]:
            into = []
            parts.append((found["part"], into))
        elif found["group"]:
            into = []
            parts[-1][1].append({found["group"]: into})
        elif found["page"] == "decisions/README.md":
            records = re.findall(
                r"^\| \[(\d+)\]\((\S+)\) \| (.+) \|$", (DOCS / found["page"]).read_text(), re.M
            )
            pages = [
                {f"{number} {title.replace('`', '')}": f"decisions/{page}"} for number, page, title in records
            ]
            into.append({found["title"]: [{"All": found["page"]}, *pages]})
        else:
            into.append({found["title"]: _site_path((DOCS / found["page"]).resolve())})
    parts = [(name, entries) for name, entries in parts if entries]
    return [{"Start": "README.md"}, *({name: entries} for name, entries in parts)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages and files that stand outside docs/, and the site's own scripts and style."""
    for name in PROJECT_PAGES:
        files.append(File.generated(config, _site_path(ROOT / name), abs_src_path=str(ROOT / name)))
    for name, source in SCRIPTS.items():
        files.append(File.generated(config, name, abs_src_path=str(MODULES / source)))
    style = Path(__file__).parent / "site.css"
    files.append(File.generated(config, "assets/site.css", abs_src_path=str(style)))
    linked: set[Path] = set()
    for page in list(files.documentation_pages()):
        source = Path(str(page.abs_src_path))
        linked |= {
            target for link in _LINK.finditer(source.read_text()) if (target := _target(source, link[2]))
        }
    for path in sorted(
        each for each in linked if not each.is_relative_to(DOCS) and each.name not in PROJECT_PAGES
    ):
        _add_outside(path, files, config)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links that leave docs/ or start outside it, and lists for Python-Markdown."""
    markdown = widen_lists(markdown)
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    source = Path(str(page.file.abs_src_path)) if page.file.abs_src_path else None
    if source is None:
        return markdown
    starts_outside = not source.is_relative_to(DOCS)

    def rewrite(link: re.Match[str]) -> str:
        target = _target(source, link[2])
        if target is None or (target.is_relative_to(DOCS) and not starts_outside):
            return link[0]
        path = os.path.relpath(_site_path(target), os.path.dirname(page.file.src_uri) or ".")
        return f"{link[1]}{path}{link[3] or ''}{link[4]}"

    return _LINK.sub(rewrite, markdown)


def widen_lists(markdown: str) -> str:
    """Rewrite lists of CommonMark for Python-Markdown.

    Python-Markdown wants a blank line before a list, and four spaces before everything that belongs to an
    item. CommonMark, and with it every git host, takes as many spaces as the mark of the item has.
    """
    lines: list[str] = []
    width, in_fence = 0, False
    for line in markdown.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        mark = None if in_fence and not width else _MARK.match(line)
        if mark:
            if not width and lines and lines[-1].strip():
                lines.append("")
            width = len(mark[0])
        elif width and line.strip() and indent < width and not in_fence:
            # A line without indentation continues the paragraph of an item, unless a blank line is before it.
            width = width if lines[-1].strip() else 0
        elif width and line.strip():
            line = " " * (4 - width) + line  # noqa: PLW2901
        if line.lstrip(" ").startswith("```"):
            in_fence = not in_fence
        lines.append(line)
    return "\n".join(lines) + "\n"


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Load Mermaid on the pages that have a diagram, before Material's own script looks for it."""
    if 'class="mermaid"' not in output:
        return output
    up = "../" * page.url.count("/")
    script = f'<script src="{up}assets/mermaid.min.js"></script>'
    before, found, after = output.rpartition('<script src="' + up + "assets/javascripts/bundle")
    if not found:
        raise PluginError("the theme's script is not where Mermaid has to stand before it")
    return before + script + found + after


def on_post_build(config: MkDocsConfig) -> None:
    """Check the built site: links lead to files and anchors, and nothing is loaded from another host."""
    site = Path(config.site_dir)
    # Only a server can show this page, and its links begin at the root of one.
    (site / "404.html").unlink(missing_ok=True)
    pages = {path: _Links(path.read_text()) for path in site.rglob("*.html")}
    for path, links in sorted(pages.items()):
        for tag, url in links.urls:
            fault = _find_fault(site, path, tag, url, pages)
            if fault:
                log.warning("%s: %s: %s", path.relative_to(site), url, fault)


def _find_fault(site: Path, page: Path, tag: str, url: str, pages: "dict[Path, _Links]") -> str:
    parts = urlsplit(url)
    if parts.scheme in {"data", "mailto", "javascript"}:
        return ""
    if parts.scheme or parts.netloc:
        if tag != "a":
            return "is loaded from another host"
        return "" if parts.scheme in {"http", "https"} and "." in parts.netloc else "is no address"
    target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_relative_to(site.resolve()) or not target.is_file():
        return "is no file of the site"
    known = pages.get(target)
    if parts.fragment and known is not None and unquote(parts.fragment) not in known.anchors:
        return "is no anchor of that page"
    return ""


class _Links(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[tuple[str, str]] = []
        self.anchors = {"", "__search", "__drawer"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[name] or "" for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if values.get(name):
                self.urls.append((tag, str(values[name])))


def _target(source: Path, link: str) -> Path | None:
    """Return the file or folder that a link leads to; None for addresses and what is missing."""
    if re.match(r"[a-z]+:", link):
        return None
    target = Path(os.path.normpath(source.parent / unquote(link)))
    return target if target.exists() else None


def _site_path(target: Path) -> str:
    if target.is_relative_to(DOCS):
        return str(target.relative_to(DOCS))
    if target.name in PROJECT_PAGES:
        return f"project/{target.name.lower()}"
    # MkDocs leaves out names that begin with a dot, and would read *.md as a page.
    path = "/".join(part.lstrip(".") for part in target.relative_to(ROOT).parts)
    if target.is_dir():
        return f"files/{path}/README.md"
    return f"files/{path}.txt" if target.suffix in {".md", ""} else f"files/{path}"


def _add_outside(path: Path, files: Files, config: MkDocsConfig) -> None:
    if not path.is_dir():
        if files.get_file_from_path(_site_path(path)) is None:
            files.append(File.generated(config, _site_path(path), abs_src_path=str(path)))
        return
    names = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    for each in names:
        if files.get_file_from_path(_site_path(each)) is None:
            files.append(File.generated(config, _site_path(each), abs_src_path=str(each)))
    entries = "".join(f"- [{each.name}]({Path(_site_path(each)).name})\n" for each in names)
    content = f"# {path.relative_to(ROOT)}\n\n{entries}"
    page = File.generated(config, _site_path(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV)
    files.append(page)
