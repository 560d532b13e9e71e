"""Samples → one number in [0, 1] for each frame.

Frame f is on the screen from f/fps to (f + 1)/fps seconds, and its number says what is heard meanwhile. Numbers are
relative to the sound itself: the same sound louder or softer gives the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Band = tuple[float, float]

BANDS: dict[str, Band] = {"all": (20, 20000), "low": (20, 200), "mid": (200, 2000), "high": (2000, 20000)}
"""From and to, in Hz: kick and bass, voices and most instruments, cymbals and consonants."""

SILENCE = 1e-12
"""Mean square (-120 dB of full scale) of what counts as no sound at all."""
RANGE = 60.0
"""dB below the loudest frame from which on it is silent."""
QUIET, LOUD = 5, 95
"""Percentiles of the frames that are heard, which become 0 and 1."""
LEAST_SPAN = 6.0
"""dB between the two at least, so that the trembling of a steady sound is not blown up: it is 1 throughout."""
WINDOW = 0.05
"""Seconds over which loudness is taken at least: a period of the lowest tone."""

ONSET_WINDOW, ONSET_HOP = 0.024, 0.01
"""Seconds. Shorter than a frame, so that an onset comes into the one in which it is heard."""
COMPRESSION = 100.0
"""γ in log(1 + γ·magnitude): soft onsets count beside loud ones (Müller, Fundamentals of Music Processing, 6.1)."""
LEAST_ONSET = 0.1
"""Share of the strongest onset below which others do not count for how strong onsets are."""

BLOCK = 1 << 21
"""Numbers transformed at a time."""


def loudness(
    samples: Array,
    rate: float,
    fps: float,
    frames: int | None = None,
    band: str | Band = "all",
    smooth: float = 0.05,
) -> Array:
    """How loud a band is in each frame: float64 ``[frames]`` in [0, 1], linear in dB between a quiet and a loud frame.

    The mean square under a Hann window of two frames, of 0.05 s at least. Of the frames within 60 dB of the loudest the
    5th percentile becomes 0 and the 95th 1; where these are less than 6 dB apart, what is 6 dB below the 95th
    becomes 0. samples: mono, ``[n]``, at ``rate`` Hz. frames: by default as many as the sound lasts; beyond it there is
    silence. band: one of `BANDS`, or from and to in Hz. smooth: standard deviation in seconds of the Gaussian that
    the numbers are averaged with; 0 for none. Raises ValueError for a band or samples that cannot be used.
    """
    samples, count = _checked(samples, rate, fps, frames)
    length = round(max(2 / fps, WINDOW) * rate)
    centres = (np.arange(count) + 0.5) * rate / fps
    window = _hann(length)
    parts = [(block**2).sum(1) for block in _magnitudes(samples, rate, centres, window, band)]
    size = _transform_size(length)
    power = 2 * np.concatenate(parts) / (size * (window**2).sum())
    return _smoothed(_relative(power), smooth * fps)


def onsets(
    samples: Array,
    rate: float,
    fps: float,
    frames: int | None = None,
    band: str | Band = "all",
    decay: float = 0.2,
) -> Array:
    """How strongly something sets in, and how that dies away: float64 ``[frames]`` in [0, 1].

    Half-wave rectified spectral flux (Bello et al., A Tutorial on Onset Detection in Music Signals, 2005) of compressed
    magnitudes every 10 ms or oftener; a frame has the largest of its own, less the median of all. The 90th percentile
    of those that are not small becomes 1. decay: seconds in which it falls to 1/e; 0 for none. All else is as for
    `loudness`.
    """
    samples, count = _checked(samples, rate, fps, frames)
    parts = math.ceil(1 / (fps * ONSET_HOP))
    window = _hann(round(ONSET_WINDOW * rate))
    # A click is strongest in the flux a quarter of a window before the middle reaches it, a tone when it does.
    # In the flux a click is strongest a quarter of a window before the middle reaches it. With that made good it is not
    # seen early, and a tone, which is strongest when the middle reaches it, late by those 6 ms at most.
    late = len(window) / 4
    centres = (np.arange(-1, count * parts) + 0.5) * rate / (fps * parts) - late
    peak = np.abs(samples).max(initial=0.0)
    if peak**2 <= SILENCE:
        return np.zeros(count)
    scale = 2 / (window.sum() * peak)
    rises, before = [], None
    for block in _magnitudes(samples, rate, centres, window, band):
        heard = np.log1p(COMPRESSION * scale * block)
        heard = heard if before is None else np.concatenate([before, heard])
        rises.append(np.maximum(np.diff(heard, axis=0), 0).mean(1))
        before = heard[-1:]
    rise = np.concatenate(rises)
    rise[centres[1:] + len(window) / 2 > len(samples)] = 0  # a sound that is cut off spreads over all frequencies
    strength = rise.reshape(count, parts).max(1)
    strength = np.maximum(strength - np.median(strength), 0) if count > 2 else strength
    if strength.max() <= 1e-6:
        return np.zeros(count)
    top = np.percentile(strength[strength >= LEAST_ONSET * strength.max()], 90)
    return _decaying(np.minimum(strength / top, 1), decay * fps)


def _checked(samples: Array, rate: float, fps: float, frames: int | None) -> tuple[Array, int]:
    """The samples in float64 and the number of frames."""
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"samples: expected finite numbers in one row (mono), got the shape {samples.shape}")
    if not (rate > 0 and fps > 0):
        raise ValueError(f"rate and fps: expected more than 0, got {rate} and {fps}")
    whole = math.ceil(len(samples) * fps / rate - 1e-6)
    return samples, max(1, whole if frames is None else frames)


def edges(band: str | Band, rate: float) -> Band:
    """From and to in Hz, within what samples at ``rate`` Hz can hold. Raises ValueError for a band that has nothing."""
    if isinstance(band, str) and band not in BANDS:
        raise ValueError(f"band: expected one of {', '.join(BANDS)}, or from and to in Hz, got {band!r}")
    low, high = BANDS[band] if isinstance(band, str) else band
    if not 0 <= low < high < math.inf:
        raise ValueError(f"band: expected from 0 Hz on to more, got {low:g}-{high:g}")
    if low >= rate / 2:
        raise ValueError(f"band: {low:g}-{high:g} Hz; the sound has nothing from {rate / 2:g} Hz on")
    return low, min(high, rate / 2)


def _hann(length: int) -> Array:
    return np.hanning(length + 2)[1:-1]  # without the zeros at the ends


def _transform_size(length: int) -> int:
    """Twice the window at least, so that there is a bin in a narrow band, too."""
    return 1 << (2 * length - 1).bit_length()


def _magnitudes(samples: Array, rate: float, centres: Array, window: Array, band: str | Band) -> Iterator[Array]:
    """The spectrum's magnitudes in a band, under a window around some samples: ``[·, bins]``, block by block."""
    low, high = edges(band, rate)
    length, size = len(window), _transform_size(len(window))
    first = math.ceil(low * size / rate)
    bins = slice(first, max(first, math.floor(high * size / rate)) + 1)
    starts = np.floor(centres - length / 2).astype(int)
    margin = (max(0, -starts.min()), max(0, starts.max() + length - len(samples)))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, margin), length)
    starts += margin[0]
    step = max(1, BLOCK // size)
    for i in range(0, len(starts), step):
        yield np.abs(np.fft.rfft(windows[starts[i : i + step]] * window, size)[:, bins])


def _relative(power: Array) -> Array:
    """Mean squares as numbers from 0 (quiet for this sound) to 1 (loud)."""
    loudest = power.max()
    if loudest <= SILENCE:
        return np.zeros(len(power))
    decibels = 10 * np.log10(np.maximum(power / loudest, 10 ** (-RANGE / 10)))
    quiet, loud = np.percentile(decibels[decibels > -RANGE], (QUIET, LOUD))
    return np.clip(1 + (decibels - loud) / max(loud - quiet, LEAST_SPAN), 0, 1)


def _smoothed(values: Array, deviation: float) -> Array:
    """Averaged with a Gaussian of so many frames; the first and the last go on beyond the ends."""
    reach = min(math.ceil(3 * deviation), len(values) - 1)
    if reach < 1:
        return values
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    averaged = np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")
    return np.clip(averaged, 0, 1)  # the rounding of a sum


def _decaying(values: Array, frames: float) -> Array:
    """What falls to 1/e in so many frames, unless something stronger comes."""
    factor, held, result = (math.exp(-1 / frames) if frames > 0 else 0.0), 0.0, []
    for value in values.tolist():
        held = max(value, held * factor)
        result.append(held)
    return np.array(result)
