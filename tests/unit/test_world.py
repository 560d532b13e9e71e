"""The world that the model is trained on: its places, its renderer, its captions."""

from __future__ import annotations

from random import Random

import pytest
import torch

from tools.small_model import world
from tools.small_model.world_captions import (
    ADJECTIVES,
    BREAK,
    BY_WORD,
    HELD_OUT_PAIRS,
    KINDS,
    Captions,
    Spec,
    allowed,
    apt,
    draw,
)  # fmt: skip
from tools.small_model.world_data import make_shard, picture, turning
from tools.small_model.world_render import render

SIDE = 64
KNOWN = {place.name: place for place in world.PLACES}


def drawn(points: list[torch.Tensor], seeds: list[int], height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return render(torch.stack(points), seeds, height, width)


def features(images: torch.Tensor) -> torch.Tensor:
    """`[B, F]` of 16x16 patches, averaged: mean colour, its spread over the patches, and the steps in x and in y."""
    means = torch.nn.functional.avg_pool2d(images, 16)
    steps = [images.diff(dim=d).abs().mean((1, 2, 3)) for d in (2, 3)]
    return torch.cat([means.mean((2, 3)), means.std((2, 3)), 4 * torch.stack(steps, 1)], 1)


# ---------------------------------------------------------------- the space


def test_there_are_enough_places_and_all_have_names_of_their_own():
    names = [name for place in world.NAMED.values() for name in place.names]
    assert len(world.PLACES) >= 24
    assert len(names) == len(set(names))
    assert all(((p.attributes >= 0) & (p.attributes <= 1)).all() for p in world.NAMED.values())


def test_middles_lie_half_way_and_some_are_held_out():
    for middle in world.MIDDLES:
        a, b = (KNOWN[name].attributes for name in middle.parents)
        assert torch.allclose(middle.attributes, (a + b) / 2)
        assert middle.name not in KNOWN
    assert 3 <= len(world.HELD_OUT) < len(world.MIDDLES) / 2


def test_middles_are_no_other_place():
    """A middle is further from every place than that place's own room."""
    points = torch.stack([place.attributes for place in world.PLACES])
    for middle in world.MIDDLES:
        assert ((points - middle.attributes).abs() / world.ROOM.clamp(min=0.02)).amax(1).min() > 2


@pytest.mark.parametrize(
    ("values", "message"),
    [({"wet": 1}, "wet: no such attribute"), ({"wetness": 1.2}, "wetness: expected a number from 0 to 1")],
)
def test_a_wrong_attribute_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        world.point(values)


def test_straying_stays_near_and_in_range():
    random = Random(1)
    for place in world.PLACES:
        point = world.stray(place, random)
        assert ((point >= 0) & (point <= 1)).all()
        assert ((point - place.attributes).abs() <= world.ROOM + 1e-6).all()


# ------------------------------------------------------------- the renderer


def test_a_picture_is_its_attributes_and_seed():
    points = [place.attributes for place in list(world.NAMED.values())[:6]]
    first = drawn(points, list(range(6)))
    assert torch.equal(first, drawn(points, list(range(6))))
    assert torch.equal(first[4], drawn(points[4:5], [4])[0])  # whatever else is in the batch
    assert not torch.allclose(first[:1], drawn(points[:1], [9]))


@pytest.mark.parametrize("name", list(world.NAMED))
def test_every_place_is_a_picture_in_range(name):
    for view in (None, 0.35):
        point = world.NAMED[name].attributes
        point = point if view is None else world.adjusted(point, {"sky": view})
        image = drawn([point], [3], 48, 80)
        assert image.shape == (1, 3, 48, 80)
        assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
        assert image.std() > 0.004


def test_no_corner_of_the_space_breaks_the_renderer():
    random = Random(5)
    corners = [torch.tensor([float(random.random() < 0.5) for _ in world.ATTRIBUTES]) for _ in range(40)]
    image = drawn(corners, list(range(40)), 32, 32)
    assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("middle", world.MIDDLES, ids=lambda m: m.name)
def test_small_steps_of_the_attributes_are_small_steps_of_the_picture(middle):
    """A two-hundredth of the way changes little anywhere on it, half of that about half as much; the whole a lot."""
    ends = [KNOWN[name].attributes for name in middle.parents]
    whole = drawn(ends, [7, 7])
    assert (whole[1] - whole[0]).abs().mean() > 0.05
    for start in (0.0, 0.25, 0.45, 0.7, 0.99):
        points = [world.between(*ends, start + step) for step in (0, 0.0025, 0.005, 0.0075, 0.01)]
        images = drawn(points, [7] * 5)
        short = (images[1:] - images[:-1]).abs().mean((1, 2, 3))
        long = (images[2::2] - images[:-2:2]).abs().mean((1, 2, 3))
        assert long.max() < 0.035, start
        assert short.max() < 0.75 * long.max() + 0.002, start


def test_every_attribute_shows():
    """Each attribute changes the picture of a place it can say something of."""
    base = {"wetness": 0.5, "plants": 0.8, "height": 0.4, "sky": 0.4, "bloom": 0.5, "grain": 0.5, "direction": 0.3,
            "wind": 0.5, "rock": 0.4, "cloud": 0.4, "relief": 0.5}  # fmt: skip
    for name in world.ATTRIBUTES:
        low, high = (world.point({**base, name: value}) for value in (0.1, 0.9))
        images = drawn([low, high], [2, 2])
        assert (images[0] - images[1]).abs().mean() > 0.004, name


def test_places_tell_apart():
    """Nearest mean of simple features over 8 fresh pictures finds the place; no two places look the same."""
    random, learn, test = Random(3), [], []
    for i, place in enumerate(world.PLACES):
        points = [world.stray(place, random) for _ in range(16)]
        f = features(drawn(points, [100 * i + j for j in range(16)], 96, 96))
        learn.append(f[:8])
        test.append(f[8:])
    learn, test = torch.stack(learn), torch.stack(test)
    scale = learn.std(1).mean(0)
    away = torch.cdist(test.flatten(0, 1) / scale, learn.mean(1) / scale)
    right = away.argmin(1).view(len(world.PLACES), 8) == torch.arange(len(world.PLACES))[:, None]
    assert right.float().mean() > 0.85
    assert right.float().mean(1).min() >= 0.25


def test_the_ground_truth_of_a_ramp_has_its_ends_and_its_middle():
    a, b = KNOWN["ocean"].attributes, KNOWN["ice"].attributes
    share = torch.zeros(32, 96)
    share[:, 32:64], share[:, 64:] = 0.4, 1
    image = turning(a, b, share, seed=5)
    for columns, t in ((slice(0, 32), 0.0), (slice(32, 64), 0.4), (slice(64, 96), 1.0)):
        whole = drawn([world.between(a, b, t)], [5], 32, 96)[0]
        assert torch.allclose(image[..., columns], whole[..., columns], atol=1e-5)


@pytest.mark.parametrize(
    ("points", "seeds", "message"),
    [
        (torch.zeros(2, 3), [1, 2], "attributes: expected"),
        (torch.zeros(2, len(world.ATTRIBUTES)), [1], "seeds: expected 2"),
        (torch.full((1, len(world.ATTRIBUTES)), 2.0), [1], "attributes: expected numbers from 0 to 1"),
    ],
)
def test_the_renderer_names_what_is_wrong(points, seeds, message):
    with pytest.raises(ValueError, match=message):
        render(points, seeds)


# ------------------------------------------------------------- the captions


def specs(count: int = 600, seed: int = 1) -> list[Spec]:
    random = Random(seed)
    return [draw(random) for _ in range(count)]


def test_training_sees_every_place_and_nothing_held_out():
    found = specs(3000)
    assert {spec.a for spec in found} >= set(KNOWN)
    held_out = {middle.name for middle in world.HELD_OUT}
    parents = [set(middle.parents) for middle in world.HELD_OUT]
    for spec in found:
        assert spec.a not in held_out and spec.b not in held_out
        assert not any((spec.a, word) in HELD_OUT_PAIRS for word in spec.words)
        if {spec.a, spec.b} in parents:
            assert spec.kind == "mixed" and not 0.2 < spec.t < 0.8
    assert {spec.kind for spec in found} == {"alone", "mixed", "turning"}
    assert "middle" in KINDS  # which are drawn as a place alone


def test_no_caption_names_what_is_held_out():
    captions, names = Captions(Random(2)), [n for m in world.HELD_OUT for n in m.names]
    for spec in specs(1500, 2):
        text = captions.text(spec)
        assert not any(name in text for name in names), text


def test_held_out_pairs_exist_and_fit():
    for place, word in HELD_OUT_PAIRS:
        assert apt(BY_WORD[word], place), (place, word)
        assert not allowed(Spec(place, words=(word,)))


def test_adjectives_of_one_picture_do_not_contradict_each_other():
    for spec in specs(1500, 3):
        changes = [name for word in spec.words for name in BY_WORD[word].changes]
        assert len(changes) == len(set(changes))


def test_an_adjective_does_what_it_says():
    for adjective in ADJECTIVES:
        place = next(name for name in KNOWN if apt(adjective, name))
        left, right = Spec(place, words=(adjective.words[0],)).points(Random(1))
        assert torch.equal(left, right)
        for name, value in adjective.changes.items():
            assert left[world.INDEX[name]] == pytest.approx(value)


def test_captions_name_both_places_and_have_synonyms():
    captions = Captions(Random(4))
    texts = {captions.text(Spec("forest", "lake", kind="turning")) for _ in range(200)}
    assert len(texts) > 40
    for text in texts:
        assert any(name in text for name in KNOWN["forest"].names)
        assert any(name in text for name in KNOWN["lake"].names)
    assert any(BREAK in text for text in texts)
    assert any("turning into" in text for text in texts)


def test_a_mixture_names_the_larger_part_first():
    captions = Captions(Random(5))
    for _ in range(50):
        text = captions.text(Spec("forest", "lake", 0.2, "mixed")).split(BREAK)[0]
        trees = min(text.find(n) for n in KNOWN["forest"].names if n in text)
        water = min(text.find(n) for n in KNOWN["lake"].names if n in text)
        assert trees < water


def test_a_spec_is_its_record():
    for spec in specs(50):
        record = spec.record()
        assert Spec(**{**record, "words": tuple(record["words"])}) == spec


# ----------------------------------------------------------------- the data


def test_a_picture_shows_its_spec():
    beside, ends = picture(Spec("snow", "brick wall", kind="beside"), 5, 32, 64)
    snow, wall = drawn([ends[0]], [5], 32, 32)[0], drawn([ends[1]], [6], 32, 32)[0]
    assert torch.equal(beside, torch.cat([snow, wall], 2))
    mixed, ends = picture(Spec("snow", "rock", 0.25, "mixed"), 5, 32, 32)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(mixed, drawn([ends[0]], [5], 32, 32)[0])


def test_a_shard_is_its_number():
    first, again, other = make_shard(4, 32, 4), make_shard(4, 32, 4), make_shard(3, 32, 4)
    assert first["specs"] == again["specs"] and torch.equal(first["images"], again["images"])
    assert first["images"].shape == (4, 3, 32, 32) and first["images"].dtype == torch.uint8
    assert other["images"].shape == (2, 3, 32, 64) and first["specs"][:2] != other["specs"]
