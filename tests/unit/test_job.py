"""Jobs on a host that is not there: what is rendered, kept, measured and refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_masknoise import animation
from lib_masknoise.__main__ import main
from lib_masknoise.render import PlanChanged, Settings, job, plan, progress, weights, write
from lib_masknoise.render import studio as studios
from lib_masknoise.scene import Scene

FRAMES = 11
BATCH = 4


def scene(frames: int = FRAMES, loop: bool = True, **fields) -> Scene:
    motion = {"kind": "circle", "loop": loop}
    return Scene.parse({"motion": motion, "animation": {"frames": frames, "formats": ["gif"], **fields}})


class Studio:
    """Stands for a host. Its images depend on the time and, as rounding does, on the neighbours in the batch."""

    def __init__(self, pace=lambda t: t, total: int = FRAMES):
        self.pace, self.total = pace, total
        self.batches: list[tuple[float, ...]] = []
        self.sizes: list[int] = []
        self.clock = 0.0
        self.cost = lambda size: 1.0
        self.machine = {"device": "cpu AVX2", "dtype": "float32"}

    @contextmanager
    def __call__(self, plan, workers, address):
        yield studios.Studio(self.images, self.machine)

    def images(self, scene, settings, batches, advance) -> Iterator[Image.Image]:
        for batch in batches:
            self.batches.append(tuple(batch))
            self.clock += self.cost(len(batch)) * len(batch)
            for time in batch:
                yield self.image(time, batch)
                advance(1)

    def image(self, time: float, batch) -> Image.Image:
        y, x = np.mgrid[0:24, 0:32]
        turn = 2 * np.pi * self.pace(time) / self.total
        wave = 110 * np.exp(-((x - 16 - 9 * np.cos(turn)) ** 2 + (y - 12 - 9 * np.sin(turn)) ** 2) / 30)
        pixels = np.stack([100 + wave] * 3, axis=-1)
        pixels[0, 0, 0] = batch.index(time) + 10 * len(batch)  # not the same in another batch
        return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def studio(monkeypatch) -> Studio:
    studio = Studio()
    monkeypatch.setattr(job, "_studio", studio)
    monkeypatch.setattr(job.time, "perf_counter", lambda: studio.clock)
    return studio


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "frames").glob("*.png"))]


def frame(folder: Path, index: int) -> Path:
    return folder / "frames" / f"{index:05}.png"


# Going on


def damage(folder: Path) -> list[int]:
    """Every way in which a frame can be missing, in the middle of batches; returns the frames meant."""
    frame(folder, 1).unlink()
    frame(folder, 5).write_bytes(frame(folder, 5).read_bytes()[:-5])  # the end is cut off
    frame(folder, 6).write_bytes(b"")
    flipped = bytearray(frame(folder, 7).read_bytes())
    flipped[-30] ^= 1  # in the pixels; their checksum tells
    frame(folder, 7).write_bytes(flipped)
    frame(folder, 9).write_bytes(frame(folder, 8).read_bytes())  # another frame's
    Image.open(frame(folder, 10)).save(frame(folder, 10))  # without the scene
    return [1, 5, 6, 7, 9, 10]


def test_only_missing_frames_are_made_again_in_the_same_batches(studio, tmp_path):
    settings = Settings(batch_size=BATCH)
    whole = write(scene(), settings, tmp_path / "a")
    write(scene(), settings, tmp_path / "b")
    missing = damage(tmp_path / "b")
    (tmp_path / "b" / "frames" / ".00007.png.1f.part").write_bytes(b"half a frame")
    studio.batches.clear()
    announced = []
    summary = write(scene(), settings, tmp_path / "b", announced.append, resume=True)
    assert studio.batches == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)]
    assert [path for path in announced if path.parent.name == "frames"] == [frame(tmp_path / "b", i) for i in missing]
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == summary["sha256"] == whole["sha256"]
    assert summary["kept"] == FRAMES - len(missing)
    assert not list(tmp_path.rglob("*.part"))


def test_whole_batches_are_not_made_again(studio, tmp_path):
    write(scene(), Settings(batch_size=BATCH), tmp_path)
    frame(tmp_path, 6).unlink()
    studio.batches.clear()
    write(scene(), Settings(batch_size=BATCH), tmp_path, resume=True)
    assert studio.batches == [(4, 5, 6, 7)]


def test_a_complete_render_needs_no_host(studio, tmp_path):
    before = write(scene(), Settings(), tmp_path)
    (tmp_path / f"{tmp_path.name}.gif").unlink()
    studio.batches.clear()
    after = write(scene(), Settings(), tmp_path, resume=True)
    assert studio.batches == [] and after["kept"] == FRAMES
    assert after["sha256"] == before["sha256"] and after["smoothness"] == before["smoothness"]
    assert (tmp_path / f"{tmp_path.name}.gif").exists()


def test_without_resume_everything_is_made_again(studio, tmp_path):
    write(scene(), Settings(), tmp_path)
    studio.batches.clear()
    assert write(scene(), Settings(), tmp_path)["kept"] == 0
    assert sum(map(len, studio.batches)) == FRAMES


def test_resume_in_an_empty_folder_is_a_render(studio, tmp_path):
    assert write(scene(), Settings(), tmp_path / "new", resume=True)["frames"] == FRAMES


def test_every_difference_is_named_and_nothing_touched(studio, tmp_path):
    write(scene(), Settings(seed=1), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = scene().replace({"noise.visual.strength": 0.5, "animation.frames": 12})
    with pytest.raises(PlanChanged) as error:
        write(other, Settings(seed=2, prompt="x" * 200), tmp_path, resume=True)
    assert error.value.differences == (
        "noise.visual.strength: was 0.0, is 0.5",
        "animation.frames: was 11, is 12",
        f'settings.prompt: was "", is "{"x" * 60}…"',
        "settings.seed: was 1, is 2",
    )
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_render_goes_on_with_the_threads_it_began_with(studio, tmp_path):
    before = write(scene(), Settings(threads=3), tmp_path)
    frame(tmp_path, 2).unlink()
    after = write(scene(), Settings(), tmp_path, resume=True)
    assert after["sha256"] == before["sha256"] and after["settings"]["threads"] == 3 and after["kept"] == FRAMES - 1
    with pytest.raises(PlanChanged, match="settings.threads: was 3, is 2"):
        write(scene(), Settings(threads=2), tmp_path, resume=True)


def test_another_version_is_refused(studio, tmp_path, monkeypatch):
    write(scene(), Settings(), tmp_path)
    monkeypatch.setattr(plan, "versions", lambda: {"masknoise": "9"})
    with pytest.raises(PlanChanged, match='versions.masknoise: was "[0-9.]+", is "9"'):
        write(scene(), Settings(), tmp_path, resume=True)


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder that stands for a model's."""
    folder = tmp_path / "model"
    files = {"model_index.json": "{}", "unet/a.safetensors": "weights", "README.md": "", ".git/a.bin": ""}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_changed_model_is_refused(studio, tmp_path, model):
    settings = Settings(model=str(model))
    before = write(scene(), settings, tmp_path / "out")
    frame(tmp_path / "out", 2).unlink()
    (model / "README.md").write_text("says nothing of the model", encoding="utf-8")
    (model / "model_index.json").touch()
    assert write(scene(), settings, tmp_path / "out", resume=True)["sha256"] == before["sha256"]
    (model / "unet" / "a.safetensors").write_text("WEIGHTS", encoding="utf-8")
    (model / "vae.bin").write_bytes(b"")
    with pytest.raises(PlanChanged) as error:
        write(scene(), settings, tmp_path / "out", resume=True)
    first, second = error.value.differences
    was, now = (hashlib.sha256(text).hexdigest()[:60] for text in (b"weights", b"WEIGHTS"))
    assert first == f'model.unet/a.safetensors: was "{was}…", is "{now}…"'
    assert second.startswith("model.vae.bin: was null, is ")


def test_a_single_file_and_the_configuration_beside_it(tmp_path, model):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"all of it")
    found = weights.digests(weights.weights(str(file)))
    assert found["model.safetensors"] == hashlib.sha256(b"all of it").hexdigest()
    assert set(found) == {"model.safetensors", "model_index.json", "unet/a.safetensors"}
    assert weights.weights(str(tmp_path / "nowhere")) == {}


def test_a_model_is_read_again_only_where_it_looks_changed(model, monkeypatch):
    known = weights.weights(str(model))
    marked = {name: {**file, "sha256": "known"} for name, file in known.items()}
    assert weights.weights(str(model), marked) == marked
    (model / "unet" / "a.safetensors").write_text("longer weights", encoding="utf-8")
    again = weights.digests(weights.weights(str(model), marked))
    assert again["model_index.json"] == "known" != again["unet/a.safetensors"]


def test_the_built_in_model_is_known_by_its_content():
    assert "unet/diffusion_pytorch_model.safetensors" in weights.weights(None)


def test_a_render_goes_on_where_its_model_is_on_other_machines_only(studio, tmp_path, model):
    write(scene(), Settings(model=str(model)), tmp_path / "out")
    frame(tmp_path / "out", 2).unlink()
    model.rename(tmp_path / "elsewhere")
    assert write(scene(), Settings(model=str(model)), tmp_path / "out", resume=True)["kept"] == FRAMES - 1


@pytest.mark.parametrize("part, value", [("device", "cuda NVIDIA H100"), ("dtype", "float16")])
def test_another_kind_of_machine_is_refused(studio, tmp_path, part, value):
    before = write(scene(), Settings(), tmp_path)
    frame(tmp_path, 2).unlink()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    was, studio.machine = studio.machine, {**studio.machine, part: value}
    with pytest.raises(PlanChanged, match=f'^machine.{part}: was "{was[part]}", is "{value}"$'):
        write(scene(), Settings(), tmp_path, resume=True)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    studio.machine = was
    assert write(scene(), Settings(), tmp_path, resume=True)["sha256"] == before["sha256"]


def test_frames_of_another_model_are_gone_before_its_plan_is(studio, tmp_path, model, monkeypatch):
    """Killed at the worst moment, a render without --resume must not leave frames that pass for its own."""
    settings = Settings(model=str(model))
    write(scene(), settings, tmp_path / "out")
    (model / "unet" / "a.safetensors").write_text("WEIGHTS", encoding="utf-8")

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(job, "_decide", killed)
    with pytest.raises(SystemExit):
        write(scene(), settings, tmp_path / "out")
    assert digests(tmp_path / "out") == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scene": 3}', "{"])
def test_a_damaged_plan_is_refused(studio, tmp_path, text):
    (tmp_path / "job.json").write_text(text, encoding="utf-8")
    with pytest.raises(PlanChanged, match="job.json: not a render's plan"):
        write(scene(), Settings(), tmp_path, resume=True)


def test_the_command_line_refuses_with_the_difference(studio, tmp_path, capsys):
    path = tmp_path / "field.json"
    path.write_text(scene().to_json(), encoding="utf-8")
    command = ["render", str(path), "--out", str(tmp_path / "out"), "--resume"]
    assert main(command) == 0 and main(command) == 0
    capsys.readouterr()
    assert main([*command, "--seed", "4"]) == 2
    *remarks, first, hint = capsys.readouterr().err.splitlines()
    assert all(line.startswith("remark: ") for line in remarks)
    assert first == "settings.seed: was 0, is 4" and "--resume" in hint


def test_differences():
    was = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": [1], "gone": 0}
    now = {"a": 1.5, "b": {"c": [1, 3], "d": None}, "e": [1, 2], "new": "x"}
    assert list(plan.differences(was, now)) == [
        "a: was 1, is 1.5",
        "b.c[1]: was 2, is 3",
        "e: was [1], is [1, 2]",
        "gone: was 0, is null",
        'new: was null, is "x"',
    ]
    assert list(plan.differences(was, was)) == []


# Failures


@pytest.fixture
def full_disk(monkeypatch):
    """Makes the disk full at a frame, and gives it room again."""
    write_bytes = Path.write_bytes

    def fill(index: int | None) -> None:
        def writes(path: Path, data: bytes) -> int:
            if index is not None and path.name.startswith(f".{index:05}.png."):
                write_bytes(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_bytes(path, data)

        monkeypatch.setattr(Path, "write_bytes", writes)

    return fill


def test_a_full_disk_loses_only_the_frame_in_work(studio, tmp_path, capsys, full_disk):
    path = tmp_path / "field.json"
    path.write_text(scene().to_json(), encoding="utf-8")
    expected = write(scene(), Settings(), tmp_path / "expected")["sha256"]
    command = ["render", str(path), "--out", str(tmp_path / "out")]
    full_disk(6)
    assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert digests(tmp_path / "out") == expected[:6] and not list(tmp_path.rglob("*.part"))
    full_disk(None)
    assert main([*command, "--resume"]) == 0
    assert digests(tmp_path / "out") == expected
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["kept"] == 6


def test_an_interrupt_leaves_a_render_that_can_go_on(studio, tmp_path):
    expected = write(scene(), Settings(), tmp_path / "expected")["sha256"]

    def stop(path: Path) -> None:
        if path.name == "00005.png":
            raise KeyboardInterrupt

    summary = write(scene(), Settings(), tmp_path / "out", stop)
    assert summary["interrupted"] and summary["sha256"] == expected[:6] and summary["smoothness"] is None
    assert write(scene(), Settings(), tmp_path / "out", resume=True)["sha256"] == expected


def test_a_model_that_does_not_load_leaves_an_earlier_render_alone(studio, tmp_path, monkeypatch):
    write(scene(), Settings(), tmp_path)
    before = digests(tmp_path)

    @contextmanager
    def broken(plan, workers, address):
        raise FileNotFoundError("no model")
        yield

    monkeypatch.setattr(job, "_studio", broken)
    with pytest.raises(FileNotFoundError):
        write(scene(frames=3), Settings(), tmp_path)
    assert digests(tmp_path) == before
    assert write(scene(), Settings(), tmp_path, resume=True)["kept"] == FRAMES


# Even frame times


def uneven(total: int):
    """Stands nearly still half of the time."""
    return lambda t: t + total / 7 * np.sin(2 * np.pi * t / total)


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("total", [24, 150])
def test_even_frame_times(studio, tmp_path, total, loop):
    studio.pace, studio.total = uneven(total), total
    plain = write(scene(total, loop), Settings(), tmp_path / "plain")
    studio.batches.clear()
    even = write(scene(total, loop), Settings(even=True), tmp_path / "even")
    looks = 24 if total == 24 else 75
    assert sum(map(len, studio.batches)) == looks + total
    assert plain["times"] == list(range(total)) != even["times"] == sorted(even["times"])
    before, after = (summary["smoothness"]["perceptual"] for summary in (plain, even))
    assert before["evenness"] < 0.8 and after["evenness"] > 0.95
    assert after["largest"] < 0.75 * before["largest"]
    if loop:
        assert after["closure"] <= 1.1
    else:
        assert even["times"][0] == 0 and even["times"][-1] == total - 1


def test_even_times_are_kept_with_the_plan_and_the_frames(studio, tmp_path):
    studio.pace = uneven(FRAMES)
    summary = write(scene(), Settings(even=True, batch_size=BATCH), tmp_path)
    assert json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))["times"] == summary["times"]
    embedded = json.loads(Image.open(frame(tmp_path, 3)).text["masknoise"])
    assert embedded["frame"] == 3 and embedded["time"] == summary["times"][3]
    frame(tmp_path, 3).unlink()
    studio.batches.clear()
    resumed = write(scene(), Settings(even=True, batch_size=BATCH), tmp_path, resume=True)
    assert studio.batches == [tuple(summary["times"][:BATCH])]  # nothing is looked at again
    assert resumed["sha256"] == summary["sha256"]


def test_even_after_an_interrupt_while_looking(studio, tmp_path, monkeypatch):
    expected = write(scene(), Settings(even=True), tmp_path / "a")["sha256"]
    images = studio.images

    def interrupted(*arguments):
        for number, image in enumerate(images(*arguments)):
            if number == 5:
                raise KeyboardInterrupt
            yield image

    monkeypatch.setattr(studio, "images", interrupted)
    assert write(scene(), Settings(even=True), tmp_path / "b")["frames"] == 0
    monkeypatch.setattr(studio, "images", images)
    assert write(scene(), Settings(even=True), tmp_path / "b", resume=True)["sha256"] == expected


@pytest.mark.parametrize("total", [1, 2])
def test_even_of_very_few_frames(studio, tmp_path, total):
    assert write(scene(total), Settings(even=True), tmp_path)["times"] == list(range(total))


# The quickest batch size


@pytest.mark.parametrize(
    "cost, best",
    [
        (lambda size: 1 / size, 8),  # as large as there are frames for
        (lambda size: 1.0, 1),
        (lambda size: 1 - 0.001 * size, 1),  # not worth the memory
        (lambda size: abs(size - 4) + 1, 4),
    ],
)
def test_batch_auto(studio, tmp_path, cost, best):
    studio.cost = cost
    summary = write(scene(), Settings(batch_size=None), tmp_path)
    assert summary["settings"]["batch_size"] == best
    assert studio.batches[-1] == tuple(range(FRAMES))[-(FRAMES % best or best) :]
    fixed = write(scene(), Settings(batch_size=best), tmp_path / "fixed")
    assert fixed["sha256"] == summary["sha256"]
    studio.cost = lambda size: abs(size - 2) + 1
    frame(tmp_path, 0).unlink()
    resumed = write(scene(), Settings(batch_size=None), tmp_path, resume=True)  # keeps the size it began with
    assert resumed["sha256"] == summary["sha256"] and resumed["kept"] == FRAMES - 1


def test_batch_auto_stops_where_memory_ends(studio, tmp_path):
    def cost(size: int) -> float:
        if size > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 1 / size

    studio.cost = cost
    assert write(scene(), Settings(batch_size=None), tmp_path)["settings"]["batch_size"] == 2


def test_batch_auto_hides_no_other_error(studio, tmp_path):
    def cost(size: int) -> float:
        raise RuntimeError("something else")

    studio.cost = cost
    with pytest.raises(RuntimeError, match="something else"):
        write(scene(), Settings(batch_size=None), tmp_path)


# How far it is


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_now_and_then_where_there_is_no_terminal(studio, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("rendering", 24, initial=4) as advance:
        for _ in range(40):
            clock[0] += 1.0
            advance(0.5)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "rendering: 4/24 frames"
    assert lines[1] == "rendering: 6.5/24 frames, 0:05 gone, 0:35 to go"
    assert lines[-1] == "rendering: 24/24 frames, 0:40 gone, 0:00 to go"
    assert len(lines) == 2 + 40 / progress.PERIOD


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress.progress("writing", 5, unit="files") as advance:
        advance(2.5)
    assert "0.0/5 files" in terminal.getvalue() and "None" not in terminal.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_are_of_a_total_known_from_the_start(studio, tmp_path, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr", stream := Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    write(scene(formats=["gif", "webp", "sheet"]), Settings(), tmp_path)
    counts = re.findall(r"(\w+): [^/]*?([\d.]+)/(\w+) (\w+)", stream.getvalue())
    assert {(what, total, unit) for what, _, total, unit in counts} == {
        ("rendering", "11", "frames"),
        ("measuring", "11", "frames"),
        ("writing", "3", "files"),
    }
    assert all(float(done) <= float(total) for _, done, total, _ in counts)
    if not terminal:
        assert [done for what, done, _, _ in counts if what == "writing"][-1] == "3"


# What the scene says of playback


def test_interpolation_comes_from_the_scene(studio, tmp_path):
    write(scene(interpolate=3), Settings(), tmp_path / "out")
    with Image.open(tmp_path / "out" / "out.gif") as gif:
        assert gif.n_frames == 3 * FRAMES
    label = animation.read_metadata(tmp_path / "out" / "out.gif")
    assert label["interpolated"]["frames_rendered"] == FRAMES and label["scene"]["animation"]["interpolate"] == 3


@pytest.mark.parametrize(
    "changes, loops",
    [
        ({}, True),
        ({"animation.rubber_band": True}, False),
        ({"motion.loop": False}, False),
        ({"noise.visual.motion": {"kind": "walk", "loop": False}, "noise.visual.strength": 1}, False),
        ({"noise.visual.motion": {"kind": "walk", "loop": False}}, True),  # without strength it does not move
        ({"noise.visual.motion": {"kind": "walk"}, "noise.visual.strength": 1}, True),
    ],
)
def test_what_is_a_loop(studio, tmp_path, changes, loops):
    summary = write(scene().replace(changes), Settings(), tmp_path)
    assert (summary["smoothness"]["perceptual"]["closure"] is not None) == loops
