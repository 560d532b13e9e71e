"""Blended cross-attention: formulations against each other, and against the materialised computation.

    python bench/attention.py [--device cuda] [--dtype float16] [--rounds 15]

Each round times every side once, in turn, in CPU seconds on a CPU and wall time on an accelerator; the figures are
medians over the rounds and ratios to plain attention of the same shape, so a machine whose speed drifts does not favour
a side. Then 8 stills with concept noise against 8 without: the least of the rounds, as other work only ever adds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise import attention
from lib_masknoise.attention import AttentionPass, Basis, Row, blended_attention, shares
from lib_masknoise.conditioning import Encoded, Level, LocationConditioning, condition
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene

TOKENS, DIM = 77, 768
STILLS, RANK = 8, 8
# heads, locations, head width: the four levels of an SD1.5 U-Net at 512²
LEVELS = ((8, 4096, 40), (8, 1024, 80), (8, 256, 160), (8, 64, 160))
LAYERS = (5, 5, 5, 1)


def main() -> None:
    options = _options()
    torch.manual_seed(0)
    dtype, device = getattr(torch, options.dtype), options.device
    print(f"torch {torch.__version__}, {device}, {options.dtype}, {torch.get_num_threads()} threads")
    print("\n| heads × locations × width | J | R | plain ms | form | ms | × plain |\n|---|---|---|---|---|---|---|")
    for heads, locations, d in LEVELS:
        for count, rank in ((2, 0), (5, 0), (5, 8)):
            q = torch.randn(1, locations, heads * d, device=device, dtype=dtype)
            basis, level = _problem(heads, locations, d, count, rank, device, dtype)
            sides = {
                "plain": lambda q=q, b=basis: _plain(q, b),
                "explicit, chunked": lambda q=q, b=basis, s=level: _form(q, b, s, fused=False),
                "stacked SDPA": lambda q=q, b=basis, s=level: _form(q, b, s, fused=True),
                "sum of logits per basis": lambda q=q, b=basis, s=level: per_basis(q, b, s),
            }
            seconds = _medians(sides, options.rounds, device)
            for name in list(sides)[1:]:
                print(
                    f"| {heads} × {locations} × {d} | {count} | {rank} | {seconds['plain'] * 1e3:.2f} "
                    f"| {name} | {seconds[name] * 1e3:.2f} | {seconds[name] / seconds['plain']:.2f} |"
                )
    _against_materialised(options, device, dtype)
    _stills(options, device, dtype)


def _against_materialised(options: argparse.Namespace, device: str, dtype: torch.dtype) -> None:
    heads, locations, d, count = 8, 1024, 80, 4
    contexts = torch.randn(count, TOKENS, DIM, device=device, dtype=dtype)
    w_k, w_v = (torch.randn(heads * d, DIM, device=device, dtype=dtype) / DIM**0.5 for _ in range(2))
    a = torch.rand(1, locations, count, device=device, dtype=dtype).softmax(-1)
    q = torch.randn(1, locations, heads * d, device=device, dtype=dtype)
    level = Level(a)

    def ours() -> Tensor:
        sides = ((contexts @ w.T).unflatten(-1, (heads, d)).permute(2, 1, 0, 3).flatten(2) for w in (w_k, w_v))
        keys, values = (side[None] for side in sides)
        return blended_attention(q, Basis(heads, count, keys, values), level)

    def materialised(chunk: int = 64) -> Tensor:
        out = []
        for start in range(0, locations, chunk):
            e = torch.einsum("lj,jtd->ltd", a[0, start : start + chunk], contexts)
            k, v = ((e @ w.T).unflatten(-1, (heads, d)).transpose(1, 2) for w in (w_k, w_v))
            query = q[0, start : start + chunk].view(-1, heads, 1, d)
            out.append(F.scaled_dot_product_attention(query, k, v).flatten(1))
        return torch.cat(out)[None]

    error = float((ours() - materialised()).norm() / materialised().norm())
    seconds = _medians({"ours": ours, "materialised": materialised}, max(3, options.rounds // 3), device)
    ratio = seconds["materialised"] / seconds["ours"]
    print(
        f"\nagainst the materialised computation (h·w = 1024, J = 4, projections included): {ratio:.0f}× faster "
        f"({seconds['ours'] * 1e3:.1f} ms against {seconds['materialised'] * 1e3:.0f} ms), relative error {error:.1e}"
    )


def _stills(options: argparse.Namespace, device: str, dtype: torch.dtype) -> None:
    """The attention of a batch of stills, each with a seed of its own, with and without concept noise."""
    cases = {
        "without": _of_stills(0.0, range(STILLS)),
        "one seed": _of_stills(0.5, [0] * STILLS),
        f"{STILLS} seeds": _of_stills(0.5, range(STILLS)),
    }
    print(f"\n{STILLS} stills, concept noise of rank {RANK}, least seconds of the attention alone")
    print("| heads × locations × width | without, ms | one seed | 8 seeds |\n|---|---|---|---|")
    totals = dict.fromkeys(cases, 0.0)
    for (heads, locations, d), layers in zip(LEVELS, LAYERS, strict=True):
        sides = {name: _layer(made, heads, locations, d, device, dtype) for name, made in cases.items()}
        least = {name: min(times) for name, times in _times(sides, options.rounds, device).items()}
        for name in totals:
            totals[name] += layers * least[name]
        _print_ratios(f"{heads} × {locations} × {d}", least)
    _print_ratios("all 16 layers of the U-Net", totals)


def _print_ratios(label: str, seconds: dict[str, float]) -> None:
    without, *others = seconds.values()
    ratios = " | ".join(f"{other / without:.3f}" for other in others)
    print(f"| {label} | {without * 1e3:.1f} | {ratios} |", flush=True)


def _of_stills(strength: float, seeds: Sequence[int]) -> LocationConditioning:
    """Four concepts on a base that shows between them."""
    strips = [{"kind": "split", "from": i / 4 + 0.05, "to": i / 4 + 0.2, "feather": 0.1} for i in range(4)]
    scene = Scene.parse(
        {
            "concepts": [{"prompt": text, "mask": mask} for text, mask in zip("abcd", strips, strict=True)],
            "noise": {"concept": {"strength": strength, "rank": RANK}},
        }
    )
    base, *concepts = (Encoded(torch.randn(TOKENS, DIM)) for _ in range(5))
    encoded = dict(zip("abcd", concepts, strict=True))
    return condition(Maps(scene, (64, 64)), base, encoded, [0] * STILLS, list(seeds))


def _layer(made: LocationConditioning, heads: int, locations: int, d: int, device: str, dtype: torch.dtype):
    """The attention of a layer of random weights, everything that is kept for a pass being there already."""
    q = torch.randn(STILLS, locations, heads * d, device=device, dtype=dtype)
    w_k, w_v = (torch.randn(heads * d, DIM, device=device, dtype=dtype) / DIM**0.5 for _ in range(2))
    rows = shares([Row(made, row) for row in range(STILLS)])
    attention = AttentionPass()
    attention.plan([made])
    contexts = attention.wanted("layer", rows, q).stacked
    attention.take("layer", contexts @ w_k.T, contexts @ w_v.T, heads)
    size = (round(locations**0.5),) * 2
    return lambda: attention.attend("layer", q, rows, size)


def per_basis(q: Tensor, basis: Basis, level: Level) -> Tensor:
    """The formula as it is written: J logit matrices, summed by weight, one softmax, J value sums."""
    heads, count = basis.heads, basis.count
    query = q[0].unflatten(-1, (heads, -1)).transpose(0, 1)
    d = query.shape[-1]
    keys, values = (t[0, ..., : count * d].unflatten(2, (count, d)) for t in (basis.keys, basis.values))
    a = level.coefficients[0]
    logits = 0
    for j in range(count):
        logits = logits + a[None, :, j, None] * (query @ keys[:, :, j].transpose(1, 2))
    if basis.noise_keys is not None:
        rank = basis.noise_keys.shape[2]
        profiles = basis.keys[0, ..., count * d : count * d + rank]
        along = (query @ basis.noise_keys[0].transpose(1, 2)) * level.noise
        logits = logits + along @ profiles.transpose(1, 2)
    p = torch.softmax(logits * d**-0.5, dim=-1)
    out = 0
    for j in range(count):
        out = out + a[None, :, j, None] * (p @ values[:, :, j])
    if basis.noise_values is not None:
        out = out + ((p @ profiles) * level.noise) @ basis.noise_values[0]
    return out.transpose(0, 1).flatten(1)[None]


def _problem(heads, locations, d, count, rank, device, dtype) -> tuple[Basis, Level]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    profiles = normal(1, 1, TOKENS, rank).expand(-1, heads, -1, -1)
    keys, values = (torch.cat([normal(1, heads, TOKENS, count * d), profiles], dim=3) for _ in range(2))
    noise = (normal(1, heads, rank, d), normal(1, heads, rank, d)) if rank else (None, None)
    a = normal(1, locations, count).softmax(-1)
    level = Level(a, noise=normal(1, locations, rank) if rank else None)
    return Basis(heads, count, keys, values, *noise), level.to(device, torch.promote_types(dtype, torch.float32))


def _plain(q: Tensor, basis: Basis) -> Tensor:
    d = q.shape[-1] // basis.heads
    query = q.unflatten(-1, (basis.heads, d)).transpose(1, 2)
    keys, values = (t[..., :d].contiguous() for t in (basis.keys, basis.values))
    return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)


def _form(q: Tensor, basis: Basis, level: Level, fused: bool) -> Tensor:
    chosen, attention._fused = attention._fused, lambda q, level: fused
    try:
        return blended_attention(q, basis, level)
    finally:
        attention._fused = chosen


def _medians(sides: dict[str, Callable[[], Tensor]], rounds: int, device: str) -> dict[str, float]:
    return {name: statistics.median(t) for name, t in _times(sides, rounds, device).items()}


def _times(sides: dict[str, Callable[[], Tensor]], rounds: int, device: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = _now(device)
            side()
            times[name].append(_now(device) - start)
    return times


def _now(device: str) -> float:
    """CPU seconds on a CPU, where other work comes and goes; wall time on an accelerator."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
