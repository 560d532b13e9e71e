"""The useful range on the sliders of the page, for a model that has a profile."""

import math

import pytest

from lib_masknoise.calibrate.profile import Band, Profile, Profiles
from lib_masknoise.hosts.diffusers.calibrating import model_hash
from lib_masknoise.scene import Scene
from lib_masknoise.ui.live import bands

SLIDER = "#masknoise_noise_visual_strength"
BANDS = (
    Band("noise.visual.strength", 0.2, 0.8),
    Band("concepts[].weight", 1.25, 2.5),
    Band("blend.scale", 0.2, 0.4),
)


@pytest.fixture
def profile(home):
    """The profile of the page's model, for one test."""
    kept = Profile(model_hash(None), ("an ocean",), {band.effect: band for band in BANDS}, "built-in")
    path = Profiles(home / ".masknoise" / "profiles").save(kept)
    yield kept
    path.unlink()


def type_number(page, value):
    field = page.locator(f"{SLIDER} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def band_of(page, scope=SLIDER):
    return page.locator(f"{scope} .mn-band")


def test_without_a_profile_there_is_no_band(painter):
    type_number(painter.page, 0.31)
    painter.page.wait_for_timeout(1500)
    assert painter.page.locator(".mn-band").count() == 0


def test_a_slider_has_the_band_of_the_model_and_says_the_place(profile, painter):
    page = painter.page
    type_number(page, 0.4)
    page.wait_for_selector(f"{SLIDER} .mn-band", timeout=30_000)
    assert band_of(page).inner_text().strip() == "50 % · useful 0.2 – 0.8"
    painted = band_of(page).locator("i").evaluate("node => node.style.background")
    assert "20" in painted and "80" in painted
    type_number(page, 0.1)
    assert "invisible" in band_of(page).inner_text()
    type_number(page, 0.9)
    assert "breaks" in band_of(page).inner_text()
    page.wait_for_selector("#masknoise_preview .mn-remarks >> text=pictures break with this model", timeout=30_000)
    assert page.locator("#masknoise_blend_scale .mn-band").count() == 0  # the mode is not add


@pytest.mark.parametrize(
    "band",
    [
        Band("noise.visual.strength", 0.2, None),
        Band("noise.feature.strength", 0.5, 1.2, 32, (0.1, 0.5, 1, 4), (0.05, 0.3, 0.5, 2), 2.5, (0.05, 0.3, 0.7, 3)),
        Band("concepts[].weight", 1.2, 1.5, lost=2.5),
    ],
    ids=lambda band: band.effect,
)
def test_the_page_and_python_mean_the_same_per_cent(painter, band):
    (shown,) = bands(Scene(), Profile("ab" * 32, (), {band.effect: band})).values()
    values = [band.origin + above for above in (0, 0.001, 0.1, 0.2, 0.21, 0.3, 0.5, 0.79, 0.8, 0.9, 1, 1.5, 2, 2.99)]
    found = painter.page.evaluate(
        "([values, band]) => values.map((value) => MaskNoise.bandPercent(value, band))", [values, shown]
    )
    assert [-math.inf if percent is None else percent for percent in found] == pytest.approx(
        [band.percent(value) for value in values]
    )


def test_a_concepts_weight_has_one_too(profile, painter):
    page = painter.page
    painter.add_concept("an ocean")
    page.wait_for_selector(".mn-sliders .mn-band", timeout=30_000)
    assert "useful 1.3 – 2.5" in page.locator(".mn-sliders .mn-band").first.inner_text()
    slider = page.locator(".mn-sliders input[aria-label='Weight'][type=range]").first.bounding_box()
    band = page.locator(".mn-sliders .mn-band i").first.bounding_box()
    assert (band["x"], band["width"]) == (pytest.approx(slider["x"], abs=2), pytest.approx(slider["width"], abs=2))


def test_finding_style_tells_how_far_it_is_and_can_be_stopped(painter, home):
    page = painter.page
    painter.open_accordion("Useful range")
    page.locator("#masknoise_calibrate_style").click()
    page.wait_for_selector("#masknoise_calibrate_progress >> text=rows", timeout=60_000)
    page.locator("#masknoise_calibrate_stop").click()
    page.wait_for_selector("#masknoise_calibrate_progress >> text=Stopped.", timeout=60_000)
    assert not list((home / ".masknoise" / "profiles").glob("*.json"))
