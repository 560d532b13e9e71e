"""Interrupt and skip, at several moments: the host answers, what is finished comes back, and nothing is left."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.webui import hosts
from tests.webui.client import Images
from tests.webui.scenes import BUSY, animated

FRAMES = 6
STEPS = 4 * hosts.STEPS


def _during(webui, when, command, scene, **job) -> Images:
    """A job, and a command as soon as its progress says so."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(webui.ask, scene, steps=STEPS, **job)
        while not asked.done() and not when(webui.progress["state"]):
            time.sleep(0.01)
        webui.post(f"/sdapi/v1/{command}")
        answer = asked.result()
    assert answer.status == 200, str(answer)
    return Images(answer.json)


MOMENTS = {
    "at once": lambda state: True,
    "before the first step": lambda state: state["job_count"] > 0,
    "in the first frame": lambda state: state["job_no"] == 0 and state["sampling_step"] > STEPS // 3,
    "in the third frame": lambda state: state["job_no"] == 2 and state["sampling_step"] > 2,
    "in the last frame": lambda state: state["job_no"] == FRAMES - 1 and state["sampling_step"] > 2,
}


@pytest.fixture(scope="module")
def whole(webui):
    """The animation, not interrupted."""
    return webui.txt2img(animated(FRAMES), steps=STEPS)


def _assert_finished_frames(images: Images, whole: Images, skipped: bool) -> int:
    """All finished frames are those of the whole animation, in their order; the animation holds them alone.

    Returns how many there are."""
    places = [whole.hashes.index(one) for one in images.hashes if one in whole.hashes]
    assert places == sorted(set(places))
    if not skipped:
        assert places == list(range(len(places)))
        assert len(images.pixels) <= len(places) + 1, "more than one frame is half done"
    if len(places) > 1:
        (name,) = images.file_names
        assert Image.open(io.BytesIO(images.raw[-1])).n_frames == len(places), name
    else:
        assert not images.file_names
    return len(places)


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupt(webui, unharmed, whole, moment):
    images = _during(webui, MOMENTS[moment], "interrupt", animated(FRAMES))
    finished = _assert_finished_frames(images, whole, skipped=False)
    if moment in ("before the first step", "in the first frame"):
        assert finished == 0
    if moment == "in the third frame":
        assert finished == 2


@pytest.mark.parametrize("moment", ["in the first frame", "in the third frame", "in the last frame"])
def test_skip(webui, unharmed, whole, moment):
    images = _during(webui, MOMENTS[moment], "skip", animated(FRAMES))
    assert _assert_finished_frames(images, whole, skipped=True) == FRAMES - 1


@pytest.mark.parametrize("batch_size", [2, 4])
def test_interrupted_batches(webui, unharmed, batch_size):
    whole = webui.txt2img(animated(FRAMES), steps=STEPS, batch_size=batch_size)
    images = _during(
        webui,
        lambda state: state["job_no"] == 1 and state["sampling_step"] > 2,
        "interrupt",
        animated(FRAMES),
        batch_size=batch_size,
    )
    places = [whole.hashes.index(one) for one in images.hashes if one in whole.hashes]
    assert places == list(range(batch_size))
    assert Image.open(io.BytesIO(images.raw[-1])).n_frames == batch_size


def test_interrupt_in_the_hires_pass(webui, unharmed):
    job = hosts.hires()
    late = {"sampling_steps": 0}

    def second_pass(state):
        late["sampling_steps"] = max(late["sampling_steps"], state["sampling_step"])
        return state["sampling_step"] < late["sampling_steps"]  # it begins anew

    _during(webui, second_pass, "interrupt", BUSY, **job)


def test_interrupt_a_still(webui, unharmed):
    images = _during(webui, lambda state: state["sampling_step"] > 3, "interrupt", BUSY)
    assert len(images.raw) == 1


def test_progress_counts_frames(webui):
    seen = []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(webui.txt2img, animated(4), steps=STEPS)
        while not asked.done():
            progress = webui.progress
            seen.append((progress["state"]["job_count"], progress.get("textinfo") or ""))
            time.sleep(0.02)
        asked.result()
    assert 4 in [count for count, _ in seen]
    assert any("frames" in text for _, text in seen)


@pytest.mark.parametrize("round", range(8))
def test_interrupt_at_any_time(webui, plain, round):
    """Without a look at where it is."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(webui.ask, animated(FRAMES), batch_size=2)
        threading.Event().wait(0.03 + 0.11 * round)
        webui.post("/sdapi/v1/interrupt")
        assert asked.result().status == 200
    plain.assert_as_before()
