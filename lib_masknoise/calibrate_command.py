"""`python -m lib_masknoise calibrate`: the useful range of every strength, found for a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib_masknoise import arguments
from lib_masknoise.calibrate.profile import HOME, Profile, Profiles
from lib_masknoise.disk import check_folder
from lib_masknoise.exits import EXIT_INTERRUPTED, said
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

DESCRIPTION = """\
Find the useful range of every strength with a model: from where on it is seen, and up to where pictures hold. A few
calls of the denoiser for each, and two short runs. The profile is kept by the model's hash, and reused."""


def add_parser(commands: Any) -> None:
    """Add `calibrate` to the commands of the program."""
    parser = commands.add_parser("calibrate", help="find the useful range of every strength", description=DESCRIPTION)
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="P",
        help="to measure with; may be given several times (default: the scene's, else a few places)",
    )
    parser.add_argument(
        "--scene", type=Path, metavar="SCENE.json", help="whose prompts and whose settings of the noises count"
    )
    arguments.add_model(parser)
    parser.add_argument("--negative", default="", metavar="P", help="the negative prompt")
    parser.add_argument("--seed", type=arguments.seed, default=0, metavar="S", help="the first of four (default: 0)")
    parser.add_argument("--size", type=arguments.size, metavar="WxH", help="in pixels (default: the model's own)")
    arguments.add_guidance(parser)
    parser.add_argument(
        "--style",
        action="store_true",
        help="find the directions that noise.feature.dimensions calls style and layout, in place of the ranges",
    )
    parser.add_argument("--again", action="store_true", help="measure also where there is a profile of these prompts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the profile there as well")
    parser.set_defaults(run=_run)


@said
def _run(options: argparse.Namespace) -> int:
    try:
        profile = _with_style(options) if options.style else _profile(options)
        if options.out is not None:
            check_folder(options.out.parent)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            profile.write(options.out)
            print(options.out)
    except (KeyboardInterrupt, EOFError):
        return EXIT_INTERRUPTED
    for line in table(profile):
        print(line)
    return 0


def _profile(options: argparse.Namespace) -> Profile:
    """The one that is kept, where it is of the same prompts and settings; else one that is made."""
    from lib_masknoise.calibrate.measuring import calibrate, described
    from lib_masknoise.calibrate.requests import prompts_of
    from lib_masknoise.render.studio import guidance, host

    scene = None if options.scene is None else Scene.read(options.scene)
    prompts = prompts_of(tuple(options.prompt), "", scene)
    load_pipeline, _ = host()
    from lib_masknoise.hosts.diffusers.calibrating import PipelineProbe
    from lib_masknoise.hosts.diffusers.styles import model_hash

    settings = Settings(
        negative_prompt=options.negative,
        model=options.model,
        seed=options.seed,
        size=options.size,
        guidance_scale=guidance(options.guidance, options.model),
    )
    profiles, like = Profiles(HOME), scene or Scene()
    probe = PipelineProbe(load_pipeline(options.model), options.model)
    known = profiles.load(model_hash(options.model))
    settings = replace(settings, size=settings.size or probe.size)
    if known is not None and known.answers(prompts, described(settings, like)) and not options.again:
        print(profiles.path(known.model))
        return known
    made = calibrate(probe, prompts, settings, like, _stage)
    made = replace(made, style=known.style if known else None)
    print(profiles.save(made))
    return made


def _with_style(options: argparse.Namespace) -> Profile:
    """The profile that is kept with its directions of style, which are measured where it has none."""
    from lib_masknoise.calibrate.requests import styled
    from lib_masknoise.calibrate.style import PROMPTS
    from lib_masknoise.render.studio import host

    load_pipeline, _ = host()
    from lib_masknoise.hosts.diffusers.calibrating import PipelineProbe
    from lib_masknoise.hosts.diffusers.styles import model_hash

    profiles, model = Profiles(HOME), model_hash(options.model)
    known = profiles.load(model)
    if known is not None and known.style is not None and not options.again:
        print(profiles.path(model))
        return known
    probe = PipelineProbe(load_pipeline(options.model), options.model)
    settings = Settings(model=options.model, seed=options.seed, size=options.size)
    made = styled(probe, settings, _stage, tuple(options.prompt) or PROMPTS)
    made = replace(known or made, style=made.style)
    print(profiles.save(made))
    return made


@contextmanager
def _stage(what: str, total: int, unit: str) -> Iterator[Any]:
    from lib_masknoise.render.progress import progress

    with progress(what, total, unit=unit) as report:
        yield report


def table(profile: Profile) -> Iterator[str]:
    """The ranges as lines for people."""
    for path, band in profile.effects.items():
        if band.visible is None:
            yield f"{path:24} nothing is seen of it"
        elif band.broken is None:
            yield f"{path:24} {band.visible:.3g} to {band.top:.3g}, where the control ends: no picture breaks"
        else:
            lost = "" if band.lost is None else f", more than half lost from {band.lost:.3g}"
            yield f"{path:24} {band.visible:.3g} to {band.broken:.3g}{lost}"
    if profile.style is not None:
        names = ", ".join(profile.style.get("mixtures", ()))
        yield f"{'noise.feature.dimensions':24} {names}"
