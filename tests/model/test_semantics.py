"""What the images show, judged by the patch classifier: concepts where they are pinned, a monotone passage between
them, and motion only where nothing is pinned.

The pairs are FIXED_PAIRS: each of the 14 concepts once, with the one half-way round the list. The figures of all 91
pairs, larger and with more steps, are in docs/quality.md.
"""

import numpy as np
import pytest

from bench import quality_measures as measures
from bench.quality_measures import CONCEPTS, FIXED_PAIRS, phrase
from bench.quality_sampling import Sampler
from lib_masknoise.hosts.diffusers import render
from lib_masknoise.scene import Scene
from tools.small_model.patch_classifier import PatchClassifier

SIZE, STEPS, SEEDS = (64, 256), 10, range(5)
RAMP = (0.3125, 0.6875)
# The aim is 0.95. The built-in model reaches 0.92 here, and two real textures' latents set side by side come out of its
# decoder no better (docs/quality.md), so the bound guards what there is: raise it with the model.
FIDELITY = 0.90


@pytest.fixture(scope="module")
def classifier():
    return PatchClassifier()


@pytest.fixture(scope="module")
def sampler(pipe):
    return Sampler(pipe, SIZE, STEPS)


@pytest.fixture(scope="module")
def ramps(sampler, classifier):
    """The classifier's probabilities on the ramp of every pair, all seeds, `[S, R, C, 15]`."""

    def judged(left, right):
        scene = measures.ramp(phrase(CONCEPTS[left]), phrase(CONCEPTS[right]), *RAMP)
        return measures.probabilities(classifier, sampler.scene(scene, SEEDS))

    return {pair: judged(*pair) for pair in FIXED_PAIRS}


def test_pinned_regions_show_their_concept_as_plain_generation_does(ramps, sampler, classifier):
    weights = measures.patch_weights(measures.ramp("", "", *RAMP), SIZE)
    ratios = {}
    for pair, probs in ramps.items():
        alone = (sampler.plain(phrase(CONCEPTS[concept]), SEEDS) for concept in pair)
        plain = [measures.probabilities(classifier, images) for images in alone]
        found = measures.fidelity(probs, plain, weights, pair)
        ratios |= {CONCEPTS[concept]: ratio for concept, ratio in zip(pair, found.ratios, strict=True)}
    mean = np.mean(list(ratios.values()))
    figures = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    assert mean >= FIDELITY, f"mean fidelity {mean:.3f}: {figures}"


def test_the_passage_between_two_concepts_is_monotone(ramps):
    passages = [measures.passage(probs, *pair) for pair, probs in ramps.items()]
    left, right = np.mean(passages, axis=0)
    curve = right - left
    weights = measures.patch_weights(measures.ramp("", "", *RAMP), SIZE)[0, 0]
    inside = curve[(weights > 0) & (weights < 1)]
    figures = f"P(right) − P(left) by column: {np.round(curve, 3)}"
    assert (np.diff(inside) > 0).all(), figures
    # Beside the ramp the masks are constant, and what the curve does there is scatter.
    assert curve[0] < -0.8 and curve[-1] > 0.8 and measures.backward(curve) < 0.05, figures


def test_only_what_is_free_moves(pipe):
    strengths = dict.fromkeys(("visual", "concept", "feature"), {"strength": 1.0})
    scene = Scene.parse(
        {
            "concepts": [
                {"prompt": "a wheat field", "mask": {"kind": "split", "from": 0, "to": 0.33, "feather": 0.2}},
                {"prompt": "an ocean", "mask": {"kind": "split", "from": 0.67, "to": 1, "feather": 0.2}},
            ],
            "noise": strengths,
            "motion": {"kind": "circle"},
            "animation": {"frames": 12},
        }
    )
    frames = render(pipe, scene, "a marsh", seed=0, steps=STEPS, size=(128, 256), batch_size=12)
    moved = measures.motion(np.stack([np.asarray(frame.image) for frame in frames]), scene)
    assert moved.fluid > 5, moved.fluid
    assert moved.ratio >= 10, f"fluid {moved.fluid:.2f} levels, anchored {moved.anchored:.2f}: {moved.ratio:.1f}"


def test_methods_agree_where_nothing_is_blended(sampler):
    """What is compared in docs/quality.md differs in what is blended and in nothing else."""
    halves = [{"kind": "split", "from": 0, "to": 0.5}, {"kind": "split", "from": 0.5, "to": 1}]
    concepts = [{"prompt": prompt, "mask": mask} for prompt, mask in zip(("a lava", "an ice"), halves, strict=True)]
    images = {
        method: sampler.scene(Scene.parse({"concepts": concepts}), range(2), method).astype(int)
        for method in ("conditioning", "outputs", "hard")
    }
    for method in ("outputs", "hard"):
        assert np.abs(images[method] - images["conditioning"]).max() <= 1, method
