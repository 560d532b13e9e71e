"""The way of the initial noise through chosen seeds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib_masknoise import infotext
from lib_masknoise.noise import amount, travel
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Motion, Scene, SceneError
from lib_masknoise.seeded import generator

SIZE = 64
KINDS = ("sine", "circle", "simplex", "walk", "linear")
counts = st.integers(1, 5)
motions = st.builds(
    Motion,
    kind=st.sampled_from(KINDS),
    cycles=st.integers(1, 3),
    phase=st.floats(-6, 6),
    loop=st.booleans(),
)


def noises(count, size=SIZE):
    return [torch.randn(4, size, size, generator=generator(i, "travel")) for i in range(count + 1)]


def sampled(motion, count, frames, total, free=None, size=SIZE):
    own, *others = noises(count, size)
    free = torch.ones(size, size) if free is None else free
    return visual(own, free, motion, frames, total, 3, others)


@given(counts, st.floats(0, 1), st.booleans())
def test_the_shares_have_norm_1_and_are_of_neighbours(count, place, loop):
    shares = travel.mixture(count, place, loop)
    assert len(shares) == count + 1 and min(shares) >= 0
    assert math.fsum(share**2 for share in shares) == pytest.approx(1)
    assert sum(share > 0 for share in shares) <= 2


@pytest.mark.parametrize("loop", [False, True])
def test_every_seed_is_met_exactly(loop):
    """Of 3 seeds with a loop every quarter of the way is one; without, every half."""
    seeds, stops = noises(3), 4
    total = 9 if loop else 4
    frames = [total * i / stops for i in range(stops)] if loop else range(stops)
    made = sampled(Motion(kind="linear", loop=loop), 3, frames, total)
    for latent, seed in zip(made, seeds, strict=True):
        assert torch.allclose(latent, seed, atol=1e-6)
    assert torch.equal(made[0], seeds[0])


@settings(max_examples=20, deadline=None)
@given(motions, counts, st.floats(0, 1), st.floats(0, 30))
def test_every_frame_is_white_and_normal(motion, count, strength, frame):
    """16,384 values: mean and variance within five standard errors, neighbours uncorrelated."""
    (latent,) = sampled(motion, count, [frame], 24, torch.full((SIZE, SIZE), strength))
    assert abs(latent.mean()) < 5 / 128
    assert latent.var() == pytest.approx(1, abs=5 * math.sqrt(2) / 128)
    for axis in range(3):
        values = latent.movedim(axis, 0)
        assert abs(float((values[1:] * values[:-1]).mean())) < 5 / 110
    assert stats.kstest(latent.flatten().numpy(), "norm").pvalue > 1e-4


@settings(max_examples=20, deadline=None)
@given(motions, counts, st.data())
def test_frames_are_the_same_in_any_batch_and_a_loop_closes(motion, count, data):
    frames = list(range(13))
    chosen = data.draw(st.lists(st.sampled_from(frames), min_size=1, max_size=4))
    every = sampled(motion, count, frames, 12, size=6)
    assert torch.equal(sampled(motion, count, chosen, 12, size=6), every[chosen])
    assert not motion.loop or torch.equal(every[0], every[12])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_stays(kind):
    pin = torch.zeros(SIZE, SIZE)
    pin[:, :20] = 1.0
    made = sampled(Motion(kind=kind), 2, range(6), 6, amount(pin, 1.0, 2.0))
    assert torch.equal(made[..., :20], noises(2)[0][..., :20].expand(6, -1, -1, -1))
    assert (made[0] - made[1])[..., 20:].abs().mean() > 0.1


def test_even_ways_have_even_steps():
    for count, loop, total in ((1, True, 8), (3, True, 16), (2, False, 9)):
        made = sampled(Motion(kind="linear", loop=loop), count, range(total + loop), total)
        steps = made.diff(dim=0).pow(2).mean((1, 2, 3)).sqrt()
        assert steps.max() / steps.min() < 1.05


def test_keyframes_give_the_place():
    keys = [{"frame": 0, "value": 0.0}, {"frame": 4, "value": 1.0}, {"frame": 8, "value": -0.5}]
    motion = Motion(kind="keyframes", loop=False, keyframes=keys)
    assert [travel.place(motion, frame, 9) for frame in (0, 2, 4, 8)] == [0.0, 0.5, 1.0, 0.5]


def test_seeds_of_a_scene():
    scene = Scene.parse({"noise": {"visual": {"strength": 1, "seeds": [7, 12]}}})
    assert scene.noise.visual.seeds == "7, 12" and scene.noise.visual.stops == (7, 12)
    assert Scene.parse({"noise": {"visual": {"strength": 1, "seeds": " 7 12"}}}) == scene
    assert infotext.read(infotext.write(scene)) == scene
    assert infotext.write(scene)["MaskNoise travel to seeds"] == "7, 12"


@pytest.mark.parametrize("given", ["a", "-1", [1.5], [-1], ["7"], 7, [2**63], list(range(65))])
def test_what_are_no_seeds(given):
    with pytest.raises(SceneError, match="noise.visual.seeds: expected"):
        Scene.parse({"noise": {"visual": {"seeds": given}}})


def test_seeds_without_a_strength_are_remarked_on():
    (remark,) = Scene.parse({"noise": {"visual": {"seeds": "7"}}}).remarks()
    assert remark.path == "noise.visual.seeds"
    silent = {"noise": {"visual": {"seeds": "7", "strength": 1}}, "motion": {"kind": "sine", "cycles": 6}}
    assert not Scene.parse({**silent, "animation": {"frames": 24}}).remarks()
