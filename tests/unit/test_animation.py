"""The written files, read back by Pillow and PyAV."""

from __future__ import annotations

import json
import math
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence, PngImagePlugin

from lib_masknoise import animation
from lib_masknoise.animation.film import Timing
from lib_masknoise.controls import FORMATS
from lib_masknoise.scene import Scene

av = pytest.importorskip("av")

MOVING = ("gif", "webp", "apng", "mp4")
WITH_DELAYS = ("gif", "webp", "apng")  # the ones that Pillow plays
EVERY = (*MOVING, "sheet")
METADATA = {
    "scene": {"concepts": [{"prompt": 'a "wheat" field: ä, 海 <&>', "weight": 0.1}]},
    "data": "x" * 70000,
}


def save(folder: Path, images: list[np.ndarray]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:04}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def greys(values: list[int], height: int = 12, width: int = 16) -> list[np.ndarray]:
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def half_still(count: int = 8, height: int = 45, width: int = 63) -> list[np.ndarray]:
    """Frames that move in the right half only; the left one holds a gradient, the hard case for dither."""
    y, x = np.mgrid[0:height, 0:width]
    still = np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1)
    frames = []
    for frame in range(count):
        wave = 127 + 127 * np.sin(x / 5 + 2 * np.pi * frame / count)
        moving = np.stack([wave, 255 - wave, 255 * y / height], axis=-1)
        frames.append(np.where(x[..., None] < width // 2, still, moving).astype(np.uint8))
    return frames


def pillow_play(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """(frames, seconds that each is shown)"""
    with Image.open(path) as image:
        pages = ImageSequence.Iterator(image)
        # info belongs to the frame only once it is loaded, so convert first; a plain PNG has no duration
        played = [(np.asarray(page.convert("RGB")), page.info.get("duration", math.nan)) for page in pages]
    frames, milliseconds = zip(*played, strict=True)
    return list(frames), [duration / 1000 for duration in milliseconds]


def av_play(path: Path) -> list[np.ndarray]:
    with av.open(str(path), format=path.suffix[1:]) as container:
        frames = container.decode(video=0)
        if path.suffix == ".mp4":
            return [from_bt709(*yuv_planes(frame)) for frame in frames]
        return [frame.to_ndarray(format="rgb24") for frame in frames]


def yuv_planes(frame: av.VideoFrame) -> list[np.ndarray]:
    return [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]


def from_bt709(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """RGB from 4:2:0 planes of limited range by the standard's formula (PyAV 12 takes BT.601 for all)."""
    size = luma.shape[::-1]
    blue, red = (np.asarray(Image.fromarray(chroma).resize(size, Image.Resampling.BILINEAR)) for chroma in (blue, red))
    y, b, r = (luma - 16.0) / 219, (blue - 128.0) / 224 * 1.8556, (red - 128.0) / 224 * 1.5748
    rgb = np.stack([y + r, y - (0.0722 * b + 0.2126 * r) / 0.7152, y + b], axis=-1)
    return (rgb * 255).round().clip(0, 255).astype(np.uint8)


def play(path: Path) -> list[np.ndarray]:
    return av_play(path) if path.suffix == ".mp4" else pillow_play(path)[0]


def write_one(frames: list[Path], folder: Path, name: str, fps: int = 12, **options) -> Path:
    (path,) = animation.write(frames, folder, "moving", [name], fps, **options)
    return path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# Names and metadata


def test_every_format_that_can_be_chosen_is_there():
    assert tuple(animation.FORMATS) == FORMATS


def test_files_are_named_after_stem_and_format(tmp_path):
    frames = save(tmp_path / "frames", greys([10, 200]))
    formats = ["mp4", "gif", "sheet", "apng", "webp"]
    written = animation.write(iter(frames), tmp_path / "out", "a.b", formats, 12)
    assert [path.name for path in written] == ["a.b.mp4", "a.b.gif", "a.b-sheet.png", "a.b.apng", "a.b.webp"]
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", EVERY)
def test_metadata_round_trip(tmp_path, name, count):
    frames = save(tmp_path / "frames", half_still(count))
    plain = play(write_one(frames, tmp_path / "plain", name)) if name in MOVING else None
    path = write_one(frames, tmp_path / "with", name, metadata=METADATA)
    assert animation.read_metadata(path) == METADATA
    renamed = path.rename(tmp_path / "no-ending")
    assert animation.read_metadata(renamed) == METADATA
    if plain is not None:
        np.testing.assert_array_equal(play(renamed.rename(path)), plain)


@pytest.mark.parametrize("name", EVERY)
def test_no_metadata(tmp_path, name):
    frames = save(tmp_path / "frames", greys([10, 200]))
    assert animation.read_metadata(write_one(frames, tmp_path, name)) is None


@pytest.mark.parametrize("comment", ["made by hand", "[1]", '{"other": {}}', '{"MaskNoise": 3}'])
def test_comments_of_others_are_not_metadata(tmp_path, comment):
    image = Image.new("RGB", (4, 4))
    image.save(tmp_path / "a.gif", comment=comment.encode())
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Comment", comment)
    image.save(tmp_path / "a.png", pnginfo=text)
    assert animation.read_metadata(tmp_path / "a.gif") is None
    assert animation.read_metadata(tmp_path / "a.png") is None


def test_metadata_of_other_files(tmp_path):
    (tmp_path / "a.txt").write_text(json.dumps({"MaskNoise": METADATA}))
    assert animation.read_metadata(tmp_path / "a.txt") is None
    with pytest.raises(FileNotFoundError):
        animation.read_metadata(tmp_path / "missing.gif")


def test_riff_sizes_add_up(tmp_path):
    path = write_one(save(tmp_path / "frames", half_still(3)), tmp_path, "webp", metadata={"odd": "length"})
    data = path.read_bytes()
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    offset, names = 12, []
    while offset < len(data):
        name, size = struct.unpack_from("<4sI", data, offset)
        names.append(name)
        offset += 8 + size + size % 2
    assert offset == len(data)
    assert names == [b"VP8X", b"ANIM", b"ANMF", b"ANMF", b"ANMF", b"EXIF"]


# Pictures


def test_apng_is_lossless(tmp_path):
    images = half_still()
    images.insert(3, images[2])  # a frame that repeats
    path = write_one(save(tmp_path / "frames", images), tmp_path, "apng", metadata=METADATA)
    np.testing.assert_array_equal(pillow_play(path)[0], images)
    np.testing.assert_array_equal(av_play(path), images)


@pytest.mark.parametrize("name, error", [("gif", 8), ("webp", 5), ("mp4", 6)])
def test_pictures_are_near(tmp_path, name, error):
    images = half_still()
    height, width = images[0].shape[:2]
    shown = np.stack(play(write_one(save(tmp_path / "frames", images), tmp_path, name)))[:, :height, :width]
    assert shown.shape == np.shape(images)
    assert np.abs(shown - np.asarray(images, float)).mean() < error


def test_gif_does_not_flicker(tmp_path):
    images = half_still()
    path = write_one(save(tmp_path / "frames", images), tmp_path, "gif")
    constant = (np.stack(images) == images[0]).all(axis=(0, -1))
    assert constant.mean() > 0.4
    for frames in (pillow_play(path)[0], av_play(path)):
        assert len(frames) == len(images)
        for frame in frames:
            np.testing.assert_array_equal(frame[constant], frames[0][constant])


def test_gif_has_one_palette(tmp_path):
    data = write_one(save(tmp_path / "frames", half_still()), tmp_path, "gif", metadata=METADATA).read_bytes()
    assert data[10] & 0x80, "no global palette"
    offset, images = 13 + (6 << (data[10] & 7)), 0
    palette = data[13:offset]
    while data[offset] != 0x3B:
        if data[offset] == 0x2C:  # image descriptor
            images += 1
            if data[offset + 9] & 0x80:  # a palette of its own: older encoders repeat the global one once
                assert data[offset + 10 : offset + 10 + len(palette)] == palette
                offset += len(palette)
            offset += 11
        else:  # extension
            offset += 2
        while data[offset]:
            offset += 1 + data[offset]
        offset += 1
    assert images == 8


def test_gif_palette_serves_every_frame(tmp_path):
    """One frame in 40 has a colour of its own, and few pixels of it: the palette must know it."""
    images = [np.full((32, 32, 3), (0, 0, 40 + 3 * frame), np.uint8) for frame in range(40)]
    images[29][:6, :6] = (255, 40, 0)
    shown, _ = pillow_play(write_one(save(tmp_path / "frames", images), tmp_path, "gif"))
    assert np.abs(shown[29][:6, :6].astype(int) - (255, 40, 0)).max() <= 12


def test_mp4_plays_everywhere(tmp_path):
    images = half_still()  # odd sides
    path = write_one(save(tmp_path / "frames", images), tmp_path, "mp4", metadata=METADATA)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (64, 46)
        bt709, limited = 1, 1
        tags = stream.codec_context
        assert (tags.colorspace, tags.color_primaries, tags.color_trc) == (bt709, bt709, bt709)
        assert tags.color_range == limited
    data = path.read_bytes()
    boxes, offset = [], 0
    while offset < len(data):
        size, name = struct.unpack_from(">I4s", data, offset)
        boxes.append(name)
        offset += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 60)])
def test_mp4_colours(tmp_path, colour):
    """BT.709 as tagged: Y' = 0.2126 R + 0.7152 G + 0.0722 B over 16 … 235, and likewise Cb and Cr."""
    path = write_one(save(tmp_path / "frames", [np.full((32, 32, 3), colour, np.uint8)] * 2), tmp_path, "mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    shown = [plane[4:12, 4:12].mean() for plane in yuv_planes(frame)]
    red, green, blue = (channel / 255 for channel in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748
    np.testing.assert_allclose(shown, expected, atol=1.5)


def test_mp4_repeats_the_last_row_and_column(tmp_path):
    image = np.full((33, 31, 3), 200, np.uint8)
    (shown, *_) = av_play(write_one(save(tmp_path / "frames", [image] * 2), tmp_path, "mp4"))
    assert shown.shape == (34, 32, 3)
    assert np.abs(shown.astype(int) - 200).max() <= 3


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (9, 7)])
def test_small_and_odd_sizes(tmp_path, name, size):
    images = [np.full((*size, 3), value, np.uint8) for value in (60, 60, 180)]
    path = write_one(save(tmp_path / "frames", images), tmp_path, name)
    if name in MOVING:
        shown = play(path)
        assert len(shown) == 3
        assert np.abs(shown[2].astype(int) - 180).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16"])
def test_other_modes_become_rgb(tmp_path, mode):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
    if mode == "RGBA":
        picture.putalpha(100)
    picture.save(tmp_path / "0.png")
    Image.new("L", (16, 16), 7).save(tmp_path / "1.png")
    shown, _ = pillow_play(write_one([tmp_path / "0.png", tmp_path / "1.png"], tmp_path, "apng"))
    np.testing.assert_array_equal(shown[0], np.repeat(grey[..., None], 3, axis=-1))


# Order and time


@pytest.mark.parametrize("order", [[0], [0, 1], [0, 1, 2, 1], [0, 1, 2, 3, 4, 3, 2, 1]])
@pytest.mark.parametrize("name", MOVING)
def test_rubber_band(tmp_path, name, order):
    frames = save(tmp_path / "frames", greys([40 * (index + 1) for index in range(max(order) + 1)]))
    shown = play(write_one(frames, tmp_path, name, rubber_band=True))
    assert [round(float(frame.mean()) / 40) - 1 for frame in shown] == order


@pytest.mark.parametrize("name", EVERY)
def test_single_frame(tmp_path, name):
    (image,) = half_still(1)
    path = write_one(save(tmp_path / "frames", [image]), tmp_path, name)
    if name == "mp4":
        (shown,) = av_play(path)
        with av.open(str(path)) as container:
            assert container.duration / 1e6 == pytest.approx(1 / 12, abs=1e-3)
    else:
        with Image.open(path) as opened:
            assert getattr(opened, "n_frames", 1) == 1
            shown = np.asarray(opened.convert("RGB"))
    assert np.abs(shown[:45, :63].astype(int) - image).mean() < 8


@pytest.mark.parametrize("name", WITH_DELAYS)
def test_loops_for_ever(tmp_path, name):
    path = write_one(save(tmp_path / "frames", greys([10, 200])), tmp_path, name)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


@pytest.mark.parametrize("fps", [1, 7, 12, 24, 29, 30, 48, 50, 60, 90, 97, 120])
def test_time(tmp_path, fps):
    count = 10
    frames = save(tmp_path / "frames", greys(list(range(0, 250, 25))))
    for name, tick, fastest in (("gif", 0.01, 50), ("webp", 0.001, 90), ("apng", 0, 1000)):
        shown, seconds = pillow_play(write_one(frames, tmp_path, name, fps))
        assert sum(seconds) == pytest.approx(count / fps, abs=tick / 2 + 1e-6)
        assert len(shown) == count or fps > fastest
        assert max(seconds) - min(seconds) <= tick + 1e-6
        if name != "apng":
            assert min(seconds) > 0.0101  # 10 ms and less is shown for 100 ms by browsers
    with av.open(str(write_one(frames, tmp_path, "mp4", fps))) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == fps
        assert stream.duration * stream.time_base == Fraction(count, fps)
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
        assert times == [Fraction(index, fps) for index in range(count)]


@given(count=st.integers(1, 10_000), fps=st.integers(1, 1000), unit=st.sampled_from([(100, 2), (1000, 11)]))
def test_timing(count, fps, unit):
    rate, shortest = unit
    timing = Timing.fit(count, fps, rate, shortest)
    starts = [timing.start(k) for k in range(timing.shown + 1)]
    durations = [timing.duration(k) for k in range(timing.shown)]
    sources = [timing.source(k) for k in range(timing.shown)]
    assert starts[0] == 0
    assert min(durations) >= shortest
    assert max(durations) - min(durations) <= 1
    assert sources[0] == 0 and sources == sorted(set(sources)) and sources[-1] < count
    if fps * shortest <= rate:
        assert timing.shown == count
    if count * rate >= fps * shortest:  # else the whole is shorter than the shortest frame
        assert abs(Fraction(starts[-1], rate) - Fraction(count, fps)) <= Fraction(1, 2 * rate)


# Interpolation


def circling(count: int = 8, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """A textured disc that goes round in a circle over a still gradient: closed, like a loop of the program."""
    y, x = np.mgrid[0:height, 0:width]
    still = np.stack([100 * y / height, 100 * x / width, 100 * y / height], axis=-1)
    frames = []
    for turn in 2 * np.pi * np.arange(count) / count:
        right, down = x - width / 2 - 10 * np.cos(turn), y - height / 2 - 10 * np.sin(turn)
        disc = np.clip(18 - np.hypot(right, down), 0, 1)[..., None]
        texture = (225 + 25 * np.sin(right / 2) * np.sin(down / 2))[..., None]
        frames.append((still * (1 - disc) + texture * disc).astype(np.uint8))
    return frames


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a.astype(float) - b) ** 2).mean()))


@pytest.mark.parametrize("times", [2, 3, 8])
def test_interpolation_keeps_the_frames_and_the_length(tmp_path, times):
    images = circling()
    path = write_one(save(tmp_path / "frames", images), tmp_path, "apng", interpolate=times, loop=True)
    shown, seconds = pillow_play(path)
    assert len(shown) == times * len(images)
    assert sum(seconds) == pytest.approx(len(images) / 12, abs=1e-3)
    np.testing.assert_array_equal(shown[::times], images)


@pytest.mark.parametrize("loop", [True, False])
def test_interpolated_frames_move_and_close_a_loop(tmp_path, loop):
    """Against the frames that belong there: far nearer than a cross-fade, also from the last frame to the first."""
    images, truth = circling(12, 96, 128), circling(24, 96, 128)[1::2]
    shown, _ = pillow_play(write_one(save(tmp_path / "frames", images), tmp_path, "apng", interpolate=2, loop=loop))
    between = shown[1::2]
    for index in range(12 if loop else 11):
        fade = (images[index].astype(float) + images[(index + 1) % 12]) / 2
        assert difference(between[index], truth[index]) < 0.6 * difference(fade, truth[index])
    if not loop:
        np.testing.assert_array_equal(between[-1], images[-1])


def test_what_stands_still_stands_still_between_frames(tmp_path):
    images = half_still(4)
    shown, _ = pillow_play(write_one(save(tmp_path / "frames", images), tmp_path, "apng", interpolate=4, loop=True))
    for frame in shown:
        np.testing.assert_array_equal(frame[:, :31], images[0][:, :31])


@pytest.mark.parametrize("size", [(8, 8), (17, 31), (16, 90), (64, 33)])
def test_interpolation_of_any_size(tmp_path, size):
    frames = save(tmp_path / "frames", greys([0, 100, 200], *size))
    shown, _ = pillow_play(write_one(frames, tmp_path, "apng", interpolate=2))
    assert [frame.shape[:2] for frame in shown] == [size] * 6
    assert [int(frame.mean()) for frame in shown[::2]] == [0, 100, 200]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("loop", [False, True])
def test_interpolation_of_very_few_frames(tmp_path, count, loop):
    frames = save(tmp_path / "frames", circling()[:count])
    shown, _ = pillow_play(write_one(frames, tmp_path, "apng", interpolate=3, loop=loop))
    assert len(shown) == (1 if count == 1 else 6)


def test_a_rubber_band_is_interpolated_to_its_beginning(tmp_path):
    frames = save(tmp_path / "frames", greys([0, 100, 200]))
    shown, _ = pillow_play(write_one(frames, tmp_path, "apng", interpolate=2, rubber_band=True))
    values = [float(frame.mean()) for frame in shown]
    assert values[::2] == [0, 100, 200, 100]
    assert values[1::2] == pytest.approx([50, 150, 150, 50], abs=3)


@pytest.mark.parametrize("name", MOVING)
def test_interpolated_files_say_so(tmp_path, name):
    frames = save(tmp_path / "frames", circling())
    path = write_one(frames, tmp_path, name, interpolate=2, loop=True, metadata={"scene": {}})
    label = animation.read_metadata(path)
    assert label["scene"] == {} and label["interpolated"]["frames_played_for_each"] == 2
    assert label["interpolated"]["frames_rendered"] == len(frames)
    assert len(play(path)) == 2 * len(frames)
    assert animation.read_metadata(write_one(frames, tmp_path, name, metadata={"scene": {}})) == {"scene": {}}


def test_a_gif_leaves_out_what_it_cannot_show(tmp_path):
    """8 × 12 frames a second are more than browsers show of a GIF."""
    frames = save(tmp_path / "frames", circling(6))
    shown, seconds = pillow_play(write_one(frames, tmp_path, "gif", interpolate=8, loop=True))
    assert len(shown) == 25 and sum(seconds) == pytest.approx(0.5)


# Sheet


@pytest.mark.parametrize("count, columns, rows", [(1, 1, 1), (2, 2, 1), (5, 3, 2), (24, 6, 4), (100, 6, 4)])
def test_sheet(tmp_path, count, columns, rows):
    values = [round(index * 255 / max(1, count - 1)) for index in range(count)]
    path = write_one(save(tmp_path / "frames", greys(values)), tmp_path, "sheet", rubber_band=True)
    with Image.open(path) as image:
        assert image.size == (columns * 20 - 4, rows * 16 - 4)
        sheet = np.asarray(image)
    middles = [sheet[row * 16 + 6, column * 20 + 8, 0] for row in range(rows) for column in range(columns)]
    shown = min(count, 24)
    expected = np.linspace(values[0], values[-1], shown)
    np.testing.assert_allclose(middles[:shown], expected, atol=2 if count > 24 else 0.51)


def test_sheet_of_large_frames_is_shrunk(tmp_path):
    frames = save(tmp_path / "frames", [np.full((300, 1500, 3), 90, np.uint8)]) * 9
    with Image.open(write_one(frames, tmp_path, "sheet")) as image:
        assert 4000 <= max(image.size) <= 4096
        assert np.asarray(image)[5, 5].tolist() == [90, 90, 90]


# A scene's own


@pytest.mark.parametrize("count, rubber_band, loop", [(3, False, True), (2, False, False), (3, True, False)])
@pytest.mark.parametrize("closes", [True, False])
def test_where_a_scene_is_interpolated_to_its_beginning(tmp_path, monkeypatch, count, rubber_band, loop, closes):
    """Where it loops and no frame is missing; a rubber band closes by itself."""
    seen = {}
    monkeypatch.setattr(animation, "write", lambda *given, **options: seen.update(given=given, **options) or [])
    options = {"frames": 3, "fps": 7, "formats": ["webp"], "interpolate": 2, "rubber_band": rubber_band}
    scene = Scene.parse({"motion": {"kind": "circle", "loop": closes}, "animation": options})
    frames = [Image.new("RGB", (4, 4))] * count
    assert animation.write_scene(scene, frames, tmp_path, "a", {"b": 1}) == []
    assert seen["interpolate"] == 2 and seen["loop"] == (loop and closes)
    assert seen["given"] == (frames, tmp_path, "a", ("webp",), 7, rubber_band, {"b": 1}, None)


# Progress and failure


@pytest.mark.parametrize("interpolate", [1, 3])
@pytest.mark.parametrize("rubber_band", [False, True])
def test_progress(tmp_path, rubber_band, interpolate):
    """Of five files from the beginning, evenly within each one, and up to the last."""
    calls = []
    animation.write(
        save(tmp_path / "frames", greys([0, 100, 200])),
        tmp_path,
        "a",
        EVERY,
        120,
        rubber_band,
        progress=lambda files, total: calls.append((files, total)),
        interpolate=interpolate,
    )
    counts = [count for count, _ in calls]
    assert {total for _, total in calls} == {5} and counts[-1] == 5
    for file in range(5):
        steps = [count - file for count in counts if file < count <= file + 1]
        assert steps == pytest.approx([(k + 1) / len(steps) for k in range(len(steps))])
        assert len(steps) >= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", EVERY)
def test_failing_progress_leaves_nothing_behind(tmp_path, name, error):
    frames = save(tmp_path / "frames", half_still(4))
    animation.write(frames[:1], tmp_path, "moving", EVERY, 12)
    before = snapshot(tmp_path)
    for part in (0.25, 0.5, 1):  # of the file: near the beginning, inside, at the end

        def fail(files: float, total: int, part: float = part) -> None:
            if files >= part:
                raise error("stop")

        with pytest.raises(error, match="stop"):
            write_one(frames, tmp_path, name, progress=fail, metadata=METADATA)
        assert snapshot(tmp_path) == before


def test_a_late_failure_takes_no_format_with_it(tmp_path):
    """The GIF is complete when the MP4 fails; neither may appear."""
    frames = save(tmp_path / "frames", greys([0, 100, 200]))
    before = snapshot(tmp_path)

    def fail(files: float, total: int) -> None:
        if files == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animation.write(frames, tmp_path, "a", ["gif", "mp4"], 12, progress=fail)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_failing_iterator_leaves_nothing_behind(tmp_path, error):
    paths = save(tmp_path / "frames", greys([0, 100]))

    def frames():
        yield from paths
        raise error("stop")

    before = snapshot(tmp_path)
    with pytest.raises(error, match="stop"):
        animation.write(frames(), tmp_path / "out", "a", MOVING, 12)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", EVERY)
def test_frames_of_different_sizes(tmp_path, name):
    frames = save(tmp_path / "frames", greys([0, 100], 12, 16) + greys([200], 16, 12))
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="0002.png: this frame is 12x16 .* the first is 16x12"):
        write_one(frames, tmp_path, name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"frames": []}, "at least one frame"),
        ({"formats": ["gif", "avi"]}, r"formats\[1\]: expected one of gif, .*, sheet, got 'avi'"),
        ({"formats": ["gif", "mp4", "gif"]}, r"formats\[2\]: 'gif' is there twice"),
        ({"fps": 0}, "fps: expected an integer of 1 or more, got 0"),
        ({"interpolate": 0}, "interpolate: expected an integer of 1 or more, got 0"),
        ({"stem": "../a"}, "stem: expected a file name"),
        ({"stem": ""}, "stem: expected a file name"),
        ({"metadata": {"a": math.nan}}, "JSON compliant"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    frames = save(tmp_path / "frames", greys([0]))
    before = snapshot(tmp_path)
    good = {"frames": frames, "folder": tmp_path / "out", "stem": "a", "formats": ["gif"], "fps": 12}
    with pytest.raises(ValueError, match=message):
        animation.write(**{**good, **arguments})
    assert snapshot(tmp_path) == before


def test_fps_is_an_integer(tmp_path):
    with pytest.raises(TypeError):
        write_one(save(tmp_path / "frames", greys([0])), tmp_path, "gif", 12.5)


@pytest.mark.parametrize("name", EVERY)
def test_an_unreadable_frame(tmp_path, name):
    frames = save(tmp_path / "frames", greys([0, 100, 200]))
    frames[1].write_bytes(frames[1].read_bytes()[:50])
    before = snapshot(tmp_path)
    with pytest.raises(OSError):
        write_one(frames, tmp_path, name)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("found", [None, SimpleNamespace(__version__="11.0.0")])
@pytest.mark.parametrize("name", ["gif", "apng", "mp4"])
def test_without_pyav_it_says_so_before_it_reads_a_frame(tmp_path, monkeypatch, found, name):
    monkeypatch.setitem(sys.modules, "av", found)
    with pytest.raises(ImportError, match=f"{name}: this needs PyAV 12 or later.*pip install") as caught:
        animation.write([tmp_path / "there is no frame.png"], tmp_path, "a", ["sheet", name], fps=12)
    assert caught.value.name == "av"
    assert not any(tmp_path.iterdir())


def test_without_pyav_webp_and_sheet_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = save(tmp_path / "frames", greys([10, 200]))
    assert len(animation.write(frames, tmp_path, "a", ["webp", "sheet"], fps=12)) == 2
    with pytest.raises(ImportError, match="webp with interpolated frames: this needs PyAV"):
        animation.write(frames, tmp_path, "a", ["webp", "sheet"], fps=12, interpolate=2)


@pytest.mark.parametrize("name", EVERY)
def test_images_in_memory_are_frames_too(tmp_path, name):
    """As a WebUI has them: the same file as from files of them, also where both kinds are mixed."""
    images = half_still(5)
    paths = save(tmp_path, images)
    held = [Image.fromarray(image) for image in images]
    expected = write_one(paths, tmp_path / "files", name).read_bytes()
    assert write_one(held, tmp_path / "memory", name).read_bytes() == expected
    assert write_one([*held[:2], *paths[2:]], tmp_path / "mixed", name).read_bytes() == expected
    assert [np.asarray(image).tolist() for image in held] == [image.tolist() for image in images]


def test_images_in_memory_may_be_played_several_times(tmp_path):
    """Back and forth, interpolated, in several formats: none is consumed."""
    held = [Image.fromarray(image) for image in half_still(4, 40, 40)]
    paths = animation.write(held, tmp_path, "moving", EVERY, 12, rubber_band=True, interpolate=2)
    assert [len(play(path)) for path in paths[:-1]] == [12] * 4


def test_images_in_memory_of_other_sizes_and_modes(tmp_path):
    with pytest.raises(ValueError):
        write_one([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], tmp_path, "gif")
    path = write_one([Image.new("RGBA", (8, 8), (200, 0, 0, 0)), Image.new("L", (8, 8), 50)], tmp_path, "apng")
    assert [frame[0, 0].tolist() for frame in play(path)] == [[200, 0, 0], [50, 50, 50]]
    assert list(tmp_path.iterdir()) == [path]
