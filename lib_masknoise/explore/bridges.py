"""What has a name and lies between two concepts, and a passage by way of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.explore.model import average, heard
from lib_masknoise.maps import Maps, Size, feather
from lib_masknoise.scene import Concept, ImageMask, Scene

MASK_SIZE = (256, 256)
SAME = 1e-6  # of the way between the two: as far as this apart, two prompts are one to the model
HARD = 0.5  # masks that together reach no more than this where they meet are softened first
SOFTENED = 0.2  # of the shorter side


class Bridge(NamedTuple):
    """A named prompt near the blend `(1 − t)·A + t·B`. distance: between the two contexts, each averaged over its
    tokens, as a fraction of that from A to B."""

    t: float
    prompt: str
    distance: float


class Named:
    """Named prompts that say something to the model, their contexts averaged over the tokens, `[N, D]`.

    nothing: the context of an empty prompt; None to take all of them.
    """

    def __init__(self, encoded: Mapping[str, Encoded], nothing: Encoded | None = None) -> None:
        self.prompts = list(encoded)
        self.vectors = torch.stack([average(one) for one in encoded.values()]) if encoded else torch.zeros(0, 0)
        if nothing is not None and encoded:
            speaking = heard(self.vectors, average(nothing))
            self.prompts = [prompt for prompt, says in zip(self.prompts, speaking.tolist(), strict=True) if says]
            self.vectors = self.vectors[speaking]


def nearest(named: Named, first: Encoded, second: Encoded, t: float, count: int) -> list[Bridge]:
    """The named prompts nearest to the blend of two, nearest first; none that the model cannot tell from either."""
    a, b = average(first), average(second)
    span = float((b - a).norm())
    if not span or not named.prompts:
        return []
    distances = (named.vectors - ((1 - t) * a + t * b)).norm(dim=1) / span
    distances[_same(named, a, b, span)] = torch.inf
    order = distances.argsort(stable=True)[:count].tolist()
    return [Bridge(t, named.prompts[i], float(distances[i])) for i in order if torch.isfinite(distances[i])]


def bridges(named: Named, first: Encoded, second: Encoded, count: int) -> list[Bridge]:
    """`count` different prompts along the way, each the nearest at its place that is not another's already. Where two
    places want the same one, the place that it is nearer to has it."""
    places = [(i + 1) / (count + 1) for i in range(count)]
    wanted = [nearest(named, first, second, t, count) for t in places]
    found: dict[float, Bridge] = {}
    taken: set[str] = set()
    for bridge in sorted((one for of_place in wanted for one in of_place), key=lambda one: one.distance):
        if bridge.t not in found and bridge.prompt not in taken:
            found[bridge.t] = bridge
            taken.add(bridge.prompt)
    return [found[t] for t in places if t in found]


def bridged(scene: Scene, first: int, second: int, prompt: str, size: Size = MASK_SIZE) -> Scene:
    """The scene with a bridge between two of its concepts (by index): a further concept whose mask is `4·m_a·m_b`, 1
    where both are half faded, 0 where either is alone. Masks with hard edges are softened for it.

    Raises ValueError where the masks do not meet.
    """
    bridge = Concept(prompt=prompt, mask=ImageMask.of(bridge_mask(scene, first, second, size)))
    made = scene.to_dict()
    return Scene.parse({**made, "concepts": [*made["concepts"], bridge.to_dict()]})


def bridge_mask(scene: Scene, first: int, second: int, size: Size = MASK_SIZE) -> Tensor:
    """`4·m_a·m_b` in [0, 1], `[h, w]`. size: (height, width) it is drawn at; of the picture's proportions."""
    m_a, m_b = Maps(scene, size, factor=1).weights()[0][[first, second]]
    made = 4 * m_a * m_b
    if float(made.max()) < HARD:
        m_a, m_b = (feather(m, SOFTENED) for m in (m_a, m_b))
        made = 4 * m_a * m_b
    if float(made.max()) < HARD:
        raise ValueError(
            f"concepts[{first}].mask and concepts[{second}].mask do not meet: there is no way between them"
        )
    return made.clamp(0, 1)


def _same(named: Named, a: Tensor, b: Tensor, span: float) -> Tensor:
    """Which of the named prompts are one of the two to the model."""
    return torch.minimum((named.vectors - a).norm(dim=1), (named.vectors - b).norm(dim=1)) < SAME * span


def at_stops(
    named: Named, first: Encoded, second: Encoded, stops: Sequence[float], count: int = 3
) -> list[list[Bridge]]:
    """What is nearest at each of some places."""
    return [nearest(named, first, second, t, count) for t in stops]
