"""What several texts cost in transformers in which text and image change together: a step with 4 concepts against the
plain step.

    python bench/changing_text.py [--size 1024] [--rounds 3] [--width 256] [--tokens 512 128] [--knots 0 1]
        [--models flux sd3 …]

Random weights, one block of each kind of a reduced width, one row without guidance, at the image tokens of a picture
of that size. Four concepts side by side cover the picture, each meets the next. Plain and blended alternate in one
process; time is the process's CPU seconds; printed are the tokens, the median ratio of the pairs with its range, and
the load of the machine. The wider a model, the less the attention counts beside the layers, whose cost grows as the
tokens do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib_masknoise.conditioning import Encoded, condition  # noqa: E402
from lib_masknoise.hosts.diffusers.changing_text import (  # noqa: E402
    _Flux2Binding,
    _FluxBinding,
    _QwenBinding,
    _Sd3Binding,
)
from lib_masknoise.hosts.diffusers.single_stream import _Lumina2Binding, _ZImageBinding  # noqa: E402
from lib_masknoise.maps import Maps  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

TEXT, POOLED = 512, 256
SCENE = {
    "concepts": [
        {"prompt": name, "mask": {"kind": "split", "axis": "x", "from": i / 4, "to": (i + 1) / 4, "feather": 0.1}}
        for i, name in enumerate("abcd")
    ]
}


def flux(size: int, width: int) -> tuple[Any, type, Callable[[Tensor, Tensor], Any]]:
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=128, num_attention_heads=width // 128,
        joint_attention_dim=TEXT, pooled_projection_dim=POOLED, guidance_embeds=True,
    )  # fmt: skip
    places = torch.zeros(size // 16, size // 16, 3)
    places[..., 1], places[..., 2] = torch.arange(size // 16)[:, None], torch.arange(size // 16)
    x = torch.randn(1, (size // 16) ** 2, 64)

    def call(texts: Tensor, pooled: Tensor) -> Any:
        return model(
            hidden_states=x, encoder_hidden_states=texts, pooled_projections=pooled, timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]), img_ids=places.flatten(0, 1), txt_ids=torch.zeros(texts.shape[1], 3),
        )  # fmt: skip

    return model, _FluxBinding, call


def sd3(size: int, width: int) -> tuple[Any, type, Callable[[Tensor, Tensor], Any]]:
    model = SD3Transformer2DModel(
        sample_size=size // 8, num_layers=3, attention_head_dim=64, num_attention_heads=width // 64,
        joint_attention_dim=TEXT, caption_projection_dim=width, pooled_projection_dim=POOLED,
        pos_embed_max_size=size // 16, qk_norm="rms_norm",
    )  # fmt: skip
    x = torch.randn(1, 16, size // 8, size // 8)

    def call(texts: Tensor, pooled: Tensor) -> Any:
        return model(
            hidden_states=x, encoder_hidden_states=texts, pooled_projections=pooled, timestep=torch.tensor([500.0])
        )

    return model, _Sd3Binding, call


def qwen(size: int, width: int) -> tuple[Any, type, Callable[[Tensor, Tensor], Any]]:
    model = QwenImageTransformer2DModel(
        num_layers=3, attention_head_dim=128, num_attention_heads=width // 128, joint_attention_dim=TEXT
    )
    x = torch.randn(1, (size // 16) ** 2, 64)

    def call(texts: Tensor, pooled: Tensor) -> Any:
        return model(
            hidden_states=x, encoder_hidden_states=texts, timestep=torch.tensor([0.5]),
            img_shapes=[[(1, size // 16, size // 16)]],
        )  # fmt: skip

    return model, _QwenBinding, call


def flux2(size: int, width: int, guided: bool = True) -> tuple[Any, type, Callable[[Tensor, Tensor], Any]]:
    model = Flux2Transformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=128, num_attention_heads=width // 128,
        joint_attention_dim=TEXT, guidance_embeds=guided,
    )  # fmt: skip
    places = torch.zeros(size // 16, size // 16, 4)
    places[..., 1], places[..., 2] = torch.arange(size // 16)[:, None], torch.arange(size // 16)
    x = torch.randn(1, (size // 16) ** 2, 64)

    def call(texts: Tensor, pooled: Tensor) -> Any:
        of_text = torch.zeros(texts.shape[1], 4)
        of_text[:, 3] = torch.arange(len(of_text))
        return model(
            hidden_states=x, encoder_hidden_states=texts, timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]) if guided else None, img_ids=places.flatten(0, 1), txt_ids=of_text,
        )  # fmt: skip

    return model, _Flux2Binding, call


def zimage(size: int, width: int) -> tuple[Any, type, Callable[[Tensor, Tensor], Any]]:
    model = ZImageTransformer2DModel(
        dim=width, n_layers=3, n_refiner_layers=1, n_heads=width // 128, n_kv_heads=width // 128, cap_feat_dim=TEXT
    )
    x = [torch.randn(16, 1, size // 8, size // 8)]
    return model, _ZImageBinding, lambda texts, pooled: model(x, torch.tensor([0.5]), list(texts))


def lumina2(size: int, width: int) -> tuple[Any, type, Callable[[Tensor, Tensor], Any]]:
    """Heads of 96, three to a head of keys, as published: the next width that has those."""
    groups = -(-width // 288)
    model = Lumina2Transformer2DModel(
        sample_size=size // 8, hidden_size=288 * groups, num_layers=3, num_refiner_layers=1,
        num_attention_heads=3 * groups, num_kv_heads=groups, cap_feat_dim=TEXT, axes_lens=(600, 512, 512),
    )  # fmt: skip
    x = torch.randn(1, 16, size // 8, size // 8)

    def call(texts: Tensor, pooled: Tensor) -> Any:
        return model(
            hidden_states=x, encoder_hidden_states=texts, timestep=torch.tensor([0.5]),
            encoder_attention_mask=torch.ones(texts.shape[:2], dtype=torch.long),
        )  # fmt: skip

    return model, _Lumina2Binding, call


MODELS = {
    "flux": flux,
    "sd3": sd3,
    "qwen": qwen,
    "flux2": flux2,
    "klein": lambda size, width: flux2(size, width, guided=False),
    "zimage": zimage,
    "lumina2": lumina2,
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("size", 1024), ("rounds", 3), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--knots", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print("| model | text tokens | blends a pair | texts | tokens in all | plain s | ratio (range) |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        model, binding, call = MODELS[name](options.size, options.width)
        for tokens in options.tokens:
            encoded = [Encoded(torch.randn(tokens, TEXT), torch.randn(POOLED)) for _ in range(5)]
            maps = Maps(Scene.parse(SCENE), (options.size // 8, options.size // 8))
            c = condition(maps, encoded[0], dict(zip("abcd", encoded[1:], strict=True)))
            for knots in options.knots:
                bound = type("Kind", (binding,), {"knots": knots})(model, c, None, None, (0.0, 1.0))
                count = bound._texts[id(c)].contexts.shape[1]
                plain, ratios = _measure(call, encoded[0], bound, options.rounds)
                places = (options.size // 16) ** 2
                print(
                    f"| {name} | {tokens} | {knots} | {count} | {places + count * tokens} for {places + tokens} "
                    f"| {plain:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
                    flush=True,
                )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def _measure(
    call: Callable[[Tensor, Tensor], Any], base: Encoded, bound: Any, rounds: int
) -> tuple[float, list[float]]:
    """Seconds of a plain step and the ratios of pairs of steps; the first pair warms up."""
    times, ratios = [], []
    for i in range(rounds + 1):
        plain = _seconds(lambda: call(base.context[None], base.pooled[None]))  # type: ignore[index]
        bound.install()
        blended = _seconds(lambda: call(base.context[None, :1], base.pooled[None]))  # type: ignore[index]
        bound.close()
        if i:
            times.append(plain)
            ratios.append(blended / plain)
    return statistics.median(times), ratios


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
