"""What a picture of the world shows, and captions that say so.

A `Spec` says it in numbers and words of the world: one place with adjectives, an even mixture of two places, one
beside the other, or one turning into the other. `Captions` puts it into words: the same picture has many captions
(synonyms, orders, long ones of two chunks), and none of them names what training holds out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from random import Random

import torch
from transformers import CLIPTokenizer

from .world import ATTRIBUTES, BY_NAME, HELD_OUT_SPAN, MIDDLES, NAMED, PLACES, adjusted, between, stray, withheld

LENGTH = 77
CHUNK = LENGTH - 2
BREAK = " BREAK "  # between the chunks of a caption, as the WebUIs write it


@dataclass(frozen=True)
class Adjective:
    """Words that set attributes. before: they stand before the noun, else after it; apt: for which places."""

    words: tuple[str, ...]
    changes: Mapping[str, float]
    before: bool = True
    apt: str = "ground"


def _adjective(words: str, apt: str = "ground", before: bool = True, **changes: float) -> Adjective:
    return Adjective(tuple(words.split(", ")), changes, before, apt)


# apt: ground (all but skies), sky, all, plants, water, bare (no plants, no water), stone
ADJECTIVES = (
    _adjective("at night, by moonlight", "all", False, light=0.1),
    _adjective("at dusk, in the evening, in the last light", "all", False, light=0.4),
    _adjective("at noon, in bright daylight", "all", False, light=1),
    _adjective("in the rain clouds, under heavy clouds", "ground", False, cloud=0.95),
    _adjective("half-flooded, half under water", "dry", wetness=0.5, wind=0.1),
    _adjective("flooded, drowned", "dry", wetness=0.72, wind=0.1),
    _adjective("snowy, snow-covered", "warm", temperature=0.24),
    _adjective("frosty, frozen", "warm", temperature=0.33),
    _adjective("sparse, thin", "plants", plants=0.5),
    _adjective("tall, high", "plants", height=0.7),
    _adjective("short, low", "plants", height=0.12),
    _adjective("golden, yellow", "plants", hue=0.95),
    _adjective("green, lush", "plants", hue=0.05),
    _adjective("flowering, blooming", "plants", bloom=1),
    _adjective("fine, small-scale", "ground", scale=0.12),
    _adjective("coarse, large-scale", "ground", scale=0.88),
    _adjective("rugged, rough", "bare", relief=0.95),
    _adjective("flat, smooth", "bare", relief=0.1),
    _adjective("windy, wind-blown", "water", wind=0.95),
    _adjective("calm, still", "water", wind=0.03),
    _adjective("grassy, overgrown", "bare", plants=0.6, height=0.25),
    _adjective("foggy, misty", "ground", fog=0.7),
    _adjective("cloudy, clouded", "sky", cloud=0.6),
    _adjective("clear, cloudless", "sky", cloud=0.03),
    _adjective("slanting, diagonal", "rows", direction=0.25, grain=0.9),
    _adjective("level, horizontal", "rows", direction=0.0, grain=0.9),
    _adjective("upright, vertical", "rows", direction=0.5, grain=0.9),
)
BY_WORD = {adjective.words[0]: adjective for adjective in ADJECTIVES}
# Not shown and not named in training, to ask later whether the model puts them together by itself.
HELD_OUT_PAIRS = frozenset({
    ("wheat field", "snowy"), ("wheat field", "half-flooded"), ("meadow", "at night"), ("forest", "golden"),
    ("desert", "flooded"), ("canyon", "foggy"), ("lake", "at dusk"), ("city wall", "grassy"), ("beach", "snowy"),
    ("reed bed", "flowering"), ("rock", "half-flooded"), ("lavender field", "foggy"),
})  # fmt: skip
VIEW_SKY = (0.28, 0.45)
STARTS = ("", "", "a photo of ", "a picture of ", "a painting of ")
VIEWS = ("a wide view of {}", "{} under a wide sky", "a landscape with {}", "{} and the horizon")
BESIDES = ("{} beside {}", "{} next to {}", "{} on the left, {} on the right", "left {}, right {}")
TURNS = ("{} turning into {}", "{} fading into {}", "from {} to {}", "{} that becomes {}")
MIXES = ("something between {} and {}", "half {}, half {}", "{} blended with {}", "a mixture of {} and {}")
MOSTLY = ("mostly {}, a little {}", "{} with a touch of {}")
DETAILS = ("sharp, detailed", "soft light", "seen from nearby", "a quiet mood", "nobody there", "wide and empty")
EXTRA_WORDS = "a an the of and with in on , . : left right top bottom photo picture painting"


def apt(adjective: Adjective, place: str) -> bool:
    """Whether an adjective says something of a place that its name does not say yet."""
    a = dict(zip(ATTRIBUTES, NAMED[place].attributes.tolist(), strict=True))
    sky = a["sky"] == 1
    kinds = {
        "all": True,
        "sky": sky and a["light"] > 0.2,
        "ground": not sky,
        "plants": not sky and a["plants"] >= 0.8,
        "water": a["wetness"] >= 0.9 and a["temperature"] > 0.3,
        "bare": not sky and a["plants"] == 0 and a["wetness"] < 0.3,
        "dry": not sky and a["wetness"] < 0.3 and a["built"] == 0 and a["temperature"] < 0.7,
        "warm": not sky and 0.45 <= a["temperature"] < 0.7,
        "rows": not sky and a["grain"] >= 0.7,
    }
    new = any(abs(a[name] - value) > 0.12 for name, value in adjective.changes.items())
    return kinds[adjective.apt] and new


@dataclass(frozen=True)
class Spec:
    """What a picture shows. kind: alone, mixed, beside or turning.

    a, b: places or middles (b: the second one, to the right where there are sides); t: share of b in a mixture;
    words: first words of the adjectives of a; view: with a horizon.
    """

    a: str
    b: str = ""
    t: float = 0.0
    kind: str = "alone"
    words: tuple[str, ...] = field(default_factory=tuple)
    view: bool = False

    def record(self) -> dict:
        """As JSON; `Spec(**record)` is the spec again."""
        return asdict(self)

    def points(self, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
        """`[K]` attributes of the left and of the right end; equal where all of the picture is the same."""
        first = stray(NAMED[self.a], random)
        for word in self.words:
            first = adjusted(first, BY_WORD[word].changes)
        second = stray(NAMED[self.b], random) if self.b else first
        if self.kind == "mixed":
            first = second = between(first, second, self.t)
        if self.view:
            sky = random.uniform(*VIEW_SKY)
            first, second = (adjusted(p, {"sky": sky}) for p in (first, second))
        return first, second


def allowed(spec: Spec) -> bool:
    """Whether training may show a spec: no held-out pair of words, no held-out middle or way over one."""
    if any((place, word) in HELD_OUT_PAIRS for place in (spec.a, spec.b) for word in spec.words):
        return False
    if any(getattr(NAMED[name], "held_out", False) for name in (spec.a, spec.b) if name):
        return False
    if spec.kind == "turning" and withheld(spec.a, spec.b):
        return False
    low, high = HELD_OUT_SPAN
    return not (spec.kind == "mixed" and withheld(spec.a, spec.b) and low < spec.t < high)


KINDS = {"alone": 0.52, "middle": 0.10, "mixed": 0.20, "turning": 0.18}


def draw(random: Random, kinds: Mapping[str, float] | None = None) -> Spec:
    """A random spec that training may show; all places are equally likely. kinds: weights, as KINDS."""
    kinds = kinds or KINDS
    while True:
        spec = _drawn(random, random.choices(list(kinds), list(kinds.values()))[0])
        if allowed(spec):
            return spec


def _drawn(random: Random, kind: str) -> Spec:
    names = [place.name for place in PLACES]
    if kind == "middle":
        return Spec(random.choice(MIDDLES).name, view=random.random() < 0.15)
    if kind == "alone":
        return with_adjectives(random, random.choice(names))
    a, b = random.sample(names, 2)
    if random.random() < 0.35:  # the ways that have a name in the middle
        a, b = random.sample(random.choice(MIDDLES).parents, 2)
    return Spec(a, b, random.uniform(0.1, 0.9) if kind == "mixed" else 0.0, kind)


def with_adjectives(random: Random, name: str) -> Spec:
    """A place alone with none to two adjectives that fit and do not contradict each other; some with a horizon."""
    fitting = [adjective.words[0] for adjective in ADJECTIVES if apt(adjective, name)]
    words = random.sample(fitting, min(len(fitting), random.choices((0, 1, 2), (0.5, 0.35, 0.15))[0]))
    taken: set[str] = set()
    kept = []
    for word in words:  # two adjectives of the same attribute contradict each other
        if not taken & set(BY_WORD[word].changes):
            kept.append(word)
            taken |= set(BY_WORD[word].changes)
    ground = NAMED[name].attributes[ATTRIBUTES.index("sky")] == 0
    return Spec(name, words=tuple(kept), view=bool(ground) and random.random() < 0.2)


class Captions:
    """Draws captions of specs. random: the stream of all choices."""

    def __init__(self, random: Random):
        self.random = random

    def noun(self, name: str, words: tuple[str, ...] = ()) -> str:
        """A place by one of its names, with an article and adjectives before and after it."""
        pick = self.random.choice
        names = NAMED[name].names
        noun = names[0] if self.random.random() < 0.7 else pick(names)
        adjectives = [BY_WORD[word] for word in words]
        before = " ".join(pick(a.words) for a in adjectives if a.before)
        after = " ".join(pick(a.words) for a in adjectives if not a.before)
        noun = f"{before} {noun}".strip()
        if self.random.random() < 0.85:
            noun = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        return f"{noun} {after}".strip()

    def text(self, spec: Spec) -> str:
        """A caption; two chunks are joined by BREAK."""
        pick, u = self.random.choice, self.random.random()
        first = self.noun(spec.a, spec.words)
        if spec.kind == "alone":
            body = pick(VIEWS).format(first) if spec.view else pick(STARTS) + first
        else:
            body = self._two(spec, first, self.noun(spec.b))
        if u < 0.12:
            body += ", " + ", ".join(self.random.sample(DETAILS, 2))
        if u > 0.94:
            second = self.noun(spec.a, spec.words) if spec.kind == "alone" else self._two(
                spec, self.noun(spec.a, spec.words), self.noun(spec.b))  # fmt: skip
            body = f"{body}, {', '.join(DETAILS)}{BREAK}{second}"
        return body

    def _two(self, spec: Spec, first: str, second: str) -> str:
        pick = self.random.choice
        if spec.kind == "beside":
            return pick(BESIDES).format(first, second)
        if spec.kind == "turning":
            return pick(TURNS).format(first, second)
        middle = next((m for m in MIDDLES if set(m.parents) == {spec.a, spec.b}), None)
        if 0.4 <= spec.t <= 0.6:
            if middle and not middle.held_out and self.random.random() < 0.5:
                return self.noun(middle.name)
            return pick(MIXES).format(first, second)
        more, less = (first, second) if spec.t < 0.5 else (second, first)
        return pick(MOSTLY).format(more, less)

    def every_word(self) -> list[str]:
        """Every phrase captions are made of, for the tokens that get an embedding."""
        phrases = [name for place in NAMED.values() for name in place.names]
        phrases += [word for adjective in ADJECTIVES for word in adjective.words]
        templates = (*STARTS, *VIEWS, *BESIDES, *TURNS, *MIXES, *MOSTLY, *DETAILS)
        return phrases + [t.replace("{}", " ") for t in templates] + [EXTRA_WORDS]


class Tokens:
    """Captions as token ids."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self._tokenizer, self._cache = tokenizer, {}
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def ids(self, text: str) -> list[int]:
        """Ids of `text` without begin and end."""
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def known(self, captions: Captions) -> list[int]:
        """Every id a caption can have, sorted. Words that only held-out names use are among them."""
        return sorted({i for words in captions.every_word() for i in self.ids(words)} | {self.begin, self.end})

    def chunks(self, text: str) -> list[list[int]]:
        """The chunks of a caption, 77 ids each. Raises ValueError for a chunk that is too long."""
        out = []
        for part in text.split(BREAK.strip()):
            ids = self.ids(part.strip().strip(","))
            if len(ids) > CHUNK:
                raise ValueError(f"text: expected at most {CHUNK} tokens between two BREAKs, got {len(ids)}")
            out.append([self.begin, *ids] + [self.end] * (LENGTH - 1 - len(ids)))
        return out


def swapped(spec: Spec) -> Spec:
    """The same with its two sides exchanged."""
    return replace(spec, a=spec.b, b=spec.a, words=())


PLAIN = {name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in (*BY_NAME, *(m.name for m in MIDDLES))}
