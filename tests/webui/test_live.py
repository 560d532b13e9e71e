"""Live painting: what the route streams, that the picture at rest is the job's, and that nothing is left."""

from __future__ import annotations

import base64
import io
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui import hosts
from tests.webui.scenes import halves
from tests.webui.watcher import Watcher, needs_watcher

ROUTE = "/masknoise/v1/live"
# One less where there is a sketch to go on from, and one less where the last has hardly any noise.
GLANCE_STEPS, SKETCH_STEPS = 3, 4


def scene(edge: float = 0.5) -> dict[str, Any]:
    made = halves("green grass", "blue sea", 0.1)
    made["concepts"][0]["mask"]["to"] = edge
    return made


def wish(what: dict[str, Any], session: str, **others: Any) -> dict[str, Any]:
    size = {"width": hosts.SIZE, "height": hosts.SIZE, "steps": hosts.STEPS}
    settings = {
        "prompt": "red bricks",
        "negative_prompt": "",
        "seed": 1,
        "guidance_scale": 5.0,
        "sampler": hosts.SAMPLER,
    }
    return {"session": session, "scene": what, **size, **settings, **others}


def lines(webui, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What comes of a wish, as it comes."""
    return webui.stream(ROUTE, body)


def pixels(line: dict[str, Any]) -> np.ndarray:
    raw = base64.b64decode(line["image"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(np.int16)


def job(webui, body: dict[str, Any]):
    """The same wish as a job of the host's API."""
    same = {name: body[name] for name in ("prompt", "negative_prompt", "seed", "steps", "width", "height")}
    return webui.txt2img(body["scene"], cfg_scale=body["guidance_scale"], sampler_name=body["sampler"], **same)


@pytest.fixture
def session() -> str:
    """A page of its own: what the host has made for another is none of this one's."""
    return uuid.uuid4().hex


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"guidance_scale": 1.0, "steps": 3},
        {"sampler": "Euler a"},
        {"sampler": "DDIM", "negative_prompt": "snow"},
        {"scene": {"enabled": False}},
        {"scene": {**scene(), "noise": {"visual": {"strength": 1.0}, "concept": {"strength": 0.5}}}},
        {"scene": {**scene(), "animation": {"frames": 4}, "motion": {"kind": "circle"}}},
    ],
    ids=["plain", "few steps", "ancestral", "DDIM", "disabled", "noise", "an animation's first frame"],
)
def test_a_sketch_and_then_the_picture_of_the_same_job(webui, unharmed, change, session):
    body = wish(scene(), session, **change)
    heard = list(lines(webui, body))
    assert [line["kind"] for line in heard] == ["sketch", "full"]
    # The last one would begin with hardly any noise; of DDIM the host itself makes one less than it is asked for.
    assert heard[0]["steps"] == min(SKETCH_STEPS, body["steps"]) - 1
    wanted = job(webui, body)
    assert np.array_equal(pixels(heard[1]), wanted.pixels[0]), "the picture at rest is another than the job's"


def test_an_edit_is_sketched_from_the_last_picture(webui, unharmed, session):
    """A glance first, and a better sketch where the hand pauses."""
    list(lines(webui, wish(scene(0.5), session, steps=8)))
    heard = list(lines(webui, wish(scene(0.53), session, steps=8)))
    assert [line["kind"] for line in heard] == ["sketch", "sketch", "full"]
    assert [line["steps"] for line in heard[:2]] == [GLANCE_STEPS - 2, SKETCH_STEPS - 2]
    again = list(lines(webui, wish(scene(0.5301), session, steps=8)))
    assert [line["kind"] for line in again] == ["same"], "an edit that shows nowhere is sampled"


def test_a_breath_has_many_frames_and_ends_when_it_is_told_to(webui, unharmed, session):
    breathing = {**scene(), "noise": {"visual": {"strength": 1.0}}, "motion": {"kind": "circle"}}
    heard = lines(webui, wish(breathing, session, breathe=True))
    frames = [next(heard) for _ in range(4)]
    assert [line["kind"] for line in frames] == ["frame"] * 4
    assert [line["frame"] for line in frames] == [1, 2, 3, 4]
    assert np.abs(pixels(frames[0]) - pixels(frames[3])).mean() > 0.1
    webui.request("POST", f"{ROUTE}/stop", {"session": session})
    assert len(list(heard)) <= 4


@pytest.mark.parametrize(
    "change, path",
    [
        ({"scene": {"concepts": [{"prompt": 1}]}}, "concepts[0].prompt"),
        ({"sampler": "no such sampler"}, "sampler"),
        ({"scheduler": "no such scheduler"}, "scheduler"),
        ({"width": 65}, "width"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(webui, change, path, session):
    answer = webui.request("POST", ROUTE, wish(scene(), session, **change))
    assert answer.status == 422 and [one["path"] for one in answer.json] == [path], str(answer)


def test_another_type_of_content_is_refused(webui):
    """Which pages of other sites may send without being asked first."""
    request = urllib.request.Request(webui.url + ROUTE, b"{}", {"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=60)
    assert raised.value.code in (401, 415)


def test_a_job_comes_first_and_live_goes_on_after_it(webui, unharmed, session):
    """The job is the one that it would be alone, and the picture at rest comes all the same."""
    alone = webui.txt2img(steps=2 * hosts.STEPS)
    body = wish(scene(), session, steps=100)
    heard: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: heard.extend(lines(webui, body)))
    thread.start()
    while webui.progress["state"]["sampling_step"] < 6 and thread.is_alive():
        time.sleep(0.02)  # into the picture itself
    assert webui.txt2img(steps=2 * hosts.STEPS).hashes == alone.hashes
    thread.join(600)
    assert [line["kind"] for line in heard] == ["sketch", "paused", "full"]
    assert np.array_equal(pixels(heard[-1]), job(webui, body).pixels[0])


def test_interrupt_ends_it_and_is_said_once(webui, unharmed, session):
    heard: list[dict[str, Any]] = []
    body = wish(scene(0.3), session, steps=100)
    thread = threading.Thread(target=lambda: heard.extend(lines(webui, body)))
    thread.start()
    while webui.progress["state"]["sampling_step"] < 6 and thread.is_alive():
        time.sleep(0.02)
    webui.post("/sdapi/v1/interrupt")
    thread.join(600)
    assert [line["kind"] for line in heard] == ["sketch", "error"] and heard[1]["words"] == "Interrupted."


def test_the_newest_wish_of_a_page_ends_the_one_before(webui, unharmed, session):
    old = lines(webui, wish(scene(0.2), session, steps=150))
    assert next(old)["kind"] == "sketch"
    start = time.monotonic()
    new = list(lines(webui, wish(scene(0.7), session)))
    assert [line["kind"] for line in new] == ["sketch", "full"]
    assert list(old) == [], f"{time.monotonic() - start:.1f} s later the old one still speaks"


@needs_watcher
def test_edits_leave_nothing_installed_and_idle_costs_nothing(webui, watcher: Watcher, unharmed, session):
    before = watcher.hooks()
    for i in range(12):
        heard = lines(webui, wish(scene(0.2 + 0.05 * i), session))
        assert next(heard)["kind"] == "sketch"  # and the picture itself is not waited for
    list(lines(webui, wish(scene(0.5), session)))
    assert watcher.hooks() == before
    cost = watcher.cost()["calls"]
    time.sleep(1)
    assert watcher.cost()["calls"] == cost


@pytest.mark.slow
@needs_watcher
def test_many_edits_in_a_row(webui, watcher: Watcher, unharmed, session):
    """MASKNOISE_WEBUI_EDITS of them. A host's process grows by its own jobs too, A1111's by some 40 kB each: the memory
    is held against that of as many."""
    count = int(os.environ.get("MASKNOISE_WEBUI_EDITS", "1000"))
    jobs = 100

    def edits(first: int, number: int) -> None:
        for i in range(first, first + number):
            heard = next(lines(webui, wish(scene(0.1 + 0.8 * (i % 97) / 97), session)))
            assert heard["kind"] == "sketch"

    def grown_by(work: Callable[[], None]) -> int:
        before = watcher.cost()["memory"]
        work()
        return watcher.cost()["memory"] - before

    edits(0, 100)
    own = grown_by(lambda: [webui.txt2img(steps=SKETCH_STEPS) for _ in range(jobs)]) / jobs
    hooks = watcher.hooks()
    grown = grown_by(lambda: edits(100, count))
    list(lines(webui, wish(scene(), session)))
    print(f"{count} edits: {grown / 1e6:+.1f} MB; a plain job: {own / 1e3:+.1f} kB")
    assert watcher.hooks() == hooks
    assert grown < 5e6 + max(0.0, own) * count
