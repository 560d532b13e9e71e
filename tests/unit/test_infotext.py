"""Scenes as infotext: through a host's quoting and parsing, and after editing by hand."""

import base64
import json
import random
import re
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib_masknoise.controls import CONTROLS
from lib_masknoise.infotext import KEY, MASKS, NOTES, PATHS, read, write
from lib_masknoise.scene import MAX_CONCEPTS, Scene, SceneError
from tests.unit.test_scene import picture, scenes, text

# --- What a host does with the parameters


def shown(params: dict[str, str]) -> str:
    """The last line of an image's infotext, other parameters around ours."""
    params = {"Steps": 20, "Size": "512x512", "Seed": 1, **params, "Version": "v1.10.1"}
    quoted = {
        key: json.dumps(value, ensure_ascii=False) if any(sign in str(value) for sign in ",:\n") else value
        for key, value in params.items()
    }
    return ", ".join(key if key == value else f"{key}: {value}" for key, value in quoted.items()).strip()


def pasted(infotext: str) -> dict[str, str]:
    """The parameters that a host reads from it."""
    params = {}
    for key, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', infotext.split("\n")[-1]):
        if not value:
            continue
        if value[0] == value[-1] == '"':
            try:
                value = json.loads(value)
            except ValueError:
                pass
        size = re.match(r"^(\d+)x(\d+)$", value)
        params |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    return params


def there_and_back(scene: Scene) -> Scene | None:
    return read(pasted(shown(write(scene))))


ODD_TEXTS = (
    *("", " ", "False", "True", "2x1", "１x２", "a, b: c", "line\nbreak", "\r\n", '"quoted"', '"', '"a, b', 'a "b" c'),
    *("\\", "\\n", "ends in \\", '\\"', " blanks ", "json: ", "json: 1", 'json: "x"', "<lora:a:0.5>", "[a:b:0.5]"),
    *("MaskNoise concept 1 prompt", "MaskNoise: 2", "麦畑、海", "\x00", "\x85", "\u2028", "a\tb", "Steps: 20, Seed: 3"),
)


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_what_is_written_is_read(data):
    scene = Scene.parse(data)
    assert read(write(scene)) == scene
    assert there_and_back(scene) == scene


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12) | st.text('",:\n\\ ax1é', max_size=12), st.sampled_from(ODD_TEXTS))
@example("x", "MaskNoise concept 2 negative prompt")
def test_every_text_comes_through(prompt, negative):
    concepts = [{"prompt": negative, "negative": prompt}, {"prompt": prompt, "negative": negative}]
    scene = Scene.parse({"concepts": concepts})
    assert there_and_back(scene) == scene


@pytest.mark.parametrize("prompt", ODD_TEXTS)
def test_odd_texts_come_through(prompt):
    scene = Scene.parse({"concepts": [{"prompt": prompt, "negative": prompt}]})
    assert there_and_back(scene) == scene


def test_values_are_none_that_a_host_spoils():
    values = [*(value for odd in ODD_TEXTS for value in write(Scene.parse({"concepts": [{"prompt": odd}]})).values())]
    values += write(
        Scene.parse({"enabled": False, "motion": {"loop": False}, "blend": {"preserve_norm": True}})
    ).values()
    assert all(value.strip() == value != "" and value not in ("True", "False") for value in values)
    assert not any(re.match(r"^(\d+)x(\d+)$", value) or value.startswith('"') for value in values)


def test_keys_are_read_as_keys():
    keys = [KEY, MASKS, *PATHS, *NOTES]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"\w[\w \-/]+", key) and key.isascii() for key in keys)
    assert len(PATHS) == sum(MAX_CONCEPTS if entry.path.startswith("concepts[]") else 1 for entry in CONTROLS)


# --- What it looks like


def test_a_neutral_scene_is_known_from_none():
    assert write(Scene()) == {KEY: "1"}
    assert read({KEY: "1"}) == Scene()
    assert read({}) is None
    assert read({"Steps": "20", "MaskNoiseless": "1", NOTES[0]: "3"}) is None


def test_infotext_can_be_read_by_people():
    scene = Scene.parse(
        {
            "concepts": [{"prompt": "a wheat field", "weight": 0.8}, {"prompt": "an ocean", "negative": "ships"}],
            "noise": {"visual": {"strength": 0.35}, "exponent": 3},
            "motion": {"kind": "circle", "loop": False},
            "animation": {"frames": 24, "formats": ["gif", "mp4"]},
        }
    )
    assert write(scene) == {
        "MaskNoise": "1",
        "MaskNoise concept 1 prompt": "a wheat field",
        "MaskNoise concept 1 weight": "0.8",
        "MaskNoise concept 2 prompt": "an ocean",
        "MaskNoise concept 2 negative prompt": "ships",
        "MaskNoise noise exponent": "3",
        "MaskNoise visual noise strength": "0.35",
        "MaskNoise motion": "circle",
        "MaskNoise motion loop": "off",
        "MaskNoise frames": "24",
        "MaskNoise animation formats": "gif mp4",
    }


def test_a_mask_image_takes_no_more_than_its_own_base64():
    noisy = random.Random(0).randbytes(3 * 10**5)
    data = text(picture((512, 512)) + noisy)  # what follows the end mark is ignored
    concept = {"prompt": "", "mask": {"kind": "image", "data": f"data:image/png;base64,{data}"}}
    scene = Scene.parse({"concepts": [concept, {**concept, "weight": 2}]})
    assert there_and_back(scene) == scene
    assert len(write(scene)[MASKS]) < 1.01 * len(data) + 400


@pytest.mark.parametrize("spoil", [lambda data: "\n" + data, lambda data: data[:8] + " " + data[8:]])
def test_unusual_base64_is_kept_to_the_letter(spoil):
    scene = Scene.parse({"concepts": [{"prompt": "", "mask": {"kind": "image", "data": spoil(text(picture()))}}]})
    assert there_and_back(scene) == scene


# --- Edited by hand


@pytest.mark.parametrize(
    ("key", "value", "path", "expected"),
    [
        ("MaskNoise concept 1 weight", " 0.25", "concepts[0].weight", 0.25),
        ("MaskNoise concept 1 prompt", "rye", "concepts[0].prompt", "rye"),
        ("MaskNoise frames", "48.0", "animation.frames", 48),
        ("MaskNoise enabled", "No", "enabled", False),
        ("MaskNoise preserve norm", "True", "blend.preserve_norm", True),
        ("MaskNoise animation formats", "gif, webp/mp4", "animation.formats", ["gif", "webp", "mp4"]),
        ("MaskNoise noise seed", str(2**63 - 1), "noise.seed", 2**63 - 1),
        ("MaskNoise blend mode", "add", "blend.mode", "add"),
    ],
)
def test_what_is_edited_counts(key, value, path, expected):
    scene = Scene.parse({"concepts": [{"prompt": "a wheat field", "mask": {"left": 0.5}}], "motion": {"kind": "walk"}})
    assert read({**write(scene), key: value}) == scene.replace({path: expected})


def test_a_concept_may_be_added():
    scene = read({"MaskNoise concept 1 prompt": "sky", "MaskNoise concept 2 prompt": "sand"})
    assert scene == Scene.parse({"concepts": [{"prompt": "sky"}, {"prompt": "sand"}]})


def refused(params: dict[str, str]) -> dict[str, str]:
    with pytest.raises(SceneError) as caught:
        read(params)
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (KEY, "2", "expected 1, got 2"),
        (KEY, "new", "expected 1"),
        ("MaskNoise concept 1 weight", "9", "from -4 to 4, got 9"),
        ("MaskNoise concept 1 weight", "nan", "expected a number"),
        ("MaskNoise concept 3 prompt", "json: x", "Expecting value"),
        ("MaskNoise frames", "12.5", "expected an integer"),
        ("MaskNoise frames", "9" * 5000, "expected an integer"),
        ("MaskNoise motion loop", "perhaps", "expected true or false"),
        ("MaskNoise motion", "circel", 'did you mean "circle"'),
        ("MaskNoise animation formats", "gif png", "expected"),
        ("MaskNoise concept 17 prompt", "x", "not a key of this version"),
        ("MaskNoise blend scal", "1", "not a key of this version"),
        ("MaskNoise concept 1 prompt", "json: 3", "expected a string"),
        (MASKS, "no base64!", "damaged"),
        (MASKS, "eNo=", "damaged"),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(key, value, message):
    params = write(Scene.parse({"concepts": [{"prompt": "a", "mask": {"left": 0.5}}, {"prompt": "b"}]}))
    assert message in refused({**params, key: value})[key]


def test_a_concept_without_a_prompt_key_is_missed():
    params = write(Scene.parse({"concepts": [{"prompt": ""}, {"prompt": "", "mask": {"left": 0.5}}]}))
    for number in (1, 2):
        key = f"MaskNoise concept {number} prompt"
        assert "missing" in refused({name: value for name, value in params.items() if name != key})[key]


def test_every_problem_is_told():
    problems = refused({"MaskNoise frames": "0", "MaskNoise noise exponent": "x", "MaskNoise concept 1 prompt": "a"})
    assert set(problems) == {"MaskNoise frames", "MaskNoise noise exponent"}


def packed(head: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(head)).decode()


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"{}", b"[]", b"[[],[]]", b"[1,2]", b'[{"concepts":3},[]]', b'[{"concepts":[3]},[]]', b"[" * 10**5),
        *(b'[{"noise":3},[]]', b'[{"concepts":[{"mask":{"kind":"image","data":["",0]}}]},[]]', b"\xff", b'[{},["a"]]'),
    ],
)
def test_damaged_masks_are_refused(head):
    assert MASKS in refused({KEY: "1", "MaskNoise concept 1 prompt": "", MASKS: packed(head)})


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_no_damage_goes_unnamed(noise, place):
    whole = write(Scene.parse({"concepts": [{"prompt": "", "mask": {"left": 0.5}}]}))
    value = whole[MASKS]
    place %= len(value)
    for spoiled in (value[:place], base64.urlsafe_b64encode(noise).decode(), value[:place] + "A" + value[place + 1 :]):
        try:
            read({**whole, MASKS: spoiled})
        except SceneError as error:
            assert all(problem.path == MASKS for problem in error.problems)


def test_a_small_text_does_not_unpack_into_a_huge_one(monkeypatch):
    monkeypatch.setattr("lib_masknoise.infotext._MAX_UNPACKED", 1000)
    assert "too large" in refused({MASKS: packed(b"[{},[]]" + bytes(1000))})[MASKS]
