"""The three noises: their statistics, what they leave alone, and their independence of batch and size."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opensimplex import OpenSimplex
from scipy import stats

from lib_masknoise.motion import envelope
from lib_masknoise.motion import opensimplex as simplex
from lib_masknoise.motion.opensimplex import SimplexField, opensimplex, vertices
from lib_masknoise.noise import CHUNK, amount, spread
from lib_masknoise.noise.concept import concept_noise
from lib_masknoise.noise.feature import RANK, feature_noise, parse_dimensions
from lib_masknoise.noise.fields import PITCH, smooth_fields
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Scene
from lib_masknoise.seeded import generator

KINDS = ("none", "sine", "circle", "simplex", "walk", "linear", "keyframes")
MOVING = ("circle", "simplex", "walk", "linear")


def motion(kind="none", **fields):
    if kind == "keyframes":
        fields.setdefault("keyframes", [{"frame": 1, "value": 1}, {"frame": 4, "value": 0.3}])
    return Scene.parse({"motion": {"kind": kind, **fields}}).motion


motions = st.builds(
    motion,
    st.sampled_from(KINDS),
    cycles=st.integers(1, 3),
    phase=st.floats(-6.28, 6.28),
    momentum=st.floats(0, 0.99),
    loop=st.booleans(),
)


# --- amount


def test_amount_falls_with_the_pin():
    pin = torch.tensor([[0.0, 0.5], [0.9, 1.0]])
    assert torch.allclose(amount(pin, 0.8, 2.0), torch.tensor([[0.8, 0.2], [0.008, 0.0]]))


@given(st.floats(0, 4), st.floats(0, 16))
def test_full_pins_get_no_noise_and_strength_0_gives_none(strength, exponent):
    pin = torch.linspace(0, 1, 9)
    assert amount(pin, strength, exponent)[-1] == 0
    assert not amount(pin, 0.0, exponent).any()


def test_exponent_0_is_all_or_nothing():
    assert amount(torch.tensor([0.0, 0.99, 1.0]), 0.5, 0.0).tolist() == [0.5, 0.5, 0.0]


# --- OpenSimplex


@pytest.mark.parametrize(("n", "tolerance"), [(2, 1e-12), (3, 1e-4), (4, 4e-4)])
def test_array_noise_is_the_packages_noise(n, tolerance):
    """In 3 and 4 dimensions the package leaves out the faint far ends of a few kernels."""
    noise = OpenSimplex(7)
    points = np.random.default_rng(n).uniform(-300, 300, (300, n))
    expected = [getattr(noise, f"noise{n}")(*point) for point in points.tolist()]
    assert opensimplex(list(points.T), noise._perm) == pytest.approx(np.array(expected), abs=tolerance)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_no_vertex_in_reach_is_left_out(n):
    """With all vertices of a wider neighbourhood the sum over kernels is the same."""
    cell = np.random.default_rng(n).uniform(0, 1, (4000, n))
    neighbours = np.stack(np.meshgrid(*[np.arange(-2, 4)] * n), axis=-1).reshape(-1, n)

    def reach(chosen):
        away = cell[:, None] - chosen
        return np.maximum(2 - (away**2).sum(-1) - away.sum(-1) ** 2, 0).sum(axis=1)

    every = sum(reach(part) for part in np.array_split(neighbours, 8))
    assert np.allclose(reach(np.array(vertices(n))), every)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_simplex_fields_are_stationary_with_variance_1(n):
    rng = generator(1, "test")
    corner = [np.linspace(0, 2, 5)] * n
    samples = np.stack([SimplexField.draw(n, rng).at(*corner) for _ in range(500)])
    assert samples.mean(axis=0) == pytest.approx(np.zeros(5), abs=0.19)
    assert samples.var(axis=0) == pytest.approx(np.ones(5), abs=0.21)


# --- smooth fields


def fields(m, frames, total=24, count=3, size=(16, 24), feature_size=0.25, seed=5, purpose="test"):
    return smooth_fields(m, frames, total, count, size, feature_size, seed, purpose)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", [True, False])
def test_fields_have_variance_1_at_every_frame_and_place(kind, loop):
    """Over 300 fields, each place within its statistical error, and all places of a frame more closely."""
    m = motion(kind, loop=loop, cycles=2, momentum=0.6)
    sample = fields(m, [0, 5, 13], total=101, count=300, size=(4, 6), feature_size=0.6).movedim(1, 0)
    assert sample.mean(dim=0).abs().max() < 5 / math.sqrt(300)
    assert sample.var(dim=0).numpy() == pytest.approx(np.ones((3, 4, 6)), abs=0.35)
    assert sample.var(dim=0).mean(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1], abs=0.1)


def test_interpolation_keeps_the_variance_between_knots():
    """The lattice loses least at its knots and most half-way; in time and in space it stays within 2 %."""
    m = motion("simplex", cycles=1)
    unit = 32 * 0.9
    frames = range(0, 400, 9)
    coarse = fields(m, frames, total=400, count=6, size=(32, 32), feature_size=0.9)
    rng = generator(5, "test")
    y, x = np.meshgrid(*[(np.arange(32) + 0.5) / unit] * 2, indexing="ij")
    theta = 2 * np.pi * np.array(frames)[:, None, None] / 400
    exact = [SimplexField.draw(4, rng).at(y, x, np.cos(theta), np.sin(theta)) for _ in range(6)]
    direct = torch.tensor(np.stack(exact, axis=1), dtype=torch.float32)
    assert (coarse - direct).pow(2).mean().sqrt() < 0.02

    def loss(*over):
        return 1 - coarse.pow(2).mean(dim=over) / direct.pow(2).mean(dim=over)

    assert 0 < loss(0, 1, 2, 3) < 0.01
    assert loss(1, 2, 3).abs().max() < 0.02  # at each frame
    assert loss(0, 1, 3).abs().max() < 0.02  # at each row


@settings(max_examples=25, deadline=None)
@given(motions, st.integers(0, 2**40), st.integers(1, 40), st.data())
def test_frames_are_the_same_in_any_batch(m, seed, total, data):
    frames = [*range(total + 1), *data.draw(st.lists(st.floats(0, total), max_size=3))]
    some = data.draw(st.lists(st.sampled_from(range(len(frames))), min_size=1, max_size=5))
    size, options = (6, 9), dict(count=2, seed=seed, feature_size=0.3)
    every = fields(m, frames, total, size=size, **options)
    assert torch.equal(fields(m, [frames[i] for i in some], total, size=size, **options), every[some])


@settings(max_examples=25, deadline=None)
@given(motions, st.integers(0, 2**40), st.integers(2, 60), st.data())
def test_fields_at_fractions_of_frames_lie_on_the_same_path(m, seed, total, data):
    frame = data.draw(st.integers(1, total if m.loop else total - 1))
    near = fields(m, [frame - 1e-7, float(frame), frame + 1e-7, frame], total, count=2, size=(6, 9), seed=seed)
    assert torch.equal(near[1], near[3])
    assert (near[:3] - near[3]).abs().max() < 1e-3


@pytest.mark.parametrize("total", [7, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_loops_close_bit_for_bit_and_without_a_jump(kind, total):
    """Any step of a random motion may be its largest, so the closing one may exceed the others a bit."""
    sequence = fields(motion(kind), range(total + 1), total, count=8)
    assert torch.equal(sequence[0], sequence[-1])
    steps = sequence.diff(dim=0).flatten(1).norm(dim=1)
    assert steps[-1] <= steps[:-1].max() * 1.02


def test_the_closing_step_of_simplex_fields_is_one_of_many():
    """Over 40 seeds it is the largest about as often as any other of 12."""
    largest = 0
    for seed in range(40):
        sequence = fields(motion("simplex"), range(13), 12, count=4, size=(6, 6), seed=seed)
        steps = sequence.diff(dim=0).flatten(1).norm(dim=1)
        largest += int(steps.argmax() == 11)
        assert steps[-1] < 1.4 * steps[:-1].max()
    assert 1 <= largest <= 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feature_size", [0.25, 0.04])
def test_fields_do_not_depend_on_the_size(kind, feature_size):
    """The middle of 3×3 places is the place itself. With the finer features only 120² has a lattice."""
    options = dict(total=60, count=2, feature_size=feature_size)
    small, large = (fields(motion(kind), [0, 7], size=(n, n), **options) for n in (40, 120))
    assert (small - large[..., 1::3, 1::3]).pow(2).mean().sqrt() < 0.02


def test_fields_at_twice_the_size_are_the_same_picture():
    small, large = (fields(motion("simplex"), [0, 7], size=(n, n)) for n in (64, 128))
    assert (small - torch.nn.functional.avg_pool2d(large, 2)).pow(2).mean().sqrt() < 0.02


def test_shorter_side_counts():
    wide = fields(motion(), [0], size=(32, 64))
    assert torch.allclose(wide[..., :32], fields(motion(), [0], size=(32, 32)), atol=1e-6)


def test_feature_size_is_the_distance_at_which_places_become_independent():
    sample = fields(motion(), [0], count=400, size=(64, 64), feature_size=0.5)[0]
    correlation = [(sample[..., : 64 - d] * sample[..., d:]).mean().item() for d in (4, 32, 48)]
    assert correlation[0] > 0.9
    assert abs(correlation[1]) < 0.2
    assert abs(correlation[2]) < 0.1


@pytest.mark.parametrize("loop", [True, False])
def test_more_cycles_carry_simplex_fields_further_a_frame(loop):
    def step(cycles):
        sequence = fields(motion("simplex", cycles=cycles, loop=loop), range(10), 200, count=24)
        return sequence.diff(dim=0).pow(2).mean().sqrt().item()

    assert step(4) / step(2) == pytest.approx(2, rel=0.15)


def test_seeds_and_purposes_give_independent_fields():
    options = dict(count=200, size=(4, 4), feature_size=0.3)
    m = motion("circle")
    first = fields(m, [3], **options)
    assert torch.equal(first, fields(m, [3], **options))
    for other in (fields(m, [3], seed=6, **options), fields(m, [3], purpose="other", **options)):
        assert abs((first * other).mean()) < 5 / math.sqrt(200 * 8)
    channels = first[0]
    assert abs((channels[:-1] * channels[1:]).mean()) < 5 / math.sqrt(200 * 8)


def test_one_field_more_leaves_the_others():
    for kind in ("walk", "simplex"):
        m = motion(kind)
        assert torch.equal(fields(m, [2], count=3), fields(m, [2], count=4)[:, :3])


def test_steps_between_frames_are_even():
    """No jump where a frame passes a knot: a still eye sees the lattice in time as uneven speed."""
    for loop in (True, False):
        sequence = fields(motion("simplex", loop=loop), range(240), 240, count=24)
        speed = sequence.diff(dim=0).pow(2).mean(dim=(1, 2, 3)).sqrt()
        assert speed.std() / speed.mean() < 0.08
        assert 2 * math.pi / PITCH < 240  # so there is a lattice in time


# --- visual noise


def latents(m, amount_map, frames=(0, 5, 11), total=24, seed=3, size=(64, 64), dtype=torch.float32):
    noise = torch.randn(4, *size, generator=generator(99, "host")).to(dtype)
    return noise, visual(noise, amount_map, m, frames, total, seed)


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_stay_white_and_normal(kind, strength):
    """16,384 values a frame: mean and variance within five standard errors, neighbours uncorrelated."""
    _, sample = latents(motion(kind, cycles=2, phase=0.4), torch.full((64, 64), strength))
    for latent in sample:
        assert abs(latent.mean()) < 5 / 128
        assert latent.var() == pytest.approx(1, abs=5 * math.sqrt(2) / 128)
        for axis in range(3):
            values = latent.movedim(axis, 0)
            assert abs(float((values[1:] * values[:-1]).mean())) < 5 / 110
        assert stats.kstest(latent.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_is_normal_over_seeds(kind):
    pin = torch.tensor([[1.0, 0.5, 0.0]])
    free = amount(pin, 1.0, 1.0)
    hosts = [torch.randn(1, 1, 3, generator=generator(seed, "host")) for seed in range(250)]
    sample = torch.stack([visual(host, free, motion(kind), [4], 9, seed)[0] for seed, host in enumerate(hosts)])
    for column in range(3):
        assert stats.kstest(sample[..., column].flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(sample.reshape(250, 3).T)[1, 2])) < 0.3


@settings(max_examples=25, deadline=None)
@given(
    motions,
    st.floats(0, 1),
    st.floats(0, 16),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_pinned_places_hold_still_bit_for_bit(m, strength, exponent, dtype):
    pin = torch.rand(6, 8, generator=generator(1, "pin"))
    pin[2:4, 3:] = 1.0
    noise, sample = latents(m, amount(pin, strength, exponent), range(5), 5, size=(6, 8), dtype=dtype)
    assert sample.dtype == dtype
    assert torch.equal(sample[:, :, 2:4, 3:], noise[:, 2:4, 3:].expand(5, -1, -1, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_returns_the_noise(kind):
    noise, sample = latents(motion(kind), torch.zeros(64, 64))
    assert torch.equal(sample, noise.expand_as(sample))


@pytest.mark.parametrize("kind", MOVING)
def test_free_places_move(kind):
    _, sample = latents(motion(kind), torch.ones(64, 64))
    assert (sample[0] - sample[1]).pow(2).mean() > 0.01


def test_amount_is_how_far_the_latent_turns():
    for strength in (0.0, 1 / 3, 1.0, 2.5):
        noise, sample = latents(motion("none"), torch.full((64, 64), strength), [0])
        expected = math.cos(math.pi / 2 * min(strength, 1))
        assert float((sample[0] * noise).mean()) == pytest.approx(expected, abs=0.04)


def test_sine_swings_through_the_hosts_noise():
    noise, sample = latents(motion("sine"), torch.ones(64, 64), [0, 6, 12, 18])
    assert torch.equal(sample[0], noise)
    assert torch.allclose(sample[2], noise, atol=1e-6)
    assert torch.allclose(sample[1], -sample[3], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(motions, st.integers(1, 30), st.data())
def test_latents_are_the_same_in_any_batch(m, total, data):
    frames = [*range(total + 1), *data.draw(st.lists(st.floats(0, total), max_size=3))]
    chosen = data.draw(st.lists(st.sampled_from(range(len(frames))), min_size=1, max_size=4))
    free = torch.rand(5, 7, generator=generator(1, "free"))
    _, every = latents(m, free, frames, total, size=(5, 7))
    _, some = latents(m, free, [frames[i] for i in chosen], total, size=(5, 7))
    assert torch.equal(some, every[chosen])
    assert not m.loop or torch.equal(every[0], every[total])


def test_latents_follow_the_seed():
    one, two = (latents(motion("none"), torch.ones(64, 64), [0], seed=seed)[1] for seed in (1, 2))
    assert abs(float((one * two).mean())) < 5 / 128


# --- concept and feature noise


def contexts():
    """Two contexts of 12 tokens, six and nine of them real; the spread differs over the 40 dimensions."""
    tokens = torch.randn(2, 12, 40, generator=generator(1, "contexts")) * torch.linspace(0.1, 2, 40) + 3.0
    tokens[:, 0] = 100.0
    tokens[0, 6:] = 1e4
    tokens[1, 9:] = 1e4
    return tokens, [6, 9]


FREE = torch.linspace(0, 1, 8).expand(1, 6, 8)


def concept(m=None, free=FREE, rank=8, frames=(0, 3), seed=4):
    return concept_noise(*contexts(), free, rank, 0.25, m or motion("circle"), frames, 12, [seed] * len(frames))


def feature(m=None, free=FREE, dimensions="4-9,20", frames=(0, 3), seed=4):
    return feature_noise(*contexts(), free, dimensions, 0.25, m or motion("circle"), frames, 12, [seed] * len(frames))


def test_spread_is_that_of_the_real_tokens():
    tokens, lengths = contexts()
    real = torch.cat([tokens[0, 1:6], tokens[1, 1:9]])
    assert torch.allclose(spread(tokens, lengths), real.std(dim=0, correction=0))
    assert torch.allclose(spread(tokens.half(), lengths), spread(tokens, lengths), rtol=2e-2)
    assert not spread(tokens, [1, 1]).any()
    with pytest.raises(ValueError):
        spread(tokens, [6])


def test_concept_noise_leaves_the_first_token_and_has_the_contexts_spread():
    noise = concept(rank=64)
    assert noise.tokens.shape == (1, 64, 12)
    assert noise.directions.shape == (1, 64, 40)
    assert noise.fields.shape == (2, 64, 6, 8)
    assert not noise.tokens[..., 0].any()
    assert float(noise.tokens[..., 1:].std()) == pytest.approx(1, abs=0.12)
    ratio = noise.directions[0].std(dim=0, correction=0) / spread(*contexts())
    assert float(ratio.mean()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("rank", [1, 8])
def test_noise_at_amount_1_has_the_contexts_spread_at_any_rank(rank):
    """Σ_r g_r·s_r[t]·d_r over 100 seeds, relative to the spread of the contexts."""
    sample = []
    for seed in range(100):
        noise = concept(free=torch.ones(1, 6, 8), rank=rank, frames=[3], seed=seed)
        corners = noise.fields[..., ::5, ::7]
        sample.append(torch.einsum("brhw,rt,rd->btdhw", corners, noise.tokens[0], noise.directions[0]))
    relative = torch.stack(sample).std(dim=(0, 1, 2, 4, 5)) / spread(*contexts())
    # Of 12 tokens the first has none.
    assert float(relative.mean()) == pytest.approx(math.sqrt(11 / 12), abs=0.08)


def test_feature_noise_is_the_same_for_every_token_and_only_in_its_dimensions():
    noise = feature()
    assert torch.equal(noise.tokens, torch.ones(1, RANK, 12))
    selected = parse_dimensions("4-9,20", 40)
    others = [d for d in range(40) if d not in selected]
    assert noise.directions[..., selected].all()
    assert not noise.directions[..., others].any()
    assert torch.equal(feature(dimensions="4-9,20-30").directions[..., selected], noise.directions[..., selected])


@pytest.mark.parametrize("noise_of", [concept, feature])
def test_fields_follow_amount_and_envelope(noise_of):
    flat = noise_of(free=torch.ones(1, 6, 8)).fields
    assert torch.allclose(noise_of().fields, flat * FREE)
    assert not noise_of().fields[..., 0].any()
    m = motion("sine", phase=0.3)
    swung, still = noise_of(m).fields, noise_of(motion("none")).fields
    for frame, row in zip((0, 3), swung, strict=True):
        assert torch.allclose(row, still[0] * envelope(m, frame, 12), atol=1e-6)


@pytest.mark.parametrize("noise_of", [concept, feature])
def test_nothing_to_do_is_none(noise_of):
    assert noise_of(free=torch.zeros(1, 6, 8)) is None
    assert concept(rank=0) is None


def test_the_three_noises_are_independent_and_repeatable():
    first, again, other = concept(), concept(), feature()
    for part in ("tokens", "directions", "fields"):
        assert torch.equal(getattr(first, part), getattr(again, part))
    assert not torch.allclose(first.fields, other.fields, atol=1e-2)
    assert not torch.equal(concept(seed=5).directions, first.directions)


def test_every_row_has_the_noise_of_its_own_seed():
    """As alone, whatever the seeds beside it; one seed for all is there once."""
    for make in (concept_noise, feature_noise):

        def made(frames, seeds, make=make):
            options = (8, 0.25) if make is concept_noise else ("4-9", 0.25)
            return make(*contexts(), FREE, *options, motion("circle"), frames, 12, seeds)

        together = made([0, 3, 5], [4, 7, 4])
        assert together.tokens.shape[0] == together.directions.shape[0] == 3
        for row, (frame, seed) in enumerate([(0, 4), (3, 7), (5, 4)]):
            alone = made([frame], [seed])
            for part in ("tokens", "directions", "fields"):
                assert torch.equal(getattr(together, part)[row : row + 1], getattr(alone, part))
        assert len(made([0, 3], [4, 4]).directions) == 1


def test_a_prompt_that_grows_by_a_chunk_keeps_its_noise():
    """`[short:long:0.5]` changes the number of tokens in the middle of a pass."""
    long = torch.randn(1, 2 * CHUNK, 40, generator=generator(1, "long"))
    long[:, [0, CHUNK]] = 100.0  # the sinks
    long[:, CHUNK + 1 :] = long[:, 1:CHUNK]  # the same spread
    short = long[:, :CHUNK]

    def made(tokens):
        return concept_noise(tokens, [tokens.shape[1]], FREE, 8, 0.25, motion("circle"), [3], 12, [4])

    one, two = made(short), made(long)
    assert torch.equal(two.tokens[..., :CHUNK], one.tokens)
    assert torch.allclose(two.directions, one.directions, rtol=1e-4)
    assert not two.tokens[..., [0, CHUNK]].any() and two.tokens[..., 1:CHUNK].all()
    assert (
        abs(float(torch.corrcoef(torch.stack([two.tokens[0, 0, 1:CHUNK], two.tokens[0, 0, CHUNK + 1 :]]))[0, 1])) < 0.35
    )


def test_moving_noise_keeps_its_directions():
    """Only the fields move, so that what was projected for one frame serves all."""
    for noise_of in (concept, feature):
        one, two = noise_of(frames=[0]), noise_of(frames=[7, 3])
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.directions, two.directions)
        assert torch.equal(noise_of(frames=[3]).fields[0], two.fields[1])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", list(range(8))),
        ("0-3", [0, 1, 2, 3]),
        ("5, 1 - 2,2", [1, 2, 5]),
        ("7", [7]),
        ([3, 1], [1, 3]),
    ],
)
def test_dimensions(spec, expected):
    assert parse_dimensions(spec, 8) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0-8", '"0-8" goes beyond the last dimension, 7'),
        ("1,9", '"9"'),
        ("3-2", 'ascending ranges, got "3-2"'),
        ("a", 'got "a"'),
        ("", 'got ""'),
        ("1,,2", 'got "1,,2"'),
        ("-1", 'got "-1"'),
        ([-1], "got [-1]"),
        ([True], "got [true]"),
        ([], "got []"),
    ],
)
def test_bad_dimensions_name_the_range(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_dimensions(spec, 8)


def test_deviations_are_those_of_the_noise():
    """The constants against 200,000 fresh points each."""
    for n, expected in simplex.DEVIATION.items():
        rng = generator(n, "deviation")
        points = np.random.default_rng(n)
        fields = [SimplexField.draw(n, rng).at(*points.uniform(0, 256, (n, 10_000))) for _ in range(20)]
        assert np.std(fields) == pytest.approx(1, abs=0.01), expected


def test_fields_go_on_from_one_part_of_a_picture_to_the_next():
    def fields(size, window):
        return smooth_fields(motion("simplex"), [3], 12, 2, size, 0.25, 5, "test", window)[0]

    left, right = (fields((16, 16), (0.0, x, 1.0, x + 0.5)) for x in (0.0, 0.5))
    whole = fields((16, 32), (0.0, 0.0, 1.0, 1.0))
    assert (torch.cat([left, right], -1) - whole).abs().max() < 0.05  # each has a lattice of its own
