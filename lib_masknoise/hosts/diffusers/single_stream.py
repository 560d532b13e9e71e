"""Transformers of diffusers with one stream of image and text tokens, after layers of their own: Z-Image and
Lumina 2.

Level-set texts as in `changing_text`; what differs is how a text stands in the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.hosts.diffusers.binding import Binding, BlendedAttnProcessor
from lib_masknoise.hosts.diffusers.changing_text import (
    Joint,
    JointBinding,
    Placed,
    complex_turned,
    heads_first,
    normed,
)
from lib_masknoise.joint import Texts, at_tokens, before_image, texts_alone
from lib_masknoise.maps import Size, extent

TOKENS = 512
BLOCK = 32
"""What the model fills texts and image up to a multiple of, with tokens of its own that everything sees."""


class ZImage(Joint):
    """Z-Image: texts as long as their prompts, before the image on the first axis of places. A guidance of 1 or less is
    none; above, the number is the pipeline's own, which adds it to the prompt's prediction."""

    together = False  # the rows with the prompt come first

    def binding(self, *args: Any) -> Binding:
        return _ZImageBinding(*args)

    @property
    def multiple(self) -> int:
        return 2 * self.factor

    @property
    def default_size(self) -> Size:
        return 1024, 1024

    def encoded(self, prompt: str) -> Encoded:
        (embeds,), _ = self.pipe.encode_prompt([prompt], do_classifier_free_guidance=False, max_sequence_length=TOKENS)
        return Encoded(embeds.float().cpu())

    def noise(self, size: Size, generator: torch.Generator) -> Tensor:
        return randn_tensor((1, self.channels, *size), generator, self.device, torch.float32)

    def given(self, x: Tensor) -> Any:
        return list(x.to(self.model.dtype).unsqueeze(2))

    def heard(self, output: Any) -> Tensor:
        return -torch.stack(list(super().heard(output))).squeeze(2)

    def when(self, called: float, first: float, time: float) -> float:
        return 1 - time / 1000

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        """The side of a row is told by the number of tokens."""
        tokens = self.empty(2, self.model.config.cap_feat_dim)
        return {"prompt_embeds": [tokens[:1]] * rows, "negative_prompt_embeds": [tokens] * rows}

    def options(self, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale if guidance_scale > 1 else 0.0}


class SingleStreamBinding(JointBinding):
    """Layers of the texts alone (`context_refiner`), then of texts and image. Places of shorter texts begin later, so
    that every text is as far from the image as it is alone: the turns of a rotary embedding tell the way between two
    places only."""

    image_first = False

    def processors_of_model(self) -> dict[str, Any]:
        layers = ((name, module) for name, module in self.model.named_modules() if isinstance(module, Attention))
        return {name: layer.processor for name, layer in layers}

    def sees_text(self, name: str) -> bool:
        return name.startswith(("layers.", "context_refiner."))

    def processor(self) -> Any:
        return _SingleProcessor(self)

    def attended(self, attn: Any, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        q = heads_first(attn.to_q(x), attn.heads)
        k, v = (layer(x).unflatten(-1, (-1, q.shape[3])).transpose(1, 2) for layer in (attn.to_k, attn.to_v))
        turns = given["turns"].unsqueeze(1)
        q, k = (complex_turned(normed(norm, t), turns) for norm, t in ((attn.norm_q, q), (attn.norm_k, k)))
        k, v = (t.repeat_interleave(attn.heads // t.shape[1], dim=1) for t in (k, v))
        if x.shape[1] > self.length:
            out = self.joint(q, k, v, self.image_first)
        else:  # the layers of the texts alone
            assert self.placed is not None
            out = texts_alone((q, k, v), self.count, q.shape[3] ** -0.5, self.placed.present)
        return out.transpose(1, 2).flatten(2).to(x.dtype)


class _ZImageBinding(SingleStreamBinding):
    plain = ("ZSingleStreamAttnProcessor",)
    image_first = True

    def install(self) -> None:
        super().install()
        self.model.patchify_and_embed = self._sequence

    def close(self) -> None:
        vars(self.model).pop("patchify_and_embed", None)
        super().close()

    def place(self, found: Texts, size: Size) -> Placed:
        """Each text filled up as it is alone."""
        standing = before_image(found.weights, found.present, BLOCK)
        placed = super().place(standing.of(found), size)
        return replace(placed, places=1 + standing.places, fillers=standing.fillers)

    def weights(self, found: Texts, size: Size) -> Tensor:
        """Also at the tokens that fill up the image."""
        return at_tokens(found.weights, size, -math.prod(size) % BLOCK)

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        images, texts = (kwargs[name] if name in kwargs else args[i] for i, name in ((0, "x"), (2, "cap_feats")))
        patch = kwargs.get("patch_size", 2)
        height, width = (side // patch for side in images[0].shape[-2:])
        self.join(torch.stack(list(images)), (height, width), self.told(*map(len, texts)))
        return args, kwargs

    def _sequence(self, images: list[Tensor], captions: list[Tensor], *patches: int) -> tuple[Any, ...]:
        """The model's own `patchify_and_embed`, in which the image stands behind one text as long as the longest of
        its row; then all texts in the place of that."""
        placed = self.placed
        assert placed is not None and placed.places is not None and placed.fillers is not None
        tokens = placed.places.amax((1, 2))
        stand_ins = [captions[0].new_zeros(int(count), captions[0].shape[-1]) for count in tokens]
        made = list(type(self.model).patchify_and_embed(self.model, images, stand_ins, *patches))
        places = F.pad(placed.places.flatten(1)[..., None], (0, 2)).to(made[4][0])
        made[1], made[4], made[6] = (
            list(t) for t in (placed.contexts.flatten(1, 2), places, placed.fillers.flatten(1))
        )
        return tuple(made)


class Lumina2(Joint):
    """Lumina 2: texts as long as their prompts, before the image on the first axis of places. The pipeline writes an
    instruction before a prompt, and none before a negative one."""

    together = False  # the pipeline evaluates one side after the other

    def binding(self, *args: Any) -> Binding:
        return _Lumina2Binding(*args)

    @property
    def multiple(self) -> int:
        return self.factor * int(self.model.config.patch_size)

    def encoded(self, prompt: str) -> Encoded:
        (embeds,), (mask,), *_ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return Encoded(embeds[mask.bool()].float().cpu())

    @torch.no_grad()
    def negatives(self, encoded: Mapping[str, Encoded], texts: Iterable[str]) -> Mapping[str, Encoded]:
        found = {}
        for text in texts:
            *_, (embeds,), (mask,) = self.pipe.encode_prompt("", negative_prompt=text)
            found[text] = Encoded(embeds[mask.bool()].float().cpu())
        return found

    def heard(self, output: Any) -> Tensor:
        return -super().heard(output)

    def when(self, called: float, first: float, time: float) -> float:
        return 1 - time / 1000

    def stand_ins(self, base: Encoded, rows: int) -> dict[str, Any]:
        """The side is told by the number of tokens that the mask leaves."""
        tokens = self.empty(rows, 2, self.model.config.cap_feat_dim)
        both = torch.ones(rows, 2, device=self.device, dtype=torch.long)
        one = both * torch.tensor([1, 0], device=self.device)
        return {
            "prompt_embeds": tokens,
            "prompt_attention_mask": one,
            "negative_prompt_embeds": tokens,
            "negative_prompt_attention_mask": both,
        }


class _Lumina2Binding(SingleStreamBinding):
    plain = ("Lumina2AttnProcessor2_0",)

    def install(self) -> None:
        super().install()
        self.model.rope_embedder.forward = self._sequence

    def close(self) -> None:
        vars(self.model.rope_embedder).pop("forward", None)
        super().close()

    def place(self, found: Texts, size: Size) -> Placed:
        standing = before_image(found.weights, found.present)
        later = standing.present.shape[2] - standing.ends[:, None, None]
        return replace(super().place(standing.of(found), size), places=standing.places + later)

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample, patch = kwargs["hidden_states"], int(model.config.patch_size)
        height, width = (side // patch for side in extent(sample))
        sides = self.told(int(kwargs["encoder_attention_mask"][0].sum()))
        contexts, _ = self.join(sample, (height, width), sides)
        seen = torch.ones(contexts.shape[:2], device=contexts.device, dtype=torch.long)
        return args, {**kwargs, "encoder_hidden_states": contexts, "encoder_attention_mask": seen}

    def _sequence(self, sample: Tensor, mask: Tensor) -> tuple[Any, ...]:
        """What the model's own embedder of places gives, in which the image stands behind one text as long as the
        longest; then all texts in the place of that."""
        embedder, placed = self.model.rope_embedder, self.placed
        assert placed is not None and placed.places is not None
        patches, _, of_image, *_ = type(embedder).forward(embedder, sample, mask[:, : self.tokens])
        of_texts = embedder._get_freqs_cis(F.pad(placed.places.flatten(1)[..., None], (0, 2)))
        rows, length = len(sample), self.length
        turns = torch.cat([of_texts, of_image], dim=1)
        return patches, of_texts, of_image, turns, [length] * rows, [length + of_image.shape[1]] * rows


class _SingleProcessor(BlendedAttnProcessor):
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        *args: Any,
        freqs_cis: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        # Layers of diffusers hand over what the signature names.
        turns = image_rotary_emb if freqs_cis is None else freqs_cis
        return super().__call__(attn, hidden_states, turns=turns)
