"""Long renders on the built-in model: killed and continued, evenly timed, in bounded memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib_masknoise.__main__ import main

SCENE = {
    "concepts": [{"prompt": "a wheat field", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.4}}],
    "noise": {"visual": {"strength": 1}, "concept": {"strength": 1}},
    "motion": {"kind": "simplex"},
    "animation": {"frames": 14, "formats": ["sheet"]},
}
QUICK = ["--steps", "2", "--size", "64x32", "--prompt", "an ocean"]


@pytest.fixture
def scene(tmp_path) -> Path:
    path = tmp_path / "field.json"
    path.write_text(json.dumps(SCENE), encoding="utf-8")
    return path


def command(scene: Path, name: str, *options: str) -> list[str]:
    return ["render", str(scene), *QUICK, "--out", str(scene.parent / name), *options]


def summary(scene: Path, name: str) -> dict:
    return json.loads((scene.parent / name / "summary.json").read_text(encoding="utf-8"))


def kill_after(lines: int, arguments: list[str]) -> None:
    """Start a render and end it the hard way once it has written some files."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lib_masknoise", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for _ in range(lines):
        assert process.stdout.readline().endswith(".png\n")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_and_continued_renders_are_byte_identical(scene):
    """Batches of 4, killed inside the first and inside the third one, continued by other processes."""
    many = ["--frames", "60"]  # so many that the signal comes in time
    assert main(command(scene, "whole", *many)) == 0
    kill_after(2, command(scene, "killed", *many))
    kill_after(7, command(scene, "killed", *many, "--resume"))
    frames = scene.parent / "killed" / "frames"
    assert 9 <= len(list(frames.glob("*.png"))) and not (scene.parent / "killed" / "summary.json").exists()
    for path in sorted(frames.glob("*.png"))[9:]:  # however far it came: the third batch is not complete
        path.unlink()
    assert main(command(scene, "killed", *many, "--resume")) == 0
    whole, killed = summary(scene, "whole"), summary(scene, "killed")
    assert killed["sha256"] == whole["sha256"] and killed["kept"] == 9
    assert killed["smoothness"] == whole["smoothness"]


def test_a_changed_scene_is_refused(scene, capsys):
    assert main(command(scene, "out")) == 0
    scene.write_text(json.dumps({**SCENE, "noise": {"visual": {"strength": 0.5}}}), encoding="utf-8")
    capsys.readouterr()
    assert main(command(scene, "out", "--resume", "--seed", "3")) == 2
    assert capsys.readouterr().err.splitlines()[:3] == [
        "noise.visual.strength: was 1.0, is 0.5",
        "noise.concept.strength: was 1.0, is 0.0",
        "settings.seed: was 0, is 3",
    ]


def test_even_frame_times_even_out_what_is_seen(scene):
    assert main(command(scene, "plain", "--frames", "20")) == 0
    assert main(command(scene, "even", "--frames", "20", "--even")) == 0
    plain, even = (summary(scene, name)["smoothness"]["perceptual"] for name in ("plain", "even"))
    assert even["evenness"] > plain["evenness"] + 0.05
    assert even["largest"] < plain["largest"]
    assert even["mean"] == pytest.approx(plain["mean"], rel=0.1)  # the same path


def test_the_quickest_batch_is_measured(scene):
    assert main(command(scene, "auto", "--batch", "auto")) == 0
    size = summary(scene, "auto")["settings"]["batch_size"]
    assert size in (1, 2, 4, 8)
    assert main(command(scene, "fixed", "--batch", str(size))) == 0
    assert summary(scene, "fixed")["sha256"] == summary(scene, "auto")["sha256"]
