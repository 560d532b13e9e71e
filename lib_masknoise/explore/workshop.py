"""Where views are made for a page or a route: on a host's model, one at a time, the last ones kept."""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib_masknoise.explore.between import Stage
from lib_masknoise.explore.folder import Folder
from lib_masknoise.explore.model import Model, Report, Stop
from lib_masknoise.explore.requests import Asked, PlaceRequest, Presets
from lib_masknoise.settings import Settings

REMEMBERED = 12
"""Views whose pictures are kept, so that going back to one is instant."""
PLACES = 200
"""Single pictures of places on a map, which are kept beside the views."""

HEARTBEAT = 1.0  # seconds

Tell = Callable[[str, float, float], object]
"""Hears what is being done, how much of it is done and how much there is."""


class Host(Protocol):
    """A host's model, and how it is used."""

    @property
    def model(self) -> Model: ...

    def settings(self, asked: Asked) -> Settings:
        """A request's settings as this host has them. Raises SceneError where it has no such sampler."""

    def state(self) -> Any:
        """What pictures depend on besides a request: the loaded model. JSON types."""

    def turn(self) -> AbstractContextManager[object]:
        """A job's turn on the model, waited for."""

    def progress(self, words: str, done: float, total: float) -> None:
        """Show the host's user what is being done. Raises Stop where he wants no more of it."""


@dataclass(frozen=True)
class Made:
    """A view and the folder that its files are in. digest: of all that it depends on."""

    digest: str
    view: dict[str, Any]
    folder: Path
    asked: Asked


class Workshop:
    """folder: for the views' pictures. presets: the prompts of the saved presets."""

    def __init__(self, host: Host, folder: Path, presets: Presets = list) -> None:
        self.host, self.folder, self.presets = host, folder, presets
        self._known: OrderedDict[str, Made] = OrderedDict()
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    def known(self, asked: Asked) -> Made | None:
        """A view that has been made before."""
        return self.kept(self._digest(asked))

    def kept(self, digest: str) -> Made | None:
        with self._lock:
            made = self._known.get(digest)
            if made is not None:
                self._known.move_to_end(digest)
            return made

    def holds(self, made: Made) -> bool:
        """Whether the host is as it was when a view was made."""
        return made.digest == self._digest(made.asked)

    def stop(self, session: str) -> None:
        """End what is being made for a session; what there is by then is kept."""
        with self._lock:
            stop = self._stops.get(session)
        if stop is not None:
            stop.set()

    def make(self, asked: Asked, tell: Tell = lambda words, done, total: None) -> Made:
        """The view that is asked for. Raises SceneError, Stop where it was stopped with nothing to show, and what the
        host raises."""
        known = self.known(asked)
        if known is not None:
            return known
        settings = self.host.settings(asked)
        with self._stoppable(asked.session) as stopped, self.host.turn():
            if stopped.is_set():
                raise Stop
            digest = self._digest(asked)
            made = self.kept(digest)  # by whoever had the turn before
            if made is None:
                folder = Folder(self.folder / digest)
                stage = self._stage(tell, stopped)
                view = asked.make(self.host.model, settings, folder, stage, self.presets)
                made = Made(digest, view, folder.path, asked)
                self._keep(made)
        return made

    def events(self, asked: Asked) -> Iterator[Made | tuple[str, float, float]]:
        """Progress as `Tell` hears it, and at last the view; leaving early stops it. Raises what `make` raises.

        It is made in a thread of its own, as it reports by calling back. Whoever is slow to take the reports gets the
        newest only: a page would otherwise be busy with old ones long after a view is done or stopped. Where there is
        none for a while, the last one is given again: gradio 3 with httpx from 0.25 on gives up after 5 s of silence.
        """
        events: queue.Queue[Any] = queue.Queue()
        event: Any = ("Waiting…", 0.0, 1.0)

        def work() -> None:
            try:
                events.put(self.make(asked, lambda *progress: events.put(progress)))
            except BaseException as error:  # whatever it is, the page is where it must be said
                events.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while True:
                with suppress(queue.Empty):
                    event = events.get(timeout=HEARTBEAT)
                    while True:
                        event = events.get_nowait()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Made):
                    return
        finally:
            self.stop(asked.session)
            thread.join()

    def _digest(self, asked: Asked) -> str:
        said = json.dumps([asked.said, self.host.state()], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:24]

    @contextmanager
    def _stoppable(self, session: str) -> Iterator[threading.Event]:
        stopped = threading.Event()
        if not session:
            yield stopped
            return
        with self._lock:
            self._stops[session] = stopped
        try:
            yield stopped
        finally:
            with self._lock:
                if self._stops.get(session) is stopped:
                    del self._stops[session]

    def _stage(self, tell: Tell, stopped: threading.Event) -> Stage:
        @contextmanager
        def stage(what: str, total: int, unit: str) -> Iterator[Report]:
            done = 0.0

            def report(more: float) -> None:
                nonlocal done
                if stopped.is_set():
                    raise Stop
                done += more
                words = f"{what.capitalize()}: {done:.1f} of {total} {unit}"
                self.host.progress(words, done, total)
                tell(words, done, total)

            yield report

        return stage

    def _keep(self, made: Made) -> None:
        """One that was stopped is shown and not kept: next time it may be made whole."""
        if made.view["interrupted"]:
            return
        with self._lock:
            self._known[made.digest] = made
            places = [key for key, one in self._known.items() if isinstance(one.asked, PlaceRequest)]
            others = [key for key in self._known if key not in set(places)]
            gone = [self._known.pop(key) for key in (*places[:-PLACES], *others[:-REMEMBERED])]
        for one in gone:
            shutil.rmtree(one.folder, ignore_errors=True)
