"""A job that is not done."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import HTTPException

from lib_masknoise.scene import Problem


class Refused(HTTPException):
    """A job that is not done. The API answers 422 with the problems as `[{path, message}]`, the user interface shows
    them one a line."""

    def __init__(self, problems: Sequence[Problem]):
        super().__init__(status_code=422, detail=[problem._asdict() for problem in problems])
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "MaskNoise: " + "\n".join(map(str, self.problems))
