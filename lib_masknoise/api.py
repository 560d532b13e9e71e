"""The extension's own routes, for scripts and for the user interface; docs/api.md shows each.

What is refused is answered with 422 and a JSON list of ``{"path": …, "message": …}``, one entry a problem; a preset
that is not there with 404 and the same, a body that is too large with 413, one request too many at once with 429.
Nothing here touches the model: no route needs the WebUI's queue.
"""

# No `from __future__ import annotations`: fastapi and pydantic read the annotations of what is defined here.

import io
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from lib_masknoise import preview
from lib_masknoise.controls import control
from lib_masknoise.presets import PresetError, Presets, UnknownPreset
from lib_masknoise.scene import Part, Problem, Scene, SceneError, pydantic

PREFIX = "/masknoise/v1"
SMALLEST, LARGEST = 16, 2048  # pixels, of a preview's side
MAX_BODY, MAX_DROPPED = 16_000_000, 128_000_000  # bytes
MAX_AT_ONCE = 2
"""Of the requests with a scene in them. More would only wait for the processor, and hold their bodies meanwhile."""
RETRY_AFTER = 1  # seconds

_drawing = threading.Lock()  # one preview at a time: the processor is for the images


class PreviewRequest(Part):
    """Which picture of a scene is wanted: see `preview.picture`."""

    scene: Scene = pydantic.Field(..., description="The scene.")
    what: str = pydantic.Field("coefficients", enum=list(preview.KINDS), description="Which map.")
    frame: float = pydantic.Field(0.0, ge=0, le=control("animation.frames").high, description="Which frame, from 0.")
    width: int = pydantic.Field(512, ge=SMALLEST, le=LARGEST, description="In pixels.")
    height: int = pydantic.Field(512, ge=SMALLEST, le=LARGEST, description="In pixels.")


def add_routes(app: FastAPI, presets: Presets, dependencies: Sequence[Any] = ()) -> None:
    """Add the routes to a host's application.

    dependencies: of fastapi (``Depends(…)``), run before each of the routes: the host's own authentication.
    """
    router = APIRouter(prefix=PREFIX, dependencies=list(dependencies), tags=["MaskNoise"])
    places = threading.BoundedSemaphore(MAX_AT_ONCE)

    async def answer(request: Request, work: Callable[[bytes], Response]) -> Response:
        """What ``work`` makes of the request's body, within the limits."""
        if not places.acquire(blocking=False):
            await read_body(request, 0)
            message = f"expected at most {MAX_AT_ONCE} requests with a scene at once; try again in {RETRY_AFTER} s"
            return refusal(429, [Problem("", message)], {"Retry-After": str(RETRY_AFTER)})
        try:
            body = await read_body(request)
            if body is None:
                return too_large()
            return await _answer(lambda: work(body))
        finally:
            places.release()

    @router.get("/schema", summary="The JSON Schema of a scene")
    def schema() -> Response:
        return JSONResponse(Scene.json_schema())

    @router.post("/validate", summary="A scene with all its fields, or what is wrong with it")
    async def validate(request: Request) -> Response:
        return await answer(request, lambda body: JSONResponse(Scene.parse(body).to_dict()))

    @router.post("/preview", summary="A picture of the coefficient maps or of the noise amount")
    async def draw(request: Request) -> Response:
        return await answer(request, lambda body: _png(PreviewRequest.parse(body)))

    @router.get("/presets", summary="The names of the presets")
    def names() -> Response:
        return JSONResponse(presets.names())

    @router.get("/presets/{name}", summary="A preset")
    async def load(name: str) -> Response:
        return await _answer(lambda: JSONResponse(presets.load(name).to_dict()))

    @router.put("/presets/{name}", summary="Keep a scene as a preset")
    async def save(name: str, request: Request) -> Response:
        return await answer(request, lambda body: _saved(presets, name, body))

    @router.delete("/presets/{name}", summary="Remove a preset")
    async def delete(name: str) -> Response:
        return await _answer(lambda: _deleted(presets, name))

    app.include_router(router)


async def _answer(work: Callable[[], Response]) -> Response:
    """The response that ``work`` makes, off the event loop, or the one that says what was refused."""
    try:
        return await run_in_threadpool(work)
    except SceneError as error:
        return refusal(422, error.problems)
    except ImportError as error:  # a package that the picture needs is not installed
        return refusal(422, [Problem("", str(error))])
    except UnknownPreset as error:
        return refusal(404, [Problem("name", str(error))])
    except PresetError as error:
        return refusal(422, [Problem("name", str(error))])


async def read_body(request: Request, most: int = MAX_BODY) -> bytes | None:
    """The request's body, None where it is larger. What is too much is read and dropped, up to a bound: a client that
    is still sending would not see the answer."""
    body, count = bytearray(), 0
    async for part in request.stream():
        count += len(part)
        if count <= most:
            body += part
        if count > MAX_DROPPED:
            break
    return bytes(body) if count <= most else None


def is_json(request: Request) -> bool:
    """Only scripts of the page itself may send this type without being asked first (CORS)."""
    return request.headers.get("content-type", "").startswith("application/json")


def no_json() -> Response:
    """The answer to a body of another type."""
    return refusal(415, [Problem("", "expected the content type application/json")])


def session_of(body: bytes) -> str:
    """The page that a body names, "" where it names none."""
    try:
        return str(json.loads(body)["session"])
    except (ValueError, TypeError, KeyError):
        return ""


def too_large() -> Response:
    """The answer to a body of which `read_body` has read too much."""
    return refusal(413, [Problem("", f"expected a body of at most {MAX_BODY // 10**6} MB, got more")])


def refusal(status: int, problems: Sequence[Problem], headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse([problem._asdict() for problem in problems], status, dict(headers or {}))


def _png(wanted: PreviewRequest) -> Response:
    with _drawing:
        picture = preview.picture(wanted.scene, wanted.what, wanted.frame, (wanted.height, wanted.width))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")


def _saved(presets: Presets, name: str, body: bytes) -> Response:
    scene, said = presets.read(body)
    presets.save(name, scene, said=said)
    return JSONResponse(scene.to_dict())


def _deleted(presets: Presets, name: str) -> Response:
    presets.delete(name)
    return Response(status_code=204)
