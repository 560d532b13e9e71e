"""`POST /masknoise/v1/live`: wishes in, pictures out as they are made; docs/api.md describes it."""

# No `from __future__ import annotations`: fastapi and pydantic read the annotations of what is defined here.

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from PIL import Image

from lib_masknoise.api import PREFIX, is_json, no_json, read_body, refusal, session_of, too_large
from lib_masknoise.live.engine import Engine, Note, Picture
from lib_masknoise.live.host import Host, Settings, Wish
from lib_masknoise.scene import Part, Problem, Scene, SceneError, pydantic
from lib_masknoise.ui import inputs
from lib_masknoise.wildcards import expand

PATH = f"{PREFIX}/live"
MEDIA_TYPE = "application/x-ndjson"
LARGEST = 2048  # pixels, of a side
QUALITY = 88  # of a sketch's JPEG


class LiveRequest(Part):
    """What a page wants to see. Either `scene` or `args`, the values of the accordion (`ui.inputs`)."""

    session: str = pydantic.Field(..., description="The page's own name: a newer request of it ends an older one.")
    scene: dict[str, Any] = pydantic.Field({}, description="The scene.")
    args: list[Any] = pydantic.Field([], description="Instead of the scene: the values of the accordion.")
    prompt: str = pydantic.Field("", description="The base.")
    negative_prompt: str = pydantic.Field("", description="Of the base.")
    seed: int = pydantic.Field(0, ge=0, lt=2**63, description="Of the picture.")
    steps: int = pydantic.Field(20, ge=1, le=150, description="Of the picture at rest.")
    width: int = pydantic.Field(512, ge=64, le=LARGEST, description="In pixels, a multiple of 8.")
    height: int = pydantic.Field(512, ge=64, le=LARGEST, description="In pixels, a multiple of 8.")
    guidance_scale: float = pydantic.Field(4.0, ge=0, le=100, description="1 or less: no negative prompt.")
    sampler: str = pydantic.Field("", description="By the host's name; its usual one when empty.")
    scheduler: str = pydantic.Field("", description="By the host's name; its usual one when empty.")
    breathe: bool = pydantic.Field(False, description="Play the noise's motion, a frame a pass.")
    patient: bool = pydantic.Field(False, description="Let the glance that is being made be shown first.")


def add_live(app: FastAPI, engine: Engine, dependencies: Sequence[Any] = ()) -> None:
    """Add the routes to a host's application. dependencies: the host's own authentication (``Depends(…)``)."""
    router = APIRouter(prefix=PREFIX, dependencies=list(dependencies), tags=["MaskNoise"])

    @router.post("/live", summary="A picture that follows its scene, streamed")
    async def live(request: Request) -> Response:
        if not is_json(request):
            return no_json()
        body = await read_body(request)
        if body is None:
            return too_large()
        try:
            asked, wish = await run_in_threadpool(_wish, body, engine.host)
        except SceneError as error:
            engine.stop(session_of(body))
            return refusal(422, error.problems)
        # A host that compresses answers would hold pictures back until its buffer is full.
        headers = {"Content-Encoding": "identity", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_lines(engine, asked, wish), media_type=MEDIA_TYPE, headers=headers)

    @router.post("/live/stop", summary="End what a page wanted to see")
    async def stop(request: Request) -> Response:
        engine.stop(session_of(await read_body(request, 10_000) or b""))
        return Response(status_code=204)

    app.include_router(router)


def _wish(body: bytes, host: Host) -> tuple[LiveRequest, Wish]:
    asked = LiveRequest.parse(body)
    sides = {"width": asked.width, "height": asked.height}
    wrong = [Problem(name, f"expected a multiple of 8, got {side}") for name, side in sides.items() if side % 8]
    if wrong:
        raise SceneError(tuple(wrong))
    scene = inputs.read(asked.args) if asked.args else Scene.parse(asked.scene)
    settings = Settings(
        size=(asked.height, asked.width),
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        seed=asked.seed,
        steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        sampler=asked.sampler,
        scheduler=asked.scheduler,
    )
    scene = expand(scene, asked.seed, host.wildcards()) if scene else Scene.parse({"enabled": False})
    wish = Wish(scene, settings, asked.breathe)
    host.check(wish)
    return asked, wish


async def _lines(engine: Engine, asked: LiveRequest, wish: Wish) -> AsyncIterator[bytes]:
    """What comes of a wish, a line of JSON each. A page that leaves ends it."""
    events: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(event: Any) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    request = engine.ask(asked.session, wish, tell, asked.patient)
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), 1.0)
            except asyncio.TimeoutError:  # noqa: UP041 - another class before Python 3.11
                if not request.open and events.empty():
                    return  # a newer request of the page has taken over
                continue
            if event is None:
                return
            line = await run_in_threadpool(line_of, event)
            yield line
            request.taken()
    finally:
        request.cancel()


def line_of(event: Picture | Note) -> bytes:
    """An event as a line of JSON."""
    if isinstance(event, Note):
        return _line({"kind": event.kind, "words": event.words})
    return _line(
        {
            "kind": event.kind,
            "frame": event.frame,
            "steps": event.steps,
            "milliseconds": {name: round(1000 * value, 1) for name, value in event.seconds.items()},
            "image": data_url(event.image, lossless=event.kind == "full"),
        }
    )


def data_url(image: Image.Image, lossless: bool) -> str:
    """A PNG, or a JPEG, which is smaller and quicker."""
    file = io.BytesIO()
    if lossless:
        image.save(file, "PNG", compress_level=1)
    else:
        image.save(file, "JPEG", quality=QUALITY)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
