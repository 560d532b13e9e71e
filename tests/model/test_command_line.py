"""`render` and `demo` on the built-in model: files, summary, interrupts."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lib_masknoise import animation, builtin_model
from lib_masknoise.__main__ import main

SCENE = {
    "concepts": [{"prompt": "a wheat field", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.4}}],
    "noise": {"visual": {"strength": 1}},
    "motion": {"kind": "circle"},
    "animation": {"frames": 3, "formats": ["gif", "mp4"]},
}
QUICK = ["--steps", "2", "--size", "64x32", "--prompt", "an ocean"]


@pytest.fixture
def scene(tmp_path) -> Path:
    path = tmp_path / "field.json"
    path.write_text(json.dumps(SCENE), encoding="utf-8")
    return path


def render(scene: Path, *options: str) -> tuple[int, Path]:
    folder = scene.parent / "made"
    return main(["render", str(scene), *QUICK, "--out", str(folder), *options]), folder


def test_render_writes_frames_animations_and_a_summary(scene, capsys):
    code, folder = render(scene)
    assert code == 0
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["frames"] == 3 and summary["seconds"] > 0 and not summary["interrupted"]
    assert summary["files"] == ["frames/00000.png", "frames/00001.png", "frames/00002.png", "made.gif", "made.mp4"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(folder / name) for name in [*summary["files"], "summary.json"]]
    for name, digest in zip(summary["files"][:3], summary["sha256"], strict=True):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert Image.open(folder / name).size == (64, 32)
    assert len(set(summary["sha256"])) == 3


def test_wildcards_are_decided_before_the_render_and_written_out(tmp_path, capsys):
    (tmp_path / "lands.txt").write_text("a wheat field\na forest\na desert\n", encoding="utf-8")
    scene = tmp_path / "field.json"
    scene.write_text(json.dumps({"concepts": [{"prompt": "__lands__, {red|blue} light"}]}), encoding="utf-8")
    found = set()
    for seed in ("1", "1", "2", "3"):
        options = ["--wildcards", str(tmp_path), "--seed", seed, "--prompt", "{an ocean|a marsh}"]
        code, folder = render(scene, *options)
        record = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert code == 0 and record["settings"]["prompt"] in ("an ocean", "a marsh")
        found.add((seed, record["scene"]["concepts"][0]["prompt"], record["sha256"][0]))
    assert len(found) == 3 and all(land.split(",")[0].startswith("a ") for _, land, _ in found)
    capsys.readouterr()
    assert render(scene)[0] == 2
    assert capsys.readouterr().err.startswith("concepts[0].prompt: __lands__: expected a folder of wildcards")


def test_every_file_carries_the_scene_and_the_settings(scene):
    _, folder = render(scene, "--seed", "5")
    embedded = json.loads(Image.open(folder / "frames" / "00001.png").text["masknoise"])
    assert embedded["frame"] == 1 and embedded["settings"]["seed"] == 5
    assert embedded["scene"]["concepts"][0]["prompt"] == "a wheat field"
    assert animation.read_metadata(folder / "made.gif")["scene"] == embedded["scene"]


def test_the_same_job_makes_the_same_bytes(scene):
    digests = []
    for _ in range(2):
        _, folder = render(scene)
        digests.append(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["sha256"])
    assert digests[0] == digests[1]


def test_frames_of_an_earlier_longer_render_do_not_stay(scene):
    render(scene)
    _, folder = render(scene, "--frames", "2")
    assert sorted(path.name for path in (folder / "frames").iterdir()) == ["00000.png", "00001.png"]


def test_a_still_is_one_picture(scene):
    code, folder = render(scene, "--frames", "1")
    assert code == 0
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["files"] == ["frames/00000.png"]


def test_a_model_by_its_folder(scene):
    assert render(scene, "--frames", "1", "--model", str(builtin_model()))[0] == 0


def test_a_render_into_a_folder_that_the_output_cannot_encode(scene):
    folder = scene.parent / "麦"
    command = [sys.executable, "-m", "lib_masknoise", "render", str(scene), *QUICK, "--out", str(folder)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict"}
    ended = subprocess.run(command, env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert len(list((folder / "frames").iterdir())) == 3 and b"\\u9ea6.gif" in ended.stdout


def test_another_model_under_the_same_path_is_refused(scene, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(builtin_model(), model)
    _, folder = render(scene, "--model", str(model))
    (folder / "frames" / "00001.png").unlink()
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert render(scene, "--model", str(model), "--resume")[0] == 2
    assert "\nmodel.unet/diffusion_pytorch_model.safetensors: was " in "\n" + capsys.readouterr().err
    assert not (folder / "frames" / "00001.png").exists()


def test_what_does_not_fit_the_model_is_refused(scene, capsys):
    scene.write_text(json.dumps({"noise": {"feature": {"strength": 1, "dimensions": "0-63,700"}}}), encoding="utf-8")
    assert render(scene)[0] == 2
    assert '"700" goes beyond the last dimension, 63' in capsys.readouterr().err
    assert render(scene, "--model", "nowhere")[0] == 2
    assert "no model at nowhere" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_an_interrupt_keeps_what_there_is(scene):
    folder = scene.parent / "made"
    command = [sys.executable, "-m", "lib_masknoise", "render", str(scene), *QUICK, "--out", str(folder)]
    process = subprocess.Popen(
        [*command, "--frames", "500", "--batch", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with interrupts ignored, and pytest may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(2):
        assert process.stdout.readline().strip().endswith(".png")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["interrupted"] and 2 <= summary["frames"] < 500
    assert Image.open(folder / "made.gif").n_frames == summary["frames"]
    assert not list(folder.rglob("*.part"))
