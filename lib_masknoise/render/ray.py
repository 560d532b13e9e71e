"""Frames over the processes of a Ray cluster: on this machine, or on many.

A frame is a function of the scene, the settings and its time, so frames can be made anywhere and in any order. Each
worker (a Ray actor) holds a pipeline and takes one batch after the other; the images come back here, in order, to be
written. A batch is made of the same frames and with the same number of threads wherever it is sampled, so on machines
of one kind every file has the sha256 that it has without workers.

Only this module imports Ray (`pip install "ray>=2.9"`, or the extra `distributed`).
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_masknoise.render.plan import versions
from lib_masknoise.render.studio import Advance, Studio, host, host_options, machine
from lib_masknoise.render.weights import Weights, digests, weights
from lib_masknoise.scene import Scene
from lib_masknoise.settings import Settings

PORT = 6379  # of a Ray cluster's head
REACH_SECONDS = 5.0  # to open a connection to it
START_SECONDS = 300.0  # until the first worker must have loaded its pipeline
AHEAD = 4  # batches a worker that may be under way or waiting for an earlier one: bounds the memory for images
LOSSES = 3  # of workers, for each one asked for, until the cluster is given up
NOBODY = -1  # stands for a batch whose images are no longer wanted
STORE_BYTES = 512 * 2**20  # for images under way, of a cluster of our own

# What Ray reads when it is imported or started: no reports to its makers, no notes about its future versions, and
# workers that give way to other programs no more than a render without workers does (Ray's default is nice 15).
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


@contextmanager
def cluster(
    settings: Settings, workers: int | None = None, address: str | None = None, model: Weights | None = None
) -> Iterator[Studio]:
    """Make images on the workers of a Ray cluster; all of it is taken down when the block ends, however it ends.

    settings: which model and how many threads; a path must lead to the same model everywhere. workers: how many; when
    None, with an address one a GPU or, without GPUs, one a machine; without an address 1. address: HOST, HOST:PORT,
    "auto" or "ray://HOST:PORT" of a running cluster; None starts one on this machine and stops it afterwards. model:
    the files that the workers must have; None to have them all like the first one's.

    Raises ModuleNotFoundError without Ray, ConnectionError where the cluster cannot be reached, has no room for the
    workers or keeps losing them, ValueError where a worker has other versions, another model or another kind of
    machine, and what `load_pipeline` raises.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers, address)
    pool = None
    try:
        pool = _Pool(ray, settings, workers or (_usual_workers(ray) if address else 1), model or {})
        yield Studio(pool.images, pool.machine())
    finally:
        if pool is not None:
            pool.close()
        if ours:
            ray.shutdown()


def cpus_each(machines: Sequence[float], workers: int) -> int:
    """The most processor cores that every one of some workers can have, given the cores of each machine.

    Raises ConnectionError where there are fewer cores than workers.
    """
    for cores in range(int(max(machines, default=0)), 0, -1):
        if sum(int(machine // cores) for machine in machines) >= workers:
            return cores
    raise ConnectionError(f"{workers} workers need as many processor cores, the cluster has {int(sum(machines))}")


def _ray() -> Any:
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError('rendering on workers needs Ray: pip install "ray>=2.9"') from None
    return ray


def _connect(ray: Any, workers: int | None, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = max(os.cpu_count() or 1, workers or 1)
        ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        return
    if address != "auto" and "://" not in address:
        host, _, port = address.partition(":")
        address = f"{host}:{port or PORT}"
        try:
            socket.create_connection((host, int(port or PORT)), timeout=REACH_SECONDS).close()
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no Ray cluster at {address}: {error}") from None
    try:
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # Ray raises several kinds, with paragraphs of advice
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"cannot join the Ray cluster at {address}: {reason}") from error


def _usual_workers(ray: Any) -> int:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return gpus or sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1)


class Worker:
    """Runs on a machine of the cluster and holds a pipeline."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self._render: Any = None

    def prepare(self, settings: Settings, known: Weights) -> dict[str, dict[str, str]]:
        """Load the pipeline. Returns everything that decides how a frame comes out; `known`: see `weights`."""
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        load_pipeline, self._render = host()
        self._pipe = load_pipeline(settings.model, **settings.additions)
        named = [f"<lora:{Path(name).stem}>" for name in known if name.startswith("lora/")]  # the scene's, too
        own = {Path(one.file).stem for one in settings.loras}
        added = settings.files(tag for tag in named if tag[6:-1] not in own)
        model = digests(weights(settings.model, known, added))
        return {"versions": versions(), "model": model, "machine": machine(self._pipe)}

    def render(self, scene: Mapping[str, Any], settings: Settings, times: Sequence[float]) -> list[np.ndarray]:
        """One batch of frames: `[H, W, 3]` uint8 each."""
        options = host_options(settings, times, len(times))
        return [np.asarray(frame.image) for frame in self._render(self._pipe, Scene.parse(scene), **options)]


class _Pool:
    """Some workers, and which of them is doing what."""

    def __init__(self, ray: Any, settings: Settings, workers: int, model: Weights) -> None:
        self._ray, self._settings, self._workers, self._model = ray, settings, workers, model
        self._alike: dict[str, dict[str, str]] = {"versions": versions()}  # what every worker must have
        if model:
            self._alike["model"] = digests(model)
        self._actor = ray.remote(max_restarts=0, max_task_retries=0, **self._share())(Worker)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int | None]] = {}  # what is under way → (worker, batch; None: getting ready)
        self._lost = 0
        self._deadline = time.monotonic() + START_SECONDS
        for _ in range(workers):
            self._start_worker()

    def machine(self) -> Mapping[str, str]:
        """`Studio.machine`, when the first worker is ready."""
        while "machine" not in self._alike:
            for _ in self._finished():
                pass
        return self._alike["machine"]

    def images(
        self, scene: Scene, settings: Settings, batches: Sequence[Sequence[float]], advance: Advance
    ) -> Iterator[Image.Image]:
        """`studio.Images`: in order, however the workers finish and whichever of them are lost on the way."""
        shared_scene = self._ray.put(scene.to_dict())
        waiting = list(range(len(batches)))
        done: dict[int, list[np.ndarray]] = {}
        following = 0
        try:
            while following < len(batches):
                while self._idle and waiting and waiting[0] < following + AHEAD * self._workers:
                    batch, worker = heapq.heappop(waiting), self._idle.pop()
                    self._busy[worker.render.remote(shared_scene, settings, list(batches[batch]))] = worker, batch
                for batch, images in self._finished():
                    if images is None:
                        heapq.heappush(waiting, batch)
                    else:
                        done[batch] = images
                        advance(len(images))
                while following in done:
                    yield from map(Image.fromarray, done.pop(following))
                    following += 1
        finally:  # after an error there may be batches under way that nobody waits for
            self._busy = {
                key: (worker, None if batch is None else NOBODY) for key, (worker, batch) in self._busy.items()
            }

    def close(self) -> None:
        for worker in {*self._idle, *(worker for worker, _ in self._busy.values())}:
            self._ray.kill(worker)
        self._idle.clear()
        self._busy.clear()

    def _share(self) -> dict[str, float]:
        """What of a machine one worker takes."""
        if self._ray.cluster_resources().get("GPU", 0) >= 1:
            return {"num_gpus": 1}
        machines = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
        return {"num_cpus": cpus_each(machines, self._workers)}

    def _start_worker(self) -> None:
        worker = self._actor.remote()
        self._busy[worker.prepare.remote(self._settings, self._model)] = worker, None

    def _finished(self) -> Iterator[tuple[int, list[np.ndarray] | None]]:
        """Wait for one worker to finish, or to be lost; give its batch and the images, None where they are lost."""
        errors = self._ray.exceptions
        ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=1.0)
        for reference in ready:
            worker, batch = self._busy.pop(reference)
            try:
                result = self._ray.get(reference)
            except errors.RayTaskError as error:  # our own code's: the same would happen anywhere
                self._idle.append(worker)
                if batch != NOBODY:
                    raise error.cause from None
            except errors.RayError as error:
                self._replace(error)
                if batch not in (None, NOBODY):
                    yield batch, None
            else:
                self._idle.append(worker)
                self._deadline = float("inf")
                if batch is None:
                    self._check(result)
                elif batch != NOBODY:
                    yield batch, result
        if time.monotonic() > self._deadline:
            raise ConnectionError(f"no worker was ready after {START_SECONDS:.0f} s")

    def _replace(self, error: Exception) -> None:
        self._lost += 1
        if self._lost > LOSSES * self._workers:
            reason = str(error).strip().split("\n")[0]
            raise ConnectionError(f"{self._lost} workers were lost, the last one because: {reason}") from error
        self._start_worker()

    def _check(self, there: dict[str, dict[str, str]]) -> None:
        """The first worker decides what is not known here."""
        for part in there:
            has, wanted = there[part], self._alike.setdefault(part, there[part])
            names = [name for name in {**wanted, **has} if has.get(name) != wanted.get(name)]
            if names:
                different = ", ".join(f"{name} {has.get(name)} (expected {wanted.get(name)})" for name in names)
                raise ValueError(f"a worker has {different}: the same frame would come out differently there")
