"""The order of the initial noise in a running host: a picture by each form, and what is written into it."""

from __future__ import annotations

import pytest

from tests.webui import hosts
from tests.webui.client import difference
from tests.webui.scenes import animated, halves

TIMES = [1000, 900, 800, 700, 600]
FORMS = {
    "choose": {"choose": 3},
    "erase": {"erase": 8},
    "erase, held": {"erase": 8, "where": "pinned"},
    "text": {"inject": {"strength": 4.0}},
    "text, late": {"inject": {"strength": 4.0, "times": [1000, 700], "weights": [0.3, 0.7]}, "where": "free"},
    "prediction": {"inject": {"form": "prediction", "strength": 0.8, "times": TIMES}},
    "published": {"inject": {"form": "prediction", "strength": 0.2, "times": TIMES, "restandardise": False}},
}


def ordered(initial, **parts):
    return halves("an ocean", "red bricks", feather=0.2, noise={"initial": initial}, **parts)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_makes_a_picture_that_its_infotext_makes_again(webui, form):
    first = webui.txt2img(ordered(FORMS[form]))
    assert len(first.raw) == 1 and "MaskNoise error" not in first.parameters
    assert any(key.startswith("MaskNoise initial noise") for key in first.parameters)
    if form != "choose":  # which may find that the image's own noise is the best
        assert difference(first, webui.txt2img(ordered({}))) > 2
    if hosts.host().infotext:
        again = webui.txt2img(infotext=first.infotexts[0])
        assert difference(again, first) <= 1


def test_off_is_the_picture_without_it(webui):
    off = {"choose": 1, "erase": 1, "inject": {"strength": 0, "form": "prediction"}, "where": "free"}
    assert webui.txt2img(ordered(off)).hashes == webui.txt2img(ordered({})).hashes


def test_an_image_is_the_same_alone_and_in_a_batch(webui, sampler):
    def apart(scene):
        ways = ({"batch_size": 2}, {"n_iter": 2})
        return difference(*(webui.txt2img(scene, sampler_name=sampler, **way) for way in ways))

    found = apart(ordered(FORMS["text"]))
    if found > hosts.tolerance(sampler) and apart(None) > hosts.tolerance(sampler):
        pytest.skip(f"the steps of {sampler} depend on the whole batch, also without MaskNoise")
    assert found <= hosts.tolerance(sampler)


@pytest.mark.parametrize("cfg", [1, 4])
def test_frames_are_the_same_at_every_batch_size(webui, cfg):
    scene = animated(3)
    scene["noise"]["initial"] = FORMS["text"]
    together = webui.txt2img(scene, batch_size=3, cfg_scale=cfg)
    assert difference(together, webui.txt2img(scene, batch_size=1, cfg_scale=cfg)) <= hosts.tolerance("Euler")


@pytest.mark.parametrize(
    "wrong, path",
    [
        ({"choose": 0}, "noise.initial.choose"),
        ({"inject": {"times": [0]}}, "noise.initial.inject.times"),
        ({"inject": {"times": [900, 800], "weights": [1]}}, "noise.initial.inject.weights"),
        ({"eraze": 3}, "noise.initial.eraze"),
    ],
)
def test_a_wrong_field_is_refused(webui, wrong, path):
    answer = webui.ask(ordered(wrong))
    assert answer.status == 422
    assert path in {problem["path"] for problem in answer.json["detail"]}
