"""What the command line takes: text → value, or what was expected of it."""

from __future__ import annotations

import argparse
import math
import re

from lib_masknoise import networks


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


def lora(text: str) -> networks.Lora:
    try:
        return networks.lora(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)
