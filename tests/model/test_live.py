"""Live painting on the built-in model: the picture at rest is `render`'s, and nothing is left behind."""

import gc

import numpy as np
import pytest
import torch

from lib_masknoise.hosts.diffusers import live, render
from lib_masknoise.hosts.diffusers.live import LiveHost, decoder
from lib_masknoise.live import Engine, Settings, Wish
from lib_masknoise.live.engine import PAUSE
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene

SETTINGS = Settings(size=(64, 96), prompt="a wheat field", negative_prompt="snow", seed=5, steps=3)


def painted(reach: float, **others) -> Scene:
    stroke = {"points": [[0.1, 0.2], [reach, 0.7]], "radius": 0.2}
    concept = {"prompt": "an ocean", "negative": "lava", "mask": {"kind": "strokes", "strokes": [stroke]}}
    return Scene.parse({"concepts": [concept], **others})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(pipe, clock):
    return Engine(LiveHost(pipe), clock, start=False)


def show(engine, clock, scene, settings=SETTINGS, rest=False):
    heard = []
    engine.ask("a", Wish(scene, settings), heard.append)
    engine.work()
    while rest and heard[-1] is not None:
        clock.now += 1
        engine.work()
    errors = [event.words for event in heard if event and event.kind == "error"]
    assert not errors, errors
    return [event for event in heard if event is not None]


def rendered(pipe, scene, settings=SETTINGS) -> bytes:
    (frame,) = render(
        pipe,
        scene,
        settings.prompt,
        settings.negative_prompt,
        seed=settings.seed,
        steps=settings.steps,
        size=settings.size,
        guidance_scale=settings.guidance_scale,
        frames=[0],
    )
    return frame.image.tobytes()


NOISES = {
    "noise": {"visual": {"strength": 0.5}, "concept": {"strength": 1.0}, "feature": {"strength": 0.3}},
    "motion": {"kind": "circle"},
}


@pytest.mark.parametrize(
    "others",
    [{}, NOISES, {"blend": {"start": 0.4, "end": 0.9}}, {"blend": {"preserve_norm": True}}, {"enabled": False}],
)
def test_the_picture_at_rest_is_that_of_render(pipe, engine, clock, others):
    show(engine, clock, painted(0.3, **others))
    show(engine, clock, painted(0.6, **others))
    *_, last = show(engine, clock, painted(0.9, **others), rest=True)
    assert last.kind == "full"
    assert last.image.tobytes() == rendered(pipe, painted(0.9, **others))


@pytest.mark.parametrize("name", ["EulerAncestral", "DDIM", "DPMSolverMultistep", "Heun", "LCM", "PNDM", "UniPC"])
def test_any_scheduler_sketches(pipe, engine, clock, name, monkeypatch):
    import diffusers

    kind = next(
        getattr(diffusers, f"{name}{ending}")
        for ending in ("DiscreteScheduler", "MultistepScheduler", "Scheduler")
        if hasattr(diffusers, f"{name}{ending}")
    )
    options = {"skip_prk_steps": True} if name == "PNDM" else {}  # as Stable Diffusion has it
    monkeypatch.setattr(pipe, "scheduler", kind.from_config(pipe.scheduler.config, **options))
    show(engine, clock, painted(0.3))
    *_, sketch = show(engine, clock, painted(0.9))
    assert sketch.kind == "sketch" and 1 <= sketch.steps <= 8
    *_, last = show(engine, clock, painted(0.9), rest=True)
    assert last.image.tobytes() == rendered(pipe, painted(0.9))


SCHEDULERS = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler, trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "Euler, v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "DDIM, v": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "DPM++": ("DPMSolverMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}
NOISE_OF_THEIR_OWN = ("Euler a", "LCM")


class Oracle:
    """A U-Net that finds the same picture under any noise. inputs: the noise that it was given beside the picture that
    was expected there, in units of its standard deviation, and the timesteps."""

    def __init__(self, pipe, target):
        self.target, self.expected = target, target
        self.alphas, self.kind = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
        self.noises, self.times = [], []

    def __call__(self, x, t, **others):
        a = self.alphas[int(t)].float()
        self.noises.append(((x - a.sqrt() * self.expected) / (1 - a).sqrt())[-1:])
        self.times.append(int(t))
        noise = (x - a.sqrt() * self.target) / (1 - a).sqrt()
        return (noise if self.kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * self.target,)


@pytest.fixture(params=SCHEDULERS)
def few_steps(request, pipe, monkeypatch):
    """A pipeline with a scheduler and an oracle: (name, oracle, how to sketch)."""
    import diffusers

    kind, options = SCHEDULERS[request.param]
    scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    oracle = Oracle(pipe, torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(7)))
    monkeypatch.setattr(pipe.unet, "forward", oracle)
    host = LiveHost(pipe)
    wish = Wish(painted(0.5), Settings(size=(64, 96), prompt="a wheat field", seed=5, steps=8))

    def sketch(last):
        oracle.noises.clear(), oracle.times.clear()
        return host.sketch(wish, Maps(wish.scene, (8, 12)), 0, last, lambda: None)

    return request.param, oracle, sketch


def test_few_steps_lead_to_what_the_unet_finds(few_steps):
    """Every scheduler ends with the picture that its U-Net has seen all the time, from noise and from a last sketch."""
    name, oracle, sketch = few_steps
    for last in (None, torch.randn(1, 4, 8, 12)):
        # Those two families end at their first timestep, at which there is a little noise.
        left = 0.15 if name.startswith(("TCD", "DDIM")) else 0.05
        assert torch.allclose(sketch(last), oracle.target, atol=left), name


def test_a_sketch_goes_on_from_the_last_with_the_noise_that_belongs_there(few_steps):
    """The first call of the U-Net sees the last sketch under noise of exactly the timestep's strength: the first noise,
    or what a scheduler draws between its steps, the same that it draws where it begins with noise."""
    name, oracle, sketch = few_steps
    last = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(9))
    oracle.expected = oracle.target = last  # as if the first step of all had found it
    sketch(None)
    order = 2 if name == "Heun" else 1
    first, there, times = oracle.noises[0], oracle.noises[order], oracle.times[order:]
    sketch(last)
    assert oracle.times == times, "the steps that are left, and no others"
    given = oracle.noises[0]
    assert abs(float(given.std()) - 1) < 0.1 and abs(float(given.mean())) < 0.1
    assert torch.allclose(given, there, atol=0.3), "as from noise, but for the picture in the first noise"
    if name in NOISE_OF_THEIR_OWN:
        assert not torch.allclose(given, first, atol=1.0)
    else:
        assert torch.allclose(given, first, atol=0.3)
    again = oracle.noises[0]
    sketch(last)
    assert torch.equal(oracle.noises[0], again), "the same noise every time: nothing flickers"


def test_a_sketch_shows_what_the_picture_will_be(pipe, engine, clock):
    settings = Settings(size=(128, 128), prompt="a wheat field", seed=3, steps=12)
    for reach in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        glance = show(engine, clock, painted(reach), settings)[-1]
    clock.now += PAUSE
    engine.work()
    sketch = engine.picture("a")
    last = show(engine, clock, painted(0.9), settings, rest=True)[-1]
    without = show(engine, clock, Scene.parse({}), settings, rest=True)[-1]
    assert (glance.steps, sketch.steps, last.kind) == (1, 3, "full"), "so much at once is sketched from noise"
    pictures = (np.asarray(one.image, np.float32) for one in (glance, sketch, last, without))
    glance, sketch, last, without = pictures
    whole = np.abs(without - last).mean()
    assert np.abs(sketch - last).mean() < 0.5 * whole
    assert np.abs(glance - last).mean() < 0.65 * whole


def test_a_step_with_hardly_any_noise_asks_the_model_no_more(pipe, clock, monkeypatch):
    made = {}
    for faint in (live.FAINT, 0.0):
        monkeypatch.setattr(live, "FAINT", faint)
        engine = Engine(LiveHost(pipe), clock, start=False)
        show(engine, clock, painted(0.3))
        made[faint] = show(engine, clock, painted(0.9))[-1]
    quick, exact = made.values()
    assert (quick.steps, exact.steps) == (SETTINGS.steps - 1, SETTINGS.steps)
    gap = np.abs(np.asarray(quick.image, np.float32) - np.asarray(exact.image, np.float32))
    assert gap.mean() < 1.5  # of 255


def test_one_step_of_a_turbo_model_is_the_sketch(engine, clock):
    settings = Settings(size=(64, 64), prompt="lava", steps=1, guidance_scale=1.0)
    assert show(engine, clock, painted(0.5), settings)[-1].steps == 1
    assert show(engine, clock, painted(0.9), settings)[-1].steps == 1


def test_a_sketch_projects_no_context_again(pipe, engine, clock):
    calls = []
    show(engine, clock, painted(0.3))
    layers = [module.to_k for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_pre_hook(lambda *args: calls.append(1)) for layer in layers]
    try:
        show(engine, clock, painted(0.6))
        show(engine, clock, painted(0.9))
    finally:
        for hook in hooks:
            hook.remove()
    assert layers and calls == []


def test_interrupts_and_errors_leave_the_pipeline_as_it_was(pipe, engine, clock):
    before = rendered(pipe, painted(0.7))
    state = dict(pipe.unet.attn_processors), list(pipe.unet._forward_pre_hooks), pipe.scheduler
    host = engine.host
    for stop_at in range(4):
        calls = 0
        original = host.sketch

        def sketch(wish, maps, frame, last, step, steps, original=original, stop_at=stop_at):
            def counted():
                nonlocal calls
                calls += 1
                if calls > stop_at:
                    raise RuntimeError("stopped")
                step()

            return original(wish, maps, frame, last, counted, steps)

        host.sketch = sketch
        heard = []
        engine.ask("a", Wish(painted(0.2 + 0.1 * stop_at), SETTINGS), heard.append)
        engine.work()
        host.sketch = original
        assert [event.kind for event in heard if event] in (["error"], ["sketch"])
    assert (dict(pipe.unet.attn_processors), list(pipe.unet._forward_pre_hooks), pipe.scheduler) == state
    assert rendered(pipe, painted(0.7)) == before


def test_the_built_in_model_has_a_decoder_of_its_own(pipe):
    """Distilled: much nearer to the autoencoder's pictures than one colour a latent's element is."""
    out = pipe("a forest", height=128, width=128, num_inference_steps=6, output_type="latent", guidance_scale=4.0,
               generator=torch.Generator().manual_seed(0))  # fmt: skip
    exact = pipe.vae.decode(out.images / pipe.vae.config.scaling_factor).sample.detach()[0]
    exact = ((exact / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    quick = np.asarray(decoder(pipe)(out.images), np.float32)
    blocks = exact.reshape(16, 8, 16, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    assert quick.shape == exact.shape
    assert np.abs(quick - exact).mean() < min(10, np.abs(blocks - exact).mean())


def test_a_sketch_leaves_a_core_to_the_browser(pipe, engine, clock):
    """The finished picture does not: with other threads it would round otherwise than `render`."""
    before, counts = torch.get_num_threads(), []
    hook = pipe.unet.register_forward_pre_hook(lambda *_: counts.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        show(engine, clock, painted(0.4), rest=True)
        assert set(counts) == {2, 3} and counts == sorted(counts) and torch.get_num_threads() == 3
        engine.ask("a", Wish(painted(0.6), SETTINGS), lambda event: None)
        broken = pipe.unet.register_forward_pre_hook(lambda *_: 1 / 0)
        engine.work()
        broken.remove()
        assert torch.get_num_threads() == 3
    finally:
        hook.remove()
        torch.set_num_threads(before)


@pytest.mark.slow
def test_edits_do_not_grow(pipe, engine, clock):
    psutil = pytest.importorskip("psutil")
    settings = Settings(size=(64, 64), prompt="a wheat field", seed=5, steps=3)
    before = rendered(pipe, painted(0.7), settings)

    def edits(count):
        for i in range(count):
            show(engine, clock, painted(0.1 + 0.8 * (i % 101) / 101), settings)
        gc.collect()
        return psutil.Process().memory_info().rss / 1e6

    first = edits(100)
    grown = edits(400) - first
    print(f"400 edits: {grown:+.1f} MB")
    assert grown < 4
    assert rendered(pipe, painted(0.7), settings) == before
