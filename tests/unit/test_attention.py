"""Blended attention equals the materialised computation (invariant 4)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise import attention
from lib_masknoise.attention import KEPT, AttentionPass, Row, blended_attention, projected, shares, wanted
from lib_masknoise.conditioning import LocationConditioning
from lib_masknoise.noise import SeparableNoise
from tests.materialised import materialised_attention

HEADS, HEAD_DIM, DIM = 2, 5, 7


def random_conditioning(
    generator: torch.Generator,
    lengths: tuple[int, ...],
    size: tuple[int, int],
    rows: int = 1,
    mode: str = "interpolate",
    preserve_norm: bool = False,
    noise: int = 0,
    offset: int = 0,
    own_noise: bool = False,
) -> LocationConditioning:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = max(lengths)
    contexts = torch.zeros(len(lengths), tokens, DIM, dtype=torch.float64)
    for j, length in enumerate(lengths):
        contexts[j, :length] = normal(length, DIM)
    a = normal(rows, len(lengths), *size)
    a = a.softmax(1) if mode == "interpolate" else torch.cat([torch.ones_like(a[:, :1]), 0.1 * a[:, 1:]], 1)

    def separable(rank: int, constant: bool) -> SeparableNoise | None:
        units = rows if own_noise else 1
        profile = torch.ones(units, rank, tokens, dtype=torch.float64) if constant else normal(units, rank, tokens)
        return SeparableNoise(profile, normal(units, rank, DIM), normal(rows, rank, *size)) if rank else None

    return LocationConditioning(
        contexts, lengths, a, separable(noise, False), separable(offset, True), preserve_norm=preserve_norm
    )


def attend(
    c: LocationConditioning, size: tuple[int, int], rows: int, dtype: torch.dtype = torch.float64, bias: bool = False
):
    """One layer of a pass in `dtype` beside the oracle in float64, on the same rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    inner = HEADS * HEAD_DIM
    q, w_k, w_v, b_k, b_v = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, size[0] * size[1], inner), (inner, DIM), (inner, DIM), (inner,), (inner,))
    )
    if not bias:
        b_k, b_v = torch.zeros_like(b_k), torch.zeros_like(b_v)
    c = rounded(c, dtype)
    seen = shares([Row(c, row) for row in range(rows)])
    attention = AttentionPass()
    attention.plan([c])
    asked = attention.wanted("layer", seen, q)
    attention.take("layer", asked.stacked @ w_k.T + b_k, asked.stacked @ w_v.T + b_v, HEADS)
    assert attention.wanted("layer", seen, q) is None
    ours = attention.attend("layer", q, seen, size)
    oracle = materialised_attention(q.double(), c, size, w_k.double(), w_v.double(), HEADS, b_k.double(), b_v.double())
    return ours.double(), oracle


def rounded(c: LocationConditioning, dtype: torch.dtype) -> LocationConditioning:
    """Contexts and directions as a network in `dtype` sees them; the maps stay as they are."""

    def part(noise: SeparableNoise | None) -> SeparableNoise | None:
        return noise and replace(
            noise, tokens=noise.tokens.to(dtype).double(), directions=noise.directions.to(dtype).double()
        )

    return replace(c, contexts=c.contexts.to(dtype).double(), noise=part(c.noise), offset=part(c.offset))


def relative_error(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    return float((ours - oracle).norm() / oracle.norm())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=5).map(tuple),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    shrink=st.booleans(),
    rows=st.integers(1, 3),
    shared=st.booleans(),
    mode=st.sampled_from(["interpolate", "add"]),
    preserve_norm=st.booleans(),
    noise=st.integers(0, 3),
    offset=st.integers(0, 3),
    own_noise=st.booleans(),
    bias=st.booleans(),
)
def test_equals_the_oracle_in_float64(
    seed, lengths, size, shrink, rows, shared, mode, preserve_norm, noise, offset, own_noise, bias
):
    generator = torch.Generator().manual_seed(seed)
    made = 1 if shared else rows
    c = random_conditioning(generator, lengths, size, made, mode, preserve_norm, noise, offset, own_noise)
    level = ((size[0] + 1) // 2, (size[1] + 1) // 2) if shrink else size
    assert relative_error(*attend(c, level, rows, bias=bias)) < 1e-12


@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (6, 3, 6, 3)])
@pytest.mark.parametrize(
    "dtype, tolerance",
    # bfloat16 has three bits less than float16: the same number of units in the last place is 8 times the error.
    [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)],
)
def test_equals_the_oracle_in_lower_precision(dtype, tolerance, lengths, preserve_norm):
    try:
        torch.ones(1, 1, dtype=dtype).mm(torch.ones(1, 1, dtype=dtype))
    except RuntimeError:
        pytest.skip(f"this PyTorch has no matrix product of {dtype} on the CPU")
    generator = torch.Generator().manual_seed(5)
    c = random_conditioning(generator, lengths, (9, 7), 2, preserve_norm=preserve_norm, noise=4, offset=3)
    assert relative_error(*attend(c, (9, 7), 2, dtype)) < tolerance


@pytest.mark.parametrize("own_noise", [False, True])
@pytest.mark.parametrize("noise", [0, 3])
def test_the_fused_form_equals_the_explicit_one(monkeypatch, noise, own_noise):
    generator = torch.Generator().manual_seed(2)
    c = random_conditioning(generator, (6, 6, 6), (5, 4), 2, noise=noise, offset=2, own_noise=own_noise)
    explicit, oracle = attend(c, (5, 4), 2)
    monkeypatch.setattr(attention, "_fused", lambda q, level: True)
    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", {})  # as on an accelerator: all rows at once
    fused, _ = attend(c, (5, 4), 2)
    assert relative_error(fused, oracle) < 1e-12
    assert relative_error(fused, explicit) < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 2e-2)])
def test_the_fused_form_in_half_precision_with_every_rank(monkeypatch, dtype, tolerance):
    """Widths that are no multiples of 8 would fall to a slow kernel on an accelerator."""
    widths = set()

    def recording(q, k, v, **options):
        widths.update((q.shape[-1], k.shape[-1], v.shape[-1]))
        return sdpa(q, k, v, **options)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "_fused", lambda q, level: True)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", recording)
    for rank in range(1, 65):
        c = random_conditioning(torch.Generator().manual_seed(rank), (6, 6), (3, 4), 2, noise=rank)
        c = replace(c, noise=replace(c.noise, fields=c.noise.fields / rank**0.5))
        assert relative_error(*attend(c, (3, 4), 2, dtype)) < tolerance
    assert all(width % 8 == 0 for width in widths)


@pytest.mark.parametrize("share", [1e-4, 2e-6])
def test_a_small_share_of_a_token_that_the_others_lack_stays_exact_in_half_precision(share):
    """The factor of such a token is the share's reciprocal: no value on the way may leave half precision's range."""
    c = random_conditioning(torch.Generator().manual_seed(8), (6, 3), (3, 3))
    a = torch.cat([torch.full((1, 1, 3, 3), share), torch.full((1, 1, 3, 3), 1 - share)], dim=1).double()
    ours, oracle = attend(replace(c, contexts=10 * c.contexts, coefficients=a), (3, 3), 1, torch.float16)
    assert ours.isfinite().all()
    assert relative_error(ours, oracle) < 2e-3


def test_chunks_do_not_change_the_result(monkeypatch):
    c = random_conditioning(torch.Generator().manual_seed(3), (6, 3, 6), (13, 11), 2, noise=2, preserve_norm=True)
    whole, _ = attend(c, (13, 11), 2)
    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", {"cpu": 1})
    pieces, oracle = attend(c, (13, 11), 2)
    assert relative_error(pieces, oracle) < 1e-12
    assert torch.allclose(whole, pieces, rtol=1e-12)


def test_where_one_context_is_alone_its_length_is_its_own():
    """A location held by one concept attends to exactly that concept's tokens, however long the others are."""
    c = random_conditioning(torch.Generator().manual_seed(4), (8, 3), (1, 2))
    a = torch.zeros_like(c.coefficients)
    a[:, 0, 0, 0], a[:, 1, 0, 1] = 1, 1
    both = LocationConditioning(c.contexts, c.lengths, a)
    ours, _ = attend(both, (1, 2), 1)
    for j in range(2):
        alone = LocationConditioning(c.contexts[j : j + 1, : c.lengths[j]], (c.lengths[j],), torch.ones(1, 1, 1, 2))
        expected, _ = attend(alone, (1, 2), 1)
        assert torch.allclose(ours[:, j], expected[:, j], rtol=1e-12, atol=1e-12)


def test_preserve_norm_is_bounded_where_contexts_cancel():
    c = random_conditioning(torch.Generator().manual_seed(6), (4, 4), (2, 2), preserve_norm=True)
    opposite = LocationConditioning(
        torch.stack([c.contexts[0], -c.contexts[0]]),
        (4, 4),
        torch.full((1, 2, 2, 2), 0.5),
        preserve_norm=True,
    )
    ours, _ = attend(opposite, (2, 2), 1)
    assert ours.isfinite().all()


def test_rows_and_locations_that_do_not_fit_are_refused():
    c = random_conditioning(torch.Generator().manual_seed(7), (4, 4), (3, 3), rows=2)
    stacked = wanted(c, c.contexts).stacked
    basis = projected(c, stacked, stacked, 1)
    with pytest.raises(ValueError, match="9 locations, the queries have 8"):
        blended_attention(torch.zeros(2, 8, DIM), basis, c.level((3, 3)))
    with pytest.raises(ValueError, match="2 rows, the queries have 3"):
        blended_attention(torch.zeros(3, 9, DIM), basis, c.level((3, 3)))


def test_contexts_are_projected_once_however_often_their_maps_change():
    """What a stroke changes are coefficients; a batch of stills, each with noise of its own, has the contexts once."""
    c = random_conditioning(torch.Generator().manual_seed(9), (4, 4), (3, 3), 2, noise=2, own_noise=True)
    changed = replace(c, coefficients=c.coefficients.flip(1))
    q, attention = torch.randn(2, 9, DIM, dtype=torch.float64), AttentionPass()
    results = []
    for one in (c, changed):
        attention.plan([one])
        seen = shares([Row(one, 0), Row(one, 1)])
        asked = attention.wanted("layer", seen, q)
        assert (asked is None) == (one is changed)
        if asked is not None:
            assert asked.contexts.shape == (1, 8, DIM)
            attention.take("layer", asked.stacked, asked.stacked, 1)
        results.append(attention.attend("layer", q, seen, (3, 3)))
    assert not torch.allclose(*results)
    basis = attention._bases[c.digest]["layer"]
    assert len(basis.keys) == 1 and len(basis.profiles) == 2


def test_prompts_that_change_at_every_step_do_not_fill_the_memory():
    attention, q = AttentionPass(), torch.randn(1, 4, DIM, dtype=torch.float64)
    for step in range(50):
        c = random_conditioning(torch.Generator().manual_seed(step), (4,), (2, 2))
        attention.plan([c])
        seen = shares([Row(c, 0)])
        stacked = attention.wanted("layer", seen, q).stacked
        attention.take("layer", stacked, stacked, 1)
        attention.attend("layer", q, seen, (2, 2))
    assert len(attention._bases) <= 1 + KEPT and len(attention._placed) <= 1 + KEPT and len(attention._levels) == 1


def test_rows_of_several_conditionings_keep_their_places():
    generator = torch.Generator().manual_seed(10)
    first, second = (random_conditioning(generator, (4, 3), (2, 2), 2, noise=1, own_noise=True) for _ in range(2))
    q = torch.randn(4, 4, DIM, dtype=torch.float64)
    rows = [Row(first, 1), Row(second, 0), Row(first, 0), Row(second, 1)]

    def attended(rows: list[Row], q: torch.Tensor) -> torch.Tensor:
        attention, seen = AttentionPass(), shares(rows)
        stacked = attention.wanted("layer", seen, q).stacked
        attention.take("layer", stacked, stacked, 1)
        return attention.attend("layer", q, seen, (2, 2))

    together = attended(rows, q)
    for place, row in enumerate(rows):
        assert torch.allclose(together[place], attended([row], q[place : place + 1])[0], rtol=1e-12)
