"""The pictures of docs/canvas.md: the `ui` page with something painted, in the light and in the dark theme.

    python -m tools.screenshots [--out DIR] [--address URL]

Needs gradio, playwright and Chromium (`make test-browser` sets up environments that have the first two). Serves the
page itself unless --address names one that is running.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.painter import EDITOR, Painter

SIZE = {"width": 1280, "height": 900}
SCALE = 1.5


def paint(painter: Painter) -> None:
    """A shore: an ocean with a soft edge, a forest, a sun."""
    painter.set_number("txt2img_width", 256)
    painter.set_number("txt2img_height", 192)
    painter.page.fill("#txt2img_prompt textarea", "a marsh")
    painter.page.wait_for_function(f"{EDITOR}.height === 192")
    painter.add_concept("an ocean")
    painter.brush(name="gradient", gradient="linear")
    painter.drag((0.5, 0.95), (0.5, 0.45))
    painter.add_concept("a forest")
    painter.brush(name="brush", size=0.3, hardness=0.3)
    painter.drag((0.05, 0.6), (0.2, 0.42), (0.35, 0.5))
    painter.drag((0.08, 0.45), (0.2, 0.3))
    painter.add_concept("lava")
    painter.brush(name="ellipse", hardness=0.6)
    painter.drag((0.66, 0.1), (0.88, 0.4))
    painter.brush(name="brush", size=0.2)


def animate(painter: Painter) -> None:
    """Some noise and frames, so that every preview has something to show."""
    painter.set_number("masknoise_noise_visual_strength", 0.5)
    painter.set_number("masknoise_animation_frames", 12)
    painter.page.click("#masknoise_offer_circle")
    painter.page.wait_for_function("document.querySelectorAll('#masknoise_preview figure').length === 4")


def photograph(address: str, out: Path, theme: str, browser: Any) -> None:
    context = browser.new_context(viewport=SIZE, device_scale_factor=SCALE)
    painter = Painter.open(context, f"{address}/?__theme={theme}")
    paint(painter)
    painter.generate()
    animate(painter)
    painter.page.mouse.move(0, 0)
    painter.page.wait_for_timeout(500)
    save(painter.page.screenshot(full_page=True), out / f"page-{theme}.png")
    save(painter.page.locator(".masknoise-canvas").screenshot(), out / f"canvas-{theme}.png")
    context.close()


def save(png: bytes, path: Path) -> None:
    """In 256 colours: a third of the size, and nobody sees the difference."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, kmeans=4).save(path, optimize=True)


@contextmanager
def served() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([sys.executable, "-m", "lib_masknoise", "ui", "--port", str(port)], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/canvas"))
    parser.add_argument("--address")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with nullcontext(options.address) if options.address else served() as address:
            for theme in ("light", "dark"):
                photograph(address, options.out, theme, browser)
        browser.close()


if __name__ == "__main__":
    main()
