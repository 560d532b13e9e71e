"""The order of the initial noise: it stays noise, held places hold, and each form is its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_masknoise.noise.initial import (
    BOUND,
    EPSILON,
    FLOW,
    VELOCITY,
    Guess,
    aggregated,
    alone,
    at_every_step,
    chosen,
    disagreement,
    erased,
    injected,
    local,
    ordered,
    orthogonal,
    others,
    restandardised,
)
from lib_masknoise.scene import InitialNoise, Scene

SIZE = (16, 24)
EVERYWHERE = torch.ones(SIZE)
LEFT = torch.linspace(1, 0, SIZE[1]).expand(SIZE)[None]


def noise(seed=0, channels=4, size=SIZE):
    return torch.randn(channels, *size, generator=torch.Generator().manual_seed(seed))


def smooth(seed, channels=4, size=SIZE, coarse=4):
    """What a text changes in a prediction: large, soft patches."""
    drawn = noise(seed, channels, (coarse, coarse))[None]
    return torch.nn.functional.interpolate(drawn, size=size, mode="bicubic")[0]


class Model:
    """Sees in noise a share of it and, with the prompts, a picture of its own."""

    def __init__(self, kind=EPSILON, scale=1.0, pictures=None):
        self.kind, self.scale, self.asked = kind, scale, []
        self.pictures = pictures or {}

    def __call__(self, z, time, concept=None, guided=False):
        self.asked.append((len(z), time, concept, guided))
        signal = 1 - time / 1000 if self.kind == FLOW else 0.1
        level = time / 1000 if self.kind == FLOW else math.sqrt(1 - signal**2)
        size = tuple(z.shape[-2:])
        prompted = self.scale * (
            smooth(7 if concept is None else 20 + concept, size=size) + 0.1 * smooth(time, size=size)
        )
        return [Guess(one, prompted + 0.1 * one, 0.1 * one if guided else None, self.kind, signal, level) for one in z]


FORMS = [
    {"erase": 2},
    {"erase": 9},
    {"choose": 3},
    {"inject": {"strength": 0.5}},
    {"inject": {"strength": 20.0}},
    {"inject": {"strength": 3.0, "times": [1000, 700, 300], "weights": [1, -0.5, 2]}},
    {"inject": {"strength": 0.8, "form": "prediction", "times": [1000, 900, 800, 700, 600]}},
    {"inject": {"strength": 10.0, "form": "prediction"}},
    {"choose": 2, "erase": 3, "inject": {"strength": 5.0}},
]
forms = st.sampled_from(FORMS)
places = st.sampled_from(["everywhere", "pinned", "free"])
kinds = st.sampled_from([EPSILON, VELOCITY, FLOW])


def made(form, where="everywhere", model=None, seed=1, weights=LEFT, dtype=torch.float32, size=SIZE):
    options = InitialNoise.parse({**form, "where": where})
    weights = weights[..., : size[0], : size[1]]
    return ordered(noise(seed, size=size).to(dtype), options, weights, seed, model or Model())


# --- It stays noise


@settings(max_examples=12, deadline=None)
@given(forms, places, kinds, st.integers(0, 10**6), st.floats(0.1, 30))
def test_around_every_location_the_variance_is_that_of_noise(form, where, kind, seed, scale):
    """Within 2 % of what the noise has there that it is made of, whatever the model says, and however strongly."""
    model = Model(kind, scale)
    got = made({"inject": form.get("inject", {})}, where, model, seed)
    given_ = noise(seed)
    ratio = local(got * got) / local(given_ * given_)
    assert 0.98 < float(ratio.min()) and float(ratio.max()) < 1.02


@settings(max_examples=12, deadline=None)
@given(forms, places, kinds, st.integers(0, 10**6), st.floats(0.1, 30))
def test_a_picture_of_it_is_white_and_of_mean_0(form, where, kind, seed, scale):
    """No neighbour, near or far, is more like another than in noise of that size, where 4.5 standard errors are allowed
    for and the share that may be other than noise; nor is any channel's mean further from 0."""
    got = made(form, where, Model(kind, scale), seed)
    error = 4.5 / math.sqrt(got[0].numel()) + BOUND
    assert float(got.mean((1, 2)).abs().max()) < error + math.sqrt(BOUND)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 3), (4, 0), (5, 7)):
        product = got * torch.roll(got, (dy, dx), (1, 2))
        assert float(product.mean((1, 2)).abs().max()) < error


@pytest.mark.parametrize("form", [FORMS[i] for i in (0, 2, 4, 7)], ids=str)
def test_over_seeds_every_location_has_mean_0_and_variance_1(form):
    """Of a model whose pictures have nothing in common, so that nothing is leant to every time."""

    class Changing(Model):
        def __call__(self, z, time, concept=None, guided=False):
            found = super().__call__(z, time, concept, guided)
            own = smooth(int(z.abs().sum() * 1000) % 2**31, size=tuple(z.shape[-2:]))
            return [Guess(g.given, own, g.plain, g.kind, g.signal, g.noise) for g in found]

    count = 200
    sample = torch.stack([made(form, model=Changing(), seed=1000 + seed, size=(6, 8)) for seed in range(count)])
    assert float(sample.mean(0).abs().max()) < 5 / math.sqrt(count)
    variance = sample.var(0)
    assert float((variance - 1).abs().max()) < 6 * math.sqrt(2 / count)
    assert float(variance.mean()) == pytest.approx(1, abs=0.02)
    for near in ((sample[..., 1:] * sample[..., :-1]).mean(0), (sample[..., 1:, :] * sample[..., :-1, :]).mean(0)):
        assert float(near.abs().max()) < BOUND + 5 / math.sqrt(count)
        assert float(near.mean()) == pytest.approx(0, abs=0.02)


def test_the_published_scaling_does_not():
    form = {"inject": {"strength": 0.8, "form": "prediction", "times": [1000, 900, 800], "restandardise": False}}
    assert float(made(form, model=Model(scale=0.1)).std()) > 1.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_has_the_hosts_own_type_and_is_computed_alike(dtype):
    got = made({"inject": {"strength": 3.0}}, dtype=dtype)
    assert got.dtype == dtype
    assert torch.allclose(got.float(), made({"inject": {"strength": 3.0}}), atol=0.06)


# --- Where


@given(forms, st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_place_that_is_none_of_the_wanted_keeps_its_noise(form, seed):
    form = {key: one for key, one in form.items() if key != "choose"}
    free = made(form, "free", seed=seed, weights=(LEFT > 0.5).float())
    held = made(form, "pinned", seed=seed, weights=(LEFT > 0.5).float())
    inside = LEFT[0] > 0.5
    assert torch.equal(free[:, inside], noise(seed)[:, inside])
    assert torch.equal(held[:, ~inside], noise(seed)[:, ~inside])


def test_without_masks_everything_is_free():
    none = torch.zeros(0, *SIZE)
    assert torch.equal(made(FORMS[0], "pinned", weights=none), noise(1))
    assert torch.equal(made(FORMS[0], "free", weights=none), made(FORMS[0], weights=none))


# --- Off, and what is asked


def test_off_is_the_noise_itself_and_asks_nothing():
    model = Model()
    off = {"choose": 1, "erase": 1, "inject": {"strength": 0, "form": "prediction"}}
    assert torch.equal(made(off, model=model), noise(1)) and not model.asked
    assert not InitialNoise.parse(off).acts and Scene.parse({"noise": {"initial": off}}).neutral


def test_each_form_asks_as_often_as_it_says():
    def asked(form, weights=LEFT):
        model = Model()
        made(form, model=model, weights=weights)
        return model.asked

    assert asked({"erase": 8}) == []
    assert asked({"inject": {"strength": 1.0}}) == [(1, 1000, None, True)]
    times = {"strength": 1.0, "form": "prediction", "times": [900, 600]}
    assert asked({"inject": times}) == [(1, 900, None, False), (1, 600, None, False)]
    two = torch.cat([LEFT, 1 - LEFT])
    assert asked({"choose": 5}, two) == [(5, 900, None, False), (5, 900, 0, False), (5, 900, 1, False)]
    assert asked({"choose": 5}, torch.zeros(0, *SIZE)) == []


# --- Formulas


def test_erasing_is_the_normalised_sum():
    z = noise()
    rest = others(z, 4, 3, "erase")
    expected = (z + rest.sum(0)) / math.sqrt(5)
    assert torch.allclose(erased(z, rest, EVERYWHERE), expected, atol=1e-6)
    assert torch.equal(erased(z, rest, torch.zeros(SIZE)), z)


def test_more_noises_leave_the_first_ones():
    assert torch.equal(others(noise(), 5, 3, "erase")[:2], others(noise(), 2, 3, "erase"))
    assert not torch.equal(others(noise(), 1, 3, "erase"), others(noise(), 1, 3, "choose"))


def test_the_published_sums():
    parts, weights = [noise(1), noise(2), noise(3)], [1.0, 2.0, -0.5]
    total = (parts[0] + 2 * parts[1] - 0.5 * parts[2]) / math.sqrt(1 + 4 + 0.25)
    assert torch.allclose(aggregated(parts, weights), total)
    assert torch.allclose(injected(noise(), total, 0.8), (noise() + 0.8 * total) / math.sqrt(1.64))


@pytest.mark.parametrize("kind", [EPSILON, VELOCITY, FLOW])
def test_a_guess_gives_the_models_own_predictions_back(kind):
    """ε and v of a picture and noise, by their definitions."""
    z, with_prompt, without = noise(0), smooth(1), smooth(2)
    signal, level = (0.3, 0.7) if kind == FLOW else (0.6, 0.8)
    guess = Guess(z, with_prompt, without, kind, signal, level)

    def prediction(picture):
        if kind == FLOW:
            return (z - picture) / level  # v = noise − picture, at z = (1 − σ)·picture + σ·noise
        epsilon = (z - signal * picture) / level
        return epsilon if kind == EPSILON else signal * epsilon - level * picture

    assert torch.allclose(guess.towards, prediction(without) - prediction(with_prompt), atol=1e-5)
    if kind != VELOCITY:
        assert torch.allclose(guess.prediction, prediction(with_prompt), atol=1e-5)


def test_nothing_to_lean_to_is_the_noise_itself():
    z = noise()
    assert torch.equal(restandardised(z, z, EVERYWHERE), z)
    assert torch.allclose(restandardised(z, 3 * z, EVERYWHERE), z, atol=1e-5)
    assert float(local(orthogonal(smooth(1), z) * z).abs().max()) < 0.2


def test_stronger_leans_further_and_not_in_steps():
    z, d = noise(), smooth(4)
    found = [
        float(((restandardised(z, z + k * orthogonal(d, z), EVERYWHERE) - z) * d).mean()) for k in (0.02, 0.04, 0.2, 5)
    ]
    assert 0 < found[0] < found[1] < found[2] <= found[3]
    assert found[1] == pytest.approx(2 * found[0], rel=0.1)
    share = local((restandardised(z, z + 50 * orthogonal(d, z), EVERYWHERE) - z) ** 2)
    assert float(share.max()) < 2 * BOUND


# --- Choose


def test_the_noise_whose_concepts_begin_as_they_would_alone_is_chosen():
    z, count = noise(5), 4
    candidates = torch.cat([z[None], others(z, count - 1, 9, "choose")])
    good = 2

    def ask(given_, time, concept=None, guided=False):
        off = [0.0 if concept is not None or torch.equal(one, candidates[good]) else 1.0 for one in given_]
        return [
            Guess(one, smooth(30) + k * noise(60), None, EPSILON, 0.1, 0.99) for one, k in zip(given_, off, strict=True)
        ]

    assert torch.equal(chosen(z, count, LEFT, 9, ask), candidates[good])


def test_disagreement_counts_inside_the_mask():
    own, mask = smooth(1), (LEFT > 0.5).float()
    outside = torch.where(LEFT > 0.5, own, own + 5)
    assert disagreement(outside, [own], mask) == 0
    assert disagreement(own + 1, [own], mask) > disagreement(own + 0.5, [own], mask) > 0
    assert disagreement(own, [own], torch.zeros_like(mask)) == 0


def test_a_concept_alone_is_everywhere_and_at_every_step():
    scene = Scene.parse(
        {
            "concepts": [
                {"prompt": "a", "mask": {"kind": "ellipse"}, "start": 0.5},
                {"prompt": "b", "keyframes": [{"frame": 0, "mask": {"kind": "split"}, "weight": 2.0}]},
            ],
            "blend": {"start": 0.2, "end": 0.7},
        }
    )
    one = alone(scene, 1)
    assert [concept.prompt for concept in one.concepts] == ["b"] and one.concepts[0].mask.kind == "rect"
    assert one.concepts[0].keyframes[0].mask is None and one.concepts[0].keyframes[0].weight == 2.0
    assert (one.blend.start, one.blend.end) == (0, 1)
    assert [(c.start, c.end) for c in at_every_step(scene).concepts] == [(0, 1)] * 2


# --- The scene


@pytest.mark.parametrize(
    "field, value, kept",
    [
        ("times", [1000, 750], "1000,750"),
        ("times", " 1000 , 750 ", "1000,750"),
        ("times", 500, "500"),
        ("weights", "0.50", "0.5"),
        ("weights", [], ""),
    ],
)
def test_numbers_are_text_or_a_list(field, value, kept):
    assert getattr(InitialNoise.parse({"inject": {field: value}}).inject, field) == kept


@pytest.mark.parametrize(
    "given_, path, message",
    [
        ({"inject": {"times": [0]}}, "inject.times", "integer from 1 to 1000"),
        ({"inject": {"times": "1001"}}, "inject.times", "integer from 1 to 1000"),
        ({"inject": {"times": "soon"}}, "inject.times", 'got "soon"'),
        ({"inject": {"times": ""}}, "inject.times", "at least one"),
        ({"inject": {"times": None}}, "inject.times", "got null"),
        ({"inject": {"times": [900, 800], "weights": [1]}}, "inject.weights", "expected 2"),
        ({"inject": {"weights": [0]}}, "inject.weights", "not 0"),
        ({"inject": {"weights": [True]}}, "inject.weights", "from -10 to 10"),
        ({"inject": {"form": "guess"}}, "inject.form", "text"),
        ({"inject": {"strenght": 1}}, "inject.strenght", "did you mean"),
        ({"where": "left"}, "where", "everywhere"),
        ({"choose": 0}, "choose", "from 1 to 64"),
        ({"erase": 1.5}, "erase", "integer"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(given_, path, message):
    with pytest.raises(Exception) as caught:
        Scene.parse({"noise": {"initial": given_}})
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert message in found[f"noise.initial.{path}"]


def test_what_will_do_nothing_is_said():
    def said(initial, **parts):
        return {p.path for p in Scene.parse({"noise": {"initial": initial}, **parts}).remarks()}

    concept = {"concepts": [{"prompt": "a"}]}
    assert said({"choose": 3}) == {"noise.initial.choose"} and said({"choose": 3}, **concept) == set()
    assert said({"erase": 3, "where": "pinned"}) == {"noise.initial.where"}
    assert said({"inject": {"strength": 1, "restandardise": False}}) == {"noise.initial.inject.restandardise"}
    whole = Scene.parse({"noise": {"initial": {"erase": 3, "where": "free"}}, **concept})
    assert {p.path for p in whole.remarks(torch.ones(1, 1, 4, 4))} == {"noise.initial.where"}
