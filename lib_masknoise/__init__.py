"""MaskNoise: soft per-location text conditioning, three kinds of noise, and their motion through time."""

from pathlib import Path

__version__ = "0.1.0"

ASSETS = Path(__file__).parent.parent / "assets"
"""The built-in model and the example scenes: beside the package in a checkout or an extension folder."""


def builtin_model() -> Path:
    """The folder of the built-in model, in the diffusers layout."""
    return ASSETS / "model"
