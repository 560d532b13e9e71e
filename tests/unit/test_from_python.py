"""A scene made of its parts in Python, and masks made of arrays, tensors and images."""

import ast
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lib_masknoise
from lib_masknoise import Concept, GradientMask, ImageMask, Keyframe, Motion, Scene, SceneError, SplitMask, Stamp
from lib_masknoise.scene import StrokesMask
from lib_masknoise.scene.pictures import decode_picture, mask_values

ROOT = Path(__file__).parents[2]
RAMP = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)


def test_the_package_gives_what_a_scene_is_made_of():
    for name in lib_masknoise.__all__:
        assert getattr(lib_masknoise, name) is not None
    assert lib_masknoise.Scene is Scene and set(lib_masknoise.__all__) <= set(dir(lib_masknoise))
    with pytest.raises(AttributeError, match="no attribute 'Scenes'"):
        _ = lib_masknoise.Scenes
    said = ast.parse(inspect.getsource(lib_masknoise))
    typed = next(node for node in ast.walk(said) if getattr(node, "module", "") == "lib_masknoise.scene")
    assert sorted([*(name.name for name in typed.names), "builtin_model"]) == sorted(lib_masknoise.__all__)


def test_the_package_loads_little():
    """Neither PyTorch with the scene, nor anything with the package alone."""
    code = """
import sys, lib_masknoise
assert not {"torch", "pydantic", "numpy", "PIL"} & set(sys.modules)
from lib_masknoise import Scene, ImageMask
import lib_masknoise.scene
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_documentation_s_python_runs(capsys):
    section = (ROOT / "docs" / "scene.md").read_text("utf-8").split("## From Python")[1]
    exec(re.search(r"```python\n(.*?)```", section, re.S)[1], {})
    assert "wieght: unknown field" in capsys.readouterr().out


# --- Parts


def test_parts_make_the_scene_that_json_makes():
    made = Scene(
        concepts=[
            Concept(prompt="a", mask=SplitMask(from_=0.2, to=0.5)),
            Concept(prompt="b", mask={"kind": "ellipse", "rx": 0.1}),
        ],
        motion=Motion(kind="keyframes", keyframes=[Keyframe(frame=2, value=1), {"frame": 4}]),
        blend={"mode": "add"},
    )
    assert made == Scene.parse(made.to_json()) == Scene.parse(made.to_dict(defaults=False))
    assert made.concepts[0].to_dict(defaults=False) == {
        "prompt": "a",
        "mask": {"kind": "split", "from": 0.2, "to": 0.5},
    }
    assert made.blend.scale == 0.1 and Scene() == Scene.parse({})


def test_a_name_that_python_reserves():
    assert SplitMask(from_=0.2) == SplitMask(**{"from": 0.2}) == SplitMask.parse('{"from": 0.2}')
    assert GradientMask(from_=(0.5, 0.5)).from_ == (0.5, 0.5)
    assert wrong(lambda: SplitMask(from_=2)) == {"from": "expected a number from 0 to 1, got 2"}
    assert wrong(lambda: SplitMask(**{"from": 0.1, "from_": 0.2})) == {"from": "given more than once"}
    assert "unknown field" in wrong(lambda: SplitMask.parse({"from_": 0.2}))["from_"]


def wrong(make) -> dict[str, str]:
    with pytest.raises(SceneError) as caught:
        make()
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (lambda: Scene(bogus=1), "bogus", "unknown field; expected one of version, enabled"),
        (lambda: Scene(self=1), "self", "unknown field"),
        (lambda: Concept(prompt=3), "prompt", "expected a string, got 3"),
        (lambda: ImageMask(), "data", "missing"),
        (lambda: Concept(prompt="", mask=SplitMask), "mask", "expected an object, got a value of type ModelMetaclass"),
        (
            lambda: Scene(concepts=[Concept(prompt=""), {"prompt": "", "weight": 9}]),
            "concepts[1].weight",
            "from -4 to 4",
        ),
        (lambda: Stamp(mask=StrokesMask()), "mask", "expected an object, got a value of type StrokesMask"),
        (
            lambda: Concept(prompt="", mask=np.zeros((2, 2, 3))),
            "mask",
            "expected an array of shape [H, W], got [2, 2, 3]",
        ),
        (lambda: ImageMask.of(np.zeros((0, 4))), "", "shape [H, W], got [0, 4]"),
        (lambda: ImageMask.of(torch.zeros(4)), "", "shape [H, W], got [4]"),
        (lambda: ImageMask.of(np.zeros((2, 2), np.int64)), "", "bool, uint8 or floats from 0 to 1, got int64"),
        (lambda: ImageMask.of(torch.zeros(2, 2, dtype=torch.int32)), "", "got int32"),
        (lambda: ImageMask.of(np.full((2, 2), 1.5)), "", "numbers from 0 to 1, got 1.5 to 1.5"),
        (lambda: ImageMask.of(torch.full((2, 2), float("nan"))), "", "numbers from 0 to 1, got nan"),
        (lambda: ImageMask.of([[0.5]]), "", "got a value of type list"),
        (lambda: ImageMask.of(Image.new("I", (2, 2), 70_000)), "", "levels from 0 to 65535, got 70000"),
        (lambda: ImageMask.of(np.zeros((1, 4097), bool)), "data", "at most 4096 × 4096 pixels, got 4097 × 1"),
    ],
)
def test_what_cannot_be_is_one_kind_of_error(make, path, message):
    found = wrong(make)
    assert list(found) == [path] and message in found[path]


# --- Masks from arrays, tensors and images


def values(mask: ImageMask) -> np.ndarray:
    assert mask.data.startswith("data:image/png;base64,")
    return mask_values(mask.data)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize(
    ("levels", "mode"),
    [(RAMP, "L"), (RAMP / 255, "L"), ((RAMP / 255).astype(np.float32), "L"), (RAMP > 100, "1")],
    ids=["uint8", "float64", "float32", "bool"],
)
def test_levels_are_kept_exactly(kind, levels, mode):
    mask = ImageMask.of(kind(levels))
    expected = levels.astype(np.float32) / (255 if levels.dtype == np.uint8 else 1)
    np.testing.assert_allclose(values(mask), expected, rtol=0, atol=1e-7)
    assert decode_picture(mask.data).mode == mode


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_floats_are_kept_to_sixteen_bits(kind, dtype):
    ramp = np.linspace(0, 1, 35).reshape(5, 7).astype(dtype)
    np.testing.assert_allclose(values(ImageMask.of(kind(ramp))), ramp.astype(np.float64), rtol=0, atol=0.51 / 65535)


def test_tensors_that_numpy_cannot_read():
    grown = torch.linspace(0, 1, 6).reshape(2, 3)
    assert np.abs(values(ImageMask.of(grown.bfloat16())) - grown.bfloat16().float().numpy()).max() < 1e-5
    assert np.abs(values(ImageMask.of(grown.requires_grad_().T)) - grown.detach().numpy().T).max() < 1e-5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr"])
def test_an_image_counts_as_its_file_does(mode):
    grey = Image.fromarray(RAMP if mode != "1" else RAMP // 128 * 255)
    image = {
        "I;16": lambda: Image.fromarray(RAMP.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(RAMP.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(RAMP.astype(np.float32) / 255),
    }.get(mode, lambda: grey.convert(mode))()
    np.testing.assert_allclose(values(ImageMask.of(image)), np.asarray(grey) / 255, rtol=0, atol=1e-6)


def test_an_image_is_upright_and_its_alpha_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "PNG", exif=exif)
    with Image.open(file) as image:
        np.testing.assert_array_equal(values(ImageMask.of(image)) * 255, np.rot90(RAMP, -1))
    layer = Image.merge("RGBA", [Image.new("L", (3, 2), 90)] * 3 + [Image.fromarray(RAMP)])
    np.testing.assert_allclose(values(ImageMask.of(layer)), RAMP / 255, atol=1e-7)


def test_an_array_stands_for_a_mask_wherever_a_mask_may_stand():
    mask = ImageMask.of(RAMP)
    assert Concept(prompt="fog", mask=RAMP).mask == mask == Stamp(mask=Image.fromarray(RAMP)).mask
    scene = Scene(
        concepts=[Concept(prompt=""), Concept(prompt="", keyframes=[{"frame": 3, "mask": torch.from_numpy(RAMP)}])]
    )
    assert scene.concepts[1].keyframes[0].mask == mask
    assert scene.replace({"concepts[0].mask": RAMP}).concepts[0].mask == mask
    assert Scene.parse(scene.to_json()) == scene
    assert ImageMask.of(RAMP, invert=True) == ImageMask(data=mask.data, invert=True)
