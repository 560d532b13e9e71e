"""The example scenes, their descriptions and their pictures belong together."""

import pytest

from lib_masknoise.scene import Scene
from tools import gallery
from tools.gallery import COMMAND, EXAMPLES, GALLERY, Example, examples, moments

ALL = examples()


def test_every_scene_has_a_section_and_the_reverse():
    assert [one.name for one in ALL] == list(dict.fromkeys(one.name for one in ALL))
    assert {one.name for one in ALL} == {path.stem for path in EXAMPLES.glob("*.json")}
    headings = [line[3:] for line in (EXAMPLES / "README.md").read_text("utf-8").splitlines() if line.startswith("## ")]
    assert [one.name for one in ALL] == headings


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_an_example_is_a_moving_scene_with_its_command(one: Example):
    scene = one.scene
    assert scene.animation.frames > 1
    if not any(concept.keyframes for concept in scene.concepts):
        motions = [getattr(scene.noise, name).motion or scene.motion for name in ("visual", "concept", "feature")]
        assert any(motion.kind != "none" for motion in motions) and not scene.neutral
    assert one.command.startswith(COMMAND)
    assert one.options.scene == f"examples/{one.name}.json"
    assert one.options.size and not any(side % 8 for side in one.options.size)
    assert all(key.frame < scene.animation.frames for concept in scene.concepts for key in concept.keyframes)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_the_gallery_shows_every_example_in_a_small_file(one: Example):
    assert 1000 < (GALLERY / f"{one.name}.webp").stat().st_size < 400_000
    picture = f"![{one.name}](gallery/{one.name}.webp)"
    row = f"| {picture} | **[{one.name}](../examples/{one.name}.json)** {one.text} |"
    assert row in (GALLERY.parent / "gallery.md").read_text("utf-8").splitlines()


def test_moments_keep_the_motion():
    loop = Scene.parse({"animation": {"frames": 120}})
    assert moments(loop, 4) == [0, 30, 60, 90]
    line = loop.replace({"motion.loop": False, "animation.frames": 10})
    assert moments(line, 4) == [0, 3, 6, 9]
    assert moments(line, 3) == [0, 4.5, 9]


def test_unknown_examples_are_refused(capsys):
    with pytest.raises(SystemExit):
        gallery.main(["swirl"])
    assert "no such example: swirl; there are prompt-walk, " in capsys.readouterr().err
