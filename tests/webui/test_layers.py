"""Noise that only some cross-attention layers see, and directions of style."""

from __future__ import annotations

import pytest

from tests.webui.client import difference
from tests.webui.compare import assert_near
from tests.webui.scenes import concept, split

FEATURE = {"strength": 1.0, "dimensions": "0-15"}
CONCEPT = {"strength": 1.0}


def _scene(**noise):
    return {"concepts": [concept("an ocean", mask=split(0, 0.4, 0.1))], "noise": noise}


@pytest.mark.parametrize("name, own", [("feature", FEATURE), ("concept", CONCEPT)])
def test_other_layers_make_another_picture(webui, name, own):
    plain, every, coarse, fine = (
        webui.txt2img(scene)
        for scene in (
            _scene(),
            _scene(**{name: own}),
            _scene(**{name: {**own, "layers": "coarse"}}),
            _scene(**{name: {**own, "layers": "fine"}}),
        )
    )
    made = [plain, every, coarse, fine]
    for i, one in enumerate(made):
        assert all(difference(one, other) > 0 for other in made[:i])
    assert fine.parameters[f"MaskNoise {name} noise layers"] == "fine"
    assert webui.txt2img(_scene(**{name: {**own, "layers": "all"}})).hashes == every.hashes


def test_frames_are_the_same_in_any_batch(webui):
    scene = {
        **_scene(feature={**FEATURE, "layers": "coarse"}, concept={**CONCEPT, "layers": "fine"}),
        "motion": {"kind": "circle"},
        "animation": {"frames": 3},
    }
    one, other = (webui.txt2img(scene, batch_size=size) for size in (1, 3))
    assert_near(one, other, "frames in another batch", "Euler")


def test_directions_of_style_are_those_of_the_profile_or_refused(webui):
    scene = _scene(feature={"strength": 1.0, "dimensions": "style"})
    known = webui.request("GET", "/masknoise/v1/profile")
    if known.status == 200 and "style" in known.json:
        assert difference(webui.txt2img(scene), webui.txt2img(_scene())) > 0
        return
    answer = webui.ask(scene)
    if answer.status == 200:
        pytest.skip("the style of this model is in the profile of the command line")
    (problem,) = answer.json["detail"]
    assert problem["path"] == "noise.feature.dimensions" and "calibrate --style" in problem["message"]
