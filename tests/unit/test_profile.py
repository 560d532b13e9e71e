"""The file of a profile: bands and per cent, what is refused, where it is kept, what a scene is told."""

import itertools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lib_masknoise.calibrate.profile import (
    ORIGINS,
    Band,
    Profile,
    Profiles,
    in_numbers,
    outside,
    strengths,
    with_percent,
)
from lib_masknoise.controls import control
from lib_masknoise.presets import Presets
from lib_masknoise.scene import Scene, SceneError

HASH = "0123456789abcdef" * 4
EFFECTS = sorted(ORIGINS)
paths = st.sampled_from(EFFECTS)


@st.composite
def bands(draw, path=None):
    """Any band that a measurement may give."""
    path = path or draw(paths)
    origin, high = ORIGINS[path], control(path).high
    visible = origin + draw(st.floats(0.01, 0.5)) * (high - origin)
    broken = draw(st.none() | st.floats(1.05, 1.9).map(lambda factor: origin + (visible - origin) * factor))
    lost = broken and draw(st.none() | st.floats(0.05, 0.95).map(lambda part: broken + part * (high - broken)))
    curves = st.lists(st.floats(0.05, 2), min_size=8, max_size=8).map(sorted).map(tuple)
    scales = tuple(origin + (high - origin) * 0.5**i for i in range(7, -1, -1))
    return Band(path, visible, broken, 36, scales, draw(curves), lost, draw(st.just(()) | curves))


def profile(*bands, **changes):
    return replace(Profile(HASH, ("a wheat field", "an ocean"), {band.effect: band for band in bands}), **changes)


SCENE = {
    "concepts": [{"prompt": "an ocean", "weight": 1.5}, {"prompt": "lava", "keyframes": [{"frame": 0, "weight": 2.0}]}],
    "noise": {"visual": {"strength": 0.3}, "concept": {"strength": 1.0}, "feature": {"strength": 2.0}},
}
ALL = profile(*(Band(path, ORIGINS[path] + 0.2, ORIGINS[path] + 0.8) for path in EFFECTS))


@given(bands(), st.floats(-200, 300))
def test_per_cent_is_the_inverse_of_a_number(band, percent):
    assert band.percent(band.value(percent)) == pytest.approx(percent, abs=1e-6)


@given(bands(), st.floats(1e-3, 1))
def test_a_number_is_the_inverse_of_per_cent(band, part):
    value = band.origin + part * (control(band.effect).high - band.origin)
    assert band.value(band.percent(value)) == pytest.approx(value)


@given(bands(), st.floats(-100, 200), st.floats(-100, 200))
def test_per_cent_grows_with_the_strength(band, one, other):
    assume(abs(one - other) > 1e-3)
    assert (band.value(one) < band.value(other)) == (one < other)


@given(bands())
def test_the_ends_are_0_and_100_and_130(band):
    assert band.percent(band.visible) == pytest.approx(0, abs=1e-9)
    assert band.percent(band.top) == pytest.approx(100)
    assert band.percent(band.origin) == -math.inf
    if band.lost is not None:
        assert band.percent(band.lost) == pytest.approx(130) and band.value(130) == pytest.approx(band.lost)
    else:  # it is not lost up to the control's bound, so that nothing there is beyond
        assert band.percent(control(band.effect).high) <= 130.0001


@given(bands())
def test_without_a_curve_equal_steps_are_equal_ratios(band):
    band = replace(band, scales=(), changes=(), lengths=())
    above = [band.value(percent) - band.origin for percent in (0, 50, 100)]
    assert above[1] / above[0] == pytest.approx(above[2] / above[1])


@given(bands(), st.floats(0, 1))
def test_every_strength_has_one_place(band, part):
    value = band.origin + part * (control(band.effect).high - band.origin)
    expected = "invisible" if value < band.visible else "useful" if value <= band.top else "broken"
    assert band.place(value) == expected
    if band.broken is None:
        assert band.place(control(band.effect).high) != "broken"


@pytest.mark.parametrize("turned", [(), tuple(2.0**-i for i in range(7, -1, -1))], ids=["changes", "lengths"])
def test_with_a_curve_equal_steps_go_equally_far(turned):
    """As far as the picture changes, and where it is known how far it goes on the way there, as far as that."""
    scales = tuple(2.0**-i for i in range(7, -1, -1))
    changes = tuple(scale**2 for scale in scales)
    band = Band("noise.visual.strength", 0.25, None, 32, scales, changes, lengths=turned)
    gone = [band.value(percent) ** (1 if turned else 2) for percent in range(0, 101, 20)]
    steps = [after - before for before, after in itertools.pairwise(gone)]
    assert max(steps) < 1.25 * min(steps)  # in logarithms it would be by fivefold
    assert band.percent(0.25) == 0 and band.percent(1) == pytest.approx(100)


def test_what_is_never_seen_has_no_per_cent():
    band = Band("noise.visual.strength", None, None)
    assert band.percent(0.5) is band.value(40) is None and band.place(1) == "invisible"


@given(st.lists(bands(), max_size=5), st.none() | st.just({"rank": 8, "layers": [1, 2]}))
def test_a_profile_is_its_json(some, style):
    one = profile(*some, name="ä", settings={"size": [128, 128]}, style=style)
    assert Profile.parse(one.to_json()) == one
    assert Profile.parse(one.to_dict()) == one


@pytest.mark.parametrize(
    "changes, path",
    [
        ({"version": 3}, "version"),
        ({"version": True}, "version"),
        ({"prompts": "an ocean"}, "prompts"),
        ({"model": 3}, "model"),
        ({"extra": 1}, "extra"),
        ({"effects": {"blend.mode": {}}}, "effects.blend.mode"),
        ({"effects": {"blend.scale": 3}}, "effects.blend.scale"),
        ({"effects": {"blend.scale": {"visible": "0.3", "broken": None}}}, "effects.blend.scale.visible"),
        ({"effects": {"blend.scale": {"scales": [1], "changes": []}}}, "effects.blend.scale.changes"),
        ({"effects": {"blend.scale": {"lengths": [1]}}}, "effects.blend.scale.lengths"),
        ({"effects": {"blend.scale": {"lost": "1"}}}, "effects.blend.scale.lost"),
        ({"style": 3}, "style"),
    ],
)
def test_what_is_wrong_is_said_by_its_path(changes, path):
    with pytest.raises(SceneError) as caught:
        Profile.parse({**ALL.to_dict(), **changes})
    assert [problem.path for problem in caught.value.problems] == [path]


def test_a_profile_of_version_1_is_read_and_said_to_be_of_an_earlier_version():
    old = Profile.parse({
        "version": 1,
        "model": HASH,
        "prompts": ["an ocean"],
        "effects": {"noise.visual.strength": {"visible": 0.2, "broken": 0.8, "scales": [], "changes": []}},
    })  # fmt: skip
    assert old.band("noise.visual.strength").value(50) == pytest.approx(0.4) and Profile.parse(old.to_json()) == old
    scene = Scene.parse({"noise": {"visual": {"strength": 0.9}}})
    assert [remark.path for remark in outside(scene, old)] == ["noise.visual.strength", ""]
    assert "earlier version" in outside(scene, old)[1].message


def test_no_json_is_refused():
    with pytest.raises(SceneError, match="not valid JSON"):
        Profile.parse("{")


def test_profiles_are_kept_by_the_models_hash(tmp_path):
    profiles = Profiles(tmp_path / "profiles")
    assert profiles.load(HASH) is None
    assert profiles.save(ALL).name == "0123456789abcdef.json"
    assert profiles.load(HASH) == ALL
    assert profiles.load("f" * 64) is None


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0123456789ABCDEF", "x" * 64])
def test_what_is_no_hash_names_no_file(tmp_path, name):
    with pytest.raises(ValueError, match="expected a hash"):
        Profiles(tmp_path).load(name)


def test_it_is_familiar_with_prompts_of_which_it_has_half_the_words():
    assert ALL.familiar(["a golden wheat field"])
    assert ALL.familiar(["An OCEAN", ""])
    assert ALL.familiar([])
    assert not ALL.familiar(["a portrait of a woman", "an ocean"])


# --- What a scene is told


def test_strengths_are_those_that_do_something():
    assert dict(strengths(Scene.parse(SCENE))) == {
        "concepts[0].weight": 1.5,
        "concepts[1].keyframes[0].weight": 2.0,
        "noise.visual.strength": 0.3,
        "noise.concept.strength": 1.0,
        "noise.feature.strength": 2.0,
    }
    added = Scene.parse({"concepts": SCENE["concepts"], "blend": {"mode": "add"}})
    assert dict(strengths(added)) == {"blend.scale": 0.1}


def test_what_lies_outside_is_remarked_and_nothing_else():
    told = {path: message for path, message in outside(Scene.parse(SCENE), ALL, ["a castle at night"])}
    assert set(told) == {
        "concepts[1].keyframes[0].weight",
        "noise.concept.strength",
        "noise.feature.strength",
        "",
    }
    assert "pictures break" in told["noise.feature.strength"] and "0.8" in told["noise.feature.strength"]
    assert "other prompts" in told[""]  # lava
    weak = Scene.parse({"noise": {"visual": {"strength": 0.1}}})
    ((path, message),) = outside(weak, ALL)
    assert path == "noise.visual.strength" and "barely visible" in message and "0.2" in message
    assert outside(Scene.parse({"noise": {"visual": {"strength": 0.5}}}), ALL) == ()


# --- Presets in per cent


def data_in_percent(text):
    return {
        "concepts": [{"prompt": "x", "weight": text, "keyframes": [{"frame": 0, "weight": text}]}],
        "noise": {name: {"strength": text} for name in ("visual", "concept", "feature")},
    }


@given(st.floats(0, 100))
def test_per_cent_become_numbers_of_the_model(percent):
    scene = Scene.parse(in_numbers(data_in_percent(f"{percent:.9f}%"), ALL))
    for path, value in strengths(scene):
        assert ALL.band(path).percent(value) == pytest.approx(percent, abs=1e-6)


def test_a_scene_in_per_cent_is_that_scene_again():
    for data in (SCENE, {"concepts": [{"prompt": "x"}], "blend": {"mode": "add", "scale": 0.4}}):
        scene = Scene.parse(data)
        said = with_percent(scene, ALL)
        assert "%" in json.dumps(said)
        again = dict(strengths(Scene.parse(in_numbers(said, ALL))))
        assert again == pytest.approx(dict(strengths(scene)), rel=2e-3)


def test_numbers_stay_as_they_are():
    data = Scene.parse(SCENE).to_dict()
    assert in_numbers(data, None) == data


@pytest.mark.parametrize(
    "data, known, path, words",
    [
        (data_in_percent("40%"), None, "noise.concept.strength", "no profile of this model"),
        ({"noise": {"visual": {"strength": "40%"}}}, profile(), "noise.visual.strength", "no useful range"),
        ({"blend": {"scale": "40%"}}, ALL, "blend.scale", 'mode "add"'),
        (
            {"blend": {"mode": "add"}, "concepts": [{"prompt": "x", "weight": "40%"}]},
            ALL,
            "concepts[0].weight",
            "blend.scale",
        ),
        ({"noise": {"visual": {"strength": "400%"}}}, ALL, "noise.visual.strength", "at most 1"),
    ],
)
def test_per_cent_that_mean_nothing_are_refused(data, known, path, words):
    with pytest.raises(SceneError) as caught:
        in_numbers(data, known)
    told = dict(caught.value.problems)
    assert words in told[path]


def test_presets_say_per_cent_and_are_numbers_when_loaded(tmp_path):
    presets = Presets(tmp_path, lambda data: in_numbers(data, ALL))
    (tmp_path / "storm.json").write_text('{"noise": {"visual": {"strength": "50%"}}}')
    assert presets.load("storm").noise.visual.strength == pytest.approx(0.4)
    scene, said = presets.read('{"noise": {"visual": {"strength": "100%"}}}')
    presets.save("full", scene, said=said)
    assert '"100%"' in (tmp_path / "full.json").read_text()
    assert presets.load("full").noise.visual.strength == pytest.approx(0.8)
    other = Presets(tmp_path, lambda data: in_numbers(data, None))
    with pytest.raises(SceneError, match="no profile of this model.*in the preset"):
        other.load("storm")
