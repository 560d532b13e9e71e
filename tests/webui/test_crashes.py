"""After a job that broke off, the host is as it was: the next txt2img and the next img2img are bit-identical to those
before (invariant 8)."""

from __future__ import annotations

import pytest

from tests.webui import hosts
from tests.webui.scenes import BUSY, animated
from tests.webui.watcher import CRASHES, needs_watcher


def test_in_our_own_code(webui, unharmed):
    """Which dimensions there are turns out when the model has encoded the prompts."""
    scene = {**BUSY, "noise": {"feature": {"strength": 1.0, "dimensions": "100000"}}}
    assert webui.ask(scene).status == hosts.host().refuses


def test_in_the_hires_pass(webui, unharmed):
    """The first pass is done then."""
    scene = {**BUSY, "concepts": [*BUSY["concepts"], {"prompt": "x"}]}
    job = hosts.hires(hr_sampler_name="no such sampler")
    assert webui.ask(scene, **job).status >= 400


def test_in_the_host(webui, unharmed, crash):
    job = {**hosts.host().hires, **hosts.host().crashes[crash]} if "hr" in str(hosts.host().crashes[crash]) else {}
    job = job or hosts.host().crashes[crash]
    assert webui.ask(BUSY, **job).status >= 400


def test_in_the_host_during_an_animation(webui, unharmed, crash):
    job = {**hosts.host().crashes[crash]}
    assert webui.ask(animated(3), **job).status >= 400


def test_in_another_script(webui, unharmed):
    """One that wraps the whole job, given nonsense."""
    answer = webui.ask(BUSY, script_name="x/y/z plot", script_args=["nonsense"])
    assert answer.status >= 400


@needs_watcher
@pytest.mark.parametrize("place", CRASHES)
@pytest.mark.parametrize("step", [0, 3])
def test_in_another_extension(webui, unharmed, watcher, place, step):
    hooks = watcher.hooks()
    answer = webui.ask(BUSY, alwayson_scripts=watcher.crash(place, step))
    assert answer.status >= 400 or place in watcher.SWALLOWED, str(answer)
    assert watcher.hooks() == hooks


@needs_watcher
@pytest.mark.parametrize("place", CRASHES)
def test_in_another_extension_in_the_hires_pass(webui, unharmed, watcher, place):
    hooks = watcher.hooks()
    webui.ask(BUSY, alwayson_scripts=watcher.crash(place, hosts.STEPS + 1), **hosts.hires())
    assert watcher.hooks() == hooks
