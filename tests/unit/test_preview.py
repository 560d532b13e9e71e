"""Pictures of what a scene will do."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_masknoise import preview
from lib_masknoise.controls import MOTIONS
from lib_masknoise.scene import MAX_CONCEPTS, Scene

SIZE = (16, 32)
LEFT = {"kind": "split", "from": 0.0, "to": 0.5}
RIGHT = {"kind": "split", "from": 0.5, "to": 1.0}


def pixels(data: dict, what: str = "coefficients", frame: float = 0, size=SIZE) -> np.ndarray:
    return np.asarray(preview.picture(Scene.parse(data), what, frame, size)).astype(int)


def colour(text: str) -> list[int]:
    return list(bytes.fromhex(text.removeprefix("#")))


def close(seen: np.ndarray, expected: list[int]) -> bool:
    return bool((abs(seen - expected) <= 1).all())


def oklab(text: str) -> np.ndarray:
    """Ottosson, "A perceptual color space for image processing", 2020."""
    srgb = np.array(colour(text)) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]]
    opponent = [[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(opponent) @ np.cbrt(np.array(cones) @ linear)


def test_the_colours_are_told_apart():
    assert len(preview.COLOURS) == MAX_CONCEPTS
    places = [oklab(text) for text in (*preview.COLOURS, preview.BASE_COLOUR)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > 0.12


def test_each_concept_has_its_colour_and_the_base_is_grey():
    seen = pixels(
        {"concepts": [{"prompt": "", "mask": {**LEFT, "to": 0.25}}, {"prompt": "", "mask": {**RIGHT, "from": 0.75}}]}
    )
    assert seen.shape == (*SIZE, 3)
    assert close(seen[:, :6], colour(preview.COLOURS[0]))
    assert close(seen[:, 10:22], colour(preview.BASE_COLOUR))
    assert close(seen[:, 26:], colour(preview.COLOURS[1]))


def test_overlapping_concepts_mix():
    seen = pixels({"concepts": [{"prompt": ""}, {"prompt": ""}]})
    assert close(seen, [(a + b) / 2 for a, b in zip(*map(colour, preview.COLOURS[:2]), strict=True)])


def test_a_concept_in_add_mode_is_seen_however_small_its_scale():
    assert (
        pixels({"blend": {"mode": "add"}, "concepts": [{"prompt": ""}]}) == pixels({"concepts": [{"prompt": ""}]})
    ).all()


def test_a_negative_weight_is_striped_and_a_large_one_bright():
    negative = pixels({"concepts": [{"prompt": "", "weight": -1}]}, size=(64, 64)).reshape(-1, 3)
    assert close(negative.min(0), np.minimum(colour(preview.COLOURS[0]), colour(preview.BASE_COLOUR)))
    assert len(np.unique(negative, axis=0)) > 1
    assert (pixels({"concepts": [{"prompt": "", "weight": 3}]}) >= pixels({"concepts": [{"prompt": ""}]})).all()
    assert pixels({"concepts": [{"prompt": "", "weight": 3}]}).sum() > pixels({"concepts": [{"prompt": ""}]}).sum()


def test_pictures_follow_the_keyframes():
    keys = [{"frame": 0, "mask": LEFT}, {"frame": 4, "mask": RIGHT}]
    scene = {"concepts": [{"prompt": "", "keyframes": keys}], "animation": {"frames": 8}}
    assert (pixels(scene, frame=0) == pixels({"concepts": [{"prompt": "", "mask": LEFT}]})).all()
    assert (pixels(scene, frame=4) == pixels({"concepts": [{"prompt": "", "mask": RIGHT}]})).all()


def test_noise_is_where_no_mask_holds():
    seen = pixels({"concepts": [{"prompt": "", "mask": LEFT}], "noise": {"visual": {"strength": 1}}}, "noise").sum(-1)
    assert seen[:, :14].max() < 20
    assert seen[:, 18:].min() > 690
    weaker = pixels({"noise": {"visual": {"strength": 0.5}}}, "noise").sum(-1)
    assert 20 < weaker.max() < 690
    assert pixels({"concepts": [{"prompt": "", "mask": LEFT}]}, "noise").max() < 20


def test_noise_follows_the_envelope_of_each_noise():
    own = {"kind": "sine", "cycles": 1}
    scene = {"noise": {"feature": {"strength": 1, "motion": own}}, "animation": {"frames": 8}}
    assert pixels(scene, "noise", 0).max() < 20
    assert pixels(scene, "noise", 2).sum() == pixels(scene, "noise", 6).sum() > pixels(scene, "noise", 1).sum()


@pytest.mark.parametrize("call", [preview.picture, preview.description])
def test_other_kinds_are_refused(call):
    with pytest.raises(ValueError, match="expected coefficients or noise, got 'mask'"):
        call(Scene(), "mask")


@given(
    st.integers(1, 40),
    st.integers(1, 10),
    st.booleans(),
    st.sampled_from(MOTIONS),
)
def test_a_strip_of_any_motion(frames, count, loop, kind):
    motion = {"kind": kind, "loop": loop, "keyframes": [{"frame": 0, "value": 1}]}
    noise = {name: {"strength": 0.5} for name in ("visual", "concept", "feature")}
    data = {
        "noise": noise,
        "motion": motion,
        "animation": {"frames": frames},
        "concepts": [{"prompt": "", "mask": LEFT}],
    }
    width, height = preview.strip(Scene.parse(data), count, (8, 8)).size
    assert (width, height) == (8 * min(count, frames), 8 * 4)


def test_a_strip_moves_where_it_is_free_alone():
    data = {"concepts": [{"prompt": "", "mask": LEFT}], "motion": {"kind": "circle"}, "animation": {"frames": 8}}
    scene = Scene.parse({**data, "noise": {"visual": {"strength": 1}, "concept": {"strength": 1}}})
    tiles = np.asarray(preview.strip(scene, 4, (32, 32))).reshape(3, 32, 4, 32, 3)[:, 1:-1, :, 1:-1]
    changes = np.ptp(tiles.astype(int), axis=2).max((1, 3))  # of each row and column over the frames
    assert (changes[0] == 0).all()
    assert (changes[1:, :14] == 0).all() and (changes[1:, 18:] > 0).all()


@pytest.mark.parametrize("kind", MOTIONS)
@pytest.mark.parametrize("frames", [1, 24])
def test_the_curve_of_every_motion(kind, frames):
    keys = [{"frame": 0, "value": -1}, {"frame": 12, "value": 1, "easing": "step"}]
    motion = {"kind": kind, "keyframes": keys}
    scene = Scene.parse({"motion": motion, "animation": {"frames": frames}})
    svg = preview.motion_curve(scene, (160, 480))
    root = ElementTree.fromstring(svg)
    lines = root.findall(".//{*}polyline")
    assert len(lines) == {"circle": 2, "linear": 2, "simplex": 8, "walk": 8}.get(kind, 1)
    points = np.array([[*map(float, point.split(","))] for line in lines for point in line.get("points").split()])
    assert (points >= 0).all() and (points <= (480, 160)).all()
    assert "currentColor" in svg
    assert root.find("{*}title").text.startswith("All noise: ")


def test_each_own_motion_has_a_plot():
    scene = Scene.parse({"noise": {"visual": {"motion": {"kind": "sine"}}, "feature": {"motion": {"kind": "walk"}}}})
    words = [
        text.text
        for text in ElementTree.fromstring(preview.motion_curve(scene)).iter("{http://www.w3.org/2000/svg}text")
    ]
    for label in ("All noise", "Visual noise", "Feature noise"):
        assert any(word.startswith(label) for word in words)
    assert not any(word.startswith("Concept noise") for word in words)


def test_pictures_in_words():
    scene = Scene.parse({"concepts": [{"prompt": "a wheat field"}, {"prompt": "", "weight": -0.5}]})
    assert preview.description(scene, "coefficients").endswith("1: a wheat field (1); 2: no prompt (-0.5)")
    assert "visual 0" in preview.description(scene, "noise")
    assert "base prompt" in preview.description(Scene(), "coefficients")


def test_a_concept_that_is_off_is_not_shown_and_the_others_keep_their_colours():
    on = {"prompt": "ice", "mask": {"kind": "split", "to": 0.5}}
    off = {"prompt": "lava", "mask": {"kind": "split", "from": 0.5}}
    second = Scene.parse({"concepts": [{**off, "enabled": False}, on]})
    both = Scene.parse({"concepts": [off, on]})
    shown, full = (np.asarray(preview.picture(scene, "coefficients", 0, (32, 32))) for scene in (second, both))
    assert (shown[:, :14] == full[:, :14]).all() and (shown[:, 18:] != full[:, 18:]).any(-1).all()
    assert "lava" not in preview.description(second, "coefficients")


def test_the_steps_in_which_concepts_act():
    first, second = {"prompt": "a <sea>", "end": 0.5}, {"prompt": "", "start": 0.25}
    scene = Scene.parse({"concepts": [first, second, {"prompt": "off", "enabled": False}], "blend": {"end": 0.75}})
    root = ElementTree.fromstring(preview.steps_chart(scene))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "a <sea>: 0% to 50% of the steps; concept 2: 25% to 75% of the steps"
    bars = [path.get("d") for path in root.iter(f"{space}path") if path.get("stroke-width") == "8"]
    assert bars == ["M20.0 9.0H120.0", "M70.0 27.0H170.0"]  # on lines of 200 pixels
    assert preview.steps_chart(Scene.parse({"concepts": [{"prompt": "x"}]})) == ""
    late = Scene.parse({"concepts": [{"prompt": "x", "start": 0.8}], "blend": {"end": 0.5}})
    assert "x: in no step" in preview.steps_chart(late)
