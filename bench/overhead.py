"""What a full scene costs: one U-Net step with 4 concepts and all three noises against the plain step.

    python bench/overhead.py [--sizes 256 512] [--device cuda] [--dtype float16] [--rounds 5]

An SD1.5-size U-Net with random weights, guidance on (two rows); once with shapes, once with painted masks. The two
sides alternate in one process; time is the process's CPU seconds on a CPU and wall time on an accelerator. "Pass" adds
everything a sampling pass needs besides its steps (masks, fields, projections) and spreads it over 20 steps. Memory is
the peak of a process of its own for each side. The last row of a size has a base of 150 tokens and a negative prompt of
75: a host that needs rows of equal length calls the U-Net twice there.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import painted  # noqa: E402
from lib_masknoise.conditioning import Encoded, condition, condition_negative  # noqa: E402
from lib_masknoise.hosts.diffusers import bind  # noqa: E402
from lib_masknoise.maps import Maps, strokes  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

STEPS = 20
MOVING: dict[str, Any] = {
    "noise": {"visual": {"strength": 0.5}, "concept": {"strength": 0.5}, "feature": {"strength": 0.5}},
    "motion": {"kind": "circle"},
}
SHAPES = {
    "concepts": [
        {"prompt": "a", "mask": {"kind": "split", "axis": "x", "from": 0.0, "to": 0.3, "feather": 0.2}},
        {"prompt": "b", "mask": {"kind": "split", "axis": "x", "from": 0.7, "to": 1.0, "feather": 0.2}},
        {
            "prompt": "c",
            "mask": {"kind": "ellipse", "x": 0.5, "y": 0.3, "rx": 0.2, "ry": 0.2, "feather": 0.2},
        },
        {"prompt": "d", "mask": {"kind": "rect", "left": 0.3, "top": 0.7, "right": 0.7, "feather": 0.1}},
    ],
    **MOVING,
}
SCENES = {"shapes": SHAPES, "painted": painted.scene(**MOVING)}
"""Four concepts each: shapes, which cost next to nothing to draw, and masks of 20 strokes."""


def main() -> None:
    options = _options()
    if options.peak:
        return _report_peak(options)
    device, dtype = options.device, getattr(torch, options.dtype)
    print(f"torch {torch.__version__}, {device}, {options.dtype}, {torch.get_num_threads()} threads")
    print("| size | plain step s | step ratio | 20-step pass ratio | peak memory ratio |\n|---|---|---|---|---|")
    unet = _unet(device, dtype)
    for size in options.sizes:
        peaks = {side: _peak(options, size, side) for side in ("plain", "blended")}
        for name, scene in SCENES.items():
            plain, blended, setup = _times(unet, scene, size, options.rounds, device, dtype)
            print(
                f"| {size}², {name} | {plain:.3f} | {blended / plain:.3f} "
                f"| {(setup + STEPS * blended) / (STEPS * plain):.3f} | {peaks['blended'] / peaks['plain']:.3f} |",
                flush=True,
            )
        unequal = _unequal_lengths(unet, size, options.rounds, device, dtype)
        print(
            f"| {size}², 150 tokens against 75 | {unequal[0]:.3f} | {unequal[1] / unequal[0]:.3f} | | |",
            flush=True,
        )


def _times(unet, scene, size, rounds, device, dtype) -> tuple[float, float, float]:
    """Median seconds of a plain step and of a blended step, and what a pass needs besides."""
    sample, step = _sample(size, device, dtype)
    context = torch.randn(2, 77, 768, device=device, dtype=dtype)
    clock = _clock(device)
    unet(sample, step, context)  # what the first call of a process needs besides is nobody's
    strokes._memory.clear()
    start = clock()
    sides = _Sides(unet, scene, size // 8)
    with sides.stack:
        unet(sample, step, context)
        first = clock() - start
        plain, blended = [], []
        for _ in range(rounds):
            blended.append(_timed(clock, lambda: unet(sample, step, context)))
            with sides.unbound():
                plain.append(_timed(clock, lambda: unet(sample, step, context)))
    return statistics.median(plain), statistics.median(blended), first - statistics.median(blended)


def _unequal_lengths(unet, size, rounds, device, dtype) -> tuple[float, float]:
    """The host's two calls, one for each length, against one call in which every row has its own length."""
    sample, step = _sample(size, device, dtype)
    long, short = (torch.randn(1, n, 768, device=device, dtype=dtype) for n in (154, 77))
    clock = _clock(device)
    one, two = [], []

    def two_calls() -> None:
        unet(sample[:1], step, long)
        unet(sample[:1], step, short)

    sides = _Sides(unet, SHAPES, size // 8, base_tokens=154)
    with sides.stack:
        unet(sample, step, short.expand(2, -1, -1))
        for _ in range(rounds):
            one.append(_timed(clock, lambda: unet(sample, step, short.expand(2, -1, -1))))
            with sides.unbound():
                two.append(_timed(clock, two_calls))
    return statistics.median(two), statistics.median(one)


def _bound(unet, scene: dict[str, Any], latent: int, base_tokens: int = 77):
    generator = torch.Generator().manual_seed(0)
    lengths = (base_tokens, 77, 77, 77, 77, 77)
    base, *concepts, other = (Encoded(torch.randn(n, 768, generator=generator)) for n in lengths)
    maps = Maps(Scene.parse(scene), (latent, latent))
    positive = condition(maps, base, dict(zip("abcd", concepts, strict=True)))
    negative = condition_negative(maps, other, {})
    return bind(unet, positive, negative)


class _Sides:
    """One U-Net, bound or as it was: changing sides costs a few assignments."""

    def __init__(self, unet: UNet2DConditionModel, scene: dict[str, Any], latent: int, base_tokens: int = 77):
        self.unet, self.plain = unet, dict(unet.attn_processors)
        self.stack = ExitStack()
        self.stack.enter_context(_bound(unet, scene, latent, base_tokens))
        self.bound, self.hooks = dict(unet.attn_processors), dict(unet._forward_pre_hooks)

    @contextmanager
    def unbound(self) -> Iterator[None]:
        self.unet.set_attn_processor(dict(self.plain))
        self.unet._forward_pre_hooks.clear()
        yield
        self.unet.set_attn_processor(dict(self.bound))
        self.unet._forward_pre_hooks.update(self.hooks)


def _unet(device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return unet.to(device, dtype).eval()


def _sample(size: int, device: str, dtype: torch.dtype):
    return torch.randn(2, 4, size // 8, size // 8, device=device, dtype=dtype), torch.tensor(500, device=device)


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return wall


def _timed(clock: Callable[[], float], call: Callable[[], object]) -> float:
    start = clock()
    call()
    return clock() - start


def _peak(options: argparse.Namespace, size: int, side: str) -> int:
    """Bytes at the peak of a process that does two steps of one side and nothing else."""
    command = [sys.executable, __file__, "--peak", side, "--sizes", str(size)]
    command += ["--device", options.device, "--dtype", options.dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _report_peak(options: argparse.Namespace) -> None:
    device, dtype, size = options.device, getattr(torch, options.dtype), options.sizes[0]
    unet = _unet(device, dtype)
    sample, step = _sample(size, device, dtype)
    context = torch.randn(2, 77, 768, device=device, dtype=dtype)
    sides = _Sides(unet, SHAPES, size // 8)
    with sides.stack:
        for _ in range(2):
            if options.peak == "blended":
                unet(sample, step, context)
            else:
                with sides.unbound():
                    unet(sample, step, context)
    if device == "cpu":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    else:
        print(torch.cuda.max_memory_allocated())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=("plain", "blended"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
