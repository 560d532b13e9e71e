"""img2img and inpainting: the same scenes, on the way from a picture."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lib_masknoise import infotext
from lib_masknoise.scene import Scene
from tests.standin.test_blending import LONG, calls, covered, error
from tests.standin.test_webui import TREE, moving, refused

__all__ = ["calls", "refused"]  # fixtures

HOSTS = [{}, {"forge": "unet"}]


@pytest.mark.parametrize("start", HOSTS)
@pytest.mark.parametrize("text", ["blue sea", LONG, "blue AND green:0.6", "[blue:green:0.5] sea"])
def test_a_full_mask_is_the_host_with_that_prompt(host, start, text):
    host.start(**start)
    options = {"img2img": True, "negative_prompt": "ugly", "steps": 4, "denoising_strength": 0.75}
    assert error(host.latents(covered(text), **options), host.latents(prompt=text, **options)) < 2e-5


@pytest.mark.parametrize("values", [None, "", {}, {"concepts": []}, {**TREE, "enabled": False}])
def test_neutral_scenes_do_nothing(host, values):
    assert torch.equal(host.latents(values, img2img=True), host.latents(img2img=True))


def test_a_wrong_scene_is_refused(host, refused):
    wrong = {"concepts": [{"prompt": "x", "weight": 9}]}
    assert "from -4 to 4" in refused(wrong, img2img=True)["concepts[0].weight"]


def test_the_scene_acts_in_as_many_calls_as_the_strength_leaves(host, calls):
    counts = []
    for strength in (0.1, 0.9):
        options = dict(img2img=True, steps=10, denoising_strength=strength)
        plain = host.latents(**options)
        made = len(calls)
        calls.clear()
        assert error(host.latents(TREE, **options), plain) > 0.01
        assert len(calls) == made
        calls.clear()
        counts.append(made)
    assert counts[0] < counts[1]


@pytest.mark.parametrize("start", HOSTS)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_frames_are_the_same_in_every_batch(host, start, batch):
    host.start(**start)
    wanted = moving(5, ("gif",), "green tree")
    frames, alone = host.latents(wanted, img2img=True, batch_size=batch), host.latents(wanted, img2img=True)
    assert len(frames) == 5 and error(frames, alone) < 1e-5
    assert error(frames[1:], frames[:-1]) > 1e-2, "the frames move"


def test_what_is_held_stands_still(host):
    noise = {"visual": {"strength": 1.0}}
    held = covered("green tree", noise=noise, motion={"kind": "circle"}, animation={"frames": 3})
    frames = host.latents(held, img2img=True)
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[0], frames[2])


@pytest.mark.parametrize("factor", [0.0, 0.7])
def test_visual_noise_is_as_strong_as_the_noise_of_the_pass(host, monkeypatch, factor):
    from modules.sd_samplers import Sampler

    seen = []

    def sample_img2img(self, p, x, noise, *rest, original=Sampler.sample_img2img):
        seen.append(noise.clone())
        return original(self, p, x, noise, *rest)

    monkeypatch.setattr(Sampler, "sample_img2img", sample_img2img)
    wanted = moving(2)
    host.run(wanted, img2img=True)
    host.run(wanted, img2img=True, initial_noise_multiplier=factor)
    assert len(seen) == 4 and torch.allclose(seen[3], seen[1] * factor, atol=1e-6)


def test_inpainting_keeps_what_is_not_masked(host):
    mask = np.zeros((4, 6), np.float32)
    mask[:, 3:] = 1
    options = {"img2img": True, "image_mask": mask, "inpaint_full_res": False}
    ours, plain = host.latents(TREE, **options), host.latents(**options)
    assert torch.equal(ours[..., :3], plain[..., :3]) and error(ours[..., 3:], plain[..., 3:]) > 1e-3


def seen_maps(monkeypatch):
    """The weight maps of the passes to come, one `[B, N, h, w]` of each row's picture."""
    from lib_masknoise.hosts.webui.rows import Rows

    seen = []

    def positive(self, *given, original=Rows.positive):
        seen.append(torch.cat([self.maps_of(i).weights() for i in range(len(self.pictures))]))
        return original(self, *given)

    monkeypatch.setattr(Rows, "positive", positive)
    return seen


LEFT = {"concepts": [{"prompt": "a tree", "mask": {"kind": "split", "to": 0.5}}]}


def test_with_only_masked_the_masks_lie_over_the_picture(host, monkeypatch):
    """The right half is painted anew: of a mask that covers the left quarter of that, a quarter is seen."""
    seen = seen_maps(monkeypatch)
    p = host.job({"concepts": [{"prompt": "a tree", "mask": {"kind": "split", "to": 0.625}}]}, img2img=True)
    p.paste_to, p.mask_for_overlay = (p.width, 0, p.width, p.height), Image.new("L", (2 * p.width, p.height))
    host.process(p)
    width = seen[0].shape[-1]
    assert seen[0][0, 0].mean() == pytest.approx(0.25) and seen[0][0, 0, :, : width // 4].mean() == 1


def test_what_fills_the_wanted_shape_is_part_of_the_part(host, monkeypatch):
    """A part that is too narrow is made wider on both sides by the host."""
    seen = seen_maps(monkeypatch)
    p = host.job(LEFT, img2img=True)
    side = 8 * p.width
    p.paste_to = side // 2 - p.width // 4, 0, p.width // 2, p.height
    p.mask_for_overlay = Image.new("L", (side, p.height))
    host.process(p)
    assert seen[0].mean() == pytest.approx(0.5)


class Upscaling:
    """The host's script, as far as it is looked at before it runs."""

    args_from, args_to = 1, 5

    def __init__(self, title):
        self.title = lambda: title
        self.controls = [SimpleNamespace(label=label) for label in ("", "Tile overlap", "Upscaler", "Scale Factor")]


@pytest.mark.parametrize("title", ["SD upscale", "SD Upscale"])
@pytest.mark.parametrize("batch", [1, 2])
def test_each_tile_of_sd_upscale_sees_its_part_of_the_masks(host, monkeypatch, title, batch):
    seen = seen_maps(monkeypatch)
    p = host.job(LEFT, img2img=True, batch_size=batch)
    p.scripts.selectable_scripts = [Upscaling(title)]
    p.script_args = (1, "", 0, "Lanczos", 2.0)
    p.init_images = [Image.new("RGB", (p.width, p.height))]  # two tiles in each direction
    grid = [[y, p.height, [[x, p.width, None] for x in (0, p.width)]] for y in (0, p.height)]
    monkeypatch.setattr(host.images, "split_grid", lambda *_: SimpleNamespace(tiles=grid), raising=False)
    p.scripts.run("setup", p)
    for _ in range(0, 4, batch):
        p.init_images = [Image.new("RGB", (p.width, p.height))] * batch
        host.process(p)
    parts = torch.cat([seen[i] for i in range(0, len(seen), len(seen) * batch // 4)])
    assert parts.mean(dim=(1, 2, 3)).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_tiles_are_no_frames(host):
    p = host.job(moving(3, ("gif",), "tree"), img2img=True)
    p.masknoise_tiles = host.parts.Tiles([(0, 0, 1, 1)])
    p.init_images = [Image.new("RGB", (p.width, p.height))]
    with pytest.raises(Exception, match="expected 1"):
        host.process(p)


def test_the_infotext_gives_the_scene_again(host):
    processed = host.run(moving(3, ("gif",), "tree"), img2img=True, batch_size=2)
    assert infotext.read(processed.extra_generation_params) == Scene.parse(moving(3, ("gif",), "tree"))
    assert len(processed.images) == 4, "three frames and the animation"
