"""Concept prompts through the host's parser, and what is left of the host's own."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_masknoise.scene import Scene
from tests.standin.test_blending import LONG, scene


@pytest.fixture
def encode(host):
    """The concepts' prompts of a scene, encoded for a job of ten steps."""

    def encoded(values, **options):
        made = host.prompts.ConceptPrompts(Scene.parse(values))
        p = host.job(steps=10, **options)
        p.prompts, p.negative_prompts, p.extra_network_data = [p.prompt], [""], {}
        p.setup_conds()
        made.encode(p)
        return made, p

    return encoded


def first(made, step):
    """The first part of the first prompt at a step."""
    return next(iter(made.at(step)[0].values()))[0]


def test_networks_are_taken_out_of_the_prompts(host):
    networks = {}
    plain = host.prompts.without_networks(["a <lora:oak:1> tree", "sea", "<hypernet:fish> dull"], networks)
    assert list(plain.values()) == ["a  tree", "sea", " dull"]
    assert {kind: [entry.items for entry in entries] for kind, entries in networks.items()} == {
        "lora": [["oak", "1"]],
        "hypernet": [["fish"]],
    }


def test_comments_are_taken_out_of_the_prompts(host):
    """Where the host takes them out of its own, and with the networks in them."""
    text = "a tree # <lora:oak:1> or two"
    networks = {}
    host.shared.opts.enable_prompt_comments = True
    assert host.prompts.without_networks([text], networks) == {text: "a tree \n"}
    assert not networks
    host.shared.opts.enable_prompt_comments = False
    assert host.prompts.without_networks([text], networks) == {text: "a tree #  or two"}


def test_tags_of_networks_that_are_not_present(host):
    def networks(text):
        return host.extra_networks.parse_prompt(text)[1]

    wanted = networks("<lora:oak:1><lora:foam:0.5:0.2><lora:oak:2><hypernet:oak>")
    assert host.prompts.network_tags(wanted, {}) == "<lora:oak:1><lora:foam:0.5:0.2><hypernet:oak>"
    assert host.prompts.network_tags(wanted, networks("<lora:oak:0.1>")) == "<lora:foam:0.5:0.2><hypernet:oak>"
    assert host.prompts.network_tags(wanted, wanted) == host.prompts.network_tags({}, {}) == ""


def test_the_same_prompt_is_the_same_object_at_every_step(encode):
    made, _ = encode(scene("[green:blue:4] tree AND sea:0.5", {"prompt": "cat", "negative": "dull"}))
    steps = [made.at(step) for step in range(11)]
    first, second = zip(*(positive.values() for positive, _ in steps), strict=True)
    assert len({id(parts[0]) for parts in first}) == 2  # until step 4, and from then on
    assert first[4][0] is first[0][0] is not first[5][0]
    assert len({id(parts[0]) for parts in second}) == 1
    assert {one.weight for one in first[0]} == {1.0, 0.5}
    assert all(list(negatives) == ["dull"] and negatives["dull"] is steps[0][1]["dull"] for _, negatives in steps)
    assert (made.part_count, made.weighted) == (2, True)


def test_weights_and_parts_of_plain_prompts(encode):
    assert (encode(scene("cat"))[0].part_count, encode(scene("cat"))[0].weighted) == (1, False)
    assert (encode(scene())[0].part_count, encode(scene())[0].weighted) == (1, False)
    assert encode(scene("a:0.5 "))[0].weighted


def test_prompts_are_encoded_one_at_a_time(host, encode):
    """The host fills up those that it encodes together."""
    made, _ = encode(scene("cat", LONG))
    (short,), (long,) = made.at(0)[0].values()
    assert (len(short.context), len(long.context)) == (5, 15)


def test_nothing_is_encoded_again_until_something_changes(host, encode, monkeypatch):
    made, p = encode(scene("cat", {"prompt": "[dog:1]", "negative": "dull"}))
    calls, original = [], type(host.model).get_learned_conditioning

    def counted(self, texts):
        calls.append(list(texts))
        return original(self, texts)

    monkeypatch.setattr(type(host.model), "get_learned_conditioning", counted)
    before = first(made, 0)
    made.encode(p)
    assert not calls and first(made, 0) is before
    host.shared.sd_model = host.shared.checkpoints["refiner"]
    made.encode(p)
    assert len(calls) == 3 and first(made, 0) is not before
    host.shared.sd_model = host.model


def test_the_hires_pass_has_steps_and_a_size_of_its_own(host, monkeypatch):
    host.start(xl=True)
    made = host.prompts.ConceptPrompts(Scene.parse(scene("[cat:dog:1.5]")))
    p = host.job(steps=4, enable_hr=True, hr_second_pass_steps=6, sampler_name="Heun", hr_sampler_name="Euler")
    p.prompts, p.negative_prompts, p.extra_network_data, p.hr_extra_network_data = ["a"], [""], {}, {}
    p.setup_conds()
    p.init()
    made.encode(p)
    assert first(made, 0) is first(made, 8)
    before = first(made, 0)
    p.is_hr_pass = True
    made.encode(p)
    assert first(made, 3) is not first(made, 4)
    second = first(made, 0)
    assert torch.equal(before.context, second.context)
    assert not torch.equal(before.pooled, second.pooled), "the vector says the size"


def test_as_given(host, encode):
    made, p = encode(scene("cat"))
    (parts,), _ = made.base(p.c, p.uc, 0)
    row = p.c.batch[0][0].schedules[0].cond
    assert made.as_given(parts[0], row.clone()) is parts[0]
    assert made.as_given(parts[0], torch.cat([row, row[-1:]])) is parts[0], "filled up by the host"
    changed = made.as_given(parts[0], row + 1)
    assert torch.equal(changed.context, row + 1) and changed.weight == parts[0].weight
    assert torch.equal(made.as_given(parts[0], row[:2]).context, row[:2])


@given(
    ends=st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True).map(sorted),
    step=st.integers(0, 15),
)
def test_the_active_cond_is_the_one_that_the_host_picks(host, ends, step):
    from modules import prompt_parser

    entries = [prompt_parser.ScheduledPromptConditioning(end, torch.full((2, 3), float(end))) for end in ends]
    (expected,) = prompt_parser.reconstruct_cond_batch([entries], step)
    assert torch.equal(host.prompts.active(entries, step), expected)


def test_half_precision_is_encoded_as_it_is(host):
    cond = torch.randn(3, 8).half()
    encoded = host.prompts.Encodings().one({"crossattn": cond, "vector": cond[0]})
    assert encoded.context.dtype == encoded.pooled.dtype == torch.float32
    assert torch.equal(encoded.context.half(), cond)


def test_the_width_of_sdxl_s_sizes(host):
    assert host.prompts.size_embedding_width(host.model) == 0
    host.start(xl=True)
    assert host.prompts.size_embedding_width(host.model) == 12
    embedder = host.model.conditioner.embedders[1]
    refiner = SimpleNamespace(conditioner=SimpleNamespace(embedders=[
        embedder, type(embedder)("aesthetic_score"),
    ]))  # fmt: skip
    assert host.prompts.size_embedding_width(refiner) == 6
    host.start(xl=True, forge="unet")
    assert host.prompts.size_embedding_width(host.model) == 12
    refiner = SimpleNamespace(embedder=SimpleNamespace(dim=2))
    assert host.prompts.size_embedding_width(refiner) == 10


@pytest.mark.parametrize("lengths", [(5, 5), (5, 15), (15, 5), (3, 8)])
def test_the_shorter_is_filled_up_with_the_empty_prompt(host, lengths):
    cond, uncond = (torch.randn(2, length, 8) for length in lengths)
    padded = host.prompts.padded_alike(cond, uncond)
    empty = host.model.cond_stage_model_empty_prompt[0]
    for before, after in zip((cond, uncond), padded, strict=True):
        assert after.shape == (2, max(lengths), 8)
        assert torch.equal(after[:, : before.shape[1]], before)
        rest = after[:, before.shape[1] :]
        assert torch.equal(rest, empty.repeat(4, 1)[: rest.shape[1]].expand_as(rest))
    host.model.cond_stage_model_empty_prompt, kept = None, host.model.cond_stage_model_empty_prompt
    try:
        longer = host.prompts.padded_alike(cond, uncond)
    finally:
        host.model.cond_stage_model_empty_prompt = kept
    for before, after in zip((cond, uncond), longer, strict=True):
        assert torch.equal(after[:, before.shape[1] :], before[:, -1:].expand_as(after[:, before.shape[1] :]))
