"""Scenes kept by name."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lib_masknoise.presets import MAX_LENGTH, Presets, UnknownPreset, check_name
from lib_masknoise.scene import Scene, SceneError

SCENE = Scene.parse({"concepts": [{"prompt": "Weizen, “麦畑”"}], "noise": {"visual": {"strength": 0.5}}})

REFUSED = (
    *("", " ", ".", "..", "../up", "a/b", "a\\b", "/etc/passwd", "C:evil", "a\0b", "line\nbreak", "tab\there"),
    *(
        ".hidden",
        " blank",
        "blank ",
        "dot.",
        'quo"te',
        "star*",
        "what?",
        "<a>",
        "a|b",
        "x" * (MAX_LENGTH + 1),
        "𒀀" * 60,
    ),
    *("CON", "nul", "Com1", "LPT9", "aux.scene", "con .x", "COM¹", "CONIN", "\ud800", "tilde~1", "percent%2e"),
)
ACCEPTED = (
    *("demo", "x" * MAX_LENGTH, "a.b", "wheat + sea", "v1.2 (final), really_-+", "麦畑", "हिन्दी"),
    *("Ünïcode", "конь", "COM10", "console", "nullo"),
)


@pytest.fixture
def presets(tmp_path):
    return Presets(tmp_path / "presets")


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_saved_is_loaded(presets, name):
    path = presets.save(name, SCENE)
    assert path.parent == presets.folder and path.is_file()
    assert presets.names() == [name]
    assert presets.load(name) == SCENE
    presets.delete(name)
    assert presets.names() == [] and not any(presets.folder.iterdir())


@pytest.mark.parametrize("name", [*REFUSED, None, 3])
def test_names_that_are_refused(presets, name):
    for call in (presets.load, presets.delete, lambda given: presets.save(given, SCENE)):
        with pytest.raises(ValueError, match="cannot be the name of a preset: "):
            call(name)
    assert not presets.folder.exists()


@given(st.text(max_size=MAX_LENGTH) | st.text("./\\: ~a\0", max_size=8))
@example("con.")
def test_no_name_leaves_the_folder(name):
    try:
        check_name(name)
    except ValueError:
        return
    path = Path("/presets") / f"{name}.json"
    assert Path(os.path.normpath(path)) == path and path.parent == Path("/presets")


def test_names_are_sorted_whatever_their_case(presets):
    for name in ("b", "A", "c", "B2"):
        presets.save(name, SCENE)
    assert presets.names() == ["A", "b", "B2", "c"]


def test_no_folder_holds_no_presets(presets):
    assert presets.names() == []
    for call in (presets.load, presets.delete):
        with pytest.raises(UnknownPreset, match='no preset "demo"'):
            call("demo")


def test_saving_replaces_only_where_it_may(presets):
    presets.save("demo", Scene())
    with pytest.raises(ValueError, match='already is a preset "demo"'):
        presets.save("demo", SCENE, overwrite=False)
    assert presets.load("demo") == Scene()
    presets.save("demo", SCENE)
    assert presets.load("demo") == SCENE


def test_an_interrupted_write_leaves_the_old_preset(presets, monkeypatch):
    presets.save("demo", SCENE)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        presets.save("demo", Scene())
    assert presets.load("demo") == SCENE
    assert [path.name for path in presets.folder.iterdir()] == ["demo.json"]


@pytest.mark.parametrize("text", ["{", '{"noise": {"exponent": 99}}', "[]", "\xff\xfe"])
def test_a_broken_file_is_listed_and_its_error_names_it(presets, text):
    presets.save("fine", SCENE)
    (presets.folder / "broken.json").write_bytes(text.encode("latin-1"))
    assert presets.names() == ["broken", "fine"]
    with pytest.raises(SceneError, match=r'\(in the preset "broken"\)'):
        presets.load("broken")
    assert presets.load("fine") == SCENE


def test_what_is_no_preset_is_not_listed(presets):
    presets.save("fine", SCENE)
    (presets.folder / "folder.json").mkdir()
    (presets.folder / "notes.txt").write_text("{}")
    (presets.folder / ".hidden.json").write_text("{}")
    assert presets.names() == ["fine"]
    with pytest.raises(UnknownPreset):
        presets.load("folder")


def test_a_link_does_not_lead_out_of_the_folder(presets, tmp_path):
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    presets.save("fine", SCENE)
    try:
        (presets.folder / "link.json").symlink_to(outside)
    except OSError:
        pytest.skip("no symbolic links here")
    assert presets.names() == ["fine"]
    for call in (presets.load, presets.delete):
        with pytest.raises(UnknownPreset):
            call("link")
    presets.save("link", SCENE)  # takes the link's place
    assert outside.read_text() == "{}" and presets.load("link") == SCENE


def test_the_file_is_a_scene_to_read_and_edit(presets):
    text = presets.save("demo", SCENE).read_text("utf-8")
    assert text.startswith('{\n  "version": 1,') and "麦畑" in text and "exponent" not in text
