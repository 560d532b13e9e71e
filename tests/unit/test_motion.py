"""Motion: every kind's envelope and mixture, loop closure, stationarity."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.controls import MOTIONS
from lib_masknoise.motion import KINDS, envelope, mixture, mixtures
from lib_masknoise.motion.walk import oscillator
from lib_masknoise.scene import Scene
from lib_masknoise.seeded import generator

KEYS = [
    {"frame": 2, "value": 0.0, "easing": "linear"},
    {"frame": 6, "value": 1.0, "easing": "ease-in"},
    {"frame": 10, "value": -1.0, "easing": "step"},
]


def motion(kind="none", **fields):
    if kind == "keyframes":
        fields.setdefault("keyframes", KEYS)
    return Scene.parse({"motion": {"kind": kind, **fields}}).motion


motions = st.builds(
    motion,
    st.sampled_from(MOTIONS),
    cycles=st.integers(1, 12),
    phase=st.floats(-6.28, 6.28),
    momentum=st.floats(0, 0.999),
    loop=st.booleans(),
)
looped = motions.map(lambda m: m.copy(update={"loop": True}))
seeds = st.integers(0, 2**63 - 1)


def frames_of(total):
    """Frames of an animation, whole ones and fractions."""
    return st.integers(0, total) | st.floats(0, total)


def test_every_kind_that_can_be_chosen_is_there():
    assert tuple(KINDS) == MOTIONS


def test_generators_depend_on_seed_and_purpose_alone():
    def draw(seed, purpose):
        return torch.randn(4, generator=generator(seed, purpose)).tolist()

    assert draw(1, "visual") == draw(1, "visual")
    keys = [(1, "visual"), (2, "visual"), (1, "concept"), (12, ""), (1, "2")]
    assert len({tuple(draw(*key)) for key in keys}) == 5


@settings(max_examples=100, deadline=None)
@given(motions, seeds, st.integers(1, 200), st.data())
def test_mixture_is_a_unit_vector_and_envelope_a_fraction(m, seed, total, data):
    frame = data.draw(frames_of(total))
    assert float(mixture(m, frame, total, seed).norm()) == pytest.approx(1.0, abs=1e-14)
    assert -1.0 <= envelope(m, frame, total) <= 1.0


@settings(max_examples=60, deadline=None)
@given(looped, seeds, st.integers(1, 200), st.integers(0, 5))
def test_a_loop_closes_bit_for_bit(m, seed, total, frame):
    assert torch.equal(mixture(m, frame, total, seed), mixture(m, total + frame, total, seed))
    assert envelope(m, frame, total) == envelope(m, total + frame, total)


@settings(max_examples=40, deadline=None)
@given(motions, seeds, st.integers(2, 60), st.data())
def test_a_frame_is_the_same_in_any_batch(m, seed, total, data):
    frames = [*range(total + 1), *data.draw(st.lists(st.floats(0, total), max_size=5))]
    every = mixtures(m, frames, total, seed)
    some = data.draw(st.permutations(range(len(frames))))[: total // 2 + 1]
    assert torch.equal(mixtures(m, [frames[i] for i in some], total, seed), every[some])


@settings(max_examples=60, deadline=None)
@given(motions.filter(lambda m: m.kind != "keyframes"), seeds, st.integers(2, 60), st.data())
def test_fractions_of_frames_lie_on_the_same_path(m, seed, total, data):
    """Whole floats are the frames themselves, and nothing jumps just before or after one, nor at a loop's end."""
    frame = data.draw(st.integers(1, total if m.loop else total - 1))
    before, there, after = (mixture(m, f, total, seed) for f in (frame - 1e-9, float(frame), frame + 1e-9))
    assert torch.equal(there, mixture(m, frame, total, seed))
    assert (before - there).norm() < 1e-5 and (after - there).norm() < 1e-5
    values = [envelope(m, f, total) for f in (frame - 1e-9, float(frame), frame + 1e-9)]
    assert values[1] == envelope(m, frame, total) and values == pytest.approx([values[1]] * 3, abs=1e-6)


def largest_step_inside_and_closing_step(m, total, seed=0):
    """Steps of envelope × mixture from frame to frame: the largest inside, and the one that closes."""
    frames = range(total + 1)
    factors = torch.tensor([envelope(m, frame, total) for frame in frames], dtype=torch.float64)
    steps = (factors[:, None] * mixtures(m, frames, total, seed)).diff(dim=0).norm(dim=1)
    return float(steps[:-1].max()), float(steps[-1])


@pytest.mark.parametrize("kind", ["none", "sine", "circle", "linear"])
@pytest.mark.parametrize("total", [2, 12, 24, 25])
@pytest.mark.parametrize("cycles", [1, 3])
def test_closing_step_is_no_larger_than_the_largest_inside(kind, total, cycles):
    inside, closing = largest_step_inside_and_closing_step(motion(kind, cycles=cycles), total)
    assert closing <= inside * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        motion,
        st.sampled_from(["simplex", "walk"]),
        cycles=st.integers(1, 5),
        momentum=st.floats(0, 0.999),
        phase=st.floats(-6, 6),
    ),
    st.integers(2, 50),
    seeds,
)
def test_closing_step_of_random_motion_is_no_larger_either(m, total, seed):
    inside, closing = largest_step_inside_and_closing_step(m, total, seed)
    assert closing <= inside * (1 + 1e-9)


# --- envelopes


@given(st.integers(1, 9), st.floats(-6, 6), st.integers(1, 99), st.integers(0, 99))
def test_sine(cycles, phase, total, frame):
    value = envelope(motion("sine", cycles=cycles, phase=phase), frame, total)
    assert value == pytest.approx(math.sin(2 * math.pi * cycles * frame / total + phase), abs=1e-11)


def test_sine_repeats_every_cycle_exactly():
    m = motion("sine", cycles=4)
    values = [envelope(m, frame, 48) for frame in range(49)]
    assert values[:12] == values[12:24] == values[36:48]


@pytest.mark.parametrize("kind", ["none", "circle", "simplex", "walk", "linear"])
def test_other_kinds_do_not_change_the_amount(kind):
    assert {envelope(motion(kind), frame, 10) for frame in range(11)} == {1.0}


@pytest.mark.parametrize(
    ("frame", "value"),
    [(0, 0), (2, 0), (3, 0.25), (4.5, 0.625), (6, 1), (7, 1 - 2 / 16), (8, 0.5), (10, -1), (11, -1), (40, -1)],
)
def test_keyframes_ease_towards_the_next_key_and_hold_at_the_ends(frame, value):
    assert envelope(motion("keyframes", loop=False), frame, 12) == pytest.approx(value)


@pytest.mark.parametrize(
    ("easing", "quarter"),
    [("linear", 0.25), ("ease-in", 0.0625), ("ease-out", 0.4375), ("ease-in-out", 0.15625), ("step", 0.0)],
)
def test_easings(easing, quarter):
    keys = [{"frame": 0, "value": 0, "easing": easing}, {"frame": 8, "value": 1}]
    m = motion("keyframes", keyframes=keys, loop=False)
    assert [envelope(m, frame, 9) for frame in (0, 2, 8)] == pytest.approx([0, quarter, 1])


def test_looped_keyframes_lead_from_the_last_key_to_the_first():
    keys = [{"frame": 2, "value": 0}, {"frame": 6, "value": 1}]
    m = motion("keyframes", keyframes=keys)
    values = [envelope(m, frame, 12) for frame in range(12)]
    assert values == pytest.approx([0.25, 0.125, 0, 0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5, 0.375])


def test_a_looped_key_at_the_end_gives_way_to_the_first():
    keys = [{"frame": 0, "value": 0.5}, {"frame": 5, "value": 1}, {"frame": 10, "value": -1}]
    m = motion("keyframes", keyframes=keys)
    assert envelope(m, 10, 10) == envelope(m, 0, 10) == 0.5
    assert envelope(m, 9, 10) == pytest.approx(0.6)


def test_keys_beyond_the_loop_leave_the_first_value():
    m = motion("keyframes", keyframes=[{"frame": 20, "value": 0.5}, {"frame": 30, "value": 1}])
    assert {envelope(m, frame, 10) for frame in range(10)} == {0.5}


def test_unknown_kinds_and_empty_animations_are_refused():
    unknown = SimpleNamespace(kind="swirl")
    with pytest.raises(ValueError, match="swirl"):
        envelope(unknown, 0, 1)
    with pytest.raises(ValueError, match="swirl"):
        mixtures(unknown, [0], 1, 0)
    with pytest.raises(ValueError, match="at least one frame"):
        mixture(motion("circle"), 0, 0, 0)


# --- mixtures


@pytest.mark.parametrize("kind", ["none", "sine", "keyframes"])
def test_fixed_fields(kind):
    assert mixtures(motion(kind), range(5), 4, 0).tolist() == [[1.0]] * 5


def test_circle():
    rows = mixtures(motion("circle", cycles=2, phase=0.5), range(8), 8, 0).tolist()
    angles = [2 * math.pi * 2 * frame / 8 + 0.5 for frame in range(8)]
    assert rows == [pytest.approx([math.cos(angle), math.sin(angle)]) for angle in angles]


def test_linear_goes_from_a_to_b_and_with_a_loop_back():
    def angles(loop, total):
        a, b = mixtures(motion("linear", loop=loop), range(total + 1), total, 0).T
        return torch.atan2(b, a).tolist()

    quarter = math.pi / 2
    assert angles(False, 5) == pytest.approx([quarter * t for t in (0, 0.25, 0.5, 0.75, 1, 1)])
    assert angles(True, 4) == pytest.approx([quarter * t for t in (0, 0.5, 1, 0.5, 0)])
    assert angles(False, 1) == pytest.approx([0, quarter])


@pytest.mark.parametrize("kind", ["simplex", "walk"])
@pytest.mark.parametrize("loop", [True, False])
def test_random_mixtures_favour_no_component_and_follow_the_seed(kind, loop):
    m = motion(kind, loop=loop)
    rows = torch.cat([mixtures(m, [0, 7], 20, seed) for seed in range(200)])
    assert rows.mean(dim=0).abs().max() < 4 * math.sqrt(1 / 8 / 200)
    assert ((rows**2).mean(dim=0) - 1 / 8).abs().max() < 0.04
    assert not torch.equal(rows[0], rows[2])


def mean_step(m, total=100):
    """Mean angle from frame to frame, over some seeds."""
    rows = torch.stack([mixtures(m, range(total), total, seed) for seed in range(20)])
    return float(rows.diff(dim=1).norm(dim=2).mean())


@pytest.mark.parametrize("kind", ["circle", "simplex", "walk"])
@pytest.mark.parametrize("loop", [True, False])
def test_cycles_set_the_tempo(kind, loop):
    one, three = (mean_step(motion(kind, cycles=cycles, loop=loop)) for cycles in (2, 6))
    assert three / one == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("kind", ["simplex", "walk"])
@pytest.mark.parametrize("loop", [True, False])
def test_phase_starts_elsewhere_on_the_same_path(kind, loop):
    """A quarter turn with two cycles is an eighth of the animation; a loop's seam may be a frame off."""
    early, late = (motion(kind, cycles=2, loop=loop, phase=phase) for phase in (0, math.pi / 2))
    rows = mixtures(late, range(1, 30), 40, 3)
    shifted = [mixtures(early, range(6 + seam, 35 + seam), 40, 3) for seam in ((-1, 0, 1) if loop else (0,))]
    assert any(torch.allclose(rows, other, atol=1e-9) for other in shifted)


def test_an_open_path_ends_elsewhere():
    for kind in ("simplex", "walk"):
        first, last = mixtures(motion(kind, momentum=0.5, loop=False), [0, 30], 30, 5)
        assert float(first @ last) < 0.8


# --- walk


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_walk_never_diverges(momentum, loop):
    total = 10_000
    frames = range(0, total, 1 if momentum < 0.99 else 25)
    m = motion("walk", momentum=momentum, cycles=40, loop=loop)
    rows = mixtures(m, frames, total, 1)
    assert torch.isfinite(rows).all()
    assert (rows.norm(dim=1) - 1).abs().max() < 1e-14
    parts = oscillator(m, [0, total // 2, total - 1], total, 1000, 1)
    assert parts.var(axis=1).tolist() == pytest.approx([1, 1, 1], rel=0.18)


def autocorrelation(momentum, lag):
    """Of the damped oscillator after ``lag`` of its periods."""
    zeta, tau = 1 - momentum, 2 * math.pi * lag
    nu = math.sqrt(1 - zeta**2) if zeta < 1 else 1e-6
    return math.exp(-zeta * tau) * (math.cos(nu * tau) + zeta / nu * math.sin(nu * tau))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("loop", [True, False])
def test_walk_has_the_autocorrelation_of_the_oscillator(momentum, loop):
    """Measured over 4,000 walks from frame 3 on; on a loop all the loop's lags fold into one."""
    cycles, total, walks, lags = 2, 40, 4000, np.arange(0, 37, 4)
    m = motion("walk", momentum=momentum, cycles=cycles, loop=loop)
    values = oscillator(m, 3 + lags, total, walks, seed=8)
    measured = (values * values[0]).mean(axis=1)
    turns = lags * cycles / total
    if loop:
        folds = [[autocorrelation(momentum, abs(t + cycles * k)) for k in range(-99, 100)] for t in turns]
        expected = np.sum(folds, axis=1) / np.sum(folds[0])
    else:
        expected = [autocorrelation(momentum, t) for t in turns]
    assert measured == pytest.approx(np.array(expected), abs=4 * math.sqrt(2 / walks))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_mixture_keeps_the_oscillators_autocorrelation(momentum):
    """Dividing by the norm of eight components changes it by a few per cent only."""
    m = motion("walk", momentum=momentum, cycles=2, loop=False)
    rows = torch.stack([mixtures(m, range(0, 40, 4), 40, seed) for seed in range(400)])
    measured = (rows * rows[:, :1]).sum(dim=2).mean(dim=0).tolist()
    assert measured == pytest.approx([autocorrelation(momentum, f / 20) for f in range(0, 40, 4)], abs=0.06)


def test_momentum_makes_the_walk_smooth_and_regular():
    """At 0 it has forgotten itself after a cycle; near 1 it comes back to where it was, cycle after cycle."""

    def return_after_a_cycle(momentum):
        m = motion("walk", momentum=momentum, cycles=5, loop=False)
        pairs = torch.stack([mixtures(m, [0, 10], 50, seed) for seed in range(60)])
        return float((pairs[:, 0] * pairs[:, 1]).sum(dim=1).mean())

    rough, middle, smooth = (return_after_a_cycle(momentum) for momentum in (0.0, 0.9, 0.999))
    assert rough < 0.1 < middle < 0.7 < 0.98 < smooth
