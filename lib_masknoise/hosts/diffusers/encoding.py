"""Prompts → what the text encoders make of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from lib_masknoise.conditioning import Encoded
from lib_masknoise.hosts.diffusers.additions import clip_skip
from lib_masknoise.networks import without_tags
from lib_masknoise.prompt_syntax import Piece, pieces, without_comments

CHUNK_TOKENS = 75  # a text encoder's 77 positions less the begin and end tokens
COMMA_REACH = 20
"""Tokens behind a comma that move to the next chunk rather than be cut apart: the WebUIs' default."""


def encode(pipe: DiffusionPipeline, prompts: Iterable[str]) -> dict[str, Encoded]:
    """Encode prompts of any length, written as for the WebUIs (`prompt_syntax`), to what A1111 makes of them with its
    settings as they come.

    Each 75 tokens, or what is left of them behind a comma near their end, become a chunk with its own begin and end
    token, encoded alone and joined, so that a prompt of n chunks gives a context of 77·n tokens. Prompts of one chunk
    without emphasis give what the pipeline's own `encode_prompt` gives. The pooled embedding is that of the first
    chunk. `<lora:…>` is no part of the text. Raises ValueError for what only the WebUIs can do.
    """
    return {prompt: _encode(pipe, without_tags(prompt)) for prompt in dict.fromkeys(prompts)}


def _encode(pipe: DiffusionPipeline, prompt: str) -> Encoded:
    """One prompt through one text encoder (SD1, SD2) or two (SDXL), chunk by chunk."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        encoders = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
        encoders = [pair for pair in encoders if pair[1] is not None]  # the refiner has the second alone
    else:
        encoders = [(pipe.tokenizer, pipe.text_encoder)]
    found = pieces(without_comments(prompt))
    chunked = [_chunks(pipe, tokenizer, found) for tokenizer, _ in encoders]
    count = max(len(ids) for ids, _ in chunked)
    contexts, pooled = [], None
    for (tokenizer, encoder), (ids, weights) in zip(encoders, chunked, strict=True):
        empty, ones = _chunks(pipe, tokenizer, [Piece("")])
        missing = count - len(ids)
        ids, weights = torch.cat([ids, empty.expand(missing, -1)]), torch.cat([weights, ones.expand(missing, -1)])
        ids = ids.to(pipe._execution_device)  # not the encoder's own: offloaded, that has none
        with torch.no_grad():
            if isinstance(pipe, StableDiffusionXLPipeline):
                out = encoder(ids, output_hidden_states=True)
                context, pooled = out.hidden_states[-2], out[0][0].float().cpu()
            else:
                mask, skip = _attention_mask(tokenizer, encoder, ids), clip_skip(pipe)
                out = encoder(ids, attention_mask=mask, output_hidden_states=skip > 1)
                context = out[0] if skip == 1 else _final_norm(encoder)(out.hidden_states[-skip])
        contexts.append(_emphasised(context.float().cpu(), weights).flatten(0, 1))
    return Encoded(torch.cat(contexts, dim=-1), pooled)


def _emphasised(contexts: Tensor, weights: Tensor) -> Tensor:
    """Each token's context times its weight, and each chunk brought back to its mean: `[n, T, D]`, `[n, T]` → the same
    as the first. A1111's emphasis mode "Original"."""
    changed = (weights != 1).any(dim=1)
    weighed = contexts[changed] * weights[changed, :, None]
    means = [chunks.mean(dim=(1, 2), keepdim=True) for chunks in (contexts[changed], weighed)]
    contexts = contexts.clone()
    contexts[changed] = weighed * (means[0] / means[1])
    return contexts


def _final_norm(encoder: Any) -> torch.nn.Module:
    """Of the whole text encoder: with clip skip it is what follows the layer that is read."""
    return getattr(encoder, "text_model", encoder).final_layer_norm


def _chunks(pipe: DiffusionPipeline, tokenizer: Any, found: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """Token ids and weights, each `[n, 77]`: the prompt in chunks of at most 75 tokens, each between a begin and an end
    token and padded."""
    length = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks: list[list[tuple[int, float]]] = [[]]
    last_comma: int | None = None
    for piece in found:
        if piece.starts:
            chunks.append([])
            last_comma = None
            continue
        # A textual inversion of several vectors is several tokens, of which the prompt names the first.
        text = pipe.maybe_convert_prompt(piece.text, tokenizer)
        for token in tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids:
            chunk = chunks[-1]
            if token == comma:
                last_comma = len(chunk)
            elif len(chunk) == length and last_comma is not None and length - last_comma <= COMMA_REACH:
                chunks[-1:] = [chunk[: last_comma + 1], chunk[last_comma + 1 :]]
                last_comma = None
            if len(chunks[-1]) == length:
                chunks.append([])
                last_comma = None
            chunks[-1].append((token, piece.weight))
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()  # a BREAK at the end begins nothing
    ids, weights = [], []
    for chunk in chunks:
        missing = length - len(chunk)
        padding = [tokenizer.pad_token_id] * missing
        ids.append([tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id, *padding])
        weights.append([1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * missing])
    return torch.tensor(ids), torch.tensor(weights)


def _attention_mask(tokenizer: Any, encoder: torch.nn.Module, ids: Tensor) -> Tensor | None:
    """Only some text encoders (Stable Diffusion 2's configs among them, where set) hide the padding."""
    if not getattr(encoder.config, "use_attention_mask", False):
        return None
    # Position of the first end token: the padding may be the same token, and what lies behind the end is padding.
    end = (ids == tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True)
    return (torch.arange(ids.shape[1], device=ids.device) <= end).long()
