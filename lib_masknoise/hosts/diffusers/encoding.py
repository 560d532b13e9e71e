"""Prompts → what the text encoders make of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.hosts.diffusers.additions import clip_skip
from lib_masknoise.networks import without_tags

CHUNK_TOKENS = 75  # a text encoder's 77 positions less the begin and end tokens


def encode(pipe: DiffusionPipeline, prompts: Iterable[str]) -> dict[str, Encoded]:
    """Encode prompts of any length: each 75 tokens become a chunk with its own begin and end token, encoded alone and
    joined, so that a prompt of n chunks gives a context of 77·n tokens. Prompts of one chunk give what the pipeline's
    own `encode_prompt` gives. `<lora:…>` is no part of the text. The pooled embedding is that of the first chunk."""
    return {prompt: _encode(pipe, without_tags(prompt)) for prompt in dict.fromkeys(prompts)}


def _encode(pipe: DiffusionPipeline, prompt: str) -> Encoded:
    """One prompt through one text encoder (SD1, SD2) or two (SDXL), chunk by chunk."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        encoders = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
        encoders = [pair for pair in encoders if pair[1] is not None]  # the refiner has the second alone
    else:
        encoders = [(pipe.tokenizer, pipe.text_encoder)]
    # A textual inversion of several vectors is several tokens, of which the prompt names the first.
    chunked = [_chunks(tokenizer, pipe.maybe_convert_prompt(prompt, tokenizer)) for tokenizer, _ in encoders]
    count = max(map(len, chunked))
    contexts, pooled = [], None
    for (tokenizer, encoder), ids in zip(encoders, chunked, strict=True):
        ids = torch.cat([ids, _chunks(tokenizer, "").expand(count - len(ids), -1)])
        ids = ids.to(pipe._execution_device)  # not the encoder's own: offloaded, that has none
        with torch.no_grad():
            if isinstance(pipe, StableDiffusionXLPipeline):
                out = encoder(ids, output_hidden_states=True)
                context, pooled = out.hidden_states[-2], out[0][0].float().cpu()
            else:
                mask, skip = _attention_mask(tokenizer, encoder, ids), clip_skip(pipe)
                out = encoder(ids, attention_mask=mask, output_hidden_states=skip > 1)
                context = out[0] if skip == 1 else _final_norm(encoder)(out.hidden_states[-skip])
        contexts.append(context.flatten(0, 1).float().cpu())
    return Encoded(torch.cat(contexts, dim=-1), pooled)


def _final_norm(encoder: Any) -> torch.nn.Module:
    """Of the whole text encoder: with clip skip it is what follows the layer that is read."""
    return getattr(encoder, "text_model", encoder).final_layer_norm


def _chunks(tokenizer: Any, prompt: str) -> Tensor:
    """Token ids `[n, 77]`: the prompt in pieces of 75 tokens, each between a begin and an end token and padded."""
    length = tokenizer.model_max_length - 2
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    pieces = [ids[start : start + length] for start in range(0, max(len(ids), 1), length)]
    pad = tokenizer.pad_token_id
    rows = [
        [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id, *[pad] * (length - len(piece))] for piece in pieces
    ]
    return torch.tensor(rows)


def _attention_mask(tokenizer: Any, encoder: torch.nn.Module, ids: Tensor) -> Tensor | None:
    """Only some text encoders (Stable Diffusion 2's configs among them, where set) hide the padding."""
    if not getattr(encoder.config, "use_attention_mask", False):
        return None
    # Position of the first end token: the padding may be the same token, and what lies behind the end is padding.
    end = (ids == tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True)
    return (torch.arange(ids.shape[1], device=ids.device) <= end).long()
