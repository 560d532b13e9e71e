"""Prompts → what the text encoders make of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from lib_masknoise.conditioning import Encoded

CHUNK_TOKENS = 75  # a text encoder's 77 positions less the begin and end tokens


def encode(pipe: DiffusionPipeline, prompts: Iterable[str]) -> dict[str, Encoded]:
    """Encode prompts of any length: each 75 tokens become a chunk with its own begin and end token, encoded alone and
    joined, so that a prompt of n chunks gives a context of 77·n tokens. Prompts of one chunk give what the pipeline's
    own `encode_prompt` gives. The pooled embedding is that of the first chunk."""
    return {prompt: _encode(pipe, prompt) for prompt in dict.fromkeys(prompts)}


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
                context = encoder(ids, attention_mask=_attention_mask(tokenizer, encoder, ids))[0]
        contexts.append(context.flatten(0, 1).float().cpu())
    return Encoded(torch.cat(contexts, dim=-1), pooled)


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
