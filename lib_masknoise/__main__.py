"""The command line: `python -m lib_masknoise demo | render | check | …`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_masknoise import ASSETS, __version__, arguments
from lib_masknoise import audio_command as audio
from lib_masknoise import calibrate_command as calibrate
from lib_masknoise import explore_command as explore
from lib_masknoise.calibrate.profile import Profile, outside
from lib_masknoise.disk import check_folder, new_file
from lib_masknoise.errors import BrokenOutput
from lib_masknoise.exits import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED
from lib_masknoise.render import PlanChanged, Settings, write
from lib_masknoise.render.studio import guidance
from lib_masknoise.scene import Concept, ImageMask, Scene, SceneError, pictures
from lib_masknoise.wildcards import Wildcards, expand, expand_text

STDIN = "-"
SIDES = ("prompt", "negative")
LATENT_PIXELS = 8
CHECKED_SIZE = (512, 512)
"""Height and width in pixels of the picture in which `check` looks at masks: it knows no model."""

DEMO = Settings(prompt="a marsh", seed=3, size=(128, 256))
"""How the demo renders `assets/scenes/demo.json`."""

DESCRIPTION = """\
Soft per-location text conditioning and three kinds of noise for Stable Diffusion.

A scene is a JSON file: a few concepts, each a prompt with a soft mask, and how much of each kind of noise may move what
the masks leave free. Every location of the picture gets its own conditioning, blended from the concepts."""

EXAMPLES = """\
examples:
  python -m lib_masknoise demo
      the built-in scene on the built-in model, into out/demo

  python -m lib_masknoise check my-scene.json
      every mistake in a scene, with its place

  python -m lib_masknoise render my-scene.json --prompt "a landscape" --model sd15.safetensors --size 512x512
      with a model of your own; the picture or the frames and the animation go to out/my-scene

  python -m lib_masknoise render my-scene.json --frames 2000 --resume
      goes on where the same command was interrupted, by whatever

  python -m lib_masknoise explore between --from "a wheat field" --to "an ocean" --out out/between
      what lies between two prompts, as a page that opens from the disk

  python -m lib_masknoise calibrate --model sd15.safetensors --scene my-scene.json --out profile.json
      from where to where each strength is useful with that model; then check my-scene.json --profile profile.json

exit codes: 0 done, 1 the disk, the cluster or the model failed, 2 something in the input is wrong (a problem a line),
130 interrupted; after 1 and 130 the finished frames stay, and --resume goes on from them"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _accept_every_name()
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except SceneError as error:
        return _refuse(*(f"{problem.path}: {problem.message}".removeprefix(": ") for problem in error.problems))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _accept_every_name() -> None:
    """A path or prompt that the output's encoding lacks (a pipe's on Windows, mostly) is printed with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_masknoise",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"MaskNoise {__version__}")
    commands = parser.add_subparsers(
        title="commands",
        required=True,
        metavar="{demo,render,check,colours,sequence,audio,explore,calibrate,ui}",
    )

    demo = commands.add_parser("demo", help="render the built-in scene on the built-in model")
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR", help="where to (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    render = commands.add_parser(
        "render",
        help="render a scene",
        description="Render a scene to PNG frames and the animation formats it asks for. Prints the files it wrote.",
    )
    _add_render_options(render)
    render.set_defaults(run=_render)

    check = commands.add_parser(
        "check",
        help="find every mistake in a scene",
        description="Validate a scene. Prints every problem as `path: message`, one a line, and exits with 2.",
    )
    check.add_argument("scene", type=Path, metavar="SCENE.json", help="the scene; - reads it from standard input")
    check.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="of a model (calibrate --out): which strengths lie outside its ranges",
    )
    check.set_defaults(run=_check)

    colours = commands.add_parser(
        "colours",
        help="a colour-coded picture as a scene",
        description="List the flat colours of a picture with their shares; with --out, write the scene in which each "
        "colour named by a --prompt is a concept.",
    )
    colours.add_argument("picture", type=Path, metavar="PICTURE", help="PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF")
    colours.add_argument(
        "--prompt",
        type=arguments.coloured,
        action="append",
        default=[],
        metavar="#RRGGBB=P",
        help="what the places of a colour show; may be given several times",
    )
    colours.add_argument("--out", type=Path, metavar="SCENE.json", help="where to write the scene")
    colours.set_defaults(run=_colours)

    sequence = commands.add_parser(
        "sequence",
        help="pictures as a mask that changes from frame to frame",
        description="Write the scene in which a concept's mask is a sequence of pictures, with a frame for each.",
    )
    sequence.add_argument(
        "pictures", metavar="PICTURES", help='a folder, a pattern such as "masks/*.png", or an animated picture'
    )
    sequence.add_argument("--prompt", default="", metavar="P", help="what the masked places show")
    sequence.add_argument("--invert", action="store_true", help="black counts as 1 instead of white")
    sequence.add_argument("--out", type=Path, required=True, metavar="SCENE.json", help="where to write the scene")
    sequence.set_defaults(run=_sequence)
    audio.add_parser(commands)
    explore.add_parser(commands)
    calibrate.add_parser(commands)

    ui = commands.add_parser(
        "ui",
        help="paint and render in the browser",
        description="Serve a page with the painting canvas and all settings on this machine, until Ctrl+C.",
    )
    ui.add_argument(
        "--port", type=arguments.port, metavar="P", help="to serve on (default: the first free one from 7860)"
    )
    ui.add_argument(
        "--model",
        metavar="M",
        help="a diffusers folder or a .safetensors file (default: the built-in miniature model)",
    )
    _add_additions(ui)
    ui.set_defaults(run=_ui)
    return parser


def _add_render_options(render: argparse.ArgumentParser) -> None:
    render.add_argument("scene", type=Path, metavar="SCENE.json", help="the scene; - reads it from standard input")
    render.add_argument("--prompt", default="", metavar="P", help="the base: what fills the places no mask covers")
    arguments.add_picture_options(render)
    arguments.add_guidance(render)
    render.add_argument(
        "--frames", type=arguments.positive, metavar="N", help="instead of the scene's animation.frames"
    )
    render.add_argument(
        "--batch",
        type=arguments.batch,
        default=4,
        metavar="N",
        help="frames sampled at a time, or `auto`: the quickest number, measured first (default: %(default)s)",
    )
    render.add_argument(
        "--threads",
        type=arguments.positive,
        metavar="N",
        help="of the processor, in each process: their number decides a pixel's last bit (default: as many as cores; "
        "give several workers on one processor their share of them)",
    )
    render.add_argument(
        "--even",
        action="store_true",
        help="place the frames so that the picture changes by equal amounts between them, as the eye sees it; "
        "looks at the whole motion first, so it takes half as long again, up to 64 frames twice as long",
    )
    render.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted render of the same scene and options: frames that are whole are kept, the "
        "others come out as they would have; exits with 2 and the differences if it was another render",
    )
    render.add_argument(
        "--workers",
        type=arguments.positive,
        metavar="N",
        help="spread the frames over N processes with Ray, on this machine unless --address names a cluster",
    )
    render.add_argument(
        "--address",
        metavar="HOST",
        help="of a running Ray cluster that this machine belongs to: HOST, HOST:PORT (default port: 6379), `auto` "
        "for the one running here, or ray://HOST:PORT from outside (default workers: one a GPU, else one a machine)",
    )
    _add_additions(render)
    render.add_argument("--out", type=Path, metavar="DIR", help="where to (default: out/ and the scene's name)")


def _add_additions(parser: argparse.ArgumentParser) -> None:
    """What is added to a model, as the WebUIs have it in folders and menus."""
    add = parser.add_argument
    add("--lora", type=arguments.lora, action="append", default=[], metavar="FILE[:WEIGHT]",
        help="a LoRA to add to the model; may be given several times")  # fmt: skip
    add(
        "--lora-dir",
        metavar="DIR",
        help="where the LoRAs lie that prompts name as <lora:NAME:0.8>, besides the model's folder",
    )
    add("--embedding", action="append", default=[], metavar="FILE",
        help="a textual inversion, whose word in prompts is the file's name; may be given several times")  # fmt: skip
    add("--sampler", metavar="NAME", help="by the WebUIs' name: Euler a, DPM++ 2M Karras, … (default: the model's own)")
    add(
        "--clip-skip",
        type=arguments.positive,
        default=1,
        metavar="N",
        help="layers from the text encoder's end, as the WebUIs count (default: %(default)s)",
    )
    add("--vae", metavar="FILE|FOLDER", help="instead of the model's own")
    add(
        "--wildcards",
        type=arguments.folder,
        action="append",
        default=[],
        metavar="FOLDER",
        help="with the files that prompts name as __trees__; may be given several times",
    )


def additions_of(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "loras": tuple(options.lora),
        "lora_dir": options.lora_dir,
        "embeddings": tuple(options.embedding),
        "sampler": options.sampler,
        "clip_skip": options.clip_skip,
        "vae": options.vae,
    }


def _scene(path: Path) -> Scene:
    """The scene in a file, or from standard input where the path is ``-``. Raises SceneError."""
    return Scene.parse(sys.stdin.buffer.read()) if str(path) == STDIN else Scene.read(path)


def _named(path: Path) -> str:
    return "standard input" if str(path) == STDIN else str(path)


def _remarks(scene: Scene, size: tuple[int, int]) -> Sequence[object]:
    """On a scene in a picture of ``size``, (height, width) in pixels."""
    from lib_masknoise.maps import Maps

    return Maps(scene, (size[0] // LATENT_PIXELS, size[1] // LATENT_PIXELS)).remarks() if scene.enabled else ()


def _check(options: argparse.Namespace) -> int:
    scene = _scene(options.scene)
    profile = None if options.profile is None else Profile.read(options.profile)
    print(f"{_named(options.scene)}: a valid scene")
    for remark in (*_remarks(scene, CHECKED_SIZE), *(outside(scene, profile) if profile else ())):
        print(f"remark: {remark}")
    return 0


def _colours(options: argparse.Namespace) -> int:
    try:
        data = base64.b64encode(options.picture.read_bytes()).decode()
        found = pictures.colour_map(data)
    except (OSError, ValueError) as error:
        return _refuse(f"{options.picture}: {getattr(error, 'strerror', None) or error}")
    for name, share in zip(found.names, found.shares, strict=True):
        print(f"{name} {100 * share:.1f} %")
    if options.out is not None:
        return _save(Scene.from_colours(data, dict(options.prompt)), options.out)
    return 0


def _sequence(options: argparse.Namespace) -> int:
    mask = ImageMask.read(options.pictures, invert=options.invert)
    scene = Scene(concepts=[Concept(prompt=options.prompt, mask=mask)], animation={"frames": mask.count})
    return _save(scene, options.out, f": {mask.count} pictures")


def _save(scene: Scene, path: Path, remark: str = "") -> int:
    try:
        new_file(path, (scene.to_json(indent=2) + "\n").encode())
    except OSError as error:
        return _refuse(f"{path}: {error.strerror}" if error.strerror else str(error))
    print(f"{path}{remark}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    try:
        from lib_masknoise import page
    except ModuleNotFoundError as error:
        return _refuse(f"{error}: the page needs gradio and diffusers: pip install 'masknoise[cli,ui]'")
    try:
        page.run(options.port, options.model, additions_of(options), Wildcards(options.wildcards))
    except (FileNotFoundError, ValueError) as error:
        return _refuse(error)
    except OSError as error:  # the port is taken
        return _refuse(error, code=EXIT_FAILED)
    return 0


def _demo(options: argparse.Namespace) -> int:
    return _write(Scene.read(ASSETS / "scenes" / "demo.json"), DEMO, options.out)


def _render(options: argparse.Namespace) -> int:
    scene = _scene(options.scene)
    if options.frames is not None:
        scene = scene.replace({"animation.frames": options.frames})
    wildcards = Wildcards(options.wildcards)
    try:  # what is written says what it shows
        prompts = [expand_text(getattr(options, name), f"{options.seed}:{name}", wildcards) for name in SIDES]
    except ValueError as error:
        return _refuse(error)
    scene = expand(scene, options.seed, wildcards)
    for remark in _remarks(scene, options.size or CHECKED_SIZE):
        print(f"remark: {remark}", file=sys.stderr)
    settings = Settings(
        prompt=prompts[0],
        negative_prompt=prompts[1],
        model=options.model,
        seed=options.seed,
        steps=options.steps,
        size=options.size,
        guidance_scale=guidance(options.guidance, options.model),
        batch_size=options.batch,
        even=options.even,
        threads=options.threads,
        **additions_of(options),
    )
    cluster = {"workers": options.workers, "address": options.address}
    name = "scene" if str(options.scene) == STDIN else options.scene.stem
    return _write(scene, settings, options.out or Path("out") / name, resume=options.resume, **cluster)


def _write(scene: Scene, settings: Settings, folder: Path, **how: Any) -> int:
    try:
        check_folder(folder)
        summary = write(scene, settings, folder, announce=lambda path: print(path, flush=True), **how)
    except SceneError:
        raise
    except PlanChanged as error:
        hint = f"{folder} holds another render: leave --resume out to replace it, or choose another --out"
        return _refuse(*error.differences, hint)
    except (FileNotFoundError, ValueError, ImportError) as error:
        return _refuse(error)
    except OSError as error:
        return _refuse(error, *_kept(folder), code=EXIT_FAILED)
    except BrokenOutput as error:
        return _refuse(f"{settings.model or 'the built-in model'}: {error}", *_kept(folder), code=EXIT_FAILED)
    return EXIT_INTERRUPTED if summary["interrupted"] else 0


def _kept(folder: Path) -> Sequence[str]:
    written = any((folder / "frames").glob("*.png"))
    return ["the frames written so far are whole: --resume goes on from them"] if written else []


def _refuse(*problems: object, code: int = EXIT_BAD_INPUT) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
