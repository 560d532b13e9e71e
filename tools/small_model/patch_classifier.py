"""Which texture is where: labels every 16x16 patch of an image with a concept or "other". numpy only.

    python -m tools.small_model.patch_classifier image.png ...

prints the grid of labels of each image. The weights lie in `assets/patch_classifier.npz`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

CONCEPTS = (
    "wheat field", "ocean", "forest", "desert", "night sky", "lava", "snow", "brick wall",
    "meadow with flowers", "storm clouds", "coral", "ice", "marsh", "sunset sky",
)  # fmt: skip
OTHER = "other"
LABELS = (*CONCEPTS, OTHER)
PATCH = 16
WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "patch_classifier.npz"
_BATCH = 512


def _conv3x3(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 convolution with ReLU. x: `[N, H, W, C]`; weight: `[O, C, 3, 3]`."""
    height, width, channels = x.shape[1:]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.concatenate([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)
    return np.maximum(windows @ weight.transpose(2, 3, 1, 0).reshape(9 * channels, -1) + bias, 0)


def _halve(x: np.ndarray) -> np.ndarray:
    """2x2 maximum pooling of `[N, H, W, C]`."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


class PatchClassifier:
    """A small convolutional network over 16x16 patches.

    path: an .npz with the parameters that `train_classifier.py` writes.
    """

    def __init__(self, path: str | Path = WEIGHTS):
        with np.load(path) as arrays:
            self._w = {name: arrays[name].astype(np.float32) for name in arrays.files}

    def _layer(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._w[f"{index}.weight"], self._w[f"{index}.bias"]

    def _logits(self, x: np.ndarray) -> np.ndarray:
        h = _halve(_conv3x3(_conv3x3(x, *self._layer(0)), *self._layer(2)))
        h = _conv3x3(_halve(_conv3x3(h, *self._layer(5))), *self._layer(8))
        h = h.transpose(0, 3, 1, 2).reshape(len(h), -1)
        (hidden, hidden_bias), (last, last_bias) = self._layer(11), self._layer(13)
        return np.maximum(h @ hidden.T + hidden_bias, 0) @ last.T + last_bias

    def probs(self, patches: np.ndarray) -> np.ndarray:
        """`[N, 16, 16, 3]` uint8 or float in [0, 1] -> `[N, 15]` probabilities in the order of LABELS."""
        top = 255.0 if patches.dtype == np.uint8 else 1.0
        x = patches.astype(np.float32) / top * 2 - 1
        logits = np.concatenate([self._logits(x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)])
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def grid_probs(self, image: np.ndarray) -> np.ndarray:
        """`[H, W, 3]` image -> `[H // 16, W // 16, 15]` probabilities; a rest at the edges is left out."""
        image = np.asarray(image)[..., :3]
        rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
        patches = image[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, 3)
        patches = patches.transpose(0, 2, 1, 3, 4).reshape(-1, PATCH, PATCH, 3)
        return self.probs(patches).reshape(rows, columns, -1)

    def grid(self, image: np.ndarray, strict: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Label names and their probabilities per patch; not `strict` forces a choice among the concepts."""
        probs = self.grid_probs(image)
        probs = probs if strict else probs[..., : len(CONCEPTS)]
        return np.array(LABELS)[probs.argmax(-1)], probs.max(-1)

    def fraction(self, image: np.ndarray, concept: str, mask: np.ndarray | None = None, strict: bool = True) -> float:
        """Share of the patches (inside the boolean patch grid `mask`, if given) labelled `concept`."""
        hits = self.grid(image, strict)[0] == concept
        return float(hits.mean() if mask is None else hits[mask].mean())


def main() -> None:
    """Print the label grid of each image file."""
    from PIL import Image

    parser = argparse.ArgumentParser(description="Label every 16x16 patch of images with a texture concept.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    classifier = PatchClassifier(args.weights)
    for path in args.images:
        print(path)
        for row in classifier.grid(np.asarray(Image.open(path).convert("RGB")))[0]:
            print("  " + " ".join(f"{name[:10]:>10}" for name in row))


if __name__ == "__main__":
    main()
