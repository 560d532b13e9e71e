"""Live painting with real pointer events, and the denoiser's calls counted."""

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from lib_masknoise import infotext
from lib_masknoise.scene import Scene
from tests.browser.conftest import REPOSITORY, _free_port, _wait_for
from tests.browser.painter import EDITOR, MOUNTED, Painter
from tests.browser.test_painting import apply

LIVE = f"{MOUNTED}.live"
PROMPT = "a wheat field"
STEPS = 4
PATIENCE = 120_000  # milliseconds: machines that run tests may be slow


@pytest.fixture(scope="session")
def counted(browser, tmp_path_factory):
    """Where a page is served that also says how often the denoiser has been called."""
    port = _free_port()
    home = tmp_path_factory.mktemp("live")
    log = (home / "log").open("w")
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.browser.counted_page", str(port)]
    server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}", server, home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def painter(context, counted):
    used = open_page(context, counted)
    yield used
    assert used.errors == []


def open_page(context, address) -> Painter:
    used = Painter.open(context, address)
    used.page.fill("#txt2img_prompt textarea", PROMPT)
    used.set_number("txt2img_steps", STEPS)
    used.page.wait_for_function(f"{MOUNTED}.values !== undefined")
    return used


def counts(address) -> dict:
    with urllib.request.urlopen(f"{address}/calls", timeout=30) as answer:
        return json.load(answer)


def switch(painter) -> None:
    painter.page.click(".mn-live-toggle")


def rest(painter) -> str:
    """Wait until the picture itself is shown, of what is painted now; returns its address."""
    painter.page.wait_for_function(
        f"{LIVE}.shown?.kind === 'full' && {LIVE}.streams.size === 0 && !{LIVE}.wanted"
        f" && {LIVE}.state() === {LIVE}.shown.state",
        timeout=PATIENCE,
    )
    return painter.js(f"{LIVE}.image.src")


def settled(address) -> dict:
    """The counts when they have stopped to change."""
    before = None
    while before != (now := counts(address)):
        before = now
        time.sleep(0.7)
    return now


def pixels(url: str) -> np.ndarray:
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_picture_follows_the_hand_and_at_rest_is_that_of_generate(painter, counted):
    painter.add_concept("an ocean")
    painter.brush(size=0.4)
    switch(painter)
    first = rest(painter)
    painter.drag((0.2, 0.3), (0.8, 0.6), steps=12)
    assert painter.js(f"{LIVE}.parts.length") >= 1
    second = rest(painter)
    assert np.abs(pixels(first).astype(int) - pixels(second)).mean() > 5
    switch(painter)
    assert painter.js(f"{MOUNTED}.panel.stage.live") is None
    painter.generate()
    assert "Done" in painter.page.inner_text("#txt2img_progress")
    made = painter.page.locator("#txt2img_film img").get_attribute("src")
    assert (pixels(made) == pixels(second)).all()
    assert counts(counted)["hooks"] == 0 and counts(counted)["processors"] == ["AttnProcessor2_0"]


def test_pictures_come_while_the_pointer_is_down(painter):
    painter.add_concept("lava")
    painter.brush(size=0.5)
    switch(painter)
    rest(painter)
    before = painter.js(f"{LIVE}.pictures")
    mouse = painter.page.mouse
    mouse.move(*painter.place(0.2, 0.5))
    mouse.down()
    seen = []
    for i in range(1, 4):
        mouse.move(*painter.place(0.2 + 0.15 * i, 0.5), steps=4)
        painter.page.wait_for_function(
            f"{LIVE}.shown?.state === {LIVE}.state() && {LIVE}.pictures > {before}", timeout=PATIENCE
        )
        seen.append(painter.js(f"JSON.parse({LIVE}.shown.state).args[2]"))
        assert painter.js(f"{EDITOR}.history.at") == painter.js(f"{EDITOR}.history.steps.length - 1")
    mouse.up()
    assert len(set(seen)) == 3, "each picture has more of the stroke in it"
    strokes = [json.loads(one)["concepts"][0]["mask"]["strokes"] for one in seen]
    assert [len(one) for one in strokes] == [1, 1, 1]
    assert painter.js(f"{LIVE}.delays.length") >= 3


def test_the_figures_below_the_canvas_wait_for_the_hand(painter):
    painter.add_concept("lava")
    switch(painter)
    rest(painter)
    painter.page.wait_for_function(f"!{MOUNTED}.stale && {MOUNTED}.asked === {MOUNTED}.answered", timeout=PATIENCE)
    asked = painter.js(f"{MOUNTED}.asked")
    painter.page.mouse.move(*painter.place(0.2, 0.5))
    painter.page.mouse.down()
    painter.js(f"{MOUNTED}.ask()")
    painter.page.wait_for_timeout(600)
    assert painter.js(f"{MOUNTED}.asked") == asked
    painter.page.mouse.up()
    painter.page.wait_for_function(f"{MOUNTED}.answered > {asked} && !{MOUNTED}.stale", timeout=PATIENCE)


def test_a_pause_of_the_hand_makes_the_glance_better(painter):
    painter.set_number("txt2img_steps", 6)
    painter.add_concept("lava")
    painter.brush(size=0.06)  # so little that it is sketched from what was there
    switch(painter)
    rest(painter)
    painter.js(
        f"""() => {{
            const live = {LIVE};
            const show = live.show.bind(live);
            live.heard = [];
            live.show = (image, event, asked) => {{
                live.heard.push([event.kind, event.steps]);
                show(image, event, asked);
            }};
        }}"""
    )
    painter.page.mouse.move(*painter.place(0.3, 0.5))
    painter.page.mouse.down()
    painter.page.mouse.move(*painter.place(0.35, 0.5), steps=2)
    rest(painter)  # the pointer is still down
    assert painter.js(f"{LIVE}.heard")[-3:] == [["sketch", 1], ["sketch", 2], ["full", 6]]
    painter.page.mouse.up()


def test_an_idle_page_and_a_hidden_one_cost_nothing(painter, counted):
    painter.add_concept("an ocean")
    painter.drag((0.2, 0.2), (0.8, 0.8))
    switch(painter)
    rest(painter)
    before, requests = settled(counted), painter.js(f"{LIVE}.requests")
    painter.page.wait_for_timeout(2500)
    assert counts(counted) == before and painter.js(f"{LIVE}.requests") == requests
    painter.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    painter.js("document.dispatchEvent(new Event('visibilitychange'))")
    painter.js(f"{EDITOR}.invert()")
    painter.page.wait_for_timeout(1000)
    assert counts(counted) == before
    painter.js("delete document.hidden")
    painter.js("document.dispatchEvent(new Event('visibilitychange'))")
    rest(painter)
    assert counts(counted)["calls"] > before["calls"]


def test_what_changes_nothing_samples_nothing(painter, counted):
    painter.add_concept("an ocean")
    painter.drag((0.2, 0.2), (0.8, 0.8))
    switch(painter)
    rest(painter)
    before = settled(counted)
    painter.page.get_by_text("Add concept", exact=True).click()  # with an empty mask
    painter.page.wait_for_function(f"{LIVE}.streams.size === 0 && !{LIVE}.wanted && {LIVE}.last.includes('ocean')")
    painter.page.wait_for_timeout(1000)
    assert counts(counted)["calls"] == before["calls"]


def test_prompts_weights_and_the_other_controls_are_live(painter):
    painter.add_concept("an ocean")
    painter.drag((0.1, 0.5), (0.9, 0.5))
    switch(painter)
    seen = [rest(painter)]
    painter.page.locator(".mn-active textarea").first.fill("lava")
    seen.append(rest(painter))
    painter.js(f"{EDITOR}.setField({EDITOR}.active, 'weight', 0.3)")
    seen.append(rest(painter))
    painter.set_number("masknoise_noise_visual_strength", 0.6)
    apply_seen = f"JSON.parse({LIVE}.shown?.state ?? '{{}}').args?.includes(0.6)"
    painter.page.wait_for_function(apply_seen, timeout=PATIENCE)
    painter.page.fill("#txt2img_prompt textarea", "snow")
    painter.page.wait_for_function(f"{LIVE}.shown.state.includes('snow')", timeout=PATIENCE)
    seen.append(rest(painter))
    assert len(set(seen)) == 4


def test_an_error_is_said_once(painter, counted):
    switch(painter)
    rest(painter)
    before = settled(counted)
    painter.errors.clear()
    painter.js(f"{EDITOR}.addConcepts([{{prompt: 'x', weight: 99, mask: {{}}}}])")
    painter.page.wait_for_function(f"{LIVE}.words.textContent.includes('concepts[0].weight')")
    requests = painter.js(f"{LIVE}.requests")
    painter.page.wait_for_timeout(1500)
    assert painter.js(f"{LIVE}.requests") == requests and counts(counted)["calls"] == before["calls"]
    painter.errors[:] = [one for one in painter.errors if "422" not in one]  # the browser's own note of the answer
    painter.js(f"{EDITOR}.undo()")
    painter.page.wait_for_function(f"{LIVE}.words.textContent === ''", timeout=PATIENCE)


def test_keep_and_use_as_backdrop(painter):
    painter.add_concept("ice")
    painter.drag((0.2, 0.2), (0.8, 0.8))
    switch(painter)
    shown = pixels(rest(painter))
    painter.button("Keep").click()
    painter.page.wait_for_selector("#txt2img_gallery img", timeout=30_000)
    source = painter.page.locator("#txt2img_gallery img").first.evaluate("image => image.src")
    kept = Image.open(io.BytesIO(painter.page.request.get(source).body()))
    assert (np.asarray(kept.convert("RGB")) == shown).all()
    text = kept.text["parameters"]
    assert text.startswith(f"{PROMPT}\n") and "Steps: 4" in text
    assert f"{infotext.KEY} concept 1 prompt: ice" in text
    painter.button("Use as backdrop").click()
    painter.page.wait_for_function(f"{MOUNTED}.panel.stage.backdrop !== null")


def test_breathe_plays_the_motion_until_it_is_switched_off(painter, counted):
    apply(painter, {"noise": {"visual": {"strength": 1.0}}, "motion": {"kind": "circle"}})
    painter.page.wait_for_function(f"{MOUNTED}.values?.includes('circle')")
    switch(painter)
    rest(painter)
    painter.button("Breathe").click()
    frames = []
    for _ in range(3):
        seen = json.dumps(frames[-1] if frames else 0)
        painter.page.wait_for_function(
            f"{LIVE}.shown.kind === 'frame' && {LIVE}.shown.frame !== {seen}", timeout=PATIENCE
        )
        frames.append(painter.js(f"{LIVE}.shown.frame"))
    assert frames == sorted(frames) and len(set(frames)) == 3
    painter.button("Breathe").click()
    rest(painter)
    before = settled(counted)
    painter.page.wait_for_timeout(1000)
    assert counts(counted) == before


def test_nothing_to_breathe_is_said(painter):
    switch(painter)
    rest(painter)
    painter.button("Breathe").click()
    painter.page.wait_for_function(f"{LIVE}.words.textContent.startsWith('Nothing moves')")
    assert painter.js(f"{LIVE}.breathing") is False


def test_a_job_pauses_it_with_a_word(painter):
    painter.set_number("txt2img_steps", 20)
    switch(painter)
    rest(painter)
    painter.page.click("#txt2img_generate")
    painter.page.wait_for_function("document.querySelector('#txt2img_progress').innerText.includes('Sampling')")
    painter.add_concept("lava")
    painter.js(f"{EDITOR}.invert()")
    painter.page.wait_for_function(f"{LIVE}.words.textContent.startsWith('Paused')", timeout=PATIENCE)
    painter.wait_until_done()
    rest(painter)
    assert painter.js(f"{LIVE}.words.textContent") == ""


def test_two_pages_take_turns(painter, context, counted):
    other = open_page(context, counted)
    for one, prompt in ((painter, "lava"), (other, "snow")):
        one.add_concept(prompt)
        one.js(f"{EDITOR}.invert()")
        switch(one)
    shown = [pixels(rest(one)) for one in (painter, other)]
    assert np.abs(shown[0].astype(int) - shown[1]).mean() > 30
    assert other.errors == []


def test_a_page_that_goes_away_ends_its_pass(context, counted):
    page = open_page(context, counted)
    page.set_number("txt2img_steps", 100)
    switch(page)
    page.page.wait_for_function(f"{LIVE}.shown?.kind === 'sketch'", timeout=PATIENCE)
    page.page.wait_for_timeout(600)
    page.page.close()
    time.sleep(1.5)
    before = counts(counted)
    time.sleep(1.5)
    assert counts(counted) == before


def test_the_scene_of_the_page_is_what_is_sent(painter):
    painter.add_concept("coral")
    painter.drag((0.2, 0.2), (0.8, 0.8))
    switch(painter)
    rest(painter)
    sent = painter.js(f"JSON.parse(JSON.parse({LIVE}.shown.state).args[2])")
    assert Scene.parse(sent) == Scene.parse(painter.painting)
