"""`python -m lib_masknoise explore journey | between | map | grid`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_masknoise import arguments
from lib_masknoise.disk import check_folder
from lib_masknoise.exits import EXIT_INTERRUPTED, said
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.settings import Settings

DESCRIPTION = """\
Look at what a model knows: how noise becomes a picture, what stands between two prompts, where prompts live, what seed,
steps, guidance and words do. Writes explore.json, the pictures and one index.html that works from the disk."""

BATCH = 8


def add_parser(commands: Any) -> None:
    """Add `explore` and its four views to the commands of the program."""
    explore = commands.add_parser("explore", help="find pictures: journey, between, map, grid", description=DESCRIPTION)
    views = explore.add_subparsers(title="views", required=True, metavar="{journey,between,map,grid}")

    journey = views.add_parser("journey", help="one pass, step by step")
    _add_prompt(journey, required=False)
    _add_scene(journey, "whose picture it is; --prompt is its base")
    _add_common(journey)
    journey.set_defaults(run=_run(_journey))

    between = views.add_parser("between", help="from one prompt to another, and beyond both")
    between.add_argument("--from", dest="from_", metavar="A", help="the first (default: of the scene's first concept)")
    between.add_argument("--to", metavar="B", help="the second (default: of the scene's second concept)")
    _add_prompt(between, required=False, help="the base of --scene")
    _add_scene(between, "whose two first concepts they are, and which bridges are put into")
    between.add_argument(
        "--stops", type=_at_least_two, default=17, metavar="N", help="from A to B, both counted (default: %(default)s)"
    )
    between.add_argument(
        "--even",
        action="store_true",
        help="place the stops so that the picture changes by equal amounts between them, as the eye sees it; without "
        "this, more of them lie where it changes most",
    )
    between.add_argument(
        "--beyond",
        type=_up_to_one,
        default=0.5,
        metavar="X",
        help="go on by so much of the way at both ends, every quarter: extrapolation (default: %(default)s)",
    )
    between.add_argument(
        "--bridges",
        type=arguments.whole,
        default=5,
        metavar="N",
        help="how many named prompts to find along the way, each put into the passage (default: %(default)s)",
    )
    _add_prompts_option(between)
    _add_common(between)
    between.set_defaults(run=_run(_between))

    chart = views.add_parser("map", help="prompts laid out by the model's own encoder")
    chart.add_argument(
        "prompts",
        nargs="?",
        type=Path,
        metavar="PROMPTS.txt",
        help="one a line, # for headings (default: a built-in list of about 600 scenes and styles)",
    )
    _add_scene(chart, "whose prompts are put on the map as well")
    chart.add_argument(
        "--columns",
        type=arguments.whole,
        default=8,
        metavar="N",
        help="of places that a picture is made of, in as many rows as fit; 0 for none (default: %(default)s)",
    )
    _add_common(chart)
    chart.set_defaults(run=_run(_map))

    grid = views.add_parser("grid", help="every combination of seeds, steps, guidances and words")
    _add_prompt(grid, required=True)
    _add_scene(grid, "to render in every cell, each in a pass of its own; --prompt is its base")
    grid.add_argument("--seeds", type=_list(arguments.seed), metavar="S,S,…", help="(default: that of --seed)")
    grid.add_argument("--step-counts", type=_list(arguments.positive), metavar="N,N,…", help="(default: --steps)")
    grid.add_argument("--guidances", "--guidance", dest="guidances", type=_list(arguments.finite), metavar="G,G,…",
                      help="guidance scales (default: 4 for the built-in model, 7 for others)")  # fmt: skip
    grid.add_argument("--words", action="store_true", help="the prompt word by word, too")
    _add_common(grid, guidance=False)
    grid.set_defaults(run=_run(_grid))


def _add_prompt(parser: argparse.ArgumentParser, required: bool, help: str = "of the image") -> None:
    parser.add_argument("--prompt", default="", required=required, metavar="P", help=help)


def _add_scene(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--scene", type=Path, metavar="SCENE.json", help=help)


def _add_prompts_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts", type=Path, metavar="PROMPTS.txt", help="where bridges are looked for (default: the built-in list)"
    )


def _add_common(parser: argparse.ArgumentParser, guidance: bool = True) -> None:
    arguments.add_picture_options(parser)
    if guidance:
        arguments.add_guidance(parser)
    parser.add_argument(
        "--batch", type=arguments.positive, default=BATCH, metavar="N", help="sampled at a time (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")


def _run(make: Callable[..., dict[str, Any]]) -> Callable[[argparse.Namespace], int]:
    """A command's `run`: what is wrong is said a line each, what was stopped keeps what there is."""

    @said
    def run(options: argparse.Namespace) -> int:
        view = make(options, _settings(options))
        return EXIT_INTERRUPTED if view["interrupted"] else 0

    return run


def _settings(options: argparse.Namespace) -> Settings:
    from lib_masknoise.render.studio import guidance

    return Settings(
        prompt=getattr(options, "prompt", ""),
        negative_prompt=options.negative,
        model=options.model,
        seed=options.seed,
        steps=options.steps,
        size=options.size,
        guidance_scale=guidance(getattr(options, "guidance", None), options.model),
        batch_size=options.batch,
    )


def _journey(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    scene = _scene(options)
    if scene is None and not settings.prompt:
        raise SceneError([Problem("--prompt", "expected one, or a --scene")])
    model, folder, stage, views = _workplace(options)
    return views.journey(model, settings, scene, folder, stage)


def _between(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    scene = _scene(options)
    own = [concept.prompt for concept in scene.concepts[:2]] if scene else []
    if scene is not None and len(own) < 2:
        raise SceneError([Problem("concepts", f"expected at least two, got {len(own)}")])
    ends = [
        given if given is not None else (own[i] if own else None) for i, given in enumerate((options.from_, options.to))
    ]
    missing = [name for name, end in zip(("--from", "--to"), ends, strict=True) if end is None]
    if missing:
        raise SceneError(Problem(name, "expected a prompt, or a --scene with two concepts") for name in missing)
    first, second = (end or "" for end in ends)
    from lib_masknoise.explore import map as maps

    names = maps.read_prompts(options.prompts or maps.BUILT_IN) if options.bridges else []
    model, folder, stage, views = _workplace(options)
    return views.between(
        model,
        replace(settings, prompt=first),
        second,
        folder,
        stage,
        stops=options.stops,
        even=options.even,
        reach=options.beyond,
        bridges=options.bridges,
        names=names,
        scene=scene,
        base=settings.prompt,
    )


def _map(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    from lib_masknoise.conditioning import prompts
    from lib_masknoise.explore import map as maps

    entries = maps.read_prompts(options.prompts or maps.BUILT_IN)
    scene = _scene(options)
    if scene is not None:
        known = {entry.prompt for entry in entries}
        own = [maps.Entry(prompt, "The scene") for prompt in prompts(scene) if prompt not in known]
        entries = [*own, *entries]
    model, folder, stage, views = _workplace(options)
    return views.prompt_map(model, settings, entries, folder, stage, columns=options.columns)


def _grid(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    from lib_masknoise.explore.grid import Grid

    wanted = Grid(
        settings.prompt,
        options.seeds or (options.seed,),
        options.step_counts or (options.steps,),
        options.guidances or (settings.guidance_scale,),
        options.words,
    )
    scene = _scene(options)
    if options.words and not settings.prompt.split():
        raise SceneError([Problem("--prompt", "expected at least one word")])
    _ = wanted.cells  # too many are refused before the model is loaded
    model, folder, stage, views = _workplace(options)
    return views.grid(model, settings, wanted, scene, folder, stage)


def _scene(options: argparse.Namespace) -> Scene | None:
    return None if options.scene is None else Scene.read(options.scene)


def _workplace(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """The model, the folder, where progress is shown, and what makes views; all that takes seconds to import."""
    from lib_masknoise.explore import views
    from lib_masknoise.explore.folder import Folder
    from lib_masknoise.render.progress import progress
    from lib_masknoise.render.studio import host

    check_folder(options.out)
    load_pipeline, _ = host()
    from lib_masknoise.hosts.diffusers.exploring import PipelineModel

    model = PipelineModel(load_pipeline(options.model))
    folder = Folder(options.out, lambda path: print(path, flush=True))

    def stage(what: str, total: int, unit: str) -> Any:
        return progress(what, total, unit=unit)

    return model, folder, stage, views


def _list(of: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """`1,2,3` → values, each once."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(of(part.strip()) for part in text.split(",")))

    return read


def _at_least_two(text: str) -> int:
    value = arguments.positive(text)
    if not 2 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 2 to 1000, got {text!r}")
    return value


def _up_to_one(text: str) -> float:
    value = arguments.finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
