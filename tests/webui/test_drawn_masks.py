"""What a scene draws by itself: choices in prompts, masks by colour, masks that are another picture at every frame, and
the way through chosen seeds. Each is held to a scene, or to a job without one, that says the same in plain words."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.webui.client import Images, difference
from tests.webui.compare import assert_near
from tests.webui.scenes import concept, halves, png, split

PLACES = ("an ocean", "a forest", "lava", "snow")


def _drawn(made: Images) -> list[str]:
    """The first concept's prompt of each picture, as its infotext has it."""
    return [re.search(r"MaskNoise concept 1 prompt: ([^,\n]+)", text).group(1) for text in made.infotexts]


def test_choices_are_decided_by_the_images_seed(webui, unharmed):
    scene = {"concepts": [concept("{" + "|".join(PLACES) + "}", mask=split(0, 0.5, 0.2))]}
    batch = webui.txt2img(scene, batch_size=4)
    chosen = _drawn(batch)
    assert set(chosen) <= set(PLACES) and len(set(chosen)) > 1, f"{chosen} of {PLACES}"
    for index, prompt in enumerate(chosen):
        alone = webui.txt2img(scene, seed=7 + index)
        said = webui.txt2img({"concepts": [{**scene["concepts"][0], "prompt": prompt}]}, seed=7 + index)
        assert _drawn(alone) == [prompt]
        assert alone.hashes == said.hashes
        assert abs(batch.pixels[index] - said.pixels[0]).max() <= 2, f"picture {index} of the batch"


def test_a_wildcard_that_is_not_there_is_refused_with_its_path(webui, unharmed):
    answer = webui.ask({"concepts": [concept("a __no such list__")]})
    assert answer.status == 422, str(answer)
    assert "concepts[0].prompt" in str(answer) and "no such list.txt" in str(answer)


def _colours() -> np.ndarray:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (255, 0, 0), (0, 0, 255)
    return picture


def test_one_picture_of_colours_is_the_masks_of_all_concepts(webui, unharmed):
    data = png(_colours())
    coded = [
        concept(prompt, mask={"kind": "image", "data": data, "colour": colour})
        for prompt, colour in (("an ocean", "#ff0000"), ("lava", "#0000ff"))
    ]
    assert_near(webui.txt2img({"concepts": coded}), webui.txt2img(halves("an ocean", "lava")), "colours", "Euler")
    coded[1]["mask"]["colour"] = "#00ff00"
    answer = webui.ask({"concepts": coded})
    assert answer.status == 422 and "concepts[1].mask.colour" in str(answer) and "#0000ff" in str(answer)


def _sequence(pictures: list[np.ndarray]) -> str:
    file = io.BytesIO()
    first, *others = [Image.fromarray(picture) for picture in pictures]
    first.save(file, "PNG", save_all=True, append_images=others, default_image=False)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_sequence_is_another_mask_at_every_frame(webui, unharmed):
    bars = [np.zeros((64, 64), np.uint8) for _ in range(3)]
    for index, bar in enumerate(bars):
        bar[:, 20 * index : 20 * index + 24] = 255
    moving = concept("lava", mask={"kind": "image", "data": _sequence(bars), "sequence": "frames"})
    made = webui.txt2img({"concepts": [moving], "animation": {"frames": 3}}, batch_size=2)
    assert len(made.pixels) == 3
    for frame, bar in zip(made.pixels, bars, strict=True):
        still = webui.txt2img({"concepts": [concept("lava", mask={"kind": "image", "data": png(bar)})]})
        assert abs(frame - still.pixels[0]).max() <= 2
    assert abs(made.pixels[0] - made.pixels[2]).max() > 20, "the mask did not move"


@pytest.mark.parametrize("size", [1, 3])
def test_travel_meets_the_pictures_of_its_seeds(webui, unharmed, size):
    """Without a loop, five frames go from the job's seed over 12 to 30, which the first, third and fifth are."""
    scene = {
        "noise": {"visual": {"strength": 1.0, "seeds": "12, 30"}},
        "motion": {"kind": "linear", "loop": False},
        "animation": {"frames": 5},
    }
    made = webui.txt2img(scene, batch_size=size)
    for index, seed in ((0, 7), (2, 12), (4, 30)):
        plain = webui.txt2img(seed=seed)
        assert abs(made.pixels[index] - plain.pixels[0]).max() <= 2, f"frame {index} and the picture of seed {seed}"
    assert difference(webui.txt2img(seed=7), webui.txt2img(seed=12)) > 20
