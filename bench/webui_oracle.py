"""Forge's and reForge's own attention with MaskNoise's patches, against the definition of the blended attention.

    cd stable-diffusion-webui-forge        # or -reForge
    venv/bin/python /path/to/bench/webui_oracle.py

Builds reduced U-Nets with random weights of the host's own classes (as Stable Diffusion 1.5 and XL have them), enters
the pass that a job of the WebUI enters, and calls the host's own sampling function. From every cross-attention layer it
takes the queries and what the layer's attention has made of them, and builds for comparison every location's own
context, its keys and its values one by one, in float64, from the queries and the layer's weights.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = 12, 10  # of the latent: not square, and odd at the next level
TOKENS, WIDE, POOLED, SIZES = 77, 48, 24, 8
BATCH = 2

UNETS = {
    "SD 1.5": dict(
        context_dim=WIDE, num_heads=4, num_head_channels=-1, use_linear_in_transformer=False, adm_in_channels=None,
        transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1],
    ),
    "SDXL": dict(
        context_dim=WIDE, num_heads=-1, num_head_channels=16, use_linear_in_transformer=True, num_classes="sequential",
        adm_in_channels=POOLED + SIZES,
        transformer_depth=[0, 2], transformer_depth_middle=2, transformer_depth_output=[0, 0, 2, 2],
    ),
}  # fmt: skip
COMMON = dict(
    in_channels=4, model_channels=32, out_channels=4, num_res_blocks=[1, 1], channel_mult=(1, 2),
    use_spatial_transformer=True,
)  # fmt: skip


# --- The host


def start() -> None:
    """Import the host as its own `webui.py` does, without its web page."""
    sys.argv = ["webui.py", "--always-cpu", "--all-in-fp32", "--skip-torch-cuda-test"]
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    sys.path[:0] = [os.getcwd(), str(REPOSITORY)]
    from modules_forge.initialization import initialize_forge

    initialize_forge()
    from modules import initialize

    initialize.imports()


def build(config: dict[str, Any]) -> Any:
    """The host's patcher of a U-Net of its own class with random weights."""
    import torch

    generator = torch.Generator().manual_seed(0)
    patcher = _forge(config) if Path("backend").is_dir() else _ldm_patched(config)
    with torch.no_grad():
        for name, weight in patcher.model.diffusion_model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.1 * drawn + name.endswith("weight"))
            else:  # larger queries and keys than usual, so that no softmax is flat
                weight.copy_(drawn * (2.0 if "attn2.to_" in name else 1.0) / weight[0].numel() ** 0.5)
    return patcher


def _forge(config: dict[str, Any]) -> Any:
    import torch
    from backend.modules.k_prediction import Prediction
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.patcher.unet import UnetPatcher

    net = IntegratedUNet2DConditionModel(**COMMON, **config).float()
    net.storage_dtype = net.computation_dtype = torch.float32
    net.load_device = net.offload_device = net.initial_device = torch.device("cpu")
    predictor = Prediction(sigma_data=1.0, prediction_type="epsilon", beta_schedule="linear", timesteps=1000)
    with redirect_stdout(None):
        return UnetPatcher.from_model(net, diffusers_scheduler=None, config=None, k_predictor=predictor)


def _ldm_patched(config: dict[str, Any]) -> Any:
    import torch
    from ldm_patched.modules import supported_models
    from modules_forge.unet_patcher import UnetPatcher

    kind = supported_models.SDXL if config.get("num_classes") else supported_models.SD15
    of_model = kind({**COMMON, "num_classes": None, **config, "image_size": 32, "dtype": torch.float32})
    of_model.unet_config.update(config)  # the class has its full-size number of heads
    of_model.set_inference_dtype(torch.float32, None)
    model = of_model.get_model({}, device="cpu").float()
    return UnetPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def sample(engine: Any, x: Any, cond: Any, uncond: Any, parts: int, scale: float) -> Any:
    """One call of the denoiser as the host makes it, for `parts` rows of each image."""
    import torch

    denoiser = SimpleNamespace(inner_model=SimpleNamespace(inner_model=engine), p=SimpleNamespace(seeds=[1] * len(x)))
    params = SimpleNamespace(x=x, sigma=torch.full((len(x),), 2.0), text_cond=cond, text_uncond=uncond, image_cond=None)
    composition = [[(i * parts + k, 1.0) for k in range(parts)] for i in range(len(x))]
    if Path("backend").is_dir():
        from backend.sampling.sampling_function import sampling_function

        return sampling_function(denoiser, params, scale, composition)[0]
    from modules_forge.forge_sampler import forge_sample

    return forge_sample(denoiser, params, scale, composition)


# --- The job


class Prompts:
    """The concepts' prompts, encoded: random contexts in place of a text encoder's."""

    def __init__(self, concepts: dict[str, Any], negatives: dict[str, Any]):
        from lib_masknoise.hosts.webui.prompts import Encodings

        self.concepts, self.negatives, self.encodings = concepts, negatives, Encodings()
        self.part_count, self.weighted = 1, False

    def at(self, step: int) -> tuple[Any, Any]:
        one = self.encodings.one
        positive = {text: [one(cond)] for text, cond in self.concepts.items()}
        return positive, {text: one(cond) for text, cond in self.negatives.items()}

    def base(self, cond: Any, uncond: Any, step: int) -> tuple[Any, Any]:
        return [self.encodings.parts(parts, step) for parts in cond.batch], list(map(self.encodings.one, uncond))

    def as_given(self, encoded: Any, context: Any) -> Any:
        return encoded


def encoded(seed: int, pooled: bool, tokens: int = TOKENS) -> Any:
    """A cond as the host's text encoder returns it: `[T, D]`, or a dictionary for SDXL."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(tokens, WIDE, generator=generator)
    if not pooled:
        return context
    return {"crossattn": context, "vector": torch.randn(POOLED + SIZES, generator=generator)}


def scene(preserve_norm: bool, noise: float, mode: str = "interpolate") -> Any:
    from lib_masknoise.scene import Scene

    split = {"kind": "split", "axis": "x", "from": 0.3, "to": 0.6, "feather": 0.4}
    ellipse = {"kind": "ellipse", "x": 0.4, "y": 0.6, "rx": 0.3, "ry": 0.4, "feather": 0.3}
    strength = {"strength": noise}
    return Scene.parse({
        "concepts": [{"prompt": "a", "mask": split}, {"prompt": "b", "negative": "c", "weight": 0.7, "mask": ellipse}],
        "blend": {"mode": mode, "preserve_norm": preserve_norm},
        "noise": {"concept": strength, "feature": {**strength, "dimensions": "0-7"}},
        "motion": {"kind": "circle"}, "animation": {"frames": 4},
    })  # fmt: skip


@contextmanager
def entered(engine: Any, job: Any, encoder: Prompts, cond: Any, uncond: Any) -> Iterator[Any]:
    """The pass of this host for a job of two frames; frame 0 and frame 1."""
    from lib_masknoise.hosts.webui import denoising, forge, prompts
    from lib_masknoise.hosts.webui.rows import Picture, Rows
    from lib_masknoise.maps import Maps

    host = SimpleNamespace(sd_model=engine)
    forge.shared = denoising.shared = prompts.shared = host
    rows = Rows(Maps(job, SIZE), [Picture(i, 7) for i in range(BATCH)])
    sampler = SimpleNamespace(sampler_extra_args={"cond": cond, "uncond": uncond})
    p = SimpleNamespace(get_conds=lambda: (cond, uncond))
    method = functools.partial(forge.Patches, blender=forge.CrossAttention)
    with denoising.sampling(p, rows, encoder, sampler, method) as one:
        yield one


# --- The comparison


def watch(unet: Any, seen: Callable[[Any, Any, Any], None]) -> list[Any]:
    """Have every cross-attention layer's queries and attended values seen: seen(layer, q, out)."""
    handles = []
    for name, layer in unet.named_modules():
        if name.endswith("attn2"):
            queries: list[Any] = []
            handles.append(layer.to_q.register_forward_hook(lambda _, args, out, kept=queries: kept.append(out)))
            handles.append(
                layer.to_out.register_forward_pre_hook(
                    lambda _, args, layer=layer, kept=queries: seen(layer, kept.pop(), args[0])
                )
            )
    return handles


def compare(kind: str, job: Any, lengths: tuple[int, ...] = (TOKENS,) * 5) -> tuple[float, int]:
    """The largest relative error of a layer, and of how many (layers, rows) it is the largest."""
    import torch
    from modules import prompt_parser

    from lib_masknoise.maps import level_with
    from tests.materialised import materialised_attention

    pooled = kind == "SDXL"
    patcher = build(UNETS[kind])
    engine = SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher), conditioner=None)
    base, negative, *others = (encoded(i, pooled, length) for i, length in enumerate(lengths))
    prompts = Prompts({"a": others[0], "b": others[1]}, {"c": others[2]})
    schedule = [prompt_parser.ScheduledPromptConditioning(9, base)]
    part = prompt_parser.ComposableScheduledPromptConditioning(schedule)
    cond = prompt_parser.MulticondLearnedConditioning((BATCH,), [[part]] * BATCH)
    errors: list[float] = []
    plain: list[float] = []

    with entered(engine, job, prompts, cond, [negative] * BATCH) as one, torch.inference_mode():

        def seen(layer: Any, q: Any, out: Any) -> None:
            size = level_with(SIZE, q.shape[1])
            for share in one.blender._shares:
                placed = replace(share.conditioning, contexts=share.conditioning.contexts.double())
                for row, pick in zip(share.rows, share.picks, strict=True):
                    queries = q[row].double().expand(pick + 1, -1, -1)
                    weights = (to.weight.double() for to in (layer.to_k, layer.to_v))
                    expected = materialised_attention(queries, placed, size, *weights, layer.heads)[pick]
                    errors.append(float((out[row] - expected).norm() / expected.norm()))
                    flat = layer.to_v.weight.double() @ placed.contexts[0].double().mean(0)
                    plain.append(float((out[row] - flat).norm() / expected.norm()))

        handles = watch(patcher.model.diffusion_model, seen)
        x = 2 * torch.randn(BATCH, 4, *SIZE, generator=torch.Generator().manual_seed(5))
        rows = [_rows([c] * BATCH) for c in (base, negative)]
        params = SimpleNamespace(
            denoiser=SimpleNamespace(step=0, total_steps=4), text_cond=rows[0], text_uncond=rows[1], x=x
        )
        one.bind()
        one.plan(params)
        sample(engine, x, params.text_cond, params.text_uncond, 1, 5.0)
        for handle in handles:
            handle.remove()
    assert min(plain) > 0.05, "the attention is flat: the comparison would say nothing"
    return max(errors), len(errors)


def _rows(conds: list[Any]) -> Any:
    import torch
    from modules.prompt_parser import DictWithShape

    if isinstance(conds[0], dict):
        return DictWithShape({key: torch.stack([one[key] for one in conds]) for key in conds[0]})
    return torch.stack(conds)


def main() -> None:
    start()
    import torch

    host = "Forge (backend)" if Path("backend").is_dir() else "reForge (ldm_patched)"
    print(f"\n{host}, torch {torch.__version__}, float32, batch of {BATCH} frames with negative prompts, {SIZE} latent")
    print("| U-Net | scene | layers × rows | largest relative error |")
    print("|---|---|---|---|")
    for kind in UNETS:
        for name, job, lengths in (
            ("two concepts", scene(False, 0.0), (TOKENS,) * 5),
            ("and both noises", scene(False, 0.8), (TOKENS,) * 5),
            ("and the norm preserved", scene(True, 0.8), (TOKENS,) * 5),
            ("prompts of 77, 154 and 231 tokens", scene(True, 0.8), (154, 77, 231, 77, 77)),
            ("the additive mode", scene(False, 0.8, "add"), (TOKENS,) * 5),
        ):
            error, count = compare(kind, job, lengths)
            print(f"| {kind} | {name} | {count} | {error:.1e} |", flush=True)
            assert error < 1e-4


if __name__ == "__main__":
    main()
