"""A training of the world's model in small files, to be kept and gone on with elsewhere.

    python -m tools.small_model.world_checkpoint pack   --work DIR --out FOLDER      vae.safetensors, unet.safetensors
    python -m tools.small_model.world_checkpoint unpack --work DIR --out FOLDER      -> DIR/vae.pt, DIR/unet.pt

Kept are the averaged weights: of the autoencoder in float32, as the latents follow from its encoder to the last bit;
of U-Net and text encoder in half precision, without the embeddings of words that no caption has (they are zero). The
optimizer's moments, the judge of patches and the weights behind the average are not kept: a training that goes on from
here starts these again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .networks import to_half
from .world_data import save

EMBEDDING = "token_embedding.weight"
ROWS = "rows"  # of the embedding table that are not zero

State = dict[str, Tensor]


def _named(parts: dict[str, State]) -> State:
    return {f"{part}.{name}": value.contiguous() for part, state in parts.items() for name, value in state.items()}


def _parts(state: State) -> dict[str, State]:
    out: dict[str, State] = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        out.setdefault(part, {})[rest] = value
    return out


def _read(path: Path) -> tuple[State, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def pack_vae(state: dict) -> tuple[State, dict[str, str]]:
    """The tensors and what has to be known of a state of `train_local_vae`."""
    known = {
        "step": str(state["step"]),
        "frozen": str(int(state["frozen"])),
        "signals": ",".join(map(str, state["signals"])),
    }
    return _named({"average": state["average"]}), known


def unpack_vae(tensors: State, known: dict[str, str]) -> dict:
    """A state that `train_local_vae` goes on from."""
    average = _parts(tensors)["average"]
    step = int(known["step"])
    return {"step": step, "average_steps": step, "frozen": known["frozen"] == "1", "average": average, "model": average,
            "signals": tuple(int(n) for n in known["signals"].split(","))}  # fmt: skip


def pack_unet(state: dict) -> tuple[State, dict[str, str]]:
    """The tensors and what has to be known of a state of `train_world_unet`."""
    parts = {name: to_half(average) for name, average in state["average"].items()}
    (name,) = [name for name in parts["text_encoder"] if name.endswith(EMBEDDING)]
    table = parts["text_encoder"][name]
    rows = torch.nonzero(table.abs().sum(1))[:, 0]
    parts["text_encoder"][name] = table[rows]
    known = {
        "step": str(state["step"]),
        "scale": repr(state["scale"]),
        "encoder": state["encoder"],
        "words": str(len(table)),
    }
    return {**_named(parts), ROWS: rows}, known


def unpack_unet(tensors: State, known: dict[str, str]) -> dict:
    """A state that `train_world_unet` goes on from."""
    rows = tensors[ROWS]
    parts = _parts({name: value.float() for name, value in tensors.items() if name != ROWS})
    (name,) = [name for name in parts["text_encoder"] if name.endswith(EMBEDDING)]
    few = parts["text_encoder"][name]
    parts["text_encoder"][name] = few.new_zeros(int(known["words"]), few.shape[1]).index_copy(0, rows, few)
    return {"step": int(known["step"]), "scale": float(known["scale"]), "encoder": known["encoder"], "average": parts,
            **parts}  # fmt: skip


KINDS = {"vae": (pack_vae, unpack_vae), "unet": (pack_unet, unpack_unet)}


def pack(work: Path, out: Path) -> list[Path]:
    """Write the small files of the trainings in `work` that there are."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, (packed, _) in KINDS.items():
        if (work / f"{kind}.pt").exists():
            tensors, known = packed(torch.load(work / f"{kind}.pt", map_location="cpu"))
            save_file(tensors, out / f"{kind}.safetensors", metadata=known)
            written.append(out / f"{kind}.safetensors")
    if not written:
        raise ValueError(f"work: expected vae.pt or unet.pt in {work}")
    return written


def unpack(work: Path, out: Path) -> list[Path]:
    """Write the states that trainings go on from. Raises ValueError where one is there already, or none to read."""
    work.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, (_, unpacked) in KINDS.items():
        source, target = out / f"{kind}.safetensors", work / f"{kind}.pt"
        if not source.exists():
            continue
        if target.exists():
            raise ValueError(f"work: {target} is there already; a training would be lost")
        save(unpacked(*_read(source)), target)
        written.append(target)
    if not written:
        raise ValueError(f"out: expected vae.safetensors or unet.safetensors in {out}")
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Keep a training of the world's model in small files, or go on.")
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the training files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the small files")
    args = parser.parse_args()
    for path in (pack if args.what == "pack" else unpack)(args.work, args.out):
        print(path, f"{path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
