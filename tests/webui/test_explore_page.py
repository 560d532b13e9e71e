"""Explore by mouse: the accordion in the WebUI's txt2img, in Chromium.

Skipped without Playwright and Chromium. MASKNOISE_WEBUI_SHOTS: a folder for pictures of the views.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.webui import hosts

SHOTS = os.environ.get("MASKNOISE_WEBUI_SHOTS", "")
OURS = "#script_txt2img_masknoise_"
PATIENCE = 400_000  # milliseconds: the model may be large and the machine small
TYPED = """([selector, value]) => {
    const field = document.querySelector(selector);
    field.value = value;
    for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, {bubbles: true}));
}"""


class Page:
    """txt2img with *Explore* open."""

    def __init__(self, page):
        self.page = page
        page.set_default_timeout(PATIENCE)
        page.goto(hosts.URL)
        page.wait_for_selector("#txt2img_prompt textarea")
        page.wait_for_function("typeof window.masknoiseExploreSettings === 'function'")
        page.wait_for_timeout(3000)  # until gradio has mounted what it shows
        for name, value in (("width", hosts.SIZE), ("height", hosts.SIZE), ("steps", 3), ("cfg_scale", 4), ("seed", 3)):
            self.number(f"#txt2img_{name}", value)
        page.fill("#txt2img_prompt textarea", "red bricks")
        page.locator(f"{OURS}explore > .label-wrap").first.click()

    def number(self, selector, value):
        self.page.evaluate(TYPED, [f"{selector} input[type=number]", value])

    def text(self, name, value):
        self.page.fill(f"{OURS}{name} textarea, {OURS}{name} input", value)

    def tab(self, name):
        self.page.locator(f"{OURS}explore .tab-nav button", has_text=name).click()

    def press(self, button):
        clear = "selector => document.querySelectorAll(selector).forEach(one => { one.textContent = ''; })"
        self.page.evaluate(clear, f"{OURS}explore_progress p, {OURS}explore_progress li")
        self.page.click(OURS + button)

    def wait(self, words):
        found = "([selector, words]) => new RegExp(words).test(document.querySelector(selector).innerText)"
        self.page.wait_for_function(found, arg=[f"{OURS}explore_progress", words])

    def look(self, tab, button):
        self.tab(tab)
        self.press(f"{button}_look")
        self.wait("^Done")
        view = self.page.frame_locator(f"{OURS}explore_view iframe")
        view.get_by_role("heading", name=tab, exact=False).first.wait_for()
        self.page.wait_for_timeout(500)
        return view

    def shot(self, name):
        if SHOTS:
            path = Path(SHOTS) / f"{hosts.host().name.lower()}-{name}.png"
            self.page.locator(f"{OURS}explore").screenshot(path=path)

    def send(self, view, count):
        """Send to scene; the concepts that the canvas has then."""
        view.get_by_role("button", name="Send to scene").click()
        page = self.page
        page.wait_for_function("n => MaskNoise.instances.get('txt2img').panel.editor.layers.length === n", arg=count)
        painting = page.evaluate(f"document.querySelector('{OURS}painting textarea, {OURS}painting input').value")
        return json.loads(painting).get("concepts", [])

    @property
    def settings(self):
        return json.loads(self.page.evaluate("masknoiseExploreSettings(['', '', ''])[1]"))


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def explored(chromium):
    context = chromium.new_context(viewport={"width": 1500, "height": 1300})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield Page(page)
    context.close()
    assert [error for error in errors if error not in hosts.host().errors] == []


def test_a_journey_and_back(explored, unharmed):
    view = explored.look("Journey", "journey")
    view.get_by_role("slider", name="Step").press("ArrowLeft")
    assert "Step" in view.locator("[role=status]").first.inner_text()
    explored.shot("journey")
    assert [one["prompt"] for one in explored.send(view, 1)] == ["red bricks"]
    assert explored.settings["prompt"] == ""
    explored.page.fill("#txt2img_prompt textarea", "red bricks")
    explored.press("journey_look")
    explored.wait("^Done before")


def test_between(explored, unharmed):
    explored.tab("Between")
    explored.text("between_from", "red bricks")
    explored.text("between_to", "grass")
    explored.number(f"{OURS}between_stops", 3)
    explored.number(f"{OURS}between_bridges", 0)
    view = explored.look("Between", "between")
    explored.shot("between")
    view.get_by_role("button", name="As a gradient").click()
    assert [one["prompt"] for one in explored.send(view, 2)] == ["red bricks", "grass"]


def test_a_map_and_a_place_on_demand(explored, unharmed):
    explored.tab("Map")
    explored.page.fill(f"{OURS}map_prompts textarea", "snow\nlava\nan ocean\na forest\na desert\nred bricks")
    explored.number(f"{OURS}map_columns", 2)
    view = explored.look("Map", "map")
    view.locator(".map svg").click(position={"x": 260, "y": 200})
    view.locator(".preview figcaption", has_text="The picture of this very place").wait_for()
    explored.shot("map")
    view.get_by_role("button", name="As keyframes").click()
    weights = view.locator(".weight output").all_inner_texts()
    sent = explored.send(view, sum(abs(float(weight)) > 1e-6 for weight in weights) - 1)
    assert all(len(one["keyframes"]) == 2 for one in sent)


def test_a_grid_is_sent_and_one_is_stopped(explored, unharmed):
    explored.tab("Grid")
    for name, text in (("seeds", "1, 2"), ("steps", "2, 3"), ("guidance", "1, 8")):
        explored.text(f"grid_{name}", text)
    view = explored.look("Grid", "grid")
    view.get_by_role("button", name="seed 2, 2 steps, guidance 8").click()
    explored.shot("grid")
    explored.send(view, 0)
    explored.page.wait_for_function("document.querySelector('#txt2img_seed input').value === '2'")
    assert (explored.settings["steps"], explored.settings["guidance_scale"]) == (2, 8)
    explored.text("grid_seeds", ",".join(map(str, range(90))))
    explored.press("grid_look")
    explored.wait("Sampling: [1-9]")
    explored.page.click(f"{OURS}explore_stop")
    explored.wait("^Stopped")
