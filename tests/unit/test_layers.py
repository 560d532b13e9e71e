"""Noise that only some cross-attention layers see."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.attention import AttentionPass, Row, shares
from lib_masknoise.conditioning import Encoded, condition
from lib_masknoise.maps import Maps
from lib_masknoise.noise.feature import Subspace
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.scene.layers import canonical, check, opened, tags_of
from tests.materialised import materialised_attention

SD1 = {"in1": 0, "in4": 1, "in7": 2, "mid": 3, "out3": 2, "out6": 1, "out11": 0}
SDXL = {"in4": 1, "in7": 2, "mid": 2, "out0": 2, "out3": 1}
TAGS = tags_of(SD1)
SIZE = (4, 6)


def group(levels: dict[str, int], name: str) -> set[str]:
    return {block for block, tags in tags_of(levels).items() if name in tags}


def test_groups_follow_the_resolution_at_which_a_network_sees_its_text():
    assert group(SD1, "fine") == {"in1", "out11"}
    assert group(SD1, "middle") == {"in4", "out6"}
    assert group(SD1, "coarse") == {"in7", "mid", "out3"}
    assert group(SDXL, "fine") == {"in4", "out3"}
    assert group(SDXL, "middle") == set()
    assert group(SDXL, "coarse") == {"in7", "mid", "out0"}


@given(st.sampled_from(["coarse", "middle", "fine", "mid", "out3", "in1-4", "in0-9,out9-11", "fine,mid"]))
def test_text_and_layers_agree(text):
    text = canonical(text)
    expected = {
        block
        for block, tags in TAGS.items()
        for part in text.split(",")
        if part in tags
        or "-" in part
        and block.startswith(part[:2])
        and int(part.strip("inout").split("-")[0]) <= int(block.strip("inout") or -1) <= int(part.split("-")[1])
    }
    assert {block for block, tags in TAGS.items() if opened(text, tags)} == expected
    assert all(opened("all", tags) for tags in TAGS.values())


def test_layers_that_a_model_lacks_are_refused_where_the_noise_acts():
    noise = {"concept": {"strength": 1, "layers": "middle,out9"}, "feature": {"layers": "middle"}}
    scene = Scene.parse({"noise": noise})
    try:
        check(scene.noise, tags_of(SDXL).values())
    except SceneError as error:
        (problem,) = error.problems
    assert problem.path == "noise.concept.layers"
    assert problem.message == (
        'expected "all" or layers of this model, which are coarse, fine, in4, in7, mid, out0, out3; got "middle, out9"'
    )
    check(scene.noise, [*TAGS.values(), frozenset({"out9"})])
    check(scene.replace({"noise.concept.strength": 0}).noise, [])


# --- In the attention

DIM, HEADS, TOKENS = 8, 2, 5
NOISES = {"concept": {"strength": 0.8, "rank": 3}, "feature": {"strength": 0.7, "dimensions": "1-5"}}


def encoded(seed: int) -> Encoded:
    return Encoded(torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(seed)))


def conditioned(noise: dict, seeds=(3, 4), subspaces=None):
    scene = Scene.parse({"concepts": [{"prompt": "a", "mask": {"kind": "split", "from": 0.5}}], "noise": noise})
    base, concepts = encoded(0), {"a": encoded(1)}
    return condition(Maps(scene, SIZE), base, concepts, [0] * len(seeds), list(seeds), subspaces)


def attended(c, tags: dict, layer: str, dtype=torch.float32):
    """One layer of a pass, and the oracle's of what that layer is to see."""
    draw = torch.Generator().manual_seed(9)
    w_k, w_v = (torch.randn(DIM, DIM, dtype=dtype, generator=draw) for _ in "kv")
    q = torch.randn(2, SIZE[0] * SIZE[1], DIM, dtype=dtype, generator=draw)
    attention, rows = AttentionPass(), shares([Row(c, 0), Row(c, 1)])
    attention.tags = tags
    attention.plan([c])
    asked = attention.wanted(layer, rows, q).stacked
    attention.take(layer, asked @ w_k.T, asked @ w_v.T, HEADS)
    return attention.attend(layer, q, rows, SIZE), lambda seen: materialised_attention(q, seen, SIZE, w_k, w_v, HEADS)


texts = st.sampled_from(["all", "coarse", "fine", "middle,mid", "in1-4", "out0-20"])


@settings(max_examples=30, deadline=None)
@given(texts, texts, st.sampled_from(sorted(TAGS)))
def test_each_layer_sees_the_noises_that_are_open_to_it_exactly(concept, feature, layer):
    gates = {"concept": concept, "feature": feature}
    noise = {name: {**own, "layers": gates[name]} for name, own in NOISES.items()}
    open_noise = {name: own for name, own in NOISES.items() if opened(gates[name], TAGS[layer])}
    ours, oracle = attended(conditioned(noise), TAGS, layer)
    alone, _ = attended(conditioned(open_noise), {}, layer)
    assert torch.equal(ours, alone)
    assert torch.allclose(ours, oracle(conditioned(open_noise)), rtol=1e-5, atol=1e-5)


def test_all_layers_alike_costs_nothing():
    c = conditioned(NOISES)
    assert list(c.variants.values()) == [c] and c.seen_by(TAGS["mid"]) is c


def test_layers_without_a_name_see_no_noise_that_is_for_others():
    c = conditioned({"feature": {**NOISES["feature"], "layers": "coarse"}})
    assert c.seen_by(frozenset()).offset is None


# --- Directions that differ from layer to layer

coarse, fine = (torch.randn(2, DIM, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
STYLE = {"style": Subspace((("coarse", coarse), ("fine", fine)))}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=2), st.sampled_from(["all", "coarse", "fine,in4"]))
def test_a_subspace_has_a_part_for_each_of_its_layers(seeds, layers):
    noise = {"feature": {"strength": 0.7, "dimensions": "style", "layers": layers}}
    c = conditioned(noise, seeds, STYLE)
    known = {"coarse": coarse, "fine": fine}
    for tags in TAGS.values():
        seen = c.seen_by(tags).offset
        own = next((known[name] for name in known if name in tags and opened(layers, tags)), None)
        if own is None:
            assert seen is None
            continue
        directions = seen.directions.flatten(0, 1)
        assert torch.linalg.matrix_rank(torch.cat([directions, own]), atol=1e-4) == 2  # nothing outside the subspace
        assert len(seen.directions) == len(set(seeds))
        assert torch.equal(c.offset.fields, seen.fields)
    # The same mixture in all layers: what a direction is does not depend on who looks.
    if layers == "all":
        mixed = [c.seen_by(TAGS[block]).offset.directions @ torch.linalg.pinv(own) for block, own in
                 (("mid", coarse), ("in1", fine))]  # fmt: skip
        assert torch.allclose(*mixed, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(["style", "0-3", "all"]), st.floats(0.5, 4), st.floats(0.1, 4))
def test_what_a_mask_holds_sees_no_feature_noise(seed, dimensions, strength, exponent):
    noise = {"exponent": exponent, "feature": {"strength": strength, "dimensions": dimensions, "layers": "coarse"}}
    fields = conditioned(noise, [seed], STYLE).offset.fields
    held = Maps(Scene.parse({"concepts": [{"prompt": "a", "mask": {"kind": "split", "from": 0.5}}]}), SIZE).pins()
    assert (fields[:, :, held[0] == 1] == 0).all()
    assert (fields[:, :, held[0] < 1] != 0).any()


def test_a_name_that_nothing_is_known_of_is_refused_with_what_to_do():
    noise = {"feature": {"strength": 0.7, "dimensions": "layout"}}
    try:
        conditioned(noise, subspaces=STYLE)
    except SceneError as error:
        (problem,) = error.problems
    assert problem.path == "noise.feature.dimensions"
    assert "calibrate --style" in problem.message


def test_a_profile_of_another_kind_of_model_is_refused():
    other = {"style": Subspace((("coarse", torch.zeros(2, DIM + 1)),))}
    try:
        conditioned({"feature": {"strength": 0.7, "dimensions": "style"}}, subspaces=other)
    except SceneError as error:
        (problem,) = error.problems
    assert problem.message == "the model's profile has 9 dimensions, the model 8"
