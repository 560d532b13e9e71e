"""A random walk with momentum, made stationary so that it cannot diverge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lib_masknoise.motion.clock import revolution
from lib_masknoise.motion.kind import RandomKind
from lib_masknoise.seeded import generator

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

# Harmonics of the oscillator with less than this fraction of the strongest one's power are left out: together
# less than 1 % of the variance.
NEGLIGIBLE = 1e-5

# Without a loop the walk repeats only after a period that many e-foldings of its memory longer than the
# animation.
FORGOTTEN = 7.0


class Walk(RandomKind):
    """Components are the stationary oscillator of ``oscillator``."""

    def components(self, motion: Motion, frames: Sequence[float], total: int, count: int, seed: int) -> np.ndarray:
        return oscillator(motion, frames, total, count, seed)


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
    wavenumbers, amplitudes = _spectrum(motion.cycles, motion.momentum, motion.loop)
    rng = generator(seed, "motion/walk")
    draws = torch.randn(2, count, len(wavenumbers), dtype=torch.float64, generator=rng)
    cosines, sines = draws.numpy() * amplitudes

    def at(frame: float) -> np.ndarray:
        turn = wavenumbers * (revolution(frame, total, motion.loop) + motion.phase / motion.cycles)
        return (cosines * np.cos(turn) + sines * np.sin(turn)).sum(axis=-1)

    return np.array([at(frame) for frame in frames]).reshape(len(frames), count)


def _spectrum(cycles: int, momentum: float, loop: bool) -> tuple[np.ndarray, np.ndarray]:
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
