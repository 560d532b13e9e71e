"""The views' pages in Chromium, opened from the disk without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib_masknoise.explore.map import BUILT_IN, read_prompts
from lib_masknoise.explore.plane import Blend, Plane
from lib_masknoise.scene import Scene

REPOSITORY = Path(__file__).parents[2]
QUICK = ["--steps", "3", "--size", "64x64"]
VIEWS = {
    "journey": ["--prompt", "an ocean", "--steps", "6"],
    "between": ["--from", "a wheat field", "--to", "an ocean", "--stops", "5", "--bridges", "2"],
    "map": ["--columns", "4"],
    "grid": ["--prompt", "a night sky", "--seeds", "1,2", "--step-counts", "2,3", "--guidance", "1,4", "--words"],
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Each view's folder, made once."""
    folder = tmp_path_factory.mktemp("explore")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for view, arguments in VIEWS.items():
        command = [sys.executable, "-m", "lib_masknoise", "explore", view, *QUICK, *arguments, "--out", folder / view]
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    return folder


@pytest.fixture
def opened(browser, made):
    """A function that opens a view; nothing may be fetched, and nothing logged as an error."""
    contexts, errors = [], []

    def open_view(view: str, **options):
        context = browser.new_context(viewport={"width": 1200, "height": 1000}, **options)
        contexts.append(context)
        page = context.new_page()
        own = ("file:", "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or errors.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.goto((made / view / "index.html").as_uri())
        page.wait_for_function("document.querySelector('#view').children.length > 0")
        page.wait_for_load_state("load")
        return page

    yield open_view
    for context in contexts:
        context.close()
    assert errors == []


def data(made, view: str) -> dict:
    return json.loads((made / view / "explore.json").read_text("utf-8"))


def scene(page) -> Scene:
    return Scene.parse(page.input_value("textarea"))


def slide(page, name: str, value) -> float:
    """Move a slider: what it shows is there at once. The milliseconds until that has been laid out, for the eye."""
    return page.evaluate(
        """([name, value]) => new Promise((done) => {
            const input = document.querySelector(`input[aria-label="${name}"]`);
            input.value = value;
            const start = performance.now();
            input.dispatchEvent(new Event("input", {bubbles: true}));
            document.querySelectorAll("img.now").forEach((image) => {
                if (!image.complete || !image.naturalWidth) throw new Error("not there");
            });
            document.body.getBoundingClientRect();
            done(performance.now() - start);
        })""",
        [name, str(value)],
    )


def map_state(page) -> dict:
    return page.evaluate("(({points, weights, x, y}) => ({points, weights, x, y}))(window.masknoiseMap.state)")


def shown(page) -> list[str]:
    return page.eval_on_selector_all("img.now", "images => images.map(i => i.src.split('/').pop())")


def test_a_journey_is_walked_by_slider_and_keyboard(opened, made):
    page = opened("journey")
    assert page.get_by_role("img", name="The end: the picture itself").count() == 3
    delays = [slide(page, "Step", i) for i in range(7)]
    print(f"a step of the journey: {max(delays):.1f} ms at most")
    slide(page, "Step", 2)
    assert shown(page) == ["x0-002.png", "x_t-002.png", "pca-002.png"]
    page.get_by_role("slider", name="Step").press("ArrowRight")
    assert shown(page)[0] == "x0-003.png" and "Step 4 of 6" in page.inner_text("[role=status]")
    assert scene(page).concepts[0].prompt == "an ocean"
    assert page.locator("svg polyline").count() == 2


def test_between_says_where_it_is_and_beyond_what(opened, made):
    page = opened("between")
    stops = data(made, "between")["stops"]
    name = "How far from the first to the second"
    delays = [slide(page, name, stop["t"]) for stop in stops]
    print(f"a stop: {max(delays):.1f} ms at most")
    assert "extrapolation" in page.inner_text("[role=status].far")
    slide(page, name, 0)
    assert page.locator(".far").count() == 0 and shown(page) == [Path(stops[2]["file"]).name]
    page.get_by_role("slider", name=name).press("ArrowLeft")
    assert shown(page) == [Path(stops[1]["file"]).name]
    page.get_by_role("button", name="This place").click()
    assert scene(page).concepts[0].weight == stops[1]["t"]
    page.get_by_role("button", name="As keyframes").click()
    assert scene(page).animation.frames == 48
    bridge = data(made, "between")["bridges"][0]
    page.get_by_role("button", name=f"Use the bridge {bridge['prompt']}").click()
    assert scene(page).concepts[2].prompt == bridge["prompt"] and scene(page).concepts[2].mask.kind == "image"


def test_a_click_on_the_map_lands_where_its_blend_does(opened, made):
    page = opened("map")
    known = data(made, "map")
    points = np.array([[point["x"], point["y"]] for point in known["points"]])
    plane = Plane(np.zeros(2), np.eye(2), (0.5, 0.5), points, np.array(known["triangles"]))
    box = page.locator(".map svg").bounding_box()
    for right, up in [(0.5, 0.5), (0.3, 0.4), (0.7, 0.6), (0.05, 0.05), (0.93, 0.1)]:
        page.mouse.click(box["x"] + right * box["width"], box["y"] + up * box["height"])
        state = map_state(page)
        blend = Blend(tuple(state["points"]), tuple(state["weights"]))
        assert np.allclose(plane.place(blend), (state["x"], state["y"]), atol=1e-5)
        wanted = plane.weights(state["x"], state["y"])
        assert blend.points == wanted.points and np.allclose(blend.weights, wanted.weights, atol=1e-6)
        assert blend.extrapolates == ("Extrapolation" in page.inner_text(".columns [role=status]"))
        total = sum(concept.weight for concept in scene(page).concepts)
        assert total == pytest.approx(1 - max(state["weights"]), abs=1e-5)
    assert blend.extrapolates


def test_weights_and_the_point_move_each_other(opened, made):
    page = opened("map")

    def state():
        return map_state(page)

    before = state()
    page.locator(".weight input").first.evaluate("i => { i.value = 0.9; i.dispatchEvent(new Event('input')); }")
    after = state()
    assert after["weights"][0] == pytest.approx(0.9) and sum(after["weights"]) == pytest.approx(1)
    assert (after["x"], after["y"]) != (before["x"], before["y"])
    # A fourth prompt from the search; then the point moves all four.
    page.fill("#search", "lava")
    page.get_by_role("button", name="Add lava to the blend").click()
    assert page.locator(".weight").count() == 4 and page.is_checked("#keep")
    page.locator(".map svg").press("ArrowRight")
    moved = state()
    assert len(moved["points"]) == 4 and sum(moved["weights"]) == pytest.approx(1)
    assert abs(moved["weights"][3]) > 1e-6
    points = data(made, "map")["points"]
    for axis in "xy":
        there = sum(w * points[i][axis] for i, w in zip(moved["points"], moved["weights"], strict=True))
        assert there == pytest.approx(moved[axis], abs=1e-5)
    page.get_by_role("button", name="lava", exact=True).click()
    assert page.inner_text(".columns [role=status]").startswith("100 % lava")


def test_labels_of_the_map_do_not_overlap_and_more_come_closer(opened, made):
    page = opened("map")

    def boxes():
        return page.eval_on_selector_all(
            ".map svg text", "ts => ts.map(t => { const b = t.getBBox(); return [b.x, b.y, b.width, b.height]; })"
        )

    for _ in range(2):
        found = boxes()
        assert len(found) >= 8
        for i, (x, y, w, h) in enumerate(found):
            for x2, y2, w2, h2 in found[i + 1 :]:
                across, down = min(x + w, x2 + w2) - max(x, x2), min(y + h, y2 + h2) - max(y, y2)
                assert across < 6 or down < 6, (x, y, x2, y2)
        page.locator(".map svg").press("+")
    assert len(data(made, "map")["points"]) == len(read_prompts(BUILT_IN))
    page.locator(".map svg").press("0")
    box = page.locator(".map svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".hover:not([hidden]) img")
    assert page.locator(".hover div").count() == 3


def test_a_cell_of_the_grid_says_how_it_was_made(opened, made):
    page = opened("grid")
    page.get_by_role("button", name="seed 2, 3 steps, guidance 4").click()
    assert '--prompt "a night sky" --seed 2 --steps 3 --guidance 4 --size 64x64' in page.inner_text("code")
    assert scene(page) == Scene()
    delays = [slide(page, "Words of the prompt", i) for i in (0, 1, 2, 0)]
    print(f"words: {max(delays):.1f} ms at most")
    page.get_by_role("button", name="seed 1, 2 steps, guidance 1").click()
    assert '--prompt "a" ' in page.inner_text("code")
    assert page.locator("tbody td button").count() == 8


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, view, theme):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    page = opened(view, color_scheme=theme)
    found = axe.run(page)
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in serious] == []
    assert found["passes"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_window_shows_everything_without_scrolling_sideways(opened, view):
    page = opened(view)
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# --- The accordion of the `ui` page


@pytest.fixture
def explored(painter):
    """The page with *Explore* open and quick settings."""
    for name, value in (("steps", 3), ("width", 64), ("height", 64)):
        painter.set_number(f"txt2img_{name}", value)
    painter.page.fill("#txt2img_prompt textarea", "an ocean")
    painter.open_accordion("Explore")
    return painter


def choose_tab(page, name: str) -> None:
    """By the button: gradio 3 gives it no role of its own."""
    page.locator("#masknoise_explore .tab-nav button", has_text=name).click()


PROGRESS = "#masknoise_explore_progress"


def press(page, button: str) -> None:
    """Press it; what an earlier view has said there is taken away first."""
    page.evaluate(
        "selector => document.querySelectorAll(`${selector} p, ${selector} li`).forEach(e => { e.textContent = ''; })",
        PROGRESS,
    )
    page.click(f"#masknoise_{button}")


def wait_for_words(page, words: str, timeout: int = 120_000) -> None:
    page.wait_for_function(
        "([selector, words]) => new RegExp(words).test(document.querySelector(selector).innerText)",
        arg=[PROGRESS, words],
        timeout=timeout,
    )


def look(painter, tab: str, button: str):
    """Make a view; the frame that it is shown in."""
    page = painter.page
    choose_tab(page, tab)
    press(page, f"{button}_look")
    wait_for_words(page, "^Done")
    view = page.frame_locator("#masknoise_explore_view iframe")
    view.locator("#view > *").first.wait_for()
    return view


def settings_of(page) -> dict:
    return json.loads(page.evaluate("masknoiseExploreSettings(['', '', ''])[1]"))


def test_explore_walks_a_journey_and_going_back_is_instant(explored):
    view = look(explored, "Journey", "journey")
    assert view.locator("img.now").count() == 3
    view.locator("img.now").first.evaluate("i => i.decode()")
    view.get_by_role("slider", name="Step").press("ArrowLeft")
    assert "Step 3 of 3" in view.locator("[role=status]").first.inner_text()
    press(explored.page, "journey_look")
    wait_for_words(explored.page, "^Done before", timeout=5000)


def test_a_journeys_settings_are_sent_along(explored):
    page = explored.page
    page.fill("#txt2img_neg_prompt textarea", "people")
    view = look(explored, "Journey", "journey")
    before = settings_of(page)
    for name, value in (("steps", 9), ("seed", 77), ("width", 96)):
        explored.set_number(f"txt2img_{name}", value)
    page.fill("#txt2img_neg_prompt textarea", "")
    assert settings_of(page)["seed"] == 77
    view.get_by_role("button", name="Send to scene").click()
    page.wait_for_function("MaskNoise.instances.get('txt2img').panel.editor.layers.length === 1")
    assert settings_of(page) == {**before, "prompt": ""}
    assert explored.concepts[0]["prompt"] == "an ocean"


def test_what_lies_between_is_sent_to_the_scene(explored):
    page = explored.page
    choose_tab(page, "Between")
    page.click("#masknoise_between_look")
    page.wait_for_selector("#masknoise_explore_progress .mn-problems")
    for name, text in (("from", "a wheat field"), ("to", "an ocean")):
        page.fill(f"#masknoise_between_{name} textarea, #masknoise_between_{name} input", text)
    explored.set_number("masknoise_between_stops", 3)
    explored.set_number("masknoise_between_bridges", 1)
    view = look(explored, "Between", "between")
    view.get_by_role("button", name="Use the bridge").first.click()
    view.get_by_role("button", name="Send to scene").click()
    page.wait_for_function("MaskNoise.instances.get('txt2img').panel.editor.layers.length === 3")
    assert [concept["prompt"] for concept in explored.concepts][:2] == ["a wheat field", "an ocean"]


def test_a_place_of_the_map_is_sent_to_the_scene(explored):
    page = explored.page
    choose_tab(page, "Map")
    page.fill("#masknoise_map_prompts textarea", "lava\nice\na forest\nan ocean\na desert")
    explored.set_number("masknoise_map_columns", 2)
    view = look(explored, "Map", "map")
    view.locator(".map svg").click(position={"x": 150, "y": 200})
    weights = view.locator(".weight output").all_inner_texts()
    assert sum(map(float, weights)) == pytest.approx(1, abs=2e-3)
    view.get_by_role("button", name="Send to scene").click()
    page.wait_for_function("MaskNoise.instances.get('txt2img').panel.editor.layers.length === 2")
    known = {"lava", "ice", "a forest", "an ocean", "a desert"}
    assert page.input_value("#txt2img_prompt textarea") in known
    assert {concept["prompt"] for concept in explored.concepts} < known


def test_the_picture_of_a_place_is_drawn_on_demand(explored):
    """At the point, under a resting pointer, and from memory when going back; then the way there as keyframes."""
    page = explored.page
    choose_tab(page, "Map")
    page.fill("#masknoise_map_prompts textarea", "lava\nice\na forest\nan ocean\na desert")
    explored.set_number("masknoise_map_columns", 2)
    view = look(explored, "Map", "map")
    caption = view.locator(".preview figcaption", has_text="The picture of this very place")
    caption.wait_for()
    picture = view.locator(".preview img")
    first = picture.get_attribute("src")
    chart = view.locator(".map svg")
    chart.click(position={"x": 150, "y": 200})
    view.locator(f".preview img:not([src='{first}'])").wait_for()
    caption.wait_for()
    drawn = picture.get_attribute("src")
    assert first.startswith("data:image/jpeg") and drawn.startswith("data:image/jpeg") and drawn != first
    chart.hover(position={"x": 260, "y": 260})
    view.locator(".hover img.very").wait_for()
    # Going back asks nobody.
    page.evaluate("() => { window.masknoiseExplorePlace = () => { throw new Error('asked'); }; }")
    chart.press("ArrowRight")
    chart.press("ArrowLeft")
    caption.wait_for()
    assert picture.get_attribute("src") == drawn
    view.get_by_role("button", name="As keyframes").click()
    view.get_by_role("button", name="Send to scene").click()
    page.wait_for_function("MaskNoise.instances.get('txt2img').panel.editor.layers.length === 2")
    weights = [[key.get("weight") for key in concept["keyframes"]] for concept in explored.concepts]
    assert all(first == 0 and there != 0 for first, there in weights)


def test_a_cell_of_the_grid_is_sent_with_its_settings(explored):
    page = explored.page
    choose_tab(page, "Grid")
    for name, text in (("seeds", "4, 5"), ("steps", "2, 3"), ("guidance", "1, 6")):
        page.fill(f"#masknoise_grid_{name} input, #masknoise_grid_{name} textarea", text)
    view = look(explored, "Grid", "grid")
    view.get_by_role("button", name="seed 5, 2 steps, guidance 6").click()
    view.get_by_role("button", name="Send to scene").click()
    page.wait_for_function("document.querySelector('#txt2img_seed input').value === '5'")
    sent = settings_of(page)
    assert (sent["seed"], sent["steps"], sent["guidance_scale"], sent["prompt"]) == (5, 2, 6, "an ocean")


def test_a_grid_is_stopped_and_keeps_what_it_has(explored):
    page = explored.page
    choose_tab(page, "Grid")
    page.fill("#masknoise_grid_seeds input, #masknoise_grid_seeds textarea", ",".join(map(str, range(60))))
    press(page, "grid_look")
    wait_for_words(page, r"Sampling: [1-9]\d")
    page.click("#masknoise_explore_stop")
    wait_for_words(page, "^Stopped")
    view = page.frame_locator("#masknoise_explore_view iframe")
    view.locator("#interrupted").wait_for(state="visible")
    assert view.locator("td button").count() == 60 * 4 * 3
    assert 8 <= view.locator("td button img").count() < 60 * 4 * 3
