"""Texts side by side in models whose text and image change together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise import joint
from lib_masknoise.conditioning import LocationConditioning
from lib_masknoise.joint import at_tokens, joint_attention, level_sets, seen, texts
from lib_masknoise.noise import SeparableNoise


def shares(seed: int, count: int, size=(5, 4), rows: int = 1, sharp: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(rows, count, *size, generator=generator, dtype=torch.float64)).softmax(1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), count=st.integers(1, 5), knots=st.integers(0, 3), rows=st.integers(1, 3),
    holes=st.booleans(), sharp=st.sampled_from([0.1, 3.0, 40.0]),
)  # fmt: skip
def test_the_texts_make_up_the_blend_at_every_place(seed, count, knots, rows, holes, sharp):
    a = shares(seed, count, rows=rows, sharp=sharp)
    if holes and count > 1:
        a = torch.where(a > 0.3, a, 0.0)
        a = a / a.sum(1, keepdim=True).clamp_min(1e-9) if bool((a.sum(1) > 0).all()) else shares(seed, count, rows=rows)
    mixes, weights = level_sets(a, knots)
    assert bool((weights >= 0).all())
    assert torch.allclose(weights.sum(1), torch.ones(()).double())
    assert torch.allclose(mixes.sum(1), torch.ones(()).double())
    assert torch.allclose(torch.einsum("kj,bkhw->bjhw", mixes, weights), a, atol=1e-5)


@pytest.mark.parametrize("knots", [1, 2, 3])
def test_between_two_contexts_a_place_mixes_neighbours_only(knots):
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    a = torch.stack([1 - share, share]).view(1, 2, 1, 101)
    mixes, weights = level_sets(a, knots)
    order = mixes[:, 1].argsort()
    assert torch.allclose(mixes[order, 1], torch.linspace(0, 1, knots + 2).double())
    assert int((weights > 1e-12).sum(1).max()) <= 2
    assert float(((mixes[:, 1] - share[:, None]).abs() * weights[0, :, 0].T).max()) <= 1 / (4 * (knots + 1)) * 1.01
    at_knot = weights[0, order[1], 0, round(100 / (knots + 1))]
    assert float(at_knot) == pytest.approx(1, abs=0.03)


def test_a_constant_map_at_a_knot_is_one_text():
    a = torch.full((1, 2, 3, 3), 0.5, dtype=torch.float64)
    mixes, weights = level_sets(a, 1)
    assert mixes.tolist() == [[0.5, 0.5]] and bool((weights == 1).all())


def test_contexts_that_nowhere_meet_have_no_text_between_them():
    a = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    a[0, 0, 0, 0] = a[0, 1, 0, 1] = a[0, 2, 0, 3] = 1
    a[0, :2, 0, 2] = 0.5
    assert len(level_sets(a, 2)[0]) == 3 + 2


@pytest.mark.parametrize("seed", range(3))
def test_weights_change_smoothly_with_the_maps(seed):
    a = shares(seed, 4, (1, 1))
    other = a + 1e-6 * torch.tensor([1.0, -1, 1, -1]).double().view(1, 4, 1, 1)
    first, second = (level_sets(one, 2)[1] for one in (a, other))
    assert float((first - second).abs().max()) < 1e-4


def conditioning(seed: int = 0, noise: bool = False, **options) -> LocationConditioning:
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randn(2, 6, 8, generator=generator)
    a = torch.zeros(1, 2, 2, 4)
    a[:, 0], a[:, 1] = torch.tensor([1.0, 0.7, 0.4, 0]), torch.tensor([0, 0.3, 0.6, 1.0])
    fields = torch.zeros(2, 3, 2, 4)
    fields[:, :, :, 1:3] = torch.randn(2, 3, 2, 2, generator=generator)
    of = SeparableNoise(torch.randn(1, 3, 6, generator=generator), torch.randn(1, 3, 8, generator=generator), fields)
    return LocationConditioning(contexts, (6, 6), a, of if noise else None, **options)


def test_concept_noise_moves_the_texts_that_are_free():
    still, moved = texts(conditioning(), 1), texts(conditioning(noise=True), 1)
    assert moved.contexts.shape == (2, *still.contexts.shape[1:])
    assert not torch.allclose(moved.contexts[0], moved.contexts[1])
    pinned = still.weights.new_tensor([[1.0, 0, 0, 0]] * 2)
    c = conditioning(noise=True)
    fully = LocationConditioning(c.contexts, c.lengths, torch.stack([pinned, 1 - pinned])[None], c.noise)
    assert torch.allclose(texts(fully, 1).contexts[:, 0], c.contexts[0].expand(2, -1, -1))


@pytest.mark.parametrize("weight", [1.3, -0.5])
def test_a_weight_outside_0_and_1_is_a_text_of_its_own(weight):
    c = conditioning()
    extrapolated = torch.cat([1 - weight * c.coefficients[:, 1:], weight * c.coefficients[:, 1:]], dim=1)
    found = texts(LocationConditioning(c.contexts, c.lengths, extrapolated), 1)
    blend = torch.einsum("kjd,khw->jdhw", found.contexts[0], found.weights[0])
    assert torch.allclose(blend, torch.einsum("jtd,jhw->tdhw", c.contexts, extrapolated[0]), atol=1e-5)
    assert any(torch.allclose(one, torch.lerp(*c.contexts, weight), atol=1e-6) for one in found.contexts[0])


def test_what_the_texts_cannot_reach_is_refused():
    c = conditioning()
    both = torch.cat([c.coefficients + 0.9, -0.9 * torch.ones(1, 1, 2, 4), -0.9 * torch.ones(1, 1, 2, 4)], dim=1)
    four = LocationConditioning(torch.cat([c.contexts, c.contexts]), (6,) * 4, both)
    with pytest.raises(ValueError, match="weights that lead away from the base together"):
        texts(four)


def test_a_token_that_some_contexts_lack_counts_as_much_as_the_others():
    c = conditioning()
    shorter = c.contexts * (torch.arange(6) < torch.tensor([[3], [6]]))[..., None]
    found = texts(LocationConditioning(shorter, (3, 6), c.coefficients), 1)
    mixes = {tuple(one.tolist()): context for one, context in zip(found.present[0], found.contexts[0], strict=True)}
    assert torch.equal(mixes[1, 1, 1, 0, 0, 0], shorter[0]) and torch.equal(mixes[1, 1, 1, 1, 1, 1], shorter[1])
    between = mixes[1, 1, 1, 0.5, 0.5, 0.5]
    assert torch.allclose(between[:3], shorter[:, :3].mean(0)) and torch.allclose(between[3:], shorter[1, 3:])


def built(text, image, weights, scale, present):
    """The definition: every place's own text, token by token, and every text by itself."""
    count, places = weights.shape[1:]
    (text_q, text_k, text_v), (image_q, image_k, image_v) = ([t[0] for t in part] for part in (text, image))
    text_q, text_k, text_v = (t.unflatten(1, (count, -1)) for t in (text_q, text_k, text_v))

    def attended(q, k, v, bias):
        k, v = torch.cat([k, image_k], dim=1), torch.cat([v, image_v], dim=1)
        bias = torch.cat([bias, bias.new_zeros(places)])
        return ((q @ k.transpose(1, 2)) * scale + bias).softmax(-1) @ v

    of_texts = [attended(text_q[:, k], text_k[:, k], text_v[:, k], present[0, k].log()) for k in range(count)]
    of_image = []
    for place in range(places):
        share = weights[0, :, place, None] * present[0]  # [K, T]
        total = share.sum(0)
        share = torch.where(total > 0, share / total.clamp_min(1e-300), 0.0)
        k, v = (torch.einsum("kt,hktd->htd", share, t) for t in (text_k, text_v))
        length = torch.einsum("kt,hkt->ht", share, text_k.norm(dim=-1))
        k = k * (length / k.norm(dim=-1).clamp_min(1e-300)).clamp_max(8)[..., None]
        of_image.append(attended(image_q[:, place, None], k, v, total.log()))
    return torch.cat(of_texts, dim=1), torch.cat(of_image, dim=1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), count=st.integers(1, 4), rows=st.integers(1, 3), grad=st.booleans(),
    some=st.booleans(), most=st.sampled_from([0, 1, 12]), same=st.booleans(), first=st.booleans(),
)  # fmt: skip
def test_a_place_attends_to_a_text_of_its_own(seed, count, rows, grad, some, most, same, first):
    generator = torch.Generator().manual_seed(seed)

    def normal(tokens):
        return tuple(torch.randn(rows, 2, tokens, 8, generator=generator, dtype=torch.float64) for _ in range(3))

    text, image = normal(3 * count), normal(20)
    weights = shares(seed, count, rows=1 if same else rows).expand(rows, -1, -1, -1)
    weights = at_tokens(torch.where(weights > 0.1, weights, 0), (5, 4))
    weights = weights / weights.sum(1, keepdim=True)
    # How much there is of the last tokens; what is there comes first.
    present = torch.ones(rows, count, 3, dtype=torch.float64)
    if some:
        present[:, :, 1:] = torch.rand(1, count, 1, generator=generator, dtype=torch.float64)
        present[:, ::2, 2] = 0
    with torch.set_grad_enabled(grad), pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "MOST", most)
        sequence = tuple(torch.cat([b, a] if first else [a, b], dim=2) for a, b in zip(text, image, strict=True))
        whole = joint_attention(sequence, count, 3, seen(weights, present), 0.3, first)
        ours = whole.split([20, 3 * count] if first else [3 * count, 20], dim=2)[:: -1 if first else 1]
    for row in range(rows):
        one = slice(row, row + 1)
        found = built(*([t[one] for t in part] for part in (text, image)), weights[one], 0.3, present[one])
        assert torch.allclose(ours[1][row], found[1], rtol=1e-10, atol=1e-12)
        read = (weights[row] > 0).any(1).repeat_interleave(3) & (present[row].flatten() > 0)
        assert torch.allclose(ours[0][row][:, read], found[0][:, read], rtol=1e-10, atol=1e-12)
        assert bool(ours[0][row].isfinite().all())


def test_rows_that_see_the_same_are_computed_together():
    weights = at_tokens(shares(0, 3).expand(4, -1, -1, -1), (5, 4))
    assert [one.rows for one in seen(weights, torch.ones(4, 3, 6))] == [slice(0, 4)]
    other = torch.cat([weights[:3], weights[3:].flip(1)])
    assert [one.rows for one in seen(other, torch.ones(4, 3, 6))] == [slice(0, 3), slice(3, 4)]


def test_the_steps_of_a_hard_edge_are_no_way_between_two_concepts():
    """A text appears between them as the ground on which they meet grows, without a jump."""

    def between(columns):
        a = torch.zeros(1, 2, 200, 200, dtype=torch.float64)
        a[:, 0, :, :100], a[:, 1, :, 100:], a[..., 100 : 100 + columns] = 1, 1, 0.5
        mixes, weights = level_sets(a, 1)
        return float(weights[0, 2].amax()) if len(mixes) > 2 else 0.0

    found = [between(columns) for columns in range(6)]
    assert found == pytest.approx([0, 0, 0, 0.5, 1, 1], abs=1e-9)


@pytest.mark.parametrize("block", [1, 4])
def test_texts_before_the_image_end_where_it_begins(block):
    """However long they are, filled up as they are alone; a text that counts nowhere moves nothing."""
    present = (torch.arange(9) < torch.tensor([[3], [6], [9]])).float()[None]
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0], weights[0, 1, 0], weights[1, 2] = 1, 1, 1
    standing = joint.before_image(weights, present, block)
    full = [3, 6, 9] if block == 1 else [4, 8, 12]
    assert standing.present.shape == standing.places.shape == standing.fillers.shape == (2, 3, full[-1])
    assert standing.ends.tolist() == [full[1], full[2]]
    for row, counting in enumerate([(0, 1), (2,)]):
        for k in counting:
            end = int(standing.ends[row])
            assert standing.places[row, k, : full[k]].tolist() == list(range(end - full[k], end))
    assert standing.fillers[0].sum(-1).tolist() == [own - known for own, known in zip(full, (3, 6, 9), strict=True)]
    assert (standing.present > 0).sum(-1)[0].tolist() == full
    assert torch.equal(standing.present[:, :, :9].masked_fill(standing.fillers[:, :, :9], 0), present.expand(2, -1, -1))


@pytest.mark.parametrize("block, tokens", [(1, 6), (4, 8)])
def test_tokens_that_no_text_has_do_not_stand_there(block, tokens):
    """As of a longer context that counts nowhere."""
    present = (torch.arange(9) < torch.tensor([[3], [6]])).float()[None]
    found = joint.Texts(torch.randn(1, 2, 9, 5), torch.full((1, 2, 2, 2), 0.5), present)
    standing = joint.before_image(found.weights, present, block)
    own = standing.of(found)
    assert own.present.shape == standing.places.shape == (1, 2, tokens) and own.contexts.shape == (1, 2, tokens, 5)
    assert torch.equal(own.contexts[:, :, :6], found.contexts[:, :, :6])


def test_tokens_without_a_place_see_every_text_by_its_area():
    weights = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 1]]).view(1, 2, 2, 2)
    at = at_tokens(weights, (2, 2), 3)
    assert torch.equal(at[:, :, :4], weights.flatten(2)) and at.shape == (1, 2, 7)
    assert torch.equal(at[0, :, 4:], torch.tensor([0.25, 0.75])[:, None].expand(2, 3))
