"""What a scene becomes: basis, coefficients, noise, pooled embeddings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_masknoise.conditioning import (
    Encoded,
    condition,
    condition_negative,
    norm_factor,
    prediction_weights,
    presence,
    prompts,
    unblended,
)
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene

DIM, SIZE = 6, (4, 8)
NOISE = {"concept": {"strength": 1, "rank": 2}}
HALF = {"kind": "split", "axis": "x", "from": 0, "to": 0.5}
OTHER_HALF = {"kind": "split", "axis": "x", "from": 0.5, "to": 1}


def encoded(value: float, length: int = 3, pooled: float | None = None, weight: float = 1.0) -> Encoded:
    tokens = torch.randn(length, DIM, generator=torch.Generator().manual_seed(int(value * 10)))
    return Encoded(tokens + value, None if pooled is None else torch.full((2,), pooled), weight)


def scene(*concepts: dict, **parts) -> Scene:
    """Each concept's prompt is its index, counted from 1; negative prompts are given."""
    named = [{"prompt": str(i), **concept} for i, concept in enumerate(concepts, 1)]
    return Scene.parse({"concepts": named, **parts})


def blended(made: Scene, base: Encoded, concepts: dict[str, Encoded], frames=(0,), seed=0):
    return condition(Maps(made, SIZE), base, concepts, frames, [seed] * len(frames))


def blended_negative(made: Scene, base: Encoded, concepts: dict[str, Encoded]):
    return condition_negative(Maps(made, SIZE), base, concepts)


def test_every_location_gets_the_coefficients_of_its_masks():
    c = blended(scene({"mask": HALF}), encoded(0), {"1": encoded(1)})
    base, concept = c.coefficients[0]
    assert torch.equal(concept, torch.tensor([1.0] * 4 + [0.0] * 4).expand(4, 8))
    assert torch.equal(base, 1 - concept)


def test_what_has_no_place_costs_nothing():
    """The base where concepts cover everything, and a concept with an empty mask, leave the basis."""
    halves = scene({"mask": HALF}, {"mask": OTHER_HALF}, {"mask": {"kind": "strokes", "strokes": []}})
    c = blended(halves, encoded(0), {"1": encoded(1), "2": encoded(2), "3": encoded(3)})
    assert torch.equal(c.contexts, torch.stack([encoded(1).context, encoded(2).context]))


def test_a_scene_without_effect_is_the_base_alone():
    c = blended(Scene.parse({}), encoded(0), {})
    assert c.plain and c.noise is None and c.offset is None
    assert torch.equal(c.contexts[0], encoded(0).context)


def test_noise_joins_only_where_masks_leave_free():
    noisy = scene({"mask": HALF}, noise={"concept": {"strength": 1}, "feature": {"strength": 1, "dimensions": "1,4"}})
    c = blended(noisy, encoded(0), {"1": encoded(1)}, frames=[0, 2])
    for part in (c.noise, c.offset):
        assert part.fields.shape[0] == 2
        assert not part.fields[..., :4].any() and part.fields[..., 4:].all()
    assert set(c.offset.directions[0].nonzero()[:, 1].tolist()) == {1, 4}


def test_a_frame_does_not_depend_on_its_batch():
    frames = {"frames": 9}
    noisy = scene({"mask": HALF}, noise={"concept": {"strength": 1}}, motion={"kind": "walk"}, animation=frames)
    together = blended(noisy, encoded(0), {"1": encoded(1)}, seed=5, frames=[0, 1, 2])
    alone = blended(noisy, encoded(0), {"1": encoded(1)}, seed=5, frames=[2])
    assert torch.equal(together.noise.fields[2:], alone.noise.fields)
    assert torch.equal(together.noise.directions, alone.noise.directions)


def test_negatives_are_blended_by_the_masks_of_their_concepts():
    halves = scene({"mask": HALF, "negative": "n"}, {"mask": OTHER_HALF})
    negative = blended_negative(halves, encoded(0), {"n": encoded(1)})
    assert torch.equal(negative.contexts, torch.stack([encoded(0).context, encoded(1).context]))
    assert torch.equal(negative.coefficients[0, 1, :, :4], torch.ones(4, 4))
    assert blended_negative(scene({"mask": HALF}), encoded(0), {}).plain


def test_pooled_embeddings_are_blended_by_area():
    quarter = {"kind": "split", "axis": "x", "from": 0, "to": 0.25}
    c = blended(scene({"mask": quarter}), encoded(0, pooled=0.0), {"1": encoded(1, pooled=1.0)})
    assert torch.allclose(c.pooled, torch.full((2,), 0.25))


def test_contexts_of_different_lengths_keep_their_lengths():
    c = blended(scene({"mask": HALF}), encoded(0, 3), {"1": encoded(1, 5)})
    assert c.lengths == (3, 5) and not c.contexts[0, 3:].any()


def test_a_prompt_that_is_not_encoded_is_named():
    with pytest.raises(ValueError, match=r"not been encoded: \['1'\]"):
        blended(scene({"mask": HALF}), encoded(0), {})


def test_unblended_is_plain_at_every_level():
    level = unblended(encoded(0)).level((3, 5))
    assert level.plain and level.locations == 15


thousandths = st.integers(-1000, 2000).map(lambda n: n / 1000)
coefficient_maps = st.lists(st.lists(thousandths, min_size=3, max_size=3), min_size=1, max_size=4)


@given(coefficient_maps, st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_presence_is_a_share(rows, lengths):
    a = torch.tensor(rows, dtype=torch.float64)
    share = presence(a, lengths)
    assert ((share >= 0) & (share <= 1 + 1e-12)).all()
    assert (share[:, : min(lengths)] == 1).all()
    assert (share.diff(dim=1) <= 1e-12).all()  # later tokens are in fewer contexts


@given(coefficient_maps)
def test_the_norm_factor_restores_the_mean_norm(rows):
    a = torch.tensor(rows, dtype=torch.float64)
    contexts = torch.randn(3, 4, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor = norm_factor(a, contexts)
    blended = torch.einsum("lj,jtd->ltd", a, contexts).norm(dim=-1)
    target = a.abs() @ contexts.norm(dim=-1)
    bounded = target > 8 * blended
    assert torch.allclose((factor * blended)[~bounded], target[~bounded], rtol=1e-6, atol=1e-9)
    assert (factor[bounded & (target > 0)] == 8).all()


def test_weights_of_guidance_are_blended_like_the_contexts():
    c = blended(scene({"mask": HALF, "weight": 0.5}), encoded(0), {"1": encoded(1, weight=3.0)})
    assert torch.equal(c.weight, torch.tensor([2.0] * 4 + [1.0] * 4).expand(1, 4, 8))


def test_equal_weights_are_theirs_in_the_additive_mode_too():
    """Its coefficients add up to more than 1."""
    added = scene({"mask": HALF}, blend={"mode": "add", "scale": 0.5})
    c = blended(added, encoded(0, weight=2.0), {"1": encoded(1, weight=2.0)})
    assert torch.equal(c.weight, torch.full((1, 4, 8), 2.0))
    other = blended(added, encoded(0, weight=2.0), {"1": encoded(1, weight=1.0)})
    assert torch.equal(other.weight, torch.tensor([1.5] * 4 + [2.0] * 4).expand(1, 4, 8))


def test_no_weights_where_every_prompt_counts_once():
    assert blended(scene({"mask": HALF}), encoded(0), {"1": encoded(1)}).weight is None
    assert blended_negative(scene({"mask": HALF, "negative": "n"}), encoded(0), {"n": encoded(1)}).weight is None


def test_a_prompt_that_covers_nothing_has_no_weight_in_the_image():
    """It leaves the basis; its weight is none of the others' business."""
    nowhere = {"mask": {"kind": "strokes", "strokes": []}}
    c = blended(scene(nowhere), encoded(0), {"1": encoded(1, weight=3.0)})
    assert torch.equal(c.weight, torch.ones(1, 4, 8))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_rows_of_a_level_can_be_picked(rows):
    moving = scene(
        {"mask": HALF},
        {"mask": {"kind": "rect", "top": 0.5}, "keyframes": [{"frame": 0, "weight": 0}, {"frame": 3, "weight": 1}]},
        blend={"preserve_norm": True},
        noise={"concept": {"strength": 1, "rank": 2}, "feature": {"strength": 1, "dimensions": "1"}},
        motion={"kind": "circle"},
        animation={"frames": 4},
    )
    c = blended(moving, encoded(0), {"1": encoded(1), "2": encoded(2, 5)}, frames=[0, 1, 2])
    level = c.level((2, 4))
    picked = level.pick(rows)
    for name in ("coefficients", "noise", "offset", "factor", "bias"):
        whole, part = getattr(level, name), getattr(picked, name)
        assert len(whole) == 3 and torch.equal(part, whole[rows])
    assert picked.plain == level.plain and picked.rows == len(rows)


def test_picking_all_rows_or_of_shared_maps_copies_nothing():
    c = blended(scene({"mask": HALF}), encoded(0), {"1": encoded(1)})
    level = c.level(SIZE)
    assert level.rows == 1 and level.pick([0, 0, 0]) is level
    noisy = scene({"mask": HALF}, noise=NOISE, motion={"kind": "circle"}, animation={"frames": 4})
    level = blended(noisy, encoded(0), {"1": encoded(1)}, frames=[0, 1]).level(SIZE)
    assert level.pick((0, 1)) is level
    picked = level.pick((1,))
    assert picked.coefficients is level.coefficients, "all frames share them"
    assert torch.equal(picked.noise, level.noise[1:])


@given(
    weights=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    mode=st.sampled_from(["interpolate", "add"]),
    frame=st.integers(0, 8),
)
def test_weights_of_predictions_add_up_to_one(weights, mode, frame):
    """Whatever the concepts' weights and on the way from one prompt to the next, too."""
    moving = [{"frame": 0}, {"frame": 8, "prompt": "later"}]
    concepts = [{"prompt": "a", "weight": w, "mask": mask} for w, mask in zip(weights, [HALF, {}, HALF], strict=False)]
    concepts[0]["keyframes"] = moving
    made = scene(*concepts, blend={"mode": mode, "scale": 1.0}, animation={"frames": 9})
    texts = {text: encoded(i) for i, text in enumerate(prompts(made))}
    shares = prediction_weights(Maps(made, SIZE), "prompt", texts, [frame])
    assert shares.shape == (1, 2 + len(concepts), *SIZE)
    assert torch.allclose(shares.sum(1), torch.ones(1, *SIZE), atol=1e-5)


def test_weights_of_predictions_are_the_coefficients_where_those_add_up_to_one():
    made = scene({"mask": HALF, "negative": "n", "weight": 0.7}, {"mask": OTHER_HALF}, blend={"feather": 0.2})
    maps = Maps(made, SIZE)
    shares = prediction_weights(maps, "prompt", {"1": encoded(1), "2": encoded(2)})
    assert torch.allclose(shares, blended(made, encoded(0), {"1": encoded(1), "2": encoded(2)}).coefficients)
    below = prediction_weights(maps, "negative", {"n": encoded(3)})
    assert torch.allclose(below, condition_negative(maps, encoded(0), {"n": encoded(3)}).coefficients)
    assert torch.equal(prediction_weights(maps, "negative", {}), torch.ones(1, 1, *SIZE))
