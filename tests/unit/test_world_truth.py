"""The judge of the world: places and attributes of patches, on pictures of the renderer it was not trained on."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from tools.small_model import world
from tools.small_model.world_render import render
from tools.small_model.world_truth import LABELS, OTHER, READ, SIZES, WorldTruth, patches_of, targets, visible

SEEDS = range(77_000_000, 77_000_004)


@pytest.fixture(scope="module", params=SIZES)
def truth(request) -> WorldTruth:
    return WorldTruth(request.param)


def pictures(points: list[torch.Tensor], seeds, side: int = 128) -> torch.Tensor:
    """`[B, side, side, 3]` uint8."""
    return (render(torch.stack(points), list(seeds), side, side) * 255).round().byte().permute(0, 2, 3, 1)


def test_fresh_pictures_of_every_place_are_known(truth):
    random, right = Random(7), {}
    for i, place in enumerate(world.PLACES):
        points = [world.stray(place, random) for _ in SEEDS]
        guess = truth.probabilities(pictures(points, SEEDS)).argmax(-1)
        right[place.name] = (guess == i).mean()
    assert np.mean(list(right.values())) > 0.9
    assert min(right.values()) > 0.3
    assert sum(share > 0.9 for share in right.values()) >= 20


@pytest.mark.parametrize("name", ["flooded field", "savanna", "cooling lava", "mossy wall"])
def test_a_middle_is_mostly_no_place(truth, name):
    middle = world.NAMED[name]
    guess = truth.probabilities(pictures([middle.attributes] * 4, SEEDS)).argmax(-1)
    assert (guess == LABELS.index(OTHER)).mean() > 0.4
    ends = [LABELS.index(parent) for parent in middle.parents]
    assert np.isin(guess, ends).mean() < 0.4


@pytest.mark.parametrize(
    ("name", "start", "stop", "error"),
    [("wetness", "dry earth", "lake", 0.16), ("plants", "wheat field", "desert", 0.14),
     ("temperature", "rock", "lava", 0.12), ("light", "sunset", "night sky", 0.12),
     ("built", "city wall", "desert", 0.2)],
)  # fmt: skip
def test_attributes_are_read_along_a_way(truth, name, start, stop, error):
    a, b = (world.BY_NAME[n].attributes for n in (start, stop))
    shares = np.linspace(0, 1, 5)
    read, true = [], []
    for t in shares:
        point = world.between(a, b, float(t))
        read.append(truth.attributes(pictures([point] * 3, SEEDS[:3]))[name].mean())
        true.append(float(point[world.INDEX[name]]))
    assert np.abs(np.subtract(read, true)).mean() < error
    assert np.corrcoef(read, true)[0, 1] > 0.95


def test_a_patch_is_read_by_itself(truth):
    """Two pictures side by side are read as the two."""
    a, b = pictures([world.BY_NAME["snow"].attributes, world.BY_NAME["brick wall"].attributes], SEEDS[:2], 64)
    both = truth.probabilities(torch.cat([a, b], 1)[None])[0]
    apart = [truth.probabilities(side[None])[0] for side in (a, b)]
    assert np.allclose(both, np.concatenate(apart, 1), atol=1e-5)
    assert both.shape == (64 // truth.size, 128 // truth.size, len(LABELS))


def test_bytes_and_numbers_are_read_alike(truth):
    image = pictures([world.BY_NAME["forest"].attributes], SEEDS[:1], 64)
    assert np.allclose(truth.probabilities(image), truth.probabilities(image.float().numpy() / 255), atol=1e-4)


def test_patches_lie_where_they_were():
    images = torch.arange(2 * 3 * 5 * 7).view(2, 3, 5, 7)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 2, 3, 3, 2, 2)
    assert torch.equal(patches[1, 1, 2], images[1, :, 2:4, 4:6])


def test_only_what_can_be_seen_counts():
    points = torch.stack([world.BY_NAME[name].attributes for name in ("desert", "ocean", "blue sky")])
    shown = dict(zip((*READ, "cos", "sin"), visible(points).bool().T.tolist(), strict=True))
    assert shown["wind"] == [False, True, False]
    assert shown["height"] == [False, False, False]
    assert shown["cloud"] == [False, False, True]
    assert shown["cos"] == [True, True, False]
    assert targets(points).shape == visible(points).shape


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"size: expected one of \(16, 32\), not 24"):
        WorldTruth(24)
