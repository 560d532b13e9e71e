"""A blended picture is what the location embeddings, one by one, make of it, however the host calls its U-Net."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lib_masknoise.scene import Scene
from tests.standin import oracle

LEFT = {"kind": "split", "axis": "x", "from": 0.0, "to": 0.5, "feather": 0.4}
LOWER = {"kind": "gradient", "from": [0, 0], "to": [0, 1]}
FULL = {"kind": "rect"}
ROUNDED = 1e-6
"""Float64 up to the float32 of the maps from which the shares of tokens that not every prompt has are computed."""
LONG = "a wide field of golden wheat under a summer sky"


def scene(*concepts, **parts):
    """Concepts by their prompts: the first one's mask is LEFT, the next one's LOWER."""
    named = ({"prompt": one} if isinstance(one, str) else one for one in concepts)
    return {"concepts": [{"mask": (LEFT, LOWER)[i % 2], **one} for i, one in enumerate(named)], **parts}


def covered(prompt, negative="", **parts):
    return {"concepts": [{"prompt": prompt, "negative": negative, "mask": FULL}], **parts}


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    assert ours.shape == expected.shape
    return float((ours - expected).norm() / expected.norm())


@pytest.fixture
def calls(host, monkeypatch):
    """The number of rows of each call of the U-Net."""
    found = []

    def x0(model, x, *args, original=host.processing.sd_samplers.x0):
        found.append(len(x))
        return original(model, x, *args)

    monkeypatch.setattr(host.processing.sd_samplers, "x0", x0)
    return found


# Options of the host, base, concepts, and how many rows each call has: two images, two steps.
PATTERNS = {
    "one call": ({}, "red house", ("green tree", "blue sea"), [4]),
    "a call for each image's rows": ({"batch_cond_uncond": False}, "red house", ("green tree", "blue sea"), [2, 2]),
    "parts in a call of their own": ({"batch_cond_uncond": False}, "a AND b:0.5", ("c AND d", "e"), [2, 2, 2]),
    "base longer than the negative": ({}, LONG, ("green tree", "blue sea"), [4]),
    "concept longer": ({}, "red house", (LONG, "blue sea"), [4]),
    "both longer, in halves": ({"batch_cond_uncond": False}, LONG, (f"{LONG} BREAK it glows", "blue sea"), [2, 2]),
    "padded by the host": ({"pad_cond_uncond": True}, LONG, ("green tree", "blue sea"), [4]),
    "cut by the host": ({"pad_cond_uncond_v0": True}, "red house", ("green tree", LONG), [4]),
}


@pytest.mark.parametrize(
    "name, dtype, bound",
    [
        *((name, torch.float64, 1e-12) for name in PATTERNS),
        *((name, torch.float32, 1e-4) for name in ("one call", "concept longer")),
        *((name, torch.float16, 2e-2) for name in ("one call", "concept longer")),
    ],
)
def test_every_way_of_calling_the_unet(host, calls, name, dtype, bound):
    options, base, concepts, rows = PATTERNS[name]
    host.start(dtype, **options)
    blended = scene(*concepts)
    ours = host.latents(blended, prompt=base, negative_prompt="ugly", batch_size=2)
    assert calls == rows * 2
    pads = next((option for option in options if option.startswith("pad_cond")), None)
    expected = oracle.latents(host.model, blended, [base] * 2, negative="ugly", pictures=[(0, 1), (0, 2)], pads=pads)
    assert error(ours, expected) < max(bound, ROUNDED if LONG in "".join([base, *concepts]) else 0)


def test_unequal_lengths_take_one_call_where_the_host_alone_takes_two(host, calls):
    host.latents(prompt=LONG)
    assert calls == [1, 1] * 2
    calls.clear()
    host.latents(scene("green tree"), prompt=LONG)
    assert calls == [2] * 2


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking is slow
@given(data=st.data())
def test_equals_the_location_embeddings(host, data):
    """Any scene, in any pattern of calls."""
    draw = data.draw
    texts = st.sampled_from(["green tree", "blue sea", LONG, "a AND b:0.5", "[cat:dog:1]", "[sun:0.5]", ""])
    masks = st.sampled_from([LEFT, LOWER, FULL, {"kind": "ellipse"}])
    concept = st.fixed_dictionaries(
        {"prompt": texts, "mask": masks, "weight": st.sampled_from([1.0, 0.5, -0.5, 1.5])},
        optional={"negative": st.sampled_from(["dull", LONG])},
    )
    layers = st.sampled_from(["all", "coarse", "in1,out0", "mid,out1-3"])
    count = draw(st.integers(1, 3))
    job = {
        "concepts": draw(st.lists(concept, max_size=3)),
        "blend": {
            "mode": draw(st.sampled_from(["interpolate", "add"])),
            "preserve_norm": draw(st.booleans()),
            "start": draw(st.sampled_from([0.0, 0.5])),
        },
        "noise": {
            "visual": {"strength": draw(st.sampled_from([0.0, 0.7]))},
            "concept": {"strength": draw(st.sampled_from([0.0, 0.7])), "rank": 2, "layers": draw(layers)},
            "feature": {"strength": draw(st.sampled_from([0.0, 0.7])), "dimensions": "0-2", "layers": draw(layers)},
        },
        "motion": {"kind": "circle"},
        "animation": {"frames": count},
    }
    size = draw(st.sampled_from([(4, 6), (5, 3), (2, 7)]))
    # Outside the window, and where there is nothing to do, the host's own padding counts, which the oracle does not do.
    ours_throughout = job["blend"]["start"] == 0 and not Scene.parse(job).neutral
    pads = draw(st.sampled_from([None, "pad_cond_uncond", "pad_cond_uncond_v0"])) if ours_throughout else None
    host.start(
        torch.float64, draw(st.booleans()), batch_cond_uncond=draw(st.booleans()), **({pads: True} if pads else {})
    )
    prompt, sampler, batch = draw(texts), draw(st.sampled_from(["Euler", "Heun"])), draw(st.integers(1, 3))
    ours = host.latents(
        job, prompt=prompt, negative_prompt="ugly", sampler_name=sampler, batch_size=batch,
        height=8 * size[0], width=8 * size[1],
    )  # fmt: skip
    pictures = [(frame, 1) for frame in range(count)] if count > 1 else [(0, 1 + i) for i in range(batch)]
    expected = oracle.latents(
        host.model, job, [prompt] * len(pictures), negative="ugly", pictures=pictures, sampler=sampler, size=size,
        pads=pads,
    )  # fmt: skip
    assert error(ours, expected) < 1e-4  # where weights cancel, much of the maps' float32 is left


@pytest.mark.parametrize("all_steps", [False, True])
@pytest.mark.parametrize("batched", [True, False])
def test_steps_without_the_negative_prompt(host, calls, batched, all_steps):
    """NGMS: the callback sees the negative rows, the U-Net does not."""
    host.start(torch.float64, batch_cond_uncond=batched, s_min_uncond_all=all_steps)
    blended = scene("green tree AND grass:0.5", LONG)
    ours = host.latents(blended, batch_size=2, steps=4, s_min_uncond=2.5)
    expected = oracle.latents(
        host.model, blended, ["red house"] * 2, pictures=[(0, 1), (0, 2)], steps=4,
        skips=lambda step, sigma: (step % 2 or all_steps) and sigma < 2.5,
    )  # fmt: skip
    assert error(ours, expected) < ROUNDED
    assert sum(calls) == 4 * 4 + 2 * (2 if all_steps else 3)  # 4 sigmas: 4, 3, 2, 1


def test_early_steps_without_the_negative_prompt(host):
    host.start(torch.float64, skip_early_cond=0.3)
    ours = host.latents(scene(LONG), steps=4)
    expected = oracle.latents(host.model, scene(LONG), ["red house"], steps=4, skips=lambda step, _: step / 4 <= 0.3)
    assert error(ours, expected) < ROUNDED


@pytest.mark.parametrize(
    "prompt, negative, xl",
    [
        ("green tree", "", False),
        (LONG, "dull", False),
        (LONG, "dull", True),
        ("green tree", LONG, False),
        ("green tree AND blue sea:0.5", "dull", False),
        ("green tree:0.75 AND a small cat:0.5 AND b:-0.25", "", False),
        ("green tree:0.75 AND a small cat:0.5 AND b:-0.25", "", True),
        ("[green:blue:1] tree", "[dull:grey:0.5]", False),
        ("[green:blue:0.5] tree AND [moon:1]:0.25", "", False),
        ("", "dull", False),
    ],
)
def test_a_concept_that_covers_everything_is_its_prompt(host, prompt, negative, xl):
    """Whatever the base is. Invariant 3."""
    host.start(torch.float64, xl)
    plain = host.latents(prompt=prompt, negative_prompt=negative, steps=3)
    for base in (f"{LONG} BREAK by the river", "x AND y:2 AND z AND w:0.1"):
        ours = host.latents(covered(prompt, negative), prompt=base, negative_prompt="ugly" if negative else "", steps=3)
        assert error(ours, plain) < 1e-12


@pytest.mark.parametrize("setting", ["pad_cond_uncond", "pad_cond_uncond_v0"])
@pytest.mark.parametrize("prompt, negative", [(LONG, "dull"), ("green tree", LONG)])
def test_the_hosts_padding_acts_on_what_is_blended(host, setting, prompt, negative):
    """And the infotext says so where the plain picture's does."""
    host.start(torch.float64)
    plain = host.latents(prompt=prompt, negative_prompt=negative)
    host.start(torch.float64, **{setting: True})
    padded = host.latents(prompt=prompt, negative_prompt=negative)
    for base in ("red house", f"{LONG} BREAK by the river"):
        made = host.run(covered(prompt, negative), prompt=base, negative_prompt="ugly")
        assert error(torch.cat(made.latents), padded) < 1e-12
        assert "Pad conds" in str(made.extra_generation_params)
    assert error(padded, plain) > 1e-3


def test_frames_are_padded_alike_in_any_batch(host):
    """Also where a long concept is not there in some of them."""
    host.start(torch.float64, pad_cond_uncond=True)
    keys = [{"frame": 0, "weight": 0.0}, {"frame": 1, "weight": 0.0}, {"frame": 3, "weight": 1.0}]
    moving = scene({"prompt": LONG, "keyframes": keys}, "blue sea", animation={"frames": 4})
    one, all_of_them = (host.latents(moving, batch_size=size, seed=7) for size in (1, 4))
    assert error(one, all_of_them) < 1e-12


def test_a_concept_that_covers_everything_is_its_prompt_in_the_hires_pass(host):
    """Prompt editing refers to the steps of both passes."""
    host.start(torch.float64)
    options = {"enable_hr": True, "steps": 4, "hr_second_pass_steps": 3, "sampler_name": "Heun"}
    prompt = "[green:blue:1.5] [tree:bush:0.5] [a:10]"
    plain = host.latents(prompt=prompt, **options)
    ours = host.latents(covered(prompt), prompt="red house", **options)
    assert ours.shape[-2:] == (6, 9)
    assert error(ours, plain) < 1e-12


def test_the_base_fills_what_no_mask_covers(host):
    host.start(torch.float64)
    nowhere = {"prompt": "green tree", "mask": {"kind": "strokes", "strokes": []}}
    for base in ("red house", "a AND b:0.5"):
        plain = host.latents(prompt=base, negative_prompt="ugly")
        assert error(host.latents({"concepts": [nowhere]}, prompt=base, negative_prompt="ugly"), plain) < 1e-12


def test_weights_of_parts_are_blended_by_location(host):
    """Half the image has a second part, half has not."""
    host.start(torch.float64)
    blended = scene("green tree AND blue sea:0.5")
    ours = host.latents(blended, prompt="red house:0.8")
    assert error(ours, oracle.latents(host.model, blended, ["red house:0.8"])) < 1e-12
    assert error(ours, host.latents(scene("green tree"), prompt="red house:0.8")) > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_every_row_sees_its_own_frame_and_seed(host, batch):
    """The same frames in any batch. The last batch is a smaller one."""
    host.start(torch.float64)
    moving = scene(
        {
            "prompt": "green tree",
            "keyframes": [{"frame": 0, "weight": 0.2}, {"frame": 2, "weight": 1.0, "prompt": "blue sea"}],
        },
        noise={"concept": {"strength": 0.5, "rank": 2}, "visual": {"strength": 0.5}},
        motion={"kind": "circle"},
        animation={"frames": 5},
    )
    ours = host.latents(moving, batch_size=batch, negative_prompt="ugly", seed=7)
    expected = oracle.latents(
        host.model, moving, ["red house"] * 5, negative="ugly", pictures=[(frame, 7) for frame in range(5)]
    )
    assert error(ours, expected) < 1e-12
    assert all(error(ours[i], ours[i + 1]) > 1e-4 for i in range(4))


def test_calls_that_take_some_of_the_frames(host, calls):
    """A call for as many rows as there are images, of which each has two: frame by frame."""
    host.start(torch.float64, batch_cond_uncond=False)
    moving = scene(
        "green tree AND grass:0.5",
        noise={"concept": {"strength": 0.5, "rank": 2}},
        motion={"kind": "circle"},
        animation={"frames": 2},
    )
    ours = host.latents(moving, batch_size=2, negative_prompt="ugly")
    assert calls == [2] * 6
    expected = oracle.latents(host.model, moving, ["red house"] * 2, negative="ugly", pictures=[(0, 1), (1, 1)])
    assert error(ours, expected) < 1e-12


def test_pictures_of_one_batch_have_noise_of_their_own(host):
    host.start(torch.float64)
    noisy = scene("green tree", noise={"concept": {"strength": 1.0, "rank": 2}, "visual": {"strength": 0.5}})
    ours = host.latents(noisy, batch_size=3, seed=5)
    assert error(ours, oracle.latents(host.model, noisy, ["red house"] * 3, pictures=[(0, 5), (0, 6), (0, 7)])) < 1e-12


def test_pictures_of_one_batch_have_prompts_of_their_own(host):
    """As Dynamic Prompts makes them; the host fills the shorter up, the scene takes each as it is."""
    texts = ["red house", LONG, "a AND b:0.5"]
    host.start(torch.float64)

    def process(p):
        p.all_prompts = list(texts)

    blended = scene("green tree", {"prompt": "blue sea", "negative": "dull"})
    ours = host.latents(blended, batch_size=3, others=[_other(process=process)])
    expected = oracle.latents(host.model, blended, texts, pictures=[(0, 1), (0, 2), (0, 3)])
    assert error(ours, expected) < ROUNDED


def _other(**hooks):
    from tests.standin.host import Other

    return Other(**hooks)


@pytest.mark.parametrize("start, end, inside", [(0.0, 0.5, [0, 1]), (0.5, 1.0, [2, 3]), (0.3, 0.7, [2])])
def test_outside_the_window_the_layers_run_as_ever(host, monkeypatch, start, end, inside):
    """The class's own forward, with the host's own contexts: bit for bit."""
    contexts = {"plain": [], "ours": []}
    forward = type(host.layers()[0]).forward

    def spy(layer, x, context=None, mask=None):
        if layer is host.layers()[0]:
            contexts[name].append((x, context))
        return forward(layer, x, context, mask)

    monkeypatch.setattr(type(host.layers()[0]), "forward", spy)
    blended = scene("green tree", blend={"start": start, "end": end})
    name = "plain"
    plain = host.latents(steps=4)
    name = "ours"
    ours = host.latents(blended, steps=4)
    assert len(contexts["plain"]) == 4 and len(contexts["ours"]) == 4 - len(inside)
    outside = [step for step in range(4) if step not in inside]
    for step, (_, context) in zip(outside, contexts["ours"], strict=True):
        assert torch.equal(context, contexts["plain"][step][1])
    if 0 in outside:
        assert torch.equal(contexts["ours"][0][0], contexts["plain"][0][0])
    assert not torch.equal(plain, ours)
    assert error(host.latents(blended, steps=4), oracle.latents(host.model, blended, ["red house"], steps=4)) < 1e-4


def test_a_window_that_no_step_falls_into_changes_nothing(host):
    assert torch.equal(
        host.latents(scene("green tree", blend={"start": 0.9, "end": 1.0}), steps=4), host.latents(steps=4)
    )


def test_pooled_embeddings_are_blended_and_sizes_stay(host):
    host.start(torch.float64, xl=True)
    seen = []

    def x0(model, x, sigma, context, original=host.processing.sd_samplers.x0):
        seen.append(context["vector"].clone())
        return original(model, x, sigma, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host.processing.sd_samplers, "x0", x0)
        host.latents(covered("green tree"), negative_prompt="ugly", steps=1)
        host.latents(scene({"prompt": "green tree", "mask": {"kind": "split", "to": 0.5}}), steps=1)
        host.latents(steps=1)
    of = {text: host.model.pooled(text).double() for text in ("red house", "green tree", "ugly")}
    whole, half, plain = seen
    assert torch.equal(whole[:, :6], torch.stack([of["green tree"], of["ugly"]]))
    assert torch.allclose(half[0, :6], (of["green tree"] + of["red house"]) / 2)
    assert torch.equal(whole[:, 6:], plain[:, 6:]) and torch.equal(half[:, 6:], plain[:, 6:])
    assert plain[0, 6:].any()


def test_hypernetworks_act_on_the_contexts(host):
    """Not linear, and different for keys and values."""
    host.start(torch.float64)
    turn = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def only_contexts(function):
        return lambda context: context if context.shape[-1] != 8 else function(context)

    host.shared.loaded_hypernetworks.append(
        (only_contexts(lambda c: c + torch.tanh(c @ turn)), only_contexts(lambda c: c * c))
    )
    plain = host.latents(prompt="green tree")
    assert error(host.latents(covered("green tree")), plain) < 1e-12
    host.shared.loaded_hypernetworks.clear()
    assert error(host.latents(covered("green tree")), plain) > 1e-2


def test_linear_hypernetworks_commute_with_the_blend(host):
    host.start(torch.float64)
    turn = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    host.shared.loaded_hypernetworks.append((lambda c: c @ turn if c.shape[-1] == 8 else c, lambda c: c))
    ours = host.latents(scene("green tree", "blue sea"))
    host.shared.loaded_hypernetworks.clear()
    weights = [layer.to_k.weight.clone() for layer in host.layers()]
    try:
        for layer in host.layers():
            layer.to_k.weight.copy_(layer.to_k.weight @ turn.T)
        expected = oracle.latents(host.model, scene("green tree", "blue sea"), ["red house"])
    finally:
        for layer, weight in zip(host.layers(), weights, strict=True):
            layer.to_k.weight.copy_(weight)
    assert error(ours, expected) < 1e-12


@pytest.mark.parametrize("upcast", [False, True])
def test_half_precision(host, upcast):
    """Upcast, the logits and the sums are float32: at least as near, and finite where half precision is not."""
    host.start(torch.float16, upcast_attn=upcast)
    blended = scene("green tree", "blue sea", noise={"concept": {"strength": 0.5, "rank": 2}})
    ours = host.run(blended).latents[0]
    assert ours.dtype == torch.float16
    assert error(ours.double(), oracle.latents(host.model, blended, ["red house"])) < 2e-2


def test_upcast_attention_computes_in_float32(host, monkeypatch):
    dtypes = set()
    original = host.attention.blended_attention

    def spy(q, basis, level, scale, own=None):
        dtypes.update((q.dtype, basis.keys.dtype, level.coefficients.dtype))
        return original(q, basis, level, scale, own)

    monkeypatch.setattr(host.attention, "blended_attention", spy)
    host.start(torch.float16, upcast_attn=True)
    host.latents(scene("green tree"))
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_a_concept_in_a_part_of_the_steps(host, start, end):
    """Is the prompt that changes at these steps, and the whole scene's window, whatever another concept does."""
    host.start(torch.float64)
    steps, window = 8, {"start": start, "end": end}
    own = {"prompt": "green tree", "mask": FULL}
    whole = host.latents({"concepts": [own], "blend": window}, prompt="red house", steps=steps)
    nowhere = {"prompt": LONG, "mask": {"kind": "strokes", "strokes": []}, "start": 0.25}
    for others in ([], [nowhere]):
        ours = host.latents({"concepts": [{**own, **window}, *others]}, prompt="red house", steps=steps)
        assert error(ours, whole) < 1e-12
    if start == 0 or end == 1:  # the host's steps include the one that is named
        switch = int((end if start == 0 else start) * steps) - 1
        first, second = ("green tree", "red house") if start == 0 else ("red house", "green tree")
        assert error(whole, host.latents(prompt=f"[{first}:{second}:{switch}]", steps=steps)) < 1e-12
