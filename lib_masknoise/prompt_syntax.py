r"""How prompts are written, as the WebUIs read them: emphasis, `BREAK`, escapes and comments.

    (abc)      more of it, 1.1 times           [abc]        less of it, 1/1.1 times
    (abc:1.3)  1.3 times                       ((abc))      brackets multiply
    \( \) \[ \] \\   the letters themselves    BREAK        what follows begins a chunk of its own
    # …        to the end of the line: nothing

The WebUIs read their prompts by themselves; this is for the hosts that have no such reading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BREAK = "BREAK"
MORE, LESS = 1.1, 1 / 1.1

_TOKENS = re.compile(
    r"(?P<escaped>\\[()\[\]\\])|(?P<backslash>\\)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAKS = re.compile(r"\s*\bBREAK\b\s*")
_SCHEDULE = re.compile(r"(?<!\\)\[[^\[\]]*(?:\||:\s*[\d.]+\s*\])")
_PARTS = re.compile(r"\bAND\b")


@dataclass
class Piece:
    """A piece of a prompt and how strongly it counts; a `starts` piece has no text: what follows begins a chunk."""

    text: str
    weight: float = 1.0
    starts: bool = False


def without_comments(text: str) -> str:
    """Without what stands behind a ``#``, up to the end of its line."""
    text = re.sub(r"(^|\n)#[^\n]*(\n|$)", "\n", text)
    return re.sub(r"#[^\n]*(\n|$)", "\n", text)


def pieces(text: str) -> list[Piece]:
    """A prompt as the text encoder is given it: at least one piece, neighbours of one weight joined.

    Brackets that are not closed last to the end. Raises ValueError where a weight is no number, and for what only the
    WebUIs can do: parts that are guided one by one (`a AND b`) and prompts that change during sampling (`[a:b:0.5]`,
    `[a|b]`).
    """
    _check(text)
    found: list[Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, factor: float) -> None:
        for piece in found[start:]:
            piece.weight *= factor

    for token in _TOKENS.finditer(text):
        if token["escaped"] or token["backslash"]:
            found.append(Piece(token[0][1:]))
        elif token["open"]:
            opened[token[0]].append(len(found))
        elif token["weight"] is not None and opened["("]:
            weigh(opened["("].pop(), _number(token["weight"], text))
        elif token["close"] == ")" and opened["("]:
            weigh(opened["("].pop(), MORE)
        elif token["close"] == "]" and opened["["]:
            weigh(opened["["].pop(), LESS)
        else:
            first, *others = _BREAKS.split(token[0])
            found.append(Piece(first))
            for other in others:
                found += [Piece(BREAK, starts=True), Piece(other)]
    for start in opened["("]:
        weigh(start, MORE)
    for start in opened["["]:
        weigh(start, LESS)
    for piece in found:
        # As the WebUIs have it, BREAK is a word like any other where it is emphasised; there, of negative weight.
        if piece.starts and piece.weight != 1.0:
            piece.starts, piece.weight = False, -piece.weight
    return _joined(found) or [Piece("")]


def plain(text: str) -> bool:
    """Whether a prompt says the same to a text encoder that reads its letters as they are."""
    return without_comments(text) == text and pieces(text) == [Piece(text)]


def _joined(found: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in found:
        if joined and not piece.starts and not joined[-1].starts and joined[-1].weight == piece.weight:
            joined[-1].text += piece.text
        else:
            joined.append(piece)
    return joined


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the prompt {prompt!r}: expected a number as weight, got {text}") from None


def _check(text: str) -> None:
    if _PARTS.search(text):
        what = "AND, parts that are guided one by one"
    elif _SCHEDULE.search(text):
        what = "[a:b:0.5] and [a|b], prompts that change during sampling"
    else:
        return
    raise ValueError(f"the prompt {text!r}: {what}, are for the WebUI alone; expected a prompt without")
