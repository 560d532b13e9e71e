"""The way through seeds in a host: its ends are the host's own pictures of these seeds."""

import pytest
import torch

from tests.standin.test_blending import LEFT, error

TRAVEL = {
    "noise": {"visual": {"strength": 1.0, "seeds": "40, 41"}},
    "motion": {"kind": "linear", "loop": False},
    "animation": {"frames": 5},
}


@pytest.mark.parametrize("forge", ["", "unet", "transformer", "frames transformer"])
def test_the_seeds_own_pictures_are_met(host, forge):
    host.start(torch.float64, forge=forge)
    made = host.latents(TRAVEL, seed=3)
    for frame, seed in ((0, 3), (2, 40), (4, 41)):
        assert error(made[frame : frame + 1], host.latents(seed=seed)) < 1e-6
    assert error(made[1:2], made[:1]) > 0.1


def test_batches_change_nothing_and_held_places_stay(host):
    host.start(torch.float64)
    held = {
        **TRAVEL,
        "concepts": [{"prompt": "green tree", "mask": {**LEFT, "feather": 0}}],
        "noise": {**TRAVEL["noise"]},
    }
    alone, together = (host.latents(held, seed=3, batch_size=size) for size in (1, 4))
    assert error(together, alone) < 1e-6
    noises = []

    def seen(params):
        noises.append(params.x.clone())

    host.callbacks.on_cfg_denoiser(seen)
    host.run(held, seed=3, batch_size=5)
    frames = noises[0][:5]  # the same rows follow once more, for the negative side
    assert torch.equal(frames[..., :3], frames[:1, ..., :3].expand(5, -1, -1, -1))
    assert (frames[1:] - frames[:1])[..., 3:].abs().mean() > 1


def test_in_the_hires_pass_too(host):
    host.start(torch.float64)
    made = host.latents(TRAVEL, seed=3, enable_hr=True)
    assert error(made[4:], host.latents(seed=41, enable_hr=True)) < 1e-6
