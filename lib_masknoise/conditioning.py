"""Scene + text-encoder outputs + frames → what every location of the image is conditioned on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lib_masknoise.maps import Maps, coefficients, resize
from lib_masknoise.maps.keyframes import Passage, texts
from lib_masknoise.noise import SeparableNoise
from lib_masknoise.noise.concept import concept_noise
from lib_masknoise.noise.feature import Subspaces, feature_noise
from lib_masknoise.scene import Concept, Scene
from lib_masknoise.scene.layers import Tags

# Where contexts cancel, the factor that restores their norm would be unbounded; beyond this the direction itself is
# rounding noise and there is nothing to restore.
MAX_NORM_FACTOR = 8.0

# A coefficient that is nowhere larger than this is the rounding of a sum, not a share: its context would only cost
# time.
NEGLIGIBLE = 1e-6

# The arc between two contexts is taken as no longer than this: beyond it the contexts are so nearly opposite that their
# middle would be raised above any bound. At 3π/4 a share is √2 at most.
LONGEST_ARC = 0.75 * math.pi
SHORTEST_ARC = 1e-4

Encodings = Mapping[str, "Encoded"]
"""Prompts and what the encoder made of them."""


@dataclass(frozen=True)
class Encoded:
    """One prompt as the text encoder returns it, on the CPU in float32: `context` `[T, D]`, and `pooled` `[P]` where
    the model has one. Half-precision outputs pass through float32 unchanged.

    weight: by how much the guidance of this prompt counts, where a host lets prompts be added up (`a cat AND a dog:0.5`
    in the WebUIs). filler: `[D]`, where a model fills every text up with equal tokens, and sees them: that token; full:
    up to how many. The context is without them.
    """

    context: Tensor
    pooled: Tensor | None = None
    weight: float = 1.0
    filler: Tensor | None = None
    full: int = 0


@dataclass(frozen=True)
class Level:
    """A LocationConditioning at one level of the U-Net, `L = h·w` locations in row-major order.

    `coefficients` `[B, L, J]`; `noise` `[B, L, R]` and `offset` `[B, L, S]`: the separable noises' fields;
    `factor` `[B, L, T]`: what a token's blended context is multiplied by; `bias` `[B, L, T]`: added to its logits.
    B is 1 when all rows share the maps. `grouped`, `[B, L, …]` is `[groups, B/groups·L, …]`.
    """

    coefficients: Tensor
    noise: Tensor | None = None
    offset: Tensor | None = None
    factor: Tensor | None = None
    bias: Tensor | None = None
    plain: bool = False

    @property
    def rows(self) -> int:
        return max(len(t) for t in (self.coefficients, self.noise, self.offset) if t is not None)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Level:
        """On a device, in `dtype`: float32 at least, as small shares and the logits' terms need it."""
        return self._each(lambda t: t.to(device, dtype).contiguous())

    @property
    def locations(self) -> int:
        return self.coefficients.shape[-2]

    def grouped(self, rows: int, groups: int) -> Level:
        """Some rows' locations in one axis for each of `groups` groups of rows, `[groups, rows/groups·L, …]`. The
        offset stays as it is: it is added per row."""

        def flat(t: Tensor) -> Tensor:
            return t.expand(rows, -1, -1).reshape(groups, -1, t.shape[-1])

        return replace(replace(self, offset=None)._each(flat), offset=self.offset)

    def pick(self, rows: Sequence[int]) -> Level:
        """Some of its rows, in that order; itself where all rows share the maps or all are wanted."""
        if self.rows == 1 or list(rows) == list(range(self.rows)):
            return self
        return self._each(lambda t: t if len(t) == 1 else t[list(rows)])

    def __getitem__(self, part: tuple[slice, slice]) -> Level:
        """Some locations of some groups of a grouped level."""
        return replace(self, offset=None)._each(lambda t: t[part])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Level:
        """All maps that there are, changed alike."""

        def changed(t: Tensor | None) -> Tensor | None:
            return None if t is None else change(t)

        return Level(
            change(self.coefficients),
            changed(self.noise),
            changed(self.offset),
            changed(self.factor),
            changed(self.bias),
            self.plain,
        )


@dataclass(frozen=True, eq=False)
class LocationConditioning:
    """What each location sees: `E_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) C_j[t] + Σ_r g_r(ℓ) s_r[t] d_r + u(ℓ)`.

    contexts: the basis `C_j`, `[J, T, D]`, zero beyond each one's length. lengths: tokens of each, J numbers.
    coefficients: `a_j(ℓ)`, `[B, J, H, W]` at the latent's size; B frames, or 1 when they are the same in all.
    noise: the concept noise `g, s, d`. offset: the feature noise `u` (its token profile is constant).
    preserve_norm: give every blended token the norm its parts have on average. pooled: `[B, P]`, blended by mask area.
    weight: of the guidance at each location, `[B, H, W]`, blended like the contexts; None where it is 1 everywhere.
    repeats: for how many equal tokens the last one stands, which a model fills texts up with; 0 where there is none.
    """

    contexts: Tensor
    lengths: tuple[int, ...]
    coefficients: Tensor
    noise: SeparableNoise | None = None
    offset: SeparableNoise | None = None
    preserve_norm: bool = False
    pooled: Tensor | None = None
    weight: Tensor | None = None
    repeats: int = 0

    @property
    def plain(self) -> bool:
        """Every location sees the same single context, so the host's own attention serves."""
        return len(self.contexts) == 1 and self.noise is None and bool((self.coefficients == 1).all())

    @cached_property
    def digest(self) -> bytes:
        """Of everything that a layer projects, by its contents: equal ones are projected once."""
        digest = hashlib.blake2b(repr((self.contexts.shape, self.lengths)).encode(), digest_size=16)
        projected = [self.contexts]
        for noise in (self.noise, self.offset):
            digest.update(b"none" if noise is None else repr(noise.directions.shape).encode())
            projected += [] if noise is None else [noise.tokens, noise.directions]
        for tensor in projected:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.digest()

    def seen_by(self, tags: Tags) -> LocationConditioning:
        """What a layer with these tags sees of it; itself where all layers see the same."""
        if len(self.variants) == 1:
            return self
        forms = (0 if noise is None else noise.form(tags) for noise in (self.noise, self.offset))
        return self.variants[tuple(forms)]

    @cached_property
    def variants(self) -> dict[tuple[int, ...], LocationConditioning]:
        """Whatever some layer may see, by the forms of the noise and of the offset."""
        of_noise, of_offset = (
            {0: None} if noise is None else noise.forms for noise in (self.noise, self.offset)
        )  # fmt: skip
        if len(of_noise) == len(of_offset) == 1:
            return {(0, 0): self}
        return {
            (i, j): replace(self, noise=noise, offset=offset)
            for i, noise in of_noise.items()
            for j, offset in of_offset.items()
        }

    def level(self, size: tuple[int, int]) -> Level:
        """Every map at a level of `size` (h, w), in the maps' own dtype on the CPU."""

        def locations(maps: Tensor) -> Tensor:
            return resize(maps, size).flatten(2).transpose(1, 2)

        def field(noise: SeparableNoise | None) -> Tensor | None:
            return None if noise is None else locations(noise.fields)

        a = locations(self.coefficients)
        return Level(a, field(self.noise), field(self.offset), *self._token_terms(a), plain=self.plain)

    def _token_terms(self, a: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The factor `r_ℓ[t]` and the bias `b_ℓ[t]`, or None for both where neither is needed."""
        factor = bias = None
        if len(set(self.lengths)) > 1:
            present = presence(a, self.lengths)
            factor, bias = 1 / present.clamp_min(torch.finfo(a.dtype).tiny), present.log()
            factor = torch.where(present > 0, factor, torch.zeros_like(factor))
        if self.preserve_norm and len(self.contexts) > 1:
            restored = norm_factor(a, self.contexts.to(a))
            factor = restored if factor is None else factor * restored
        if self.repeats > 1:
            # n equal tokens are one whose exponential counts n times.
            bias = a.new_zeros(*a.shape[:-1], self.contexts.shape[1]) if bias is None else bias
            bias[..., -1] += math.log(self.repeats)
        return factor, bias


def presence(a: Tensor, lengths: Sequence[int]) -> Tensor:
    """How much of a location's conditioning reaches token t: `μ_ℓ[t] = Σ_{j: T_j > t} |a_j| / Σ_j |a_j|`.

    Prompts of different lengths have different numbers of tokens. Padding the shorter ones would change them; here a
    token that only some contexts have weighs as much as those contexts do: its logit gets `log μ` and its blend is
    divided by `μ`. Where one context is alone, the location sees exactly that context, whatever the others' lengths.

    a: `[…, L, J]`. Returns `[…, L, T]` in [0, 1], 1 wherever every context has the token.
    """
    weight = a.abs()
    has_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [J, T]
    total = weight.sum(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    present = weight @ has_token.to(a.dtype) / total
    return torch.where(has_token.all(0), torch.ones_like(present), present)


def norm_factor(a: Tensor, contexts: Tensor) -> Tensor:
    """`r_ℓ[t] = Σ_j |a_j| ‖C_j[t]‖ / ‖Σ_j a_j C_j[t]‖`, from the Gram matrix per token; at most MAX_NORM_FACTOR.

    a: `[…, L, J]`, contexts: `[J, T, D]`. Returns `[…, L, T]`; 1 where nothing is blended (a zero context).
    """
    gram = torch.einsum("jtd,ktd->tjk", contexts, contexts)
    squared = torch.einsum("...lj,tjk,...lk->...lt", a, gram, a)
    target = a.abs() @ contexts.norm(dim=-1)
    blended = squared.clamp_min(0).sqrt()
    factor = target / blended.clamp_min(torch.finfo(a.dtype).tiny)
    return torch.where(target > 0, factor.clamp_max(MAX_NORM_FACTOR), torch.ones_like(factor))


def prompts(scene: Scene) -> list[str]:
    """The different prompts that the concepts have at some frame."""
    return _different(scene.acting.concepts, "prompt")


def negatives(scene: Scene) -> list[str]:
    """The different negative prompts that concepts have of their own at some frame; "" stands for the image's."""
    return [text for text in _different(scene.acting.concepts, "negative") if text]


def _different(concepts: Iterable[Concept], name: str) -> list[str]:
    return list(dict.fromkeys(text for concept in concepts for text in texts(concept, name)))


def condition(
    maps: Maps,
    base: Encoded,
    encoded: Encodings,
    frames: Sequence[float] = (0,),
    seeds: Sequence[int] = (0,),
    subspaces: Subspaces | None = None,
) -> LocationConditioning:
    """The positive conditioning of some rows.

    maps: of the scene at the latent's size. base: the image's own prompt. encoded: one for each of `prompts(scene)`.
    frames: each row's frame, whole or a fraction. seeds: each row's, resolved (never -1). subspaces: of the model.
    Raises ValueError when a prompt has not been encoded, or a feature dimension does not exist.
    """
    scene = maps.scene
    missing = [text for text in prompts(scene) if text not in encoded]
    if missing:
        raise ValueError(f"these prompts have not been encoded: {missing}")
    known = _contexts(scene, "prompt", encoded)
    parts = _blend(scene, _coefficients(maps, "prompt", encoded, frames), [base, *known])
    # The noise is scaled by the contexts' spread. A context that these frames or steps can do without counts, or the
    # noise would differ from batch to batch, and jump where a concept sets in.
    contexts, lengths = parts.contexts, parts.lengths
    if maps.moving or maps.windowed or base.filler is not None:  # without what a model adds to every text
        contexts, lengths = _side_by_side([one.context for one in (base, *known)])
    noise, feature = scene.noise.concept, scene.noise.feature
    return replace(
        parts,
        noise=_fitted(concept_noise(
            contexts, lengths, maps.amount("concept", frames), noise.rank, noise.size,
            noise.motion or scene.motion, frames, maps.total, seeds, maps.window, noise.layers,
        ), parts, filler=0.0),
        offset=_fitted(feature_noise(
            contexts, lengths, maps.amount("feature", frames), feature.dimensions, feature.size,
            feature.motion or scene.motion, frames, maps.total, seeds, maps.window, feature.layers, subspaces,
        ), parts, filler=1.0),
    )  # fmt: skip


def condition_negative(
    maps: Maps, base: Encoded, encoded: Encodings, frames: Sequence[float] = (0,)
) -> LocationConditioning:
    """The negative conditioning of some rows: concepts with a negative prompt of their own, blended by the same masks;
    the base's negative prompt everywhere else. Noise moves the positive side only.

    encoded: one for each of `negatives(scene)`; for one that is not there the image's own stands. The rest as for
    `condition`.
    """
    known = _contexts(maps.scene, "negative", encoded)
    return _blend(maps.scene, _coefficients(maps, "negative", encoded, frames), [base, *known])


def prediction_weights(maps: Maps, name: str, encoded: Encodings, frames: Sequence[float] = (0,)) -> Tensor:
    """By how much each prompt's prediction counts at every location, where a host can blend predictions only:
    `[B, 1 + J, H, W]` for the base and the J of `blended_texts`; B = 1 where no frame differs.

    They add up to 1 everywhere: predictions have no norm to spare, and the base makes up what the concepts leave. In
    the additive mode that is `p_0 + Σ_j a_j (p_j − p_0)`. name: "prompt" or "negative"; encoded: as for `condition` or
    `condition_negative`.
    """
    # The arc from one prompt to the next keeps the length of contexts; of predictions, it would add to the weight.
    concepts = _coefficients(maps, name, encoded, frames, straight=True)[:, 1:]
    return torch.cat([1.0 - concepts.sum(1, keepdim=True), concepts], dim=1)


def blended_texts(scene: Scene, name: str, encoded: Encodings) -> list[str]:
    """The J prompts ("prompt" or "negative") that are blended with the base, one concept's after the other's."""
    chosen = _chosen(scene, name, encoded)
    return [text for i in chosen for text in texts(scene.concepts[i], name) if text in encoded]


def _chosen(scene: Scene, name: str, encoded: Encodings) -> list[int]:
    """Which concepts have a prompt, or a negative prompt of their own, at some frame."""
    return [i for i, concept in enumerate(scene.concepts) if any(text in encoded for text in texts(concept, name))]


def _contexts(scene: Scene, name: str, encoded: Encodings) -> list[Encoded]:
    """What `_coefficients` has a column for, in its order."""
    return [encoded[text] for text in blended_texts(scene, name, encoded)]


def unblended(base: Encoded) -> LocationConditioning:
    """One context for the whole image: what the host does without us."""
    pooled = None if base.pooled is None else base.pooled[None]
    contexts, lengths, repeats = _basis([base])
    return LocationConditioning(contexts, lengths, torch.ones(1, 1, 1, 1), pooled=pooled, repeats=repeats)


def _coefficients(maps: Maps, name: str, encoded: Encodings, frames: Sequence[float], straight: bool = False) -> Tensor:
    """What the base and each context contribute: `[B, 1 + J, H, W]`, B = 1 where no frame differs.

    name: "prompt" or "negative". The J columns are those of the texts of each concept, without negative ones that it
    does not have, whose share it leaves to the base. straight: without the length that an arc between two adds.
    """
    scene = maps.scene
    chosen = _chosen(scene, name, encoded)
    known = [{text: encoded.get(text) for text in texts(scene.concepts[i], name)} for i in chosen]
    straight = straight or scene.blend.preserve_norm  # what the arc adds in length, `preserve_norm` would add again
    rows = []
    for row, of_frame in zip(maps.passages(frames), maps.weights(frames), strict=True):
        passing = [row[i] for i in chosen]
        shares = [_shares(one, name, contexts, straight) for one, contexts in zip(passing, known, strict=True)]
        weights = torch.tensor([one.weight * present for one, (present, _) in zip(passing, shares, strict=True)])
        base, *concepts = coefficients(of_frame[chosen], weights, scene.blend.mode, scene.blend.scale)
        columns = [
            concept * share.get(text, 0.0)
            for concept, (_, share), contexts in zip(concepts, shares, known, strict=True)
            for text, context in contexts.items()
            if context is not None
        ]
        rows.append(torch.stack([base, *columns]))
    a = torch.stack(rows)
    return a[:1] if bool((a == a[:1]).all()) else a


def _shares(
    one: Passage, name: str, contexts: Mapping[str, Encoded | None], straight: bool
) -> tuple[float, dict[str, float]]:
    """How much of a concept its texts with a context make up at a frame, and the share of each in that."""
    first, second = getattr(one.before, name), getattr(one.after, name)
    a, b = contexts[first], contexts[second]
    if first == second or one.way == 0:
        shares = {first: 1.0}
    elif one.before.interpolation == "linear" or a is None or b is None:
        shares = dict(zip((first, second), passing(one.way), strict=True))
    else:
        arc = passing(one.way, angle(a.context, b.context))
        whole = sum(arc) if straight else 1.0
        shares = {first: arc[0] / whole, second: arc[1] / whole}
    missing = sum(share for text, share in shares.items() if contexts[text] is None)
    held = 1.0 - missing
    if abs(held) <= NEGLIGIBLE:
        return 0.0, {}
    return held, {text: share / held for text, share in shares.items() if contexts[text] is not None}


def passing(way: float, arc: float | None = None) -> tuple[float, float]:
    """The shares of two contexts on the way from one to the other.

    1 − way and way; or, on an arc of that angle, sin((1 − way)·arc)/sin arc and sin(way·arc)/sin arc (Shoemake 1985),
    which keeps the length where both have the same: a straight way would cut the corner and weaken the prompt.
    """
    if arc is None:
        return 1.0 - way, way
    arc = min(max(arc, SHORTEST_ARC), LONGEST_ARC)
    return math.sin((1.0 - way) * arc) / math.sin(arc), math.sin(way * arc) / math.sin(arc)


def angle(first: Tensor, second: Tensor) -> float:
    """The angle between two contexts ``[T, D]``, in radians, without their first token.

    That is the attention sink, the same in every prompt and in some models of a far larger norm: with it all prompts
    would be parallel. The shorter one counts as zero beyond its length.
    """
    a, b = (context[1:].double() for context in (first, second))
    length = min(len(a), len(b))
    cosine = (a[:length] * b[:length]).sum() / (a.norm() * b.norm()).clamp_min(1e-12)
    return math.acos(min(max(float(cosine), -1.0), 1.0))


def _blend(scene: Scene, a: Tensor, encoded: Sequence[Encoded]) -> LocationConditioning:
    """The conditioning of coefficients `[B, J, H, W]` of J contexts, less those that no frame needs."""
    # Frame by frame: what a frame is must not depend on the others of its batch.
    a = a * (a.abs().amax(dim=(2, 3), keepdim=True) > NEGLIGIBLE)
    weight = _guidance_weight(a, encoded)
    used = [j for j in range(len(encoded)) if bool(a[:, j].any())] or [0]
    a, encoded = a[:, used], [encoded[j] for j in used]
    pooled = None
    known = [one.pooled for one in encoded if one.pooled is not None]
    if known:
        stacked = torch.stack(known)
        pooled = torch.stack([torch.einsum("j,jp->p", area, stacked) for area in a.mean(dim=(2, 3))])
    contexts, lengths, repeats = _basis(encoded)
    return LocationConditioning(
        contexts,
        lengths,
        a,
        preserve_norm=scene.blend.preserve_norm,
        pooled=pooled,
        weight=weight,
        repeats=repeats,
    )


def _guidance_weight(a: Tensor, encoded: Sequence[Encoded]) -> Tensor | None:
    """`w_0 + Σ_j a_j (w_j − w_0)`: `[B, J, H, W]` → `[B, H, W]`, None where it is 1 everywhere.

    Relative to the base's, so that equal weights stay what they are in the additive mode too, whose coefficients add up
    to more than 1.
    """
    if all(one.weight == 1.0 for one in encoded):
        return None
    base = encoded[0].weight
    steps = torch.tensor([one.weight - base for one in encoded])
    return base + torch.einsum("j,bjhw->bhw", steps, a)


def _basis(encoded: Sequence[Encoded]) -> tuple[Tensor, tuple[int, ...], int]:
    """Contexts `[T_j, D]` each → `[J, T, D]`, the lengths, and for how many tokens the last one stands.

    Beyond its length a context is zero (absent tokens add nothing to a blend); where the model fills texts up, it is
    the filler, which is there once for all that the longest one leaves room for.
    """
    contexts, filler = [one.context for one in encoded], encoded[0].filler
    if filler is None:
        return *_side_by_side(contexts), 0
    longest = max(map(len, contexts))
    repeats = max(encoded[0].full - longest, 0)
    tokens = longest + min(repeats, 1)
    filled = [torch.cat([one, filler.expand(tokens - len(one), -1)]) for one in contexts]
    return torch.stack(filled), (tokens,) * len(filled), repeats


def _side_by_side(contexts: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """`[T_j, D]` each → `[J, T, D]`, zero beyond each length, and the lengths."""
    return torch.nn.utils.rnn.pad_sequence(list(contexts), batch_first=True), tuple(map(len, contexts))


def _fitted(noise: SeparableNoise | None, parts: LocationConditioning, filler: float) -> SeparableNoise | None:
    """The noise on the tokens of a blend. filler: how much of it what the model fills texts up with has."""
    if noise is None:
        return None
    fillers = min(parts.repeats, 1)
    tokens = noise.tokens[..., : parts.contexts.shape[1] - fillers]
    return replace(noise, tokens=torch.nn.functional.pad(tokens, (0, fillers), value=filler))
