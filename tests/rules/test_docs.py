"""What the documentation links to and runs is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    broken: list[str] = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            known = name.startswith("http") or (target.exists() and (not anchor or anchor in anchors(target)))
            broken += [] if known else [f"{page.name}: {link}"]
    assert not broken


def test_scripts_that_are_named_exist() -> None:
    texts = [*PAGES, ROOT / "Makefile", *(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    named = {(path.name, script) for path in texts for script in re.findall(r"benchmarks/[\w/]+\.py", path.read_text())}
    assert len(named) > 20
    assert not [pair for pair in named if not (ROOT / pair[1]).is_file()]
