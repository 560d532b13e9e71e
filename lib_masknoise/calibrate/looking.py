"""Where the self-attention of a U-Net looks, whatever computes it: its queries and keys are heard as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LAYERS = 4
"""As many of the coarsest layers are listened to: they say what belongs to what."""


@contextmanager
def looks(unet: torch.nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Listen to the U-Net until the block ends. What it gives says, after a call, how much of the attention each place
    gets on average, `[rows, maps, places]`, float32 on the CPU; the maps are the coarsest layers, and add up to 1.

    Works wherever self-attention layers are called `attn1` and have `to_q`, `to_k` and a number of heads.
    """
    heard: dict[tuple[str, str], Tensor] = {}
    heads: dict[str, int] = {}
    hooks: list[Any] = []

    def listen(name: str, which: str, projection: torch.nn.Module) -> None:
        def hear(module: Any, args: Any, out: Tensor) -> None:
            heard[name, which] = out.detach()

        hooks.append(projection.register_forward_hook(hear))

    def result() -> Tensor:
        places = {name: heard[name, "q"].shape[1] for name in heads if (name, "q") in heard}
        fewest = min(places.values())
        coarsest = [name for name, count in places.items() if count == fewest][:LAYERS]
        return torch.stack([_received(heard[n, "q"], heard[n, "k"], heads[n]) for n in coarsest], dim=1)

    try:
        for name, module in unet.named_modules():
            if name.endswith("attn1") and hasattr(module, "to_q") and hasattr(module, "heads"):
                heads[name] = int(module.heads)
                listen(name, "q", module.to_q)
                listen(name, "k", module.to_k)
        yield result
    finally:
        for hook in hooks:
            hook.remove()


def _received(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """The mean over heads and queries of the attention: `[rows, L, heads·d]` each → `[rows, L]`."""
    q, k = (t.float().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return logits.softmax(-1).mean((1, 2)).cpu()
