"""Many jobs: at the same time, and one after the other."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.webui import hosts
from tests.webui.client import MISSING
from tests.webui.scenes import BUSY, animated, everywhere, halves
from tests.webui.watcher import needs_watcher

SCENES = [BUSY, halves("an ocean", "lava", 0.3), MISSING, everywhere("snow"), animated(3), {"blend": {"scale": 9}}]


def _outcome(webui, scene) -> object:
    answer = webui.ask(scene)
    if answer.status != 200:
        return answer.status, answer.json["detail"]
    return answer.status, [item for item in answer.json["images"][:1]]


def test_two_clients_do_not_mix(webui, unharmed):
    """Each gets what it gets alone, masks and refusals alike, whatever the other one asks for."""
    alone = [_outcome(webui, scene) for scene in SCENES]
    with ThreadPoolExecutor(2) as pool:
        forwards = pool.submit(lambda: [_outcome(webui, scene) for scene in SCENES * 2])
        backwards = pool.submit(lambda: [_outcome(webui, scene) for scene in SCENES[::-1] * 2])
    assert forwards.result() == alone * 2
    assert backwards.result() == alone[::-1] * 2


def test_six_clients_at_once(webui, unharmed):
    alone = [_outcome(webui, scene) for scene in SCENES]
    with ThreadPoolExecutor(len(SCENES)) as pool:
        assert list(pool.map(lambda scene: _outcome(webui, scene), SCENES)) == alone


@needs_watcher
def test_nothing_stays_installed(webui, watcher):
    webui.txt2img(BUSY)  # what the host builds once
    hooks = watcher.hooks()
    for scene in SCENES:
        webui.ask(scene)
        assert watcher.hooks() == hooks
    webui.ask(BUSY, batch_size=2, **hosts.hires())
    assert watcher.hooks() == hooks


@pytest.mark.slow
def test_200_jobs_leave_nothing(webui, unharmed, request):
    """No growth of the host's memory, of the time a job takes, or of hooks; and the same picture at the end."""
    watcher = request.getfixturevalue("watcher") if not needs_watcher.args[0] else None
    job = {"width": hosts.SIZE // 2, "height": hosts.SIZE // 2, "steps": 3}
    first = [webui.ask(scene, **job).status for scene in SCENES * 5]
    hooks = watcher and watcher.hooks()
    memory, seconds = [], []
    picture = webui.txt2img(BUSY, **job).hashes
    for turn in range(200 // len(SCENES) + 1):
        start = time.perf_counter()
        assert [webui.ask(scene, seed=turn, **job).status for scene in SCENES] == first[: len(SCENES)]
        seconds.append(time.perf_counter() - start)
        memory.append(webui.get("/sdapi/v1/memory")["ram"]["used"])
    assert webui.txt2img(BUSY, **job).hashes == picture
    assert watcher is None or watcher.hooks() == hooks
    growth = statistics.median(memory[-5:]) - statistics.median(memory[:5])
    print(f"memory grew by {growth / 1e6:.1f} MB, from {memory[0] / 1e6:.0f} MB")
    assert growth < 24e6
    assert statistics.median(seconds[-10:]) < 1.5 * statistics.median(seconds[:10])
