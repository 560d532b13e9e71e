"""What docs/api.md shows is so."""

import json
import re
import shutil
from pathlib import Path

import pytest

from lib_masknoise import ASSETS, infotext
from lib_masknoise.axes import axes
from lib_masknoise.preview import KINDS
from lib_masknoise.scene import Scene, SceneError
from tests.unit.test_infotext import pasted

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_the_refusal_shown_is_that_of_the_request_shown():
    (request,) = re.findall(r"validate -d '(.*)'", TEXT)
    with pytest.raises(SceneError) as caught:
        Scene.parse(request)
    assert [problem._asdict() for problem in caught.value.problems] == json.loads(*blocks("json"))


def test_the_scenes_shown_are_scenes():
    (body,) = re.findall(r"preview.png \\\n +-d '(.*)'", TEXT)
    assert Scene.parse(json.loads(body)["scene"]).concepts
    (code,) = (block for block in blocks("python") if "alwayson_scripts" in block)
    names: dict = {}
    exec(code[code.index("scene = ") : code.index("response = ")], names)
    assert Scene.parse(names["job"]["alwayson_scripts"]["MaskNoise"]["args"][0]).animation.frames == 8


def test_the_infotext_shown_is_read():
    scene = infotext.read(pasted(blocks("text")[0].strip()))
    assert [concept.weight for concept in scene.concepts] == [1, 0.8]
    assert (scene.motion.kind, scene.animation.frames) == ("circle", 8)


def test_the_python_shown_runs(tmp_path, monkeypatch):
    shutil.copytree(ASSETS / "scenes", tmp_path / "assets" / "scenes")
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[-1], {})
    assert {path.name for path in tmp_path.iterdir()} >= {"coefficients.png", "frames.png", "motion.svg", "presets"}


def test_the_names_shown_are_right():
    labels = {axis.label for axis in axes(list)}
    assert set(re.findall(r"`(\[MaskNoise\] [^`]+)`", TEXT)) <= labels
    assert all(f"`{kind}`" in TEXT for kind in KINDS)


def test_every_route_is_shown():
    pytest.importorskip("fastapi")
    from fastapi import FastAPI

    from lib_masknoise.api import add_routes
    from lib_masknoise.calibrate_routes import add_calibrate
    from lib_masknoise.explore_routes import add_explore

    app = FastAPI()
    add_routes(app, None)
    add_explore(app, None)
    add_calibrate(app, None)
    schema = app.openapi()["paths"]
    routes = {f"{method.upper()} {path.replace('{name}', 'NAME')}" for path, way in schema.items() for method in way}
    assert routes == set(re.findall(r"^\| `(\w+ /masknoise\S+)` \|", TEXT, re.M))
