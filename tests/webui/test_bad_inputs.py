"""What is wrong with a request is answered with 422 and where it is, before anything is sampled; and nothing of it is
left in the host."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from tests.webui import hosts
from tests.webui.scenes import png, split


def _mask(**mask: Any) -> dict[str, Any]:
    return {"concepts": [{"prompt": "an ocean", "mask": mask}]}


def _concept(**fields: Any) -> dict[str, Any]:
    return {"concepts": [{"prompt": "an ocean", **fields}]}


def _motion(**fields: Any) -> dict[str, Any]:
    return {"motion": fields}


PNG = png(np.zeros((8, 8)))
MASK = "concepts[0].mask"
STROKE = {"points": [[0.1, 0.1], [0.5, 0.5]], "radius": 0.1}

BAD_SCENES: dict[str, tuple[Any, str]] = {
    # The scene as a whole.
    "a number": (5, ""),
    "a list": ([], ""),
    "true": (True, ""),
    "a float": (1.5, ""),
    "a word": ("scene", ""),
    "JSON text of a number": ("5", ""),
    "JSON text of a list": ("[1, 2]", ""),
    "JSON text, cut": ('{"concepts": [', ""),
    "JSON text, two objects": ("{} {}", ""),
    "JSON text, a comma too many": ('{"concepts": [],}', ""),
    "JSON text with a field twice": ('{"blend": {"scale": 1, "scale": 0}}', "blend.scale"),
    "JSON text with NaN": ('{"blend": {"scale": NaN}}', "blend.scale"),
    "JSON text with Infinity": ('{"blend": {"scale": -Infinity}}', "blend.scale"),
    "JSON text with a number too large": ('{"blend": {"scale": 1e999}}', "blend.scale"),
    "JSON text nested deeply": ("[" * 100_000, ""),
    "a scene in a scene": ({"scene": {}}, "scene"),
    "an unknown field": ({"concept": []}, "concept"),
    "an unknown version": ({"version": 2}, "version"),
    "version as text": ({"version": "1"}, "version"),
    "enabled as text": ({"enabled": "yes"}, "enabled"),
    "enabled as a number": ({"enabled": 1}, "enabled"),
    # Concepts.
    "concepts as an object": ({"concepts": {"prompt": ""}}, "concepts"),
    "concepts as text": ({"concepts": "an ocean"}, "concepts"),
    "concepts null": ({"concepts": None}, "concepts"),
    "17 concepts": ({"concepts": [{"prompt": "x"}] * 17}, "concepts"),
    "a concept as text": ({"concepts": ["an ocean"]}, "concepts[0]"),
    "a concept null": ({"concepts": [None]}, "concepts[0]"),
    "the second concept": ({"concepts": [{"prompt": "x"}, {"prompt": "", "promt": "y"}]}, "concepts[1].promt"),
    "a prompt as a number": (_concept(prompt=7), "concepts[0].prompt"),
    "a prompt as a list": (_concept(prompt=["an ocean"]), "concepts[0].prompt"),
    "a prompt null": (_concept(prompt=None), "concepts[0].prompt"),
    "a negative as false": (_concept(negative=False), "concepts[0].negative"),
    "a weight as text": (_concept(weight="1"), "concepts[0].weight"),
    "a weight as true": (_concept(weight=True), "concepts[0].weight"),
    "a weight too large": (_concept(weight=4.01), "concepts[0].weight"),
    "a weight too small": (_concept(weight=-5), "concepts[0].weight"),
    "an enormous weight": (_concept(weight=10**400), "concepts[0].weight"),
    "an unknown interpolation": (_concept(interpolation="cubic"), "concepts[0].interpolation"),
    "keyframes out of order": (_concept(keyframes=[{"frame": 2}, {"frame": 1}]), "concepts[0].keyframes"),
    "a keyframe before the first frame": (_concept(keyframes=[{"frame": -1}]), "concepts[0].keyframes[0].frame"),
    "a keyframe's frame as a float": (_concept(keyframes=[{"frame": 0.5}]), "concepts[0].keyframes[0].frame"),
    "a keyframe's easing": (_concept(keyframes=[{"frame": 0, "easing": "in"}]), "concepts[0].keyframes[0].easing"),
    "a keyframe's weight": (_concept(keyframes=[{"frame": 0, "weight": 9}]), "concepts[0].keyframes[0].weight"),
    "a keyframe's mask": (_concept(keyframes=[{"frame": 0, "mask": {"kind": "x"}}]), "concepts[0].keyframes[0].mask"),
    "no layers": ({"noise": {"feature": {"layers": ""}}}, "noise.feature.layers"),
    "unknown layers": ({"noise": {"concept": {"layers": "up3"}}}, "noise.concept.layers"),
    "layers that no model has": ({"noise": {"concept": {"strength": 1, "layers": "in900"}}}, "noise.concept.layers"),
    # Masks.
    "a mask as text": (_concept(mask="full"), MASK),
    "a mask as a list": (_concept(mask=[0, 1]), MASK),
    "an unknown kind": (_mask(kind="circle"), f"{MASK}.kind"),
    "a kind as a number": (_mask(kind=1), f"{MASK}.kind"),
    "a field of another kind": (_mask(kind="split", left=0.2), f"{MASK}.left"),
    "a split the wrong way round": (_mask(**split(0.7, 0.3)), f"{MASK}.to"),
    "an unknown axis": (_mask(kind="split", axis="z"), f"{MASK}.axis"),
    "a feather too wide": (_mask(kind="split", feather=1.5), f"{MASK}.feather"),
    "a rectangle beyond the image": (_mask(kind="rect", right=1.2), f"{MASK}.right"),
    "a rectangle upside down": (_mask(kind="rect", top=0.8, bottom=0.2), f"{MASK}.bottom"),
    "an ellipse of no width": (_mask(kind="ellipse", rx=0), f"{MASK}.rx"),
    "an ellipse's angle": (_mask(kind="ellipse", angle=400), f"{MASK}.angle"),
    "a gradient of no length": (_mask(kind="gradient", **{"from": [0.5, 0.5], "to": [0.5, 0.5]}), f"{MASK}.to"),
    "a gradient's point with one number": (_mask(kind="gradient", **{"from": [0.5]}), f"{MASK}.from"),
    "strokes as an object": (_mask(kind="strokes", strokes={}), f"{MASK}.strokes"),
    "a stroke without points": (_mask(kind="strokes", strokes=[{"points": []}]), f"{MASK}.strokes[0].points"),
    "a point outside": (_mask(kind="strokes", strokes=[{**STROKE, "points": [[2, 0]]}]), f"{MASK}.strokes[0].points"),
    "a stroke's radius": (_mask(kind="strokes", strokes=[{**STROKE, "radius": 0}]), f"{MASK}.strokes[0].radius"),
    "a stroke's pressure": (
        _mask(kind="strokes", strokes=[{**STROKE, "points": [[0, 0, 2]]}]),
        f"{MASK}.strokes[0].points",
    ),
    "the second stroke": (
        _mask(kind="strokes", strokes=[STROKE, {**STROKE, "erase": "no"}]),
        f"{MASK}.strokes[1].erase",
    ),
    "strokes without end": (_mask(kind="strokes", strokes=[STROKE] * 10_001), f"{MASK}.strokes"),
    # Images.
    "an image without data": (_mask(kind="image"), f"{MASK}.data"),
    "an image of no base64": (_mask(kind="image", data="data:image/png;base64,%%%"), f"{MASK}.data"),
    "an image of text": (_mask(kind="image", data=base64.b64encode(b"an ocean").decode()), f"{MASK}.data"),
    "an image cut short": (_mask(kind="image", data=PNG[: len(PNG) // 2 // 4 * 4]), f"{MASK}.data"),
    "an image that is a file's name": (_mask(kind="image", data="/etc/passwd"), f"{MASK}.data"),
    "an image that is an address": (_mask(kind="image", data="http://127.0.0.1/mask.png"), f"{MASK}.data"),
    "an image too wide": (_mask(kind="image", data=png(np.zeros((1, 4097)))), f"{MASK}.data"),
    "an image too large": (_mask(kind="image", data="A" * (23 * 2**20)), f"{MASK}.data"),
    "half a GIF": (_mask(kind="image", data="R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEA"), f"{MASK}.data"),
    "an image's invert": (_mask(kind="image", data=PNG, invert=1), f"{MASK}.invert"),
    # Blend.
    "blend as text": ({"blend": "add"}, "blend"),
    "an unknown mode": ({"blend": {"mode": "mix"}}, "blend.mode"),
    "a negative scale": ({"blend": {"scale": -0.1}}, "blend.scale"),
    "a scale as a list": ({"blend": {"scale": [1]}}, "blend.scale"),
    "preserve_norm as a number": ({"blend": {"preserve_norm": 1}}, "blend.preserve_norm"),
    "an end before the start": ({"blend": {"start": 0.6, "end": 0.4}}, "blend.end"),
    "a start beyond the end": ({"blend": {"start": 1.1}}, "blend.start"),
    # Noise.
    "an unknown noise": ({"noise": {"audio": {}}}, "noise.audio"),
    "a negative exponent": ({"noise": {"exponent": -1}}, "noise.exponent"),
    "a seed as a float": ({"noise": {"seed": 1.5}}, "noise.seed"),
    "a seed too large": ({"noise": {"seed": 2**63}}, "noise.seed"),
    "a visual strength too large": ({"noise": {"visual": {"strength": 1.1}}}, "noise.visual.strength"),
    "a visual size": ({"noise": {"visual": {"size": 0.2}}}, "noise.visual.size"),
    "a rank of 0": ({"noise": {"concept": {"rank": 0}}}, "noise.concept.rank"),
    "a rank as a float": ({"noise": {"concept": {"rank": 2.5}}}, "noise.concept.rank"),
    "a size of 0": ({"noise": {"concept": {"size": 0}}}, "noise.concept.size"),
    "dimensions as a number": ({"noise": {"feature": {"dimensions": 5}}}, "noise.feature.dimensions"),
    "dimensions that descend": ({"noise": {"feature": {"dimensions": "9-3"}}}, "noise.feature.dimensions"),
    "dimensions in words": ({"noise": {"feature": {"dimensions": "some"}}}, "noise.feature.dimensions"),
    "negative dimensions": ({"noise": {"feature": {"dimensions": [-1]}}}, "noise.feature.dimensions"),
    "a noise's motion": ({"noise": {"concept": {"motion": {"kind": "jump"}}}}, "noise.concept.motion.kind"),
    # Motion.
    "an unknown motion": (_motion(kind="jump"), "motion.kind"),
    "no cycles": (_motion(cycles=0), "motion.cycles"),
    "half a cycle": (_motion(cycles=0.5), "motion.cycles"),
    "a phase too large": (_motion(phase=7), "motion.phase"),
    "a momentum of 1": (_motion(momentum=1), "motion.momentum"),
    "loop as text": (_motion(loop="true"), "motion.loop"),
    "keyframes missing": (_motion(kind="keyframes"), "motion.keyframes"),
    "a keyframe's value": (
        _motion(kind="keyframes", keyframes=[{"frame": 0, "value": 2}]),
        "motion.keyframes[0].value",
    ),
    "keyframes twice": (
        _motion(kind="keyframes", keyframes=[{"frame": 3, "value": 0}, {"frame": 3, "value": 1}]),
        "motion.keyframes",
    ),
    # Animation.
    "no frames": ({"animation": {"frames": 0}}, "animation.frames"),
    "10,001 frames": ({"animation": {"frames": 10_001}}, "animation.frames"),
    "frames as text": ({"animation": {"frames": "8"}}, "animation.frames"),
    "121 frames a second": ({"animation": {"fps": 121}}, "animation.fps"),
    "an unknown format": ({"animation": {"formats": ["gif", "avi"]}}, "animation.formats"),
    "a format as text": ({"animation": {"formats": "gif"}}, "animation.formats"),
    "a rubber band as a number": ({"animation": {"rubber_band": 0}}, "animation.rubber_band"),
    "interpolation by 9": ({"animation": {"interpolate": 9}}, "animation.interpolate"),
    # What only the model can tell.
    "dimensions the model has not": (
        {"noise": {"feature": {"strength": 0.5, "dimensions": "0-99999"}}},
        "noise.feature.dimensions",
    ),
}

BAD_ARGUMENTS: dict[str, tuple[list[Any], str]] = {
    "a scene and the switch": ([{}, True], "args"),
    "two scenes": ([{}, False, "{}", {}], "args"),
    "a scene and a control": ([{"concepts": []}, False, "{}", "add"], "args"),
    "a painting that is no JSON": (["", True, "{"], "painting"),
    "a painting of a list": (["", True, "[]"], "painting"),
    "a control's value": (["", True, "{}", "mix"], "blend.mode"),
    "a control's type": (["", True, "{}", "add", "much"], "blend.scale"),
    "an unknown field in the painting": (["", True, '{"concept": []}'], "concept"),
}


def _assert_refused(answer: Any, path: str) -> None:
    assert answer.status == hosts.host().refuses, str(answer)
    problems = answer.json["detail"]
    assert problems and all(problem["message"] for problem in problems)
    paths = [problem["path"] for problem in problems]
    assert any(place == path or (path and place.startswith((f"{path}[", f"{path}."))) for place in paths), problems
    assert len(answer.body) < 5000, "the answer repeats what was sent"


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_of_it(plain):
    yield
    plain.assert_as_before()


@pytest.mark.parametrize("name", BAD_SCENES)
def test_scene(webui, plain, name):
    scene, path = BAD_SCENES[name]
    _assert_refused(webui.ask(scene, batch_size=2), path)
    assert webui.txt2img(batch_size=2).hashes == plain.before[0]


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_arguments(webui, plain, name):
    args, path = BAD_ARGUMENTS[name]
    _assert_refused(webui.ask(args=args, batch_size=2), path)
    assert webui.txt2img(batch_size=2).hashes == plain.before[0]


def test_everything_that_is_wrong_is_said_at_once(webui):
    scene = {"concepts": [{"prompt": 1}, {"prompt": "", "weight": 9}], "blend": {"mode": "x"}, "noise": {"seed": "y"}}
    paths = {problem["path"] for problem in webui.ask(scene).json["detail"]}
    assert {"concepts[0].prompt", "concepts[1].weight", "blend.mode", "noise.seed"} <= paths


BODY_BYTES = 16_000_000
"""The routes take no larger body; a job's is the host's to limit."""


def test_the_routes_say_the_same(webui):
    for name, (scene, path) in BAD_SCENES.items():
        beyond = path == "noise.feature.dimensions" and scene["noise"]["feature"].get("strength")
        if beyond or name == "layers that no model has":
            continue  # only the model can tell
        body = scene.encode() if isinstance(scene, str) else json.dumps(scene).encode()
        answer = webui.request("POST", "/masknoise/v1/validate", body)
        if len(body) > BODY_BYTES:
            assert answer.status == 413 and "16 MB" in answer.json[0]["message"]
            continue
        assert answer.status == 422, f"{body[:200]!r}: {answer}"
        job = webui.ask(scene).json["detail"]
        assert answer.json == job


def test_no_checkpoint_is_loaded_for_a_job_that_is_not_done(webui):
    names = "sd_model_checkpoint", "CLIP_stop_at_last_layers"
    options = webui.get("/sdapi/v1/options")
    before = [options[name] for name in names]
    override = {names[0]: hosts.SECOND_CHECKPOINT or before[0], names[1]: 3 - before[1]}  # 1 in some hosts, 2 in others
    answer = webui.ask({"concepts": 1}, override_settings=override)
    _assert_refused(answer, "concepts")
    after = webui.get("/sdapi/v1/options")
    assert [after[name] for name in names] == before


@pytest.mark.parametrize("job", [{"n_iter": 3}, {"batch_size": 3}, {"enable_hr": True, "denoising_strength": 0.5}])
def test_a_wrong_scene_is_refused_in_every_kind_of_job(webui, job):
    _assert_refused(webui.ask({"blend": {"scale": 3}}, **job), "blend.scale")


def test_a_scene_that_is_switched_off_is_checked_too(webui):
    _assert_refused(webui.ask({"enabled": False, "blend": {"scale": 3}}), "blend.scale")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"scene": 5}'])
def test_broken_requests_to_the_routes(webui, body):
    for route in ("validate", "preview"):
        answer = webui.request("POST", f"/masknoise/v1/{route}", body)
        assert answer.status == 422, f"{route}: {answer}"
        assert all(set(problem) == {"path", "message"} for problem in answer.json)
