"""The X/Y/Z plot's axes, and their entry in a host's plot."""

import copy
import sys
from types import SimpleNamespace

import pytest

from lib_masknoise.axes import PRESET, axes, override
from lib_masknoise.controls import CONTROLS, control
from lib_masknoise.hosts.webui import xyz
from lib_masknoise.scene import Scene, SceneError

SCENE = Scene.parse({"concepts": [{"prompt": "wheat"}, {"prompt": "sea"}], "blend": {"scale": 0.7}})
PRESETS = {"one": Scene.parse({"motion": {"kind": "walk"}}), "two": Scene()}
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
        ("Preset", "three", "expected one of one, two, got three"),
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


@pytest.fixture
def plot(monkeypatch):
    """The module of a host's plot, found among the host's scripts."""
    module = SimpleNamespace(AxisOptionTxt2Img=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    data = [SimpleNamespace(path=f"/webui/scripts/{name}.py", module=module) for name in ("other", "xyz_grid")]
    data[0].module = None
    scripts = SimpleNamespace(scripts_data=data)
    monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(scripts=scripts))
    monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
    return module


def test_the_plot_gets_every_axis_once(plot):
    same = plot.axis_options  # the host's own script holds the list
    assert xyz.register(lambda: list(PRESETS)) and xyz.register(lambda: list(PRESETS))
    assert [option.label for option in same] == ["Nothing", *AXES]


def test_a_host_without_the_plot_is_left_alone(plot):
    sys.modules["modules.scripts"].scripts_data.pop()
    assert not xyz.register(list)
    assert len(plot.axis_options) == 1


def test_cells_do_not_see_each_others_values(plot):
    xyz.register(lambda: list(PRESETS))
    options = {option.label: option for option in plot.axis_options}
    job = SimpleNamespace()
    first, second = copy.copy(job), copy.copy(job)
    options["[MaskNoise] Blend scale"].apply(first, 0.5, [0.5, 1.0])
    options["[MaskNoise] Preset"].apply(first, "one", ["one"])
    again = copy.copy(first)
    options["[MaskNoise] Blend scale"].apply(again, 1.0, [0.5, 1.0])
    assert xyz.overrides(first) == {"blend.scale": 0.5, PRESET: "one"}
    assert xyz.overrides(again) == {"blend.scale": 1.0, PRESET: "one"}
    assert xyz.overrides(job) == xyz.overrides(second) == {}


def test_values_are_confirmed_before_the_plot_starts(plot):
    xyz.register(lambda: list(PRESETS))
    options = {option.label: option for option in plot.axis_options}
    options["[MaskNoise] Frames"].confirm(None, [1, 24])
    options["[MaskNoise] Preset"].confirm(None, ["one"])
    for label, values in (("Frames", [1, 0]), ("Preset", ["one", "three"]), ("Motion", ["swing"])):
        with pytest.raises(RuntimeError, match="expected"):
            options[f"[MaskNoise] {label}"].confirm(None, values)
    assert options["[MaskNoise] Motion"].choices() == list(control("motion.kind").choices)
    assert options["[MaskNoise] Frames"].choices is None
