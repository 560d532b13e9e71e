"""The four views, made on a model and written into a folder.

Each function returns what explore.json says. An interrupt ends the sampling; what there is by then is written, and the
view says that it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from PIL import Image

from lib_masknoise import __version__, animation, smoothness
from lib_masknoise.explore import between as lines
from lib_masknoise.explore import bridges as ways
from lib_masknoise.explore import grid as grids
from lib_masknoise.explore import journey as journeys
from lib_masknoise.explore import map as maps
from lib_masknoise.explore.between import Stage
from lib_masknoise.explore.bridges import Bridge, Named
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.model import Model, Report, Stop, blend
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

DISABLED = Scene(enabled=False)
ANIMATION_FPS = 8
DRAWN_AT = 256  # pixels of a bridge mask's shorter side


def journey(model: Model, settings: Settings, scene: Scene | None, folder: Folder, stage: Stage) -> dict[str, Any]:
    """One pass step by step, of the prompt or of a scene over it."""
    with stage("sampling", 1, "passes") as report:
        recording = model.recorded(scene or DISABLED, settings, report)
    if not recording.moments:
        return folder.finish(_view("journey", settings, True, scene=_json(scene), steps=[], explained=[], colours=[]))
    colours, path = journeys.colours(recording), journeys.Path.of(recording)
    size = settings.size or model.size
    found: list[dict[str, Any]] = []
    seen: list[Image.Image] = []

    def decode() -> None:
        with stage("decoding", len(recording.moments), "steps") as report:
            for i, step in enumerate(journeys.steps(model, recording, path, colours, size)):
                pictures = {name: folder.picture(f"{name}-{i:03}", getattr(step, name)) for name in PICTURED}
                found.append({"sigma": step.sigma, **pictures, "path": {"x0": step.path_x0, "x_t": step.path_x_t}})
                seen.append(step.x0)
                report(1)

    stopped = _until_stopped(decode) or recording.interrupted
    made = []
    if len(seen) > 1:
        made = animation.write(seen, folder.path, "journey", ["webp"], ANIMATION_FPS, metadata=_said(settings, scene))
    view = _view(
        "journey",
        settings,
        stopped,
        scene=_json(scene),
        steps=found,
        explained=path.explained,
        colours=colours.explained,
        animation=[folder.wrote(file.name) for file in made],
    )
    return folder.finish(view)


PICTURED = ("x0", "x_t", "pca")


def between(
    model: Model,
    settings: Settings,
    to: str,
    folder: Folder,
    stage: Stage,
    *,
    stops: int = 17,
    even: bool = False,
    reach: float = 0.5,
    bridges: int = 5,
    names: Sequence[maps.Entry] = (),
    scene: Scene | None = None,
    base: str = "",
) -> dict[str, Any]:
    """From `settings.prompt` to another prompt, and what lies between.

    reach: how far beyond either end. names: what bridges are looked for in. scene: where the two first concepts are
    these prompts, which bridges are put into, over the prompt `base`; a passage from left to right when None.
    """
    first, shown = settings.prompt, scene or lines.graded(settings.prompt, to)
    line = lines.Line(model, settings, to, stage)
    before, after = lines.beyond(reach)
    crossings: list[dict[str, Any]] = []
    near: dict[float, list[Bridge]] = {}
    plain: list[str] = []

    def make() -> None:
        chosen = lines.even(line, stops) if even else lines.refined(line, stops)
        line.keep(chosen)
        line.images([*before, *after])
        line.keep([*before, *chosen, *after])

    def cross() -> None:
        named, ends = _named(model, names, (first, to), stage)
        near.update((t, ways.nearest(named, *ends, t, 3)) for t in line.kept)
        found = ways.bridges(named, *ends, bridges)
        over = replace(settings, prompt=base, batch_size=1)
        with stage("bridges", len(found) + bool(found), "pictures") as report:
            if found:
                plain.extend(folder.picture("passage", image) for image in model.rendered(shown, over, [0], report))
            for i, bridge in enumerate(found):
                crossed = ways.bridged(shown, 0, 1, bridge.prompt, _drawn_size(settings.size or model.size))
                (image,) = model.rendered(crossed, over, [0], report)
                scene_of_it = crossed.to_dict(defaults=False)
                crossings.append(
                    {**bridge._asdict(), "file": folder.picture(f"bridge-{i}", image), "scene": scene_of_it}
                )

    stopped = _until_stopped(make) or (bridges > 0 and _until_stopped(cross))
    kept = line.kept
    inside = [t for t in kept if 0 <= t <= 1]
    distances = line.distances(inside)
    found = [
        {
            "t": t,
            "file": folder.picture(f"stop-{i:03}", image),
            "near": [{"prompt": one.prompt, "distance": one.distance} for one in near.get(t, [])],
        }
        for i, (t, image) in enumerate(zip(kept, line.images(kept), strict=True))
    ]
    return folder.finish(
        _view(
            "between",
            settings,
            stopped,
            **{"from": first, "to": to},
            stops=found,
            even=even,
            distances=distances,
            evenness=round(smoothness.evenness(distances), 4),
            bridges=crossings,
            passage={"file": plain[0] if plain else None, "base": base, "scene": shown.to_dict(defaults=False)},
            keyframes=lines.keyframed(first, to).to_dict(defaults=False),
        )
    )


def prompt_map(
    model: Model, settings: Settings, prompts: Sequence[maps.Entry], folder: Folder, stage: Stage, *, columns: int = 8
) -> dict[str, Any]:
    """A map of prompts. columns: of places that a picture is made of; 0 for none."""
    with stage("encoding", len(prompts), "prompts") as report:
        encoded = maps.encode(model, prompts, report)
    chart = maps.lay_out(prompts, encoded, model.encode([""])[""])
    places = maps.lattice(chart.plane, columns)
    found: list[dict[str, Any]] = []

    def draw() -> None:
        with stage("sampling", len(places), "places") as report:
            for i, place in enumerate(maps.pictures(model, chart, places, settings, report)):
                file = folder.picture(f"place-{i:04}", place.image)
                made_of = {"points": place.blend.points, "weights": place.blend.weights}
                found.append({"x": place.x, "y": place.y, "file": file, **made_of})

    stopped = bool(places) and _until_stopped(draw)
    points = [
        {"prompt": entry.prompt, "x": float(x), "y": float(y), "group": entry.group, "heard": heard}
        for entry, heard, (x, y) in zip(chart.entries, chart.heard, chart.plane.points, strict=True)
    ]
    triangles = chart.plane.triangles.tolist()
    explained = chart.plane.explained
    return folder.finish(
        _view("map", settings, stopped, points=points, explained=explained, triangles=triangles, places=found)
    )


def place(
    model: Model, settings: Settings, prompts: Sequence[str], weights: Sequence[float], folder: Folder, stage: Stage
) -> dict[str, Any]:
    """One picture: of a blend of whole-picture prompts, such as a place on a map is."""
    encoded = maps.encode(model, [maps.Entry(prompt, "") for prompt in dict.fromkeys(prompts)], lambda more: None)
    with stage("sampling", 1, "places") as report:
        blended = blend([encoded[prompt] for prompt in prompts], weights)
        (image,) = model.blended([blended], [settings.seed], settings, report)
    file = folder.picture("place", image)
    return folder.finish(_view("place", settings, False, prompts=prompts, weights=weights, file=file))


def grid(
    model: Model, settings: Settings, wanted: grids.Grid, scene: Scene | None, folder: Folder, stage: Stage
) -> dict[str, Any]:
    """Every combination of some seeds, step counts, guidances and lengths of the prompt."""
    cells = wanted.cells
    place = {cell: i for i, cell in enumerate(cells)}
    images: dict[grids.Cell, Image.Image] = {}

    def draw() -> None:
        with stage("sampling", len(cells), "pictures") as report:
            for cell, image in grids.pictures(model, cells, scene or DISABLED, settings, report):
                images[cell] = image
                folder.picture(f"cell-{place[cell]:04}", image)

    stopped = _until_stopped(draw)
    sheet = folder.picture("sheet", grids.sheet(wanted, images)) if images else None
    return folder.finish(
        _view(
            "grid",
            settings,
            stopped,
            scene=_json(scene),
            axes={
                "seeds": wanted.seeds,
                "steps": wanted.step_counts,
                "guidance": wanted.guidances,
                "words": wanted.words,
            },
            cells=[{**cell._asdict(), "file": folder.known(f"cell-{i:04}")} for i, cell in enumerate(cells)],
            sheet=sheet,
        )
    )


def _named(
    model: Model, names: Sequence[maps.Entry], ends: tuple[str, str], stage: Stage
) -> tuple[Named, tuple[Any, Any]]:
    with stage("encoding", len(names), "prompts") as report:
        encoded = maps.encode(model, names, report)
    others = model.encode([*ends, ""])
    return Named(encoded, others[""]), (others[ends[0]], others[ends[1]])


def _until_stopped(work: Callable[[], None]) -> bool:
    """Whether it was stopped."""
    try:
        work()
    except (KeyboardInterrupt, Stop):
        return True
    return False


def _drawn_size(size: tuple[int, int]) -> tuple[int, int]:
    shorter = min(size)
    return round(size[0] * DRAWN_AT / shorter), round(size[1] * DRAWN_AT / shorter)


def _view(name: str, settings: Settings, interrupted: bool, **parts: Any) -> dict[str, Any]:
    said = {key: value for key, value in asdict(settings).items() if key in SAID}
    return {"view": name, "version": __version__, "settings": said, "interrupted": interrupted, **parts}


SAID = ("prompt", "negative_prompt", "model", "seed", "steps", "size", "guidance_scale", "sampler", "scheduler")


def _said(settings: Settings, scene: Scene | None) -> Mapping[str, Any]:
    return {"scene": (scene or DISABLED).to_dict(), "settings": asdict(settings)}


def _json(scene: Scene | None) -> dict[str, Any] | None:
    return None if scene is None else scene.to_dict(defaults=False)


@contextmanager
def silent(what: str, total: int, unit: str) -> Iterator[Report]:
    """A `Stage` that tells nobody."""
    yield lambda more: None
