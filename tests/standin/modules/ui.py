"""What the host's own page shows beside a prompt."""

from __future__ import annotations

import re


def update_token_counter(text: str, steps: int, styles: list[str]) -> str:
    return f"<span>{len(re.findall(r'[a-z]+', text))}/75</span>"
