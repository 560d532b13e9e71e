"""Choices and wildcards in the prompts of concepts."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_masknoise import infotext
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.wildcards import DEEPEST, Wildcards, expand, expand_text

SEEDS = range(60)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "trees.txt").write_text("# trees\nash\n\n{old|young} oak\n__more/*__\n", "utf-8")
    (tmp_path / "more" / "firs.txt").write_text("fir\n", "utf-8")
    (tmp_path / "more" / "palms.txt").write_text("\ufeffpalm\n", "utf-8")
    (tmp_path / "art.json").write_text(json.dumps({"dutch": ["Piet", "Rembrandt"], "n": 1}), "utf-8")
    (tmp_path / "here.txt").write_text("__there__\n", "utf-8")
    (tmp_path / "there.txt").write_text("__here__\n", "utf-8")
    (tmp_path / "none.txt").write_text("# nothing\n", "utf-8")
    return Wildcards([tmp_path])


def outcomes(text, files=None):
    return {expand_text(text, str(seed), files) for seed in SEEDS}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a {red|green} tree", {"a red tree", "a green tree"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{a|}", {"a", ""}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$-$$a|b}", {"a", "b", "a-b", "b-a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{9$$a|b}", {"a, b", "b, a"}),
        ("{0::a|b}", {"b"}),
        ("{~a|b}", {"a", "b"}),
        ("__trees__", {"ash", "old oak", "young oak", "fir", "palm"}),
        ("__more/**__", {"fir", "palm"}),
        ("__m**__", {"fir", "palm"}),
        ("{2$$__more/*__}", {"fir, palm", "palm, fir"}),
        ("__dutch__", {"Piet", "Rembrandt"}),
        ("<lora:a__b__c:1> <lora:__more/firs__:1>", {"<lora:a__b__c:1> <lora:fir:1>"}),
    ],
)
def test_what_is_drawn(text, expected, files):
    assert outcomes(text, files) == expected


@pytest.mark.parametrize("text", ["a tree", r"\{a\|b\}", "{abc}", "{abc", "a|b}", "snake__case", "a_b __ c", "\\"])
def test_what_is_no_choice_stays(text):
    assert outcomes(text) == {text}


def test_weights_are_relative():
    counts = Counter(expand_text("{3::a|b}", str(seed)) for seed in range(2000))
    assert 0.72 < counts["a"] / 2000 < 0.78


@pytest.mark.parametrize(
    "text, message",
    [
        ("__tree__", r"__tree__: no file tree.txt in .*; did you mean __trees__\?"),
        ("__../trees__", "no file"),
        ("__none__", "the file has no lines"),
        ("__here__", "in a circle: here → there → here"),
        ("${season=winter} x", "Dynamic Prompts' own"),
        ("{@a|b}", "Dynamic Prompts' own"),
        ("__trees(kind=oak)__", "Dynamic Prompts' own"),
        ("{1$$" * (DEEPEST + 2) + "}" * (DEEPEST + 2), "deep in each other"),
    ],
)
def test_what_cannot_be_expanded(text, message, files):
    with pytest.raises(ValueError, match=message):
        expand_text(text, "0", files)


WORDS = st.text("ab ,:()", max_size=4)
CHOICES = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda options: "{" + "|".join(options) + "}"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
    ),
    max_leaves=8,
)


@given(CHOICES, st.integers(0, 2**32))
def test_an_expanded_prompt_stays_as_it_is(text, seed):
    once = expand_text(text, str(seed))
    assert once == expand_text(text, str(seed)) == expand_text(once, str(seed + 1))


@given(st.text("{}|$_\\a-2~:*", max_size=40))
def test_no_text_breaks_it(text):
    try:
        expand_text(text, "0")
    except ValueError as error:
        assert str(error)


TWO = {"concepts": [{"prompt": "{a|b|c|d} tree"}, {"prompt": "{a|b|c|d} tree", "negative": "{x|y}"}]}


def said(seed, scene=TWO):
    return [(one.prompt, one.negative) for one in expand(Scene.parse(scene), seed).concepts]


def test_concepts_have_their_own_luck_and_a_seed_decides():
    assert all(said(seed) == said(seed) for seed in SEEDS)
    assert len({said(seed)[0] for seed in SEEDS}) == 4
    assert any(said(seed)[0][0] != said(seed)[1][0] for seed in SEEDS)
    one = {"concepts": [*TWO["concepts"], {"prompt": "{p|q}"}]}
    assert all(said(seed, one)[:2] == said(seed) for seed in SEEDS), "a further concept changes none before it"


def test_all_frames_say_the_same_and_equal_keyframes_too():
    keys = [{"frame": 0}, {"frame": 2, "prompt": "{a|b} tree"}, {"frame": 4, "prompt": "{a|b} tree"}]
    keys += [{"frame": 6, "prompt": "{c|d}"}]
    for seed in SEEDS:
        concept = expand(Scene.parse({"concepts": [{"prompt": "{a|b} tree", "keyframes": keys}]}), seed).concepts[0]
        assert [key.prompt for key in concept.keyframes[:3]] == [None, concept.prompt, concept.prompt]
        assert concept.keyframes[3].prompt in ("c", "d")


def test_what_all_share_is_drawn_once():
    scene = Scene.parse({"concepts": [{"prompt": "x"}, {"prompt": "y"}], "blend": {"common": "{red|blue} light"}})
    first, second = expand(scene, 1).acting.concepts
    assert first.prompt.removesuffix("x") == second.prompt.removesuffix("y") and "{" not in first.prompt


def test_a_scene_without_choices_is_itself():
    scene = Scene.parse({"concepts": [{"prompt": "a tree"}]})
    assert expand(scene, 3) is scene


def test_every_missing_file_is_named_with_its_place():
    scene = {
        "concepts": [
            {"prompt": "__a__"},
            {"prompt": "b", "negative": "__c__", "keyframes": [{"frame": 1, "prompt": "__d__"}]},
            {"prompt": "__off__", "enabled": False},
        ],
        "blend": {"common": "__e__"},
    }
    with pytest.raises(SceneError) as raised:
        expand(Scene.parse(scene), 0)
    places = ["concepts[0].prompt", "concepts[1].negative", "concepts[1].keyframes[0].prompt", "blend.common"]
    assert [problem.path for problem in raised.value.problems] == places
    assert "expected a folder of wildcards with a.txt in it" in str(raised.value)


def test_the_infotext_has_what_was_drawn():
    made = expand(Scene.parse(TWO), 5)
    again = infotext.read(infotext.write(made))
    assert again == made and expand(again, 6) == made
