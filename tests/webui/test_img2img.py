"""img2img and inpainting: the same scenes, on the way from a picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.webui import hosts
from tests.webui.client import Images, difference
from tests.webui.compare import NEAR
from tests.webui.scenes import animated, concept, everywhere, halves, painted, split

ITSELF = 5
"""Of 255: as far from itself A1111's img2img has been seen, without anything of ours."""


@pytest.fixture(scope="module")
def grey() -> str:
    return _png(Image.new("RGB", (hosts.SIZE, hosts.SIZE), (128, 128, 128)))


@pytest.fixture(scope="module")
def same(webui, grey):
    """Raises where two pictures are further apart than the host's own img2img is from itself: some encode the input
    picture with a draw that no seed decides, and mostly it is the same and now and then not."""
    own = [webui.img2img(grey) for _ in range(4)]
    most = max(ITSELF, *(difference(one, other) for one in own for other in own))

    def assert_same(one: Images, other: Images, what: str) -> None:
        measured = difference(one, other)
        NEAR.append((measured, what, hosts.SAMPLER))
        assert measured <= most + hosts.tolerance(hosts.SAMPLER, "Latent"), f"{what}: {measured}, itself: {most}"

    return assert_same


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _middle() -> str:
    pixels = np.zeros((hosts.SIZE, hosts.SIZE), np.uint8)
    pixels[MIDDLE, MIDDLE] = 255
    return _png(Image.fromarray(pixels))


MIDDLE = slice(hosts.SIZE // 4, hosts.SIZE * 3 // 4)
INPAINTING = {"mask": _middle(), "mask_blur": 0, "inpainting_fill": 1}
KINDS = {
    "img2img": {},
    "inpainting": {**INPAINTING, "inpaint_full_res": False},
    "only masked": {**INPAINTING, "inpaint_full_res": True, "inpaint_full_res_padding": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_host_s_own_picture(webui, grey, same, kind):
    plain = webui.img2img(grey, **KINDS[kind])
    off = webui.img2img(grey, scene={**everywhere("lava"), "enabled": False}, **KINDS[kind])
    same(off, plain, f"{kind}, off")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_mask_is_the_host_with_that_prompt(webui, grey, same, kind):
    plain = webui.img2img(grey, prompt="lava", **KINDS[kind])
    same(webui.img2img(grey, scene=everywhere("lava"), **KINDS[kind]), plain, kind)


def test_two_concepts_are_two_places(webui, grey):
    own = [webui.img2img(grey, prompt=prompt) for prompt in ("an ocean", "lava")]
    both = webui.img2img(grey, scene=halves("an ocean", "lava"))
    _assert_halves(both, *own)


def test_with_only_masked_masks_lie_over_the_picture(webui, grey, same):
    """The middle is painted anew: its left half is the scene's left half."""
    own = [webui.img2img(grey, prompt=prompt, **KINDS["only masked"]) for prompt in ("an ocean", "lava")]
    both = webui.img2img(grey, scene=halves("an ocean", "lava"), **KINDS["only masked"])
    _assert_halves(both, *own, np.s_[MIDDLE, hosts.SIZE * 5 // 16 : hosts.SIZE * 7 // 16])
    # A mask over what is not painted anew has no say.
    beside = webui.img2img(grey, scene={"concepts": [concept("lava", mask=split(0.0, 0.2))]}, **KINDS["only masked"])
    same(beside, webui.img2img(grey, **KINDS["only masked"]), "a mask beside the part")


def _assert_halves(both: Images, left: Images, right: Images, part=np.s_[:, : hosts.SIZE // 4]) -> None:
    """What is in a part of the left half, and where its mirror image lies, is what each prompt gives there."""
    rows, columns = part
    mirror = rows, slice(hosts.SIZE - columns.stop, hosts.SIZE - (columns.start or 0))
    for place, own, other in ((part, left, right), (mirror, right, left)):
        near, far = (np.abs(both.pixels[0][place] - alone.pixels[0][place]).mean() for alone in (own, other))
        assert near < far


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_the_same_in_every_batch(webui, grey, same, kind):
    batch, own = (webui.img2img(grey, batch_size=n, **KINDS[kind]).pixels[-n] for n in (3, 1))
    if abs(batch - own).max() > 2 * ITSELF:
        pytest.skip("this host's own pictures of this kind depend on the size of the batch")
    scene = animated(3)
    together = webui.img2img(grey, scene=scene, batch_size=3, **KINDS[kind])
    alone = webui.img2img(grey, scene=scene, batch_size=1, **KINDS[kind])
    assert len(together.pixels) == 3 and list(together.files) == ["gif"]
    same(together, alone, f"{kind}, batches")


def test_a_painted_mask_acts(webui, grey):
    plain = webui.img2img(grey)
    assert difference(webui.img2img(grey, scene={"concepts": [concept("lava", mask=painted())]}), plain) > 8


# --- SD upscale


@pytest.fixture(scope="module")
def upscale(webui):
    """The host's own script: what it is called, and its arguments by their labels in lower case."""
    found = [one for one in webui.get("/sdapi/v1/script-info") if one["name"] == "sd upscale" and one["is_img2img"]]
    if not found:
        pytest.skip("this host has no SD upscale")
    values = {"tile overlap": 32, "scale factor": 2.0, "upscaler": webui.get("/sdapi/v1/upscalers")[1]["name"]}
    arguments = [values.get(argument["label"].lower(), False) for argument in found[0]["args"]]
    title = next(name for name in webui.get("/sdapi/v1/scripts")["img2img"] if name.lower() == "sd upscale")
    return {"script_name": title, "script_args": arguments, "width": hosts.SIZE, "height": hosts.SIZE}


@pytest.mark.parametrize("batch", [1, 2])
def test_each_tile_has_its_part_of_the_masks(webui, grey, upscale, batch):
    """The large picture has the concepts' halves once, not in each of its tiles."""
    job = {**upscale, "batch_size": batch}
    own = [webui.img2img(grey, prompt=prompt, **job) for prompt in ("an ocean", "lava")]
    both = webui.img2img(grey, scene=halves("an ocean", "lava"), **job)
    width = both.pixels[0].shape[1]
    assert width == 2 * hosts.SIZE
    for place, near, far in ((np.s_[:, : width // 3], *own), (np.s_[:, -width // 3 :], *own[::-1])):
        distances = [np.abs(both.pixels[0][place] - one.pixels[0][place]).mean() for one in (near, far)]
        assert distances[0] < distances[1]


def test_tiles_are_no_frames(webui, grey, upscale):
    answer = webui.ask(animated(3), path="img2img", init_images=[grey], **upscale)
    assert answer.status == hosts.host().refuses and "animation.frames" in str(answer)
