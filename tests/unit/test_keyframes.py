"""Concepts that change over the frames: what stands at and between keyframes, closure, purity, continuity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise import maps as maps_module
from lib_masknoise.conditioning import (
    LONGEST_ARC,
    Encoded,
    angle,
    condition,
    condition_negative,
    negatives,
    passing,
    prompts,
)
from lib_masknoise.maps import Maps, rasterize
from lib_masknoise.maps.keyframes import between_masks, passage
from lib_masknoise.scene import Scene

DIM, SIZE, TOTAL = 6, (6, 9), 12
ELLIPSE = {"kind": "ellipse", "x": 0.2, "rx": 0.1, "ry": 0.3, "feather": 0.2}
MASKS = (
    ELLIPSE,
    {**ELLIPSE, "x": 0.8, "rx": 0.3, "angle": 90},
    {"kind": "rect", "left": 0.1, "right": 0.4, "feather": 0.3},
    {"kind": "rect", "top": 0.5, "feather": 0.1},
    {"kind": "split", "from": 0, "to": 0.3, "feather": 0.4},
    {"kind": "split", "axis": "y", "from": 0.6, "to": 1},
    {"kind": "split", "axis": "y", "from": 0.0, "to": 0.0, "feather": 0.2},
    {"kind": "gradient", "from": [0, 0], "to": [1, 0.5]},
    {"kind": "gradient", "from": [1, 0.5], "to": [0, 0]},
    {"kind": "gradient", "shape": "radial", "from": [0.5, 0.5], "to": [1, 0.5]},
    {"kind": "strokes", "strokes": [{"points": [[0.2, 0.2], [0.8, 0.5]], "radius": 0.2}]},
    {"kind": "strokes", "strokes": []},
)
PROMPTS = ("a marsh", "a forest", "a long prompt of several words")


def encoded(text: str) -> Encoded:
    """A context of as many tokens as the text has words, and two more; the first is the same for all."""
    draw = torch.Generator().manual_seed(sum(map(ord, text)))
    tokens = torch.randn(2 + len(text.split()), DIM, generator=draw)
    tokens[0] = 5.0
    return Encoded(tokens, torch.randn(3, generator=draw))


BASE = encoded("base")


def positive(scene: Scene, frames=(0,), size=SIZE):
    own = {text: encoded(text) for text in prompts(scene)}
    return condition(Maps(scene, size), BASE, own, frames, [3] * len(frames))


def negative(scene: Scene, frames=(0,)):
    return condition_negative(Maps(scene, SIZE), BASE, {text: encoded(text) for text in negatives(scene)}, frames)


def moving(keys: list[dict], loop=False, noise=None, **concept) -> Scene:
    return Scene.parse(
        {
            "concepts": [{"prompt": "a marsh", "mask": ELLIPSE, "keyframes": keys, **concept}],
            "motion": {"loop": loop},
            "noise": noise or {},
            "animation": {"frames": TOTAL},
        }
    )


def embedding(conditioning, frame=0) -> torch.Tensor:
    """What every location sees, without noise: the blend of the contexts, `[T, D, H, W]`."""
    row = conditioning.coefficients[frame % len(conditioning.coefficients)]
    return torch.einsum("jhw,jtd->tdhw", row, conditioning.contexts)


def close(a: torch.Tensor, b: torch.Tensor, tolerance=1e-5) -> bool:
    """Equal, where a shorter one counts as zero beyond its length."""
    length = max(len(a), len(b))
    a, b = (torch.cat([t, t.new_zeros(length - len(t), *t.shape[1:])]) for t in (a, b))
    return bool((a - b).abs().max() <= tolerance)


keys = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "mask": st.sampled_from(MASKS),
            "weight": st.floats(-2, 2),
            "prompt": st.sampled_from(PROMPTS),
            "negative": st.sampled_from(["", "snow", "a lava flow"]),
            "easing": st.sampled_from(["linear", "ease-in", "ease-out", "ease-in-out"]),
        },
    ),
    max_size=3,
).flatmap(
    lambda keys: st.lists(st.integers(0, TOTAL - 1), min_size=len(keys), max_size=len(keys), unique=True).map(
        lambda frames: [{**key, "frame": frame} for key, frame in zip(keys, sorted(frames), strict=True)]
    )
)
concepts = st.lists(
    st.fixed_dictionaries(
        {"keyframes": keys, "prompt": st.sampled_from(("", *PROMPTS))},
        optional={
            "negative": st.sampled_from(["", "snow"]),
            "mask": st.sampled_from(MASKS),
            "interpolation": st.sampled_from(["linear", "spherical"]),
        },
    ),
    min_size=1,
    max_size=3,
)
NOISE = {"concept": {"strength": 1, "rank": 3}, "feature": {"strength": 1, "dimensions": "0-3"}}
scenes = st.builds(
    lambda concepts, loop, blend: Scene.parse(
        {
            "concepts": concepts,
            "blend": blend,
            "motion": {"kind": "circle", "loop": loop},
            "noise": NOISE,
            "animation": {"frames": TOTAL},
        }
    ),
    concepts,
    st.booleans(),
    st.sampled_from([{}, {"mode": "add"}, {"preserve_norm": True, "feather": 0.2}]),
)
times = st.integers(0, TOTAL - 1) | st.floats(0, TOTAL, exclude_max=True)


@settings(max_examples=60, deadline=None)
@given(scenes, st.lists(times, min_size=1, max_size=4), st.integers(0, 3))
def test_a_frame_does_not_depend_on_its_batch(scene, frames, i):
    i = i % len(frames)
    for side in (positive, negative):
        together, alone = side(scene, frames), side(scene, [frames[i]])
        assert close(embedding(together, i), embedding(alone), 1e-6)
        assert torch.allclose(together.pooled[i % len(together.pooled)], alone.pooled[0], atol=1e-6)
        for one, other in ((together.noise, alone.noise), (together.offset, alone.offset)):
            if one is not None and other is not None:
                length = min(one.tokens.shape[-1], other.tokens.shape[-1])
                assert torch.equal(one.fields[i], other.fields[0])
                assert torch.equal(one.directions, other.directions)
                assert torch.equal(one.tokens[..., :length], other.tokens[..., :length])
            else:
                assert all(noise is None or not noise.fields[i % len(noise.fields)].any() for noise in (one, other))


def test_a_negative_prompt_that_is_hardly_there_yet():
    """So little of it that the rest is 1 to the last bit."""
    keys = [{"frame": 0, "negative": ""}, {"frame": 1, "negative": "snow"}]
    moving = Scene.parse({"concepts": [{"prompt": "a marsh", "keyframes": keys}], "motion": {"loop": False}})
    assert torch.equal(embedding(negative(moving, [5e-324])), embedding(negative(moving, [0])))


@settings(max_examples=100, deadline=None)
@given(scenes, st.data())
def test_at_a_keyframe_the_scene_is_the_still_one_with_that_keys_values(scene, data):
    """That holds for a concept at its keyframe, whatever the others do: here they stand still."""
    moving = data.draw(st.sampled_from(scene.concepts))
    alone = [one if one is moving else one.copy(update={"keyframes": ()}) for one in scene.concepts]
    scene = scene.copy(update={"concepts": tuple(alone)})
    for key in moving.keyframes:
        still = scene.copy(update={"concepts": tuple(one.at_key(key) if one is moving else one for one in alone)})
        for side in (positive, negative):
            here, there = side(scene, [key.frame]), side(still, [key.frame])
            assert torch.equal(here.contexts, there.contexts) and here.lengths == there.lengths
            assert torch.equal(here.coefficients, there.coefficients)
            assert torch.equal(here.pooled, there.pooled)
        assert torch.equal(Maps(scene, SIZE).pins([key.frame]), Maps(still, SIZE).pins())


@settings(max_examples=60, deadline=None)
@given(scenes, times.filter(lambda frame: frame > 0.01))
def test_nothing_jumps_from_frame_to_frame_and_a_loop_closes(scene, frame):
    """Also where a mask's edge leaves the border, and at frame `total`, which in a loop is frame 0."""
    for side in (positive, negative):
        near = side(scene, [frame - 1e-4, frame])
        assert close(embedding(near, 0), embedding(near, 1), 0.02)
    if scene.motion.loop:
        for side in (positive, negative):
            first, end, last = (side(scene, [f]) for f in (0, TOTAL, TOTAL - 1e-4))
            assert torch.equal(embedding(first), embedding(end))
            assert close(embedding(first), embedding(last), 0.02)


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_what_does_not_move_costs_nothing(scene):
    still = scene.replace({"concepts[].keyframes": []})
    for side in (positive, negative):
        assert len(side(still, [0, 3, 5]).coefficients) == 1
        moved = side(scene, [0, 3, 5])
        assert len(moved.coefficients) in (1, 3)
        assert moved.coefficients.flatten(2).any(-1).any(0).all()  # every context is in some frame


# --- Weights


@pytest.mark.parametrize("easing", ["linear", "ease-in", "ease-out", "ease-in-out"])
@pytest.mark.parametrize("mode", ["interpolate", "add"])
def test_a_fade_is_monotone_and_ends_where_the_keys_say(easing, mode):
    scene = moving([{"frame": 2, "weight": 1.0, "easing": easing}, {"frame": 8, "weight": 0.0}]).replace(
        {"blend.mode": mode, "blend.scale": 1.0}
    )
    frames = [0, *(2 + i / 2 for i in range(13)), 11]
    centre = positive(scene, frames).coefficients[:, -1, 3, 1]
    assert (centre.diff() <= 0).all() and (centre[1:-1].diff() < 0).all()
    assert centre[0] == centre[1] > 0 and centre[-1] == centre[-2] == 0


def test_a_step_holds():
    scene = moving([{"frame": 2, "weight": 1, "easing": "step"}, {"frame": 8, "weight": 0.25}])
    weights = [passage(scene.concepts[0], f, TOTAL, False).weight for f in (0, 5, 7.99, 8, 11)]
    assert weights == [1, 1, 1, 0.25, 0.25]


def test_a_loop_leads_from_the_last_key_to_the_first():
    scene = moving([{"frame": 2, "weight": 0}, {"frame": 6, "weight": 1}], loop=True)
    weights = [passage(scene.concepts[0], f, TOTAL, True).weight for f in range(TOTAL)]
    assert weights == pytest.approx([0.25, 0.125, 0, 0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5, 0.375])


def test_a_key_without_values_is_the_concept_itself():
    scene = moving([{"frame": 0, "weight": 0}, {"frame": 6}], weight=0.5)
    assert passage(scene.concepts[0], 6, TOTAL, False).weight == 0.5


# --- Masks


def parsed(mask: dict):
    return Scene.parse({"concepts": [{"prompt": "", "mask": mask}]}).concepts[0].mask


def drawn(first: dict, second: dict, way: float, size=(40, 60)) -> torch.Tensor:
    parts = between_masks(parsed(first), parsed(second), way)
    return sum(share * rasterize(mask, size) for share, mask in parts)


def test_an_ellipse_moves_and_grows():
    halfway = {"kind": "ellipse", "x": 0.5, "rx": 0.2, "ry": 0.3, "angle": 45, "feather": 0.2}
    assert torch.allclose(drawn(MASKS[0], MASKS[1], 0.5), rasterize(parsed(halfway), (40, 60)), atol=1e-6)


def test_a_gradient_turns_but_does_not_turn_over():
    first = {"kind": "gradient", "from": [0, 0.5], "to": [1, 0.5]}
    second = {"kind": "gradient", "from": [0.5, 0], "to": [0.5, 1]}
    halfway = {"kind": "gradient", "from": [0.25, 0.25], "to": [0.75, 0.75]}
    assert torch.allclose(drawn(first, second, 0.5), rasterize(parsed(halfway), (40, 60)))
    over = drawn(first, {**first, "from": [1, 0.5], "to": [0, 0.5]}, 0.5)
    assert torch.allclose(over, torch.full_like(over, 0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [(MASKS[0], MASKS[2]), (MASKS[4], MASKS[5]), (MASKS[7], MASKS[9]), (MASKS[10], MASKS[11])],
)
def test_what_has_no_middle_cross_fades(first, second):
    expected = 0.75 * rasterize(parsed(first), (40, 60)) + 0.25 * rasterize(parsed(second), (40, 60))
    assert torch.allclose(drawn(first, second, 0.25), expected)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MASKS), st.sampled_from(MASKS), st.floats(0, 1), st.floats(0, 2e-4))
def test_masks_move_without_a_jump_and_within_0_and_1(first, second, way, step):
    """Also where an edge leaves the image's border, on which it is hard."""
    one, next = drawn(first, second, way), drawn(first, second, min(way + step, 1.0))
    assert (next - one).abs().max() < 0.03
    assert one.min() >= 0 and one.max() <= 1 + 1e-6


@pytest.mark.parametrize("feather", [0.0, 0.2, 0.6])
def test_a_strip_sweeps_in_from_the_border(feather):
    nothing, half, all_ = ({"kind": "split", "from": 0.0, "to": to, "feather": feather} for to in (0.0, 0.5, 1.0))
    for first, second in ((nothing, half), (half, all_), (nothing, all_)):
        filled = [drawn(first, second, way / 20).mean() for way in range(21)]
        steps = torch.tensor(filled).diff()
        assert (steps >= 0).all() and steps.max() < 3 * steps.mean()


def test_pin_follows_the_mask():
    noise = {"visual": {"strength": 1}, "concept": {"strength": 1}}
    scene = moving(
        [{"frame": 0, "mask": MASKS[4]}, {"frame": 6, "mask": {**MASKS[4], "from": 0.7, "to": 1}}], noise=noise
    )
    pins = Maps(scene, SIZE).pins([0, 6])
    assert pins[0, :, 0].min() > 0.999 and pins[0, :, -1].max() < 1e-6
    assert pins[1, :, 0].max() < 1e-6 and pins[1, :, -1].min() > 0.999
    fields = positive(scene, [0, 6]).noise.fields
    assert fields[0, ..., 0].abs().max() < 1e-6 and fields[0, ..., -1].any()
    assert fields[1, ..., 0].any() and fields[1, ..., -1].abs().max() < 1e-6


def test_a_mask_that_stands_still_is_drawn_once(monkeypatch):
    """However often both sides and the noise ask for it."""
    drawn = []
    draw = maps_module.weight_map
    monkeypatch.setattr(maps_module, "weight_map", lambda mask, *args: drawn.append(mask) or draw(mask, *args))
    scene = moving([{"frame": 0, "weight": 0}, {"frame": 6, "mask": MASKS[10]}, {"frame": 9, "mask": MASKS[10]}])
    maps = Maps(scene, SIZE)
    for _ in range(2):
        maps.weights(range(TOTAL))
        maps.amount("visual", range(TOTAL))
    # The ellipse, and each of the two strokes (which are equal, but not one).
    assert len(drawn) == 3


# --- Prompts


def full(keys, **concept):
    return moving(keys, mask={"kind": "rect"}, **concept)


def test_prompts_pass_from_one_to_the_next():
    scene = full([{"frame": 0, "prompt": "a forest"}, {"frame": 8}])
    assert prompts(scene) == ["a forest", "a marsh"]
    halfway = embedding(positive(scene, [4]))[:, :, 0, 0]
    assert close(halfway, (encoded("a forest").context + encoded("a marsh").context) / 2)


def test_only_the_prompts_that_are_needed_join_the_basis():
    texts = ["a", "b", "c", "d"]
    scene = full([{"frame": 2 * i, "prompt": text} for i, text in enumerate(texts)])
    assert len(positive(scene, range(7)).contexts) == 4
    assert len(positive(scene, [1]).contexts) == 2
    at_key = positive(scene, [2])
    assert at_key.plain and torch.equal(at_key.contexts[0], encoded("b").context)


def test_each_prompt_counts_once_a_concept():
    scene = full([{"frame": f, "prompt": "a" if f % 2 else "b"} for f in range(8)])
    assert prompts(scene) == ["b", "a"]


def test_pooled_embeddings_follow_the_frames():
    scene = full([{"frame": 0, "prompt": "a forest"}, {"frame": 8}])
    pooled = positive(scene, [0, 4, 8]).pooled
    ends = encoded("a forest").pooled, encoded("a marsh").pooled
    assert torch.allclose(pooled, torch.stack([ends[0], sum(ends) / 2, ends[1]]), atol=1e-6)


def test_a_negative_fades_to_the_images_own():
    scene = full([{"frame": 0, "negative": "snow"}, {"frame": 8, "negative": ""}])
    first, half, last = (negative(scene, [frame]) for frame in (0, 4, 8))
    assert torch.equal(first.contexts, encoded("snow").context[None])
    assert close(embedding(half)[:, :, 0, 0], (encoded("snow").context + BASE.context) / 2)
    assert torch.equal(last.contexts, BASE.context[None]) and last.plain


@given(st.floats(0, math.pi), st.floats(0, 1))
def test_an_arc_keeps_the_length_and_is_bounded(arc, way):
    a, b = passing(way, arc)
    assert 0 <= a < 1.42 and 0 <= b < 1.42
    assert passing(0.0, arc) == (1.0, 0.0) and passing(1.0, arc) == (0.0, 1.0)
    if arc <= LONGEST_ARC:
        assert math.hypot(a + b * math.cos(arc), b * math.sin(arc)) == pytest.approx(1, abs=1e-3)


def test_parallel_prompts_pass_straight():
    assert passing(0.3, 0.0) == pytest.approx((0.7, 0.3))
    assert passing(0.3) == (0.7, 0.3)


def test_the_angle_is_that_without_the_first_token():
    one, other = torch.zeros(3, 2), torch.zeros(2, 2)
    one[:, 0], other[:, 1] = 1.0, 1.0
    one[0] = other[0] = 100.0
    assert angle(one, other) == pytest.approx(math.pi / 2)
    assert angle(one, one) == pytest.approx(0, abs=1e-6)
    other[1] = torch.tensor([-1.0, 0.0])
    assert angle(one, other) == pytest.approx(math.pi - math.pi / 4)


def test_spherical_passages_keep_the_contexts_length():
    linear = full([{"frame": 0, "prompt": "a forest"}, {"frame": 8}])
    spherical = linear.replace({"concepts[0].interpolation": "spherical"})
    norms = [embedding(positive(scene, [4]))[1:, :, 0, 0].norm() for scene in (linear, spherical)]
    ends = [encoded(text).context[1:].norm() for text in ("a forest", "a marsh")]
    assert norms[0] < 0.9 * min(ends)
    assert min(ends) * 0.95 < norms[1] < max(ends) * 1.05
    preserving = spherical.replace({"blend.preserve_norm": True})
    assert positive(preserving, [4]).coefficients.sum(1) == pytest.approx(torch.ones(1, *SIZE).numpy())


# --- Several motions


def test_each_noise_can_move_on_its_own():
    own = {"concept": {"strength": 1}, "feature": {"strength": 1, "dimensions": "0-3"}}
    scene = moving([], noise=own).replace({"motion.kind": "circle"})
    shared = positive(scene, [0, 3])
    for name, other in (("noise", "offset"), ("offset", "noise")):
        noise = {"noise": "concept", "offset": "feature"}[name]
        apart = positive(scene.replace({f"noise.{noise}.motion": {"kind": "sine", "cycles": 2}}), [0, 3])
        assert torch.equal(getattr(apart, other).fields, getattr(shared, other).fields)
        assert not torch.equal(getattr(apart, name).fields, getattr(shared, name).fields)
        same = positive(scene.replace({f"noise.{noise}.motion": {"kind": "circle"}}), [0, 3])
        assert torch.equal(getattr(same, name).fields, getattr(shared, name).fields)


def test_still_conditionings_have_one_row_for_all_frames():
    c = positive(moving([]), range(5))
    assert len(c.coefficients) == 1 and len(c.pooled) == 1
