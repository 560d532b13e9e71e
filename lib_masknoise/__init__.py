"""MaskNoise: soft per-location text conditioning, three kinds of noise, and their motion through time.

What a scene is made of can be imported from here. It is loaded when it is first asked for, and PyTorch not with it.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_masknoise.scene import (
        Animation,
        Blend,
        Concept,
        ConceptKeyframe,
        ConceptNoise,
        EllipseMask,
        FeatureNoise,
        Filter,
        GradientMask,
        ImageMask,
        Keyframe,
        Motion,
        Noise,
        Problem,
        RectMask,
        Scene,
        SceneError,
        SplitMask,
        Stamp,
        Stroke,
        StrokesMask,
        VisualNoise,
    )

__version__ = "0.1.0"

__all__ = [
    "Animation",
    "Blend",
    "Concept",
    "ConceptKeyframe",
    "ConceptNoise",
    "EllipseMask",
    "FeatureNoise",
    "Filter",
    "GradientMask",
    "ImageMask",
    "Keyframe",
    "Motion",
    "Noise",
    "Problem",
    "RectMask",
    "Scene",
    "SceneError",
    "SplitMask",
    "Stamp",
    "Stroke",
    "StrokesMask",
    "VisualNoise",
    "builtin_model",
]

ASSETS = Path(__file__).parent.parent / "assets"
"""The built-in model and the example scenes: beside the package in a checkout or an extension folder."""


def builtin_model() -> Path:
    """The folder of the built-in model, in the diffusers layout."""
    return ASSETS / "model"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("lib_masknoise.scene"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
