"""Noise that only some layers see, on U-Nets of diffusers, and directions that a profile has."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from lib_masknoise.hosts.diffusers import load_pipeline, render
from lib_masknoise.hosts.diffusers.blocks import layer_tags
from lib_masknoise.scene import Scene, SceneError

LAYOUTS = {  # published configurations, in fewer channels, and what the first implementation calls their blocks
    "SD 1": (
        dict(
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=(32,) * 4,
        ),
        {
            "fine": "in1 in2 out9 out10 out11",
            "middle": "in4 in5 out6 out7 out8",
            "coarse": "in7 in8 mid out3 out4 out5",
        },
    ),
    "SDXL": (
        dict(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32,) * 3,
            transformer_layers_per_block=(1, 2, 3),
        ),
        {"fine": "in4 in5 out3 out4 out5", "coarse": "in7 in8 mid out0 out1 out2"},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_have_the_names_of_the_first_implementation(name):
    config, expected = LAYOUTS[name]
    unet = UNet2DConditionModel(cross_attention_dim=8, norm_num_groups=8, attention_head_dim=8, **config)
    tags = layer_tags(unet)
    assert set(tags) == {name for name in unet.attn_processors if "attn2" in name}
    found: dict[str, set[str]] = {}
    for own in tags.values():
        (group,) = own & {"fine", "middle", "coarse"}
        found.setdefault(group, set()).update(own - {group})
    assert found == {group: set(blocks.split()) for group, blocks in expected.items()}


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def pictures(pipe, noise: dict, batch_size: int = 4, **parts) -> np.ndarray:
    mask = {"kind": "split", "to": 0.5, "feather": 0.2}
    scene = Scene.parse({"concepts": [{"prompt": "an ocean", "mask": mask}], "noise": noise, **parts})
    made = render(pipe, scene, "a forest", seed=3, size=(64, 64), steps=3, batch_size=batch_size)
    return np.stack([np.asarray(frame.image, dtype=np.float32) for frame in made])


def test_layers_divide_the_noise_between_them(pipe):
    feature = {"strength": 1.0, "dimensions": "0-15"}
    concept = {"strength": 1.0}
    plain = pictures(pipe, {})
    for name, own in (("feature", feature), ("concept", concept)):
        every = pictures(pipe, {name: own})
        assert np.array_equal(every, pictures(pipe, {name: {**own, "layers": "coarse,fine"}}))
        coarse, fine = (pictures(pipe, {name: {**own, "layers": layers}}) for layers in ("coarse", "fine"))
        named = pictures(pipe, {name: {**own, "layers": "in3,mid,out0-1"}})
        assert np.array_equal(named, coarse)
        different = [plain, every, coarse, fine]
        for i, one in enumerate(different):
            assert all(np.abs(one - other).mean() > 0.1 for other in different[:i])


def test_frames_are_the_same_in_any_batch(pipe):
    noise = {"feature": {"strength": 1.0, "dimensions": "0-15", "layers": "fine"}}
    moving = {"motion": {"kind": "circle"}, "animation": {"frames": 3}}
    together = pictures(pipe, noise, **moving)
    alone = pictures(pipe, noise, batch_size=1, **moving)
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together[0] - together[1]).mean() > 0.1


def test_layers_that_a_model_lacks_are_refused_before_anything_is_made(pipe):
    with pytest.raises(SceneError, match='noise.feature.layers: .* coarse, fine, in1, .*got "middle"'):
        pictures(pipe, {"feature": {"strength": 1.0, "layers": "middle"}})
    assert all(type(p).__module__.startswith("diffusers") for p in pipe.unet.attn_processors.values())
    assert torch.is_grad_enabled()
