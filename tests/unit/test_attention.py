"""Blended attention equals the materialised computation (invariant 4)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise import attention
from lib_masknoise.attention import blended_attention, project
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
        profile = torch.ones(rank, tokens, dtype=torch.float64) if constant else normal(rank, tokens)
        return SeparableNoise(profile, normal(rank, DIM), normal(rows, rank, *size)) if rank else None

    return LocationConditioning(
        contexts, lengths, a, separable(noise, False), separable(offset, True), preserve_norm=preserve_norm
    )


def attend(c: LocationConditioning, size: tuple[int, int], rows: int, dtype: torch.dtype = torch.float64):
    """Our attention in `dtype` beside the oracle in float64, on the same rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    inner = HEADS * HEAD_DIM
    q, w_k, w_v = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, size[0] * size[1], inner), (inner, DIM), (inner, DIM))
    )
    model = c.to("cpu", dtype)
    basis = project(model, lambda x: x @ w_k.T, lambda x: x @ w_v.T, HEADS)
    ours = blended_attention(q, basis, model.level(size))
    oracle = materialised_attention(q.double(), model.to("cpu", torch.float64), size, w_k.double(), w_v.double(), HEADS)
    return ours.double(), oracle


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
)
def test_equals_the_oracle_in_float64(seed, lengths, size, shrink, rows, shared, mode, preserve_norm, noise, offset):
    generator = torch.Generator().manual_seed(seed)
    c = random_conditioning(generator, lengths, size, 1 if shared else rows, mode, preserve_norm, noise, offset)
    level = ((size[0] + 1) // 2, (size[1] + 1) // 2) if shrink else size
    assert relative_error(*attend(c, level, rows)) < 1e-12


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


@pytest.mark.parametrize("noise", [0, 3])
def test_the_fused_form_equals_the_explicit_one(monkeypatch, noise):
    c = random_conditioning(torch.Generator().manual_seed(2), (6, 6, 6), (5, 4), 2, noise=noise, offset=2)
    explicit, oracle = attend(c, (5, 4), 2)
    monkeypatch.setattr(attention, "_fused", lambda q, level: True)
    fused, _ = attend(c, (5, 4), 2)
    assert relative_error(fused, oracle) < 1e-12
    assert relative_error(fused, explicit) < 1e-12


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
    basis = project(c, lambda x: x, lambda x: x, 1)
    with pytest.raises(ValueError, match="9 locations, the queries have 8"):
        blended_attention(torch.zeros(2, 8, DIM), basis, c.level((3, 3)))
    with pytest.raises(ValueError, match="2 rows, the queries have 3"):
        blended_attention(torch.zeros(3, 9, DIM), basis, c.level((3, 3)))
