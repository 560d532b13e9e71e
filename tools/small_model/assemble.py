"""Put trained weights into a diffusers folder.

    python -m tools.small_model.assemble --vae DIR/vae.pt --unet DIR/unet.pt --out FOLDER

Copies the configurations and tokenizer of `--model` to `--out` (which may be the same folder) and writes
the new weights there in half precision.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from .networks import MODEL, Networks, save_weights


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Put trained weights into a diffusers folder.")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder to take everything else from")
    parser.add_argument("--vae", type=Path, help="weights that train_vae wrote")
    parser.add_argument("--unet", type=Path, help="weights that train_unet wrote")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.out.resolve() != args.model.resolve():
        shutil.copytree(args.model, args.out, dirs_exist_ok=True)
    nets = Networks.load(args.model)
    if args.vae:
        nets.vae.load_state_dict(torch.load(args.vae))
        save_weights(args.out, vae=nets.vae)
    if args.unet:
        state = torch.load(args.unet)
        nets.unet.load_state_dict(state["unet"])
        nets.text.load_state_dict(state["text"])
        save_weights(args.out, unet=nets.unet, text=nets.text)


if __name__ == "__main__":
    main()
