"""What must be true of every host and every model (invariants 1 to 9 of the design, as far as they can be seen from
outside; 4, the exactness of the attention, is a unit test, and test_matrix.py proves it in every configuration)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.webui import hosts
from tests.webui.client import difference
from tests.webui.compare import assert_near, check
from tests.webui.scenes import BUSY, animated, concept, everywhere, halves, painted, split

NOISE = {"visual": {"strength": 0.6}, "concept": {"strength": 0.5}, "feature": {"strength": 0.5, "dimensions": "0-7"}}

ANCESTRAL = ["Euler", "Euler a", "DPM++ SDE", "DPM++ 2S a"]
"""Samplers without and with noise of their own, which frames must share."""


def _jobs(**job):
    return {"batch_size": 2, **job}


# --- 1 and 2: without anything to do, the host's own picture


@pytest.mark.parametrize("scene", [{"enabled": False}, {**BUSY, "enabled": False}], ids=["empty", "full"])
def test_switched_off_is_bit_identical(webui, plain, scene):
    images = webui.txt2img(scene, batch_size=2)
    assert images.hashes == plain.before[0]
    assert not [key for key in images.parameters if key.startswith("MaskNoise")]


@pytest.mark.parametrize("args", [[], [""], [None], ["", False]], ids=str)
def test_no_scene_is_bit_identical(webui, plain, args):
    answer = webui.ask(args=args, batch_size=2)
    assert answer.status == 200, str(answer)
    assert webui.txt2img(batch_size=2).hashes == plain.before[0]


NEUTRAL = {
    "empty": {},
    "JSON text": "{}",
    "no strength": {"noise": {"visual": {"strength": 0}, "concept": {"strength": 0}, "feature": {"strength": 0}}},
    "motion only": {"motion": {"kind": "walk"}},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_is_the_plain_picture(webui, plain, name):
    assert difference(webui.txt2img(NEUTRAL[name], batch_size=2), plain.first) == 0


@pytest.mark.parametrize(
    "concepts",
    [
        [concept("an ocean", weight=0)],
        [concept("an ocean", mask={"kind": "strokes"})],
        [concept("an ocean", mask=split(0.5, 0.5))],
        [concept("red bricks")],
        [concept("red bricks", mask=painted())],
        [concept("red bricks", mask=split(0, 0.5, 0.3)), concept("red bricks", mask=split(0.5, 1, 0.3))],
    ],
    ids=["weight 0", "nothing painted", "no width", "the base itself", "the base, masked", "the base, in halves"],
)
def test_concepts_that_change_nothing(webui, plain, concepts):
    """Up to rounding: the blended path computes what the host would."""
    assert_near(webui.txt2img({"concepts": concepts}, batch_size=2), plain.first, "nothing to change", hosts.SAMPLER)


def test_outside_its_steps_a_scene_changes_nothing(webui, plain):
    images = webui.txt2img({**halves("an ocean", "a forest AND snow:0.3"), "blend": {"end": 0.0}}, batch_size=2)
    assert_near(images, plain.first, "no steps", hosts.SAMPLER)


# --- 3: a full mask is the plain picture of the concept's prompt


def test_a_full_mask_is_plain_generation(webui):
    check(webui, batch_size=2, n_iter=2)


def test_equal_concepts_share_a_place_exactly(webui):
    """Soft masks that add up to 1 everywhere."""
    alone = webui.txt2img(prompt="an ocean AND a forest:0.5", batch_size=2)
    text = "an ocean AND a forest:0.5"
    thirds = [concept(text, mask=split(0, 0.3, 0.2)), concept(text, mask=split(0.3, 0.7, 0.2))]
    scene = {"concepts": [*thirds, concept(text, mask=split(0.7, 1, 0.2))]}
    assert_near(webui.txt2img(scene, batch_size=2), alone, "thirds of one prompt", hosts.SAMPLER)


def test_the_order_of_concepts_does_not_matter(webui):
    scene = halves("an ocean", "a forest :0.6 AND lava :0.3", feather=0.5)
    turned = {"concepts": scene["concepts"][::-1]}
    assert_near(webui.txt2img(scene), webui.txt2img(turned), "the order of concepts", hosts.SAMPLER)


def test_steps_are_those_of_prompt_editing(webui):
    """A concept that stops after the step at which the host's own editing changes the prompt."""
    edited = webui.txt2img(prompt="[an ocean:red bricks:2]", steps=6)
    scene = {**everywhere("an ocean"), "blend": {"end": 0.5}}
    assert_near(webui.txt2img(scene, steps=6), edited, "steps of a scene", hosts.SAMPLER)


def test_two_concepts_are_two_places(webui):
    """Each half resembles what its prompt alone gives there more than what the other prompt gives."""
    left, right = webui.txt2img(prompt="an ocean"), webui.txt2img(prompt="lava")
    both = webui.txt2img(halves("an ocean", "lava"))
    far = hosts.SIZE // 4  # from the seam
    for part, own, other in ((np.s_[:, :far], left, right), (np.s_[:, -far:], right, left)):
        distance = [np.abs(both.pixels[0][part] - alone.pixels[0][part]).mean() for alone in (own, other)]
        assert distance[0] < distance[1]


# --- 5, 6 and 7: frames


@pytest.mark.parametrize("sampling", ANCESTRAL)
def test_what_is_pinned_holds_still(webui, sampling):
    """Without concepts that pin nothing moves but the noise: frames differ where it is free, and least where it is
    not. (The U-Net looks further than a mask's edge, so pixels beside it may move a little.)"""
    if sampling not in hosts.samplers():
        pytest.skip("this host has no such sampler")
    images = webui.txt2img(animated(4), sampler_name=sampling, batch_size=2)
    frames = np.stack(images.pixels)
    moved = np.abs(frames - frames[0]).mean(axis=(0, 1, 3))  # by column
    pinned, free = moved[: hosts.SIZE // 5].mean(), moved[-hosts.SIZE // 3 :].mean()
    assert free > 3 * pinned, f"free places move by {free:.2f}, pinned ones by {pinned:.2f}"


def test_everything_pinned_is_the_same_in_every_frame(webui):
    scene = {**everywhere("an ocean"), "noise": NOISE, "motion": {"kind": "circle"}}
    images = webui.txt2img({**scene, "animation": {"frames": 3}}, batch_size=3)
    alone = webui.txt2img(prompt="an ocean")
    assert len(images.pixels) == 3
    for frame in images.pixels:
        assert np.abs(frame - alone.pixels[0]).max() <= hosts.tolerance()


@pytest.mark.parametrize("kind", ["sine", "circle", "simplex", "walk"])
def test_a_loop_closes(webui, kind):
    """The step from the last frame to the first is no larger than the largest step inside."""
    frames = np.stack(webui.txt2img(animated(6, kind=kind), batch_size=3).pixels)
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert steps[-1] <= 1.05 * max(steps[:-1])
    assert max(steps) > 0


@pytest.mark.parametrize("sampling", ANCESTRAL)
def test_a_frame_is_the_same_at_any_batch_size(webui, sampling):
    if sampling not in hosts.samplers():
        pytest.skip("this host has no such sampler")
    one_by_one, by_two, at_once = (
        webui.txt2img(animated(5), sampler_name=sampling, batch_size=size) for size in (1, 2, 8)
    )
    assert len(one_by_one.pixels) == len(by_two.pixels) == len(at_once.pixels) == 5
    assert_near(one_by_one, by_two, "frames by two", sampling)
    assert_near(one_by_one, at_once, "frames at once", sampling)


def test_a_frame_is_the_same_in_the_hires_pass_at_any_batch_size(webui):
    job = hosts.hires(sampler_name="Euler a")
    alone, first = (webui.txt2img(batch_size=size, **job).pixels[0] for size in (1, 3))
    if np.abs(alone - first).max() > hosts.tolerance():
        pytest.skip("in this host's hires pass a plain picture depends on its batch already")
    one, other = (webui.txt2img(animated(3), batch_size=size, **job) for size in (1, 3))
    assert_near(one, other, "frames of the hires pass", "Euler a")


def test_the_first_frame_of_a_still_motion_is_the_still(webui):
    moving = webui.txt2img({**animated(3), "motion": {"kind": "none"}}, batch_size=3)
    still = webui.txt2img({**animated(1), "motion": {"kind": "none"}, "animation": {"frames": 1}})
    for frame in moving.pixels:
        assert np.abs(frame - still.pixels[0]).max() <= hosts.tolerance()


def test_a_seed_of_its_own(webui):
    """The same noise for every image's seed; other noise for another one."""
    scene = {"noise": {**NOISE, "seed": 5}}
    first, again = webui.txt2img(scene), webui.txt2img(scene)
    assert first.hashes == again.hashes
    assert first.hashes != webui.txt2img({"noise": {**NOISE, "seed": 6}}).hashes
    by_image = webui.txt2img({"noise": {**NOISE, "seed": -1}})
    assert by_image.hashes == webui.txt2img({"noise": {**NOISE, "seed": 7}}).hashes  # the image's seed


def test_images_of_a_batch_are_those_of_their_seeds(webui):
    """No animation: every image is a picture of its own."""
    batch = webui.txt2img(BUSY, batch_size=2, n_iter=2, seed=7)
    for index, pixels in enumerate(batch.pixels):
        alone = webui.txt2img(BUSY, seed=7 + index)
        assert np.abs(pixels - alone.pixels[0]).max() <= hosts.tolerance(), f"image {index}"


# --- 9: the infotext


INFOTEXTS = {
    "masks": BUSY,
    "a painted mask": {"concepts": [concept("an ocean: waves, (foam:1.2)", "lava,\nash", mask=painted())]},
    "strokes": {
        "concepts": [
            concept(
                '"quoted", 2x1',
                mask={"kind": "strokes", "strokes": [{"points": [[0.1, 0.2], [0.8, 0.9, 0.4]], "radius": 0.2}]},
            )
        ]
    },
    "noise": {"noise": {**NOISE, "seed": 12}},
    "an animation": {**animated(3, "webp"), "noise": NOISE},
}


def _needs_infotext():
    if not hosts.host().infotext:
        pytest.skip(f"the API of {hosts.host().name} cannot read an infotext, with or without MaskNoise")


@pytest.mark.parametrize("name", INFOTEXTS)
def test_the_infotext_makes_the_same_image_again(webui, name):
    _needs_infotext()
    scene = INFOTEXTS[name]
    made = webui.txt2img(scene, sampler_name="Euler a", seed=11)
    answer = webui.request("POST", "/sdapi/v1/txt2img", {"infotext": made.infotexts[0]})
    assert answer.status == 200, str(answer)
    again = type(made)(answer.json)
    assert again.hashes == made.hashes
    ours = [{k: v for k, v in one.parameters.items() if k.startswith("MaskNoise")} for one in (made, again)]
    for parameters in ours:
        parameters.pop("MaskNoise files", None)
    assert ours[0] == ours[1]


def test_the_infotext_of_a_plain_image_switches_nothing_on(webui):
    _needs_infotext()
    alone = webui.txt2img()
    answer = webui.request("POST", "/sdapi/v1/txt2img", {"infotext": alone.infotexts[0]})
    assert type(alone)(answer.json).hashes == alone.hashes


def test_every_frame_says_which_it_is(webui):
    images = webui.txt2img(animated(3), batch_size=2)
    for index, text in enumerate(images.infotexts[:3]):
        assert f"MaskNoise frame: {index}" in text


# --- A concept in a part of the steps


@pytest.mark.parametrize("start, end", [(0.5, 1.0), (0.0, 0.5), (0.25, 0.75)])
def test_a_concept_in_a_part_of_the_steps_is_prompt_editing(webui, start, end):
    """Which the host counts one step later."""
    steps = 8
    edited = f"[red bricks:lava:{round(start * steps) - 1}]" if start else "lava"
    edited = f"[{edited}:red bricks:{round(end * steps) - 1}]" if end < 1 else edited
    scene = {"concepts": [concept("lava", start=start, end=end)]}
    ours = webui.txt2img(scene, prompt="red bricks", steps=steps)
    assert_near(ours, webui.txt2img(prompt=edited, steps=steps), edited, hosts.SAMPLER)
    assert difference(ours, webui.txt2img(prompt="red bricks", steps=steps)) > 8
