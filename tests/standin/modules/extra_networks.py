"""`<lora:name:1>` in prompts."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

activated: list[list[str]] = []
"""The names of the networks of each activation, in order."""


@dataclass
class ExtraNetworkParams:
    items: list[str] = field(default_factory=list)


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    found = defaultdict(list)
    for kind, items in re.findall(r"<(\w+):([^>]+)>", prompt):
        found[kind].append(ExtraNetworkParams(items.split(":")))
    return re.sub(r"<\w+:[^>]+>", "", prompt), found


def parse_prompts(prompts: list[str]) -> tuple[list[str], Any]:
    """The prompts without their networks, and those of the first prompt: they act on the whole batch."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], (parsed[0][1] if parsed else None)


def activate(p: Any, data: dict[str, list[ExtraNetworkParams]]) -> None:
    activated.append([":".join([kind, *entry.items]) for kind, entries in data.items() for entry in entries])
    p.scripts.after_extra_networks_activate(p, batch_number=p.iteration)
