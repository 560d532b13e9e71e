"""The way through seeds on the built-in model: the seeds' own pictures are met."""

import numpy as np
import pytest

from lib_masknoise.hosts.diffusers import render
from lib_masknoise.scene import Scene

SCENE = {
    "noise": {"visual": {"strength": 1.0, "seeds": "40"}},
    "motion": {"kind": "linear", "loop": False},
    "animation": {"frames": 3},
}


def pictures(pipe, scene, **options):
    made = render(pipe, Scene.parse(scene), "an ocean", steps=4, size=(64, 64), **options)
    return [np.asarray(frame.image).astype(int) for frame in made]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_ends_are_the_pictures_of_the_seeds(pipe, batch_size):
    first, middle, last = pictures(pipe, SCENE, seed=3, batch_size=batch_size)
    for picture, seed in ((first, 3), (last, 40)):
        (own,) = pictures(pipe, {}, seed=seed)
        assert np.abs(picture - own).max() <= 1
    assert np.abs(middle - first).mean() > 3 and np.abs(middle - last).mean() > 3
