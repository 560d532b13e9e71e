"""What a scene asks for that will not do what one expects: said, with its place, and never an error."""

import base64
import html
import io
import json

import pytest
from hypothesis import given, settings
from PIL import Image

from lib_masknoise.__main__ import main
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene
from lib_masknoise.ui import inputs, live
from tests.unit.test_scene import scenes

LEFT = {"kind": "split", "from": 0.0, "to": 0.5}
NOTHING = {"kind": "strokes", "strokes": []}
OCEAN = {"prompt": "an ocean", "mask": LEFT}
SPECK = {"points": [[0.5, 0.5]], "radius": 0.0005}
MOVING = {"noise": {"visual": {"strength": 0.5}}, "motion": {"kind": "circle"}, "animation": {"frames": 12}}


def remarks(data: dict, size=(16, 24)) -> dict[str, str]:
    found = Maps(Scene.parse(data), size).remarks()
    assert len({path for path, _ in found}) == len(found)
    return dict(found)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"concepts": [OCEAN]},
        {"concepts": [OCEAN], **MOVING},
        {"concepts": [{**OCEAN, "weight": 0, "keyframes": [{"weight": 0}, {"frame": 3, "weight": 1}]}], **MOVING},
        {"concepts": [{**OCEAN, "prompt": "", "keyframes": [{"prompt": "x"}, {"frame": 3, "prompt": "y"}]}], **MOVING},
        {
            "concepts": [{**OCEAN, "mask": NOTHING, "keyframes": [{"mask": NOTHING}, {"frame": 5, "mask": LEFT}]}],
            "animation": {"frames": 8},
        },
        {**MOVING, "motion": {"kind": "none"}, "noise": {"visual": {"strength": 1, "motion": {"kind": "walk"}}}},
        {"noise": {"concept": {"strength": 1}}},
        {"enabled": False, "concepts": [{"prompt": "", "weight": 0}], "animation": {"frames": 9}},
    ],
)
def test_what_does_something_is_not_remarked_on(data):
    assert remarks(data) == {}


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({"concepts": [OCEAN, {"prompt": " "}]}, "concepts[1].prompt", "an empty prompt stands in for the image's own"),
        (
            {"concepts": [{**OCEAN, "keyframes": [{"prompt": "a"}, {"frame": 2, "prompt": ""}]}], **MOVING},
            "concepts[0].keyframes[1].prompt",
            "no prompt yet",
        ),
        ({"concepts": [{**OCEAN, "weight": 0}]}, "concepts[0].weight", "adds nothing"),
        ({"concepts": [{**OCEAN, "weight": 0}], "blend": {"overlap": "top"}}, "concepts[0].weight", "covers"),
        (
            {"concepts": [{**OCEAN, "keyframes": [{"weight": 0}, {"frame": 3, "weight": 0, "mask": {}}]}], **MOVING},
            "concepts[0].weight",
            "adds nothing",
        ),
        ({"concepts": [{"prompt": "x", "mask": NOTHING}]}, "concepts[0].mask", "empty, at the size of the latent"),
        (
            {"concepts": [{"prompt": "x", "mask": {"kind": "strokes", "strokes": [SPECK]}}]},
            "concepts[0].mask",
            "nowhere in the picture",
        ),
        (
            {"concepts": [OCEAN, {"prompt": "all over"}], "blend": {"overlap": "top"}},
            "concepts[0].mask",
            "covered by the concepts above it",
        ),
        ({"concepts": [{**OCEAN, "keyframes": [{"frame": 0}, {"frame": 1}]}]}, "concepts[0].keyframes", "1 frame: "),
        ({"concepts": [OCEAN], "blend": {"scale": 0}}, "blend.scale", "no concept adds anything"),
        ({"concepts": [OCEAN], "blend": {"start": 0.5, "end": 0.5}}, "blend.end", "in no step"),
        ({"concepts": [{"prompt": "x"}], **MOVING}, "noise.visual.strength", "no noise reaches any"),
        ({"concepts": [{"prompt": "x"}], **MOVING}, "animation.frames", "12 equal images: the masks hold"),
        ({"noise": {"feature": {"strength": 1}}, "motion": {"kind": "sine"}}, "noise.feature.strength", "at 0 in"),
        ({"animation": {"frames": 8}}, "animation.frames", "8 equal images: no noise has a strength"),
        ({**MOVING, "motion": {"kind": "none"}}, "animation.frames", "circle is one that goes round"),
        ({**MOVING, "motion": {"kind": "circle", "cycles": 12}}, "animation.frames", "is the same in every frame"),
        (
            {**MOVING, "motion": {"kind": "keyframes", "keyframes": [{"value": 1}, {"frame": 5, "value": 1}]}},
            "animation.frames",
            "is the same in every frame",
        ),
        (
            {"concepts": [{**OCEAN, "keyframes": [{"frame": 0}, {"frame": 4}]}], "animation": {"frames": 8}},
            "animation.frames",
            "no concept has keyframes that differ",
        ),
        ({"animation": {"formats": ["mp4"]}}, "animation.formats", "of a single frame no animation is written"),
    ],
)  # fmt: skip
def test_what_cannot_do_what_it_is_for_is_remarked_on(data, path, message):
    assert message in remarks(data)[path]


def test_without_maps_nothing_is_said_about_masks():
    scene = Scene.parse({"concepts": [{"prompt": "x", "mask": NOTHING}]})
    assert scene.remarks() == () and len(Maps(scene, (8, 8)).remarks()) == 1


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_no_scene_is_beyond_remarks(data):
    scene = Scene.parse(data)
    for path, message in Maps(scene, (6, 9)).remarks():
        assert path and message


def test_a_prompt_has_to_be_given_and_may_be_empty(tmp_path, capsys):
    path = tmp_path / "scene.json"
    path.write_text(json.dumps({"concepts": [{"mask": LEFT}]}))
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err == 'concepts[0].prompt: missing; expected a text, be it "" for an empty prompt\n'
    keys = [{"prompt": "dawn"}, {"frame": 3, "prompt": "dusk"}]
    assert Scene.parse({"concepts": [{"keyframes": keys}]}).concepts[0].prompt == ""
    path.write_text(json.dumps({"concepts": [{"prompt": "", "mask": LEFT}]}))
    assert main(["check", str(path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("a valid scene") and second.startswith("remark: concepts[0].prompt: no prompt yet")
    assert Scene.read(path).to_dict(defaults=False)["concepts"] == [
        {"prompt": "", "mask": {"kind": "split", "to": 0.5}}
    ]


def test_the_page_shows_remarks_beside_the_pictures_and_the_canvas_gets_them():
    scene = Scene.parse({"concepts": [{"prompt": "<b>", "mask": NOTHING}]})
    shown, reply = live.answer(inputs.show(scene), json.dumps({"tick": 3, "width": 256, "height": 128}))
    (remark,) = json.loads(reply)["remarks"]
    assert remark["path"] == "concepts[0].mask" and html.escape(remark["message"]) in shown and "mn-figures" in shown
    assert json.loads(live.answer(inputs.show(Scene()), "{}")[1])["remarks"] == []


def test_of_a_picture_with_several_frames_the_first_is_the_mask_and_that_is_said():
    file = io.BytesIO()
    frames = [Image.new("L", (4, 4), value) for value in (255, 0, 90)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data = base64.b64encode(file.getvalue()).decode()
    scene = {"concepts": [{"prompt": "x", "mask": {"kind": "image", "data": data}}]}
    assert remarks(scene) == {"concepts[0].mask.data": "a picture of 3 frames: the first is the mask of a still"}
    assert Maps(Scene.parse(scene), (8, 8)).weights().min() > 0.99


def test_a_concept_that_acts_in_no_step():
    scene = Scene.parse({"concepts": [{"prompt": "an ocean", "start": 0.5, "end": 0.5}]})
    assert ("concepts[0].end", "as early as the start (0.5): the concept acts in no step") in [
        (one.path, one.message) for one in scene.remarks()
    ]
