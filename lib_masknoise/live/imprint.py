"""What of a wish a picture depends on, so that an edit which changes nothing of it costs nothing."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.live.host import Wish
from lib_masknoise.maps import Maps, coefficients
from lib_masknoise.maps.keyframes import Passage

SMALLEST = 1 / 255
"""Of a coefficient or a noise's amount: no smaller change is an edit."""

NOISES = ("visual", "concept", "feature")


@dataclass(frozen=True)
class Imprint:
    """maps: ``[h, w]`` of each text's coefficient and each noise's amount, at the latent's size. rest: all else."""

    rest: Hashable
    maps: dict[Hashable, Tensor]

    def differs(self, other: Imprint | None) -> bool:
        """Whether the two are of different pictures, as far as eight bits show."""
        if other is None or self.rest != other.rest:
            return True
        return any(_gap(self.maps.get(key), other.maps.get(key)) >= SMALLEST for key in {*self.maps, *other.maps})

    def distance(self, other: Imprint | None) -> float:
        """Which share of the picture is to show something else, 0 to 1; all of it in a picture of another size."""
        if other is None or not self.maps or len({t.shape for t in [*self.maps.values(), *other.maps.values()]}) != 1:
            return 1.0
        gaps = [_difference(self.maps.get(key), other.maps.get(key)) for key in {*self.maps, *other.maps} - {*NOISES}]
        return min(1.0, float(sum(gap.mean() for gap in gaps)) / 2)

    def changed(self, other: Imprint) -> Tensor | None:
        """Where the two differ, ``[h, w]``: 0 for not at all, 1 from a quarter on, with a soft edge around it; None
        where it is not a matter of places."""
        if self.rest != other.rest or not (self.maps or other.maps):
            return None
        gaps = [_difference(self.maps.get(key), other.maps.get(key)) for key in {*self.maps, *other.maps}]
        whole = (4 * torch.stack(gaps).amax(0)).clamp(0, 1)[None, None]
        wide = F.max_pool2d(whole, 3, stride=1, padding=1)
        return F.avg_pool2d(wide, 3, stride=1, padding=1, count_include_pad=False)[0, 0]


def imprint(wish: Wish, maps: Maps, frame: float) -> Imprint:
    """Of a wish at a frame. maps: of its scene, at the latent's size."""
    scene, settings = wish.scene, wish.settings
    plain = replace(settings, prompt="", negative_prompt="")
    base = settings.prompt, settings.negative_prompt
    if scene.neutral:
        return Imprint((plain, base), {})
    found: dict[Hashable, Tensor] = {}
    passages = maps.passages([frame])[0]
    weights = torch.tensor([one.weight for one in passages])
    shares = coefficients(maps.weights([frame])[0], weights, scene.blend.mode, scene.blend.scale)
    for texts, share in zip([base, *map(_texts, passages)], shares, strict=True):
        found[texts] = found.get(texts, 0) + share
    amounts = {name: maps.amount(name, [frame])[0] for name in NOISES if getattr(scene.noise, name).strength}
    found.update(amounts)
    blend = scene.blend
    rest = (plain, blend.preserve_norm, blend.start, blend.end, _noise(wish, amounts, frame))
    return Imprint(rest, found)


def _texts(passage: Passage) -> Hashable:
    """Everything of where a concept is, but its weight and its masks, which its coefficient holds."""
    before, after = passage.before, passage.after
    steps = () if (before.start, before.end) == (0, 1) else (before.start, before.end)
    first, second = ((one.prompt, one.negative, *steps) for one in (before, after))
    return first if first == second or not passage.way else (first, second, passage.way, before.interpolation)


def _noise(wish: Wish, amounts: dict[str, Tensor], frame: float) -> Hashable:
    """What the noises are beside their amounts; None where there are none."""
    if not amounts:
        return None
    scene = wish.scene.to_dict()
    noise = scene["noise"]
    own = {name: {**noise[name], "strength": None} for name in amounts}
    return json.dumps([own, noise["seed"], scene["motion"], scene["animation"]["frames"], frame], sort_keys=True)


def _gap(first: Tensor | None, second: Tensor | None) -> float:
    return float(_difference(first, second).max())


def _difference(first: Tensor | None, second: Tensor | None) -> Tensor:
    """Of two maps, of which one may not be there: that is 0 everywhere."""
    if first is None or second is None:
        only = first if second is None else second
        assert only is not None
        return only.abs()
    return (first - second).abs()
