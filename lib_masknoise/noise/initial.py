"""The order of the initial noise: erase what a seed would show, lean towards what prompts say, choose among seeds.

After *Beyond Randomness: Understand the Order of the Noise in Diffusion* (arXiv 2511.07756), whose erasure and
injection are `erased` and `injected`, and after the data that Golden Noise (arXiv 2411.09502) is trained on: one step
of denoising with much guidance and one of inversion with little leave `z − κ(ε_c − ε_u)`, the form "text". Noise is
`[C, h, w]` throughout, float32 on the CPU; maps of locations are `[h, w]`.

Whatever is done here but the published scaling keeps the noise what a sampler expects: see `restandardised`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise.noise import amount
from lib_masknoise.scene import RectMask
from lib_masknoise.seeded import generator

if TYPE_CHECKING:
    from lib_masknoise.scene import InitialNoise, Injection, Scene

FIRST = 0.0
"""The frame whose conditioning counts: the noise is made once, the same for all frames."""
BEGINNING = 1000
"""The time of noise alone; 0 is that of the finished picture."""
COMPARED_AT = 900
"""The time at which candidates are compared with what the masks ask for."""
NEIGHBOURHOOD = 2.0
"""Standard deviation, in locations, of the surroundings over which a variance is local."""

BOUND = 0.02
"""How much of the variance around a location may be something else than noise."""
ROUNDS = 4
"""After which variances are what they are to be, within a few thousandths."""

EPSILON, VELOCITY, FLOW = "epsilon", "v_prediction", "flow"
"""What models predict: the noise; `signal·noise − noise_level·picture`; `noise − picture`."""


@dataclass(frozen=True)
class Guess:
    """What a model makes of noise at one time: the picture it sees with the prompts, blended by place, and without them
    (None where nobody asked), `[C, h, w]`.

    given: what it was given, the noise itself or, where a pass begins with a picture, the two together. kind: what the
    model predicts, EPSILON, VELOCITY or FLOW. signal, noise: how much of what it is given it takes for picture and for
    noise at that time, α and σ.
    """

    given: Tensor
    prompted: Tensor
    plain: Tensor | None
    kind: str
    signal: float
    noise: float

    @property
    def towards(self) -> Tensor:
        """−(ε_c − ε_u) of a model of noise, −(v_c − v_u) of the others: by what the prompts change its prediction."""
        assert self.plain is not None  # only the text's part asks for it
        more = self.signal if self.kind == EPSILON else 1.0
        return (self.prompted - self.plain) * (more / self.noise)

    @property
    def prediction(self) -> Tensor:
        """ε, the noise that the model sees in what it is given, or v of a flow."""
        signal = 1.0 if self.kind == FLOW else self.signal
        return (self.given - signal * self.prompted) / self.noise


class Ask(Protocol):
    """A host's model, asked about noise of one picture."""

    def __call__(self, z: Tensor, time: int, concept: int | None = None, guided: bool = False) -> list[Guess]:
        """What it makes of each of some noises `[n, C, h, w]` at a time from 1 to 1000, as the picture's first frame.

        concept: the prompt of that one of the acting concepts everywhere, instead of all of them by their masks.
        guided: whether what it sees without the prompts is wanted too.
        """


def ordered(z: Tensor, options: InitialNoise, weights: Tensor, seed: int, ask: Ask) -> Tensor:
    """The initial noise of a picture after all that a scene wants done to it: `[C, h, w]` → a tensor like it.

    weights: the masks of the acting concepts `[N, h, w]` in the first frame. seed: of the further noises. Chosen first,
    then erased, then injected.
    """
    noise = z.detach().cpu().float()
    pins = weights.amax(0) if len(weights) else torch.zeros(noise.shape[-2:])
    place = {"everywhere": torch.ones_like(pins), "pinned": pins, "free": amount(pins, 1.0, 1.0)}[options.where]
    if options.choose > 1 and len(weights):
        noise = chosen(noise, options.choose, weights, seed, ask)
    if options.erase > 1:
        noise = erased(noise, others(noise, options.erase - 1, seed, "erase"), place)
    if options.inject.strength:
        noise = _injected(noise, options.inject, place, ask)
    return noise.to(z.device, z.dtype)


def others(z: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Further noises like z, `[count, C, h, w]`, each from the seed and its own number: more of them leave the first
    ones as they are."""
    drawn = [torch.randn(z.shape, generator=generator(seed, f"initial/{purpose}/{k}")) for k in range(count)]
    return torch.stack(drawn) if drawn else z.new_zeros(0, *z.shape)


# --- Erase


def erased(z: Tensor, others: Tensor, place: Tensor) -> Tensor:
    """The normalised sum `(z + Σ z_i)/√n` of n noises, as far as `place` says; it is white noise as z is.

    Between, a sum with unequal weights: z turns towards the others' sum, `cos φ·z + sin φ·Σ z_i/√(n−1)`, by up to the
    angle at which all n weigh alike.
    """
    rest = others.sum(0) / math.sqrt(len(others))
    phi = math.atan(math.sqrt(len(others))) * place
    return torch.where(phi == 0.0, z, phi.cos() * z + phi.sin() * rest)


# --- Inject


def _injected(z: Tensor, options: Injection, place: Tensor, ask: Ask) -> Tensor:
    text = options.form == "text"
    shares = [share for _, share in options.shares]
    guesses = [ask(z[None], time, guided=text)[0] for time, _ in options.shares]
    if text:
        y = z + options.strength * aggregated([orthogonal(guess.towards, z) for guess in guesses], shares)
    else:
        y = injected(z, aggregated([guess.prediction for guess in guesses], shares), options.strength)
    return restandardised(z, y, place) if options.restandardise else torch.where(place == 0.0, z, z + place * (y - z))


def aggregated(predictions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`Σ w_k ε_k / √(Σ w_k²)`, the paper's sum over times. Independent ε_k would keep their variance; those of one z
    are nearly the same, so that five of equal weight come out √5 times as large."""
    total = sum(weight * one for weight, one in zip(weights, predictions, strict=True))
    assert isinstance(total, Tensor)
    return total / math.sqrt(sum(weight**2 for weight in weights))


def injected(z: Tensor, aggregate: Tensor, delta: float) -> Tensor:
    """`(z + δ·ε_agg)/√(1 + δ²)`, as published: of variance 1 were ε_agg independent of z, which it is not."""
    return (z + delta * aggregate) / math.sqrt(1 + delta**2)


def orthogonal(direction: Tensor, z: Tensor) -> Tensor:
    """The direction without what only scales z in the surroundings of each location."""
    return direction - local(direction * z) / local(z * z) * z


def restandardised(z: Tensor, y: Tensor, place: Tensor) -> Tensor:
    """White noise of variance 1 that leans from z towards y, as far as `place` says.

    y is taken apart around each location, `y/a = z + r` with r orthogonal to z there. r is added, but nowhere so much
    that more than BOUND of the variance is its own; then the variance around every location is that of z again. So
    whatever r is like, however smooth, neighbours correlate by BOUND at most. Where r is 0 it is z.
    """
    strength = local(z * z)
    along = local(y * z) / strength
    rest = y - along * z
    own = local(rest * rest).sqrt().clamp(min=1e-12)
    most = (BOUND / (1 - BOUND) * strength).sqrt()
    lean = rest * torch.minimum(1 / along.clamp(min=1e-6), most / own)
    return torch.where(place * lean == 0.0, z, as_strong(z + place * lean, strength))


def as_strong(field: Tensor, strength: Tensor) -> Tensor:
    """The field with a local mean square (`local`) of `strength` around every location; more than once, as surroundings
    overlap."""
    for _ in range(ROUNDS):
        field = field * (strength / local(field * field)).sqrt()
    return field


def local(values: Tensor) -> Tensor:
    """The mean over channels and the surroundings of each location, `[C, h, w]` → `[1, h, w]`: a Gaussian of
    NEIGHBOURHOOD, cut off where the picture ends."""
    mean = values.mean(0, keepdim=True)
    return _blurred(mean) / _blurred(torch.ones_like(mean))


def _blurred(values: Tensor) -> Tensor:
    reach = math.ceil(3 * NEIGHBOURHOOD)
    distance = torch.arange(-reach, reach + 1, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (distance / NEIGHBOURHOOD) ** 2)
    padded = F.pad(values[None], (reach, reach, reach, reach))
    columns = F.conv2d(padded, kernel.reshape(1, 1, -1, 1))
    return F.conv2d(columns, kernel.reshape(1, 1, 1, -1))[0]


# --- Choose


def chosen(z: Tensor, count: int, weights: Tensor, seed: int, ask: Ask) -> Tensor:
    """Of `count` noises, z and further ones of the seed, the one in whose picture every concept begins as it would
    alone (`disagreement`)."""
    candidates = torch.cat([z[None], others(z, count - 1, seed, "choose")])
    blended = ask(candidates, COMPARED_AT)
    alone = [ask(candidates, COMPARED_AT, concept) for concept in range(len(weights))]
    scores = [
        disagreement(guess.prompted, [one[k].prompted for one in alone], weights) for k, guess in enumerate(blended)
    ]
    return candidates[min(range(count), key=scores.__getitem__)]


def alone(scene: Scene, concept: int) -> Scene:
    """An acting scene with one of its concepts everywhere and at every step, and no other."""
    one = scene.concepts[concept]
    keys = tuple(key.copy(update={"mask": None}) for key in one.keyframes)
    return at_every_step(scene.copy(update={"concepts": (one.copy(update={"mask": RectMask(), "keyframes": keys}),)}))


def at_every_step(scene: Scene) -> Scene:
    """A scene whose concepts act in every step: the noise is there before the first, and leans towards all of them."""
    always = {"start": 0.0, "end": 1.0}
    concepts = tuple(concept.copy(update=always) for concept in scene.concepts)
    return scene.copy(update={"concepts": concepts, "blend": scene.blend.copy(update=always)})


def disagreement(blended: Tensor, alone: Sequence[Tensor], weights: Tensor) -> float:
    """How far the picture that a model sees with all concepts in their places is, inside each mask, from what it sees
    with that concept everywhere: the mean square over the mask, relative to the latter's variance there; over the
    concepts that have a place, the mean."""
    found = []
    for own, weight in zip(alone, weights, strict=True):
        total = float(weight.sum())
        if total > 0:
            share = weight / total
            spread = ((own - (share * own).sum((1, 2), keepdim=True)) ** 2 * share).sum()
            found.append(float((((blended - own) ** 2) * share).sum() / spread.clamp(min=1e-12)))
    return sum(found) / max(1, len(found))
