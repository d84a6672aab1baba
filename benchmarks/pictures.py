"""The pictures in docs/ of the pages that pizero makes, taken by headless Chromium.

python benchmarks/pictures.py CHECKPOINT     docs/inspect.png, docs/playground.png, of a policy of tabletop
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from chromium import Browser  # noqa: E402

from pizero.serving.playground.server import PlaygroundServer  # noqa: E402
from pizero.serving.running import background  # noqa: E402
from pizero.types import UserError  # noqa: E402
from pizero.workflows.insight import InsightConfig, inspect_inside  # noqa: E402
from pizero.workflows.playground import players  # noqa: E402


def take(browser: Browser, element: str, path: Path) -> None:
    """A picture of one element of the open page."""
    box = browser.run(
        f"(() => {{ const b = document.querySelector({element!r}).getBoundingClientRect();"
        " return {x: b.x + scrollX - 16, y: b.y + scrollY - 16, width: b.width + 32, height: b.height + 32} })()"
    )
    clip = {**box, "scale": 1}
    data = browser.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    path.write_bytes(base64.b64decode(data))


def inspect_picture(browser: Browser, checkpoint: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "insight.html"
        inspect_inside(checkpoint, InsightConfig(env="tabletop", seed=4), page)
        browser.open(page.as_uri(), width=900)
        browser.wait("document.querySelectorAll('#looks canvas').length === 4")
        browser.run("chosen.step = 5; redraw()")
        take(browser, "#looks", path)


def playground_picture(browser: Browser, checkpoint: str, path: Path) -> None:
    """The policy beside itself without the text that it writes, or alone where it writes none."""
    try:
        playing = players(checkpoint, "flat")
    except UserError:
        playing = players(checkpoint)
    with background(lambda: PlaygroundServer(playing)) as server:  # type: ignore[arg-type, return-value]
        browser.open(server.uri.replace("ws", "http", 1) + "/", width=1000)
        browser.wait("typeof lanes !== 'undefined' && lanes.length > 0")
        if len(playing) > 1:
            browser.run("send({do: 'scene', scene: 'tabletop-long', task: 'swap', seed: 3})")
        browser.wait("state.lanes[0].steps >= 7 && performance.now() - lanes[0].since > span()")
        take(browser, "main", path)


if __name__ == "__main__":
    window = Browser()
    try:
        playground_picture(window, sys.argv[1], ROOT / "docs" / "playground.png")
        inspect_picture(window, sys.argv[1], ROOT / "docs" / "inspect.png")
    finally:
        window.close()
