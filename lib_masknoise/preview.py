"""What a scene will do, as pictures, before any model runs: coefficients, noise amount, motion.

Nothing here knows a prompt's meaning or a host: the pictures come from the same maps, fields and curves that the
conditioning is made of. A size is (height, width) in pixels, a frame an index from 0, whole or a fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
import torch
from PIL import Image

from lib_masknoise.maps import Maps, Size, coefficients
from lib_masknoise.motion import envelope, mixtures
from lib_masknoise.noise import amount
from lib_masknoise.noise.fields import moving_fields
from lib_masknoise.noise.latent import visual
from lib_masknoise.scene import Concept, Motion, Scene
from lib_masknoise.seeded import generator

KINDS = ("coefficients", "noise")
NOISES = ("visual", "concept", "feature")

COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#9900ff"),
    *("#990066", "#ffccff", "#0000ff", "#44ffee", "#00dd00", "#ff22ff", "#665500", "#ff0066"),
)
"""One colour for each concept, in their order; the painting canvas has the same. The first seven are Okabe and Ito's
(Color Universal Design, 2008), which also colour-blind people tell apart; each further one is as far as possible from
those before it and from the base, in Oklab."""

BASE_COLOUR = "#2c2c30"
"""Where no concept is: the base prompt."""

_DRAWN_SIDE = 256  # pixels; maps are drawn no larger and enlarged: several times finer than any latent

HEAT = ("#000004", "#1c1044", "#4f127b", "#812581", "#b5367a", "#e55064", "#fb8761", "#fec287", "#fcfdbf")  # "magma"
DIVERGING = ("#67001f", "#d6604d", "#f7f7f7", "#4393c3", "#053061")  # ColorBrewer's "RdBu"
_FIELD_RANGE = 2.0  # a field this far from 0, in standard deviations, has the strongest colour

_STRIPE = 12  # pixels, the period of the stripes that mark negative coefficients

_LATENT_FACTOR = 8  # pixels of an image to one of its latent


def picture(scene: Scene, what: str, frame: float = 0, size: Size = (512, 512)) -> Image.Image:
    """One map of a scene at a frame, as a picture of ``size``. ``what`` is "coefficients" or "noise".

    coefficients: each place has its concepts' colours (COLOURS), mixed by how much they contribute; what is left to
    the base is dark grey. A coefficient above 1 is brighter, a negative one striped. In mode "add" coefficients count
    relative to ``blend.scale``, or nothing would be seen of them.
    noise: how much noise there is, black for none up to pale yellow for the largest strength (of 1 at least): the
    largest of the three noises, each times its motion's envelope at that frame.

    Raises ValueError for another ``what``.
    """
    return Preview(scene).picture(what, frame, size)


def strip(scene: Scene, count: int = 8, size: Size = (96, 96)) -> Image.Image:
    """What moves: up to ``count`` frames side by side, evenly spaced over the animation, each ``size``.

    From top to bottom: the coefficients (as in `picture`), and for each noise that has a strength what it is at that
    frame, on white where there is none of it. Of the visual noise that is a channel of the latent, which stays as it is
    where masks pin it; of the others one of their fields. A seed of -1 counts as 0.
    """
    return Preview(scene).strip(count, size)


class Preview:
    """`picture` and `strip` of one scene, with maps that they share: a mask is drawn once a size."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._maps: dict[Size, Maps] = {}
        self._colours = _rgb(COLOURS)[[i for i, concept in enumerate(scene.concepts) if concept.enabled]]

    def picture(self, what: str, frame: float = 0, size: Size = (512, 512)) -> Image.Image:
        _check_kind(what)
        maps = self.maps(_drawn_size(size))
        pixels = self._blend(maps, frame) if what == "coefficients" else _noise_colours(maps, frame)
        return _image(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)

    def strip(self, count: int = 8, size: Size = (96, 96)) -> Image.Image:
        scene = self.scene
        frames = _evenly_spaced(scene, count)
        rows = [[self._blend(self.maps(size), frame) for frame in frames]]
        noises = [name for name in NOISES if getattr(scene.noise, name).strength > 0]
        small = (max(1, size[0] // _LATENT_FACTOR), max(1, size[1] // _LATENT_FACTOR))
        rows += [_field_colours(self.maps(small if name == "visual" else size), name, frames, size) for name in noises]
        return _image(np.concatenate([np.concatenate([_framed(tile) for tile in row], axis=1) for row in rows]))

    def _blend(self, maps: Maps, frame: float) -> np.ndarray:
        return _coefficient_colours(maps, frame, self._colours)

    def maps(self, size: Size) -> Maps:
        """Drawn at ``size`` itself, not finer as for the U-Net: a pixel already is the mask's mean over it."""
        if size not in self._maps:
            self._maps[size] = Maps(self.scene, size, factor=1)
        return self._maps[size]


def description(scene: Scene, what: str) -> str:
    """What `picture` shows, in words: the text alternative. Raises ValueError as `picture` does."""
    _check_kind(what)
    if what == "coefficients":
        listed = "; ".join(
            f"{i}: {c.prompt or 'no prompt'} ({c.weight:g})" for i, c in enumerate(scene.concepts, 1) if c.enabled
        )
        return (
            f"Where each concept is, with its weight. {listed}" if listed else "No concepts: the base prompt everywhere"
        )
    strengths = ", ".join(f"{name} {getattr(scene.noise, name).strength:g}" for name in NOISES)
    return f"How much noise there is at each place. Strengths: {strengths}; exponent {scene.noise.exponent:g}"


def _check_kind(what: str) -> None:
    if what not in KINDS:
        raise ValueError(f"expected {' or '.join(KINDS)}, got {what!r}")


# --- Maps


def _drawn_size(size: Size) -> Size:
    factor = min(1.0, _DRAWN_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _coefficient_colours(maps: Maps, frame: float, colours: np.ndarray) -> np.ndarray:
    """``[H, W, 3]``, 0 to 1. colours: of the concepts that act, ``[N, 3]``."""
    blend = maps.scene.blend
    (row,) = maps.passages([frame])
    scale = 1.0 if blend.mode == "add" else blend.scale
    parts = coefficients(maps.weights([frame])[0], [one.weight for one in row], blend.mode, scale)[1:].numpy()
    shares = np.where(parts < 0, -parts * _stripes(maps.size), parts)
    total = shares.sum(0)
    shares = shares / np.maximum(total, 1)
    mixed = np.einsum("nhw,nc->hwc", shares, colours)
    mixed += (1 - shares.sum(0))[..., None] * _rgb([BASE_COLOUR])
    beyond = np.clip((total - 1) / 4, 0, 0.6)[..., None]
    return mixed + (1 - mixed) * beyond


def _stripes(size: Size) -> np.ndarray:
    """1 and 0 by turns along the diagonal, ``[H, W]``."""
    rows, columns = np.indices(size)
    return ((rows + columns) // (_STRIPE // 2) % 2).astype(np.float32)


def _noise_colours(maps: Maps, frame: float) -> np.ndarray:
    """The largest of the three noises' amounts at a frame, ``[H, W, 3]``."""
    noise = maps.scene.noise
    strengths = {name: getattr(noise, name).strength for name in NOISES}
    largest = max(abs(_envelope(maps.scene, name, frame)) * strength for name, strength in strengths.items())
    amounts = amount(maps.pins([frame])[0], largest, noise.exponent)
    return _coloured(amounts.numpy() / max(1.0, *strengths.values()), HEAT)


def _motion(scene: Scene, name: str) -> Motion:
    return getattr(scene.noise, name).motion or scene.motion


def _envelope(scene: Scene, name: str, frame: float) -> float:
    return envelope(_motion(scene, name), frame, scene.animation.frames)


# --- Frames


def _evenly_spaced(scene: Scene, count: int) -> list[int]:
    """Up to ``count`` different frames; without a loop the first and the last are among them."""
    total = scene.animation.frames
    end = total if scene.motion.loop else total - 1
    steps = count if scene.motion.loop else max(count - 1, 1)
    return sorted({min(round(i * end / steps), total - 1) for i in range(count)})


def _framed(tile: np.ndarray) -> np.ndarray:
    """A tile ``[H, W, 3]`` with a grey rim inside it, which keeps it apart from its neighbours."""
    tile = tile.copy()
    tile[[0, -1]] = tile[:, [0, -1]] = 0.5
    return tile


def _field_colours(maps: Maps, name: str, frames: Sequence[int], size: Size) -> list[np.ndarray]:
    """What a noise adds at some frames, ``[H, W, 3]`` each."""
    scene = maps.scene
    noise, total, seed = getattr(scene.noise, name), scene.animation.frames, max(scene.noise.seed, 0)
    motion = _motion(scene, name)
    amounts = maps.amount(name, frames).expand(len(frames), -1, -1)
    if name == "visual":
        still = torch.randn(1, *maps.size, generator=generator(seed, "preview"))
        others = [torch.randn(1, *maps.size, generator=generator(stop, "preview")) for stop in noise.stops]
        fields = visual(still, amounts, motion, frames, total, seed, others)
    else:
        purpose = f"{name}/fields"
        fields = moving_fields(1, amounts, noise.size, motion, frames, total, seed, purpose) / max(1.0, noise.strength)
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, maps.size, strict=True))
    return [_coloured(0.5 + field[0].numpy()[rows][:, columns] / (2 * _FIELD_RANGE), DIVERGING) for field in fields]


# --- Curves

_SAMPLES = 240  # of each curve

_LINES = ("#e08a00", "#2f8fd0", "#00a076", "#d5604d", "#b060b0", "#8a8a20", "#7070e0", "#808080")
"""Colours that can be seen on white and on black."""


def motion_curve(scene: Scene, size: Size = (160, 480)) -> str:
    """The motions over the frames as an SVG picture: one plot for the scene's own and one for each noise's own.

    A plot shows the factor that the motion gives the noise (its envelope), or the weights by which it mixes several
    fields. ``size`` is that of one plot; they lie below each other. Axes and text have the colour of the text around
    the picture (currentColor), which suits light and dark pages. A seed of -1 counts as 0.
    """
    motions = {"All noise": scene.motion} | {
        f"{name.capitalize()} noise": getattr(scene.noise, name).motion
        for name in NOISES
        if getattr(scene.noise, name).motion is not None
    }
    height, width = size
    plots = [
        f'<g transform="translate(0 {i * height})">{_plot(scene, label, motion, size)}</g>'
        for i, (label, motion) in enumerate(motions.items())
    ]
    words = ". ".join(_in_words(label, motion, scene.animation.frames) for label, motion in motions.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height * len(plots)}" role="img"'
        ' font-family="sans-serif" font-size="11" fill="none" stroke-linejoin="round">'
        f"<title>{escape(words)}</title>{''.join(plots)}</svg>"
    )


def steps_chart(scene: Scene, size: Size = (18, 224)) -> str:
    """In which part of the sampling steps each concept acts, as an SVG picture: a bar each, in its colour, on a line
    from the first step to the last. ``size`` is that of one concept's line. Empty where all act in all steps."""
    acting = [(i, concept, _window(scene, concept)) for i, concept in enumerate(scene.concepts) if concept.enabled]
    if all(window == (0.0, 1.0) for _, _, window in acting):
        return ""
    height, width = size
    left, right = 20, width - 4

    def x(share: float) -> float:
        return round(left + (right - left) * share, 1)

    parts = []
    for row, (i, _, (start, end)) in enumerate(acting):
        middle = height * row + height / 2
        parts.append(f'<path d="M{left} {middle}H{right}" stroke="currentColor" stroke-opacity="0.25"/>')
        parts.append(f'<text x="2" y="{middle + 4}" fill="currentColor">{i + 1}</text>')
        if start < end:
            parts.append(f'<path d="M{x(start)} {middle}H{x(end)}" stroke="{COLOURS[i]}" stroke-width="8"/>')
    bottom = height * len(acting)
    for at, anchor, label in ((left, "start", "first step"), (right, "end", "last step")):
        parts.append(f'<text x="{at}" y="{bottom + 12}" text-anchor="{anchor}" fill="currentColor">{label}</text>')
    said = [(concept.prompt or f"concept {i + 1}", *window) for i, concept, window in acting]
    words = "; ".join(
        f"{name}: {f'{start:.0%} to {end:.0%} of the steps' if start < end else 'in no step'}"
        for name, start, end in said
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 18}" width="{width}" role="img"'
        f' font-family="sans-serif" font-size="11" fill="none"><title>{escape(words)}</title>{"".join(parts)}</svg>'
    )


def _window(scene: Scene, concept: Concept) -> tuple[float, float]:
    """Of the steps: where the concept begins and ends within those of the blend."""
    start = max(scene.blend.start, concept.start)
    return start, max(start, min(scene.blend.end, concept.end))


def _in_words(label: str, motion: Motion, total: int) -> str:
    if motion.kind == "none":
        return f"{label}: does not move"
    cycles = f", {motion.cycles} cycles" if motion.cycles > 1 else ""
    return f"{label}: {motion.kind}{cycles} over {total} frames{', closed' if motion.loop else ''}"


def _curves(motion: Motion, total: int, seed: int, times: np.ndarray) -> dict[str, np.ndarray]:
    """Named curves over ``times`` (frames), each from -1 to 1."""
    weights = mixtures(motion, times.tolist(), total, seed).numpy()
    if weights.shape[1] == 1:
        return {"strength": np.array([envelope(motion, frame, total) for frame in times.tolist()])}
    return {f"field {i}": weight for i, weight in enumerate(weights.T, 1)}


def _plot(scene: Scene, label: str, motion: Motion, size: Size) -> str:
    height, width = size
    left, right, top, bottom = 30, width - 10, 36, height - 18
    total = scene.animation.frames
    end = total if motion.loop else max(total - 1, 1)
    times = np.linspace(0, end, _SAMPLES + 1)
    curves = _curves(motion, total, max(scene.noise.seed, 0), times)

    def x(frame: float) -> str:
        return f"{left + (right - left) * frame / end:.1f}"

    def y(value: float) -> str:
        return f"{(top + bottom) / 2 - (bottom - top) / 2 * value:.1f}"

    def text(x: float | str, y: float | str, words: str, anchor: str = "start") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor">{escape(words)}</text>'

    parts = [text(left, 12, _in_words(label, motion, total))]
    for value in (-1, 0, 1):
        opacity = 0.6 if value == 0 else 0.25
        parts.append(f'<path d="M{left} {y(value)}H{right}" stroke="currentColor" stroke-opacity="{opacity}"/>')
        parts.append(text(left - 5, f"{float(y(value)) + 4:.1f}", str(value), "end"))
    parts += [text(left, height - 5, "frame 0"), text(right, height - 5, str(end), "end")]
    for i, (name, values) in enumerate(curves.items()):
        points = " ".join(f"{x(frame)},{y(value)}" for frame, value in zip(times, values, strict=True))
        place = left + i * min(62, (right - left) // len(curves))
        parts.append(f'<polyline points="{points}" stroke="{_LINES[i]}" stroke-width="1.8"/>')
        parts.append(f'<path d="M{place} 24h10" stroke="{_LINES[i]}" stroke-width="3"/>{text(place + 14, 28, name)}')
    return "".join(parts)


# --- Colours


def _rgb(colours: Sequence[str]) -> np.ndarray:
    """``[n, 3]``, 0 to 1, of "#rrggbb"."""
    return np.array([list(bytes.fromhex(colour[1:])) for colour in colours], np.float32) / 255


def _coloured(values: np.ndarray, table: Sequence[str]) -> np.ndarray:
    """Values 0 to 1 (beyond: clipped) as colours between those of a table: ``[H, W]`` → ``[H, W, 3]``."""
    places = np.linspace(0, 1, len(table))
    return np.stack([np.interp(values, places, channel) for channel in _rgb(table).T], axis=-1)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
