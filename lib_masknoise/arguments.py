"""What the command line takes: text → value, or what was expected of it."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from lib_masknoise import networks


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """What every command that makes pictures takes, but for what they are of."""
    parser.add_argument("--negative", default="", metavar="P", help="the negative prompt")
    add_model(parser)
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the image (default: %(default)s)")
    parser.add_argument(
        "--steps", type=positive, default=20, metavar="N", help="denoising steps (default: %(default)s)"
    )
    parser.add_argument("--size", type=size, metavar="WxH", help="in pixels, multiples of 8 (default: the model's own)")


def add_model(parser: argparse.ArgumentParser) -> None:
    model = "a diffusers folder or a .safetensors file (default: the built-in miniature model)"
    parser.add_argument("--model", metavar="M", help=model)


def add_guidance(parser: argparse.ArgumentParser) -> None:
    usual = "guidance scale (default: 4 for the built-in model, 7 for others, a transformer's own)"
    parser.add_argument("--guidance", type=finite, metavar="G", help=usual)


def positive(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or not 1 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)


def batch(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def seed(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """`WxH` → (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or any(int(n) < 8 or int(n) % 8 for n in match.groups()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, multiples of 8, got {text!r}")
    return int(match[2]), int(match[1])


def coloured(text: str) -> tuple[str, str]:
    """`#rrggbb=a prompt`."""
    if not re.match(r"#[0-9a-fA-F]{6}=", text):
        raise argparse.ArgumentTypeError(f"expected a colour and a prompt such as #ff8000=lava, got {text!r}")
    return text[:7], text[8:]


def folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text}")
    return Path(text)


def lora(text: str) -> networks.Lora:
    try:
        return networks.lora(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)
