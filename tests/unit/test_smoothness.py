"""Distances between frames, the evenness of steps, and times at which a path moves evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_masknoise.smoothness import (
    coarse_times,
    even_times,
    evenness,
    features,
    figures,
    measure,
    perceptual_distance,
    pixel_distance,
)

STEPS = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


def picture(seed: int = 0, height: int = 48, width: int = 64, shift: float = 0.0, contrast: float = 60) -> Image.Image:
    """Smooth structure of several sizes, moved to the right by `shift` pixels."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for frequency in (0.1, 0.3, 0.9):
        for channel in range(3):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            wave = frequency * (np.cos(angle) * (x - shift) + np.sin(angle) * y) + phase
            pixels[..., channel] += contrast / 3 * np.sin(wave)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (value, value, value))


def perceived(a: Image.Image, b: Image.Image) -> float:
    return perceptual_distance(features(a), features(b))


# Distances


def test_pixel_distance_is_the_root_mean_square():
    assert pixel_distance(grey(0), grey(255)) == pytest.approx(1)
    assert pixel_distance(grey(100), grey(151)) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("distance", [perceived, pixel_distance])
def test_distances_are_metrics(distance):
    a, b, c = picture(0), picture(0, shift=3), picture(1)
    assert distance(a, a) == 0
    assert distance(a, b) == pytest.approx(distance(b, a)) and distance(a, b) > 0
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@pytest.mark.parametrize("distance", [perceived, pixel_distance])
def test_a_larger_shift_is_further(distance):
    distances = [distance(picture(), picture(shift=shift)) for shift in (0.5, 1, 2)]
    assert distances == sorted(distances) and distances[0] > 0


def test_a_change_counts_for_more_where_there_is_little_contrast():
    """The masking that pixels do not know: the same texture is added to a flat and to a busy picture."""

    def with_texture(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image).astype(int)
        return Image.fromarray((pixels + 6 * (np.indices(pixels.shape[:2]).sum(0) % 2)[..., None]).astype(np.uint8))

    flat, busy = picture(contrast=2), picture(contrast=110)
    assert pixel_distance(flat, with_texture(flat)) == pytest.approx(pixel_distance(busy, with_texture(busy)))
    assert perceived(flat, with_texture(flat)) > 1.5 * perceived(busy, with_texture(busy))


def test_a_change_of_colour_alone_is_seen():
    orange, blue = Image.new("RGB", (32, 32), (200, 100, 40)), Image.new("RGB", (32, 32), (73, 132, 208))
    assert abs(np.asarray(orange.convert("L"), int) - np.asarray(blue.convert("L"), int)).max() <= 2
    assert perceived(orange, blue) > 0.1


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 40), (31, 17), (300, 200), (1024, 64)])
def test_any_size(size):
    width, height = size
    levels = features(picture(0, height, width))
    assert 1 <= len(levels) <= 6 and max(levels[0].shape) <= 256
    assert perceived(picture(0, height, width), picture(1, height, width)) > 0


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="one size"):
        pixel_distance(grey(0), picture())
    with pytest.raises(ValueError, match="one size"):
        perceived(grey(0), picture())


# Steps


@given(STEPS)
def test_evenness_is_one_minus_the_gini_coefficient(steps):
    d = np.array(steps)
    if d.sum() > 0:
        gini = np.abs(d[:, None] - d).sum() / (2 * len(d) ** 2 * d.mean())
        assert evenness(steps) == pytest.approx(1 - gini, abs=1e-9)
    else:
        assert evenness(steps) == 1


def test_evenness_of_known_steps():
    assert evenness([0.3] * 7) == pytest.approx(1)
    assert evenness([0, 0, 0, 1]) == pytest.approx(1 / 4)
    assert evenness([]) == evenness([0, 0]) == 1


def test_figures():
    assert figures([0.1, 0.4, 0.2], loop=True) == {
        "mean": 0.233333,
        "largest": 0.4,
        "largest_at": 1,
        "evenness": round(evenness([0.1, 0.4, 0.2]), 4),
        "closure": 0.5,
    }
    assert figures([0.1, 0.4, 0.2], loop=False)["closure"] is None
    assert figures([0.0, 0.0], loop=True)["closure"] is None
    assert figures([], loop=True)["mean"] == 0


def test_measure_counts_the_closing_step_of_a_loop_only():
    images = [grey(0), grey(51), grey(102)]
    opened, closed = measure(iter(images), loop=False)["pixel"], measure(iter(images), loop=True)["pixel"]
    assert opened["largest"] == pytest.approx(0.2, abs=1e-5) and opened["evenness"] == 1
    assert closed["largest"] == pytest.approx(0.4, abs=1e-5) and closed["closure"] == pytest.approx(2, abs=1e-3)
    assert closed["largest_at"] == 2


def test_measure_of_stills():
    for images in ([], [grey(5)], [grey(5)] * 3):
        for found in measure(images, loop=True).values():
            assert found["mean"] == found["largest"] == 0 and found["evenness"] == 1


# Even times


@given(
    st.lists(st.just(0.0) | st.floats(1e-6, 100), min_size=1, max_size=40),  # 8-bit pictures: 0 or well above it
    st.integers(1, 50),
    st.booleans(),
)
def test_even_times_stay_in_order_and_within_the_path(steps, count, loop):
    times = coarse_times(count, len(steps) + 1, loop)
    even = even_times(times, steps, count, loop)
    assert len(even) == count and even == sorted(even)
    assert times[0] <= even[0] and even[-1] <= times[-1] + 1e-4
    if not loop and count > 1 and steps[0] > 0 and steps[-1] > 0:
        assert even[0] == 0 and even[-1] == pytest.approx(count - 1)


@pytest.mark.parametrize("loop", [False, True])
def test_even_times_make_a_known_path_even(loop):
    """The path stands at t + sin(2πt/F)·F/8 (faster at both ends): its pace varies by a factor of 8."""
    total = 40

    def place(t: np.ndarray) -> np.ndarray:
        return t + total / 8 * np.sin(2 * np.pi * t / total)

    times = coarse_times(total, 41, loop)
    even = np.array(even_times(times, np.diff(place(np.array(times))), total, loop))
    before, after = (evenness(np.diff(place(t))) for t in (np.arange(total), even))
    assert before < 0.7 and after > 0.99


def test_even_times_of_an_even_path_are_the_frames():
    assert even_times(coarse_times(8, 5, False), [2.0] * 4, 8, False) == pytest.approx(range(8), abs=1e-4)
    assert even_times(coarse_times(8, 5, True), [2.0] * 4, 8, True) == pytest.approx(range(8))


@pytest.mark.parametrize("loop", [False, True])
def test_even_times_of_a_still_are_the_frames(loop):
    assert even_times(coarse_times(6, 4, loop), [0.0] * 3, 6, loop) == pytest.approx(range(6))
