"""`POST /masknoise/v1/explore/…`: the views for scripts; docs/api.md describes them."""

# No `from __future__ import annotations`: fastapi reads the annotations of what is defined here.

import base64
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from lib_masknoise.api import PREFIX, is_json, no_json, read_body, refusal, session_of, too_large
from lib_masknoise.explore.model import Stop
from lib_masknoise.explore.requests import REQUESTS, Asked
from lib_masknoise.explore.workshop import Made, Workshop
from lib_masknoise.scene import Problem, SceneError

PATH = f"{PREFIX}/explore"
NOT_PICTURES = ("explore.json", "index.html")


def add_explore(app: FastAPI, workshop: Workshop, dependencies: Sequence[Any] = ()) -> None:
    """Add the routes to a host's application. dependencies: the host's own authentication (``Depends(…)``)."""
    router = APIRouter(prefix=PATH, dependencies=list(dependencies), tags=["MaskNoise"])

    async def answer(request: Request, kind: type[Asked]) -> Response:
        if not is_json(request):
            return no_json()
        body = await read_body(request)
        return too_large() if body is None else await run_in_threadpool(_answered, workshop, kind, body)

    @router.post("/journey", summary="How noise becomes a picture, step by step")
    async def journey(request: Request) -> Response:
        return await answer(request, REQUESTS["journey"])

    @router.post("/between", summary="What stands between two prompts, and beyond them")
    async def between(request: Request) -> Response:
        return await answer(request, REQUESTS["between"])

    @router.post("/map", summary="Prompts laid out by the model's own encoder")
    async def chart(request: Request) -> Response:
        return await answer(request, REQUESTS["map"])

    @router.post("/place", summary="The picture of a place on a map")
    async def place(request: Request) -> Response:
        return await answer(request, REQUESTS["place"])

    @router.post("/grid", summary="Every combination of seeds, steps, guidances and words")
    async def grid(request: Request) -> Response:
        return await answer(request, REQUESTS["grid"])

    @router.post("/stop", summary="End what is being made for a session")
    async def stop(request: Request) -> Response:
        workshop.stop(session_of(await read_body(request, 10_000) or b""))
        return Response(status_code=204)

    app.include_router(router)


def _answered(workshop: Workshop, kind: type[Asked], body: bytes) -> Response:
    try:
        return JSONResponse(answer_of(workshop.make(kind.parse(body))))
    except SceneError as error:
        return refusal(422, error.problems)
    except ImportError as error:  # a package that the scene needs is not installed
        return refusal(422, [Problem("", str(error))])
    except Stop:
        return refusal(409, [Problem("", "stopped before there was anything to show")])


def answer_of(made: Made) -> dict[str, Any]:
    """A view and its pictures: what explore.json says, and each file that it names in base64."""
    names = [name for name in made.view["files"] if name not in NOT_PICTURES]
    files = {name: base64.b64encode((made.folder / name).read_bytes()).decode() for name in names}
    return {**made.view, "files": files}
