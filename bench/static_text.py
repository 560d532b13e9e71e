"""What exact blending costs in transformers whose text does not change: a step of Wan 2 and PRX with 4 concepts against
the plain step.

    python bench/static_text.py [--size 512] [--rounds 7] [--width 768] [--blocks 4]

Random weights, blocks of a reduced width and number, one row without guidance. Plain and blended alternate in one
process; time is the process's CPU seconds; printed are the median ratio of the pairs, their quartiles, and the load of
the machine. The contexts are projected before the first step that counts, as a pass of 20 steps does once; "pass" adds
that and spreads it. Wan fills every text up to 512 tokens; the concepts have 40 tokens of their own there and in PRX.
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
from diffusers import PRXTransformer2DModel, WanTransformer3DModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib_masknoise.conditioning import Encoded, condition, unblended  # noqa: E402
from lib_masknoise.hosts.diffusers.static_text import WAN_TOKENS, _PrxBinding, _WanBinding  # noqa: E402
from lib_masknoise.maps import Maps  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

TOKENS, TEXT, STEPS = 40, 2048, 20
CONCEPTS = [
    {"prompt": "a", "mask": {"kind": "split", "axis": "x", "from": 0.0, "to": 0.3, "feather": 0.2}},
    {"prompt": "b", "mask": {"kind": "split", "axis": "x", "from": 0.7, "to": 1.0, "feather": 0.2}},
    {"prompt": "c", "mask": {"kind": "ellipse", "x": 0.5, "y": 0.3, "rx": 0.2, "ry": 0.2, "feather": 0.2}},
    {"prompt": "d", "mask": {"kind": "rect", "left": 0.3, "top": 0.7, "right": 0.7, "feather": 0.1}},
]
NOISES = {"concept": {"strength": 0.5}, "feature": {"strength": 0.5}}
SCENES = {"4 concepts": {"concepts": CONCEPTS}, "4 concepts, noises": {"concepts": CONCEPTS, "noise": NOISES}}


class Wan:
    """The 1.3 B's proportions: a feed-forward of 5.8 widths, heads of 128."""

    binding = _WanBinding

    def __init__(self, width: int, blocks: int) -> None:
        self.model = WanTransformer3DModel(
            num_attention_heads=width // 128,
            attention_head_dim=128,
            text_dim=TEXT,
            ffn_dim=int(5.8 * width),
            num_layers=blocks,
        ).eval()
        embedder = self.model.condition_embedder.text_embedder
        self.texts = torch.randn(1 + len(CONCEPTS), TOKENS, TEXT)
        rows = torch.cat([self.texts, torch.zeros(len(self.texts), 1, TEXT)], dim=1)
        self.encoded = [Encoded(one[:-1], filler=one[-1], full=WAN_TOKENS) for one in embedder(rows)]

    def plain(self, size: int) -> Any:
        filled = torch.nn.functional.pad(self.texts[:1], (0, 0, 0, WAN_TOKENS - TOKENS))
        return self.call(size, filled)

    def blended(self, size: int) -> Any:
        return self.call(size, torch.zeros(1, 1, TEXT))

    def call(self, size: int, texts: torch.Tensor) -> Any:
        x = torch.randn(1, 16, 1, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
        return self.model(hidden_states=x, timestep=torch.tensor([500.0]), encoder_hidden_states=texts)


class Prx:
    """The published proportions: a feed-forward of 3.5 widths, heads of 64."""

    binding = _PrxBinding

    def __init__(self, width: int, blocks: int) -> None:
        self.model = PRXTransformer2DModel(
            context_in_dim=TEXT, hidden_size=width, num_heads=width // 64, depth=blocks
        ).eval()
        self.encoded = [Encoded(torch.randn(TOKENS, TEXT)) for _ in range(1 + len(CONCEPTS))]

    def plain(self, size: int) -> Any:
        # The pipeline fills the text up to the tokenizer's 256 tokens and hides what it has added.
        filled = torch.nn.functional.pad(self.encoded[0].context, (0, 0, 0, 256 - TOKENS))[None]
        return self.call(size, filled, torch.arange(256)[None] < TOKENS)

    def blended(self, size: int) -> Any:
        return self.call(size, torch.zeros(1, 1, TEXT), None)

    def call(self, size: int, texts: torch.Tensor, mask: torch.Tensor | None) -> Any:
        x = torch.randn(1, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
        return self.model(
            hidden_states=x, timestep=torch.tensor([0.5]), encoder_hidden_states=texts, attention_mask=mask
        )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("size", 512), ("rounds", 7), ("width", 768), ("blocks", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print("| model | scene | plain step s | step ratio (quartiles) | 20-step pass ratio |\n|---|---|---|---|---|")
    for kind in (Wan, Prx):
        network = kind(options.width, options.blocks)
        for name, data in SCENES.items():
            plain, ratios, setup = _measure(network, Scene.parse(data), options.size, options.rounds)
            low, middle, high = statistics.quantiles(ratios, n=4)
            whole = middle + setup / (STEPS * plain)
            print(f"| {kind.__name__} | {name} | {plain:.3f} | {middle:.3f} ({low:.3f} to {high:.3f}) | {whole:.3f} |")
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def _measure(network: Any, scene: Scene, size: int, rounds: int) -> tuple[float, list[float], float]:
    """Seconds of a plain step, the ratios of pairs of steps, and what a pass needs once beyond a step."""
    base, *concepts = network.encoded
    known = dict(zip("abcd", concepts, strict=True))
    maps = Maps(scene, (size // 8, size // 8))
    plain_times, ratios = [], []
    first = 0.0
    conditioning = condition(maps, base, known)
    binding = network.binding(network.model, conditioning, None, (unblended(base), None), (0.0, 1.0))
    for i in range(rounds + 1):
        plain = _seconds(lambda: network.plain(size))
        binding.install()
        blended = _seconds(lambda: network.blended(size))
        _uninstall(binding)
        if i == 0:  # projects; a first call of either is slower besides
            first = blended
            continue
        plain_times.append(plain)
        ratios.append(blended / plain)
    binding.close()
    plain = statistics.median(plain_times)
    return plain, ratios, max(0.0, first - plain * statistics.median(ratios))


def _uninstall(binding: Any) -> None:
    """Without forgetting what is projected."""
    binding._hook.remove()
    for layer, processor in binding._processors.items():
        layer.set_processor(processor)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
