"""Directions of style: what a picture's layout and style are, the eigenproblem, and what a profile keeps."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.calibrate import style
from lib_masknoise.calibrate.profile import Profile, Profiles
from lib_masknoise.conditioning import Encoded
from lib_masknoise.scene import SceneError

seeds = st.integers(0, 2**31)


def pictures(seed: int, count: int = 3, size: int = 16) -> torch.Tensor:
    """Smooth random pictures."""
    noise = torch.randn(count, 4, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic")


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.2, 5), st.floats(-2, 2))
def test_brightness_and_contrast_are_no_layout(seed, contrast, brightness):
    light = pictures(seed)[:, 0]
    before = style.layout(light)
    same = style.moved(before, style.layout(contrast * light + brightness))
    assert same.norm() < 1e-4 * before.norm()
    other = style.moved(before, style.layout(light.flip(-1)))
    assert other.norm() > 0.1 * before.norm()
    inverted = style.moved(before, style.layout(-light))
    assert torch.allclose(inverted.norm(dim=1), (before - before.mean(1, keepdim=True)).norm(dim=1), rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(0, 15))
def test_where_things_are_is_no_style(seed, by):
    """A picture that goes on at its edges, moved: the same style, another layout."""
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    there = noise.roll((0, by), (2, 3))
    parts = zip(style.style(noise, noise[:, 0]), style.style(there, there[:, 0]), strict=True)
    means, covariances, spectrum, orientations = ((a - b).abs().max() for a, b in parts)
    assert max(means, covariances, spectrum) < 1e-3
    assert orientations < 0.8  # gradients across the edge are not counted: up to 0.53 in 12,000 tries


def test_each_part_of_a_style_hears_what_it_is_for():
    x = pictures(0, count=1, size=32)
    plain = style.style(x, x[:, 0])

    def changed(y: torch.Tensor) -> list[float]:
        return [float((a - b).norm()) for a, b in zip(plain, style.style(y, y[:, 0]), strict=True)]

    means, covariances, spectrum, orientations = changed(x + 1)
    assert means > 1 and max(covariances, spectrum, orientations) < 1e-3
    _, _, spectrum, orientations = changed(x.transpose(2, 3))
    assert spectrum < 1e-3 and orientations > 0.1
    _, covariances, spectrum, _ = changed(x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    assert spectrum > 1 and covariances > 0.1


def gram(seed: int, size: int = 12, rank: int = 12) -> torch.Tensor:
    a = torch.randn(size, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T / rank


@settings(max_examples=20, deadline=None)
@given(seeds, seeds, st.integers(1, 4))
def test_no_other_direction_has_more_of_what_is_wanted(seed, other, rank):
    """The first solution beats every direction; the space of the first few is one of orthonormal mixtures."""
    wanted, unwanted = gram(seed), gram(other)
    found = style.directions(wanted, unwanted, rank)
    assert torch.allclose(found.T @ found, torch.eye(rank, dtype=torch.float64), atol=1e-8)
    ridge = style.RIDGE * unwanted.diagonal().mean() * torch.eye(12, dtype=torch.float64)

    def value(e: torch.Tensor) -> float:
        return float((e @ wanted @ e) / (e @ (unwanted + ridge) @ e))

    first = style.directions(wanted, unwanted, 1)[:, 0]
    drawn = torch.randn(50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    assert value(first) >= max(map(value, drawn)) - 1e-9
    assert float((found.T @ first).norm()) == pytest.approx(1, abs=1e-6)


def test_overlap():
    eye = torch.eye(6, dtype=torch.float64)
    assert style.overlap(eye[:, :2], eye[:, :2]) == 1
    assert style.overlap(eye[:, :2], eye[:, 2:4]) == 0
    assert style.overlap(eye[:, :2], eye[:, 1:3]) == 0.5


def test_groups_come_down_and_go_up():
    sd1 = {"in1": 0, "in2": 0, "in4": 1, "in7": 2, "mid": 3, "out3": 2, "out6": 1, "out9": 0, "out10": 0}
    assert style.layer_groups(sd1) == ("in7,mid", "out3", "in4", "out6", "in1,in2", "out9,out10")
    assert style.layer_groups({"in4": 0, "mid": 0, "out0": 0}) == ("in4,mid", "out0")


def test_principal_directions_are_those_of_the_contexts():
    """A direction along which prompts differ comes first, as long as their standard deviation; sinks do not count."""
    draw = torch.Generator().manual_seed(0)
    along = torch.nn.functional.normalize(torch.randn(8, generator=draw), dim=0)
    amounts = torch.randn(50, generator=draw)
    contexts = []
    for amount in amounts:
        context = 0.01 * torch.randn(10, 8, generator=draw) + amount * along
        context[0] = 100 * torch.randn(8, generator=draw)
        contexts.append(Encoded(context))
    first, second = style.principal(contexts, 2)
    assert float(torch.nn.functional.cosine_similarity(first, along, dim=0).abs()) > 0.999
    assert float(first.norm()) == pytest.approx(float(amounts.std()), rel=0.01)
    assert second.norm() < 0.02


# --- A model whose answers are known


class Known:
    """Offsets in the fine layers tint its picture, offsets in the coarse ones move it."""

    shape = (4, 16, 16)
    levels = {"in3": 1, "mid": 1, "out0": 1, "in1": 0, "out2": 0}
    alphas = torch.linspace(0.999, 0.01, 1000)

    def __init__(self) -> None:
        self.rows = 0

    def encode(self, prompts):
        made = {}
        for prompt in prompts:
            draw = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            made[prompt] = Encoded(torch.randn(5, 6, generator=draw))
        return made

    def decoded(self, latents):
        return (latents[:, :1].expand(-1, 3, -1, -1) / 4 + 0.5).repeat_interleave(2, 2).repeat_interleave(2, 3)

    def looked(self, seen, x, time):
        self.rows += len(x)
        fine, coarse = (seen.seen_by(frozenset({block, group})).offset for block, group in
                        (("out2", "fine"), ("in3", "coarse")))  # fmt: skip
        own = int(1e6 * seen.contexts[0].abs().sum())  # another picture for each prompt
        x0 = pictures(own, 1).expand(len(x), -1, -1, -1).clone()
        signal = self.alphas[time]
        if fine is not None:
            x0 = x0 + fine.directions[:, 0, :4, None, None]
        if coarse is not None:
            x0 = x0 + 0.2 * coarse.directions[:, 0, :1, None, None] * x0.roll(3, 3)
        looks = torch.full((len(x), 2, 16), 1 / 16)
        return (x - signal.sqrt() * x0) / (1 - signal).sqrt(), looks


def test_what_tints_is_found_and_what_moves_is_left():
    subject, heard = Known(), []
    found = style.find(subject, [f"prompt {i}" for i in range(40)], pictures=2, candidates=4, report=heard.append)
    groups = style.layer_groups(subject.levels)
    assert found.layers == groups == ("in3,mid", "out0", "in1", "out2")
    assert sum(heard) == subject.rows == style.calls(len(groups), pictures=2, candidates=4)
    shares = {name: own.square().sum((0, 2)) / own.square().sum() for name, own in found.mixtures.items()}
    assert shares["style"][groups.index("out2")] > 0.9, shares
    assert shares["layout"][groups.index("in3,mid")] > 0.2, shares
    figures = found.figures["layout for style"]
    assert figures["style"] < 0.1 * figures["all"] < figures["layout"]


def test_a_mixture_is_as_large_as_the_contexts_spread():
    found = style.find(Known(), [f"prompt {i}" for i in range(40)], pictures=2, candidates=4)
    for name, subspace in found.subspaces.items():
        assert [layers for layers, _ in subspace.by_layers] == list(found.layers)
        own = torch.stack([directions for _, directions in subspace.by_layers], dim=1)  # [K, groups, D]
        whitened = torch.einsum("kgd,nd->kgn", own, found.basis / found.basis.square().sum(1, keepdim=True))
        assert whitened.square().sum((1, 2)).tolist() == pytest.approx([len(found.layers)] * style.RANK, rel=1e-3), name


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="expected more than 8 prompts, got 3"):
        style.find(Known(), ["a", "b", "c"])


# --- In a profile


def made() -> style.Found:
    draw = torch.Generator().manual_seed(4)
    mixtures = {name: torch.randn(2, 3, 4, generator=draw) for name in ("style", "layout")}
    return style.Found(torch.randn(4, 6, generator=draw), ("in1", "mid", "out2,out3"), mixtures, {"rows": 3})


def test_what_is_found_survives_its_file(tmp_path):
    found, profiles = made(), Profiles(tmp_path)
    assert style.kept("ab" * 32, [tmp_path]) == {}
    profiles.save(Profile("ab" * 32, ("a",), {}, style=found.to_dict()))
    read = style.kept("ab" * 32, [tmp_path / "nowhere", tmp_path])
    for name, subspace in found.subspaces.items():
        for (layers, own), (other, kept) in zip(subspace.by_layers, read[name].by_layers, strict=True):
            assert layers == other and torch.allclose(own, kept, rtol=1e-2, atol=1e-2)
    assert read["style"].size == 6 and read["style"].rank == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda given: given.pop("basis"),
        lambda given: given["layers"].append("out9"),
        lambda given: given["layers"].__setitem__(0, "up"),
        lambda given: given["basis"].__setitem__("float16", "?"),
        lambda given: given["basis"].__setitem__("shape", [4, 7]),
        lambda given: given.__setitem__("mixtures", 3),
    ],
)
def test_a_spoilt_profile_is_refused(spoil):
    given = json.loads(json.dumps(made().to_dict()))
    spoil(given)
    with pytest.raises(SceneError, match="style: expected what `calibrate --style` writes"):
        style.Found.parse(given)


def test_the_count_of_calls_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "style.md").read_text("utf-8")
    for groups in (4, 6):
        assert str(style.calls(groups)) in text
    assert len(set(style.PROMPTS)) == 200
