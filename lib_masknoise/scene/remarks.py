"""What a scene asks for that will not do what one expects of it: said wherever a scene is looked at, never refused.

A remark is a `Problem` by form, path and message. Its rules read a scene alone; what masks hold and leave free they are
told by the weight maps of whoever has drawn them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lib_masknoise.controls import control
from lib_masknoise.scene import colours, pictures
from lib_masknoise.scene.errors import Problem

if TYPE_CHECKING:
    from lib_masknoise.scene.model import Concept, Motion, Scene

NOISES = ("visual", "concept", "feature")

HELD = 0.99
"""A place with a pin from here on counts as held: with the usual exponent 2 no more than 0.0001 of a noise is left."""
SEEN = 0.004
"""A mask that is nowhere larger counts as empty: less than a level of an 8-bit picture."""

TURN = 2 * math.pi


def remarks(scene: Scene, weights: Any = None) -> tuple[Problem, ...]:
    """What is worth saying about a scene, in the order of its fields. None for a scene that is switched off.

    weights: the weight maps ``[B, N, h, w]`` of its N acting concepts at some frames, at a latent's size (a tensor or
    an array); without them nothing is said about empty masks and about noise without a free place.
    """
    if not scene.enabled:
        return ()
    return (
        *_of_concepts(scene, weights),
        *_of_blend(scene),
        *_of_noise(scene, weights),
        *_of_initial_noise(scene, weights),
        *_of_animation(scene, weights),
    )


def _acting(scene: Scene) -> list[tuple[int, Concept]]:
    return [(i, concept) for i, concept in enumerate(scene.concepts) if concept.enabled]


# --- Concepts


def _of_concepts(scene: Scene, weights: Any) -> Iterator[Problem]:
    yield from _of_colours(scene)
    for row, (i, concept) in enumerate(_acting(scene)):
        path = f"concepts[{i}]"
        yield from _of_prompts(path, concept)
        if all(_at(concept, key).weight == 0 for key in _keys(concept)):
            covers = ", though its mask covers the concepts below it" if scene.blend.overlap == "top" else ""
            yield Problem(f"{path}.weight", f"0: the concept adds nothing{covers}")
        if concept.start >= concept.end:
            yield Problem(f"{path}.end", f"as early as the start ({concept.start:g}): the concept acts in no step")
        if weights is not None and not _by_itself(concept) and float(weights[:, row].max()) < SEEN:
            yield Problem(f"{path}.mask", _empty(scene, row, weights))
        yield from _of_pictures(f"{path}.mask", concept.mask, scene)
        late = [key.frame for key in concept.keyframes if key.frame >= scene.animation.frames]
        if late:
            yield Problem(
                f"{path}.keyframes",
                f"there are {_count(scene.animation.frames, 'frame')}: the keyframe at {late[0]} is never reached",
            )


def _of_prompts(path: str, concept: Concept) -> Iterator[Problem]:
    what = "no prompt yet: where its mask is, an empty prompt stands in for the image's own"
    places = [(f"{path}.keyframes[{j}].prompt", _at(concept, key)) for j, key in enumerate(concept.keyframes)]
    for place, one in places or [(f"{path}.prompt", concept)]:
        if not one.prompt.strip():
            yield Problem(place if concept.prompt.strip() else f"{path}.prompt", what)
            return


def _empty(scene: Scene, row: int, weights: Any) -> str:
    covered = scene.blend.overlap == "top" and row + 1 < weights.shape[1]
    reason = ", or covered by the concepts above it" if covered else ""
    return f"empty{reason}, at the size of the latent: the concept is nowhere in the picture"


def _of_pictures(path: str, mask: Any, scene: Scene) -> Iterator[Problem]:
    if mask.kind != "image":
        return
    frames, pages = scene.animation.frames, pictures.frame_count(mask.data)
    if mask.count == 1 < pages:
        yield Problem(f"{path}.data", f"a file of {pages} pictures that is no animation: the first is the mask")
    elif mask.moves and frames == 1:
        chosen = "the first" if mask.picture == 0 else f"number {mask.picture:g}"
        yield Problem(f"{path}.data", f"a picture of {mask.count} frames: {chosen} is the mask of a still")
    elif mask.sequence == "frames" and mask.count - math.floor(mask.picture) > frames:
        shows = f"there are {frames} frames: the sequence's {mask.count} pictures do not all come"
        yield Problem(f"{path}.sequence", f"{shows}; stretch spreads them over the animation")


def _of_colours(scene: Scene) -> Iterator[Problem]:
    """The colours of a colour-coded picture, that is no sequence, that no concept is for."""
    users: dict[tuple[str, float], list[tuple[int, str]]] = {}
    for i, concept in _acting(scene):
        if concept.mask.kind == "image" and concept.mask.colour and concept.mask.count == 1:
            users.setdefault((concept.mask.data, concept.mask.tolerance), []).append((i, concept.mask.colour))
    for (data, tolerance), named in users.items():
        found = pictures.colour_map(data, tolerance)
        used = {found.find(colour, tolerance) for _, colour in named}
        left = [k for k, name in enumerate(found.names) if k not in used and name not in colours.BACKGROUNDS]
        if left:
            yield Problem(f"concepts[{named[0][0]}].mask.colour", f"{found.listed(left)} of the picture: no concept's")


def _keys(concept: Concept) -> Sequence[Any]:
    return concept.keyframes or (None,)


def _at(concept: Concept, key: Any) -> Concept:
    return concept if key is None else concept.at_key(key)


# --- Blend


def _of_blend(scene: Scene) -> Iterator[Problem]:
    blend = scene.blend
    if not _acting(scene):
        return
    if blend.scale == 0:
        yield Problem("blend.scale", "0: no concept adds anything")
    if blend.start >= blend.end:
        yield Problem("blend.end", f"as early as blend.start ({blend.start:g}): the concepts act in no step")


# --- Noise


def _strong(scene: Scene) -> list[str]:
    return [name for name in NOISES if getattr(scene.noise, name).strength > 0]


def _freest(weights: Any) -> float:
    """The smallest pin of any place and frame; 0 where there is no concept."""
    return 0.0 if weights is None or not weights.shape[1] else float(_largest(weights).min())


def _largest(weights: Any) -> Any:
    return weights.amax(1) if hasattr(weights, "amax") else weights.max(1)


def _of_noise(scene: Scene, weights: Any) -> Iterator[Problem]:
    if scene.noise.visual.seeds and not scene.noise.visual.strength:
        yield Problem("noise.visual.seeds", "the visual noise has no strength: 1 goes all the way to the seeds")
    held = _freest(weights) >= HELD
    for name in _strong(scene):
        if held:
            yield Problem(
                f"noise.{name}.strength",
                "the masks hold every place of the picture: no noise reaches any; leave some of it uncovered or softer",
            )
        elif not _travels(scene, name) and _silent(_motion(scene, name), scene.animation.frames):
            yield Problem(
                f"noise.{name}.strength",
                f"its motion, {_motion(scene, name).kind}, is at 0 in every frame: there is no noise",
            )


def _of_initial_noise(scene: Scene, weights: Any) -> Iterator[Problem]:
    initial = scene.noise.initial
    changes = initial.erase > 1 or initial.inject.strength > 0
    if initial.choose > 1 and not _acting(scene):
        yield Problem("noise.initial.choose", "there is no concept to choose by: the noise stays the image's own")
    if initial.inject.strength and not initial.inject.restandardise:
        wrong = "off: the noise is no longer of variance 1, which most models answer with spots instead of a picture"
        yield Problem("noise.initial.inject.restandardise", wrong)
    if changes and initial.where == "pinned" and not _acting(scene):
        yield Problem(
            "noise.initial.where", "pinned, and there is no concept to hold anything: the noise stays as it is"
        )
    if changes and initial.where == "free" and _freest(weights) >= HELD:
        yield Problem("noise.initial.where", "free, and the masks hold every place: the noise stays as it is")


def _motion(scene: Scene, name: str) -> Motion:
    return getattr(scene.noise, name).motion or scene.motion


def _travels(scene: Scene, name: str) -> bool:
    return name == "visual" and bool(scene.noise.visual.stops)


def _silent(motion: Motion, frames: int) -> bool:
    """Whether a motion multiplies its noise by 0 at every frame."""
    if motion.kind == "keyframes":
        return not any(key.value for key in motion.keyframes)
    return motion.kind == "sine" and all(
        abs(math.sin(TURN * motion.cycles * frame / frames + motion.phase)) < 1e-6 for frame in range(min(frames, 200))
    )


def _still(motion: Motion, frames: int) -> bool:
    """Whether a motion is the same at every frame."""
    if motion.kind == "keyframes":
        return len({key.value for key in motion.keyframes}) == 1
    whole_turns = motion.kind in ("circle", "sine") and motion.cycles % frames == 0
    return motion.kind == "none" or whole_turns or _silent(motion, frames)


# --- Animation


def _of_animation(scene: Scene, weights: Any) -> Iterator[Problem]:
    animation = scene.animation
    if animation.frames == 1:
        usual = control("animation.formats").default
        if animation.formats != usual:
            listed = ", ".join(animation.formats)
            yield Problem("animation.formats", f"{listed}: of a single frame no animation is written")
        return
    if not _changes(scene, weights):
        yield Problem("animation.frames", f"{animation.frames} equal images: {_why_equal(scene, weights)}")


def _changes(scene: Scene, weights: Any) -> bool:
    if any(_moves(concept) for _, concept in _acting(scene)):
        return True
    moving = [name for name in _strong(scene) if not _still(_motion(scene, name), scene.animation.frames)]
    return bool(moving) and _freest(weights) < HELD


def _moves(concept: Concept) -> bool:
    """Whether its keyframes differ from each other, or a mask is a sequence."""
    stills = [_at(concept, key) for key in _keys(concept)]
    return any(one != stills[0] for one in stills) or _by_itself(concept)


def _by_itself(concept: Concept) -> bool:
    """Whether a mask of it is a sequence: at a few frames alone, nobody has seen it."""
    return any(_at(concept, key).mask.moves for key in _keys(concept))


def _why_equal(scene: Scene, weights: Any) -> str:
    strong = _strong(scene)
    if not strong:
        return "no noise has a strength, and no concept has keyframes that differ or a sequence of masks"
    if _freest(weights) >= HELD:
        return "the masks hold every place of the picture"
    if scene.motion.kind == "none":
        return "the motion is none; circle is one that goes round"
    return f"the motion, {scene.motion.kind}, is the same in every frame"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
