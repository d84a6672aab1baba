"""HTML reports: one file that opens offline, on a laptop or a phone, in light or dark."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pizero.files import write_bytes

CSS_PIXELS = 0.66
"""Size on the page of one pixel of a picture: they are drawn fine enough for dense screens."""
LONG_CELL = 40
"""Cells with more characters than this may break into lines."""


@dataclass(frozen=True)
class Picture:
    """A PNG; `text` describes it to those who cannot see it, and stands below it when `caption` is set."""

    png: bytes
    text: str
    caption: bool = False


@dataclass(frozen=True)
class Video:
    """An MP4 (H.264), played in a loop without sound."""

    mp4: bytes
    text: str


@dataclass(frozen=True)
class Table:
    """Cells of text. The columns `numbers` are aligned to the right; `total` is a last row in bold."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    total: Sequence[str] = ()


@dataclass(frozen=True)
class Code:
    """A command to copy."""

    text: str


@dataclass(frozen=True)
class Films:
    """Videos in a grid, each played when it is asked for. wide: large enough for text in the picture."""

    videos: Sequence[Video]
    wide: bool = False


@dataclass(frozen=True)
class Place:
    """Where the page's script draws; `text` is there until it does, and without scripts."""

    id: str
    text: str = ""


@dataclass(frozen=True)
class Live:
    """What makes a page answer to its reader: its own script and style, and `data`, JSON that the script reads from the
    element "data".
    """

    script: str
    style: str
    data: str


Block = Picture | Video | Films | Table | Code | Place


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and any number of blocks, in this order."""

    heading: str
    text: str = ""
    blocks: Sequence[Block] = ()


def write_report(
    path: Path, *, title: str, facts: Mapping[str, str], sections: Sequence[Section], live: Live | None = None
) -> None:
    """Writes one self-contained HTML file. All text is escaped. `facts` are the figures at the top: name -> value.

    Scripts are forbidden in it but for that of `live`.
    """
    cards = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    body = "\n".join(_section(section) for section in sections)
    policy, style, script = "", STYLE, ""
    if live is not None:
        policy, style = " script-src 'unsafe-inline';", STYLE + live.style
        safe = live.data.replace("<", "\\u003c")  # in JSON a "<" stands in texts alone
        script = f'<script type="application/json" id="data">{safe}</script>\n<script>{live.script}</script>'
    page = PAGE.format(
        title=escape(title), style=style, cards=f"<dl>{cards}</dl>" if cards else "", body=body, policy=policy,
        script=script,
    )  # fmt: skip
    write_bytes(path, page.encode())


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<section>\n<h2>{escape(section.heading)}</h2>\n{text}\n{blocks}\n</section>"


def _block(block: Block) -> str:
    if isinstance(block, Picture):
        caption = f"<figcaption>{escape(block.text)}</figcaption>" if block.caption else ""
        source, width = _data_uri("image/png", block.png), round(_png_width(block.png) * CSS_PIXELS)
        return f'<figure><img src="{source}" width="{width}" alt="{escape(block.text)}">{caption}</figure>'
    if isinstance(block, Video):
        return _video(block, "autoplay")
    if isinstance(block, Films):
        kind = "films wide-films" if block.wide else "films"
        return f'<div class="{kind}">{"".join(_video(video) for video in block.videos)}</div>'
    if isinstance(block, Place):
        return f'<div id="{escape(block.id)}">{escape(block.text)}</div>'
    if isinstance(block, Code):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    return _table(block)


def _video(video: Video, options: str = "") -> str:
    player = f'<video src="{_data_uri("video/mp4", video.mp4)}" controls {options} loop muted playsinline></video>'
    return f"<figure>{player}<figcaption>{escape(video.text)}</figcaption></figure>"


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str, kind: str = "") -> str:
        inside = ""
        for i, cell in enumerate(cells):
            style = ' class="n"' if i in table.numbers else ' class="long"' if len(cell) > LONG_CELL else ""
            inside += f"<{tag}{style}>{escape(cell)}</{tag}>"
        return f"<tr{kind}>{inside}</tr>"

    # A row with a name in its first cell starts a group.
    rows = [row(cells, "td", ' class="group"' if cells[0] else "") for cells in table.rows]
    total = f"<tfoot>{row(table.total, 'td')}</tfoot>" if table.total else ""
    head = f"<thead>{row(table.header, 'th')}</thead>"
    return f'<div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody>{total}</table></div>'


def _png_width(data: bytes) -> int:
    return int.from_bytes(data[16:20], "big")  # the first chunk of every PNG


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none';{policy} img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
{cards}
</header>
{body}
</main>
{script}
</body>
</html>
"""

STYLE = """
:root { --page: #f3f5f7; --card: #fff; --ink: #1f2933; --muted: #5b6773; --rule: #dfe4e8; --accent: #3b6fb6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --card: #1d232a; --ink: #e6eaee; --muted: #9aa7b4; --rule: #323b45; --accent: #82aee6; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 1.1rem; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 0.4rem; }
p { margin: 0 0 1rem; color: var(--muted); max-width: 70ch; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: 0.75rem; margin: 0 0 1.25rem; }
dl div, section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
dl div { padding: 0.75rem 1rem; }
dt { color: var(--muted); font-size: 0.82rem; }
dd {
  margin: 0.1rem 0 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere;
}
section { padding: 1.25rem; margin: 0 0 1.25rem; }
section > :last-child { margin-bottom: 0; }
figure { margin: 0 0 1rem; }
img, video { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 6px; background: #fff; }
video { width: min(100%, 30rem); background: #000; }
figcaption { color: var(--muted); font-size: 0.85rem; text-align: center; margin-top: 0.4rem; overflow-wrap: anywhere; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 0.75rem; }
.wide-films { grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 600; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.long { white-space: normal; min-width: 13rem; overflow-wrap: anywhere; }
.n { text-align: right; }
.group td { border-top: 1px solid var(--rule); }
td:first-child { font-weight: 600; }
tfoot td { border-top: 2px solid var(--muted); font-weight: 700; }
pre { background: var(--page); border: 1px solid var(--rule); border-radius: 6px; padding: 0.75rem 1rem;
  margin: 0 0 1rem; overflow-x: auto;
  font: 0.88rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 40rem) {
  main { padding: 1.25rem 0.75rem 2rem; }
  h1 { font-size: 1.4rem; }
  section { padding: 1rem 0.85rem; }
  dl { grid-template-columns: 1fr 1fr; }
}
@media (prefers-color-scheme: dark) { img { filter: brightness(0.92); } }
@media print { section { break-inside: avoid; } body { background: #fff; } }
"""
