"""No picture is lost over what its file can hold."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from lib_masknoise import infotext
from lib_masknoise.scene import Scene
from tests.unit.test_infotext import pasted


def painted(points: int) -> dict:
    rng = random.Random(3)
    strokes = [{"points": [[rng.random(), rng.random()] for _ in range(points)], "radius": 0.1}]
    return {"concepts": [{"prompt": "an ocean", "weight": 0.5, "mask": {"kind": "strokes", "strokes": strokes}}]}


def comment(path) -> str:
    with Image.open(path) as image:
        if image.format == "PNG":
            return image.info["parameters"]
        return image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")


def saved(host) -> list[Path]:
    return sorted(path for path in host.folder.rglob("*.*") if path.suffix != ".json")


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp"])
@pytest.mark.parametrize("points", [20, 9000, 40_000])
def test_every_format_keeps_its_pictures_and_the_scene_comes_back(host, kind, points):
    host.shared.opts.samples_format = kind
    host.shared.opts.outdir_samples = str(host.folder)
    scene = painted(points)
    processed = host.run(scene, batch_size=2)
    paths = saved(host)
    assert len(paths) == 2 and len(processed.images) == 2
    for image in processed.images:  # what the API encodes
        assert host.images.encoded(image, image.info["parameters"])
    params = pasted(comment(paths[0]))
    assert infotext.read(params, host.containers.find) == Scene.parse(scene)
    files = list((host.folder / infotext.FOLDER).glob("*"))
    light = kind.startswith("jp") and points > 20 or kind == "webp" and points == 40_000
    assert len(files) == light
    if light:
        name = params[infotext.MASKS].removeprefix("file ")
        assert files[0].name == name and hashlib.sha256(files[0].read_bytes()).hexdigest().startswith(name[:24])
        assert params["MaskNoise concept 1 weight"] == "0.5"
        assert (
            infotext.read({**params, "MaskNoise concept 1 weight": "2"}, host.containers.find).concepts[0].weight == 2
        )


def test_where_nothing_is_saved_the_masks_are_left_out_and_said_to_be(host):
    host.shared.opts.samples_format = "jpg"
    processed = host.run(painted(9000), do_not_save_samples=True)
    text = processed.images[0].info["parameters"]
    assert host.images.encoded(processed.images[0], text) and not list(host.folder.rglob("*"))
    with pytest.raises(Exception, match="MaskNoise masks: left out"):
        infotext.read(pasted(text))


def test_a_file_that_is_lost_or_changed_is_named(host):
    host.shared.opts.samples_format = "jpg"
    host.run(painted(9000))
    params = pasted(comment(saved(host)[0]))
    with pytest.raises(Exception, match="json, in the folder masknoise-masks .* not found"):
        infotext.read(params, host.containers.find)
    (file,) = (host.folder / infotext.FOLDER).glob("*")
    file.write_text(json.dumps({"concepts": []}))
    host.shared.opts.outdir_samples = str(host.folder)
    with pytest.raises(Exception, match="has been changed"):
        infotext.read(params, host.containers.find)


def test_a_disk_that_is_full_costs_no_picture(host, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(host.containers, "replace_file", full)
    host.shared.opts.samples_format = "jpg"
    host.run(painted(9000))
    assert pasted(comment(saved(host)[0]))[infotext.MASKS] == infotext.LEFT_OUT


def test_masks_may_always_be_in_a_file(host):
    """A setting: short infotexts everywhere; by default they hold everything."""
    wanted = painted(9000)
    whole = host.run(wanted).extra_generation_params[infotext.MASKS]
    vars(host.shared.opts)[host.containers.IN_FILE] = True
    params = host.run(wanted).extra_generation_params
    assert len(whole) > 1000 and params[infotext.MASKS].startswith("file ")
    host.shared.opts.outdir_samples = str(host.folder)
    assert infotext.read(params, host.containers.find) == Scene.parse(wanted)
    unsaved = host.run(wanted, do_not_save_samples=True).extra_generation_params
    assert unsaved[infotext.MASKS] == whole, "where nothing is saved there is no beside"


def test_text_of_others_is_left_alone():
    for text in ("", "a marsh\nSteps: 3", "a\nMaskNoise masks: damaged, Steps: 2"):
        assert infotext.lighter(text, lambda name, content: True) == text
