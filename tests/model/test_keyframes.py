"""Concepts that change over the frames, in pictures of the built-in model."""

import numpy as np
import pytest

from lib_masknoise.hosts.diffusers import encoding as host
from lib_masknoise.hosts.diffusers import render
from lib_masknoise.scene import Scene
from tools.small_model.patch_classifier import CONCEPTS, PatchClassifier

SIZE = (64, 192)
NOISE = {"visual": {"strength": 0.6}, "concept": {"strength": 0.8}, "feature": {"strength": 0.5}}
MOVING = {
    "concepts": [
        {
            "prompt": "a wheat field",
            "interpolation": "spherical",
            "keyframes": [
                {"frame": 0, "mask": {"kind": "ellipse", "x": 0.2, "rx": 0.2, "ry": 0.5, "feather": 0.4}},
                {"frame": 3, "prompt": "a dark forest", "negative": "snow"},
                {"frame": 5, "weight": 0.3, "mask": {"kind": "split", "from": 0.6, "to": 1.0, "feather": 0.2}},
            ],
        },
        {"prompt": "a desert", "mask": {"kind": "split", "axis": "y", "from": 0.7, "to": 1, "feather": 0.3}},
    ],
    "noise": {**NOISE, "concept": {"strength": 0.8, "motion": {"kind": "walk"}}},
    "motion": {"kind": "circle"},
    "animation": {"frames": 6},
}


def images(pipe, scene, prompt="an ocean", negative_prompt="lava", **options):
    options = {"seed": 11, "steps": 4, "size": SIZE} | options
    frames = render(pipe, Scene.parse(scene), prompt, negative_prompt, **options)
    return {frame.index: np.asarray(frame.image).astype(int) for frame in frames}


def plain(pipe, prompt, negative_prompt="lava"):
    still = Scene.parse({"enabled": False})
    frames = render(pipe, still, prompt, negative_prompt, seed=11, steps=4, size=SIZE)
    return np.asarray(next(frames).image).astype(int)


def close(a, b, levels=1):
    return np.abs(a - b).max() <= levels


@pytest.mark.parametrize("interpolation", ["linear", "spherical"])
def test_at_a_keyframe_its_prompt_is_plain_generation(pipe, interpolation):
    keys = [
        {"frame": 0, "prompt": "a wheat field"},
        {"frame": 4, "prompt": "a dark forest", "negative": "snow"},
    ]
    scene = {
        "concepts": [{"prompt": "", "interpolation": interpolation, "keyframes": keys}],
        "animation": {"frames": 8},
    }
    frames = images(pipe, scene, frames=[0, 2, 4], batch_size=3)
    wheat, forest = plain(pipe, "a wheat field"), plain(pipe, "a dark forest", "snow")
    assert close(frames[0], wheat) and close(frames[4], forest)
    assert not close(frames[2], wheat, 20) and not close(frames[2], forest, 20)


def test_a_frame_is_the_same_at_any_batch_size_and_a_loop_closes(pipe):
    together = images(pipe, MOVING, batch_size=6)
    for index, image in images(pipe, MOVING, frames=[5, 0, 2, 6], batch_size=1).items():
        assert close(image, together[index % 6])
    assert not close(together[0], together[3], 20)


def test_a_keyframe_looks_like_the_still_scene(pipe):
    scene = {**MOVING, "noise": {"visual": {"strength": 0.6}}}
    key = MOVING["concepts"][0]["keyframes"][2]
    still = {"prompt": "a wheat field", "mask": key["mask"], "weight": key["weight"]}
    expected = images(pipe, {**scene, "concepts": [still, MOVING["concepts"][1]]}, frames=[5])
    assert close(images(pipe, scene, frames=[5])[5], expected[5])


def test_every_distinct_prompt_is_encoded_once(pipe, monkeypatch):
    encoded = []
    encode = host._encode
    monkeypatch.setattr(host, "_encode", lambda pipe, prompt: encoded.append(prompt) or encode(pipe, prompt))
    images(pipe, MOVING, "a wheat field", frames=[0, 1], steps=1)
    assert sorted(encoded) == ["a dark forest", "a desert", "a wheat field", "lava", "snow"]


def test_a_moving_mask_moves_the_region(pipe):
    """By the classifier: the concept is where its mask is, the base where the mask has been."""
    left, right = ({"kind": "split", "from": a, "to": b, "feather": 0.1} for a, b in ((0.0, 0.4), (0.6, 1.0)))
    keys = [{"frame": 0, "mask": left}, {"frame": 4, "mask": right}]
    scene = {
        "concepts": [{"prompt": "a wheat field", "keyframes": keys}],
        "motion": {"loop": False},
        "animation": {"frames": 5},
    }
    classifier = PatchClassifier()
    shares = np.zeros((3, 12))
    for seed in range(3):
        frames = images(pipe, scene, negative_prompt="", seed=seed, steps=10, frames=[0, 2, 4], batch_size=3)
        for row, image in zip(shares, frames.values(), strict=True):
            found = classifier.grid_probs(image.astype(np.uint8)).argmax(-1)  # [4, 12] patches
            row += (found == CONCEPTS.index("wheat field")).mean(0) / 3
    first, middle, last = shares
    figures = np.round(shares, 2)
    assert first[:4].mean() > 0.8 and first[6:].mean() < 0.1, figures
    assert middle[4:8].mean() > 0.7 and middle[[0, 1, 10, 11]].mean() < 0.1, figures
    assert last[8:].mean() > 0.8 and last[:6].mean() < 0.1, figures


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.5, 1.0)])
def test_a_concept_in_a_part_of_the_steps(pipe, start, end):
    """Is the whole scene's window, where it is the only concept."""
    options = {"seed": 3, "steps": 4, "size": (64, 64)}
    own = {"concepts": [{"prompt": "an ocean", "negative": "lava", "start": start, "end": end}]}
    all_of_them = {"concepts": [{"prompt": "an ocean", "negative": "lava"}], "blend": {"start": start, "end": end}}
    one, other, whole = (
        np.asarray(next(render(pipe, Scene.parse(scene), "a marsh", **options)).image).astype(int)
        for scene in (own, all_of_them, {"concepts": [{"prompt": "an ocean", "negative": "lava"}]})
    )
    assert abs(one - other).max() <= 1 < abs(one - whole).max()
