"""Live painting in the stand-in: whose jobs its pictures are, what a pass ends with, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib_masknoise.live import STEPS, Engine, Settings, Wish
from lib_masknoise.live.engine import PAUSED, REST
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene, SceneError
from lib_masknoise.ui import inputs
from tests.standin.host import Other
from tests.standin.test_blending import scene

TREE = Scene.parse(scene("green tree", "blue sea"))
SETTINGS = Settings(size=(32, 48), prompt="red house", seed=1, steps=6, guidance_scale=5.0, sampler="Euler")
SIZE = (4, 6)


class Leave(Exception):
    """The page has gone away."""


@pytest.fixture
def live(host, monkeypatch):
    """The host with a txt2img tab of our script alone."""
    from modules import scripts

    ours = host.script
    ours.args_from, ours.args_to = 1, 1 + len(inputs.defaults())
    runner = scripts.ScriptRunner([(ours, None)])
    runner.alwayson_scripts = [ours]
    runner.inputs = [SimpleNamespace(value=value) for value in (None, *inputs.defaults())]
    monkeypatch.setattr(scripts, "scripts_txt2img", runner)
    monkeypatch.setattr(host.live, "_autoencoder", lambda: SimpleNamespace(decoder=torch.nn.Linear(2, 2)))
    made = host.live.LiveHost()
    made.runner = runner
    return made


def nothing() -> None:
    """A step."""


def steps(made: list[int], end_at: int = 0, error: type[Exception] = Leave):
    """A function that counts its calls, and raises at one of them."""

    def step() -> None:
        made.append(len(made) + 1)
        if len(made) == end_at:
            raise error("gone")

    return step


def maps(one: Scene) -> Maps:
    return Maps(one, SIZE)


def of(one: Scene, **others) -> Wish:
    return Wish(one, Settings(**{**vars(SETTINGS), **others}))


@pytest.mark.parametrize("forge", ["", "unet"])
@pytest.mark.parametrize(
    "one",
    [
        TREE,
        Scene.parse({}),
        Scene.parse({"enabled": False}),
        Scene.parse({**scene("green tree"), "noise": {"visual": {"strength": 1.0}}}),
    ],
    ids=["concepts", "neutral", "disabled", "noise"],
)
def test_the_picture_is_that_of_a_job(host, live, one, forge):
    host.start(forge=forge)
    (wanted,) = host.run(one.to_dict(), steps=6, seed=1).images
    latents = host.latents(one.to_dict(), steps=6, seed=1)
    made: list[int] = []
    picture, latent = live.full(of(one), maps(one), 0, steps(made))
    assert np.array_equal(np.asarray(picture), np.asarray(wanted)) and len(made) == 6
    assert torch.equal(latent.double(), latents)
    assert picture.info["parameters"] == wanted.info["parameters"]
    assert not host.errors.logged


def test_the_first_frame_of_an_animation_alone(host, live):
    moving = Scene.parse(
        {
            **scene("green tree"),
            "noise": {"visual": {"strength": 1.0}},
            "motion": {"kind": "circle"},
            "animation": {"frames": 3},
        }
    )
    frames = host.latents(moving.to_dict(), steps=6, seed=1)
    made: list[int] = []
    picture, latent = live.full(of(moving), maps(moving), 0, steps(made))
    assert len(made) == 6 and torch.equal(latent.double(), frames[:1])
    assert "MaskNoise frame: 0" in picture.info["parameters"]
    second = live.sketch(of(moving), maps(moving), 1, None, nothing)
    first = live.sketch(of(moving), maps(moving), 0, None, nothing)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("forge", ["", "unet"])
def test_a_sketch_is_a_job_of_few_steps_and_goes_on_from_the_last_one(host, live, forge):
    host.start(forge=forge)
    made: list[int] = []
    first = live.sketch(of(TREE), maps(TREE), 0, None, steps(made))
    assert len(made) == STEPS
    assert torch.equal(first.double(), host.latents(TREE.to_dict(), steps=STEPS, seed=1))
    again: list[int] = []
    second = live.sketch(of(TREE), maps(TREE), 0, first, steps(again))
    assert 0 < len(again) < STEPS and not torch.equal(first, second)
    few: list[int] = []
    live.sketch(of(TREE, steps=1), maps(TREE), 0, first, steps(few))
    assert len(few) == 1, "the one step of a model of one step begins with noise"


@pytest.mark.parametrize(("last", "wanted"), [(0.05, [3, 1]), (0.5, [4, 2])], ids=["hardly any", "more"])
def test_a_sketch_goes_to_the_end_where_hardly_any_noise_is_left(host, live, monkeypatch, last, wanted):
    from modules import sd_samplers

    def sigmas(steps: int, like: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.linspace(4.0, last, steps), torch.zeros(1)]).to(like)

    monkeypatch.setattr(sd_samplers, "sigmas", sigmas)
    first: list[int] = []
    again: list[int] = []
    latent = live.sketch(of(TREE), maps(TREE), 0, None, steps(first))
    live.sketch(of(TREE), maps(TREE), 0, latent, steps(again))
    assert [len(first), len(again)] == wanted
    made: list[int] = []
    live.full(of(TREE), maps(TREE), 0, steps(made))
    assert len(made) == SETTINGS.steps, "the picture itself has all its steps"


def test_a_sketch_encodes_nothing_again(host, live, monkeypatch):
    encoded: list[str] = []
    own = type(host.model).get_learned_conditioning

    def encode(model, texts):
        encoded.extend(texts)
        return own(model, texts)

    monkeypatch.setattr(type(host.model), "get_learned_conditioning", encode)
    live.sketch(of(TREE), maps(TREE), 0, None, nothing)
    assert {"red house", "green tree", "blue sea"} <= set(encoded)
    encoded.clear()
    moved = TREE.replace({"blend.feather": 0.3})
    live.full(of(TREE), maps(TREE), 0, nothing)
    encoded.clear()
    live.sketch(of(moved), maps(moved), 0, None, nothing)
    assert encoded == []


@pytest.mark.parametrize("forge", ["", "unet"])
@pytest.mark.parametrize("kind", ["sketch", "full"])
def test_it_ends_between_two_steps_and_nothing_is_left(host, live, kind, forge):
    host.start(forge=forge)
    plain = host.latents()
    others: list[str] = []
    live.runner.pairs.append((Other(postprocess_image=lambda p, picture: others.append(p)), ()))
    made: list[int] = []
    with pytest.raises(Leave):
        if kind == "sketch":
            live.sketch(of(TREE), maps(TREE), 0, None, steps(made, 2))
        else:
            live.full(of(TREE), maps(TREE), 0, steps(made, 2))
    assert len(made) == 2
    host.assert_clean()
    state = host.shared.state
    assert not (state.interrupted or state.skipped or state.job)
    assert torch.equal(host.latents(), plain)


def test_a_failing_model_fails_the_pass_and_nothing_is_left(host, live):
    plain = host.latents()

    def fail(*args):
        raise RuntimeError("out of memory")

    hook = host.unet.middle_block.register_forward_hook(fail)
    try:
        for kind in (live.full, lambda *args: live.sketch(*args[:3], None, args[3])):
            with pytest.raises(RuntimeError, match="out of memory"):
                kind(of(TREE), maps(TREE), 0, nothing)
    finally:
        hook.remove()
    host.assert_clean()
    assert torch.equal(host.latents(), plain)
    assert not host.shared.cmd_opts.no_prompt_history


def test_the_interrupt_button_ends_it_with_a_word(host, live):
    def interrupt() -> None:
        host.shared.state.interrupt()

    with pytest.raises(host.live.Stopped, match="Interrupted"):
        live.full(of(TREE), maps(TREE), 0, interrupt)
    assert not host.shared.state.interrupted


def test_the_last_job_that_the_host_remembers_is_the_users(host, live):
    host.run(prompt="mine")
    live.full(of(TREE), maps(TREE), 0, nothing)
    assert host.shared.prompt_history == ["mine"]


def test_a_bad_scene_is_refused_with_its_path(host, live):
    wide = Scene.parse({"noise": {"feature": {"strength": 1.0, "dimensions": "9000"}}})
    for kind in (
        lambda: live.full(of(wide), maps(wide), 0, nothing),
        lambda: live.sketch(of(wide), maps(wide), 0, None, nothing),
    ):
        with pytest.raises(Exception, match="noise.feature.dimensions"):
            kind()
    for name in ("sampler", "scheduler"):
        with pytest.raises(SceneError) as raised:
            live.check(of(TREE, **{name: "nonsense"}))
        assert [problem.path for problem in raised.value.problems] == [name]
    live.check(of(TREE, scheduler="karras"))


def test_a_job_in_the_hosts_queue_comes_first(host, live):
    from modules import call_queue

    engine = Engine(live)
    heard: list = []
    inside = threading.Event()
    slow = live._run

    def run(p):
        own = p.step

        def step():
            time.sleep(0.02)
            own()

        p.step = step
        return slow(p)

    live._run = run
    engine.ask("a", of(TREE, steps=100), heard.append)
    end = time.monotonic() + 60
    while not heard and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(REST + 0.2)  # into the picture itself
    start = time.monotonic()
    with call_queue.queue_lock:
        assert time.monotonic() - start < 1, "the running pass makes room between two steps"
        assert not live._mine
        inside.set()
        time.sleep(0.2)
        assert [getattr(event, "words", None) for event in heard][-1] == PAUSED, heard
    while None not in heard and time.monotonic() < end:
        time.sleep(0.02)
    assert [event and event.kind for event in heard] == ["sketch", "paused", "full", None]
    engine.close()


def test_another_setting_of_the_host_is_another_picture(host, live):
    before = live.setting()
    assert live.setting() == before
    host.shared.opts.upcast_attn = True
    assert live.setting() != before


def test_an_autoencoder_without_a_distilled_decoder_is_approximated(host, live, monkeypatch):
    assert live.decode(torch.zeros(1, 4, 4, 6)).size == (6, 4)
    tiny = host.live.TinyDecoder()
    monkeypatch.setattr(host.live, "tiny_decoder", lambda weights: tiny)
    host.shared.opts.upcast_attn = True  # another checkpoint may have been loaded
    assert live.decode(torch.zeros(1, 4, 4, 6)).size == (48, 32)


# --- Who may


class Guarded:
    """An application with a login or a password, or neither."""

    def __init__(self, login: bool, password: bool):
        self.auth = {"somebody": "secret"} if login else None
        self.tokens = {"token": "somebody"}
        self.routes = []
        if password:
            dependency = SimpleNamespace(dependency=self._check)
            self.routes = [SimpleNamespace(path="/sdapi/v1/txt2img", dependencies=[dependency])]

    def _check(self, credentials):
        from fastapi import HTTPException

        if (credentials.username, credentials.password) != ("user", "secret"):
            raise HTTPException(401)


def may(host, app, cookies=(), basic: str = "") -> bool:
    from fastapi import HTTPException, Request

    token = f"Basic {base64.b64encode(basic.encode()).decode()}"
    headers = [(b"cookie", "; ".join(f"{k}={v}" for k, v in cookies).encode())]
    headers += [(b"authorization", token.encode())] if basic else []
    request = Request({"type": "http", "headers": headers})
    try:
        asyncio.run(host.jobs.permission(app)(request))
    except HTTPException as error:
        assert error.status_code == 401
        return False
    return True


@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("password", [False, True])
def test_the_hosts_authentication(host, login, password):
    app = Guarded(login, password)
    for name in ("access-token", "access-token-unsecure", "access-token-unsecure-Xy"):
        assert may(host, app, [(name, "token")]) == (login or not password)
        assert may(host, app, [(name, "forged")]) == (not login and not password)
    assert may(host, app) == (not login and not password)
    assert may(host, app, basic="user:secret") == (password or not login)
    assert may(host, app, basic="user:guess") == (not login and not password)
