"""One thread that makes pictures for pages that paint. Knows no host and no web.

A request of a session (a page's) is answered by a glance at once, by a better sketch where the hand pauses and, when
nothing newer has come for `REST` seconds, by the picture itself. The newest request wins: it ends the running pass of
the one before between two steps, unless it is patient and that pass is a glance, which is shown first. Sessions take
turns, a pass each. Jobs of the user come first: a pass ends between two steps for them and begins anew after them.
Where nothing is asked for, the thread sleeps until something is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from lib_masknoise import infotext
from lib_masknoise.live.host import GLANCE, STEPS, Host, Wish
from lib_masknoise.live.imprint import Imprint, imprint
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene

REST = 0.25
"""Seconds without an edit after which the picture itself is made."""
PAUSE = 0.1
"""Seconds after a picture in which a page whose hand moves on sends its next state: nothing else is begun before."""
ANEW = 0.08
"""Share of the picture that an edit has to change for its sketch to begin with noise alone."""
BREATH = 48
"""Frames of a breath, where the scene is a still."""
LONGEST_BREATH = 20 * BREATH
"""Frames until a page has to ask again: one that has gone away without a word does not keep the model busy."""
UNREAD = 2
"""Pictures of a breath that may wait for a slow page."""
SESSIONS = 16
"""Pages that are remembered."""

NOTHING_MOVES = "Nothing moves: give a noise some strength, and the motion a kind."
PAUSED = "Paused while a picture is being generated."


@dataclass(frozen=True)
class Picture:
    """kind: "sketch", "full" or "frame" (of a breath). seconds: for "draw" (masks and what follows from them),
    "denoise" and "decode". steps: calls of the denoiser."""

    kind: str
    image: Image.Image
    wish: Wish
    frame: float
    steps: int
    seconds: dict[str, float]


def described(picture: Picture) -> dict[str, str]:
    """Its settings and scene as parameters of an infotext."""
    made = picture.wish.settings
    height, width = made.size
    params = {"Steps": str(made.steps)}
    params |= {"Sampler": made.sampler} if made.sampler else {}
    params |= {"Schedule type": made.scheduler} if made.scheduler else {}
    params |= {"CFG scale": f"{made.guidance_scale:g}", "Seed": str(made.seed), "Size": f"{width}x{height}"}
    params |= infotext.write(picture.wish.scene)
    return params if picture.kind == "full" else {**params, "Live": picture.kind}


@dataclass(frozen=True)
class Note:
    """kind: "same" (the last picture still holds), "paused", "still" (there is nothing to breathe) or "error"."""

    kind: str
    words: str = ""


Emit = Callable[["Picture | Note | None"], None]
"""Hears what a request leads to; None at its end, unless it was cancelled or a newer one came."""


class _Ended(Exception):
    """A pass that nobody waits for any more, or that a job of the user is waiting to follow."""


@dataclass(eq=False)
class Request:
    """One wish of a session. `cancel` ends it; `taken` says that a picture has been handed on."""

    wish: Wish
    emit: Emit
    arrived: float
    phase: str
    """What is to be made next: "glance", "sketch" and "full" in this order, or "frame" after "frame"."""
    changed: threading.Condition
    maps: Maps
    answered: float = -math.inf
    """When its last pass ended."""
    open: bool = True
    unread: int = 0
    frames: int = 0
    told: set[str] = field(default_factory=set)

    def cancel(self) -> None:
        with self.changed:
            self.open = False
            self.changed.notify_all()

    def taken(self) -> None:
        with self.changed:
            self.unread -= 1
            self.changed.notify_all()

    def say(self, what: Picture | Note) -> None:
        """Tell the page, unless it has left; a note of one kind once."""
        if not self.open or (isinstance(what, Note) and what.kind in self.told):
            return
        if isinstance(what, Note):
            self.told.add(what.kind)
        self.unread += 1
        self.emit(what)

    def end(self) -> None:
        if self.open:
            self.open = False
            self.emit(None)


@dataclass(eq=False)
class _Session:
    request: Request | None = None
    running: Request | None = None
    """The one whose pass is being made; not `request` where a patient one has come meanwhile."""
    last: Tensor | None = None
    shown: Imprint | None = None
    """Of the last picture; whole: whether that was the picture itself."""
    settled: Imprint | None = None
    """Of the last picture that was more than a glance."""
    whole: bool = False
    rested: tuple[Imprint, Tensor, Image.Image] | None = None
    """The last picture itself: its imprint, its latent, and it."""
    setting: Hashable = None
    """The host's, of the last pass."""
    frame: int = 0
    served: float = 0.0
    picture: Picture | None = None


class Engine:
    """Pictures of one host's model for any number of sessions.

    clock: seconds, for tests. `ask` starts the thread; tests call `work` instead, with start=False.
    """

    def __init__(self, host: Host, clock: Callable[[], float] = time.monotonic, start: bool = True) -> None:
        self.host, self.clock = host, clock
        self._start = start
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, name: str, wish: Wish, emit: Emit, patient: bool = False) -> Request:
        """Wish for something on behalf of a session; ends what the session wished for before. patient: not before the
        glance that is being made for it is shown, so that a page can ask for the next one in time."""
        if wish.breathe and not moves(wish.scene):
            emit_first: Note | None = Note("still", NOTHING_MOVES)
            wish = Wish(wish.scene, wish.settings)
        else:
            emit_first = None
        if wish.breathe and wish.scene.animation.frames < 2:
            wish = Wish(wish.scene.replace({"animation.frames": BREATH}), wish.settings, True)
        height, width = wish.settings.size
        maps = Maps(wish.scene, (height // self.host.factor, width // self.host.factor))
        phase = "frame" if wish.breathe else "glance"
        request = Request(wish, emit, self.clock(), phase, self._changed, maps)
        with self._changed:
            session = self._sessions.setdefault(name, _Session())
            self._sessions.move_to_end(name)
            while len(self._sessions) > SESSIONS:
                _, oldest = self._sessions.popitem(last=False)
                if oldest.request:
                    oldest.request.open = False
            waits = patient and session.running is not None and session.running.phase == "glance"
            for before in (session.request, session.running):
                if before and not (waits and before is session.running):
                    before.open = False
            session.request = request
            if emit_first:
                request.say(emit_first)
            if self._start and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="masknoise-live", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return request

    def stop(self, name: str) -> None:
        """End what a session wished for."""
        with self._changed:
            session = self._sessions.get(name)
            for request in (session.request, session.running) if session else ():
                if request:
                    request.cancel()

    def picture(self, name: str) -> Picture | None:
        """The last picture of a session."""
        session = self._sessions.get(name)
        return session.picture if session else None

    def close(self) -> None:
        """End everything; the thread has left when this returns, unless it waits for a job to end."""
        with self._changed:
            self._closed = True
            for session in self._sessions.values():
                if session.request:
                    session.request.open = False
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(10)

    # --- The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and self._due() is None:
                    self._changed.wait(self._until_due())
                if self._closed:
                    return
            self.work()

    def _waiting(self) -> list[tuple[float, _Session, Request]]:
        """When each session with an open request is due, and that request."""
        found = []
        for session in self._sessions.values():
            request = session.request
            if request is None or not request.open or (request.phase == "frame" and request.unread >= UNREAD):
                continue
            rest = request.arrived + (REST if request.phase == "full" else 0.0)
            # Whatever is begun now would be in the way of what the page sends next.
            pause = request.answered + (0.0 if request.phase == "frame" else PAUSE)
            found.append((max(rest, pause), session, request))
        return found

    def _due(self) -> tuple[_Session, Request] | None:
        """Of the sessions that are due, the one that was served longest ago, and what it asks for."""
        now = self.clock()
        due = [(session, request) for when, session, request in self._waiting() if when <= now]
        return min(due, key=lambda pair: pair[0].served, default=None)

    def _until_due(self) -> float | None:
        waiting = [when for when, _, _ in self._waiting()]
        return max(0.0, min(waiting) - self.clock()) if waiting else None

    def work(self) -> bool:
        """Do what is due first: at most one pass. Returns whether anything was due."""
        with self._changed:
            if self._due() is None:
                return False
            if self.host.busy():
                for _, _, request in self._waiting():
                    request.say(Note("paused", PAUSED))
        with self.host.turn():
            if self.host.busy():
                return True  # a job has come meanwhile
            with self._changed:
                due = self._due()  # while it waited for its turn, another may have come
                if due is None:
                    return True
                session, request = due
                session.served = self.clock()
                session.running = request
            try:
                self._serve(session, request)
            except _Ended:
                pass
            except Exception as error:
                session.shown = None
                request.say(Note("error", str(error) or type(error).__name__))
                request.end()
            with self._changed:
                session.running = None
                if session.request is not request:
                    request.end()
        return True

    def _serve(self, session: _Session, request: Request) -> None:
        frame = 0
        if request.phase == "frame":
            session.frame = frame = (session.frame + 1) % request.wish.scene.animation.frames
        start = time.perf_counter()
        setting = self.host.setting()
        if setting != session.setting:  # another model may have another kind of latent
            session.setting, session.last, session.rested = setting, None, None
        now = imprint(request.wish, request.maps, frame)
        now = replace(now, rest=(setting, now.rest))
        same = not now.differs(session.shown)
        drawn = time.perf_counter() - start
        if request.phase == "full":
            if not (same and session.whole):
                self._full(session, request, now, drawn)
            return request.end()
        if same and request.phase != "sketch":
            request.say(Note("same"))
        else:
            self._sketch(session, request, now, frame, drawn)
        request.answered = self.clock()
        if request.phase == "frame":
            request.frames += 1
            if request.frames >= LONGEST_BREATH:
                request.end()
        elif same and session.whole:
            request.end()
        else:
            better = session.settled is not session.shown and request.wish.settings.steps > STEPS
            request.phase = "sketch" if better else "full"

    def _sketch(self, session: _Session, request: Request, now: Imprint, frame: int, drawn: float) -> None:
        count = _Steps(self, request)
        start = time.perf_counter()
        # Where much is to become another thing, what was there would only be in its way.
        before = session.settled if request.phase == "sketch" else session.shown
        anew = session.last is None or now.distance(before) >= ANEW
        glance = request.phase == "glance" and not anew
        last = None if anew else session.last
        latent = self.host.sketch(request.wish, request.maps, frame, last, count, GLANCE if glance else STEPS)
        denoised = time.perf_counter()
        image = self.host.decode(latent)
        if request.phase != "frame" and session.rested is not None:
            latent, image = _anchored(latent, image, now, *session.rested)
        seconds = {"draw": drawn, "denoise": denoised - start, "decode": time.perf_counter() - denoised}
        kind = "frame" if request.phase == "frame" else "sketch"
        picture = Picture(kind, image, request.wish, frame, count.done, seconds)
        self._show(session, request, picture, latent, now, settled=not glance)

    def _full(self, session: _Session, request: Request, now: Imprint, drawn: float) -> None:
        count = _Steps(self, request)
        start = time.perf_counter()
        image, latent = self.host.full(request.wish, request.maps, 0, count)
        seconds = {"draw": drawn, "denoise": time.perf_counter() - start, "decode": 0.0}
        self._show(session, request, Picture("full", image, request.wish, 0, count.done, seconds), latent, now)

    def _show(
        self,
        session: _Session,
        request: Request,
        picture: Picture,
        latent: Tensor,
        now: Imprint,
        settled: bool = True,
    ) -> None:
        with self._changed:
            if not request.open:
                raise _Ended  # it would be a stale picture
            session.last, session.shown, session.picture = latent, now, picture
            session.whole = picture.kind == "full"
            if settled:
                session.settled = now
            if session.whole:
                session.rested = now, latent, picture.image
            request.say(picture)


class _Steps:
    """Counts the steps of a pass, and ends it where it is no longer wanted."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine, self.request = engine, request
        self.done = 0

    def __call__(self) -> None:
        self.done += 1
        if not self.request.open:
            raise _Ended
        if self.engine.host.busy():
            raise _Ended  # the request stays as it is, and is served after the job


def _anchored(
    latent: Tensor, image: Image.Image, now: Imprint, before: Imprint, known: Tensor, picture: Image.Image
) -> tuple[Tensor, Image.Image]:
    """A sketch where something has changed since the last picture itself, and that picture everywhere else: away from
    the hand nothing flickers, and no sketch's faults grow from one to the next."""
    changed = now.changed(before)
    if changed is None or known.shape != latent.shape:
        return latent, image
    mask = Image.fromarray((255 * changed).round().to(torch.uint8).numpy())
    sizes = Image.Resampling.BILINEAR
    shown = Image.composite(image.resize(picture.size, sizes), picture, mask.resize(picture.size, sizes))
    return torch.lerp(known, latent, changed.to(latent)), shown


def moves(scene: Scene) -> bool:
    """Whether anything of a scene changes with its frames."""
    if not scene.enabled:
        return False
    noise = scene.noise
    own = [part.motion or scene.motion for part in (noise.visual, noise.concept, noise.feature) if part.strength]
    return any(motion.kind != "none" for motion in own) or any(concept.moves for concept in scene.concepts)
