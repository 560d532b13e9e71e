"""The components of the user interface: their order, bounds and events. Needs gradio; runs with 3.41 and 4."""

import contextlib
import json

import pytest

gr = pytest.importorskip("gradio")

from lib_masknoise.calibrate.profile import Band, Profile, in_numbers  # noqa: E402
from lib_masknoise.controls import CONTROLS, control  # noqa: E402
from lib_masknoise.presets import Presets  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402
from lib_masknoise.ui import accordions, inputs, live  # noqa: E402

SCENE = {
    "concepts": [
        {
            "prompt": "ä <b>field</b>",
            "weight": 1.5,
            "mask": {"kind": "strokes", "strokes": [{"points": [[0.1, 0.2], [0.5, 0.5]], "radius": 0.1}]},
            "keyframes": [{"frame": 3, "weight": 0.5}],
        },
        {"prompt": "", "mask": {"kind": "split", "axis": "y", "from": 0.5}},
    ],
    "blend": {"mode": "add", "scale": 0.3},
    "noise": {"visual": {"strength": 0.5, "motion": {"kind": "sine"}}},
    "motion": {"kind": "circle"},
    "animation": {"frames": 8, "formats": ["gif", "sheet"]},
}


def built(**options):
    with gr.Blocks() as page:
        made = accordions.build(lambda name: f"test_{name}", **options)
    return page, made


def by_label(page):
    return {block.label: block for block in page.blocks.values() if getattr(block, "label", None)}


def test_inputs_are_those_of_a_job_in_their_order():
    _, made = built()
    assert [component.value for component in made.inputs] == inputs.defaults()
    labels = [component.label for component in made.inputs]
    assert labels == ["Scene", "MaskNoise", "Painting", *(entry.label for entry in inputs.SHOWN)]


def test_labels_and_ids_are_unique(tmp_path):
    page, _ = built(presets=Presets(tmp_path))
    blocks = [block for block in page.blocks.values() if not isinstance(block, gr.Accordion)]
    for name in ("label", "elem_id"):
        given = [getattr(block, name) for block in blocks if getattr(block, name, None)]
        assert len(given) == len(set(given))


@pytest.mark.parametrize("entry", inputs.SHOWN, ids=lambda entry: entry.path)
def test_components_have_the_bounds_and_words_of_the_table(entry):
    page, _ = built()
    component = by_label(page)[entry.label]
    assert component.info == entry.help
    if isinstance(component, gr.Slider):
        assert (component.minimum, component.maximum, component.step) == (entry.low, entry.high, entry.step)
    if entry.choices:
        assert [choice[1] if isinstance(choice, tuple) else choice for choice in component.choices] == [*entry.choices]


def test_every_control_but_the_concepts_own_is_shown():
    assert {entry.path for entry in CONTROLS} - {entry.path for entry in inputs.SHOWN} == {
        "enabled",
        *(entry.path for entry in CONTROLS if entry.path.startswith("concepts[]")),
    }


def test_the_host_may_give_the_outer_accordion():
    given = {}

    @contextlib.contextmanager
    def enable(value, label, elem_id):
        given.update(value=value, label=label, elem_id=elem_id)
        yield gr.Checkbox(value=value, label=label)

    _, made = built(enable=enable)
    assert given == {"value": False, "label": "MaskNoise", "elem_id": "test_enabled"}
    assert isinstance(made.inputs[1], gr.Checkbox)


def test_the_canvas_finds_its_fields():
    page, _ = built(tab="img2img")
    place = next(block for block in page.blocks.values() if "masknoise-canvas" in str(getattr(block, "value", "")))
    text = place.value.split('data-config="')[1].split('"')[0]
    config = json.loads(text.replace("&quot;", '"').replace("&#x27;", "'"))
    ids = {block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert {config[name] for name in ("painting", "request", "reply", "refresh")} <= ids
    assert set(config["controls"]) <= ids
    assert config["size"] == ["img2img_width", "img2img_height"]


def test_the_canvas_has_the_librarys_defaults():
    """Each kind of mask, and each entry of a strokes mask, as the library reads one that leaves everything out."""
    given = accordions.mask_defaults()
    kinds = {"rect", "split", "ellipse", "gradient", "image", "strokes"}
    assert given.keys() == kinds | {"stroke", "stamp", "filter"}
    for kind in kinds - {"image"}:
        mask = Scene.parse({"concepts": [{"prompt": "", "mask": {"kind": kind}}]}).to_dict()["concepts"][0]["mask"]
        assert given[kind] == mask
    entries = [{"points": [[0, 0]]}, {"mask": {}}, {"filter": "blur"}]
    made = Scene.parse({"concepts": [{"prompt": "", "mask": {"kind": "strokes", "strokes": entries}}]}).to_dict()
    for name, entry, whole in zip(
        ("stroke", "stamp", "filter"), entries, made["concepts"][0]["mask"]["strokes"], strict=True
    ):
        assert given[name] == {field: value for field, value in whole.items() if field not in entry}


@pytest.mark.parametrize(
    "path, label",
    [
        ("concepts[1].weight", "Concept 2: weight"),
        ("concepts[0].mask.strokes[3].radius", "Concept 1: mask.strokes[3].radius"),
        ("concepts[2]", "Concept 3"),
        ("concepts", "concepts"),
        ("noise.exponent", "Distance from masks"),
        ("animation.formats[1]", "Animation formats"),
        ("motion.keyframes[0].frame", "motion.keyframes[0].frame"),
        ("", ""),
    ],
)
def test_places_are_named_as_the_page_names_them(path, label):
    assert live.label_of(path) == label


def test_each_mode_has_its_usual_scale():
    assert accordions.default_scale("add") == 0.1
    assert accordions.default_scale("interpolate") == control("blend.scale").default


def test_text_of_a_scene_applied_is_that_scene():
    text, message = accordions._scene_text(*inputs.show(Scene.parse(SCENE)))
    assert message == "" and Scene.parse(text) == Scene.parse(SCENE)
    *values, message = accordions._apply_text(text)
    assert live.scene_of(values) == Scene.parse(SCENE)


def test_text_that_is_no_scene_changes_nothing_and_says_why():
    *values, message = accordions._apply_text('{"blend": {"mode": "<mix>"}, "concepts": [{"weight": 9}]}')
    assert values == [gr.update()] * len(inputs.defaults())
    assert "blend.mode" in message and "&lt;mix&gt;" in message and "concepts[0].weight" in message


def test_presets_are_saved_loaded_and_deleted(tmp_path):
    shelf = accordions._Shelf(Presets(tmp_path))
    values = inputs.show(Scene.parse(SCENE))
    update, message = shelf.save("dunes", False, *values)
    assert update["choices"] == ["dunes"] and "Saved" in message
    *loaded, message = shelf.load("dunes")
    assert loaded == values and "Loaded" in message
    update, _ = shelf.delete("dunes")
    assert update["choices"] == [] and Presets(tmp_path).names() == []


def test_presets_are_saved_in_per_cent_of_the_models_range(tmp_path):
    profile = Profile("ab" * 32, (), {"noise.visual.strength": Band("noise.visual.strength", 0.25, 1.0)})
    presets = Presets(tmp_path, lambda data: in_numbers(data, profile))
    values = inputs.show(Scene.parse({"noise": {"visual": {"strength": 0.5}}}))
    _, message = accordions._Shelf(presets).save("half", True, *values)
    assert "no profile" in message and presets.names() == []
    shelf = accordions._Shelf(presets, lambda: profile)
    shelf.save("half", True, *values)
    assert '"50%"' in (tmp_path / "half.json").read_text()
    assert shelf.load("half")[:-1] == values


@pytest.mark.parametrize("name", ["", "../up", None])
def test_a_bad_preset_name_is_said(tmp_path, name):
    shelf = accordions._Shelf(Presets(tmp_path))
    assert "mn-problems" in shelf.load(name)[-1]
    assert "mn-problems" in shelf.save(name, False, *inputs.defaults())[-1]
    assert "mn-problems" in shelf.delete(name)[-1]
    assert list(tmp_path.parent.glob("*.json")) == []


# --- Previews


def test_answer_repeats_the_tick_and_counts_tokens():
    request = json.dumps({"tick": 7, "width": 512, "height": 256, "prompts": ["a b"]})
    shown, reply = live.answer(inputs.show(Scene.parse(SCENE)), request, lambda text: f"{len(text)}/75")
    reply = json.loads(reply)
    assert reply["tick"] == 7 and reply["tokens"] == {"a b": "3/75"}
    assert shown.count("<img") == 3 and "<svg" in shown and 'width="224" height="112"' in shown
    assert "ä &lt;b&gt;field&lt;/b&gt;" in shown and "concept 2, without a prompt" in shown


def test_answer_without_noise_or_frames_is_the_blend_alone():
    shown, _ = live.answer(inputs.defaults(), "")
    assert shown.count("<img") == 1 and "<svg" not in shown


def test_answer_says_every_problem_as_text():
    values = inputs.defaults()
    values[2] = json.dumps({"concepts": [{"prompt": 1, "mask": {"kind": "<i>"}}]})
    shown, reply = live.answer(values, '{"tick": 2}')
    assert "concepts[0].prompt" in shown and "concepts[0].mask.kind" in shown and "<i>" not in shown
    assert json.loads(reply)["tick"] == 2


def test_a_scene_that_is_switched_off_is_kept():
    values = inputs.show(Scene.parse({**SCENE, "enabled": False}))
    assert not live.scene_of(values).enabled and len(live.scene_of(values).concepts) == 2


def test_settings_are_kept_over_a_reload():
    values = inputs.show(Scene.parse(SCENE))
    _, reply = live.answer(values, "")
    enabled, *controls = accordions._kept_settings(json.dumps(json.loads(reply)["settings"]))
    assert [enabled, *controls] == [values[1], *values[3:]]


@pytest.mark.parametrize("text", ["", "[]", "{", "7", "[true, 1, 2]", json.dumps([True] * 30)])
def test_settings_of_another_version_change_nothing(text):
    assert accordions._kept_settings(text) == [gr.update()] * (len(inputs.SHOWN) + 1)
