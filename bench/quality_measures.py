"""What the pictures of a scene are judged by: the patch classifier, brightness, sharpness, motion.

A location here is one 16×16 patch, the classifier's unit. Its weight or pin is the mean of the map over the patch,
by the same `maps.resize` that takes maps to the coarser levels of the U-Net. Arrays of S seeds, R rows and C columns
of patches are `[S, R, C, …]`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lib_masknoise.maps import Maps, resize
from lib_masknoise.scene import Scene
from tools.small_model.patch_classifier import CONCEPTS, PATCH, PatchClassifier

PAIRS = tuple(itertools.combinations(range(len(CONCEPTS)), 2))
# Every concept once, each with the one half-way round the list: a rule that knows nothing of the results.
FIXED_PAIRS = tuple((i, i + len(CONCEPTS) // 2) for i in range(len(CONCEPTS) // 2))
PINNED = 0.9
LUMINANCE = np.array([0.299, 0.587, 0.114])


def phrase(words: str) -> str:
    """The words with the indefinite article, as in the captions the model was trained on."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def ramp(left: str, right: str, start: float, end: float) -> Scene:
    """Two prompts and a straight ramp from one to the other between `start` and `end` of the width."""

    def gradient(from_: float, to: float) -> dict:
        return {"kind": "gradient", "from": [from_, 0.5], "to": [to, 0.5], "smooth": False}

    return Scene.parse(
        {
            "concepts": [
                {"prompt": left, "mask": gradient(start, end)},
                {"prompt": right, "mask": gradient(end, start)},
            ]
        }
    )


def patch_weights(scene: Scene, size: tuple[int, int]) -> np.ndarray:
    """The weight map of every concept by patch, `[N, R, C]`, for an image of `size` (height, width)."""
    (weights,) = Maps(scene, (size[0] // 8, size[1] // 8)).weights()
    return resize(weights, (size[0] // PATCH, size[1] // PATCH)).numpy()


def probabilities(classifier: PatchClassifier, images: np.ndarray) -> np.ndarray:
    """`[S, H, W, 3]` uint8 → `[S, R, C, 15]`."""
    return np.stack([classifier.grid_probs(image) for image in images])


def share(probs: np.ndarray, concept: int, where: np.ndarray) -> float:
    """Share of the patches in `where` (`[R, C]`) that the classifier gives to `concept`."""
    return float((probs.argmax(-1) == concept)[:, where].mean())


@dataclass(frozen=True)
class Fidelity:
    """Shares of the pinned patches that are right, by concept, and the same in plain generation."""

    shares: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(s / p for s, p in zip(self.shares, self.plain, strict=True))


def fidelity(probs: np.ndarray, plain: list[np.ndarray], weights: np.ndarray, concepts: tuple[int, ...]) -> Fidelity:
    """Of each concept: how many of the patches pinned to it by at least PINNED are right.

    plain: the probabilities of plain generation of each concept with the same seeds. weights: by patch.
    """
    pinned = weights >= PINNED
    sides = list(zip(concepts, plain, pinned, strict=True))
    return Fidelity(
        tuple(share(probs, concept, where) for concept, _, where in sides),
        tuple(share(reference, concept, where) for concept, reference, where in sides),
    )


def passage(probs: np.ndarray, left: int, right: int) -> np.ndarray:
    """Mean probability of the left and of the right concept in every column, `[2, C]`."""
    return probs[..., [left, right]].mean((0, 1)).T


def backward(curve: np.ndarray) -> float:
    """How much of the way a curve goes in the wrong direction: 0 when it only rises."""
    steps = np.diff(curve)
    return float(-steps[steps < 0].sum() / max(abs(curve[-1] - curve[0]), 1e-9))


def luminance(images: np.ndarray) -> np.ndarray:
    """`[…, 3]` uint8 → `[…]` in [0, 1]."""
    return images @ LUMINANCE / 255


def sharpness(images: np.ndarray) -> np.ndarray:
    """Mean absolute Laplacian of the luminance in every column of patches, `[C]`."""
    y = luminance(images)
    laplacian = np.zeros_like(y)
    laplacian[:, 1:-1, 1:-1] = (
        4 * y[:, 1:-1, 1:-1] - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2] - y[:, 1:-1, 2:]
    )
    return np.abs(laplacian).reshape(*y.shape[:2], -1, PATCH).mean((0, 1, 3))


def by_column(images: np.ndarray) -> np.ndarray:
    """Mean of the luminance in every column of patches, `[C]`."""
    y = luminance(images)
    return y.reshape(*y.shape[:2], -1, PATCH).mean((0, 1, 3))


def distance(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Mean absolute difference of two sets of images, in levels of 255, over the patches in `where`."""
    pixels = np.kron(where, np.ones((PATCH, PATCH), dtype=bool))
    return float(np.abs(a.astype(int) - b)[:, pixels].mean())


@dataclass(frozen=True)
class Motion:
    """Mean absolute difference of consecutive frames in levels of 255: where nothing is pinned, where all is, and in
    every column of pixels."""

    fluid: float
    anchored: float
    profile: np.ndarray

    @property
    def ratio(self) -> float:
        return self.fluid / self.anchored


def motion(frames: np.ndarray, scene: Scene) -> Motion:
    """Of the frames `[F, H, W, 3]` of a loop; the step from the last to the first counts.

    Anchored: pin at least PINNED. Fluid: at most 1 − PINNED.
    """
    steps = np.abs(np.diff(np.concatenate([frames, frames[:1]]).astype(int), axis=0)).mean((0, 3))
    pin = Maps(scene, frames.shape[1:3]).pins()[0].numpy()
    return Motion(float(steps[pin <= 1 - PINNED].mean()), float(steps[pin >= PINNED].mean()), steps.mean(0))
