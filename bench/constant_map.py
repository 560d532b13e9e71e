"""The constant-map oracle: how far what a transformer with changing texts predicts under blended texts is from what it
predicts for the blended context.

    python bench/constant_map.py [--pairs 12] [--models flux sd3 …] [--size 16] [--sharp 1 6] [--shares 0.5 …]

With a map that is a everywhere, every place is meant to see the blend `(1 − a)·A + a·B`, and plain evaluation of that
context is the truth. Compared with it, in the length of the difference over the distance between the two concepts'
predictions: the blend of the predictions, both texts side by side with their keys and values blended, level-set texts
with 1 to 3 blends between, and hard masks (the stronger concept everywhere). a runs from 0.05 to 0.95; contexts,
latent, time and weights are drawn anew for each pair. The means over a and the worst a; 95 % intervals are of the mean
over the pairs, by bootstrap. Reduced models with random weights: what the numbers say about a trained model is not
known. Trained attention is sharper than random one, so the queries' norms can be made larger (--sharp).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib_masknoise.conditioning import LocationConditioning  # noqa: E402
from lib_masknoise.hosts.diffusers.changing_text import (  # noqa: E402
    _Flux2Binding,
    _FluxBinding,
    _QwenBinding,
    _Sd3Binding,
)
from lib_masknoise.hosts.diffusers.single_stream import _Lumina2Binding, _ZImageBinding  # noqa: E402
from tests.model import random_pipelines  # noqa: E402

TOKENS, WIDTH = 32, 32
SHARES = [0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95]
METHODS = ("predictions", "side by side", "level sets, 1", "level sets, 2", "level sets, 3", "hard masks")


def flux(size: int) -> tuple[Any, type, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]:
    model = random_pipelines.flux_transformer(blocks=3)
    places = torch.zeros(size, size, 3)
    places[..., 1], places[..., 2] = torch.arange(size)[:, None], torch.arange(size)

    def call(x: Tensor, texts: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        return model(
            hidden_states=x,
            encoder_hidden_states=texts,
            pooled_projections=pooled,
            timestep=time,
            guidance=torch.tensor([3.5]),
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(texts.shape[1], 3),
            return_dict=False,
        )[0]

    return model, _FluxBinding, lambda seed, *given: call(_normal(seed, 1, size * size, 64), *given)


def sd3(size: int) -> tuple[Any, type, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]:
    model = random_pipelines.sd3_transformer(blocks=4)

    def call(x: Tensor, texts: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        return model(
            hidden_states=x,
            encoder_hidden_states=texts,
            pooled_projections=pooled,
            timestep=1000 * time,
            return_dict=False,
        )[0]

    return model, _Sd3Binding, lambda seed, *given: call(_normal(seed, 1, 16, 2 * size, 2 * size), *given)


def qwen(size: int) -> tuple[Any, type, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]:
    model = random_pipelines.qwen_transformer(blocks=4)

    def call(x: Tensor, texts: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        return model(
            hidden_states=x,
            encoder_hidden_states=texts,
            timestep=time,
            img_shapes=[[(1, size, size)]],
            return_dict=False,
        )[0]

    return model, _QwenBinding, lambda seed, *given: call(_normal(seed, 1, size * size, 64), *given)


def flux2(size: int, guided: bool = True) -> tuple[Any, type, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]:
    model = random_pipelines.flux2_transformer(blocks=3, text=WIDTH, guidance_embeds=guided)
    places = torch.zeros(size, size, 4)
    places[..., 1], places[..., 2] = torch.arange(size)[:, None], torch.arange(size)

    def call(x: Tensor, texts: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        of_text = torch.zeros(texts.shape[1], 4)
        of_text[:, 3] = torch.arange(len(of_text))
        return model(
            hidden_states=x,
            encoder_hidden_states=texts,
            timestep=time,
            guidance=torch.tensor([3.5]) if guided else None,
            img_ids=places.flatten(0, 1),
            txt_ids=of_text,
            return_dict=False,
        )[0]

    return model, _Flux2Binding, lambda seed, *given: call(_normal(seed, 1, size * size, 64), *given)


def zimage(size: int) -> tuple[Any, type, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]:
    model = random_pipelines.zimage_transformer(blocks=4)

    def call(x: Tensor, texts: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        return torch.stack(model(list(x), time, list(texts), return_dict=False)[0])

    return model, _ZImageBinding, lambda seed, *given: call(_normal(seed, 1, 16, 1, 2 * size, 2 * size), *given)


def lumina2(size: int) -> tuple[Any, type, Callable[[Any, Tensor, Tensor, Tensor], Tensor]]:
    model = random_pipelines.lumina2_transformer(blocks=4)

    def call(x: Tensor, texts: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        seen = torch.ones(texts.shape[:2], dtype=torch.long)
        return model(
            hidden_states=x,
            encoder_hidden_states=texts,
            timestep=time,
            encoder_attention_mask=seen,
            return_dict=False,
        )[0]

    return model, _Lumina2Binding, lambda seed, *given: call(_normal(seed, 1, 16, 2 * size, 2 * size), *given)


MODELS = {
    "flux": flux,
    "sd3": sd3,
    "qwen": qwen,
    "flux2": flux2,
    "klein": lambda size: flux2(size, guided=False),
    "zimage": zimage,
    "lumina2": lumina2,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--size", type=int, default=16, help="image tokens a side")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--sharp", type=float, nargs="+", default=[1.0], help="factors of the logits")
    options = parser.parse_args()
    print("| model | logits × | method | mean over a (95 %) | worst a (95 %) |\n|---|---|---|---|---|")
    for name, sharp in itertools.product(options.models, options.sharp):
        found = torch.stack(
            [_errors(MODELS[name], seed, options.size, sharp, options.shares) for seed in range(options.pairs)]
        )
        for i, method in enumerate(METHODS):
            mean, worst = (_interval(t) for t in (found[:, i].mean(1), found[:, i].amax(1)))
            print(f"| {name} | {sharp:g} | {method} | {mean} | {worst} |", flush=True)


def _errors(make: Callable[..., Any], seed: int, size: int, sharp: float, shares: list[float]) -> Tensor:
    """`[methods, shares]` of one pair."""
    torch.manual_seed(seed)
    model, binding, call = make(size)
    for name, parameter in model.named_parameters():
        if "norm_q" in name or "norm_added_q" in name:
            parameter.mul_(sharp)
    contexts, pooled = _normal(seed + 1000, 2, TOKENS, WIDTH), _normal(seed + 2000, 2, WIDTH)
    time = 0.1 + 0.8 * torch.rand(1)

    def plain(share: float) -> Tensor:
        text, vector = (torch.lerp(t[0], t[1], share)[None] for t in (contexts, pooled))
        return call(seed, text, vector, time)

    def joined(share: float, knots: int) -> Tensor:
        a = torch.tensor([1 - share, share]).view(1, 2, 1, 1).expand(-1, -1, size, size)
        vector = torch.lerp(pooled[0], pooled[1], share)[None]
        c = LocationConditioning(contexts, (TOKENS, TOKENS), a, pooled=vector)
        kind = type("Kind", (binding,), {"knots": knots})
        bound = kind(model, c, None, None, (0.0, 1.0))
        try:
            bound.install()
            return call(seed, contexts[:1, :1], vector, time)
        finally:
            bound.close()

    first, second = plain(0.0), plain(1.0)
    distance = (first - second).norm()
    errors = []
    for share in shares:
        truth = plain(share)
        found = [torch.lerp(first, second, share), *(joined(share, knots) for knots in range(4))]
        errors.append([float((one - truth).norm() / distance) for one in (*found, second if share > 0.5 else first)])
    return torch.tensor(errors).T


def _interval(values: Tensor) -> str:
    drawn = torch.randint(len(values), (4000, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(values[drawn].mean(1), torch.tensor([0.025, 0.975])).tolist()
    return f"{100 * values.mean():.1f} % ({low * 100:.1f} to {high * 100:.1f})"


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    main()
