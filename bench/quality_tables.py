"""The figures of quality.py as the Markdown tables that docs/quality.md quotes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bench.quality_measures import CONCEPTS, backward
from bench.quality_sampling import METHODS


def write(name: str, figures: dict) -> str:
    """The tables of one experiment."""
    settings = f"{figures['seeds']} seeds, {figures['steps']} steps, guidance {figures['guidance']:g}"
    return f"\n### {name} ({settings})\n\n{_TABLES[name](figures)}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def percent(value: float) -> str:
    return f"{100 * value + 0.0:.1f} %"  # no "-0.0"


def _ramps(figures: dict) -> str:
    pairs, methods = figures["pairs"], figures["means"]
    rows = []
    for method in methods:
        found = np.array([row[method]["fidelity"] for row in pairs])
        shares = np.array([row[method]["shares"] for row in pairs])
        plain = np.array([row[method]["plain"] for row in pairs])
        by_pair = found.mean(1)
        low, median = np.percentile(by_pair, [10, 50])
        below = int((by_pair < 0.95).sum())
        cells = [found.mean(), shares.mean(), plain.mean(), median, low, by_pair.min()]
        rows.append([METHODS[method].label, *map(percent, cells), f"{below} of {len(pairs)}"])
    header = [
        "blended",
        "fidelity",
        "right",
        "right alone",
        "median pair",
        "lowest tenth",
        "worst pair",
        "below 95 %",
    ]
    return "\n".join([table(header, rows), _worst(pairs), _passages(figures), _middles(figures), _distances(figures)])


def _worst(pairs: list[dict]) -> str:
    """The pairs in which the program does worst, and what the others make of them."""
    methods = [key for key in pairs[0] if key != "pair"]
    pairs = sorted(pairs, key=lambda row: np.mean(row["conditioning"]["fidelity"]))[:8]
    rows = [
        [
            _names(row["pair"]),
            *(" / ".join(percent(x) for x in row[method]["fidelity"]) for method in methods),
        ]
        for row in pairs
    ]
    return table(["worst pairs: left / right", *(METHODS[method].label for method in methods)], rows)


def _passages(figures: dict) -> str:
    rows = []
    for method, means in figures["means"].items():
        left, right = np.array(means["passage"])
        curve = right - left
        single = np.array([row[method]["backward"] for row in figures["pairs"]])
        edge = np.flatnonzero(np.diff(curve) > 0.1 * (curve[-1] - curve[0]))
        weights = np.array(figures["weights"][0])
        inside = backward(curve[(weights > 0) & (weights < 1)])
        cells = [
            percent(inside),
            percent(backward(curve)),
            percent(np.median(single)),
            percent(single.max()),
            len(edge),
        ]
        rows.append([METHODS[method].label, *cells])
    header = [
        "passage",
        "backward, mean of all pairs, inside the ramp",
        "over the width",
        "median pair",
        "worst pair",
        "columns that carry > 10 % of it",
    ]
    return table(header, rows)


def _middles(figures: dict) -> str:
    rows = []
    weights = np.array(figures["weights"])
    middle = ((weights > 0.25) & (weights < 0.75)).all(0)
    ends = (weights >= 0.9).any(0)
    for method, means in figures["means"].items():
        seen = [np.mean([row[method]["middle"][kind] for row in figures["pairs"]]) for kind in _KINDS]
        sharp = np.array(means["sharpness"])
        rows.append([METHODS[method].label, *map(percent, seen), f"{sharp[middle].mean() / sharp[ends].mean():.2f}"])
    return table(["the middle is", *_KINDS, "sharpness, middle / ends"], rows)


_KINDS = ("one of the pair", "a third", "other")


def _distances(figures: dict) -> str:
    """Levels of 255 between a method's images and those of blended conditioning."""
    rows = []
    for method in figures["means"]:
        found = [row[method]["distance"] for row in figures["pairs"]]
        cells = [f"{np.mean([d[where] for d in found]):.1f}" for where in ("pinned", "transition", "seeds")]
        rows.append([METHODS[method].label, *cells])
    return table(["levels of 255 from conditioning", "pinned", "transition", "its own next seed"], rows)


def _names(pair: Sequence[int]) -> str:
    return " – ".join(CONCEPTS[i] for i in pair)


def _decoder(figures: dict) -> str:
    keys = [key for key in figures["pairs"][0] if key != "pair"]
    rows = [
        [_names(row["pair"]), *(" / ".join(percent(x) for x in row[key]) for key in keys)] for row in figures["pairs"]
    ]
    mean = [percent(np.mean([row[key] for row in figures["pairs"]])) for key in keys]
    return table(["right, pinned patches", *keys], [*rows, ["mean", *mean]])


def _same_meaning(figures: dict) -> str:
    methods = ("plain", "conditioning", "outputs", "predictions")
    rows = []
    for kind, found in figures["kinds"].items():
        worst = min(found, key=lambda row: row["conditioning"] - row["plain"])
        example = " → ".join(prompt if len(prompt) < 60 else prompt[:57] + "…" for prompt in worst["prompts"])
        means = [percent(np.mean([row[method] for row in found])) for method in methods]
        lowest = [percent(worst[method]) for method in methods]
        rows += [
            [f"{kind}: mean of {len(found)}", *means],
            [f"{kind}, worst: {example}", *lowest],
        ]
    return table(["right in the middle", *methods], rows)


def _adjectives(figures: dict) -> str:
    rows = []
    for method in ("conditioning", "outputs", "predictions"):
        found = [row[method] for row in figures["concepts"]]
        curves = np.array([f["luminance"] for f in found])
        single = [backward(curve) for curve in curves]
        cells = [
            percent(np.mean([f["share"] for f in found])),
            f"{curves.mean(0)[0]:.3f}",
            f"{curves.mean(0)[-1]:.3f}",
        ]
        cells += [percent(backward(curves.mean(0))), percent(np.median(single)), percent(max(single))]
        rows.append([METHODS[method].label, *cells])
    plain = percent(np.mean([row["plain"] for row in figures["concepts"]]))
    header = [
        f"dark – bright (right alone: {plain})",
        "right in the middle",
        "luminance left",
        "luminance right",
        "backward, mean curve",
        "median concept",
        "worst",
    ]
    return table(header, rows)


def _long_prompts(figures: dict) -> str:
    rows = []
    for method in ("conditioning", "outputs"):
        found = [row[method] for row in figures["pairs"]]
        left, right = np.mean([f["fidelity"] for f in found], 0)
        curves = [np.subtract(*f["passage"][::-1]) for f in found]
        seen = [percent(np.mean([f["middle"][kind] for f in found])) for kind in _KINDS]
        cells = [percent(left), percent(right), percent(backward(np.mean(curves, 0))), *seen]
        rows.append([METHODS[method].label, *cells])
    alone = percent(np.mean([row["alone"] for row in figures["pairs"]]))
    header = [f"154 | 77 tokens (long alone: {alone})", "fidelity left", "right", "backward", *_KINDS]
    return table([cell.replace("154 |", "154 and") for cell in header], rows)


def _extrapolation(figures: dict) -> str:
    return "\n".join([_adjective_axis(figures["adjective"]), _concept_axis(figures["concepts"])])


def _adjective_axis(concepts: list[dict]) -> str:
    weights = sorted(concepts[0]["weights"], key=float)
    rows = []
    for method in ("conditioning", "outputs"):
        for what, pick in (
            ("luminance", lambda f: f["luminance"]),
            ("share right", lambda f: f["shares"][0]),
        ):
            means = [np.mean([pick(_of(row["weights"][w], method)) for row in concepts]) for w in weights]
            rows.append([METHODS[method].label, what, *(f"{mean:.3f}" for mean in means)])
    return table(["base “a …”, concept “a dark …”", "weight", *weights], rows)


def _concept_axis(pairs: list[dict]) -> str:
    weights = sorted(pairs[0]["weights"], key=float)
    rows = []
    for method in ("conditioning", "outputs"):
        for side, what in enumerate(("share base", "share concept")):
            means = [np.mean([_of(row["weights"][w], method)["shares"][side] for row in pairs]) for w in weights]
            rows.append([METHODS[method].label, what, *map(percent, means)])
    return table(["base A, concept B", "weight", *weights], rows)


def _of(figures: dict, method: str) -> dict:
    """At weights 0 and 1 there is one result for all methods."""
    return figures.get(method, figures)


def _motion(figures: dict) -> str:
    rows = []
    for label, found in figures["noises"].items():
        ratios = found["ratio"]
        fluid, anchored = np.mean(found["fluid"]), np.mean(found["anchored"])
        cells = [
            f"{fluid:.2f}",
            f"{anchored:.3f}",
            f"{fluid / anchored:.1f}",
            f"{min(ratios):.1f} – {max(ratios):.1f}",
        ]
        rows.append([label, *cells])
    return table(["noise", "fluid (levels)", "anchored", "fluid ÷ anchored", "over seeds"], rows)


_TABLES = {
    "ramps": _ramps,
    "wide": _ramps,
    "decoder": _decoder,
    "same_meaning": _same_meaning,
    "adjectives": _adjectives,
    "long_prompts": _long_prompts,
    "extrapolation": _extrapolation,
    "motion": _motion,
}
