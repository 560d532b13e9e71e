"""Without the package opensimplex everything opens, and what needs it says which line installs it."""

import subprocess
import sys
import textwrap

import pytest

from lib_masknoise.motion import opensimplex
from lib_masknoise.noise import fields
from lib_masknoise.scene import Scene


def run_without(code: str) -> str:
    """What a Python of its own prints in which the package cannot be imported."""
    blocked = 'import sys\nsys.modules["opensimplex"] = None\n'
    command = [sys.executable, "-c", blocked + textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_accordions_open_with_what_is_missing():
    pytest.importorskip("gradio")
    printed = run_without("""
        import gradio as gr
        from lib_masknoise import api, axes, infotext, presets
        from lib_masknoise.ui import accordions, inputs
        with gr.Blocks() as page:
            made = accordions.build(lambda name: name)
        print(len(made.inputs) == len(inputs.defaults()))
        print(*(block.value for block in page.blocks.values() if isinstance(block, gr.HTML)))
    """)
    assert printed.startswith("True\n")
    assert "pip install" in printed and "opensimplex" in printed


def test_scenes_masks_and_visual_noise_need_nothing_of_it():
    printed = run_without("""
        import torch
        from lib_masknoise.maps import Maps
        from lib_masknoise.noise import fields
        from lib_masknoise.noise.latent import visual
        from lib_masknoise.scene import Scene
        scene = Scene.parse({"concepts": [{"prompt": "", "mask": {"kind": "split"}}],
                             "noise": {"visual": {"strength": 0.5}}, "motion": {"kind": "walk"},
                             "animation": {"frames": 4}})
        fields.require(scene)
        amount = Maps(scene, (8, 8)).amount("visual", [1])
        print(tuple(visual(torch.randn(4, 8, 8), amount, scene.motion, [1], 4, 3).shape))
    """)
    assert printed == "(1, 4, 8, 8)\n"


def test_a_preview_of_noise_says_what_is_missing_in_place_of_the_pictures():
    pytest.importorskip("gradio")
    printed = run_without("""
        from lib_masknoise.ui import inputs, live
        from lib_masknoise.scene import Scene
        scene = Scene.parse({"noise": {"concept": {"strength": 1}}, "animation": {"frames": 3}})
        print(live.answer(inputs.show(scene), "{}")[0])
    """)
    assert "mn-problems" in printed and "pip install" in printed


NEEDING = [
    {"noise": {"concept": {"strength": 1}}},
    {"noise": {"feature": {"strength": 1}}},
    {"noise": {"visual": {"strength": 0.5}}, "motion": {"kind": "simplex"}},
    {"noise": {"visual": {"strength": 0.5, "motion": {"kind": "simplex", "loop": False}}}},
]


@pytest.mark.parametrize("scene", NEEDING)
def test_noise_that_needs_it_is_refused_with_the_line_that_installs_it(scene, monkeypatch):
    fields.require(Scene.parse(scene))
    monkeypatch.setitem(sys.modules, "opensimplex", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        fields.require(Scene.parse(scene))
    opensimplex._tables.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        opensimplex._tables(2)
