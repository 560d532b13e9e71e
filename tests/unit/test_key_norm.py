"""Blended attention where the keys pass an RMS norm, and where the image's own keys stand in the same softmax
(transformers whose text does not change), against the materialised computation (invariant 4)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.attention import AttentionPass, KeyNorm, Row, projected, shares, wanted
from lib_masknoise.conditioning import Encoded, condition, unblended
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene
from tests.materialised import materialised_attention
from tests.unit.test_attention import DIM, HEAD_DIM, HEADS, random_conditioning, relative_error, rounded

INNER = HEADS * HEAD_DIM
SMALL = {"max_examples": 60, "deadline": None}


def attend(c, size, rows, norm, dtype=torch.float64, bias=False, own=0, scale=1.0):
    """One layer of a pass in `dtype` beside the oracle in float64, on the same rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    q, w_k, w_v, b_k, b_v = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, size[0] * size[1], INNER), (INNER, DIM), (INNER, DIM), (INNER,), (INNER,))
    )
    if not bias:
        b_k, b_v = torch.zeros_like(b_k), torch.zeros_like(b_v)
    beside = tuple(torch.randn(rows, HEADS, own, HEAD_DIM, generator=generator).to(dtype) for _ in range(2))
    beside = beside if own else None
    c = rounded(c, dtype)
    c = replace(c, contexts=scale * c.contexts)
    if norm is not None and norm.weight is not None:
        norm = replace(norm, weight=norm.weight.to(dtype))
    seen = shares([Row(c, row) for row in range(rows)])
    attention = AttentionPass()
    attention.plan([c])
    asked = attention.wanted("layer", seen, q)
    attention.take("layer", asked.stacked @ w_k.T + b_k, asked.stacked @ w_v.T + b_v, HEADS, norm=norm)
    with torch.no_grad():
        ours = attention.attend("layer", q, seen, size, own=beside)
    exact = None if beside is None else tuple(t.double() for t in beside)
    oracle = materialised_attention(
        q.double(), c, size, w_k.double(), w_v.double(), HEADS, b_k.double(), b_v.double(), norm, exact
    )
    return ours.double(), oracle


def key_norm(per_head: bool, weighted: bool, eps: float = 1e-6) -> KeyNorm:
    width = HEAD_DIM if per_head else INNER
    weight = torch.randn(width, generator=torch.Generator().manual_seed(4), dtype=torch.float64) if weighted else None
    return KeyNorm(width, eps, weight)


@settings(**SMALL)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=5).map(tuple),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    rows=st.integers(1, 3),
    shared=st.booleans(),
    kind=st.sampled_from(["interpolate", "add", "extrapolate", "alone"]),
    preserve_norm=st.booleans(),
    noise=st.integers(0, 3),
    offset=st.integers(0, 3),
    own_noise=st.booleans(),
    bias=st.booleans(),
    per_head=st.booleans(),
    weighted=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
    own=st.sampled_from([0, 1, 5]),
    repeats=st.sampled_from([0, 1, 9]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_equals_the_oracle_in_float64(
    seed, lengths, size, rows, shared, kind, preserve_norm, noise, offset, own_noise, bias, per_head, weighted, eps,
    own, repeats, scale,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths[:1] if kind == "alone" else lengths
    lengths = (max(lengths),) * len(lengths) if repeats else lengths
    mode = "add" if kind == "add" else "interpolate"
    made = 1 if shared else rows
    c = random_conditioning(generator, lengths, size, made, mode, preserve_norm, noise, offset, own_noise)
    a = c.coefficients
    if kind == "extrapolate":  # negative weights and weights above 1, still adding up to 1
        a = a + torch.randn(a.shape, generator=generator, dtype=a.dtype)
        a = torch.cat([a[:, :1] + 1 - a.sum(1, keepdim=True), a[:, 1:]], dim=1)
    c = replace(c, coefficients=a, repeats=repeats)
    norm = key_norm(per_head, weighted, eps)
    assert relative_error(*attend(c, size, rows, norm, bias=bias, own=own, scale=scale)) < 1e-12


@pytest.mark.parametrize("own", [0, 7])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_equals_the_oracle_in_lower_precision(dtype, tolerance, per_head, negative, own):
    c = random_conditioning(torch.Generator().manual_seed(5), (6, 6, 6, 6), (9, 7), 2, noise=4, offset=3)
    if negative:
        c = replace(c, coefficients=c.coefficients * torch.tensor([1.5, -0.5, 1, 1]).double().view(1, 4, 1, 1))
    assert relative_error(*attend(c, (9, 7), 2, key_norm(per_head, True), dtype, own=own)) < tolerance


def test_own_keys_beside_keys_without_a_norm_are_refused():
    c = random_conditioning(torch.Generator().manual_seed(6), (6, 6), (5, 4), 2)
    with pytest.raises(ValueError, match="own keys stand beside keys under a norm only"):
        attend(c, (5, 4), 2, None, own=11)


def test_where_the_kernel_gives_no_sums_they_are_computed(monkeypatch):
    from lib_masknoise import attention

    c = random_conditioning(torch.Generator().manual_seed(7), (6, 6), (13, 11), 2, noise=2)
    expected, oracle = attend(c, (13, 11), 2, key_norm(True, True), own=90)
    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(torch, "is_grad_enabled", lambda: True)
    found, _ = attend(c, (13, 11), 2, key_norm(True, True), own=90)
    assert relative_error(found, oracle) < 1e-12 and relative_error(found, expected) < 1e-12


def test_blending_normalised_keys_would_be_another_thing():
    """The norm of a blend is not the blend of the norms: what the Gram matrices are for."""
    c = random_conditioning(torch.Generator().manual_seed(8), (6, 6), (4, 4))
    ours, oracle = attend(c, (4, 4), 1, key_norm(True, False))
    assert relative_error(ours, oracle) < 1e-12
    unnormalised, _ = attend(c, (4, 4), 1, None)
    assert relative_error(unnormalised, oracle) > 0.01


def test_a_norm_of_another_width_is_refused():
    c = random_conditioning(torch.Generator().manual_seed(9), (4, 4), (3, 3))
    stacked = wanted(c, c.contexts).stacked
    with pytest.raises(ValueError, match="the norm is over 5 elements; expected 7 or 7"):
        projected(c, stacked, stacked, 1, KeyNorm(5, 1e-6))


# Texts that a model fills up


def encoded(length: int, seed: int, full: int = 20) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    filler = torch.randn(DIM, generator=torch.Generator().manual_seed(0))
    return Encoded(torch.randn(length, DIM, generator=generator), filler=filler, full=full)


def whole(one: Encoded) -> Encoded:
    """With every filler."""
    return Encoded(torch.cat([one.context, one.filler.expand(one.full - len(one.context), -1)]))


FILLED = Scene.parse(
    {
        "concepts": [{"prompt": "a", "mask": {"kind": "split", "from": 0.0, "to": 0.6, "feather": 0.5}}],
        "noise": {"concept": {"strength": 0.7, "rank": 3}, "feature": {"strength": 0.5, "dimensions": "all"}},
    }
)


@pytest.mark.parametrize("full", [20, 9, 8])
def test_fillers_are_there_once_and_count_as_many_times(full):
    base, concept = encoded(8, 1, full), encoded(3, 2, full)
    maps = Maps(FILLED, (6, 5))
    short = condition(maps, base, {"a": concept})
    assert short.contexts.shape[1] == min(9, full) and short.repeats == full - 8
    full_tokens = torch.zeros(1, 3, full).double()
    full_tokens[..., :8] = short.noise.tokens[..., :8]
    spelled_out = replace(
        short,
        contexts=torch.stack([whole(base).context, whole(concept).context]),
        lengths=(full, full),
        noise=replace(short.noise, tokens=full_tokens),
        offset=replace(short.offset, tokens=torch.ones(1, short.offset.tokens.shape[1], full)),
        repeats=0,
    )
    if full > 8:
        assert not short.noise.tokens[..., -1].any()
    for norm in (None, key_norm(False, True)):
        ours, _ = attend(short, (6, 5), 1, norm, bias=True)
        expected, oracle = attend(spelled_out, (6, 5), 1, norm, bias=True)
        assert relative_error(ours, oracle) < 1e-6 and relative_error(expected, oracle) < 1e-6


def test_one_filled_text_alone_is_that_text():
    one = encoded(4, 3)
    ours, _ = attend(unblended(one), (3, 3), 1, key_norm(False, True), bias=True)
    _, oracle = attend(unblended(whole(one)), (3, 3), 1, key_norm(False, True), bias=True)
    assert relative_error(ours, oracle) < 1e-6
