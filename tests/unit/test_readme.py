"""The README tells the truth: its scene is valid, its names exist, its pictures and links are there."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from lib_masknoise import ASSETS
from lib_masknoise.scene import Scene

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


def test_the_scene_is_the_demo():
    assert Scene.parse(block("json")).concepts == Scene.read(ASSETS / "scenes" / "demo.json").concepts


def test_the_names_in_the_python_lines_exist():
    pytest.importorskip("diffusers")
    for node in ast.walk(ast.parse(block("python"))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_demo_scene_is_written_out_as_json():
    text = (ASSETS / "scenes" / "demo.json").read_text(encoding="utf-8")
    assert Scene.parse(text).to_dict(defaults=False).keys() <= json.loads(text).keys()
