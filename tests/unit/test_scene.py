"""Scenes in and out, and every way in which a scene is refused."""

import base64
import io
import json
import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from lib_masknoise.controls import CONTROLS
from lib_masknoise.scene import (
    MAX_IMAGE_BYTES,
    AnyMask,
    Filter,
    Problem,
    Scene,
    SceneError,
    Stamp,
    Stroke,
    StrokesMask,
    decode_picture,
)

DOCS = Path(__file__).parents[2] / "docs" / "scene.md"
EXAMPLES = re.findall(r"```json\n(.*?)```", DOCS.read_text("utf-8"), re.S)


def picture(size=(3, 2), mode="L", format="PNG", **options) -> bytes:
    file = io.BytesIO()
    pixels = bytes(i * i % 251 for i in range(size[0] * size[1]))
    Image.frombytes("L", size, pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def image_scene(data: str) -> dict:
    return {"concepts": [{"prompt": "", "mask": {"kind": "image", "data": data}}]}


def problems(data) -> dict[str, str]:
    with pytest.raises(SceneError) as caught:
        Scene.parse(data)
    assert len({problem.path for problem in caught.value.problems}) == len(caught.value.problems)
    return dict(caught.value.problems)


# --- Scenes at random

unit = st.floats(0, 1)
ordered = st.tuples(unit, unit).map(sorted)


def of_kind(kind: str, **fields) -> st.SearchStrategy:
    return st.fixed_dictionaries({"kind": st.just(kind)}, optional=fields)


strokes = st.fixed_dictionaries(
    {"points": st.lists(st.lists(unit, min_size=2, max_size=3), min_size=1, max_size=4)},
    optional={
        "radius": st.floats(0.001, 1),
        "hardness": unit,
        "opacity": unit,
        "flow": st.floats(0.01, 1),
        "erase": st.booleans(),
    },
)
filters = st.fixed_dictionaries({"filter": st.sampled_from(["invert", "blur"])}, optional={"amount": unit})
shape_masks = st.one_of(st.just({}), of_kind("ellipse", x=unit), of_kind("gradient", smooth=st.booleans()))
stamps = st.fixed_dictionaries({"mask": shape_masks}, optional={"opacity": unit, "erase": st.booleans()})
operations = st.one_of(strokes, filters, stamps)
masks = st.one_of(
    st.just({}),
    of_kind("rect", left=st.floats(0, 0.5), right=st.floats(0.5, 1), bottom=unit, feather=unit),
    ordered.flatmap(
        lambda ends: of_kind("split", axis=st.sampled_from("xy"), feather=unit).map(
            lambda mask: {**mask, "from": ends[0], "to": ends[1]}
        )
    ),
    of_kind("ellipse", x=unit, rx=st.floats(0.001, 2), angle=st.floats(-360, 360)),
    of_kind("gradient", shape=st.sampled_from(["linear", "radial"]), smooth=st.booleans()),
    of_kind("strokes", strokes=st.lists(operations, max_size=3)),
    of_kind("image", invert=st.booleans()).map(lambda mask: {**mask, "data": text(picture())}),
)


keys = st.fixed_dictionaries(
    {},
    optional={
        "mask": st.none() | masks,
        "weight": st.none() | st.floats(-4, 4),
        "prompt": st.none() | st.text(max_size=20),
        "negative": st.none() | st.text(max_size=20),
        "easing": st.sampled_from(["linear", "ease-in", "ease-out", "ease-in-out", "step"]),
    },
)


def value_of(entry) -> st.SearchStrategy:
    if entry.path == "noise.feature.dimensions":
        return st.sampled_from(["all", "style", "layout", "0-63", "7", "0-3,9,20-21"]) | st.lists(
            st.integers(0, 4000), min_size=1
        )
    if entry.path.endswith(".layers"):
        return st.sampled_from(["all", "coarse", "fine,middle", " IN1 - 3, mid,out0"])
    if entry.path == "noise.initial.inject.times":
        return st.sampled_from(["1000", " 300", 7, [512]])
    if entry.path == "noise.initial.inject.weights":
        return st.sampled_from(["", "0.5", 2.0, [-1], []])
    if isinstance(entry.default, bool):
        return st.booleans()
    if isinstance(entry.default, tuple):
        return st.lists(st.sampled_from(entry.choices), min_size=1, unique=True)
    if entry.choices:
        return st.sampled_from(entry.choices)
    if isinstance(entry.default, str):
        return st.text(max_size=20)
    return (st.integers if isinstance(entry.default, int) else st.floats)(entry.low, entry.high)


@st.composite
def scenes(draw) -> dict:
    concept = st.fixed_dictionaries({"prompt": st.text(max_size=20)}, optional={"mask": masks})
    scene: dict = {"concepts": draw(st.lists(concept, max_size=3))}
    for entry in CONTROLS:
        head, _, field = entry.path.rpartition(".")
        if head == "concepts[]":
            places = scene["concepts"]
        else:
            place = scene
            for name in head.split(".") if head else []:
                place = place.setdefault(name, {})
            places = [place]
        for place in places:
            if draw(st.booleans()):
                place[field] = draw(value_of(entry))
    motion = scene["motion"]
    for part in (scene["blend"], *scene["concepts"]):
        if part.get("start", 0) > part.get("end", 1):
            part["start"], part["end"] = part.get("end", 1), part["start"]
    frames = draw(st.lists(st.integers(0, 10_000), min_size=motion.get("kind") == "keyframes", unique=True))
    motion["keyframes"] = [{"frame": frame, "value": draw(st.floats(-1, 1))} for frame in sorted(frames)]
    for concept in scene["concepts"]:
        frames = draw(st.lists(st.integers(0, 10_000), unique=True, max_size=4))
        concept["keyframes"] = [{**draw(keys), "frame": frame} for frame in sorted(frames)]
    for noise in ("visual", "concept", "feature"):
        if draw(st.booleans()):
            scene["noise"][noise]["motion"] = draw(st.sampled_from([None, {}, {"kind": "walk"}, dict(motion)]))
    return scene


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_every_form_gives_the_same_scene_back(data):
    scene = Scene.parse(data)
    assert Scene.parse(scene.to_dict()) == scene
    assert Scene.parse(scene.to_dict(defaults=False)) == scene
    assert Scene.parse(scene.to_json()) == Scene.parse(scene.to_json(indent=1).encode()) == scene
    assert json.loads(scene.to_json()) == scene.to_dict()
    assert scene.replace({}) == scene and hash(Scene.parse(scene.to_dict())) == hash(scene)


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_schema_accepts_what_parse_accepts(data):
    validator = pytest.importorskip("jsonschema").Draft7Validator(Scene.json_schema())
    scene = Scene.parse(data)
    for form in (data, scene.to_dict(), scene.to_dict(defaults=False)):
        assert not list(validator.iter_errors(form))


OTHERS = ["concepts[].mask", "concepts[].keyframes", "motion.keyframes", "noise.visual.motion", "noise.feature.motion"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([entry.path for entry in CONTROLS] + OTHERS), json_values)
def test_anything_at_all_is_taken_or_refused_there(path, value):
    base = Scene.parse({"concepts": [{"prompt": ""}]})
    try:
        assert base.replace({path: value}) is not None
    except SceneError as error:
        there = path.replace("[]", "[0]")
        depending = {"blend.start": "blend.end", "motion.kind": "motion.keyframes"}.get(path, there)
        assert all(problem.path.startswith((there, depending)) for problem in error.problems)
        assert str(error) and len(str(error)) < 5000


# --- The neutral scene, the documentation's examples


def test_empty_scene_is_complete_and_neutral():
    scene = Scene.parse({})
    assert scene.neutral and scene.to_dict(defaults=False) == {}
    assert list(scene.to_dict()) == [
        "version",
        "enabled",
        "concepts",
        "blend",
        "noise",
        "motion",
        "animation",
    ]


@pytest.mark.parametrize(
    ("data", "neutral"),
    [
        ({"concepts": [{"prompt": ""}]}, False),
        ({"concepts": [{"prompt": ""}], "enabled": False}, True),
        ({"concepts": [{"prompt": "", "enabled": False}]}, True),
        ({"noise": {"visual": {"strength": 0.1}}}, False),
        ({"noise": {"concept": {"strength": 0.1}}}, False),
        ({"noise": {"feature": {"strength": 0.1}}}, False),
        ({"motion": {"kind": "sine"}, "blend": {"mode": "add"}}, True),
    ],
)
def test_neutral(data, neutral):
    assert Scene.parse(data).neutral is neutral


@pytest.mark.parametrize("example", EXAMPLES)
def test_documented_examples_are_scenes(example):
    scene = Scene.parse(example)
    assert scene != Scene.parse({})
    validator = pytest.importorskip("jsonschema").Draft7Validator(Scene.json_schema())
    assert not list(validator.iter_errors(json.loads(example)))


@pytest.mark.parametrize("mask", get_args(AnyMask))
def test_documentation_names_every_field_of_every_mask(mask):
    kind = mask.__fields__["kind"].default
    section = re.search(rf"^### {kind}\n(.*?)^##", DOCS.read_text("utf-8"), re.S | re.M)[1]
    fields = {field.alias for field in mask.__fields__.values()} - {"kind"}
    if mask is StrokesMask:
        fields |= {*Stroke.__fields__, *Stamp.__fields__, *Filter.__fields__}
    assert fields <= set(re.findall(r"`(\w+)`", section))


# --- Values


def test_scale_defaults_to_the_mode():
    assert Scene.parse({"blend": {"mode": "add"}}).blend.scale == 0.1
    assert Scene.parse({"blend": {"mode": "add", "scale": 1}}).blend.scale == 1.0
    assert Scene.parse({}).replace({"blend.mode": "add"}).blend.scale == 0.1
    assert Scene.parse({"blend": {"scale": 0.7}}).replace({"blend.mode": "add"}).blend.scale == 0.7


def test_whole_floats_are_integers():
    frames = Scene.parse({"animation": {"frames": 24.0}}).animation.frames
    assert frames == 24 and isinstance(frames, int)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [("all", "all"), (" 0 - 63 , 100", "0-63,100"), ([3, 1, 2, 9, 2], "1-3,9"), ([5.0], "5"), ("4,2", "4,2")],
)
def test_dimensions_are_kept_as_text(given_, kept):
    assert Scene.parse({"noise": {"feature": {"dimensions": given_}}}).noise.feature.dimensions == kept


def test_scene_is_immutable():
    scene = Scene.parse({"concepts": [{"prompt": ""}]})
    with pytest.raises(TypeError):
        scene.blend.mode = "add"
    assert isinstance(scene.concepts, tuple)


# --- Refusals


def test_every_problem_at_once_by_path():
    data = {
        "version": 2,
        "enabled": 1,
        "concepts": [
            {"weight": 9, "prompt": None},
            {"prompt": "", "mask": {"kind": "image", "data": text(b"hello")}},
            3,
            {"prompt": "", "mask": {"kind": "strok"}},
            {"prompt": "", "mask": {"kind": "strokes", "strokes": [{"points": [[0, 0], [2, 3]]}, {"points": []}, {}]}},
            {"prompt": "", "mask": {"kind": "split", "from": 0.5, "to": 0.2, "frm": 2}},
            {"prompt": "", "mask": {"kind": "gradient", "from": [0, 0], "to": [0, 0]}},
            {"prompt": "", "mask": {"kind": "image"}},
        ],
        "blend": {"mode": "mix", "scale": True, "start": 0.5, "end": 0.2},
        "noise": {"visual": {"strength": "high"}, "seed": 1.5, "feature": {"dimensions": "5-2"}},
        "motion": {"kynd": 1, "kind": "keyframes"},
        "animation": {"formats": ["gif", "gof", "gif"], "fps": float("nan")},
    }
    assert problems(data) == {
        "version": "expected 1, got 2",
        "enabled": "expected true or false, got 1",
        "concepts[0].weight": "expected a number from -4 to 4, got 9",
        "concepts[0].prompt": "expected a string, got null",
        "concepts[1].mask.data": "not a PNG, JPEG or WebP image, nor a GIF, BMP, TIFF or AVIF",
        "concepts[2]": "expected an object, got 3",
        "concepts[3].mask.kind": 'expected "rect", "split", "ellipse", "gradient", "image" or "strokes", '
        'got "strok"; did you mean "strokes"?',
        "concepts[4].mask.strokes[0].points[1]": "expected [x, y] or [x, y, pressure], from 0 to 1, got [2, 3]",
        "concepts[4].mask.strokes[1].points": "expected a list of [x, y] or [x, y, pressure], got []",
        "concepts[4].mask.strokes[2].points": "missing; expected a value",
        "concepts[5].mask.to": "expected at least from (0.5), got 0.2",
        "concepts[5].mask.frm": 'unknown field; expected one of kind, axis, from, to, feather; did you mean "from"?',
        "concepts[6].mask.to": "expected a point other than from, got [0.0, 0.0]",
        "concepts[7].mask.data": "missing; expected a value",
        "blend.mode": 'expected "interpolate" or "add", got "mix"',
        "blend.scale": "expected a number from 0 to 2, got true",
        "blend.end": "expected at least start (0.5), got 0.2",
        "noise.visual.strength": 'expected a number from 0 to 1, got "high"',
        "noise.seed": "expected an integer from -1 to 9223372036854775807, got 1.5",
        "noise.feature.dimensions": 'expected ascending ranges, got "5-2"',
        "motion.keyframes": "expected at least one keyframe for the kind keyframes, got none",
        "motion.kynd": "unknown field; expected one of kind, cycles, phase, momentum, loop, keyframes; "
        'did you mean "kind"?',
        "animation.formats[1]": 'expected "gif", "webp", "apng", "mp4" or "sheet", got "gof"; did you mean "gif"?',
        "animation.formats[2]": '"gif" is given twice',
        "animation.fps": "expected an integer from 1 to 120, got NaN",
    }


def keyed(*keys: dict) -> dict:
    return {"concepts": [{"prompt": "", "keyframes": list(keys)}]}


def prompts(count: int, name: str) -> dict:
    return keyed(*({"frame": i, name: str(i)} for i in range(count)))


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({"blend": None}, "blend", "expected an object, got null"),
        ({"concepts": {"prompt": ""}}, "concepts", "expected a list, got an object"),
        ({"concepts": [{"prompt": ""}] * 17}, "concepts", "expected at most 16 entries, got 17"),
        ({"concepts": [{"prompt": "", "mask": "rect"}]}, "concepts[0].mask", 'expected an object, got "rect"'),
        ({"concepts": [{"prompt": "", "mask": {"from_": 0}}]}, "concepts[0].mask.from_", "unknown field"),
        ({"concepts": [{"prompt": "\ud800"}]}, "concepts[0].prompt", "expected valid Unicode text"),
        ({"concepts": [{"prompt": 1}]}, "concepts[0].prompt", "expected a string, got 1"),
        ({"animation": {"formats": []}}, "animation.formats", "expected at least 1 entry"),
        ({"animation": {"formats": "gif"}}, "animation.formats", 'expected a list, got "gif"'),
        ({"animation": {"frames": 10**400}}, "animation.frames", "got a huge integer"),
        ({"animation": {"frames": "1"}}, "animation.frames", 'got "1"'),
        ({"noise": {"exponent": float("inf")}}, "noise.exponent", "got Infinity"),
        ({"noise": {"feature": {"dimensions": []}}}, "noise.feature.dimensions", 'expected "all", "style"'),
        ({"noise": {"feature": {"dimensions": [-1]}}}, "noise.feature.dimensions", "got [-1]"),
        ({"noise": {"feature": {"dimensions": "1,,2"}}}, "noise.feature.dimensions", 'got "1,,2"'),
        ({"noise": {"feature": {"layers": ""}}}, "noise.feature.layers", 'expected "all", or some of coarse'),
        ({"noise": {"concept": {"layers": "in4,up1"}}}, "noise.concept.layers", 'got "in4,up1"'),
        ({"noise": {"concept": {"layers": "in4-2"}}}, "noise.concept.layers", 'expected ascending ranges, got "in4-2"'),
        ({"noise": {"concept": {"layers": ["mid"]}}}, "noise.concept.layers", 'got ["mid"]'),
        (
            {"motion": {"keyframes": [{"frame": 3}, {"frame": 3}]}},
            "motion.keyframes[1].frame",
            "expected more than",
        ),
        ({"motion": {"keyframes": [{"easing": "in"}]}}, "motion.keyframes[0].easing", 'got "in"'),
        ({"noise": {"visual": {"motion": {"kind": "keyframes"}}}}, "noise.visual.motion.keyframes", "at least one"),
        ({"noise": {"visual": {"motion": []}}}, "noise.visual.motion", "expected an object, got []"),
        ({"motion": None}, "motion", "expected an object, got null"),
        (keyed({"frame": 4}, {"frame": 4}), "concepts[0].keyframes[1].frame", "before (4), got 4"),
        (keyed({"weight": 5}), "concepts[0].keyframes[0].weight", "expected a number from -4 to 4, got 5"),
        (keyed({"mask": {"kind": "blob"}}), "concepts[0].keyframes[0].mask.kind", 'got "blob"'),
        (keyed({"mask": {"left": 2}}), "concepts[0].keyframes[0].mask.left", "from 0 to 1, got 2"),
        (keyed({"promt": "a"}), "concepts[0].keyframes[0].promt", 'did you mean "prompt"?'),
        (keyed({"frame": None}), "concepts[0].keyframes[0].frame", "got null"),
        (keyed(*[{}] * 1001), "concepts[0].keyframes", "expected at most 1,000 entries, got 1,001"),
        (prompts(17, "prompt"), "concepts[0].keyframes", "expected at most 16 different prompts, got 17"),
        (prompts(17, "negative"), "concepts[0].keyframes", "expected at most 16 different negatives, got 17"),
        ({"__pydantic_self__": 1}, "__pydantic_self__", "unknown field"),
        ({3: 1}, "[3]", "unknown field"),
        ({"a\nb": 1}, '["a\\nb"]', "unknown field"),
        ([1], "", "expected an object, got [1]"),
        ("", "", "not valid JSON: Expecting value at line 1, column 1"),
        ('{"a": 1,}', "", "not valid JSON"),
        (b"\xff", "", "not valid JSON"),
        ("[" * 200_000, "", "nested too deeply"),
        ('{"blend": {"mode": "add", "mode": "add"}}', "blend.mode", "given more than once"),
        ('{"concepts": [{"prompt": "", "weight": 1, "weight": 1}]}', "concepts[0].weight", "given more than once"),
    ],
)
def test_refused(data, path, message):
    found = problems(data)
    assert list(found) == [path] and message in found[path]


def test_messages_are_short():
    assert len(problems({"blend": {"mode": "x" * 10_000}})["blend.mode"]) < 150
    assert "a list of 1000" in problems({"blend": {"mode": [1] * 1000}})["blend.mode"]


def test_strokes_are_counted_before_they_are_read():
    def many(count: int, points: int) -> dict:
        stroke = {"points": [[0.5, 0.5]] * points}
        return {"concepts": [{"prompt": "", "mask": {"kind": "strokes", "strokes": [stroke] * count}}]}

    assert problems(many(2, 50_001)) == {
        "concepts[0].mask.strokes": "expected at most 100,000 points in all, got 100,002"
    }
    for no_list, shown in (({}, "an object"), ("", '""'), (None, "null")):
        scene = {"concepts": [{"prompt": "", "mask": {"kind": "strokes", "strokes": no_list}}]}
        assert problems(scene) == {"concepts[0].mask.strokes": f"expected a list, got {shown}"}
    assert problems(many(10_001, 1)) == {"concepts[0].mask.strokes": "expected at most 10,000 entries, got 10,001"}


def test_operations_are_checked_one_by_one():
    entries = [
        {"mask": {"kind": "strokes", "strokes": []}},
        {"mask": {"kind": "ellipse", "rx": 9}, "opacity": 2},
        {"filter": "sharpen"},
        {"filter": "blur", "amount": -1, "strength": 1},
        {"points": [[0, 0]], "flow": 0},
        7,
    ]
    assert problems({"concepts": [{"prompt": "", "mask": {"kind": "strokes", "strokes": entries}}]}) == {
        "concepts[0].mask.strokes[0].mask.kind": 'expected "rect", "split", "ellipse", "gradient" or "image", '
        'got "strokes"',
        "concepts[0].mask.strokes[1].mask.rx": "expected a number from 0.001 to 2, got 9",
        "concepts[0].mask.strokes[1].opacity": "expected a number from 0 to 1, got 2",
        "concepts[0].mask.strokes[2].filter": 'expected "invert" or "blur", got "sharpen"',
        "concepts[0].mask.strokes[3].amount": "expected a number from 0 to 1, got -1",
        "concepts[0].mask.strokes[3].strength": "unknown field; expected one of filter, amount",
        "concepts[0].mask.strokes[4].flow": "expected a number from 0.01 to 1, got 0",
        "concepts[0].mask.strokes[5]": "expected an object, got 7",
    }


@pytest.mark.parametrize(
    "entries, message",
    [
        ([{"mask": {}}] * 1001, "expected at most 1,000 shapes and pictures in all, got 1,001"),
        ([{"filter": "blur"}] * 201, "expected at most 200 filters in all, got 201"),
        (
            [{"points": [[0, 0], [1, 0]] * 10, "radius": 0.001, "flow": 0.5}],
            "expected strokes with a flow below 1 to be at most 10,000 radii long in all, got 19,000",
        ),
    ],
)
def test_costly_operations_are_limited(entries, message):
    mask = {"kind": "strokes", "strokes": entries}
    assert problems({"concepts": [{"prompt": "", "mask": mask}]}) == {"concepts[0].mask.strokes": message}


def test_error_reads_and_travels():
    error = SceneError((Problem("", "no"), Problem("blend.mode", "expected …")))
    assert str(error) == "no\nblend.mode: expected …"
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_read(tmp_path):
    file = tmp_path / "scene.json"
    file.write_text('{"animation": {"frames": 3}}', encoding="utf-8-sig")
    assert Scene.read(file).animation.frames == 3
    with pytest.raises(SceneError, match="cannot read .*missing.json"):
        Scene.read(tmp_path / "missing.json")


# --- Mask images


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/x-y;charset=z;base64,\n "])
def test_images_are_taken(format, prefix):
    data = prefix + text(picture((20, 10), "RGB", format))
    assert decode_picture(data).size == (20, 10)
    assert Scene.parse(image_scene(data)).concepts[0].mask.data == data


def animated() -> bytes:
    frames = [Image.new("L", (4, 4), grey) for grey in (255, 0)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


def test_first_frame_of_an_animation():
    assert decode_picture(text(animated())).convert("L").getextrema() == (255, 255)


def test_orientation_is_applied():
    rotated = Image.Exif()
    rotated[0x0112] = 6
    assert decode_picture(text(picture((20, 10), "RGB", "JPEG", exif=rotated))).size == (10, 20)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds nearly nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "not a PNG"),
        ("data:image/png;base64", "expected"),
        ("data:text/plain;base64,aGk=", 'expected "data:image/…;base64,…"'),
        ("data:image/png,abc", 'expected "data:image/…;base64,…"'),
        ("****", "expected base64"),
        ("ä", "expected base64"),
        (text(picture(format="PPM")), "not a PNG, JPEG or WebP image"),
        (text(picture(format="TGA")), "not a PNG, JPEG or WebP image"),
        (text(picture((40, 30), format="GIF")[:-1]), "truncated"),
        (text(picture((40, 30), format="BMP")[:-1]), "truncated"),
        (text(picture((40, 30), format="TIFF")[:-900]), "damaged or truncated"),
        (text(png_header(4097, 1)), "at most 4096 × 4096 pixels, got 4097 × 1"),
        (text(png_header(1, 5000)), "at most 4096 × 4096 pixels, got 1 × 5000"),
        (text(png_header(2**31 - 1, 2**31 - 1)), "4096 × 4096"),
        (text(png_header(12_000, 10_000)), "at most 4096 × 4096 pixels, got 12000 × 10000"),
        (text(png_header(30, 30)), "damaged or truncated"),
        ("A" * (MAX_IMAGE_BYTES * 4 // 3 + 8), "larger than 16 MB"),
    ],
    ids=lambda value: value[:30],
)
def test_images_refused(data, message):
    found = problems(image_scene(data))
    assert list(found) == ["concepts[0].mask.data"] and message in found["concepts[0].mask.data"]
    assert len(found["concepts[0].mask.data"]) < 250


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_images_are_refused_whatever_the_host_told_pillow(format, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    raw = picture((64, 64), "RGB", format)
    decode_picture(text(raw))
    for kept in (len(raw) // 3, len(raw) // 2, len(raw) - 20):
        assert "concepts[0].mask.data" in problems(image_scene(text(raw[:kept])))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_damaged_images_never_escape(format, data):
    raw = bytearray(picture((16, 16), "RGB", format))
    for _ in range(3):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_picture(text(bytes(raw)))
    except ValueError as error:
        assert str(error)


# --- Replacing


def test_replace():
    scene = Scene.parse({"concepts": [{"prompt": "a"}, {"prompt": "b", "mask": {"kind": "split"}}]})
    changed = scene.replace(
        {
            "animation.frames": 24,
            "concepts[1].mask.to": 0.5,
            "concepts[].weight": 2,
            "noise.feature.dimensions": [1],
        }
    )
    assert changed.animation.frames == 24 and changed.concepts[1].mask.to == 0.5
    assert [concept.weight for concept in changed.concepts] == [2, 2]
    assert changed.noise.feature.dimensions == "1"
    assert scene.animation.frames == 1


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("noise.visul.strength", 1, ("noise.visul", "unknown field")),
        ("blend.mod", "add", ("blend.mod", "unknown field")),
        ("blend.mode.x", 1, ("blend.mode.x", "no such field")),
        ("concepts[2].weight", 1, ("concepts[2].weight", "no such entry; there are 1")),
        ("motion.keyframes[].value", 1, ("motion.keyframes[].value", "no such entry; there are 0")),
        ("blend[0]", 1, ("blend[0]", "no such entry")),
        ("blend..mode", 1, ("blend..mode", "not a path")),
        ("", 1, ("", "not a path")),
        ("animation.frames", 0, ("animation.frames", "expected an integer from 1 to 10000, got 0")),
    ],
)
def test_replace_refuses(path, value, problem):
    with pytest.raises(SceneError) as caught:
        Scene.parse({"concepts": [{"prompt": ""}]}).replace({path: value})
    (found,) = caught.value.problems
    assert found.path == problem[0] and problem[1] in found.message


# --- The schema


def test_schema_refuses_what_it_can_express():
    jsonschema = pytest.importorskip("jsonschema")
    schema = Scene.json_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    for wrong in (
        {"x": 1},
        {"blend": {"mode": "mix"}},
        {"noise": {"visual": {"strength": 1.1}}},
        {"concepts": [{"prompt": "", "mask": {"kind": "image"}}]},
        {"concepts": [{"prompt": "", "mask": {"kind": "split", "left": 0.1}}]},
        {"concepts": [{"prompt": "", "mask": {"rx": 0.1}}]},
        {"concepts": [{"prompt": ""}] * 17},
        {"animation": {"formats": ["gif", "gif"]}},
        {"noise": {"feature": {"dimensions": 3}}},
    ):
        assert list(validator.iter_errors(wrong)), wrong
        problems(wrong)


def test_schema_carries_the_table():
    definitions = Scene.json_schema()["definitions"]
    strength = definitions["VisualNoise"]["properties"]["strength"]
    assert (strength["minimum"], strength["maximum"], strength["default"]) == (0, 1, 0)
    assert strength["description"].startswith("How far")
    assert all(part["additionalProperties"] is False for part in definitions.values())


# --- What concepts have in common, and scenes from lines


def test_what_all_concepts_have_in_common_stands_in_each_prompt():
    scene = Scene.parse(
        {
            "concepts": [
                {"prompt": "a forest", "keyframes": [{"frame": 2, "prompt": "snow"}, {"frame": 3, "weight": 0.5}]},
                {"prompt": "", "negative": "ugly"},
                {"prompt": "off", "enabled": False},
            ],
            "blend": {"common": "oil on canvas"},
        }
    )
    first, second = scene.acting.concepts
    assert [first.prompt, *(key.prompt for key in first.keyframes)] == [
        "oil on canvas, a forest",
        "oil on canvas, snow",
        None,
    ]
    assert (second.prompt, second.negative) == ("oil on canvas", "ugly")
    assert scene.acting.acting == scene.acting and scene.concepts[0].prompt == "a forest"
    assert scene.replace({"blend.common": "oil,"}).acting.concepts[0].prompt == "oil, a forest"
    assert scene.replace({"blend.common": " "}).acting.concepts[0].prompt == "a forest"


def test_a_scene_from_lines():
    scene = Scene.from_lines("a forest\n\n Common : oil on canvas\nlava: red\n")
    assert [concept.prompt for concept in scene.concepts] == ["a forest", "lava: red"]
    assert scene.blend.common == "oil on canvas"
    assert [(concept.mask.from_, concept.mask.to) for concept in scene.concepts] == [(0.0, 0.5), (0.5, 1.0)]
    with pytest.raises(SceneError, match="at most 16"):
        Scene.from_lines("a\n" * 17)
    assert Scene.from_lines("") == Scene()
