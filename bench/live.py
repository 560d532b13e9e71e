"""Live painting on the built-in model: from the pointer's move to the pixels of a picture that contains it, in parts.

    python -m bench.live [--sizes 128 256] [--edits 40] [--browser | --url http://127.0.0.1:7860] [--record FILE.webp]

Without --browser: the engine alone, wall and processor milliseconds a sketch, beside the autoencoder's own decoding.
With it: Chromium with real pointer events on a page that this serves (environments that have gradio and playwright are
made by `make test-browser`). --url: the same in the txt2img tab of a running WebUI, with its model and sampler. The
load is printed beside each row: figures of a busy machine are those of a busy machine. --record paints once more and
writes what the canvas shows as an animated WebP; that takes time of its own, so nothing is measured meanwhile.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

PARTS = ("draw", "denoise", "decode", "transport", "whole")
SERVED = 120  # seconds to wait for the page
TURN = 1 / 30  # seconds between two moves of the pointer


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))] if ordered else math.nan


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


# --- The engine alone


def engine_table(sizes: Sequence[int], edits: int) -> None:
    from lib_masknoise.hosts.diffusers import load_pipeline
    from lib_masknoise.hosts.diffusers.live import LiveHost
    from lib_masknoise.live import Engine, Picture, Settings, Wish
    from lib_masknoise.live.engine import PAUSE
    from lib_masknoise.scene import Scene

    pipe = load_pipeline(device="cpu")
    now = 0.0
    engine = Engine(LiveHost(pipe), clock=lambda: now, start=False)
    print(row("size", "sketch", "draw", "denoise", "decode", "sum", "CPU", "VAE instead (CPU)"))
    print("|---|---|---|---|---|---|---|---|")
    for size in sizes:
        made: dict[str, list[Picture]] = {"while the hand moves": [], "where it pauses": []}
        spent: dict[str, list[float]] = {name: [] for name in made}
        for i in range(edits + 3):
            points = [[0.1 + 0.8 * k / edits, 0.3 + 0.2 * math.sin(k / 4)] for k in range(min(i, edits) + 1)]
            mask = {"kind": "strokes", "strokes": [{"points": points, "radius": 0.1}]}
            scene = Scene.parse({"concepts": [{"prompt": "an ocean", "mask": mask}]})
            settings = Settings(size=(size, size), prompt="a wheat field")
            heard: list[Any] = []
            engine.ask("bench", Wish(scene, settings), heard.append)
            for name in made:
                start = time.process_time()
                engine.work()
                if i >= 3 and isinstance(heard[-1], Picture):
                    spent[name].append(time.process_time() - start)
                    made[name].append(heard[-1])
                now += PAUSE
        latent = torch.randn(1, 4, size // 8, size // 8)
        exact = cpu_time(lambda latent=latent: pipe.vae.decode(latent))
        for name, pictures in made.items():
            median = {part: statistics.median(one.seconds[part] for one in pictures) for part in PARTS[:3]}
            cells = [*median.values(), sum(median.values()), statistics.median(spent[name]), exact]
            print(row(f"{size}²", name, *(f"{1000 * cell:.1f} ms" for cell in cells)))


def cpu_time(work: Callable[[], Any], count: int = 8) -> float:
    """Median processor seconds."""
    spent = []
    with torch.no_grad():
        for _ in range(count):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
    return statistics.median(spent)


# --- In the browser


@contextmanager
def served() -> Iterator[str]:
    """The `ui` page on the built-in model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lib_masknoise", "ui", "--port", str(port)]
    server = subprocess.Popen(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + SERVED
        while True:
            try:
                urllib.request.urlopen(address, timeout=5)
                break
            except OSError:
                if time.monotonic() > end or server.poll() is not None:
                    raise
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def opened(browser: Any, url: str | None) -> Iterator[Any]:
    """A painter at the page: a running WebUI's, or the `ui` page."""
    from tests.browser.painter import Painter

    context = browser.new_context(viewport={"width": 1280, "height": 1400})
    if url:
        yield Painter.open_webui(context, url)
    else:
        with served() as address:
            yield Painter.open(context, address)


def load() -> str:
    """Processes that ran or waited to, on average over the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"


def browser_table(sizes: Sequence[int], edits: int, steps: int, record: Path | None, url: str | None) -> None:
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import ARGUMENTS
    from tests.browser.painter import EDITOR, MOUNTED

    live = f"{MOUNTED}.live"
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        with opened(browser, url) as painter:
            painter.page.fill("#txt2img_prompt textarea", "a wheat field")
            painter.set_number("txt2img_steps", steps)
            painter.set_number("txt2img_cfg_scale", 4)
            painter.page.wait_for_function(f"{MOUNTED}.values !== undefined")
            print(row("size", "load", "p50", "p95", "moves", "pictures", *(f"{part} (median)" for part in PARTS)))
            print("|" + "---|" * (6 + len(PARTS)))
            for i, size in enumerate(sizes):
                for name in ("width", "height"):
                    painter.set_number(f"txt2img_{name}", size)
                painter.page.wait_for_function(f"{EDITOR}.width === {size} && {EDITOR}.height === {size}")
                if i == 0:
                    painter.add_concept("an ocean")
                    painter.brush(size=0.2)
                    painter.page.click(f"{painter.scope} .mn-live-toggle")
                rest(painter, live)
                painter.js(f"{live}.delays.length = {live}.parts.length = 0")
                stroke(painter, edits, 0.2 + 0.25 * i)
                rest(painter, live)
                delays, parts = painter.js(f"{live}.delays"), painter.js(f"{live}.parts")
                figures = [f"{statistics.median(one[part] for one in parts):.0f} ms" for part in PARTS]
                shown = [f"{percentile(delays, share):.0f} ms" for share in (0.5, 0.95)]
                print(row(f"{size}²", load(), *shown, len(delays), len(parts), *figures), flush=True)
            if record:
                film(painter, record, live)
        browser.close()


def rest(painter: Any, live: str) -> None:
    """Until the picture itself of what is painted is shown."""
    same = f"{live}.shown?.kind === 'full' && {live}.shown.state === {live}.state() && {live}.controller === null"
    painter.page.wait_for_function(same, timeout=600_000)


def stroke(painter: Any, moves: int, top: float) -> None:
    """Paint a wave across the picture, as quickly as a hand does."""
    mouse = painter.page.mouse
    painter.canvas.scroll_into_view_if_needed()
    mouse.move(*painter.place(0.05, top))
    mouse.down()
    for i in range(moves):
        along = i / moves
        mouse.move(*painter.place(0.05 + 0.9 * along, top + 0.1 * math.sin(9 * along)))
        time.sleep(TURN)
    mouse.up()


def film(painter: Any, path: Path, live: str) -> None:
    """What the canvas shows while somebody paints lava under the ocean."""
    painter.add_concept("lava")
    painter.brush(size=0.3)
    painter.canvas.scroll_into_view_if_needed()
    mouse, frames = painter.page.mouse, []

    def shoot() -> None:
        shot = painter.page.locator(f"{painter.scope} .mn-stage").screenshot()
        frames.append(Image.open(io.BytesIO(shot)).convert("RGB").resize((360, 360), Image.Resampling.LANCZOS))

    mouse.move(*painter.place(0.9, 0.85))
    mouse.down()
    for i in range(24):
        mouse.move(*painter.place(0.9 - 0.8 * i / 24, 0.8 + 0.08 * math.sin(i / 3)), steps=2)
        painter.page.wait_for_function(f"{live}.shown?.state === {live}.state()", timeout=120_000)
        shoot()
    mouse.up()
    rest(painter, live)
    for _ in range(8):
        painter.page.wait_for_timeout(150)
        shoot()
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=120, loop=0, quality=70, method=6)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], metavar="N")
    parser.add_argument("--edits", type=int, default=40, metavar="N", help="sketches, or moves of the pointer")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="of the picture at rest, in a browser")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--url", help="of a running WebUI")
    parser.add_argument("--record", type=Path, metavar="FILE.webp")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    if args.browser or args.url:
        browser_table(args.sizes, args.edits, args.steps, args.record, args.url)
    else:
        engine_table(args.sizes, args.edits)


if __name__ == "__main__":
    main()
