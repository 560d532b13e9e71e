"""Live painting on the built-in model: from the pointer's move to the pixels of a picture that contains it, in parts.

    python -m bench.live [--sizes 128 256] [--edits 40] [--browser | --url http://127.0.0.1:7860] [--record FILE.webp]
    python -m bench.live --browser --trees OTHER_CHECKOUT . --rounds 4
    python -m bench.live --quality STROKES

--quality: how far what is shown while the hand moves is from the finished picture, beside sketches of more steps.
Without --browser: the engine alone, wall and processor milliseconds a sketch, beside the autoencoder's own decoding.
With it: Chromium with real pointer events on a page that this serves (environments that have gradio and playwright are
made by `make test-browser`). --url: the same in the txt2img tab of a running WebUI, with its model and sampler. The
load is printed beside each row: figures of a busy machine are those of a busy machine. --trees: pages of several
checkouts, a stroke each in turns, so that they share what else the machine does; processor time (on Linux) is steadier
than what passes. --record paints once more and writes what the canvas shows as an animated WebP; that takes time of its
own, so nothing is measured meanwhile.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_masknoise.live import Wish, engine
from lib_masknoise.scene import Scene

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
    from lib_masknoise.live import Settings

    pipe = load_pipeline(device="cpu")
    now = 0.0
    live = engine.Engine(LiveHost(pipe), clock=lambda: now, start=False)
    print(row("size", "sketch", "draw", "denoise", "decode", "sum", "CPU", "VAE instead (CPU)"))
    print("|---|---|---|---|---|---|---|---|")
    for size in sizes:
        made: dict[str, list[engine.Picture]] = {"while the hand moves": [], "where it pauses": []}
        spent: dict[str, list[float]] = {name: [] for name in made}
        for i in range(edits + 3):
            points = [[0.1 + 0.8 * k / edits, 0.3 + 0.2 * math.sin(k / 4)] for k in range(min(i, edits) + 1)]
            mask = {"kind": "strokes", "strokes": [{"points": points, "radius": 0.1}]}
            scene = Scene.parse({"concepts": [{"prompt": "an ocean", "mask": mask}]})
            settings = Settings(size=(size, size), prompt="a wheat field")
            heard: list[Any] = []
            live.ask("bench", Wish(scene, settings), heard.append)
            for name in made:
                start = time.process_time()
                live.work()
                if i >= 3 and isinstance(heard[-1], engine.Picture):
                    spent[name].append(time.process_time() - start)
                    made[name].append(heard[-1])
                now += engine.PAUSE
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


# --- How near to the finished picture

PROMPTS = ("an ocean", "lava", "a wheat field", "snow", "red bricks", "a meadow", "coral", "ice")
SEEN = (4, 8, 12)  # edits of a stroke after which the picture is looked at


def quality_table(strokes: int) -> None:
    """Mean absolute difference from the finished picture, of 255, with its standard error over strokes of random
    places, sizes and concepts; both sides paint the same strokes."""
    from lib_masknoise.hosts.diffusers import load_pipeline
    from lib_masknoise.hosts.diffusers.live import LiveHost
    from lib_masknoise.live import GLANCE, STEPS, Settings
    from lib_masknoise.maps import Maps

    host = LiveHost(load_pipeline(device="cpu"))
    chance = random.Random(5)
    sides = {"glances": GLANCE, "sketches instead": STEPS}
    moving: dict[str, list[float]] = {name: [] for name in sides}
    paused: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(strokes):
        base, concept = chance.sample(PROMPTS, 2)
        settings = Settings(size=(128, 128), prompt=base, seed=seed)
        scenes = stroke_scenes(chance, concept)
        finished = {}
        for i in SEEN:
            wish = Wish(scenes[i], settings)
            image, _ = host.full(wish, Maps(scenes[i], (16, 16)), 0, lambda: None)
            finished[i] = np.asarray(image, np.float32)
        for name, steps in sides.items():
            shown = follow(host, [Wish(scene, settings) for scene in scenes], steps)
            gaps = [float(np.abs(np.asarray(shown[i], np.float32) - finished[i]).mean()) for i in SEEN]
            moving[name].append(statistics.mean(gaps))
            paused[name].append(float(np.abs(np.asarray(shown[-1], np.float32) - finished[SEEN[-1]]).mean()))
    print(row("while the hand moves", "meanwhile", "where it pauses"))
    print("|---|---|---|")
    for name in sides:
        print(row(name, spread(moving[name]), spread(paused[name])))
    print(row("more, of the same stroke", spread(differences(moving)), spread(differences(paused))))


def stroke_scenes(chance: random.Random, prompt: str) -> list[Scene]:
    """Without a stroke, and after each edit of one."""
    x, y, phase, radius = (chance.uniform(*bounds) for bounds in ((0.05, 0.4), (0.25, 0.75), (0, 6), (0.06, 0.15)))
    points = [[x + 0.025 * k, y + 0.12 * math.sin(phase + k / 3)] for k in range(SEEN[-1] + 1)]
    strokes = [[{"points": points[: i + 1], "radius": radius}] if i else [] for i in range(len(points))]
    return [Scene.parse({"concepts": [{"prompt": prompt, "mask": {"kind": "strokes", "strokes": s}}]}) for s in strokes]


def follow(host: Any, wishes: Sequence[Wish], steps: int) -> list[Image.Image]:
    """What is shown of each wish as the hand moves on, from the first's finished picture; and after a pause. steps: of
    what is shown meanwhile."""
    now = 0.0
    used = engine.GLANCE
    engine.GLANCE = steps
    try:
        live = engine.Engine(host, clock=lambda: now, start=False)
        shown = []
        for wish in wishes:
            live.ask("bench", wish, lambda event: None)
            live.work()
            while not shown and live.picture("bench").kind != "full":
                now += engine.REST
                live.work()
            shown.append(live.picture("bench").image)
        now += engine.PAUSE
        live.work()
        return [*shown, live.picture("bench").image]
    finally:
        engine.GLANCE = used


def differences(of: dict[str, list[float]]) -> list[float]:
    return [first - second for first, second in zip(*of.values(), strict=True)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


# --- In the browser


@contextmanager
def served(tree: Path) -> Iterator[tuple[str, int]]:
    """The `ui` page of a checkout on the built-in model: its address, and the process that serves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lib_masknoise", "ui", "--port", str(port)]
    server = subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
        yield address, server.pid
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def opened(browser: Any, url: str | None, tree: Path) -> Iterator[tuple[Any, int | None]]:
    """A painter at the page: a running WebUI's, or the `ui` page; and the process that serves it, where it is ours."""
    from tests.browser.painter import Painter

    context = browser.new_context(viewport={"width": 1280, "height": 1400})
    if url:
        yield Painter.open_webui(context, url), None
    else:
        with served(tree) as (address, pid):
            yield Painter.open(context, address), pid


def spent_by(wanted: Callable[[int, str], bool]) -> float:
    """Processor seconds of all processes of which that holds, given their number and command; nan where the system does
    not say."""
    total = 0.0 if Path("/proc/self/stat").exists() else math.nan
    for folder in Path("/proc").glob("[0-9]*") if total == 0 else ():
        try:
            if wanted(int(folder.name), (folder / "cmdline").read_text()):
                user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
                total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue  # it has ended meanwhile
    return total


def load() -> str:
    """Processes that ran or waited to, on average over the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"


def browser_table(args: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import ARGUMENTS
    from tests.browser.painter import EDITOR, MOUNTED

    live = f"{MOUNTED}.live"
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        with ExitStack() as stack:
            pages = {tree: stack.enter_context(opened(browser, args.url, tree)) for tree in args.trees}
            for painter, _ in pages.values():
                painter.page.fill("#txt2img_prompt textarea", "a wheat field")
                painter.set_number("txt2img_steps", args.steps)
                painter.set_number("txt2img_cfg_scale", 4)
                painter.page.wait_for_function(f"{MOUNTED}.values !== undefined")
                painter.add_concept("an ocean")
                painter.brush(size=0.2)
            cpu = ("server CPU a sketch", "browser CPU a move")
            shown = [f"{part} (median)" for part in PARTS]
            print(row("page", "size", "load", "p50", "p95", "moves", "pictures", *cpu, *shown))
            print("|" + "---|" * (9 + len(PARTS)))
            for turn, size in itertools.product(range(args.rounds), args.sizes):
                for tree, (painter, pid) in pages.items():
                    painter.page.bring_to_front()
                    for name in ("width", "height"):
                        painter.set_number(f"txt2img_{name}", size)
                    painter.page.wait_for_function(f"{EDITOR}.width === {size} && {EDITOR}.height === {size}")
                    painter.page.click(f"{painter.scope} .mn-live-toggle")
                    rest(painter, live)
                    painter.js(f"{live}.delays.length = {live}.parts.length = 0")
                    whose = (lambda number, command, pid=pid: number == pid, lambda number, command: "chrom" in command)
                    before = [spent_by(one) for one in whose]
                    stroke(painter, args.edits, 0.2 + 0.25 * (turn % 3))
                    server, chromium = (spent_by(one) - start for one, start in zip(whose, before, strict=True))
                    made = painter.js(f"{live}.parts.length")
                    rest(painter, live)
                    delays, parts = painter.js(f"{live}.delays"), painter.js(f"{live}.parts")
                    figures = [f"{statistics.median(one[part] for one in parts):.0f} ms" for part in PARTS]
                    shown = [f"{percentile(delays, share):.0f} ms" for share in (0.5, 0.95)]
                    spent = [f"{1000 * server / max(made, 1):.0f} ms", f"{1000 * chromium / args.edits:.0f} ms"]
                    print(row(tree, f"{size}²", load(), *shown, len(delays), len(parts), *spent, *figures), flush=True)
                    painter.page.click(f"{painter.scope} .mn-live-toggle")
                    painter.js(f"{EDITOR}.undo()")
            if args.record:
                (painter, _), *_ = pages.values()
                painter.page.click(f"{painter.scope} .mn-live-toggle")
                stroke(painter, args.edits, 0.2)
                film(painter, args.record, live)
        browser.close()


def rest(painter: Any, live: str) -> None:
    """Until the picture itself of what is painted is shown."""
    same = f"{live}.shown?.kind === 'full' && {live}.shown.state === {live}.state() && !{live}.streams?.size"
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
    parser.add_argument("--trees", type=Path, nargs="+", default=[Path()], metavar="FOLDER", help="of checkouts")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="strokes on each page, at each size")
    parser.add_argument("--quality", type=int, metavar="STROKES")
    parser.add_argument("--url", help="of a running WebUI")
    parser.add_argument("--record", type=Path, metavar="FILE.webp")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    if args.quality:
        quality_table(args.quality)
    elif args.browser or args.url:
        browser_table(args)
    else:
        engine_table(args.sizes, args.edits)


if __name__ == "__main__":
    main()
