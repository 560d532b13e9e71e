"""How `bench.style` compares the directions that two halves of the prompts give."""

import pytest
import torch

pytest.importorskip("diffusers")

from bench.style import RANKS, overlap_of_effects
from lib_masknoise.calibrate import style

GROUPS = ("coarse", "fine")
CANDIDATES, PICTURES, WIDTH = 8, 3, 40
NUMBER = CANDIDATES * len(GROUPS)


def responses(seed: int) -> style.Responses:
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(PICTURES, NUMBER, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return style.Responses(*parts)


def both(first: style.Responses, second: style.Responses) -> style.Responses:
    """Responses to the candidates of both halves joined: group by group, the first half's before the second's."""

    def joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        own = [part.unflatten(1, (len(GROUPS), CANDIDATES)) for part in (one, other)]
        return torch.cat(own, dim=2).flatten(1, 2)

    return style.Responses(joined(first.style, second.style), joined(first.layout, second.layout))


def overlaps(tmp_path, first: style.Responses, second: style.Responses) -> dict:
    """Of what two halves found, as measured responses of both, which the file has already."""
    torch.save(both(first, second), tmp_path / "both.pt")
    basis = torch.zeros(CANDIDATES, 4)
    halves = ((basis, GROUPS, own) for own in (first, second))
    return overlap_of_effects(None, [], *halves, file=tmp_path / "both.pt")


def test_candidates_that_do_the_same_overlap_wholly(tmp_path):
    """Also where the halves name them in another order: what they do counts."""
    own = responses(0)
    order = torch.randperm(CANDIDATES, generator=torch.Generator().manual_seed(1))
    order = torch.cat([order + CANDIDATES * k for k in range(len(GROUPS))])
    other = style.Responses(own.style[:, order], own.layout[:, order])
    found = overlaps(tmp_path, own, other)
    for name in ("style", "layout"):
        assert list(found[name]) == [str(rank) for rank in RANKS]
        assert all(value == pytest.approx(1, abs=1e-6) for value in found[name].values())


def test_candidates_whose_effects_are_at_right_angles_do_not_overlap(tmp_path):
    empty = torch.zeros(PICTURES, NUMBER, WIDTH, dtype=torch.float64)
    one, other = responses(0), responses(1)
    apart = [
        style.Responses(*(torch.cat(pair, dim=2) for pair in pairs))
        for pairs in (
            ((one.style, empty), (one.layout, empty)),
            ((empty, other.style), (empty, other.layout)),
        )
    ]
    found = overlaps(tmp_path, *apart)
    for name in ("style", "layout", "at random"):
        assert all(value == pytest.approx(0, abs=1e-6) for value in found[name].values())


def test_chance_rises_with_the_rank(tmp_path):
    """Mixtures by chance of one set of effects overlap by rank/number on average."""
    own = responses(0)
    found = overlaps(tmp_path, own, own)["at random"]
    values = [found[str(rank)] for rank in RANKS]
    assert values == sorted(values)
    for rank, value in zip(RANKS, values, strict=True):
        assert value == pytest.approx(rank / NUMBER, rel=0.6)
