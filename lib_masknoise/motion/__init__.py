"""How a frame index becomes motion: a scalar envelope and a mixture of independent fields.

Every kind of motion is described by pure functions of (motion, frame, total, seed), one kind a file:

* ``envelope``: one number in [-1, 1] by which a noise is multiplied (``sine`` and ``keyframes``; 1 for all
  others);
* ``mixtures``: a unit vector m. With independent fields A_k of variance 1 the moving field is Σ_k m_k·A_k, so
  its variance is 1 at every frame, and it is exactly N(0, 1) where the A_k are Gaussian.

Nothing is carried from one frame to the next. Frames count from 0 and may be fractions, so that a path can
be walked at another pace; frame ``total`` (one past the last) is defined too, and equals frame 0 bit for bit
when ``loop`` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lib_masknoise.motion.circle import Circle, Linear
from lib_masknoise.motion.keys import Keyframes
from lib_masknoise.motion.kind import Kind
from lib_masknoise.motion.simplex import Simplex
from lib_masknoise.motion.sine import Sine
from lib_masknoise.motion.walk import Walk

if TYPE_CHECKING:
    from lib_masknoise.scene import Motion

KINDS: dict[str, Kind] = {
    "none": Kind(),
    "sine": Sine(),
    "circle": Circle(),
    "simplex": Simplex(),
    "walk": Walk(),
    "linear": Linear(),
    "keyframes": Keyframes(),
}


def kind(motion: Motion) -> Kind:
    """The kind of a motion. Raises ValueError for an unknown one."""
    if motion.kind not in KINDS:
        raise ValueError(f"motion.kind: unknown kind {motion.kind!r}")
    return KINDS[motion.kind]


def envelope(motion: Motion, frame: float, total: int) -> float:
    """The factor of the noise at a frame, in [-1, 1]. Raises ValueError for an unknown kind."""
    return kind(motion).envelope(motion, frame, total)


def mixture(motion: Motion, frame: float, total: int, seed: int) -> torch.Tensor:
    """How K independent fields of variance 1 mix at a frame: ``[K]`` float64 of norm 1.

    K is 1 for ``none``, ``sine`` and ``keyframes``, 2 for ``circle`` and ``linear``, 8 for ``simplex`` and
    ``walk``. Use ``mixtures`` for many frames: it shares the random draws.
    """
    return mixtures(motion, [frame], total, seed)[0]


def mixtures(motion: Motion, frames: Sequence[float], total: int, seed: int) -> torch.Tensor:
    """``mixture`` of some frames: ``[B, K]`` float64, each row of norm 1."""
    return torch.tensor(np.asarray(kind(motion).mixtures(motion, frames, total, seed)), dtype=torch.float64)
