"""Scene + text-encoder outputs + frames → what every location of the image is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_masknoise import masks
from lib_masknoise.noise import SeparableNoise, amount
from lib_masknoise.noise.concept import concept_noise
from lib_masknoise.noise.feature import feature_noise
from lib_masknoise.scene import Scene

# Where contexts cancel, the factor that restores their norm would be unbounded; beyond this the direction itself is
# rounding noise and there is nothing to restore.
MAX_NORM_FACTOR = 8.0


@dataclass(frozen=True)
class Encoded:
    """One prompt as the text encoder returns it, on the CPU in float32: `context` `[T, D]`, and `pooled` `[P]` where
    the model has one. Half-precision outputs pass through float32 unchanged."""

    context: Tensor
    pooled: Tensor | None = None


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
    preserve_norm: give every blended token the norm its parts have on average. pooled: `[P]`, blended by mask area.
    """

    contexts: Tensor
    lengths: tuple[int, ...]
    coefficients: Tensor
    noise: SeparableNoise | None = None
    offset: SeparableNoise | None = None
    preserve_norm: bool = False
    pooled: Tensor | None = None

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
        device and in their dtype."""

        def locations(maps: Tensor) -> Tensor:
            return masks.resize(maps, size).flatten(2).transpose(1, 2)

        def field(noise: SeparableNoise | None) -> Tensor | None:
            return None if noise is None else locations(noise.fields)

        def moved(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(self.contexts.device, self.contexts.dtype).contiguous()

        a = locations(self.coefficients)
        parts = (a, field(self.noise), field(self.offset), *self._token_terms(a))
        return Level(*map(moved, parts), plain=self.plain)

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

    base, concepts: the encoded prompts, one for each concept of the scene. size: (H, W) of the latent.
    seed: resolved (never -1). frames: each row's frame, whole or a fraction; total: how many the animation has.
    Raises ValueError when the number of encoded concepts is not the scene's, or a feature dimension does not exist.
    """
    if len(concepts) != len(scene.concepts):
        raise ValueError(f"expected {len(scene.concepts)} encoded concepts, got {len(concepts)}")
    maps = masks.weight_maps(scene, size)
    parts = _blend(scene, maps, [base, *concepts])
    free = masks.pin(maps)
    options = dict(motion=scene.motion, frames=frames, total=total, seed=seed)
    noise, feature = scene.noise.concept, scene.noise.feature
    return replace(
        parts,
        noise=concept_noise(
            parts.contexts, parts.lengths, amount(free, noise.strength, scene.noise.exponent),
            rank=noise.rank, feature_size=noise.size, **options,
        ),
        offset=feature_noise(
            parts.contexts, parts.lengths, amount(free, feature.strength, scene.noise.exponent),
            dimensions=feature.dimensions, feature_size=feature.size, **options,
        ),
    )  # fmt: skip


def condition_negative(
    scene: Scene, base: Encoded, negatives: Sequence[Encoded | None], size: tuple[int, int]
) -> LocationConditioning:
    """The negative conditioning: concepts with a negative prompt of their own, blended by the same masks; the base's
    negative prompt everywhere else. None stands for a concept without one. Noise moves the positive side only."""
    chosen = [i for i, encoded in enumerate(negatives) if encoded is not None]
    scene = scene.copy(update={"concepts": tuple(scene.concepts[i] for i in chosen)})
    return _blend(scene, masks.weight_maps(scene, size), [base, *(negatives[i] for i in chosen)])


def unblended(base: Encoded) -> LocationConditioning:
    """One context for the whole image: what the host does without us."""
    return LocationConditioning(base.context[None], (len(base.context),), torch.ones(1, 1, 1, 1), pooled=base.pooled)


def _blend(scene: Scene, maps: Tensor, encoded: Sequence[Encoded]) -> LocationConditioning:
    weights = torch.tensor([concept.weight for concept in scene.concepts])
    a = masks.coefficients(maps, weights, scene.blend.mode, scene.blend.scale)
    used = [j for j in range(len(encoded)) if j == 0 or bool(a[j].any())]
    if len(used) > 1 and not a[0].any():
        used = used[1:]  # the base is covered everywhere: it would only cost time
    a, encoded = a[used], [encoded[j] for j in used]
    pooled = None
    if encoded[0].pooled is not None:
        area = a.mean(dim=(1, 2))
        pooled = torch.einsum("j,jp->p", area, torch.stack([e.pooled for e in encoded]))
    lengths = tuple(len(e.context) for e in encoded)
    return LocationConditioning(
        _pad([e.context for e in encoded]),
        lengths,
        a[None],
        preserve_norm=scene.blend.preserve_norm,
        pooled=pooled,
    )


def _pad(contexts: Sequence[Tensor]) -> Tensor:
    """`[T_j, D]` each → `[J, T, D]`, zero beyond each length: absent tokens add nothing to a blend."""
    return torch.nn.utils.rnn.pad_sequence(list(contexts), batch_first=True)
