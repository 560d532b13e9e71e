"""Scene + text-encoder outputs + frames → what every location of the image is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_masknoise import keyframes, masks
from lib_masknoise.keyframes import Passage
from lib_masknoise.noise import SeparableNoise, amount
from lib_masknoise.noise.concept import concept_noise
from lib_masknoise.noise.feature import feature_noise
from lib_masknoise.scene import Scene

# Where contexts cancel, the factor that restores their norm would be unbounded; beyond this the direction itself is
# rounding noise and there is nothing to restore.
MAX_NORM_FACTOR = 8.0

# A coefficient that is nowhere larger than this is the rounding of a sum, not a share: its context would only cost
# time.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Encoded:
    """One prompt as the text encoder returns it, on the CPU in float32: `context` `[T, D]`, and `pooled` `[P]` where
    the model has one. Half-precision outputs pass through float32 unchanged.

    weight: by how much the guidance of this prompt counts, where a host lets prompts be added up (`a cat AND a dog:0.5`
    in the WebUIs).
    """

    context: Tensor
    pooled: Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Level:
    """A LocationConditioning at one level of the U-Net, `L = h·w` locations in row-major order.

    `coefficients` `[B, L, J]`; `noise` `[B, L, R]` and `offset` `[B, L, S]`: the separable noises' fields;
    `factor` `[B, L, T]`: what a token's blended context is multiplied by; `bias` `[B, L, T]`: added to its logits.
    B is 1 when all rows share the maps. After `flatten`, `[B, L, …]` is `[B·L, …]`.
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

    @property
    def locations(self) -> int:
        return self.coefficients.shape[-2]

    def flatten(self, rows: int) -> Level:
        """All rows' locations in one axis, `[rows·L, …]`. The offset stays as it is: it is added per row."""

        def flat(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.expand(rows, -1, -1).flatten(0, 1)

        return replace(
            self,
            coefficients=flat(self.coefficients),
            noise=flat(self.noise),
            factor=flat(self.factor),
            bias=flat(self.bias),
        )

    def pick(self, rows: Sequence[int]) -> Level:
        """Some of its rows, in that order; itself where all rows share the maps or all are wanted."""
        if self.rows == 1 or list(rows) == list(range(self.rows)):
            return self

        def picked(t: Tensor | None) -> Tensor | None:
            return t if t is None or len(t) == 1 else t[list(rows)]

        maps = (self.coefficients, self.noise, self.offset, self.factor, self.bias)
        return Level(*map(picked, maps), plain=self.plain)

    def __getitem__(self, part: slice) -> Level:
        """Some locations of a flattened level."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[part]

        return Level(cut(self.coefficients), cut(self.noise), None, cut(self.factor), cut(self.bias))


@dataclass(frozen=True)
class LocationConditioning:
    """What each location sees: `E_ℓ[t] = r_ℓ[t] Σ_j a_j(ℓ) C_j[t] + Σ_r g_r(ℓ) s_r[t] d_r + u(ℓ)`.

    contexts: the basis `C_j`, `[J, T, D]`, zero beyond each one's length. lengths: tokens of each, J numbers.
    coefficients: `a_j(ℓ)`, `[B, J, H, W]` at the latent's size; B frames, or 1 when they are the same in all.
    noise: the concept noise `g, s, d`. offset: the feature noise `u` (its token profile is constant).
    preserve_norm: give every blended token the norm its parts have on average. pooled: `[B, P]`, blended by mask area.
    pins: how firmly each location is held, `[B, H, W]`; the visual noise needs it.
    weight: of the guidance at each location, `[B, H, W]`, blended like the contexts; None where it is 1 everywhere.
    """

    contexts: Tensor
    lengths: tuple[int, ...]
    coefficients: Tensor
    noise: SeparableNoise | None = None
    offset: SeparableNoise | None = None
    preserve_norm: bool = False
    pooled: Tensor | None = None
    pins: Tensor | None = None
    weight: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Every location sees the same single context, so the host's own attention serves."""
        return len(self.contexts) == 1 and self.noise is None and bool((self.coefficients == 1).all())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LocationConditioning:
        """The parts that are projected, on the model's device and in its dtype. The maps follow in `level`."""

        def moved(noise: SeparableNoise | None) -> SeparableNoise | None:
            if noise is None:
                return None
            return replace(noise, tokens=noise.tokens.to(device, dtype), directions=noise.directions.to(device, dtype))

        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        contexts = self.contexts.to(device, dtype)
        return replace(self, contexts=contexts, noise=moved(self.noise), offset=moved(self.offset), pooled=pooled)

    def level(self, size: tuple[int, int]) -> Level:
        """Resize every map to a level of `size` (h, w). Float32 on the CPU inside; the result is on the contexts'
        device and in their dtype, but for the factor and the bias, which are float32 at least."""

        def locations(maps: Tensor) -> Tensor:
            return masks.resize(maps, size).flatten(2).transpose(1, 2)

        def field(noise: SeparableNoise | None) -> Tensor | None:
            return None if noise is None else locations(noise.fields)

        def moved(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if t is None else t.to(self.contexts.device, dtype).contiguous()

        dtype = self.contexts.dtype
        a = locations(self.coefficients)
        maps = (moved(t, dtype) for t in (a, field(self.noise), field(self.offset)))
        # These multiply and shift logits, which attention keeps in float32 at least.
        terms = (moved(t, torch.promote_types(dtype, torch.float32)) for t in self._token_terms(a))
        return Level(*maps, *terms, plain=self.plain)

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
        if factor is not None and bias is None:
            bias = torch.zeros_like(factor)
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


def condition(
    scene: Scene,
    base: Encoded,
    concepts: Sequence[Encoded],
    size: tuple[int, int],
    seed: int,
    frames: Sequence[float] = (0,),
    total: int = 1,
) -> LocationConditioning:
    """The positive conditioning of some frames.

    base, concepts: the encoded prompts, one for each of `keyframes.prompts(scene)` (without keyframes: one for each
    concept). size: (H, W) of the latent. seed: resolved (never -1). frames: each row's frame, whole or a fraction;
    total: how many the animation has.
    Raises ValueError when the number of encoded concepts is not the scene's, or a feature dimension does not exist.
    """
    expected = len(keyframes.prompts(scene))
    if len(concepts) != expected:
        raise ValueError(f"expected {expected} encoded concepts, got {len(concepts)}")
    maps = keyframes.weight_maps(scene, size, frames, total)
    a = _coefficients(scene, "prompt", concepts, maps, frames, total)
    parts = _blend(scene, a, [base, *concepts])
    # The noise is scaled by the contexts' spread. A context that these frames can do without counts, or the noise would
    # differ from batch to batch.
    contexts, lengths = parts.contexts, parts.lengths
    if any(concept.keyframes for concept in scene.concepts):
        contexts, lengths = _basis([base, *concepts])
    tokens = parts.contexts.shape[1]
    free = keyframes.pins(maps)
    noise, feature = scene.noise.concept, scene.noise.feature
    options = dict(frames=frames, total=total, seed=seed)
    return replace(
        parts,
        pins=free,
        noise=_shortened(concept_noise(
            contexts, lengths, amount(free, noise.strength, scene.noise.exponent),
            rank=noise.rank, feature_size=noise.size, motion=noise.motion or scene.motion, **options,
        ), tokens),
        offset=_shortened(feature_noise(
            contexts, lengths, amount(free, feature.strength, scene.noise.exponent),
            dimensions=feature.dimensions, feature_size=feature.size, motion=feature.motion or scene.motion, **options,
        ), tokens),
    )  # fmt: skip


def condition_negative(
    scene: Scene,
    base: Encoded,
    negatives: Sequence[Encoded | None],
    size: tuple[int, int],
    frames: Sequence[float] = (0,),
    total: int = 1,
) -> LocationConditioning:
    """The negative conditioning of some frames: concepts with a negative prompt of their own, blended by the same
    masks; the base's negative prompt everywhere else. Noise moves the positive side only.

    negatives: one for each of `keyframes.negatives(scene)` (without keyframes: one for each concept); None where that
    is empty. The rest as for `condition`.
    """
    scene, encoded = _with_negatives(scene, negatives)
    maps = keyframes.weight_maps(scene, size, frames, total)
    a = _coefficients(scene, "negative", encoded, maps, frames, total)
    return _blend(scene, a, [base, *(one for one in encoded if one is not None)])


def prediction_weights(
    scene: Scene,
    name: str,
    encoded: Sequence[Encoded | None],
    size: tuple[int, int],
    frames: Sequence[float] = (0,),
    total: int = 1,
) -> Tensor:
    """By how much each prompt's prediction counts at every location, where a host can blend predictions only:
    `[B, 1 + J, H, W]` for the base and the J of `encoded` that are not None; B = 1 where no frame differs.

    They add up to 1 everywhere: predictions have no norm to spare, and the base makes up what the concepts leave. In
    the additive mode that is `p_0 + Σ_j a_j (p_j − p_0)`. name: "prompt" or "negative"; encoded: as for `condition` or
    `condition_negative`.
    """
    if name == "negative":
        scene, encoded = _with_negatives(scene, encoded)
    # The arc from one prompt to the next keeps the length of contexts; of predictions, it would add to the weight.
    scene = scene.copy(update={"blend": scene.blend.copy(update={"preserve_norm": True})})
    maps = keyframes.weight_maps(scene, size, frames, total)
    concepts = _coefficients(scene, name, encoded, maps, frames, total)[:, 1:]
    return torch.cat([1.0 - concepts.sum(1, keepdim=True), concepts], dim=1)


def _with_negatives(scene: Scene, negatives: Sequence[Encoded | None]) -> tuple[Scene, list[Encoded | None]]:
    """The scene with those concepts only that have a negative prompt, and their negative prompts."""
    remaining = iter(negatives)
    own = [[next(remaining) for _ in keyframes.texts(concept, "negative")] for concept in scene.concepts]
    chosen = [i for i, encoded in enumerate(own) if any(one is not None for one in encoded)]
    scene = scene.copy(update={"concepts": tuple(scene.concepts[i] for i in chosen)})
    return scene, [one for i in chosen for one in own[i]]


def unblended(base: Encoded) -> LocationConditioning:
    """One context for the whole image: what the host does without us."""
    pooled = None if base.pooled is None else base.pooled[None]
    return LocationConditioning(base.context[None], (len(base.context),), torch.ones(1, 1, 1, 1), pooled=pooled)


def _coefficients(
    scene: Scene,
    name: str,
    encoded: Sequence[Encoded | None],
    maps: Tensor,
    frames: Sequence[float],
    total: int,
) -> Tensor:
    """What the base and each context of `encoded` contribute: `[B, 1 + J, H, W]`, B = 1 where no frame differs.

    name: "prompt" or "negative"; encoded: one for each text of each concept (`keyframes.texts`), J of them without
    those that are None, whose share the concept leaves to the base. maps: `[B, N, H, W]`.
    """
    remaining = iter(encoded)
    known = [{text: next(remaining) for text in keyframes.texts(concept, name)} for concept in scene.concepts]
    rows = []
    for row, of_frame in zip(keyframes.passages(scene, frames, total), maps, strict=True):
        shares = [_shares(scene, one, name, contexts) for one, contexts in zip(row, known, strict=True)]
        weights = torch.tensor([one.weight * present for one, (present, _) in zip(row, shares, strict=True)])
        base, *concepts = masks.coefficients(of_frame, weights, scene.blend.mode, scene.blend.scale)
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
    scene: Scene, one: Passage, name: str, contexts: Mapping[str, Encoded | None]
) -> tuple[float, dict[str, float]]:
    """How much of a concept its texts with a context make up at a frame, and the share of each in that."""
    first, second = getattr(one.before, name), getattr(one.after, name)
    a, b = contexts[first], contexts[second]
    if first == second or one.way == 0:
        shares = {first: 1.0}
    elif one.before.interpolation == "linear" or a is None or b is None:
        shares = dict(zip((first, second), keyframes.passing(one.way), strict=True))
    else:
        arc = keyframes.passing(one.way, keyframes.angle(a.context, b.context))
        # What the arc adds in length, `preserve_norm` would add again.
        whole = sum(arc) if scene.blend.preserve_norm else 1.0
        shares = {first: arc[0] / whole, second: arc[1] / whole}
    missing = sum(share for text, share in shares.items() if contexts[text] is None)
    held = 1.0 - missing
    if abs(held) <= NEGLIGIBLE:
        return 0.0, {}
    return held, {text: share / held for text, share in shares.items() if contexts[text] is not None}


def _blend(scene: Scene, a: Tensor, encoded: Sequence[Encoded]) -> LocationConditioning:
    """The conditioning of coefficients `[B, J, H, W]` of J contexts, less those that no frame needs."""
    # Frame by frame: what a frame is must not depend on the others of its batch.
    a = a * (a.abs().amax(dim=(2, 3), keepdim=True) > NEGLIGIBLE)
    weight = _guidance_weight(a, encoded)
    used = [j for j in range(len(encoded)) if bool(a[:, j].any())] or [0]
    a, encoded = a[:, used], [encoded[j] for j in used]
    pooled = None
    if encoded[0].pooled is not None:
        known = torch.stack([e.pooled for e in encoded])
        pooled = torch.stack([torch.einsum("j,jp->p", area, known) for area in a.mean(dim=(2, 3))])
    contexts, lengths = _basis(encoded)
    return LocationConditioning(
        contexts, lengths, a, preserve_norm=scene.blend.preserve_norm, pooled=pooled, weight=weight
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


def _basis(encoded: Sequence[Encoded]) -> tuple[Tensor, tuple[int, ...]]:
    """Contexts `[T_j, D]` each → `[J, T, D]`, zero beyond each length (absent tokens add nothing to a blend), and the
    lengths."""
    contexts = [one.context for one in encoded]
    padded = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True)
    return padded, tuple(map(len, contexts))


def _shortened(noise: SeparableNoise | None, length: int) -> SeparableNoise | None:
    """The noise on the first tokens only."""
    return None if noise is None else replace(noise, tokens=noise.tokens[:, :length])
