"""Ground truth for pictures of the world: which place a patch shows, and its attributes.

    python -m tools.small_model.world_truth picture.png            the place of every patch
    python -m tools.small_model.world_truth picture.png --attribute wetness

Trained on the renderer, whose attributes are known (`train_world_truth.py`); the errors on fresh pictures are in
docs/model-training.md. Patches are 16 or 32 pixels wide; the larger ones tell more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .world import ATTRIBUTES, INDEX, PLACES

WEIGHTS = Path(__file__).resolve().parents[2] / "assets" / "world_truth.npz"
OTHER = "other"  # a mixture of two places, or a place changed until it is none
LABELS = (*(place.name for place in PLACES), OTHER)
SIZES = (16, 32)
READ = tuple(name for name in ATTRIBUTES if name not in ("direction", "sky", "scale"))  # read as a number each
# And the direction of the grain, as the cosine and sine of twice its angle: a second task in training, not handed out,
# since it holds only near the directions that places have; `world_measures.orientations` measures any.
OUTPUTS = len(READ) + 2


class TruthNet(nn.Module):
    """`[N, 3, size, size]` patches in [0, 1] to `[N, LABELS]` logits and `[N, OUTPUTS]` attributes."""

    def __init__(self, size: int):
        super().__init__()
        widths = (32, 64, 96, 128) if size == 32 else (48, 96, 128)
        before = (3, *widths[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in zip(before, widths, strict=True))
        self.hidden = nn.Linear(2 * widths[-1], 128)
        self.place, self.value = nn.Linear(128, len(LABELS)), nn.Linear(128, OUTPUTS)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = patches * 2 - 1
        for i, conv in enumerate(self.convs):
            x = F.silu(conv(x))
            if i < len(self.convs) - 1:
                x = F.avg_pool2d(x, 2)
        x = F.silu(self.hidden(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))
        return self.place(x), self.value(x)


def patches_of(images: Tensor, size: int) -> Tensor:
    """`[B, 3, H, W]` -> `[B, R, C, 3, size, size]`; a rest at the right and lower edges is left out."""
    rows, columns = images.shape[2] // size, images.shape[3] // size
    images = images[:, :, : rows * size, : columns * size]
    return images.unflatten(2, (rows, size)).unflatten(4, (columns, size)).permute(0, 2, 4, 1, 3, 5)


def targets(attributes: Tensor) -> Tensor:
    """`[N, K]` attributes -> `[N, OUTPUTS]` what a net should say."""
    angle = attributes[:, INDEX["direction"]] * 2 * torch.pi
    return torch.cat([attributes[:, [INDEX[n] for n in READ]], angle.cos()[:, None], angle.sin()[:, None]], 1)


def visible(attributes: Tensor) -> Tensor:
    """`[N, OUTPUTS]` in {0, 1}: whether a patch can show each of them, from its attributes `[N, K]`.

    A dry place says nothing of the wind, a bare one nothing of the height of plants, the ground nothing of a clear sky.
    """
    a = {name: attributes[:, i] for name, i in INDEX.items()}
    ground, grown, one = a["sky"] < 0.1, a["plants"] > 0.25, torch.ones_like(a["sky"])
    clear = a["fog"] < 0.35
    rules = {
        "wind": ground & (a["wetness"] > 0.5) & (a["temperature"] > 0.3), "height": ground & grown,
        "hue": ground & grown, "bloom": ground & grown, "cloud": a["sky"] > 0.9, "wetness": ground, "plants": ground,
        "grain": ground & (a["plants"] < 0.7), "rock": ground & (a["plants"] < 0.5) & (a["wetness"] < 0.5),
        "relief": ground & (a["plants"] < 0.5) & (a["wetness"] < 0.5), "built": ground, "temperature": ground,
    }  # fmt: skip
    rows = [rules.get(name, one > 0) & (clear | (one > 0) if name == "fog" else clear) for name in READ]
    direction = ground & (a["grain"] > 0.5) & clear
    return torch.stack([*rows, direction, direction], 1).float()


class WorldTruth:
    """Reads places and attributes of pictures. size: of a patch in pixels, 16 or 32; path: the weights.

    Raises ValueError for another size.
    """

    def __init__(self, size: int = 32, path: str | Path = WEIGHTS):
        if size not in SIZES:
            raise ValueError(f"size: expected one of {SIZES}, not {size}")
        self.size, self.net = size, TruthNet(size).eval()
        with np.load(path) as arrays:
            prefix = f"{size}."
            state = {
                k[len(prefix) :]: torch.from_numpy(arrays[k]).float() for k in arrays.files if k.startswith(prefix)
            }
        self.net.load_state_dict(state)

    @torch.no_grad()
    def _read(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        images = torch.as_tensor(np.asarray(images))
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        patches = patches_of(images.permute(0, 3, 1, 2), self.size)
        outputs = [self.net(part) for part in patches.flatten(0, 2).split(1024)]
        return *(torch.cat(parts) for parts in zip(*outputs, strict=True)), tuple(patches.shape[:3])

    def probabilities(self, images: np.ndarray | Tensor) -> np.ndarray:
        """`[B, H, W, 3]` uint8 or float in [0, 1] -> `[B, R, C, LABELS]`."""
        logits, _, shape = self._read(images)
        return logits.softmax(1).unflatten(0, shape).numpy()

    def attributes(self, images: np.ndarray | Tensor) -> dict[str, np.ndarray]:
        """`[B, H, W, 3]` -> `[B, R, C]` each of the attributes in READ.

        Values where an attribute cannot be seen mean nothing (`visible`).
        """
        _, values, shape = self._read(images)
        return {name: values[:, i].clamp(0, 1).view(shape).numpy() for i, name in enumerate(READ)}


def main() -> None:
    """Print the places, or one attribute, of each picture's patches."""
    from PIL import Image

    parser = argparse.ArgumentParser(description="Places and attributes of the patches of pictures.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--size", type=int, choices=SIZES, default=32)
    parser.add_argument("--attribute", choices=READ)
    args = parser.parse_args()
    truth = WorldTruth(args.size)
    for path in args.images:
        image = np.asarray(Image.open(path).convert("RGB"))[None]
        print(path)
        if args.attribute:
            rows = [[f"{value:.2f}" for value in row] for row in truth.attributes(image)[args.attribute][0]]
        else:
            rows = np.array(LABELS)[truth.probabilities(image)[0].argmax(-1)]
        for row in rows:
            print("  " + " ".join(f"{cell[:11]:>11}" for cell in row))


if __name__ == "__main__":
    main()
