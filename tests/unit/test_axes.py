"""The X/Y/Z plot's axes, and their entry in a host's plot."""

import copy
import json
import sys
from types import SimpleNamespace

import pytest

from lib_masknoise.axes import PRESET, axes, override
from lib_masknoise.controls import CONTROLS, control
from lib_masknoise.hosts.webui import xyz
from lib_masknoise.hosts.webui.refusal import Refused
from lib_masknoise.scene import Scene, SceneError

SCENE = Scene.parse({"concepts": [{"prompt": "wheat"}, {"prompt": "sea"}], "blend": {"scale": 0.7}})
PRESETS = {"one": Scene.parse({"motion": {"kind": "walk"}}), "two": Scene(), "field": SCENE}
AXES = {axis.label: axis for axis in axes(lambda: list(PRESETS))}


def test_every_number_and_choice_has_an_axis():
    paths = {axis.path for axis in AXES.values()}
    wanted = {entry.path for entry in CONTROLS if entry.numeric or (entry.choices and isinstance(entry.default, str))}
    assert wanted | {PRESET} <= paths
    assert len(AXES) == len(paths) == len(axes(list))
    assert all(label.startswith("[MaskNoise] ") for label in AXES)
    assert AXES["[MaskNoise] Concept weight"].path == "concepts[].weight"
    assert AXES["[MaskNoise] Concept 4 weight"].path == "concepts[3].weight"


@pytest.mark.parametrize("label", AXES)
def test_what_an_axis_allows_a_scene_takes(label):
    axis = AXES[label]
    values = list(axis.choices()) if axis.choices else [axis.type(axis.low), axis.type(axis.high)]
    if axis.path == "motion.kind":
        values.remove("keyframes")  # needs keyframes, which no axis gives
    four = Scene.parse({"concepts": [{"prompt": ""}] * 4})
    for value in values:
        assert isinstance(value, axis.type)
        path, value = axis.apply(value)
        varied = override(four, {path: value}, PRESETS.get)
        assert varied == (PRESETS[value] if path == PRESET else four.replace({path: value}))


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("Blend scale", 2.01, "expected 0.0 to 2.0, got 2.01"),
        ("Blend scale", float("nan"), "got nan"),
        ("Frames", 0, "expected 1 to 10000, got 0"),
        ("Motion", "Circle", "expected one of none, sine, circle"),
        ("Preset", "three", "expected one of one, two, field, got three"),
    ],
)
def test_what_an_axis_does_not_allow_is_refused(label, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        AXES[f"[MaskNoise] {label}"].apply(value)
    assert str(caught.value).startswith(f"[MaskNoise] {label}: ")


def test_overrides_go_on_top_of_the_preset_in_any_order():
    changes = {"animation.frames": 8, PRESET: "one"}
    expected = PRESETS["one"].replace({"animation.frames": 8})
    assert override(SCENE, changes, PRESETS.get) == expected
    assert override(SCENE, dict(reversed(changes.items())), PRESETS.get) == expected
    assert override(None, changes, PRESETS.get) == expected


def test_all_concepts_or_one():
    every = override(SCENE, {"concepts[].weight": 0.5}, PRESETS.get)
    assert [concept.weight for concept in every.concepts] == [0.5, 0.5]
    second = override(SCENE, {"concepts[].weight": 0.5, "concepts[1].weight": 2}, PRESETS.get)
    assert [concept.weight for concept in second.concepts] == [0.5, 2]


def test_nothing_overridden_is_nothing_changed():
    assert override(SCENE, {}, PRESETS.get) is SCENE
    assert override(None, {}, PRESETS.get) is None


@pytest.mark.parametrize(
    ("scene", "changes"),
    [
        (SCENE, {"concepts[3].weight": 1.0}),
        (Scene(), {"concepts[].weight": 1.0}),
        (SCENE, {"blend.end": 0.1, "blend.start": 0.2}),
        (SCENE, {"motion.kind": "keyframes"}),
        (None, {"blend.scale": 0.5}),
    ],
)
def test_what_does_not_fit_the_scene_is_named_by_its_path(scene, changes):
    with pytest.raises(SceneError) as caught:
        override(scene, changes, PRESETS.get)
    (problem,) = caught.value.problems
    assert problem.path in (*changes, "motion.keyframes")


# --- In a host's plot


class AxisOption:
    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None):
        self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, choices


class Shelf:
    """Presets as the plot asks for them."""

    def names(self):
        return list(PRESETS)

    def load(self, name):
        return PRESETS[name]


@pytest.fixture
def plot(monkeypatch):
    """The module of a host's plot, found among the host's scripts."""
    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    data = [SimpleNamespace(path=f"/webui/scripts/{name}.py", module=module) for name in ("other", "xyz_grid")]
    data[0].module = None
    scripts = SimpleNamespace(scripts_data=data)
    monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(scripts=scripts))
    monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
    return module


@pytest.fixture
def options(plot):
    assert xyz.register(Shelf())
    return {option.label.removeprefix("[MaskNoise] "): option for option in plot.axis_options}


def job(*values):
    """The plot's own job, with our script's arguments behind another's."""
    ours = SimpleNamespace(title=lambda: "MaskNoise", args_from=2, args_to=2 + len(values))
    other = SimpleNamespace(title=lambda: "Other", args_from=0, args_to=2)
    return SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[other, ours]), script_args=(0, 1, *values))


def cell(options, of, **values):
    """A cell as the plot makes it of a job: `values` are each axis's, all confirmed before."""
    for label, value in values.items():
        options[label].confirm(of, [value])
    made = copy.copy(of)
    for label, value in values.items():
        options[label].apply(made, value, [value])
    return made


def test_the_plot_gets_every_axis_once(plot):
    same = plot.axis_options  # the host's own script holds the list
    assert xyz.register(Shelf()) and xyz.register(Shelf())
    assert [option.label for option in same] == ["Nothing", *AXES]


def test_a_host_without_the_plot_is_left_alone(plot):
    sys.modules["modules.scripts"].scripts_data.pop()
    assert not xyz.register(Shelf())
    assert len(plot.axis_options) == 1


def test_cells_do_not_see_each_others_values(options):
    of = job(SCENE.to_dict())
    first, second = cell(options, of, **{"Blend scale": 0.5, "Preset": "one"}), copy.copy(of)
    again = copy.copy(first)
    options["Blend scale"].apply(again, 1.0, [0.5, 1.0])
    assert getattr(first, xyz.OVERRIDES) == {"blend.scale": 0.5, PRESET: "one"}
    assert getattr(again, xyz.OVERRIDES) == {"blend.scale": 1.0, PRESET: "one"}
    assert not hasattr(of, xyz.OVERRIDES) and not hasattr(second, xyz.OVERRIDES)


def problem(caught):
    assert caught.value.status_code == 422
    ((path, message),) = (tuple(one.values()) for one in caught.value.detail)
    return path, message


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        ("Frames", [1, 0], "expected 1 to 10000, got 0"),
        ("Blend scale", [2.5], "expected 0.0 to 2.0, got 2.5"),
        ("Preset", ["one", "three"], "expected one of one, two, field, got three"),
        ("Motion", ["swing"], "expected one of none, sine"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_axis_and_bounds(options, label, values, message):
    options[label].confirm(job(), values[:-1])
    with pytest.raises(Refused) as caught:
        options[label].confirm(job(), values)
    path, said = problem(caught)
    assert path == f"[MaskNoise] {label}" and said.startswith(message)


@pytest.mark.parametrize(("label", "kind"), [("Frames", int), ("Blend scale", float)])
def test_what_is_no_number_is_refused_with_its_axis(options, label, kind):
    own = options[label].type
    assert own.__eq__(kind) and not own.__eq__(str) and {own: 1}[own] == 1, "the plot tells by it what ranges mean"
    assert own("3") == 3 and type(own("3")) is kind
    with pytest.raises(Refused) as caught:
        own("many")
    path, said = problem(caught)
    assert path == f"[MaskNoise] {label}" and "numbers, got many" in said
    assert options["Motion"].type is str and options["Frames"].choices is None
    assert options["Motion"].choices() == list(control("motion.kind").choices)


def test_a_cell_that_cannot_be_is_refused_once_it_is_complete(options):
    of = job(Scene().to_dict())
    with pytest.raises(Refused) as caught:
        cell(options, of, **{"Concept weight": 0.5})
    assert problem(caught)[0] == "concepts[].weight"
    assert cell(options, of, **{"Concept weight": 0.5, "Preset": "field"}), "the preset has concepts"
    halves = job({"blend": {"end": 0.4}})
    assert cell(options, halves, **{"Blend start": 0.5, "Blend end": 0.8})
    with pytest.raises(Refused):
        cell(options, halves, **{"Blend start": 0.5, "Blend end": 0.45})


def test_an_axis_switches_masknoise_on_for_its_cells():
    painting = json.dumps({"concepts": [{"prompt": "an ocean"}]})
    off = ["", False, painting]
    assert xyz.scene(SimpleNamespace(), off, Shelf()) is None
    varied = SimpleNamespace(**{xyz.OVERRIDES: {"blend.scale": 0.5}})
    made = xyz.scene(varied, off, Shelf())
    assert made.enabled and made.blend.scale == 0.5 and made.concepts[0].prompt == "an ocean"
    assert xyz.scene(varied, [{**SCENE.to_dict(), "enabled": False}], Shelf()).enabled
