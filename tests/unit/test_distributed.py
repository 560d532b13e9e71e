"""Who makes which batch, with a Ray that is not there: order, losses, limits."""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.__main__ import main
from lib_masknoise.render import Settings
from lib_masknoise.render import ray as distributed
from lib_masknoise.render.plan import versions
from lib_masknoise.render.ray import AHEAD, LOSSES, _Pool, cpus_each
from lib_masknoise.scene import Scene

MODEL = {"unet.safetensors": {"sha256": "1f", "size": 3, "changed": 4}}
MACHINE = {"device": "cuda NVIDIA H100", "dtype": "float16"}


def ready() -> dict:
    """What a worker says of itself."""
    return {"versions": versions(), "model": {"unet.safetensors": "1f"}, "machine": MACHINE}


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception):
        self.cause = cause


@dataclass(eq=False)
class Actor:
    """A worker, or the method of one; what it is asked for is decided when somebody waits."""

    ray: FakeRay

    @property
    def prepare(self):
        return SimpleNamespace(remote=lambda settings, known: self.ray.promise(self, self.ray.ready))

    @property
    def render(self):
        def picture(time: float) -> np.ndarray:
            return np.full((2, 2, 3), time, np.uint8)

        def remote(scene, settings, times):
            self.ray.asked.append(times[0])
            return self.ray.promise(self, lambda: [picture(time) for time in times])

        return SimpleNamespace(remote=remote)


@dataclass(eq=False)
class FakeRay:
    """Finishes what is under way in any order; `fate` says what becomes of it: a result, or an exception raised."""

    seed: int = 0
    fate: object = None
    cores: tuple[int, ...] = (4,)
    asked: list[float] = field(default_factory=list)
    killed: list[Actor] = field(default_factory=list)
    started: int = 0
    ready: object = staticmethod(ready)
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.promises = {}

    def remote(self, **share):
        self.share = share

        def start() -> Actor:
            self.started += 1
            return Actor(self)

        return lambda cls: SimpleNamespace(remote=start)

    def promise(self, actor, make) -> object:
        reference = object()
        self.promises[reference] = make
        return reference

    def wait(self, references, num_returns, timeout):
        assert references and num_returns == 1
        return [self.random.choice(references)], []

    def get(self, reference):
        make = self.promises.pop(reference)
        if self.fate:
            self.fate(self.random)
        return make()

    def put(self, value):
        return value

    def kill(self, actor):
        self.killed.append(actor)

    def cluster_resources(self):
        return {"CPU": sum(self.cores)}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(cores)}} for cores in self.cores]


def values(pool: _Pool, batches) -> list[int]:
    made = pool.images(Scene.parse({}), Settings(), batches, lambda frames: None)
    return [image.getpixel((0, 0))[0] for image in made]


def batched(count: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 200), st.integers(1, 7), st.integers(1, 4), st.integers(0, 999))
def test_images_come_in_order_however_workers_finish(count, size, workers, seed):
    pool = _Pool(FakeRay(seed), Settings(), workers, MODEL)
    assert values(pool, batched(count, size)) == list(range(count))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 999))
def test_what_a_lost_worker_had_is_made_again(count, workers, seed):
    lost = []

    def fate(random: random.Random) -> None:
        if len(lost) < LOSSES * workers and random.random() < 0.3:
            lost.append(1)
            raise RayError("the actor died")

    ray = FakeRay(seed, fate)
    pool = _Pool(ray, Settings(), workers, MODEL)
    assert values(pool, batched(count, 1)) == list(range(count))
    assert ray.started == workers + len(lost)  # each one replaced
    pool.close()
    assert len(set(ray.killed)) == workers


def test_a_cluster_that_keeps_losing_workers_is_given_up():
    def fate(random: random.Random) -> None:
        raise RayError("the node died\nand much more")

    ray = FakeRay(0, fate)
    with pytest.raises(ConnectionError, match="7 workers were lost, the last one because: the node died$"):
        values(_Pool(ray, Settings(), 2, MODEL), batched(5, 1))
    assert ray.started == 2 + LOSSES * 2


def test_an_error_of_our_own_is_raised_as_it_was():
    def fate(random: random.Random) -> None:
        raise RayTaskError(ValueError("noise.feature.dimensions: too many"))

    with pytest.raises(ValueError, match="^noise.feature.dimensions: too many$"):
        values(_Pool(FakeRay(0, fate), Settings(), 2, MODEL), batched(5, 1))


def test_after_an_error_the_workers_can_be_used_again():
    """As when a batch was too large for the memory: what is still under way belongs to nobody."""
    wrong = [True]

    def fate(random: random.Random) -> None:
        if ray.asked and wrong:
            wrong.pop()
            raise RayTaskError(RuntimeError("out of memory"))

    ray = FakeRay(3, fate)
    pool = _Pool(ray, Settings(), 3, MODEL)
    with pytest.raises(RuntimeError, match="out of memory"):
        values(pool, batched(9, 1))
    assert values(pool, [[100 + index] for index in range(9)]) == list(range(100, 109))
    assert ray.started == 3


def test_images_waiting_for_an_earlier_one_are_bounded():
    """The first batch takes for ever; the others must not pile up."""

    class Slow(FakeRay):
        def wait(self, references, num_returns, timeout):
            held = [r for r in references if self.promises[r] is not self.first]
            return [(held or references)[0]], []

        def promise(self, actor, make):
            reference = super().promise(actor, make)
            if self.asked == [0]:
                self.first = make
            return reference

        first = None

    ray = Slow()
    made = _Pool(ray, Settings(), 2, MODEL).images(Scene.parse({}), Settings(), batched(100, 1), lambda frames: None)
    next(made)
    assert max(ray.asked) < AHEAD * 2


def test_workers_that_never_get_ready_end_in_an_error(monkeypatch):
    class Stuck(FakeRay):
        def wait(self, references, num_returns, timeout):
            return [], references

    monkeypatch.setattr(distributed, "START_SECONDS", 0.0)
    with pytest.raises(ConnectionError, match="no worker was ready"):
        values(_Pool(Stuck(), Settings(), 2, MODEL), batched(3, 1))


def test_the_first_worker_says_what_makes_the_frames():
    assert _Pool(FakeRay(), Settings(), 2, {}).machine() == MACHINE


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("versions", "torch", "9.9"),
        ("model", "unet.safetensors", "2e"),
        ("model", "vae.safetensors", "33"),
        ("machine", "dtype", "float32"),
    ],
)
@pytest.mark.parametrize("model", [MODEL, {}])
def test_a_worker_that_is_not_like_the_others_is_refused(part, name, value, model):
    def odd() -> dict:
        said = ready()
        return {**said, part: {**said[part], name: value}}

    ray = FakeRay()
    pool = _Pool(ray, Settings(), 1, model)
    pool.machine()
    ray.ready = odd
    pool._start_worker()
    expected = ready()[part].get(name)
    said = f"a worker has {name} {value} (expected {expected}): the same frame would come out differently there"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        values(pool, batched(30, 1))


def test_a_model_that_is_not_the_one_here_is_refused():
    ray = FakeRay()
    other = {"unet.safetensors": {"sha256": "2e", "size": 3, "changed": 4}}
    with pytest.raises(ValueError, match=r"a worker has unet.safetensors 1f \(expected 2e\)"):
        _Pool(ray, Settings(), 1, other).machine()


@pytest.mark.parametrize(
    "machines, workers, cores",
    [([2], 2, 1), ([16], 1, 16), ([16], 3, 5), ([4, 2], 2, 2), ([4, 2], 3, 2), ([8, 8, 8], 3, 8), ([1, 1, 0], 2, 1)],
)
def test_cores_are_shared_out(machines, workers, cores):
    assert cpus_each(machines, workers) == cores


@pytest.mark.parametrize("machines", [[], [0], [1], [0.5, 0.5]])
def test_more_workers_than_cores_are_refused(machines):
    with pytest.raises(ConnectionError, match="2 workers need as many processor cores"):
        cpus_each(machines, 2)


@pytest.mark.parametrize("option", [["--workers", "2"], ["--address", "somewhere"]])
def test_without_ray_the_command_says_what_to_install(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = tmp_path / "scene.json"
    path.write_text("{}", encoding="utf-8")
    assert main(["render", str(path), "--out", str(tmp_path / "out"), *option]) == 2
    assert 'pip install "ray>=2.9"' in capsys.readouterr().err
