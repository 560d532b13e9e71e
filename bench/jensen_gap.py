"""How far blended conditioning and blended attention outputs can differ at all, layer by layer, on any checkpoint.

    python bench/jensen_gap.py [--model FOLDER|FILE.safetensors] [--pair "a forest" "a lake"] … [--out gap.json]

Two ways to give a location a mixture of prompts: blend the contexts and attend once, `Attn(q, Σ a C)`, or attend to
each and blend the outputs, `Σ a Attn(q, C)`. The two are equal where the attention is linear in the context. For every
cross-attention this prints the relative gap

    ‖Attn(q, Σ a C) − Σ a Attn(q, C)‖ / ‖Σ a Attn(q, C)‖

and the same numerator over ‖Attn(q, A) − Attn(q, B)‖, the way from one prompt to the other: a gap of 1 there is as
large as the difference between the prompts themselves. Where both are small, no method of sampling can make the two
ways differ by much. The queries are those of real denoising steps with the blended context; nothing is judged by
looking at pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for a checkout that is not installed

from lib_masknoise.hosts.diffusers import load_pipeline  # noqa: E402

# The pairs of docs/quality.md: each of the built-in model's concepts with the one half-way round the list.
PAIRS = (
    ("a wheat field", "a brick wall"),
    ("an ocean", "a meadow with flowers"),
    ("a forest", "a storm clouds"),
    ("a desert", "a coral"),
    ("a night sky", "an ice"),
    ("a lava", "a marsh"),
    ("a snow", "a sunset sky"),
)
WEIGHTS = (0.25, 0.5, 0.75)


def attended(attn: Attention, query: Tensor, context: Tensor) -> Tensor:
    """Output of one cross-attention before its last projection, in float32.

    query: `[L, heads · d]` projected queries; context: `[T, D]`. Returns `[L, heads · d]`.
    """
    key, value = (project(context) for project in (attn.to_k, attn.to_v))
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(0, 1).float() for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=attn.scale).transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Gap:
    """One layer at one step: the gap relative to the blended outputs, and to the way between the two prompts."""

    relative: float
    of_the_way: float


def gap(attn: Attention, hidden: Tensor, contexts: Sequence[Tensor], weights: Sequence[float]) -> Gap:
    """The gap of one layer. hidden: `[L, C]`; contexts: two `[T, D]`; weights: two numbers that sum to 1."""
    query = attn.to_q(hidden)
    outputs = [attended(attn, query, context) for context in contexts]
    blended = sum(a * out for a, out in zip(weights, outputs, strict=True))
    mixed = attended(attn, query, sum(a * context for a, context in zip(weights, contexts, strict=True)))
    distance = (mixed - blended).norm().item()
    way = (outputs[0] - outputs[1]).norm().item()
    return Gap(distance / max(blended.norm().item(), 1e-12), distance / max(way, 1e-12))


def layers(unet: torch.nn.Module) -> dict[str, Attention]:
    """The cross-attentions of a U-Net by name. Raises ValueError where it has none."""
    found = {name: m for name, m in unet.named_modules() if name.endswith("attn2") and isinstance(m, Attention)}
    if not found:
        raise ValueError("model: expected a U-Net with cross-attentions (attn2), found none")
    return found


@contextmanager
def measured(unet: torch.nn.Module, contexts: Sequence[Tensor], weights: Sequence[float]) -> Iterator[dict]:
    """While open, every call of the U-Net adds a `Gap` a cross-attention to the yielded lists by layer name.

    The last row of a batch is looked at: with guidance, the conditional one.
    """
    gaps: dict[str, list[Gap]] = defaultdict(list)

    def look(name: str):
        def hook(attn: Attention, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            gaps[name].append(gap(attn, hidden[-1], contexts, weights))

        return hook

    handles = [m.register_forward_pre_hook(look(name), with_kwargs=True) for name, m in layers(unet).items()]
    try:
        yield gaps
    finally:
        for handle in handles:
            handle.remove()


def embedded(pipe: DiffusionPipeline, prompt: str) -> dict[str, Tensor]:
    """What a pipeline calls with for a prompt: context, negative context and, for XL, the pooled ones."""
    parts = pipe.encode_prompt(prompt, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, parts, strict=False))


@torch.no_grad()
def pair_gaps(
    pipe: DiffusionPipeline, pair: Sequence[str], share: float, *, steps: int, size: tuple[int, int] | None, seed: int
) -> dict[str, list[Gap]]:
    """Gaps by layer over the steps of one sampling with `share` of the second prompt.

    size: (height, width) in pixels, or None for the model's own.
    """
    first, second = (embedded(pipe, prompt) for prompt in pair)
    weights = (1 - share, share)
    mixed = {name: weights[0] * first[name] + weights[1] * second[name] for name in first}
    contexts = [side["prompt_embeds"][0] for side in (first, second)]
    height, width = size or (None, None)
    generator = torch.Generator().manual_seed(seed)
    with measured(pipe.unet, contexts, weights) as gaps:
        pipe(**mixed, num_inference_steps=steps, guidance_scale=4.0, height=height, width=width, generator=generator,
             output_type="latent")  # fmt: skip
    return gaps


def summary(gaps: Sequence[Gap]) -> dict[str, float]:
    """Median and largest of both ratios."""
    out = {}
    for name in ("relative", "of_the_way"):
        values = [getattr(g, name) for g in gaps]
        out[name], out[f"{name}_max"] = statistics.median(values), max(values)
    return out


def table(by_layer: dict[str, list[Gap]]) -> str:
    """Markdown, a row a layer and one for all of them."""
    rows = ["| layer | gap | largest | of the way | largest |", "|---|---|---|---|---|"]
    everything = [g for gaps in by_layer.values() for g in gaps]
    for name, gaps in [*by_layer.items(), ("all layers", everything)]:
        s = summary(gaps)
        short = name.replace(".transformer_blocks", "").replace(".attn2", "").replace("attentions.", "")
        figures = (s["relative"], s["relative_max"], s["of_the_way"], s["of_the_way_max"])
        rows.append(f"| {short} | " + " | ".join(f"{100 * f:.1f} %" for f in figures) + " |")
    return "\n".join(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a diffusers folder or a .safetensors file (default: the built-in model)")
    parser.add_argument("--pair", nargs=2, action="append", metavar=("A", "B"), help="two prompts; may be repeated")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="shares of the second prompt")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the model's own")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    if any(not 0 < share < 1 for share in options.weights):
        parser.error("--weights: expected numbers between 0 and 1")
    if options.steps < 1 or options.seeds < 1:
        parser.error("--steps and --seeds: expected at least 1")
    return options


def main() -> None:
    """Command line."""
    options = _options()
    pipe = load_pipeline(options.model, options.device)
    by_layer, by_weight = defaultdict(list), defaultdict(list)
    pairs, figures = options.pair or PAIRS, {}
    for pair in pairs:
        of_pair: list[Gap] = []
        for share in options.weights:
            for seed in range(options.seeds):
                found = pair_gaps(pipe, pair, share, steps=options.steps, size=options.size, seed=seed)
                for name, gaps in found.items():
                    by_layer[name] += gaps
                    by_weight[share] += gaps
                    of_pair += gaps
        figures[" / ".join(pair)] = summary(of_pair)
        s = figures[" / ".join(pair)]
        line = f"{' / '.join(pair)}: gap {s['relative']:.1%}, of the way {s['of_the_way']:.1%}"
        print(line, file=sys.stderr, flush=True)
    print(table(by_layer))
    for share, gaps in by_weight.items():
        s = summary(gaps)
        print(f"\nshare {share}: gap {s['relative']:.1%}, of the way {s['of_the_way']:.1%}", end="")
    print()
    if options.out:
        layers_ = {name: summary(gaps) for name, gaps in by_layer.items()}
        shares = {str(share): summary(gaps) for share, gaps in by_weight.items()}
        whole = {"layers": layers_, "pairs": figures, "shares": shares}
        options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
