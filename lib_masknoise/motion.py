"""How a frame index becomes motion: a scalar envelope and a mixture of independent fields.

Every kind of motion is described by two pure functions of (motion, frame, total, seed):

* ``envelope``: one number in [-1, 1] by which a noise is multiplied (``sine`` and ``keyframes``; 1 for all
  others);
* ``mixture``: a unit vector m. With independent fields A_k of variance 1 the moving field is Σ_k m_k·A_k, so
  its variance is 1 at every frame, and it is exactly N(0, 1) where the A_k are Gaussian.

Nothing is carried from one frame to the next. Frames count from 0 and may be fractions, so that a path can
be walked at another pace; frame ``total`` (one past the last) is defined too, and equals frame 0 bit for bit
when ``loop`` is set.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from lib_masknoise.easing import EASINGS
from lib_masknoise.simplex import SimplexField

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

# Components of a random mixture. The direction turns abruptly where all components are small at once, and
# with eight of them that practically never happens (a chi variable with 8 degrees of freedom is below 0.5 in
# 1 frame of 100,000).
COMPONENTS = 8

# Harmonics of the oscillator with less than this fraction of the strongest one's power are left out: together
# less than 1 % of the variance.
NEGLIGIBLE = 1e-5

# Without a loop the walk repeats only after a period that many e-foldings of its memory longer than the
# animation.
FORGOTTEN = 7.0


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on (seed, purpose) alone: draws agree on every device and in any order."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def revolution(frame: float, total: int, loop: bool) -> float:
    """The animation's own angle: 0 at frame 0, 2π at frame ``total`` or, with ``loop``, 0 again there.

    Raises ValueError when ``total`` is below 1.
    """
    if total < 1:
        raise ValueError(f"expected at least one frame, got {total}")
    return 2.0 * math.pi * ((frame % total if loop else frame) / total)


def angle(motion: Motion, frame: float, total: int) -> float:
    """2π·cycles·frame/total + phase in radians, less whole turns, taken off as integers: exactly periodic."""
    return revolution(motion.cycles * frame, total, loop=True) + motion.phase


def envelope(motion: Motion, frame: float, total: int) -> float:
    """The factor of the noise at a frame, in [-1, 1].

    ``sine``: sin(2π·cycles·frame/total + phase). ``keyframes``: the eased value between the keys on both
    sides. All other kinds: 1. Raises ValueError for an unknown kind.
    """
    if motion.kind == "sine":
        return math.sin(angle(motion, frame, total))
    if motion.kind == "keyframes":
        before, after, way = between(motion.keyframes, frame, total, motion.loop)
        return before.value + (after.value - before.value) * way
    if motion.kind in ("none", "circle", "simplex", "walk", "linear"):
        return 1.0
    raise ValueError(f"motion.kind: unknown kind {motion.kind!r}")


class Key(Protocol):
    """What stands at a frame, and how it goes on to the next key."""

    frame: int
    easing: str


AnyKey = TypeVar("AnyKey", bound=Key)


def between(keys: Sequence[AnyKey], frame: float, total: int, loop: bool) -> tuple[AnyKey, AnyKey, float]:
    """The keys on both sides of a frame and the eased way from the first (0) to the second (1).

    A key's easing shapes the way from it to the next one, as in CSS animations. At a key's frame the first is
    that key and the way 0. Before the first and after the last key these hold. With ``loop`` the last key
    leads on to the first, ``total`` frames later, and keys at or beyond ``total`` are outside the loop and
    play no part (if all are, the first one holds). keys: at least one, their frames ascending.
    """
    places = [(key.frame, key) for key in keys]
    if loop:
        frame = frame % total
        places = [place for place in places if place[0] < total] or places[:1]
        (first, first_key), (last, last_key) = places[0], places[-1]
        places = [(last - total, last_key), *places, (first + total, first_key)]
    if frame <= places[0][0]:
        return places[0][1], places[0][1], 0.0
    for (start, key), (end, following) in itertools.pairwise(places):
        if start <= frame < end:
            return key, following, EASINGS[key.easing]((frame - start) / (end - start))
    return places[-1][1], places[-1][1], 0.0


def mixture(motion: Motion, frame: float, total: int, seed: int) -> torch.Tensor:
    """How K independent fields of variance 1 mix at a frame: ``[K]`` float64 of norm 1.

    K is 1 for ``none``, ``sine`` and ``keyframes``, 2 for ``circle`` and ``linear``, 8 for ``simplex`` and
    ``walk``. Use ``mixtures`` for many frames: it shares the random draws.
    """
    return mixtures(motion, [frame], total, seed)[0]


def mixtures(motion: Motion, frames: Sequence[float], total: int, seed: int) -> torch.Tensor:
    """``mixture`` of some frames: ``[B, K]`` float64, each row of norm 1.

    ``circle``: (cos θ, sin θ), θ = 2π·cycles·frame/total + phase. ``linear``: the great circle from A to B,
    and with ``loop`` back again. ``simplex``: components are OpenSimplex along a straight line, or with
    ``loop`` around a circle. ``walk``: components are the stationary oscillator of ``oscillator``. The last
    two are divided by their norm, which is why neither can diverge. Raises ValueError for an unknown kind.
    """
    if motion.kind in ("none", "sine", "keyframes"):
        rows = [(1.0,) for _ in frames]
    elif motion.kind == "circle":
        rows = [_on_circle(angle(motion, frame, total)) for frame in frames]
    elif motion.kind == "linear":
        rows = [_on_circle(math.pi / 2 * _progress(frame, total, motion.loop)) for frame in frames]
    elif motion.kind in ("simplex", "walk"):
        later = _seam(motion, total, seed) if motion.loop else 0
        rows = _random_directions(motion, [frame + later for frame in frames], total, seed)
    else:
        raise ValueError(f"motion.kind: unknown kind {motion.kind!r}")
    return torch.tensor(np.asarray(rows), dtype=torch.float64)


def _on_circle(theta: float) -> tuple[float, float]:
    return math.cos(theta), math.sin(theta)


def _progress(frame: float, total: int, loop: bool) -> float:
    """How far from A to B: 0 to 1 over the frames; with ``loop`` there and back, 1 half-way through."""
    if loop:
        return 1.0 - abs(1.0 - revolution(frame, total, loop) / math.pi)
    return min(frame / max(total - 1, 1), 1.0)


def _random_directions(motion: Motion, frames: Sequence[float], total: int, seed: int) -> np.ndarray:
    components = _simplex_components if motion.kind == "simplex" else oscillator
    rows = components(motion, frames, total, COMPONENTS, seed)
    return rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))


def _seam(motion: Motion, total: int, seed: int) -> int:
    """Where to cut a random loop: 0 or 1 frames after its own beginning, at the smaller of the two steps.

    The other is then inside the animation, so the closing step is never the largest.
    """
    last, first, second = _random_directions(motion, [total - 1, 0, 1], total, seed)
    return int(((first - last) ** 2).sum() > ((second - first) ** 2).sum())


def simplex_path(motion: Motion, frame: float, total: int) -> tuple[float, ...]:
    """Where a frame lies in OpenSimplex's time, in its units: ``(s,)``, or with ``loop`` on a circle.

    The path is 2π·cycles long and starts ``phase`` further along; a unit is about the distance at which the
    noise has forgotten itself. The circle's radius is ``cycles`` (at 1 the textbook's cos θ, sin θ), so that
    more cycles bring more motion and no repetition.
    """
    if motion.loop:
        theta = revolution(frame, total, loop=True) + motion.phase / motion.cycles
        return motion.cycles * math.cos(theta), motion.cycles * math.sin(theta)
    return (motion.cycles * revolution(frame, total, loop=False) + motion.phase,)


def _simplex_components(motion: Motion, frames: Sequence[float], total: int, count: int, seed: int) -> np.ndarray:
    """OpenSimplex along ``simplex_path``, ``count`` independent fields: ``[B, count]``."""
    rng = generator(seed, "motion/simplex")
    fields = [SimplexField.draw(2, rng) for _ in range(count)]
    path = np.array([(*simplex_path(motion, frame, total), 0.0)[:2] for frame in frames]).reshape(-1, 2)
    return np.stack([field.at(path[:, 0], path[:, 1]) for field in fields], axis=-1)


def oscillator(motion: Motion, frames: Sequence[float], total: int, count: int, seed: int) -> np.ndarray:
    """``count`` independent random walks with momentum: ``[B, count]``, each value N(0, 1).

    A mass on a spring, damped and driven by white noise, ẍ + 2ζω·ẋ + ω²·x = noise, in its stationary state: ω
    is ``cycles`` turns over the animation, ζ = 1 − ``momentum``. Its autocorrelation over a lag τ (Wang and
    Uhlenbeck, On the Theory of the Brownian Motion II, 1945) is exp(−ζωτ)·(cos ντ + ζω/ν·sin ντ), ν = ω·√(1 −
    ζ²).

    The path is not stepped but drawn from its spectrum, a sum of harmonics with Gaussian amplitudes, so that
    a frame needs no other frame: the harmonics of the animation when ``loop`` is set, those of a period so
    long that its repetition is forgotten when not.
    """
    wavenumbers, amplitudes = _oscillator_spectrum(motion.cycles, motion.momentum, motion.loop)
    rng = generator(seed, "motion/walk")
    draws = torch.randn(2, count, len(wavenumbers), dtype=torch.float64, generator=rng)
    cosines, sines = draws.numpy() * amplitudes

    def at(frame: float) -> np.ndarray:
        turn = wavenumbers * (revolution(frame, total, motion.loop) + motion.phase / motion.cycles)
        return (cosines * np.cos(turn) + sines * np.sin(turn)).sum(axis=-1)

    return np.array([at(frame) for frame in frames]).reshape(len(frames), count)


def _oscillator_spectrum(cycles: int, momentum: float, loop: bool) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (turns over the animation) and amplitudes of the harmonics, whose squares add up to 1.

    Power at frequency r·ω: 1/((1 − r²)² + (2ζr)²).
    """
    damping = 1.0 - momentum
    period = 1 if loop else 1 + math.ceil(FORGOTTEN / (2.0 * math.pi * cycles * damping))
    highest = math.ceil(NEGLIGIBLE**-0.25)  # the power falls as the fourth power of the frequency
    wavenumbers = np.arange(highest * cycles * period + 1) / period
    ratio = wavenumbers / cycles
    power = 1.0 / ((1.0 - ratio**2) ** 2 + (2.0 * damping * ratio) ** 2)
    power[0] /= 2.0  # every harmonic but the constant also stands for its negative frequency
    kept = power > NEGLIGIBLE * power.max()
    return wavenumbers[kept], np.sqrt(power[kept] / power[kept].sum())
