"""The command line's words: what needs no model."""

import json
import os
import subprocess
import sys

import pytest

from lib_masknoise.__main__ import main


@pytest.fixture
def scene_file(tmp_path):
    def write(scene) -> str:
        path = tmp_path / "scene.json"
        path.write_text(scene if isinstance(scene, str) else json.dumps(scene), encoding="utf-8")
        return str(path)

    return write


def test_check_accepts_a_valid_scene(scene_file, capsys):
    assert main(["check", scene_file({})]) == 0
    assert "a valid scene" in capsys.readouterr().out


def test_check_names_every_problem_with_its_path(scene_file, capsys):
    scene = {"concepts": [{"prompt": "", "promt": "a"}], "blend": {"mode": "mix"}, "noise": {"visual": {"strength": 7}}}
    assert main(["check", scene_file(scene)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in sorted(lines)] == [
        "blend.mode",
        "concepts[0].promt",
        "noise.visual.strength",
    ]


@pytest.mark.parametrize("command", ["check", "render"])
def test_a_scene_that_is_no_json_is_refused(scene_file, capsys, command):
    assert main([command, scene_file("{")]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_missing_scene_is_refused(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--size", "512", "expected WIDTHxHEIGHT in pixels, multiples of 8, got '512'"),
        ("--size", "100x64", "multiples of 8"),
        ("--frames", "0", "expected a whole number from 1, got '0'"),
        ("--steps", "many", "expected a whole number from 1, got 'many'"),
        ("--seed", "-1", "expected a whole number from 0"),
        ("--batch", "1.5", "expected a whole number from 1, got '1.5'"),
        ("--guidance", "nan", "expected a finite number, got 'nan'"),
        ("--guidance", "-inf", "expected a finite number, got '-inf'"),
        ("--guidance", "strong", "expected a finite number, got 'strong'"),
    ],
)
def test_bad_options_are_refused_with_what_was_expected(scene_file, capsys, option, value, message):
    with pytest.raises(SystemExit) as error:
        main(["render", scene_file({}), f"{option}={value}"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("scene, code, stream", [("{}", 0, "stdout"), ('{"麦": 1}', 2, "stderr")])
def test_names_that_the_output_cannot_encode_are_escaped(tmp_path, scene, code, stream):
    """As where Windows pipes what is printed."""
    path = tmp_path / "麦.json"
    path.write_text(scene, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict"}
    command = [sys.executable, "-m", "lib_masknoise", "check", str(path)]
    ended = subprocess.run(command, env=environment, capture_output=True)
    assert ended.returncode == code
    assert b"\\u9ea6" in getattr(ended, stream) and b"Traceback" not in ended.stderr


def test_more_frames_than_a_scene_may_have_are_refused(scene_file, capsys):
    assert main(["render", scene_file({}), "--frames", "10001"]) == 2
    assert capsys.readouterr().err.startswith("animation.frames: expected")


def test_help_shows_how_to_begin(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert "python -m lib_masknoise demo" in text and "exit codes" in text


def test_no_command_is_refused():
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2


def test_ui_without_gradio_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("lib_masknoise.ui.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(f"{name}", raising=False)
    assert main(["ui"]) == 2
    assert "pip install 'masknoise[cli,ui]'" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_ui_refuses_what_is_no_port(port, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ui", "--port", port])
    assert stop.value.code == 2
    assert "expected a port" in capsys.readouterr().err


# --- Every file that is named


@pytest.fixture
def things(tmp_path):
    """Files that are something else than what they are given as."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "scene.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "command, name, words",
    [
        (["check", "{}"], "bytes", "not valid JSON"),
        (["check", "{}"], "empty", "not valid JSON"),
        (["check", "{}"], "folder", "cannot read"),
        (["render", "scene.json", "--out", "{}/below"], "bytes", "a file; expected a folder"),
        (["explore", "journey", "--prompt", "a", "--out", "{}"], "bytes", "a file; expected a folder"),
        (["explore", "journey", "--prompt", "a", "--out", "{}/below/more"], "empty", "a file; expected a folder"),
        (["explore", "map", "{}"], "bytes", "not a text file"),
        (["explore", "map", "{}"], "empty", "no prompts in it"),
        (["explore", "map", "{}"], "folder", "Is a directory"),
        (["explore", "map", "{}"], "none", "No such file"),
        (["explore", "between", "--from", "a", "--to", "b", "--prompts", "{}"], "none", "No such file"),
        (["explore", "journey", "--scene", "{}"], "bytes", "not valid JSON"),
    ],
)
def test_a_file_that_is_something_else_is_named_in_one_line(things, monkeypatch, capsys, command, name, words):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(things)
    out = [] if "--out" in command or command[0] == "check" else ["--out", "out"]
    assert main([*(part.format(name) for part in command), *out]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if name in line or words in line]
    assert len(said) == 1 and name in said[0] and words in said[0], said
