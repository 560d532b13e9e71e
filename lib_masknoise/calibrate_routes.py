"""`POST /masknoise/v1/calibrate`: the useful ranges with the loaded model, for scripts; docs/api.md describes it."""

# No `from __future__ import annotations`: fastapi reads the annotations of what is defined here.

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from lib_masknoise.api import PREFIX, is_json, no_json, read_body, refusal, session_of, too_large
from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.requests import CalibrateRequest
from lib_masknoise.explore.model import Stop
from lib_masknoise.scene import Problem, SceneError


def add_calibrate(app: FastAPI, calibrator: Calibrator, dependencies: Sequence[Any] = ()) -> None:
    """Add the routes to a host's application. dependencies: the host's own authentication (``Depends(…)``)."""
    router = APIRouter(prefix=PREFIX, dependencies=list(dependencies), tags=["MaskNoise"])

    @router.post("/calibrate", summary="The useful range of every strength with the loaded model")
    async def calibrate(request: Request) -> Response:
        if not is_json(request):
            return no_json()
        body = await read_body(request)
        return too_large() if body is None else await run_in_threadpool(_answered, calibrator, body)

    @router.post("/calibrate/stop", summary="End the calibration of a session")
    async def stop(request: Request) -> Response:
        calibrator.workshop.stop(session_of(await read_body(request, 10_000) or b""))
        return Response(status_code=204)

    @router.get("/profile", summary="The profile of the loaded model")
    def profile() -> Response:
        found = calibrator.current()
        if found is None:
            return refusal(404, [Problem("", "there is no profile of this model yet: POST /masknoise/v1/calibrate")])
        return JSONResponse(found.to_dict())

    app.include_router(router)


def _answered(calibrator: Calibrator, body: bytes) -> Response:
    try:
        return JSONResponse(calibrator.make(CalibrateRequest.parse(body)).to_dict())
    except SceneError as error:
        return refusal(422, error.problems)
    except ImportError as error:  # a package that the noise needs is not installed
        return refusal(422, [Problem("", str(error))])
    except Stop:
        return refusal(409, [Problem("", "stopped before there was a profile")])
