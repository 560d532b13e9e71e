"""Where an animation is written, and under which name."""

import tempfile
from pathlib import Path

import pytest
from PIL import Image

from lib_masknoise.scene import Scene

FRAMES = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (0, 90, 180)]


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def hand_out(host):
    """Writes the animation of three frames with some of the host's options; the files below its output folder."""

    def written(job=None, formats=("gif",), **options):
        vars(host.shared.opts).update(options)
        p = host.job(**{"prompt": "a red: house/garden", "seed": 7, **(job or {})})
        p.setup_prompts()
        p.all_seeds = [p.seed]
        processed = host.processing.Processed(p, list(FRAMES), ["info"] * 3, 0, [])
        made = Scene.parse({"animation": {"frames": 3, "formats": list(formats)}})
        host.files.hand_out(p, processed, made, FRAMES)
        return sorted(str(path.relative_to(host.folder)) for path in host.folder.rglob("*") if path.is_file())

    return written


def test_beside_the_images(hand_out):
    assert hand_out() == ["a red house garden/00000-7-animation.gif"]


def test_numbers_go_on_where_the_images_end(host, hand_out):
    (host.folder / "a red house garden").mkdir()
    (host.folder / "a red house garden" / "00041-7.png").touch()
    assert hand_out()[1] == "a red house garden/00042-7-animation.gif"


def test_numbers_after_the_frames_of_the_same_job(host):
    job = {"noise": {"visual": {"strength": 1}}, "motion": {"kind": "circle"}, "animation": {"frames": 3}}
    host.run(job, batch_size=2)
    assert sorted(path.name for path in host.folder.rglob("*.*")) == [
        "00000-1.png", "00001-1.png", "00002-1.png", "00003-1-animation.gif",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, name",
    [
        ({"directories_filename_pattern": "[seed]/"}, "7/00000-7-animation.gif"),
        ({"save_to_dirs": False}, "00000-7-a red_ house_garden-animation.gif"),
        (
            {"samples_filename_pattern": "[steps]x", "save_images_add_number": False},
            "a red house garden/2x-animation.gif",
        ),
        (
            {"samples_filename_pattern": "[none]", "save_images_add_number": False},
            "a red house garden/00000-animation.gif",
        ),
        ({"samples_filename_pattern": "[none]"}, "a red house garden/00000-animation.gif"),
    ],
)
def test_the_host_s_own_patterns(hand_out, options, name):
    assert hand_out(**options) == [name]


def test_a_name_that_is_taken_gets_a_number(hand_out):
    """In any of the formats, so that the files of one animation have one name."""
    options = {"save_to_dirs": False, "samples_filename_pattern": "[seed]", "save_images_add_number": False}
    assert hand_out(formats=("gif",), **options) == ["7-animation.gif"]
    assert hand_out(formats=("webp",), **options) == ["7-animation-1.webp", "7-animation.gif"]
    assert hand_out(formats=("gif", "webp"), **options)[:2] == ["7-animation-1.webp", "7-animation-2.gif"]


@pytest.mark.parametrize("sign", ["x", "麦", "é"])
def test_names_that_are_too_long_are_cut_between_signs(hand_out, sign):
    (name,) = hand_out(
        {"prompt": sign * 128}, save_to_dirs=False, samples_filename_pattern="[prompt_spaces][prompt_spaces]"
    )
    assert len(name.encode()) <= 255 and name.endswith("-animation.gif")
    assert set(name.removeprefix("00000-").removesuffix("-animation.gif")) == {sign}


def test_where_the_host_saves_nothing_neither_do_we(hand_out, temporary):
    """The gallery plays the file; what the API has answered nobody asks for again."""
    assert hand_out({"do_not_save_samples": True, "is_api": False}) == []
    (folder,) = temporary.iterdir()
    assert folder.name.startswith("masknoise-") and [path.name for path in folder.iterdir()] == ["frames.gif"]
    assert hand_out({"do_not_save_samples": True}) == []
    assert list(temporary.iterdir()) == [folder]


@pytest.mark.parametrize("is_api", [True, False])
def test_nothing_stays_where_writing_fails(host, hand_out, temporary, monkeypatch, is_api):
    def full(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(host.files.animation, "write", full)
    with pytest.raises(OSError, match="no space"):
        hand_out({"do_not_save_samples": True, "is_api": is_api})
    assert list(temporary.iterdir()) == []


def test_every_file_carries_the_scene_and_the_infotext(host, hand_out):
    from lib_masknoise import animation

    for path in hand_out(formats=("gif", "webp", "apng", "mp4", "sheet")):
        metadata = animation.read_metadata(host.folder / path)
        assert metadata["parameters"] == "info" and metadata["scene"]["animation"]["frames"] == 3


@pytest.mark.parametrize("frames", [FRAMES, FRAMES[:2]])
@pytest.mark.parametrize("loop, rubber_band", [(True, False), (False, False), (True, True)])
def test_what_is_interpolated_to_its_beginning(host, monkeypatch, frames, loop, rubber_band):
    """An animation that closes and of which no frame is missing. (A rubber band closes by itself.)"""
    seen = {}
    monkeypatch.setattr(host.files.animation, "write", lambda *args, **options: seen.update(options) or [])
    p = host.job(do_not_save_samples=True)
    processed = host.processing.Processed(p, list(frames), ["info"] * 3, 0, [])
    options = {"frames": 3, "rubber_band": rubber_band, "interpolate": 2}
    made = Scene.parse({"motion": {"loop": loop}, "animation": options})
    host.files.hand_out(p, processed, made, frames)
    assert seen == {"interpolate": 2, "loop": loop and not rubber_band and len(frames) == 3}


def test_an_mp4_is_named_where_it_cannot_be_shown(host):
    p = host.job(is_api=False, do_not_save_samples=True)
    processed = host.processing.Processed(p, list(FRAMES), ["info"] * 3, 0, [])
    host.files.hand_out(p, processed, Scene.parse({"animation": {"frames": 3, "formats": ["mp4"]}}), FRAMES)
    (comment,) = p.comments
    assert Path(comment.removeprefix("MaskNoise wrote ")).suffix == ".mp4"
    assert len(processed.images) == 3
