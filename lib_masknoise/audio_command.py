"""`python -m lib_masknoise audio`: a sound as keyframes of a noise or of a concept's weight."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lib_masknoise import arguments, audio
from lib_masknoise.audio import keys
from lib_masknoise.audio.levels import edges
from lib_masknoise.audio.plot import plot
from lib_masknoise.controls import control
from lib_masknoise.disk import new_file
from lib_masknoise.exits import said
from lib_masknoise.scene import ConceptKeyframe, Problem, Scene, SceneError

DESCRIPTION = """\
Keyframes from a sound: how loud a band of it is in each frame, or where something sets in. With --scene they are
written into the scene, with the number of frames and their rate; without, as a list to put in its place."""

NOISES = ("motion", "noise.visual", "noise.concept", "noise.feature")
CONCEPT = re.compile(r"concepts\[(\d{1,3})\]")
SMOOTH, DECAY = 0.05, 0.2
MOST_FRAMES, MOST_FPS = (int(control(f"animation.{name}").high or 0) for name in ("frames", "fps"))


def add_parser(commands: Any) -> None:
    """Add `audio` to the commands of the program."""
    parser = commands.add_parser("audio", help="keyframes from a sound", description=DESCRIPTION)
    parser.add_argument("sound", type=Path, metavar="SOUND", help="WAV, MP3, FLAC, OGG or whatever else ffmpeg reads")
    parser.add_argument("--scene", type=Path, metavar="SCENE.json", help="what the keyframes are for")
    parser.add_argument(
        "--for",
        dest="target",
        type=_target,
        default="noise.visual",
        metavar="PLACE",
        help="noise.visual, noise.concept, noise.feature, motion (of all three), or the weight of concepts[0], "
        "concepts[1], … (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=arguments.positive,
        metavar="N",
        help="frames a second (default: the scene's, else 12)",
    )
    parser.add_argument("--frames", type=arguments.positive, metavar="N", help="(default: as long as the sound lasts)")
    parser.add_argument(
        "--band",
        type=_band,
        default="all",
        metavar="BAND",
        help="low (20-200 Hz), mid (200-2000), high (from 2000), all, or from and to in Hz such as 60-120 "
        "(default: %(default)s)",
    )
    parser.add_argument("--onsets", action="store_true", help="where something sets in, instead of how loud it is")
    parser.add_argument(
        "--smooth",
        type=_seconds,
        metavar="SECONDS",
        help=f"for loudness the width of the Gaussian that it is averaged with (default: {SMOOTH}), for onsets how "
        f"long they take to fall to 1/e (default: {DECAY})",
    )
    parser.add_argument(
        "--range",
        type=arguments.finite,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="what quiet and loud become (default: 0 1)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the numbers and the keyframes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where to write it")
    parser.set_defaults(run=_run)


@said
def _run(options: argparse.Namespace) -> int:
    scene = None if options.scene is None else Scene.read(options.scene)
    _check(options, scene)
    fps = options.fps or (scene or Scene()).animation.fps
    values = _values(options, fps)
    low, high = options.range
    found = audio.keyframes(values, low, high, "weight" if CONCEPT.fullmatch(options.target) else "value")
    if scene is None:
        text = "[\n" + ",\n".join(f"  {json.dumps(key)}" for key in found) + "\n]\n"
    else:
        scene = _with_keys(scene, options.target, found).replace(
            {"animation.frames": len(values), "animation.fps": fps}
        )
        text = scene.to_json(indent=2) + "\n"
    new_file(options.out, text.encode())
    kept = [int(key["frame"]) for key in found]
    how = f"{'onsets' if options.onsets else 'loudness'}, {_named(options.band)}"
    said = f"{how}: {len(values)} frames at {fps} a second, {len(kept)} keyframes"
    if options.plot is not None:
        drawn = io.BytesIO()
        plot(values, kept, fps, f"{options.sound.name} - {said}").save(drawn, "PNG", optimize=True)
        new_file(options.plot, drawn.getvalue())
    print(said)
    for remark in _remarks(scene, options.target, values, kept):
        print(f"remark: {remark}", file=sys.stderr)
    for path in filter(None, (options.out, options.plot)):
        print(path)
    return 0


def _check(options: argparse.Namespace, scene: Scene | None) -> None:
    """Raise SceneError for what can be known to be wrong before the sound is read."""
    concept = CONCEPT.fullmatch(options.target)
    weight = control("concepts[].weight")
    low, high = (weight.low, weight.high) if concept else (-1, 1)
    wrong = [
        Problem(name, f"expected at most {limit}, got {given}")
        for name, given, limit in (("--fps", options.fps, MOST_FPS), ("--frames", options.frames, MOST_FRAMES))
        if given is not None and given > limit
    ]
    if not all(low <= end <= high for end in options.range):
        given = " ".join(f"{end:g}" for end in options.range)
        wrong.append(Problem("--range", f"expected numbers from {low:g} to {high:g} for {options.target}, got {given}"))
    if concept and scene is not None:
        index = int(concept[1])
        if index >= len(scene.concepts):
            wrong.append(Problem("--for", f"no {options.target}; the scene has {len(scene.concepts)}"))
        elif any(
            key.to_dict(defaults=False).keys() - {"frame", "weight", "easing"}
            for key in scene.concepts[index].keyframes
        ):
            wrong.append(
                Problem(
                    f"{options.target}.keyframes", "expected none that have a mask or a prompt: weights replace them"
                )
            )
    if wrong:
        raise SceneError(wrong)


def _weight_alone(key: ConceptKeyframe) -> bool:
    return key.mask is None and key.prompt is None and key.negative is None


def _values(options: argparse.Namespace, fps: int) -> Any:
    samples, rate = audio.read(options.sound, ((options.frames or MOST_FRAMES) + 1) / fps + 1)
    edges(options.band, rate)
    if options.onsets:
        decay = DECAY if options.smooth is None else options.smooth
        values = audio.onsets(samples, rate, fps, options.frames, options.band, decay)
    else:
        smooth = SMOOTH if options.smooth is None else options.smooth
        values = audio.loudness(samples, rate, fps, options.frames, options.band, smooth)
    if len(values) > MOST_FRAMES:
        longest = f"{MOST_FRAMES} frames ({MOST_FRAMES / fps:.0f} s at {fps} a second)"
        raise ValueError(f"{options.sound}: longer than {longest}; give --frames or a lower --fps")
    return values


def _with_keys(scene: Scene, target: str, found: list[dict[str, float]]) -> Scene:
    if CONCEPT.fullmatch(target):
        return scene.replace({f"{target}.keyframes": found})
    motion = target if target == "motion" else f"{target}.motion"
    return scene.replace({f"{motion}.kind": "keyframes", f"{motion}.keyframes": found})


def _missed(kept: list[int], values: Any) -> float:
    """By how much the lines between the keyframes miss the numbers at most."""
    return float(np.abs(np.interp(np.arange(len(values)), kept, values[kept]) - values).max())


def _remarks(scene: Scene | None, target: str, values: Any, kept: list[int]) -> list[Problem]:
    """What will not be as one expects of a picture that follows a sound."""
    remarks = [] if values.any() else [Problem(target, "the sound is silent there")]
    missed = _missed(kept, values)
    if missed > keys.TOLERANCE:
        few = f"{len(kept)} keyframes, as many as it takes, miss the sound by up to {missed:.2f}"
        remarks.append(Problem(target, f"{few}: give a larger --smooth, a lower --fps or fewer --frames"))
    if scene is None:
        return remarks
    strengths = {name: getattr(scene.noise, name).strength for name in ("visual", "concept", "feature")}
    own = {f"noise.{name}": strength for name, strength in strengths.items()}
    if target in own and not own[target]:
        remarks.append(Problem(f"{target}.strength", "0, so nothing is seen of its keyframes"))
    if target == "motion" and not any(own.values()):
        remarks.append(Problem("noise", "every strength is 0, so nothing is seen of the keyframes"))
    if scene.animation.rubber_band:
        remarks.append(Problem("animation.rubber_band", "the way back does not follow the sound"))
    return remarks


def _named(band: Any) -> str:
    return band if isinstance(band, str) else "{:g}-{:g} Hz".format(*band)


def _target(text: str) -> str:
    if text not in NOISES and not CONCEPT.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(NOISES)}, or concepts[0], concepts[1], …; got {text!r}"
        )
    return text


def _band(text: str) -> Any:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    if text in audio.BANDS:
        return text
    if not match or float(match[1]) >= float(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(audio.BANDS)}, or from and to in Hz as 60-120, got {text!r}"
        )
    return float(match[1]), float(match[2])


def _seconds(text: str) -> float:
    value = arguments.finite(text)
    if not 0 <= value <= 60:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 60, got {text!r}")
    return value
