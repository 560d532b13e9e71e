"""The views of Explore by their routes, on the model that the WebUI has loaded."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui import hosts
from tests.webui.scenes import everywhere, halves

PATH = "/masknoise/v1/explore"
NAMES = ["snow", "lava", "an ocean", "a forest", "a desert", "red bricks", "ice", "grass"]


def look(webui, view: str, **more: Any):
    usual = webui.defaults
    body = {
        **{name: usual[name] for name in ("prompt", "negative_prompt", "steps", "width", "height", "seed")},
        "guidance_scale": usual["cfg_scale"],
        "sampler": usual["sampler_name"],
        **more,
    }
    return webui.request("POST", f"{PATH}/{view}", body)


def view_of(webui, view: str, **more: Any) -> dict[str, Any]:
    answer = look(webui, view, **more)
    assert answer.status == 200, str(answer)
    made = answer.json
    assert made["view"] == view
    return made


def pixels(view: dict[str, Any], name: str) -> np.ndarray:
    data = base64.b64decode(view["files"][name])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


@pytest.mark.parametrize("scene", [None, halves("grass", "water", 0.2)], ids=["prompt", "scene"])
@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M", "DDIM", "Heun"])
def test_a_journey_ends_with_the_plain_picture(webui, unharmed, name, scene):
    if name not in hosts.samplers():
        pytest.skip(f"this host has no sampler {name}")
    plain = webui.txt2img(*([scene] if scene else []), sampler_name=name)
    made = view_of(webui, "journey", sampler=name, scene=scene)
    steps = made["steps"]
    assert (pixels(made, steps[-1]["x0"]) == plain.pixels[0]).all()
    assert len(steps) >= hosts.STEPS and steps[-1]["sigma"] == 0
    sigmas = [step["sigma"] for step in steps]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] > 1
    if name == "Euler":  # whose last step goes to what the model takes the picture for
        assert abs(pixels(made, steps[-2]["x0"]) - plain.pixels[0]).max() <= 1


def test_between_and_a_bridge(webui, unharmed):
    made = view_of(
        webui, "between", **{"from": "red bricks", "to": "grass"}, stops=3, beyond=0.25, bridges=1, prompts=NAMES
    )
    ends = {stop["t"]: pixels(made, stop["file"]) for stop in made["stops"]}
    assert sorted(ends) == [-0.25, 0, 0.5, 1, 1.25]
    for t, prompt in ((0, "red bricks"), (1, "grass")):
        plain = webui.txt2img(prompt=prompt).pixels[0]
        assert abs(ends[t] - plain).max() <= hosts.tolerance()
    assert {one["prompt"] for one in made["bridges"]} <= set(NAMES) - {"red bricks", "grass"}
    for one in made["bridges"]:
        images = webui.txt2img(one["scene"], prompt="")
        assert abs(images.pixels[0] - pixels(made, one["file"])).max() <= hosts.tolerance()


def test_a_map_and_the_picture_of_a_place(webui, unharmed):
    made = view_of(webui, "map", prompt="", prompts=NAMES, columns=2, presets=False)
    assert [point["prompt"] for point in made["points"]] == NAMES and sum(made["explained"]) <= 1 + 1e-9
    place = made["places"][0]
    prompts = [made["points"][i]["prompt"] for i in place["points"]]
    x, y = (
        sum(w * made["points"][i][axis] for i, w in zip(place["points"], place["weights"], strict=True))
        for axis in "xy"
    )
    assert (x, y) == pytest.approx((place["x"], place["y"]), abs=1e-5)
    alone = view_of(webui, "place", prompts=prompts, weights=place["weights"])
    assert abs(pixels(alone, alone["file"]) - pixels(made, place["file"])).max() <= hosts.tolerance()


def test_a_place_is_what_its_scene_makes(webui, unharmed):
    made = view_of(webui, "place", prompts=["red bricks", "grass"], weights=[0.4, 0.6])
    scene = everywhere("grass")
    scene["concepts"][0]["weight"] = 0.6
    images = webui.txt2img(scene, prompt="red bricks")
    assert abs(images.pixels[0] - pixels(made, made["file"])).max() <= hosts.tolerance()


def test_a_grid_is_of_the_hosts_own_pictures(webui, unharmed):
    made = view_of(webui, "grid", seeds=[7, 8], step_counts=[2, 3], guidances=[1, 4], batch_size=2)
    assert len(made["cells"]) == 8 and made["sheet"] in made["files"]
    for cell in made["cells"][::3]:
        plain = webui.txt2img(seed=cell["seed"], steps=cell["steps"], cfg_scale=cell["guidance"])
        assert abs(pixels(made, cell["file"]) - plain.pixels[0]).max() <= hosts.tolerance()


@pytest.mark.parametrize("how", ["the host's interrupt", "stop"])
def test_a_view_is_stopped_and_keeps_what_it_has(webui, unharmed, how):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(look, webui, "grid", seeds=list(range(200)), batch_size=1, session="a test", steps=4)
        end = time.monotonic() + 120
        while "Sampling" not in (webui.progress.get("textinfo") or "") or webui.progress["state"]["job_no"] < 2:
            assert time.monotonic() < end and not asked.done()
            time.sleep(0.1)
        if how == "stop":
            assert webui.request("POST", f"{PATH}/stop", {"session": "a test"}).status == 204
        else:
            webui.post("/sdapi/v1/interrupt")
        made = asked.result().json
    assert made["interrupted"]
    done = [cell for cell in made["cells"] if cell["file"]]
    assert 1 <= len(done) < 200  # Forge counts the job that it begins
    plain = webui.txt2img(seed=done[-1]["seed"], steps=4)
    assert abs(pixels(made, done[-1]["file"]) - plain.pixels[0]).max() <= hosts.tolerance()


@pytest.mark.parametrize(
    ("view", "body", "path"),
    [
        ("journey", {"prompt": ""}, "prompt"),
        ("journey", {"sampler": "no such sampler"}, "sampler"),
        ("journey", {"scheduler": "no such schedule"}, "scheduler"),
        ("journey", {"scene": {"noise": {"exponent": 99}}}, "noise.exponent"),
        ("between", {"from": "a"}, "to"),
        ("map", {"prompts": ["a", "b"], "presets": False, "prompt": ""}, "prompts"),
        ("grid", {"seeds": ["1"]}, "seeds[0]"),
        ("place", {"prompts": ["a"], "weights": [2]}, "weights"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_its_path(webui, unharmed, view, body, path):
    answer = look(webui, view, **body)
    assert answer.status == 422, str(answer)
    assert [problem["path"].removeprefix("scene.") for problem in answer.json] == [path]
