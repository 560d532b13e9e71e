"""The page around the canvas: previews, animations, stopping, presets, accessibility, speed."""

import itertools
import json
import time

import pytest

from lib_masknoise.scene import Scene
from tests.browser.painter import EDITOR, MOUNTED, Painter
from tests.browser.test_painting import apply

FRAME = 1000 / 60


def test_a_stroke_asks_for_one_preview_at_its_end(painter):
    """At once and only once: how long the answer takes is the machine's (docs/canvas.md has what was measured)."""
    for name in ("width", "height"):
        painter.set_number(f"txt2img_{name}", 512)
    painter.page.wait_for_function(f"{EDITOR}.height === 512")
    painter.add_concept("an ocean")
    answered = f"{MOUNTED}.asked === {MOUNTED}.answered && !{MOUNTED}.dirty"
    painter.page.wait_for_function(answered)
    painter.js(
        f"""() => {{
            window.asked = [];
            document.addEventListener("pointerup", () => {{
                window.lifted = performance.now();
                window.asked.push({MOUNTED}.asked);
            }});
            const look = () => {{
                const now = document.querySelector("#masknoise_preview img")?.src;
                if (now !== window.source && {answered}) window.delay = performance.now() - window.lifted;
                if ({answered}) window.source = now;
                requestAnimationFrame(look);
            }};
            look();
        }}"""
    )
    before, delays = painter.js(f"{MOUNTED}.asked"), []
    for i in range(12):
        painter.js("window.delay = null")
        painter.drag((0.1, 0.05 + 0.07 * i), (0.9, 0.08 + 0.07 * i), steps=10)
        painter.page.wait_for_function("window.delay !== null")
        delays.append(painter.js("window.delay"))
    delays.sort()
    print(f"preview after a stroke: {delays[0]:.0f} to {delays[-1]:.0f} ms, median {delays[6]:.0f} ms")
    assert painter.js("window.asked") == [before + i + 1 for i in range(12)]


def test_previews_say_what_is_wrong(painter):
    painter.js(f"{EDITOR}.addConcepts([{{prompt: 'x', weight: 99, mask: {{}}}}])")
    painter.page.wait_for_selector("#masknoise_preview .mn-problems")
    assert "Concept 1: weight: expected a number" in painter.page.inner_text("#masknoise_preview")
    painter.page.locator(".mn-canvas").focus()
    painter.page.keyboard.press("Control+z")
    painter.page.wait_for_selector("#masknoise_preview figure")


def test_previews_follow_the_other_controls(painter):
    apply(painter, {"noise": {"visual": {"strength": 0.5}}, "motion": {"kind": "sine"}, "animation": {"frames": 8}})
    painter.page.wait_for_function("document.querySelectorAll('#masknoise_preview figure').length === 4")
    assert "Motion over the frames" in painter.page.inner_text("#masknoise_preview")


def test_an_animation_plays_and_can_be_downloaded(painter):
    apply(painter, {"noise": {"visual": {"strength": 0.5}}, "motion": {"kind": "sine"}, "animation": {"frames": 3}})
    painter.set_number("txt2img_steps", 4)
    assert "3 of 3 frames" in painter.generate()
    assert painter.page.locator("#txt2img_film img").get_attribute("src").startswith("data:image/gif")
    painter.page.wait_for_selector("#txt2img_files a[href*='masknoise.gif']", state="attached")
    painter.page.wait_for_function("document.querySelectorAll('#txt2img_gallery img').length >= 3")


def test_stop_keeps_the_finished_frames(painter):
    apply(painter, {"noise": {"visual": {"strength": 0.5}}, "animation": {"frames": 400}})
    painter.set_number("txt2img_steps", 10)
    painter.page.click("#txt2img_generate")
    painter.page.wait_for_function(
        "document.querySelector('#txt2img_progress').innerText.includes('frames 5 to 8')", timeout=60_000
    )
    painter.page.click("#txt2img_interrupt")
    words = painter.wait_until_done(20)
    assert words.startswith("Stopped.") and 4 <= int(words.split()[1]) < 100


def test_a_bad_scene_is_refused_before_sampling(painter):
    painter.js(f"{EDITOR}.addConcepts([{{prompt: 'x', weight: 99, mask: {{}}}}])")
    painter.page.wait_for_selector("#masknoise_preview .mn-problems")
    painter.page.click("#txt2img_generate")
    painter.page.wait_for_selector("#txt2img_progress .mn-problems")


def test_previews_have_legends(painter):
    for prompt in ("an ocean", "", "lava"):
        painter.add_concept(prompt)
    painter.button("Remove").nth(1).click()
    painter.page.get_by_label("Concept 2 acts on the image").uncheck()
    apply(painter, {**painter.painting, "noise": {"visual": {"strength": 0.5}}, "animation": {"frames": 8}})
    painter.page.wait_for_function("document.querySelectorAll('#masknoise_preview figure').length === 4")
    blend, noise, frames, _ = painter.page.locator("#masknoise_preview figure").all_inner_texts()
    assert "the image's own prompt" in blend and "an ocean" in blend and "lava" not in blend
    assert "none" in noise and "most" in noise
    assert "Rows from the top: blend, visual noise." in frames


def test_presets_saved_before_a_reload_are_there(painter):
    painter.add_concept("ice")
    painter.open_accordion("Presets")
    painter.page.fill("#masknoise_preset_name input, #masknoise_preset_name textarea", "kept")
    painter.page.click("#masknoise_preset_save")
    painter.page.wait_for_function("document.querySelector('#masknoise_preset_message').innerText.includes('Saved')")
    painter.reload()
    painter.open_accordion("Presets")
    chosen = painter.page.locator("#masknoise_preset input").first
    chosen.click()
    painter.page.locator("li").filter(has_text="kept").click()
    assert chosen.input_value() == "kept"


def test_frames_without_a_motion_offer_one(painter):
    offer = painter.page.locator("#masknoise_offer_circle")
    assert offer.count() == 0 or offer.is_hidden()
    painter.set_number("masknoise_animation_frames", 8)
    offer.wait_for(state="visible")
    offer.click()
    offer.wait_for(state="hidden")
    painter.page.wait_for_function("document.querySelector('#masknoise_motion_kind input').value === 'circle'")


@pytest.mark.parametrize("part", ["first", "More: noise"])
def test_help_is_shown_on_demand(painter, part):
    control, words = "#masknoise_noise_visual_strength", "How far the initial noise"
    if part != "first":
        painter.open_accordion(part)
        control, words = "#masknoise_noise_exponent", "How far the noise keeps away"
    shown = painter.page.locator(control)
    shown.hover()
    assert shown.get_attribute("title").startswith(words)
    assert words not in shown.inner_text()
    part = painter.page.locator(".masknoise-part").filter(has=shown)
    part.locator(".masknoise-help").click()
    assert words in shown.inner_text()
    part.locator(".masknoise-help").click()
    assert words not in shown.inner_text()


def test_help_of_switches_is_hidden_too(painter):
    painter.open_accordion("More: motion and files")
    assert painter.page.locator("#masknoise_motion_loop").inner_text().strip() == "Motion loop"


def test_ticking_the_box_of_a_webuis_accordion_opens_it(painter):
    """Its head as A1111 builds it: a click on the box stays in the box."""
    painter.js(
        """() => {
            document.body.insertAdjacentHTML("afterbegin", `<div id="accordion"><div class="label-wrap">
                <span><input type="checkbox" class="input-accordion-checkbox">MaskNoise</span></div></div>`);
            const accordion = document.querySelector("#accordion");
            const [head, box] = [accordion.querySelector(".label-wrap"), accordion.querySelector("input")];
            head.addEventListener("click", () => head.classList.toggle("open"));
            box.addEventListener("click", (event) => event.stopPropagation());
            MaskNoise.page.openWhenTicked(accordion);
        }"""
    )
    is_open = "document.querySelector('#accordion .label-wrap').classList.contains('open')"
    painter.page.check("#accordion input")
    assert painter.js(is_open)
    painter.page.uncheck("#accordion input")
    assert painter.js(is_open), "switched off, it may stay open"
    painter.page.check("#accordion input")
    assert painter.js(is_open)


@pytest.mark.parametrize("width, beside", [(430, False), (1000, False), (1600, True)])
def test_the_preview_is_beside_the_canvas_where_there_is_room(painter, width, beside):
    painter.page.set_viewport_size({"width": width, "height": 1200})
    painter.page.wait_for_timeout(300)
    canvas = painter.page.locator(".masknoise-canvas").bounding_box()
    figure = painter.page.locator("#masknoise_preview figure").first.bounding_box()
    assert (figure["x"] >= canvas["x"] + canvas["width"]) == beside
    assert beside or figure["y"] >= canvas["y"] + canvas["height"]
    assert painter.js("document.documentElement.scrollWidth") <= width


def test_presets_round_trip(painter):
    painter.add_concept("ice")
    painter.drag((0.2, 0.2), (0.7, 0.4))
    text = painter.painting
    painter.open_accordion("Presets")
    painter.page.fill("#masknoise_preset_name input, #masknoise_preset_name textarea", "frozen")
    painter.page.click("#masknoise_preset_save")
    painter.page.wait_for_function("document.querySelector('#masknoise_preset_message').innerText.includes('Saved')")
    painter.page.get_by_role("button", name="Remove").first.click()
    assert painter.concepts == []
    painter.page.click("#masknoise_preset_load")
    painter.page.wait_for_function(f"{EDITOR}.layers.length === 1")
    assert Scene.parse(painter.painting) == Scene.parse(text)


def test_the_scene_is_there_to_copy(painter):
    painter.add_concept("snow")
    painter.page.wait_for_function(f"!{MOUNTED}.dirty")
    painter.open_accordion("Scene JSON")
    painter.page.click("#masknoise_json_show")
    painter.page.wait_for_function("document.querySelector('#masknoise_json_text textarea').value.includes('snow')")
    text = painter.page.input_value("#masknoise_json_text textarea")
    assert Scene.parse(text).concepts[0].prompt == "snow"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(context, painter, address, theme):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    painter.page.goto(f"{address}/?__theme={theme}")
    painter.wait_until_mounted()
    painter.add_concept("an ocean")
    painter.drag((0.2, 0.2), (0.7, 0.4))
    painter.page.wait_for_timeout(300)
    for part in (".masknoise-canvas", "#masknoise_preview figure"):
        found = axe.run(painter.page, part)
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in serious] == []
        assert found["passes"]


def test_sixteen_concepts_of_two_thousand_strokes_paint_as_fast_as_none(browser, painter):
    """A trace of the browser's own while a stroke is painted: 60 frames a second leave 16.7 ms for each one's work.

    How far apart the frames then come depends on the machine, so that is held against an empty canvas in the same page.
    """
    for name in ("width", "height"):
        painter.set_number(f"txt2img_{name}", 512)
    painter.page.wait_for_function(f"{EDITOR}.height === 512")
    mark_painted_frames(painter)
    painter.add_concept()
    _, empty = traced_stroke(browser, painter)
    concepts = [
        {"prompt": f"c{i}", "mask": {"kind": "strokes", "strokes": [stroke(i, j) for j in range(2000)]}}
        for i in range(16)
    ]
    painter.page.evaluate(f"(text) => {EDITOR}.load(text)", json.dumps({"concepts": concepts}))
    started = time.monotonic()
    painter.page.wait_for_function(
        f"{EDITOR}.layers.length === 16 && {EDITOR}.layers.every((layer) => {EDITOR}.rasters.ready(layer.chain))",
        timeout=120_000,
    )
    print(f"32,000 strokes drawn in {time.monotonic() - started:.1f} s")
    work, gaps = traced_stroke(browser, painter)
    print(
        f"{len(work)} painted frames: {figures(work)} ms of work each, {figures(gaps)} ms apart, empty {figures(empty)}"
    )
    assert len(work) >= 60
    assert work[int(len(work) * 0.95)] < FRAME
    assert gaps[len(gaps) // 2] < 1.25 * empty[len(empty) // 2]
    layer = json.loads(painter.painting_text)["concepts"][0]
    assert len(layer["mask"]["strokes"]) == 2001


def mark_painted_frames(painter: Painter) -> None:
    """Where a frame is painted, the page says so to the browser's trace."""
    painter.js(
        f"""() => {{
            const {{stage}} = {MOUNTED}.panel;
            const paintTint = stage.paintTint;
            stage.paintTint = (...args) => {{
                performance.mark("painted");
                paintTint.apply(stage, args);
            }};
        }}"""
    )


def traced_stroke(browser, painter: Painter) -> tuple[list[float], list[float]]:
    painter.page.locator(".mn-canvas").scroll_into_view_if_needed()
    start, end = painter.place(0.1, 0.5), painter.place(0.9, 0.6)
    painter.page.mouse.move(*start)
    painter.page.mouse.down()
    browser.start_tracing(page=painter.page, categories=["devtools.timeline", "blink.user_timing"])
    painter.page.mouse.move(*end, steps=240)
    trace = json.loads(browser.stop_tracing())["traceEvents"]
    painter.page.mouse.up()
    return painted_frames(trace)


def painted_frames(trace: list[dict]) -> tuple[list[float], list[float]]:
    """Of the frames in which something was painted: the milliseconds of work, and of the time between two; sorted."""
    marks = [event["ts"] for event in trace if event["name"] == "painted"]
    frames = [event for event in trace if event["name"] == "FireAnimationFrame" and "dur" in event]
    frames = sorted((e["ts"], e["dur"]) for e in frames if any(e["ts"] <= m <= e["ts"] + e["dur"] for m in marks))
    gaps = [(b[0] - a[0]) / 1000 for a, b in itertools.pairwise(frames)]
    return sorted(dur / 1000 for _, dur in frames), sorted(gaps)


def figures(values: list[float]) -> str:
    return f"{values[len(values) // 2]:.1f} (95 %: {values[int(len(values) * 0.95)]:.1f})"


def stroke(i: int, j: int) -> dict:
    """One of many small strokes of three points, spread over the picture."""
    x, y = (j * 0.618034 + i * 0.1) % 0.9, (j * 0.381966 + i * 0.07) % 0.9
    points = [[round(x, 5), round(y, 5)], [round(x + 0.05, 5), round(y + 0.03, 5)], [round(x + 0.1, 5), round(y, 5)]]
    return {"points": points, "radius": 0.01 + 0.0001 * (j % 100), "hardness": 0.5, "opacity": 0.3}
