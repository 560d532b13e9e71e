"""The useful range by its route, on the model that the WebUI has loaded."""

from __future__ import annotations

import pytest

PATH = "/masknoise/v1/calibrate"


@pytest.mark.slow
def test_the_range_of_the_loaded_model(webui):
    job = {"steps": 2, "width": 64, "height": 64}
    before = webui.txt2img(**job)
    asked = {"prompts": ["a forest"], "width": 64, "height": 64, "guidance_scale": 4, "again": True}
    answer = webui.request("POST", PATH, asked)
    assert answer.status == 200, str(answer)
    profile = answer.json
    assert webui.get("/masknoise/v1/profile") == profile
    assert profile["prompts"] == ["a forest"] and len(profile["model"]) == 64
    assert all(band["rows"] <= 40 for band in profile["effects"].values())
    visual = profile["effects"]["noise.visual.strength"]
    assert 0 < visual["visible"] < 1 and visual["broken"] is None
    assert webui.txt2img(**job).hashes == before.hashes
    again = webui.request("POST", PATH, {**asked, "again": False})
    assert again.json == profile


@pytest.mark.slow
def test_directions_of_style_of_the_loaded_model(webui):
    job = {"steps": 2, "width": 64, "height": 64}
    before = webui.txt2img(**job)
    asked = {"style": True, "width": 64, "height": 64, "again": True}
    answer = webui.request("POST", PATH, asked)
    assert answer.status == 200, str(answer)
    assert set(answer.json["style"]["mixtures"]) == {"style", "layout"}
    assert webui.txt2img(**job).hashes == before.hashes
    scene = {"noise": {"feature": {"strength": 1.0, "dimensions": "style"}}}
    assert webui.txt2img(scene, **job).hashes != before.hashes
    assert webui.request("POST", PATH, {**asked, "again": False}).json == answer.json


@pytest.mark.parametrize("body, path", [({"width": 65}, "width"), ({"prompts": ["a"] * 9}, "prompts"), ({"x": 1}, "x")])
def test_what_is_wrong_is_refused_by_its_path(webui, body, path):
    answer = webui.request("POST", PATH, body)
    assert (answer.status, [problem["path"] for problem in answer.json]) == (422, [path])
