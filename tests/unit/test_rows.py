"""Which conditioning each row of a denoiser call gets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.attention import Row, shares
from lib_masknoise.conditioning import Encoded, condition, condition_negative
from lib_masknoise.hosts.webui.rows import CACHED, Picture, Rows
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene

SIZE, TOTAL = (4, 6), 8
MOVING = {
    "concepts": [
        {
            "prompt": "a",
            "mask": {"kind": "rect", "top": 0.5},
            "keyframes": [{"frame": 0, "weight": 0}, {"frame": 7, "weight": 1}],
        },
        {"prompt": "b", "negative": "c", "mask": {"kind": "split", "to": 0.5}},
    ],
    "noise": {"concept": {"strength": 0.5, "rank": 2}, "visual": {"strength": 0.5}},
    "motion": {"kind": "circle"},
    "animation": {"frames": TOTAL},
}


def encoded(value: float, weight: float = 1.0) -> Encoded:
    tokens = torch.randn(3, 5, generator=torch.Generator().manual_seed(int(10 * value)))
    return Encoded(tokens, tokens[0, :2], weight)


CONCEPTS = {"a": [encoded(1)], "b": [encoded(2)]}
NEGATIVES = {"c": encoded(3)}


def rows(*pictures: tuple[int, int], **parts) -> Rows:
    return Rows(Maps(Scene.parse({**MOVING, **parts}), SIZE), [Picture(*picture) for picture in pictures])


def alike(row: Row, expected) -> None:
    """The row sees what a conditioning of a single frame says."""
    for size in (SIZE, (2, 3)):
        level, other = row.conditioning.level(size).pick((row.index,)), expected.level(size)
        assert torch.allclose(level.coefficients[-1], other.coefficients[-1], atol=1e-6)
        assert (level.noise is None) == (other.noise is None)
        assert level.noise is None or torch.allclose(level.noise[-1], other.noise[-1], atol=1e-5)
    assert torch.equal(row.conditioning.contexts, expected.contexts)
    assert torch.allclose(row.pooled, expected.pooled[0])
    if expected.noise is not None:
        directions = row.conditioning.noise.directions
        assert torch.equal(directions[min(row.index, len(directions) - 1)], expected.noise.directions[0])


@settings(max_examples=30, deadline=None)
@given(
    pictures=st.lists(st.tuples(st.integers(1, TOTAL - 2), st.sampled_from([3, 4])), min_size=1, max_size=5),
    bases=st.data(),
)
def test_every_row_sees_its_own_picture_s_frame_seed_and_prompt(pictures, bases):
    prompts = [encoded(5), encoded(6)]
    chosen = [bases.draw(st.sampled_from(prompts)) for _ in pictures]
    made = rows(*pictures)
    positive = made.positive([[base] for base in chosen], CONCEPTS)
    negative = made.negative(chosen, NEGATIVES)
    assert len(positive) == len(negative) == len(pictures)
    for (frame, seed), base, over, under in zip(pictures, chosen, positive, negative, strict=True):
        concepts = {text: one for text, (one,) in CONCEPTS.items()}
        alike(over, condition(made.maps, base, concepts, [frame], [seed]))
        alike(under, condition_negative(made.maps, base, NEGATIVES, [frame]))


def test_parts_come_image_by_image():
    made = rows((1, 3), (2, 3))
    parts = [made.widened([encoded(5), encoded(6, 0.5)], 2), made.widened([encoded(7)], 2)]
    found = made.positive(parts, {"a": [encoded(1), encoded(4)], "b": [encoded(2)]})
    # Frame, base and its weight, first concept, weight of the second concept, which has one part only.
    expected = [(1, 5, 1.0, 1, 1.0), (1, 6, 0.5, 4, 0.0), (2, 7, 1.0, 1, 1.0), (2, 7, 0.0, 4, 0.0)]
    for row, (frame, base, weight, first, other) in zip(found, expected, strict=True):
        concepts = {"a": encoded(first), "b": encoded(2, other)}
        c = condition(made.maps, encoded(base, weight), concepts, [frame], [3])
        alike(row, c)
        assert (row.weight is None) == (c.weight is None)
        assert c.weight is None or torch.allclose(row.weight, c.weight[0])
    assert found[0].weight is None and found[2].weight is None
    # In the upper left corner the second concept is alone: the second row counts nothing there; to its right the base.
    assert found[1].weight[0].tolist() == pytest.approx([0.0] * 3 + [0.5] * 3)


def test_missing_parts_count_nothing_and_stay_the_same_objects():
    made, own = rows((0, 1)), [encoded(5, 2.0)]
    first, second = made.widened(own, 3), made.widened(own, 3)
    assert [one.weight for one in first] == [2.0, 0.0, 0.0]
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert first[1].context is own[0].context
    assert list(made.widened([encoded(1), encoded(2)], 1))[0].context.equal(encoded(1).context)


def test_pictures_with_the_same_prompt_share_a_conditioning_whatever_their_seeds():
    """The contexts are there once; the noise contexts are each row's own."""
    base, other = encoded(5), encoded(6)
    found = rows((1, 3), (2, 3), (3, 4)).positive([[base], [other], [base]], CONCEPTS)
    assert found[0].conditioning is found[2].conditioning is not found[1].conditioning
    assert [row.index for row in found] == [0, 0, 1]
    assert len(found[0].conditioning.noise.directions) == 2
    assert len(shares(found)) == 2


def test_conditionings_last_as_long_as_their_prompts():
    made, base = rows((1, 3)), encoded(5)
    (first,), (again,) = made.positive([[base]], CONCEPTS), made.positive([[base]], CONCEPTS)
    assert first.conditioning is again.conditioning
    (other,) = made.positive([[encoded(5)]], CONCEPTS)
    assert other.conditioning is not first.conditioning


def test_prompts_that_change_at_every_step_do_not_fill_the_memory():
    made = rows((1, 3))
    for step in range(CACHED + 20):
        base = encoded(step)
        (row,) = made.positive([[base]], CONCEPTS)
        made.widened([base], 2)
        assert torch.equal(row.conditioning.contexts[0], base.context)
    assert len(made._known) <= CACHED and len(made._silent) <= CACHED


def test_visual_noise_of_each_picture():
    noise = torch.randn(3, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    moved = rows((1, 3), (2, 3), (1, 9)).visual(noise)
    assert moved.shape == noise.shape
    for i, picture in enumerate([(1, 3), (2, 3), (1, 9)]):
        assert torch.equal(moved[i : i + 1], rows(picture).visual(noise[i : i + 1]))
    same = noise[:1].expand(3, -1, -1, -1)
    first, second, third = rows((1, 3), (2, 3), (1, 9)).visual(same)
    assert not torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(first[..., :3], second[..., :3]), "the second concept holds the left half"
    assert not torch.equal(first[..., 3:], second[..., 3:])


def test_no_visual_noise_gives_the_very_noise():
    noise = torch.randn(1, 4, *SIZE)
    assert rows((1, 3), noise={}).visual(noise) is noise


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8))
def test_shares_are_a_partition_of_the_rows(picks):
    conditionings = [condition(Maps(Scene.parse({}), SIZE), encoded(i), {}) for i in range(3)]
    given_rows = [Row(conditionings[which], index) for which, index in picks]
    found = shares(given_rows)
    assert sorted(place for share in found for place in share.rows) == list(range(len(picks)))
    for share in found:
        for place, index in zip(share.rows, share.picks, strict=True):
            assert given_rows[place] == Row(share.conditioning, index)
    assert len({id(share.conditioning) for share in found}) == len(found)
