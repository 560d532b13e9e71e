"""The host's scripts, by their paths: the one that takes comments out of prompts."""

from __future__ import annotations

import re
from types import SimpleNamespace


def _strip_comments(text: str) -> str:
    return re.sub(r"#[^\n]*(\n|$)", "\n", text)


loaded_scripts = {"/webui/modules/processing_scripts/comments.py": SimpleNamespace(strip_comments=_strip_comments)}
