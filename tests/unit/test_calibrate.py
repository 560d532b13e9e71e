"""Finding the useful range, on a model whose range is known: what a strength moves is a number times it."""

import base64
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_masknoise.calibrate import measuring, style
from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.effects import EFFECTS, Case, cases
from lib_masknoise.calibrate.measuring import Run, at, calibrate, crossing, joined
from lib_masknoise.calibrate.profile import Band, Profile, Profiles
from lib_masknoise.calibrate.requests import USUAL_PROMPTS, CalibrateRequest, prompts_of
from lib_masknoise.explore.model import Moment, Recording, Stop
from lib_masknoise.explore.workshop import Workshop
from lib_masknoise.maps import Maps, coefficients
from lib_masknoise.motion import envelope
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.settings import Settings

HASH = "ab" * 32
SIZE = (64, 64)
GAINS = {"visual": 1.0, "concept": 0.25, "feature": 0.6, "add": 0.8, "interpolate": 0.9}
"""How far a strength of 1 moves a picture, in units of what two seeds differ by, about."""
PICTURE = 0.5
"""How much further a finished picture moves than what the denoiser is heading for."""


def strength_of(scene, frame):
    """The strength that a frame of an effect's scene has, and the gain of that effect."""
    for name in ("visual", "concept", "feature"):
        noise = getattr(scene.noise, name)
        if noise.strength:
            motion = noise.motion or scene.motion
            return noise.strength * envelope(motion, frame, scene.animation.frames), GAINS[name]
    if not scene.concepts:
        return 0.0, 0.0
    weight = Maps(scene, (8, 8)).passages([frame])[0][0].weight
    return (weight if scene.blend.mode == "add" else weight - 1), GAINS[scene.blend.mode]


class Linear:
    """A model that heads for the picture of its seed, moved by the strength times a gain, and finishes half as far."""

    size = SIZE

    def __init__(self):
        self.calls, self.rows, self.pictures = 0, 0, 0

    def identity(self):
        return HASH, "linear"

    @staticmethod
    def seed(seed):
        return 0.3 * torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))

    @staticmethod
    def moved(x, scene, frame, factor=1.0):
        strength, gain = strength_of(scene, frame)
        away = 0.3 * 2**0.5 * torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(99))
        return x + factor * strength * gain * away

    @staticmethod
    def image(x):
        pixels = (x[:3].permute(1, 2, 0).numpy() * 40 + 128).clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels)

    def recorded(self, scene, settings, report):
        report(1)
        assert not scene.enabled
        x = self.seed(settings.seed)
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(settings.seed + 1000))
        moments = [Moment(sigma, noise, x) for sigma in (14.0, 7.0, 4.0, 2.0, 1.0)]
        return Recording([*moments, Moment(0.0, x, x)], self.image(x))

    def rendered(self, scene, settings, frames, report):
        for frame in frames:
            report(1)
            self.pictures += 1
            yield self.image(self.moved(self.seed(settings.seed), scene, frame, PICTURE))

    def heading(self, scene, settings, frames, x_t, step, sigma):
        assert (step, sigma) == (2, 4.0) and len(x_t) == len(frames)
        self.calls, self.rows = self.calls + 1, self.rows + len(frames)
        return torch.stack([self.moved(self.seed(settings.seed), scene, frame) for frame in frames])


@contextmanager
def silent(what, total, unit):
    yield lambda more: None


def made(model=None, prompts=("a", "b"), **options):
    settings = Settings(size=SIZE, guidance_scale=4.0)
    return calibrate(model or Linear(), prompts, settings, Scene(), silent, **options)


# --- Curves


@given(st.floats(0.3, 3), st.floats(0.01, 10), st.floats(0.05, 0.9))
def test_a_power_law_is_crossed_exactly(slope, factor, target):
    scales = [0.01 * 2**i for i in range(12)]
    values = [factor * scale**slope for scale in scales]
    true = (target / factor) ** (1 / slope)
    found = crossing(scales, values, target)
    if true > scales[-1] * 1.0001:
        assert found is None
    elif scales[0] / 3.9 < true < scales[-1] * 0.9999:
        assert found == pytest.approx(true, rel=1e-6)
        if true >= scales[0]:
            assert at(scales, values, found) == pytest.approx(target, rel=1e-6)


def test_what_never_gets_there_has_no_crossing():
    assert crossing([1, 2, 4], [0.0, 0.1, 0.2], 0.3) is None
    assert crossing([1, 2, 4], [0.0, 0.0, 0.0], 0.3) is None


# --- Scenes


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.path)
def test_frames_are_strengths(effect):
    case = Case("red", "blue")
    scales = effect.scales(8)
    assert scales[0] == pytest.approx(effect.origin + effect.lowest) and scales[-1] == pytest.approx(effect.highest)
    scene = effect.scene(case, scales, Scene())
    found = [strength_of(scene, frame)[0] for frame in range(8)]
    assert found == pytest.approx([scale - effect.origin for scale in scales])
    assert effect.base(case) in case and effect.plain(case) in case


def test_at_the_origin_a_scene_is_its_plain_picture():
    """Additive by a coefficient of 0, a weight of 1 by that of the concept alone."""
    for effect, expected in zip(EFFECTS[:2], ([1.0, 0.0], [0.0, 1.0]), strict=True):
        scene = effect.scene(Case("red", "blue"), [effect.origin], Scene())
        maps = Maps(scene, (2, 2))
        (row,) = maps.passages([0])
        a = coefficients(maps.weights([0])[0], [one.weight for one in row], scene.blend.mode, scene.blend.scale)
        assert a[:, 0, 0].tolist() == expected


def test_each_prompt_is_put_over_the_next_one():
    assert cases(["a", "b", "c"]) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert cases(["a"]) == [("a", "")]


# --- Ends


def test_the_visible_end_is_where_the_pictures_say_it_is():
    """Pictures move half as far as what the denoiser is heading for, which a run finds out."""
    profile = made()
    for path, gain in zip((one.path for one in EFFECTS), ("add", "interpolate", *GAINS), strict=False):
        band = profile.effects[path]
        if band.visible is not None:
            assert band.visible - band.origin == pytest.approx(0.3 / (PICTURE * GAINS[gain]), rel=0.35)
    assert profile.effects["noise.visual.strength"].broken is None


def test_more_than_half_is_lost_where_pictures_move_far_enough(monkeypatch):
    monkeypatch.setitem(GAINS, "feature", 2.0)
    for strained in ("STRAINED", "OVERSTRAINED"):
        monkeypatch.setattr(measuring, strained, 10.0)
    (effect,) = (one for one in EFFECTS if one.path == "noise.feature.strength")
    band = made(effects=[effect]).effects[effect.path]
    found = (band.visible, band.broken, band.lost)
    assert found == pytest.approx([change / (PICTURE * 2.0) for change in (0.3, effect.breaks, effect.loses)], rel=0.2)
    monkeypatch.setitem(GAINS, "feature", 0.3)
    assert made(effects=[effect]).effects[effect.path].lost is None  # not up to the bound


def test_what_moves_straight_away_goes_as_far_as_it_changes():
    band = made().effects["noise.feature.strength"]
    assert band.lengths == pytest.approx(band.changes, rel=1e-3)


class Turning(Linear):
    """A model whose pictures turn into others of the same seed's distance, as those of visual noise do."""

    @staticmethod
    def moved(x, scene, frame, factor=1.0):
        angle = torch.pi / 2 * torch.tensor(strength_of(scene, frame)[0])
        away = 0.3 * torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(99))
        return x * angle.cos() + away * angle.sin()


def test_what_turns_goes_further_than_it_changes_and_equal_steps_turn_equally():
    (effect,) = (one for one in EFFECTS if one.path == "noise.visual.strength")
    band = made(Turning(), effects=[effect]).effects[effect.path]
    assert band.lengths[-1] > 1.05 * band.changes[-1]

    def unevenness(band):
        steps = np.diff([band.value(percent) for percent in range(0, 101, 20)])
        return steps.max() / steps.min()

    assert unevenness(band) < 1.2 < 1.35 < unevenness(replace(band, lengths=()))


def test_it_takes_few_rows_and_two_short_runs_an_effect():
    model = Linear()
    profile = made(model, prompts=("a",))
    assert model.rows == 32 * len(EFFECTS) and all(band.rows <= 40 for band in profile.effects.values())
    assert model.pictures == 2 * measuring.SEEDS * len(EFFECTS)


def test_a_judge_moves_the_broken_end_down():
    effects = [one for one in EFFECTS if one.path == "noise.feature.strength"]
    free = made(effects=effects).effects["noise.feature.strength"]
    strict = made(effects=effects, judge=lambda image, effect, case: 0.9 if image_is_near(image) else 0.1)
    assert strict.effects["noise.feature.strength"].broken < (free.broken or free.top)


def image_is_near(image):
    plain = np.mean([np.asarray(Linear.image(Linear.seed(seed)), float) for seed in range(4)], axis=0)
    return np.sqrt(((np.asarray(image, float) - plain) ** 2).mean()) < 13.5


def test_what_is_not_seen_up_to_the_bound_has_no_end(monkeypatch):
    monkeypatch.setitem(GAINS, "concept", 0.001)
    band = made().effects["noise.concept.strength"]
    assert band.visible is band.broken is None and band.place(4) == "invisible"


def test_bands_of_several_prompts_are_joined_by_their_means():
    one = Band("blend.scale", 0.2, 0.4, 32, (1.0,), (0.1,), 0.5, (0.2,))
    other = Band("blend.scale", 0.8, 1.6, 32, (1.0,), (0.3,), 2.0, (0.4,))
    both = joined([one, other])
    assert (both.visible, both.broken, both.lost) == tuple(map(pytest.approx, (0.4, 0.8, 1.0)))
    assert (both.changes, both.lengths) == ((pytest.approx(0.2),), (pytest.approx(0.3),))
    assert joined([one, replace(other, broken=None), replace(other, broken=None)]).broken is None


def test_a_stop_ends_it():
    @contextmanager
    def impatient(what, total, unit):
        done = 0.0

        def report(more):
            nonlocal done
            done += more
            if done > 9:
                raise Stop

        yield report

    with pytest.raises(Stop):
        calibrate(Linear(), ["a"], Settings(size=SIZE), Scene(), impatient)


def test_progress_ends_where_it_said():
    told = []

    @contextmanager
    def stage(what, total, unit):
        told.append(total)
        yield told.append

    calibrate(Linear(), ["a", "b"], Settings(size=SIZE), Scene(), stage)
    assert sum(told[1:]) == pytest.approx(told[0])


def test_a_run_may_be_of_nothing():
    assert Run(1.0, 0.0).right is None


# --- Requests and their keeping


def test_prompts_are_those_named_else_the_scenes_else_usual_ones():
    scene = Scene.parse({"concepts": [{"prompt": text} for text in ("lava", "ice", "lava", "snow", "")]})
    assert prompts_of(("x", "y"), "z", scene) == ("x", "y")
    assert prompts_of((), "z", scene) == ("lava", "ice", "snow")
    assert prompts_of((), "z", Scene()) == ("z",)
    assert prompts_of((), "", None) == USUAL_PROMPTS


class Host:
    def __init__(self):
        self.model = Linear()

    def settings(self, asked):
        return asked.settings()

    def state(self):
        return "linear"

    @contextmanager
    def turn(self):
        yield

    def progress(self, words, done, total):
        pass


@pytest.fixture
def calibrator(tmp_path):
    host = Host()
    return Calibrator(Workshop(host, tmp_path / "work"), Profiles(tmp_path / "profiles"), host.model.identity)


ASKED = {"prompts": ["a", "b"], "width": 64, "height": 64}


def test_a_profile_is_kept_and_reused(calibrator):
    assert calibrator.current() is None
    profile = calibrator.make(CalibrateRequest.parse(ASKED))
    assert calibrator.current() == profile and profile.prompts == ("a", "b")
    calls = calibrator.workshop.host.model.calls
    again = Calibrator(Workshop(Host(), calibrator.workshop.folder), calibrator.profiles, lambda: (HASH, ""))
    assert again.make(CalibrateRequest.parse(ASKED)) == profile
    assert again.workshop.host.model.calls == 0 < calls
    again.make(CalibrateRequest.parse({**ASKED, "again": True}))
    assert again.workshop.host.model.calls == calls


def test_other_prompts_are_measured_and_the_style_stays(calibrator):
    first = calibrator.make(CalibrateRequest.parse(ASKED))
    calibrator.profiles.save(replace(first, style={"rank": 4}))
    second = calibrator.make(CalibrateRequest.parse({**ASKED, "prompts": ["c"]}))
    assert second.prompts == ("c",) and second.style == {"rank": 4}


def test_style_is_found_with_prompts_of_its_own_and_the_ranges_stay(calibrator, monkeypatch):
    with pytest.raises(SceneError, match="prompts: expected none"):
        CalibrateRequest.parse({"style": True, "prompts": ["a"]})
    first = calibrator.make(CalibrateRequest.parse(ASKED))
    found = style.Found(torch.eye(2), ("mid",), {"style": torch.ones(1, 1, 2)})
    seen = []

    def styled(settings, measure):
        seen.append(settings.size)
        return found

    monkeypatch.setattr(calibrator.workshop.host.model, "styled", styled, raising=False)
    asked = CalibrateRequest.parse({"style": True, "width": 64, "height": 128})
    second = calibrator.make(asked)
    assert second.effects == first.effects and second.style == found.to_dict() and seen == [(128, 64)]
    assert calibrator.make(asked) == second and len(seen) == 1
    assert calibrator.make(CalibrateRequest.parse(ASKED)) == second


def test_presets_in_per_cent_become_numbers_of_its_model(calibrator):
    with pytest.raises(SceneError, match="no profile"):
        calibrator.numbers({"noise": {"visual": {"strength": "50%"}}})
    band = calibrator.make(CalibrateRequest.parse(ASKED)).effects["noise.visual.strength"]
    data = calibrator.numbers({"noise": {"visual": {"strength": "50%"}}})
    assert data["noise"]["visual"]["strength"] == pytest.approx(band.value(50))


def test_a_profile_of_an_earlier_version_is_measured_again(calibrator):
    made = calibrator.make(CalibrateRequest.parse(ASKED))
    calibrator.profiles.save(replace(made, version=1))
    assert calibrator.current().version == 1
    assert calibrator.make(CalibrateRequest.parse(ASKED)) == made == calibrator.current()


def test_a_broken_profile_is_none(calibrator, tmp_path):
    (tmp_path / "profiles").mkdir()
    calibrator.profiles.path(HASH).write_text("{")
    assert calibrator.current() is None


# --- Routes


@pytest.fixture
def client(calibrator):
    pytest.importorskip("httpx")
    fastapi = pytest.importorskip("fastapi")
    from fastapi.security import HTTPBasic, HTTPBasicCredentials
    from fastapi.testclient import TestClient

    from lib_masknoise.calibrate_routes import add_calibrate

    def check(credentials: HTTPBasicCredentials = fastapi.Depends(HTTPBasic())):  # noqa: B008
        if credentials.password != "right":
            raise fastapi.HTTPException(401)

    app = fastapi.FastAPI()
    add_calibrate(app, calibrator, [fastapi.Depends(check)])
    return TestClient(app)


AUTH = {"Authorization": "Basic " + base64.b64encode(b"me:right").decode(), "Content-Type": "application/json"}
PATH = "/masknoise/v1/calibrate"


def test_the_route_answers_with_the_profile(client):
    assert client.get("/masknoise/v1/profile", headers=AUTH).status_code == 404
    answer = client.post(PATH, content=json.dumps(ASKED), headers=AUTH)
    assert answer.status_code == 200
    assert client.get("/masknoise/v1/profile", headers=AUTH).json() == answer.json()
    profile = Profile.parse(answer.json())
    assert set(profile.effects) == {one.path for one in EFFECTS}


@pytest.mark.parametrize(
    "body, path",
    [
        ({"prompts": "a"}, "prompts"),
        ({"prompts": ["a"] * 9}, "prompts"),
        ({"width": 65}, "width"),
        ({"scene": {"noise": {"visual": {"strength": 3}}}}, "scene.noise.visual.strength"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(client, body, path):
    answer = client.post(PATH, content=json.dumps(body), headers=AUTH)
    assert (answer.status_code, [one["path"] for one in answer.json()]) == (422, [path])


def test_it_asks_for_the_hosts_password(client):
    wrong = {**AUTH, "Authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}
    assert client.post(PATH, content="{}", headers=wrong).status_code == 401
    assert client.get("/masknoise/v1/profile", headers=wrong).status_code == 401
    assert client.post(f"{PATH}/stop", content="{}", headers=wrong).status_code == 401


def test_other_bodies_are_no_requests(client):
    assert client.post(PATH, content="{}", headers={**AUTH, "Content-Type": "text/plain"}).status_code == 415
    assert client.post(f"{PATH}/stop", content='{"session": "x"}', headers=AUTH).status_code == 204
