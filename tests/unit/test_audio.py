"""Keyframes from a sound: what is heard when is what the numbers say."""

import json
import sys
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_masknoise.__main__ import main
from lib_masknoise.audio import BANDS, keyframes, loudness, onsets, read, simplified
from lib_masknoise.motion import envelope
from lib_masknoise.scene import Motion, Scene

RATE = 22050


def times(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def tone(frequency: float, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * times(seconds))


def clicks(at: list[float], seconds: float) -> np.ndarray:
    samples = np.zeros(round(seconds * RATE))
    for second in at:
        start = round(second * RATE)
        samples[start : start + 60] = np.random.default_rng(0).normal(0, 0.3, 60)
    return samples


def random_sound(seed: int, seconds: float = 2) -> np.ndarray:
    """Noise whose loudness goes up and down."""
    rng = np.random.default_rng(seed)
    loud = np.interp(times(seconds), np.linspace(0, seconds, 12), rng.uniform(0, 1, 12) ** 3)
    return loud * rng.normal(0, 0.2, len(loud))


@pytest.mark.parametrize("fps", [12, 24, 60])
@pytest.mark.parametrize("frequency", [100, 440, 4000])
def test_an_envelope_comes_back(fps, frequency):
    """Linear in dB between the percentiles, here those of a swing of 30 dB."""
    decibels = -15 - 15 * np.cos(2 * np.pi * times(8) / 4)
    found = loudness(tone(frequency, 8) * 10 ** (decibels / 20), RATE, fps, smooth=0)
    seen = -15 - 15 * np.cos(2 * np.pi * (np.arange(8 * fps) + 0.5) / fps / 4)
    quiet, loud = np.percentile(seen, (5, 95))
    assert np.abs(found - np.clip((seen - quiet) / (loud - quiet), 0, 1)).max() < 0.04


@pytest.mark.parametrize("fps", [8, 24, 30])
@pytest.mark.parametrize("of", [loudness, onsets])
def test_bands_are_told_apart(of, fps):
    """100 Hz sounds first, 4 kHz afterwards."""
    low, high = tone(100, 4), tone(4000, 4)
    first = times(4) < 2
    samples = np.where(first, low, high) * np.sin(2 * np.pi * times(4)) ** 2  # without a click at the seam
    before, after = slice(0, 2 * fps - 1), slice(2 * fps + 1, None)
    for band, here, elsewhere in (("low", before, after), ("high", after, before), ((90, 110), before, after)):
        values = of(samples, RATE, fps, None, band, 0)
        assert values[here].max() == 1 and values[elsewhere].max() < 0.05, band


@pytest.mark.parametrize("fps", [12, 24, 30, 60])
@pytest.mark.parametrize("band", ["all", "mid", "high"])
@pytest.mark.parametrize("place", [0, 0.25, 0.5])
def test_clicks_set_in_at_their_frames(fps, band, place):
    at = [0.5, 1.25, 1.75, 2.75]
    # Within the last 6 ms of a frame a click shows in the next, too.
    frames = [int(second * fps) for second in at]
    values = onsets(clicks([(frame + place) / fps for frame in frames], 3.5), RATE, fps, band=band, decay=0)
    assert np.flatnonzero(values > 0.5).tolist() == frames


def test_onsets_die_away():
    values = onsets(clicks([1.02], 3), RATE, 24, decay=0.25)
    assert values[24] == 1 and (values[:24] < 0.02).all()
    assert values[30] == pytest.approx(np.exp(-1)) and values[36] == pytest.approx(np.exp(-2))


def test_a_steady_sound_has_no_onset_but_its_first_and_is_loud_throughout():
    samples = np.concatenate([np.zeros(RATE), tone(440, 3)])
    values = onsets(samples, RATE, 24, decay=0)
    assert values[24] == 1 and np.delete(values, [23, 24, 25]).max() < 0.02
    assert (loudness(samples, RATE, 24, smooth=0)[25:-1] > 0.99).all()


@pytest.mark.parametrize("of", [loudness, onsets])
@pytest.mark.parametrize("samples", [np.zeros(RATE), np.zeros(0), np.full(RATE, 1e-9)])
def test_silence_is_zero(of, samples):
    values = of(samples, RATE, 24, 24)
    assert values.shape == (24,) and (values == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 7, 24, 60]), st.sampled_from([*BANDS, (300, 500)]), st.floats(-2, 2))
def test_numbers_are_in_range_and_do_not_depend_on_the_volume(seed, fps, band, power):
    samples = random_sound(seed)
    for of in (loudness, onsets):
        values = of(samples, RATE, fps, band=band)
        assert values.shape == (2 * fps,)
        assert 0 <= values.min() and values.max() <= 1
        assert np.allclose(of(samples * 10**power, RATE, fps, band=band), values, atol=1e-6)


@pytest.mark.parametrize("of", [loudness, onsets])
def test_as_many_frames_as_asked_for(of):
    samples = random_sound(1)
    assert len(of(samples, RATE, 24)) == 48 and len(of(samples[:-10], RATE, 24)) == 48
    assert len(of(samples, RATE, 24, 5)) == 5 and len(of(samples[:1], RATE, 24)) == 1
    longer = of(samples, RATE, 24, 96, "all", 0)
    assert len(longer) == 96 and longer[50:].max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0.001, 0.2), st.integers(2, 400))
def test_few_keys_stand_for_many_numbers(seed, count, tolerance, most):
    values = np.random.default_rng(seed).normal(size=count).cumsum()
    values = (values - values.min()) / max(np.ptp(values), 1e-9)
    kept = simplified(values, tolerance, most)
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == count - 1 and len(kept) <= most
    if len(kept) < most:
        missed = np.abs(np.interp(range(count), kept, values[kept]) - values).max()
        assert missed <= tolerance + 1e-12


def test_straight_lines_need_their_ends():
    values = np.concatenate([np.linspace(0, 1, 50), np.linspace(1, 0.25, 51)[1:]])
    assert simplified(values) == [0, 49, 99]
    assert keyframes(values, -1, 1) == [
        {"frame": 0, "value": -1}, {"frame": 49, "value": 1}, {"frame": 99, "value": -0.5}
    ]  # fmt: skip


def test_what_motion_makes_of_the_keys_is_the_sound():
    values = loudness(random_sound(3, 8), RATE, 24)
    motion = Motion(kind="keyframes", keyframes=keyframes(values))
    followed = np.array([envelope(motion, frame, len(values)) for frame in range(len(values))])
    assert np.abs(followed - values).max() < 0.0201 and len(motion.keyframes) < len(values) / 2


@pytest.mark.parametrize("band", ["bass", (200, 100), (0, 0), (RATE, 2 * RATE), (float("nan"), 5)])
def test_a_band_that_is_none_is_refused(band):
    for of in (loudness, onsets):
        with pytest.raises(ValueError, match="band"):
            of(random_sound(0), RATE, 24, band=band)


# --- Files and the command line

av = pytest.importorskip("av")
SOUND = np.concatenate([tone(100, 1), np.zeros(RATE), tone(4000, 1), np.zeros(RATE)])


def write_wav(path, samples: np.ndarray = SOUND, channels: int = 2) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").repeat(channels).tobytes())
    return str(path)


def write_encoded(path, codec: str, kind: str, rate: int) -> str:
    """By ffmpeg, in the first of the sample formats that the encoder takes."""
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate,
                                      frame_size=stream.codec_context.frame_size or 1152)  # fmt: skip
        frame = av.AudioFrame.from_ndarray(SOUND[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = RATE
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return str(path)


def test_a_wav_file_is_read_as_it_is(tmp_path):
    samples, rate = read(write_wav(tmp_path / "a.wav"))
    assert rate == RATE and samples.shape == SOUND.shape and np.abs(samples - SOUND).max() < 1e-3
    assert RATE <= len(read(tmp_path / "a.wav", 1)[0]) < 1.5 * RATE


@pytest.mark.parametrize(
    "codec, kind, rate",
    [("libmp3lame", "mp3", RATE), ("flac", "flac", RATE), ("libopus", "ogg", 48000), ("aac", "mp4", 44100)],
)
def test_other_kinds_of_file_say_the_same(tmp_path, codec, kind, rate):
    samples, rate = read(write_encoded(tmp_path / f"a.{kind}", codec, kind, rate))
    assert rate <= 44100
    for band in ("low", "high"):
        found, expected = loudness(samples, rate, 24, 96, band), loudness(SOUND, RATE, 24, 96, band)
        assert np.abs(found - expected).mean() < 0.05


SCENE = {
    "concepts": [{"prompt": "a wheat field"}, {"prompt": "an ocean"}],
    "noise": {"visual": {"strength": 0.5}, "concept": {"motion": {"kind": "circle", "cycles": 3}}},
    "motion": {"loop": False},
}


@pytest.fixture
def audio(tmp_path):
    """Run the command on the sound: its exit code."""
    write_wav(tmp_path / "a.wav")
    (tmp_path / "scene.json").write_text(json.dumps(SCENE))

    def run(*options: str, sound: str = "a.wav") -> int:
        return main(["audio", str(tmp_path / sound), "--out", str(tmp_path / "out" / "made.json"), *options])

    run.scene = ("--scene", str(tmp_path / "scene.json"))
    run.made = tmp_path / "out" / "made.json"
    return run


def test_keys_alone(audio, capsys):
    assert audio("--fps", "24", "--band", "low", "--range", "-0.5", "0.5") == 0
    keys = json.loads(audio.made.read_text())
    assert (keys[0]["frame"], keys[-1]["frame"]) == (0, 95)
    values = [key["value"] for key in keys]
    assert values[-1] == -0.5 and max(values) == pytest.approx(0.5, abs=1e-3)
    Motion(kind="keyframes", keyframes=keys)
    said, path = capsys.readouterr().out.splitlines()
    assert said == f"loudness, low: 96 frames at 24 a second, {len(keys)} keyframes"
    assert path == str(audio.made)
    first = audio.made.read_bytes()
    assert audio("--fps", "24", "--band", "low", "--range", "-0.5", "0.5") == 0 and audio.made.read_bytes() == first


def test_weights_alone(audio):
    assert audio("--onsets", "--for", "concepts[7]", "--range", "1", "3") == 0
    keys = json.loads(audio.made.read_text())
    assert all(key.keys() == {"frame", "weight"} and 1 <= key["weight"] <= 3 for key in keys)


@pytest.mark.parametrize("place", ["noise.visual", "noise.concept", "noise.feature", "motion"])
def test_a_noise_of_a_scene_follows_the_sound(audio, capsys, place):
    assert audio(*audio.scene, "--for", place, "--fps", "10", "--band", "2000-6000") == 0
    before, scene = Scene.parse(SCENE), Scene.read(audio.made)
    assert (scene.animation.frames, scene.animation.fps) == (40, 10)
    kind, name = place.rpartition(".")[::2]
    motion = getattr(scene.noise, name).motion if kind else scene.motion
    assert motion.kind == "keyframes" and motion.cycles == (3 if name == "concept" else 1)
    assert motion.loop == (place != "motion")
    loud = [envelope(motion, frame, 40) for frame in range(40)]
    assert min(loud[21:29]) > 0.9 and max(loud[:18]) < 0.05
    path = "motion" if place == "motion" else f"{place}.motion"
    changed = {f"{path}": motion.to_dict(), "animation.frames": 40, "animation.fps": 10}
    assert before.replace(changed) == scene
    silent = place in ("noise.concept", "noise.feature")
    assert (f"remark: {place}.strength: 0" in capsys.readouterr().err) == silent


def test_a_concept_of_a_scene_follows_the_sound_at_the_scenes_own_rate(audio):
    assert audio(*audio.scene, "--for", "concepts[1]", "--frames", "20") == 0
    scene = Scene.read(audio.made)
    assert (scene.animation.frames, scene.animation.fps) == (20, 12)
    first, second = scene.concepts
    assert not first.keyframes and second.keyframes[-1].frame == 19
    assert max(key.weight for key in second.keyframes) == pytest.approx(1, abs=1e-3)
    again = ("--scene", str(audio.made), "--for", "concepts[1]", "--onsets")
    assert audio(*again) == 0 and Scene.read(audio.made).concepts[1].keyframes[-1].frame == 47


def test_a_plot_is_drawn(audio, tmp_path):
    assert audio("--plot", str(tmp_path / "plots" / "é麦.png")) == 0
    with Image.open(tmp_path / "plots" / "é麦.png") as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(100000)) > 20


@pytest.mark.parametrize(
    "options, message",
    [
        (["--for", "concepts[2]"], "--for: no concepts[2]; the scene has 2"),
        (["--range", "0", "2"], "--range: expected numbers from -1 to 1 for noise.visual, got 0 2"),
        (["--for", "concepts[0]", "--range", "-5", "2"], "--range: expected numbers from -4 to 4 for concepts[0]"),
        (["--fps", "121"], "--fps: expected at most 120, got 121"),
        (["--frames", "10001"], "--frames: expected at most 10000, got 10001"),
        (["--band", "12000-13000"], "band: 12000-13000 Hz; the sound has nothing from 11025 Hz on"),
    ],
)
def test_what_does_not_fit_is_refused(audio, capsys, options, message):
    assert audio(*audio.scene, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message) and not audio.made.exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--for", "noise"], "expected one of motion, noise.visual"),
        (["--band", "bass"], "expected all, low, mid, high, or from and to in Hz as 60-120, got 'bass'"),
        (["--band", "200-100"], "from and to in Hz"),
        (["--smooth", "-1"], "expected seconds from 0 to 60, got '-1'"),
        (["--range", "0", "nan"], "expected a finite number, got 'nan'"),
    ],
)
def test_bad_options_are_refused(audio, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        audio(*options)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_keyframes_that_are_more_than_weights_are_kept(audio, capsys, tmp_path):
    scene = {"concepts": [{"prompt": "a", "keyframes": [{"frame": 0, "weight": 1}, {"frame": 3, "prompt": "b"}]}]}
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    assert audio(*audio.scene, "--for", "concepts[0]") == 2
    assert capsys.readouterr().err.startswith("concepts[0].keyframes: expected none that have a mask or a prompt")


def test_files_without_a_sound_are_refused(audio, capsys, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    (tmp_path / "text.txt").write_text("la la la\n" * 50)
    (tmp_path / "broken.mp3").write_bytes(b"\x00" * 5000)
    write_wav(tmp_path / "empty.wav", SOUND[:0])
    for name in ("none.wav", "picture.png", "text.txt", "broken.mp3", "empty.wav", ""):
        assert audio(sound=name) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{tmp_path / name}: "), line
    assert not audio.made.exists()


def test_a_sound_that_is_too_long_is_refused(audio, capsys, tmp_path):
    write_wav(tmp_path / "long.wav", np.zeros(90 * RATE), 1)
    assert audio("--fps", "120", sound="long.wav") == 2
    assert "longer than 10000 frames (83 s at 120 a second); give --frames" in capsys.readouterr().err


def test_without_pyav_the_command_says_how_to_get_it(audio, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert audio() == 2
    assert capsys.readouterr().err == 'reading sound needs PyAV: pip install "av>=12"\n'


def test_a_concept_that_cannot_follow_is_remarked_on(audio, capsys, tmp_path):
    write_wav(tmp_path / "wild.wav", random_sound(0, 20) * np.sign(np.sin(2 * np.pi * 40 * times(20))).clip(0), 1)
    how = ("--fps", "120", "--smooth", "0")
    assert audio(*how, "--for", "concepts[0]", sound="wild.wav") == 0
    remark = capsys.readouterr().err
    assert remark.startswith("remark: concepts[0]: 1000 keyframes, as many as it takes, miss the sound by up to 0.")
    assert len(json.loads(audio.made.read_text())) == 1000
    assert audio(*how, sound="wild.wav") == 0 and not capsys.readouterr().err
    assert 1000 < len(Motion(kind="keyframes", keyframes=json.loads(audio.made.read_text())).keyframes)


def test_a_silent_sound_is_remarked_on(audio, capsys, tmp_path):
    write_wav(tmp_path / "quiet.wav", np.zeros(RATE))
    assert audio(sound="quiet.wav") == 0
    assert capsys.readouterr().err == "remark: noise.visual: the sound is silent there\n"
    assert {key["value"] for key in json.loads(audio.made.read_text())} == {0}
