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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = set(re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")))
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []


def test_the_files_and_tables_to_add_to_exist():
    """The pages for contributors name files, and the tables in them, as they are."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## To add") :]
    for path in set(re.findall(r"`([\w/]+\.(?:py|js|toml)|[\w/]+/)`", section)):
        assert any((root / path).exists() for root in (ROOT, ROOT / "lib_masknoise", ROOT / "javascript")), path
    for table, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", section):
        assert re.search(rf"^(?:def |class )?{table}\b", (ROOT / "lib_masknoise" / path).read_text("utf-8"), re.M), path


def test_the_demo_scene_is_written_out_as_json():
    text = (ASSETS / "scenes" / "demo.json").read_text(encoding="utf-8")
    assert Scene.parse(text).to_dict(defaults=False).keys() <= json.loads(text).keys()
