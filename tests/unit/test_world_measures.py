"""The measures of what lies between two places, on pictures whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.small_model import world
from tools.small_model.world_measures import Way, backward, ghosting, inconsistency, orientations, seen
from tools.small_model.world_truth import WorldTruth

MIDDLES = {middle.name: middle for middle in world.MIDDLES}


def way() -> Way:
    return Way(("wetness", "plants"), np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]))


def readings(shares: np.ndarray, seeds: int = 3, rows: int = 2) -> np.ndarray:
    """A picture that shows at each column the true mixture of that share."""
    line = way().left + shares[:, None] * (way().right - way().left)
    return np.broadcast_to(line, (seeds, rows, *line.shape))


def stripes(direction: float, size: int = 64) -> np.ndarray:
    """`[1, size, size, 3]` stripes that run in a direction, in half turns from level; y points down."""
    y, x = np.mgrid[:size, :size]
    across = y * np.cos(direction * np.pi) - x * np.sin(direction * np.pi)
    return np.repeat((0.5 + 0.5 * np.sin(across * 0.8))[None, ..., None], 3, -1)


@pytest.fixture(scope="module")
def truth() -> WorldTruth:
    return WorldTruth(32)


def test_a_way_has_the_attributes_that_change_and_show(truth):
    found = Way.over(MIDDLES["flooded field"], truth, count=2)
    assert {"wetness", "plants", "hue"} <= set(found.names)
    assert not {"built", "fog"} & set(found.names)
    wetness = found.points[:, found.names.index("wetness")]
    assert wetness[0] < 0.15 and wetness[-1] > 0.85 and (np.diff(wetness) > -0.1).all()


def test_a_bent_way_is_followed():
    bent = Way(("wetness", "plants"), np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert bent.distance(np.array([[0.0, 0.5], [0.5, 1.0], [0.5, 0.5]])) == pytest.approx([0, 0, 0.5])


def test_a_true_ramp_is_consistent_and_monotone_and_its_middle_is_seen():
    shares = np.linspace(0, 1, 8)
    ramp = readings(shares)
    constant = {t: readings(np.full(4, t)) for t in (2 / 7, 4 / 7)}
    assert inconsistency(ramp, shares, constant) < 1e-9
    assert backward(ramp, way()) == 0
    found = seen(readings(np.full(4, 0.5)), way())
    assert found["middle"] == 1 and found["off"] < 1e-9


def test_a_hard_edge_is_neither():
    shares = np.linspace(0, 1, 8)
    hard = readings((shares > 0.5).astype(float))
    constant = {t: readings(np.full(4, t)) for t in (2 / 7, 4 / 7)}
    assert inconsistency(hard, shares, constant) == pytest.approx((2 / 7 + 3 / 7) / 2)
    found = seen(readings(np.array([0.0, 1, 0, 1])), way())
    assert (found["left"], found["middle"], found["right"]) == (0.5, 0, 0.5)


def test_what_is_on_no_way_is_far_off():
    somewhere = np.ones((1, 1, 4, 2))  # wet and grown over, which no mixture is
    assert seen(somewhere, way())["off"] == pytest.approx(0.5 / 0.12, rel=0.01)


def test_going_back_is_counted():
    shares = np.array([0, 0.4, 0.2, 1.0])
    assert backward(readings(shares), way()) == pytest.approx(0.2)


@pytest.mark.parametrize("direction", [0.0, 0.2, 0.5, 0.75])
def test_edges_run_along_the_stripes(direction):
    share = orientations(stripes(direction))
    away = np.abs(np.arange(len(share)) / len(share) - direction)
    assert np.minimum(away, 1 - away)[share.argmax()] < 0.04
    assert share.sum() == pytest.approx(1, abs=1e-5)


def test_two_directions_at_once_are_a_ghost_and_the_one_between_is_none():
    ghost = (stripes(0.1) + stripes(0.5)) / 2
    assert ghosting(ghost, 0.1, 0.5) > 3
    assert ghosting(stripes(0.3), 0.1, 0.5) < 0.05
    assert ghosting(stripes(0.1), 0.1, 0.5) < 0.5  # one end alone is no ghost


def test_a_way_on_which_nothing_shows_is_refused(truth):
    hidden = world.Middle(("nowhere",), world.BY_NAME["lake"].attributes, ("lake", "lake"))
    with pytest.raises(ValueError, match="nothing that can be read changes on the way over nowhere"):
        Way.over(hidden, truth, count=1)


def test_the_renderer_shows_one_direction_between_two_and_a_crossfade_both():
    """The desert's ripples turn into the wheat's rows through a direction between; a crossfade has both."""
    from tools.small_model.world_render import render

    a, b = (world.point(grain=1, relief=0.6, temperature=0.68, rock=0, direction=d) for d in (0.05, 0.45))
    seeds = [11, 12, 13]
    ends = [render(torch.stack([p] * 3), seeds, 96, 96).permute(0, 2, 3, 1) for p in (a, b)]
    true = render(torch.stack([(a + b) / 2] * 3), seeds, 96, 96).permute(0, 2, 3, 1)
    assert ghosting(true, 0.05, 0.45) < 0.5 * ghosting((ends[0] + ends[1]) / 2, 0.05, 0.45)
