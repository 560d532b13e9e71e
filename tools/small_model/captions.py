"""Captions of the training pictures, and the words the text encoder knows.

A caption is a list of 77 token ids. Only the tokens that captions can use get an embedding; every other
token of the CLIP vocabulary embeds to zero, so unknown words change a prompt only through their place in
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from transformers import CLIPTokenizer

from .patch_classifier import CONCEPTS
from .textures import ADJECTIVES

ALIASES = {
    "wheat field": ("wheat",), "night sky": ("night", "stars"), "brick wall": ("bricks", "brick"),
    "meadow with flowers": ("meadow", "flowers", "flower meadow"),
    "storm clouds": ("storm", "stormy clouds", "clouds"), "sunset sky": ("sunset",), "ocean": ("sea",),
    "ice": ("cracked ice",), "desert": ("sand dunes",), "snow": ("snow field",), "forest": ("trees",),
    "lava": ("molten lava",), "coral": ("coral reef",), "marsh": ("swamp",),
}  # fmt: skip
OTHER_WORDS = "a photo of an next to and , . the with in on left right top bottom of"
STARTS = ("a photo of", "a picture of", "a view of", "a large area of")
JOINS = (" next to ", ", ", " and ", " beside ", " with ")
TAILS = (", soft light", ", fine detail", ", seen from above", ", in the morning")
LENGTH = 77


@dataclass(frozen=True)
class Subject:
    """What a caption names: a concept and the manner it is drawn in."""

    concept: int
    adjective: int = 0

    def words(self, random: Random) -> str:
        """The subject's name, now and then an alias, with its adjective."""
        name = CONCEPTS[self.concept]
        if random.random() < 0.15:
            name = random.choice(ALIASES[name])
        return f"{ADJECTIVES[self.adjective]} {name}".strip()


class Captioner:
    """Draws captions. random: the stream of all its choices."""

    def __init__(self, tokenizer: CLIPTokenizer, random: Random):
        self.random, self._tokenizer = random, tokenizer
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._cache: dict[str, list[int]] = {}
        self.known = self._known_tokens()

    def _known_tokens(self) -> list[int]:
        phrases = [*CONCEPTS, *ADJECTIVES[1:], *STARTS, *JOINS, *TAILS, OTHER_WORDS]
        phrases += [alias for aliases in ALIASES.values() for alias in aliases]
        return sorted({token for words in phrases for token in self.tokens(words)} | {self.begin, self.end})

    def tokens(self, words: str) -> list[int]:
        """Token ids of `words`, without begin and end."""
        if words not in self._cache:
            self._cache[words] = self._tokenizer(words, add_special_tokens=False)["input_ids"]
        return self._cache[words]

    def pad(self, tokens: list[int]) -> list[int]:
        """77 ids: begin, the tokens, end up to the length."""
        return ([self.begin, *tokens[: LENGTH - 2]] + [self.end] * LENGTH)[:LENGTH]

    @property
    def empty(self) -> list[int]:
        """The caption without words; guidance steers away from it."""
        return self.pad([])

    def _article(self, words: str) -> str:
        right = "an" if words[0] in "aeiou" else "a"
        return f"{self.random.choice(('a', 'a', right))} {words}"

    def _filler(self) -> list[int]:
        """One to four tokens that mean nothing, so that unknown words in a prompt do no harm."""
        draws = [self.random.randrange(1000, 49400) for _ in range(self.random.randint(1, 4))]
        return [token for token in draws if token not in self.known]

    def _one(self, subject: Subject) -> str:
        words, u = subject.words(self.random), self.random.random()
        if u < 0.5:
            return self._article(words)
        if u < 0.85:
            return f"{self.random.choice(STARTS)} {self._article(words)}"
        return words

    def _several(self, subjects: list[Subject]) -> str:
        join = self.random.choice(JOINS)
        parts = [self._article(subject.words(self.random)) for subject in subjects]
        start = f"{self.random.choice(STARTS)} " if self.random.random() < 0.2 else ""
        return start + join.join(parts)

    def caption(self, *subjects: Subject) -> list[int]:
        """Token ids of a caption of one or several subjects; one in ten is empty."""
        if self.random.random() < 0.1:
            return self.empty
        words = self._one(subjects[0]) if len(subjects) == 1 else self._several(list(subjects))
        if self.random.random() < 0.15:
            words += self.random.choice(TAILS)
        tokens = list(self.tokens(words))
        if self.random.random() < 0.15:
            filler = self._filler()
            tokens = filler + tokens if self.random.random() < 0.5 else tokens + filler
        return self.pad(tokens)
