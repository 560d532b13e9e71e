"""Masks that are sequences of pictures, in a job of the WebUI: every frame is the still of its picture."""

import numpy as np
import pytest
import torch

from lib_masknoise import ImageMask, Scene, infotext
from tests.standin.test_blending import error

PICTURES = [np.tile(np.linspace(k % 2, 1 - k % 2, 16), (8, 1)) ** (k + 1) for k in range(3)]


def scene(mask: ImageMask, frames: int = 1) -> dict:
    concept = {"prompt": "green tree", "mask": mask}
    return Scene(concepts=[concept], motion={"loop": False}, animation={"frames": frames}).to_dict()


@pytest.mark.parametrize("forge", ["", "unet", "transformer"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_frame_is_the_still_of_its_picture(host, forge, batch_size):
    host.start(torch.float64, forge=forge)
    made = host.latents(scene(ImageMask.of(PICTURES), 4), seed=3, batch_size=batch_size)
    stills = [host.latents(scene(ImageMask.of(one)), seed=3) for one in PICTURES]
    for frame, still in enumerate([*stills, stills[2]]):
        assert error(made[frame : frame + 1], still) < 1e-6
    assert error(stills[1], stills[0]) > 0.01


def test_a_sequence_comes_back_from_the_infotext(host):
    mask = ImageMask.of(PICTURES)
    mask = ImageMask(data=mask.data, sequence="stretch", picture=1)
    given = scene(mask, 2)
    params = host.run(given).extra_generation_params
    assert infotext.read(params).concepts == Scene.parse(given).concepts
