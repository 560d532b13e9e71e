"""The table of controls and the Scene's fields are the same list."""

import json
import re
from pathlib import Path

import pytest

from lib_masknoise.controls import CONTROLS, Control, control
from lib_masknoise.scene import Part, Scene

STRUCTURED = {
    "version",
    "concepts[].mask",
    "concepts[].keyframes",
    "motion.keyframes",
    *(f"noise.{noise}.motion" for noise in ("visual", "concept", "feature")),
}
DOCS = Path(__file__).parents[2] / "docs" / "scene.md"


def leaves(model: type[Part], prefix: str = "") -> set[str]:
    paths = set()
    for field in model.__fields__.values():
        path = prefix + field.alias
        if isinstance(field.type_, type) and issubclass(field.type_, Part) and path not in STRUCTURED:
            several = field.type_ is not field.outer_type_
            paths |= leaves(field.type_, f"{path}[]." if several else f"{path}.")
        else:
            paths.add(path)
    return paths


def test_table_and_scene_have_the_same_fields():
    assert leaves(Scene) - STRUCTURED == {entry.path for entry in CONTROLS}
    assert STRUCTURED < leaves(Scene)


@pytest.mark.parametrize("attribute", ["path", "label", "infotext", "help"])
def test_names_are_unique(attribute):
    names = [getattr(entry, attribute) for entry in CONTROLS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "path, infotext, axis",
    [
        ("blend.preserve_norm", "MaskNoise preserve norm", None),
        ("noise.exponent", "MaskNoise noise exponent", "[MaskNoise] Noise exponent"),
        ("noise.concept.rank", "MaskNoise concept noise rank", "[MaskNoise] Concept noise rank"),
        ("noise.feature.dimensions", "MaskNoise feature noise dimensions", None),
    ],
)
def test_another_label_changes_neither_infotext_nor_axis(path, infotext, axis):
    """Images and plots made before have the keys from the labels of their time."""
    entry = control(path)
    assert (entry.infotext, entry.axis) == (infotext, axis)
    assert entry.label.lower() not in infotext


@pytest.mark.parametrize("entry", CONTROLS, ids=lambda entry: entry.path)
def test_entry_is_sound(entry: Control):
    assert re.fullmatch(r"MaskNoise[\w \-/]*", entry.infotext)
    assert entry.help.endswith(".") and entry.help.count("\n") == 0
    if entry.numeric:
        assert entry.low <= entry.default <= entry.high and entry.step > 0
        assert entry.axis
    elif entry.choices:
        several = isinstance(entry.default, tuple)
        assert set(entry.default if several else [entry.default]) <= set(entry.choices)
        assert (entry.axis is None) == several
    else:
        assert entry.axis is None and isinstance(entry.default, bool | str)


@pytest.mark.parametrize("entry", CONTROLS, ids=lambda entry: entry.path)
def test_scene_takes_defaults_and_bounds_from_the_table(entry: Control):
    concept = Scene.parse({"concepts": [{"prompt": ""}]})
    value = concept.to_dict()
    for step in entry.path.replace("[]", ".0").split("."):
        value = value[int(step) if step.isdigit() else step]
    assert value == (list(entry.default) if isinstance(entry.default, tuple) else entry.default)
    if entry.numeric:
        for bound, beyond in ((entry.low, -1), (entry.high, 1)):
            start_too = {"blend.start": 0.0} if entry.path == "blend.end" else {}
            concept.replace({entry.path: bound, **start_too})
            with pytest.raises(ValueError, match=re.escape("expected a")):
                concept.replace({entry.path: bound + beyond})


def test_what_takes_its_scalars_from_other_controls_has_their_bounds():
    """A noise's own motion is a motion, a concept's keyframe a concept: neither has a bound of its own."""
    noises = Scene.__fields__["noise"].type_.__fields__
    for name in ("visual", "concept", "feature"):
        assert noises[name].type_.__fields__["motion"].type_ is Scene.__fields__["motion"].type_
    concept = Scene.parse({"concepts": [{"prompt": "", "keyframes": [{}]}]})
    entry = control("concepts[].weight")
    for bound, beyond in ((entry.low, -1), (entry.high, 1)):
        concept.replace({"concepts[].keyframes[].weight": bound})
        with pytest.raises(ValueError, match="expected a number from -4 to 4"):
            concept.replace({"concepts[].keyframes[].weight": bound + beyond})


def test_lookup():
    assert control("concepts[3].weight") is control("concepts[].weight")
    with pytest.raises(KeyError, match="noise.visual.strenght"):
        control("noise.visual.strenght")


def documented(entry: Control) -> str:
    """The control's row in docs/scene.md."""
    allowed = {bool: "true or false", str: "text"}.get(type(entry.default), "")
    if entry.choices:
        allowed = ", ".join(f"`{choice}`" for choice in entry.choices)
    elif entry.numeric:
        kind = "whole number" if isinstance(entry.default, int) else "number"
        allowed = f"{kind}, {entry.low:.5g} to {entry.high:.5g}"
        if entry.path == "noise.seed":
            allowed = f"{kind}, -1 to 2^63 - 1"
    return f"| `{entry.path}` | `{json.dumps(entry.default)}` | {allowed} | {entry.help} |"


@pytest.mark.parametrize("entry", CONTROLS, ids=lambda entry: entry.path)
def test_documentation_names_every_control_as_it_is(entry: Control):
    assert documented(entry) in DOCS.read_text("utf-8").splitlines()
