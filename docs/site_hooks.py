"""For mkdocs: pages and files from outside of docs/, links to them, and nothing that another host must send."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
LOADED = re.compile(
    r"<(?:script|img|iframe|link|source|video)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"'\s>]+[^>]*>"
)


def on_files(files: Files, config: Any) -> Files:
    """README and the like become pages; what pages link to outside of docs/ becomes a file of the site."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    pages = [(source_of(file.src_uri), file.content_string) for file in files.documentation_pages()]
    for target in sorted({found for source, text in pages for found in outside(source, text)}):
        files.append(File.generated(config, place_of(target), content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has its files, from those as the repository has them."""
    here = page.file.src_uri
    if here == "index.md":
        page.meta["hide"] = ["toc"]  # its blocks of code are wide

    def moved(match: re.Match[str]) -> str:
        target = repository_path(source_of(here), match[2])
        new = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else place_of(target))
        if not (ROOT / target).is_file():
            return match[0]
        return f"{match[1]}{posixpath.relpath(new, posixpath.dirname(here) or '.')}{match[3] or ''})"

    return LINK.sub(moved, markdown)


def on_post_build(config: Any) -> None:
    """The site works without a network: no page loads anything from another host."""
    for path in Path(config.site_dir).rglob("*.html"):
        for tag in LOADED.findall(path.read_text(encoding="utf-8")):
            if 'rel="canonical"' not in tag:
                raise PluginError(f"{path.name} would load from another host: {tag[:200]}")


def source_of(page: str) -> str:
    """The path in the repository of a page's source."""
    return next((name for name, made in PAGES.items() if made == page), f"docs/{page}")


def repository_path(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def outside(source: str, text: str) -> set[str]:
    """Files of the repository that a page links to and that docs/ does not hold."""
    targets = {repository_path(source, match[2]) for match in LINK.finditer(text)}
    return {
        target for target in targets
        if not target.startswith("docs/") and target not in PAGES and (ROOT / target).is_file()
    }  # fmt: skip


def place_of(target: str) -> str:
    """Where the site keeps it: as text, which a browser shows and does not download."""
    return f"files/{target}.txt"
