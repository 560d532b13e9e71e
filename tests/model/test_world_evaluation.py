"""The evaluation of a model of the world, and the ways of blending it compares."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tools.small_model import evaluate_world, sampling  # noqa: E402
from tools.small_model.local_vae import LocalVAE  # noqa: E402
from tools.small_model.networks import Networks  # noqa: E402
from tools.small_model.sampling import BlendedAttention, BlendedOutputs, Regions, hardened  # noqa: E402
from tools.small_model.world import MIDDLES, PLACES  # noqa: E402
from tools.small_model.world_measures import Way  # noqa: E402
from tools.small_model.world_truth import WorldTruth  # noqa: E402


@pytest.fixture(scope="module")
def nets() -> Networks:
    return Networks.load()


@pytest.fixture(scope="module")
def truth() -> WorldTruth:
    return WorldTruth(32)


def regions(nets: Networks, share: float) -> Regions:
    contexts = nets.contexts(["a forest", "a desert"])[None]
    return Regions(contexts, torch.tensor([1 - share, share]).view(1, 2, 1, 1).expand(1, -1, 8, 8).contiguous())


def sampled(nets: Networks, of: Regions, blend: type) -> torch.Tensor:
    return sampling.sample(nets.unet, of, nets.contexts([""])[0], steps=3, seed=5, blend=blend)


def test_ways_of_blending_agree_where_there_is_nothing_to_blend(nets):
    alone = regions(nets, 0.0)
    ours, theirs = (sampled(nets, alone, blend) for blend in (BlendedAttention, BlendedOutputs))
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert torch.equal(ours, sampled(nets, hardened(alone), BlendedAttention))


def test_ways_of_blending_differ_in_between(nets):
    half = regions(nets, 0.5)
    ours, theirs = (sampled(nets, half, blend) for blend in (BlendedAttention, BlendedOutputs))
    assert (ours - theirs).abs().mean() > 1e-3


def test_hard_masks_have_one_context_everywhere(nets):
    maps = torch.rand(2, 3, 4, 4).softmax(1)
    hard = hardened(Regions(nets.contexts(["a", "b", "c"])[None].expand(2, -1, -1, -1), maps)).maps
    assert torch.equal(hard.sum(1), torch.ones(2, 4, 4)) and set(hard.unique().tolist()) == {0, 1}
    assert torch.equal(hard.argmax(1), maps.argmax(1))


def test_a_model_is_measured_over_a_middle(nets, truth):
    """On the built-in model, which knows forest and lake (as ocean) in its own way: the figures are in range."""
    middle = next(m for m in MIDDLES if m.name == "winter forest")
    figures, ramps = evaluate_world.between_by(nets, truth, "outputs", middle, seeds=1, steps=2, cfg=4.0)
    assert ramps.shape == (1, 128, 256, 3)
    assert figures["left"] + figures["middle"] + figures["right"] == pytest.approx(1)
    assert figures["off"] > 0 and figures["inconsistency"] >= 0 and figures["backward"] >= 0


def test_the_renderer_is_its_own_standard(truth, monkeypatch):
    """True pictures lie on the way, their middle is seen; a crossfade lies further off."""
    middle = next(m for m in MIDDLES if m.name == "mossy wall")
    true, faded = (evaluate_world.standard(truth, middle, 2, crossfade) for crossfade in (False, True))
    assert true["middle"] > 0.6
    assert true["off"] < 0.7 * faded["off"]
    assert evaluate_world.means({"a": true, "b": {**true, "ghosting": 0.5}})["off"] == pytest.approx(true["off"])


def test_composites_are_measured_without_a_unet(truth):
    torch.manual_seed(0)
    figures = evaluate_world.composite(LocalVAE().eval(), truth, [(0, 1), (2, 3)])
    assert figures["upper"] > 0.85 and 0 <= figures["mean"] <= 1 and figures["single"] < figures["upper"]
    assert set(figures["places"]) == {place.name for place in PLACES[:4]}
    assert figures["changed_by_neighbour"] < 1e-4  # what lies more than a receptive field away


def test_ways_are_read_once(truth, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluate_world, "_WAYS", {})
    monkeypatch.setattr(Way, "over", classmethod(lambda cls, middle, truth: calls.append(middle.name) or "way"))
    for _ in range(2):
        assert evaluate_world._way("mossy wall", truth) == "way"
    assert calls == ["mossy wall"]
