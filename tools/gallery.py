"""The gallery: every scene of examples/ as a small looping animation in docs/gallery/, and docs/gallery.md.

    python -m tools.gallery [NAME ...] [--frames N] [--steps N] [--fps N] [--model M]

What each example is, and with which prompt, seed and size it is rendered, comes from examples/README.md: the first
paragraph and the command of its section. A long animation is shown at N moments spread evenly over it: the same motion,
not the same number of frames.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_masknoise import animation
from lib_masknoise.scene import Scene
from lib_masknoise.smoothness import coarse_times

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
GALLERY = ROOT / "docs" / "gallery"
COMMAND = "python -m lib_masknoise render "

HEAD = """\
# Gallery

The scenes of [examples/](../examples), rendered with the built-in model, small and with few steps. Of each animation
some moments are shown, spread evenly over it, and so in quicker motion than the scene's own. `make gallery` renders
them all.

| | |
|---|---|
"""


@dataclass(frozen=True)
class Example:
    """A section of examples/README.md: the scene's name, what it shows, and the command that renders it."""

    name: str
    text: str
    command: str

    @property
    def scene(self) -> Scene:
        return Scene.read(EXAMPLES / f"{self.name}.json")

    @property
    def options(self) -> argparse.Namespace:
        """scene, prompt, seed and size (height, width) of the command."""
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("scene")
        parser.add_argument("--prompt", default="")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--size", type=lambda text: tuple(map(int, reversed(text.split("x")))))
        return parser.parse_args(shlex.split(self.command.removeprefix(COMMAND)))


def examples() -> list[Example]:
    """All sections of examples/README.md, in their order."""
    text = (EXAMPLES / "README.md").read_text("utf-8")
    sections = re.findall(rf"^## ([\w-]+)\n\n(.+?)\n\n    ({COMMAND}[^\n]+)$", text, re.S | re.M)
    return [Example(name, " ".join(paragraph.split()), command) for name, paragraph, command in sections]


def moments(scene: Scene, count: int) -> list[float]:
    """``count`` times spread evenly over a scene's animation; in a loop the last leads on to the first."""
    total, loop = scene.animation.frames, scene.motion.loop
    return coarse_times(total, count + 1, True)[:-1] if loop else coarse_times(total, count, False)


def show(example: Example, frames: int, steps: int, fps: int, model: str | None = None) -> Path:
    """Render one example into docs/gallery/ (model: None for the built-in one)."""
    from lib_masknoise.hosts.diffusers import load_pipeline, render

    scene, options = example.scene, example.options
    made = render(
        load_pipeline(model),
        scene,
        options.prompt,
        seed=options.seed,
        steps=steps,
        size=options.size,
        frames=moments(scene, frames),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, frame in enumerate(made):
            paths.append(Path(folder) / f"{i:05}.png")
            frame.image.save(paths[-1])
        return animation.write(paths, GALLERY, example.name, ["webp"], fps, scene.animation.rubber_band)[0]


def page() -> str:
    """docs/gallery.md."""
    rows = [
        f"| ![{one.name}](gallery/{one.name}.webp) | **[{one.name}](../examples/{one.name}.json)** {one.text} |\n"
        for one in examples()
    ]
    return HEAD + "".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tools.gallery", description=__doc__, formatter_class=style)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an example (default: all)")
    parser.add_argument("--frames", type=int, default=20, help="moments of each animation (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps (default: %(default)s)")
    parser.add_argument("--fps", type=int, default=10, help="frames per second (default: %(default)s)")
    parser.add_argument("--model", help="a diffusers folder or a .safetensors file (default: the built-in model)")
    options = parser.parse_args(argv)
    known = {one.name: one for one in examples()}
    if wrong := set(options.names) - set(known):
        parser.error(f"no such example: {', '.join(sorted(wrong))}; there are {', '.join(known)}")
    for name in options.names or known:
        print(show(known[name], options.frames, options.steps, options.fps, options.model), flush=True)
    (ROOT / "docs" / "gallery.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
