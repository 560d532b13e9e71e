"""Blended cross-attention: formulations against each other, and against the materialised computation.

    python bench/attention.py [--device cuda] [--dtype float16]

Each round times every side once, in turn; the figures are medians over the rounds and ratios to plain attention of
the same shape, so a machine whose speed drifts does not favour a side.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_masknoise import attention
from lib_masknoise.attention import Basis, blended_attention
from lib_masknoise.conditioning import Level

TOKENS, DIM = 77, 768
# heads, locations, head width: the four levels of an SD1.5 U-Net at 512²
LEVELS = ((8, 4096, 40), (8, 1024, 80), (8, 256, 160), (8, 64, 160))


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


def _against_materialised(options: argparse.Namespace, device: str, dtype: torch.dtype) -> None:
    heads, locations, d, count = 8, 1024, 80, 4
    contexts = torch.randn(count, TOKENS, DIM, device=device, dtype=dtype)
    w_k, w_v = (torch.randn(heads * d, DIM, device=device, dtype=dtype) / DIM**0.5 for _ in range(2))
    a = torch.rand(1, locations, count, device=device, dtype=dtype).softmax(-1)
    q = torch.randn(1, locations, heads * d, device=device, dtype=dtype)
    level = Level(a)

    def ours() -> Tensor:
        keys, values = ((contexts @ w.T).unflatten(-1, (heads, d)).permute(2, 1, 0, 3).flatten(2) for w in (w_k, w_v))
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


def per_basis(q: Tensor, basis: Basis, level: Level) -> Tensor:
    """The formula as it is written: J logit matrices, summed by weight, one softmax, J value sums."""
    heads, count = basis.heads, basis.count
    query = q[0].unflatten(-1, (heads, -1)).transpose(0, 1)
    d = query.shape[-1]
    keys = basis.keys[..., : count * d].unflatten(2, (count, d))
    values = basis.values[..., : count * d].unflatten(2, (count, d))
    a = level.coefficients[0]
    logits = 0
    for j in range(count):
        logits = logits + a[None, :, j, None] * (query @ keys[:, :, j].transpose(1, 2))
    if basis.noise_keys is not None:
        logits = logits + ((query @ basis.noise_keys.transpose(1, 2)) * level.noise) @ (
            basis.keys[..., count * d :].transpose(1, 2)
        )
    p = torch.softmax(logits * d**-0.5, dim=-1)
    out = 0
    for j in range(count):
        out = out + a[None, :, j, None] * (p @ values[:, :, j])
    if basis.noise_values is not None:
        out = out + ((p @ basis.values[..., count * d :]) * level.noise) @ basis.noise_values
    return out.transpose(0, 1).flatten(1)[None]


def _problem(heads, locations, d, count, rank, device, dtype) -> tuple[Basis, Level]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    columns = count * d + rank
    noise = (normal(heads, rank, d), normal(heads, rank, d)) if rank else (None, None)
    basis = Basis(heads, count, normal(heads, TOKENS, columns), normal(heads, TOKENS, columns), *noise)
    a = normal(1, locations, count).softmax(-1)
    return basis, Level(a, noise=normal(1, locations, rank) if rank else None)


def _plain(q: Tensor, basis: Basis) -> Tensor:
    d = q.shape[-1] // basis.heads
    query = q.unflatten(-1, (basis.heads, d)).transpose(1, 2)
    keys, values = (t[None, ..., :d].contiguous() for t in (basis.keys, basis.values))
    return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)


def _form(q: Tensor, basis: Basis, level: Level, fused: bool) -> Tensor:
    chosen, attention._fused = attention._fused, lambda q, level: fused
    try:
        return blended_attention(q, basis, level)
    finally:
        attention._fused = chosen


def _medians(sides: dict[str, Callable[[], Tensor]], rounds: int, device: str) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            _wait(device)
            start = time.perf_counter()
            side()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
