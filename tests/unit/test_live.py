"""The live engine's scheduling, on a host that counts, and its route."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

from lib_masknoise.live import GLANCE, STEPS, Engine, Settings, Turns, Wish, imprint
from lib_masknoise.live.decoding import TinyDecoder, fingerprint, linear_rgb, tiny_decoder
from lib_masknoise.live.engine import BREATH, PAUSE, REST, UNREAD, moves
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Problem, Scene, SceneError
from lib_masknoise.wildcards import Wildcards

SETTINGS = Settings(size=(64, 64), prompt="a marsh", steps=8)
SKETCH_STEPS = STEPS - 1


class CountingHost:
    """Samples nothing and says what it was asked for. before_step: called in front of every step."""

    factor = 8

    def __init__(self, turns: Turns | None = None) -> None:
        self.turns = turns or Turns()
        self.calls = 0
        self.passes: list[str] = []
        self.lasts: list[torch.Tensor | None] = []
        self.before_step = lambda: None
        self.model = "one"

    def setting(self):
        return self.model

    def wildcards(self):
        return Wildcards()

    def check(self, wish) -> None:
        if wish.settings.sampler:
            raise SceneError((Problem("sampler", "expected none"),))

    @contextmanager
    def turn(self):
        with self.turns.live():
            yield

    def busy(self) -> bool:
        return self.turns.busy

    def _steps(self, count, step) -> None:
        for _ in range(count):
            self.before_step()
            self.calls += 1
            step()

    def sketch(self, wish, maps, frame, last, step, steps):
        self.lasts.append(last)
        self._steps(steps - 1, step)
        self.passes.append(f"{'glance' if steps == GLANCE else 'sketch'} {frame}")
        return torch.full((1, 4, 8, 8), float(len(self.passes)))

    def full(self, wish, maps, frame, step):
        self._steps(wish.settings.steps, step)
        self.passes.append("full")
        return Image.new("RGB", (64, 64)), torch.zeros(1, 4, 8, 8)

    def decode(self, latent):
        return Image.new("RGB", (64, 64), (int(latent.flatten()[0]), 0, 0))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def host():
    return CountingHost()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(host, clock):
    return Engine(host, clock, start=False)


def scene(start: float = 0.5, **others) -> Scene:
    mask = {"kind": "split", "axis": "x", "from": start, "feather": 0.1}
    return Scene.parse({"concepts": [{"prompt": "an ocean", "mask": mask}], **others})


def ask(engine, what: Scene, name: str = "a", **others) -> list:
    heard: list = []
    engine.ask(name, Wish(what, SETTINGS, **others), heard.append)
    return heard


def work(engine) -> int:
    """Everything that is due; how many times."""
    count = 0
    while engine.work():
        count += 1
        assert count < 100
    return count


def once(act):
    """A function that does something at its first call only."""
    acts = [act]
    return lambda: acts.pop()() if acts else None


def kinds(heard: list) -> list:
    return [None if event is None else event.kind for event in heard]


def test_a_sketch_at_once_and_the_picture_after_a_rest(engine, host, clock):
    heard = ask(engine, scene())
    work(engine)
    assert kinds(heard) == ["sketch"]
    clock.now += REST - 0.01
    assert work(engine) == 0
    clock.now += 0.02
    work(engine)
    assert kinds(heard) == ["sketch", "full", None]
    assert host.calls == SKETCH_STEPS + SETTINGS.steps
    clock.now += 1000
    assert work(engine) == 0, "an idle page costs nothing"


def test_a_glance_follows_the_hand_and_a_sketch_comes_where_it_pauses(engine, host, clock):
    for start in (0.5, 0.48, 0.46):
        heard = ask(engine, scene(start))
        work(engine)
        clock.now += PAUSE / 2
    assert host.passes == ["sketch 0", "glance 0", "glance 0"], "from noise, a glance would be too little"
    clock.now += PAUSE
    work(engine)
    assert host.passes[3:] == ["sketch 0"] and host.lasts[3] is not None
    clock.now += REST
    work(engine)
    assert host.passes[4:] == ["full"] and kinds(heard) == ["sketch", "sketch", "full", None]
    assert host.calls == 2 * (STEPS - 1) + 2 * (GLANCE - 1) + SETTINGS.steps
    again = ask(engine, scene(0.46))
    work(engine)
    assert kinds(again) == ["same", None]


def test_a_glance_that_still_holds_is_made_better(engine, host, clock):
    for start in (0.5, 0.48, 0.48):
        heard = ask(engine, scene(start))
        work(engine)
    assert kinds(heard) == ["same"]
    clock.now += PAUSE
    work(engine)
    assert host.passes == ["sketch 0", "glance 0", "sketch 0"]


def test_many_glances_that_lead_far_away_are_followed_by_a_sketch_from_noise(engine, host, clock):
    for i in range(10):
        ask(engine, scene(0.5 - 0.04 * i))
        work(engine)
    clock.now += PAUSE
    work(engine)
    assert host.passes[1:] == ["glance 0"] * 9 + ["sketch 0"] and host.lasts[-1] is None


def test_few_steps_of_the_picture_need_no_sketch_before_it(engine, host, clock):
    for start in (0.5, 0.48):
        engine.ask("a", Wish(scene(start), replace(SETTINGS, steps=STEPS)), lambda event: None)
        work(engine)
    clock.now += REST
    work(engine)
    assert host.passes == ["sketch 0", "glance 0", "full"]


def test_nothing_is_begun_before_a_slow_page_can_have_sent_its_next_state(engine, host, clock):
    def slow():
        clock.now += REST

    host.before_step = slow
    ask(engine, scene())
    assert work(engine) == 1, "the picture itself would be in the way of the next sketch"
    clock.now += PAUSE - 0.01
    assert work(engine) == 0
    clock.now += 0.02
    assert work(engine) == 1 and host.passes == ["sketch 0", "full"]


def test_the_second_sketch_goes_on_from_the_last_picture(engine, host):
    for start in (0.5, 0.48, 0.2):
        ask(engine, scene(start))
        work(engine)
    assert host.lasts[0] is None and float(host.lasts[1].flatten()[0]) == 1.0
    assert host.lasts[2] is None, "where much has changed it begins anew"


def test_a_sketch_leaves_what_was_not_edited_as_it_was(engine, clock):
    ask(engine, scene(0.5))
    work(engine)
    clock.now += 1
    work(engine)  # the picture itself: a latent of zeros
    heard = ask(engine, scene(0.45))
    work(engine)
    (session,) = engine._sessions.values()
    row = session.last[0, 0, 4]
    assert float(row[0]) == 0 and float(row[-1]) == 0 and float(row[3:5].max()) > 1
    reds = [heard[0].image.getpixel((x, 32))[0] for x in range(64)]
    assert reds[0] == reds[-1] == 0 and max(reds[24:40]) > 1


def test_an_edit_of_less_than_an_eighth_bit_costs_nothing(engine, host, clock):
    first = ask(engine, scene(0.5))
    work(engine)
    clock.now += 1
    work(engine)
    calls = host.calls
    second = ask(engine, scene(0.5001))
    clock.now += 1
    work(engine)
    assert host.calls == calls
    assert kinds(first)[-2:] == ["full", None] and kinds(second) == ["same", None]


def test_small_edits_are_held_against_the_picture_and_not_against_each_other(engine, host, clock):
    ask(engine, scene(0.5))
    work(engine)
    for i in range(1, 100):
        ask(engine, scene(0.5 + 0.0002 * i))
        work(engine)
    assert 10 <= len(host.passes) <= 50


def test_what_no_location_sees_costs_nothing(engine, host, clock):
    ask(engine, scene(0.5))
    work(engine)
    clock.now += 1
    work(engine)
    calls = host.calls
    unseen = {"prompt": "lava", "mask": {"kind": "strokes", "strokes": []}}
    for change in (
        {"concepts": [*scene(0.5).to_dict()["concepts"], unseen]},
        {"animation": {"fps": 5}},
        {"motion": {"kind": "circle"}},
        {"noise": {"concept": {"rank": 3}}},
    ):
        ask(engine, Scene.parse({**scene(0.5).to_dict(), **change}))
        clock.now += 1
        work(engine)
    assert host.calls == calls


@pytest.mark.parametrize(
    "change",
    [
        {"concepts": [{"prompt": "lava", "mask": scene().to_dict()["concepts"][0]["mask"]}]},
        {"blend": {"scale": 0.5}},
        {"blend": {"preserve_norm": True}},
        {"noise": {"visual": {"strength": 0.5}}},
        {"enabled": False},
    ],
)
def test_what_changes_the_picture_is_sampled(engine, host, change):
    ask(engine, scene())
    work(engine)
    ask(engine, Scene.parse({**scene().to_dict(), **change}))
    work(engine)
    assert len(host.passes) == 2


def test_newest_wins_between_two_steps(engine, host, clock):
    old = ask(engine, scene(0.5))
    work(engine)
    new: list = []

    def interrupt():
        if host.calls == SKETCH_STEPS + 3:  # in the middle of the full pass
            new.extend([ask(engine, scene(0.2))])

    host.before_step = interrupt
    clock.now += 1
    engine.work()
    assert host.passes == ["sketch 0"] and host.calls == SKETCH_STEPS + 4
    assert kinds(old) == ["sketch"], "nothing of the old request comes after the new one"
    host.before_step = lambda: None
    work(engine)
    assert kinds(new[0]) == ["sketch"]


@pytest.mark.parametrize("patient", [True, False])
def test_a_patient_request_lets_a_glance_be_shown_first(engine, host, clock, patient):
    """A page sends its next state before the picture has come, so that the engine goes on at once."""
    old, new, newest = ask(engine, scene(0.5)), [], []
    host.before_step = once(lambda: engine.ask("a", Wish(scene(0.45), SETTINGS), new.append, patient))
    engine.work()
    assert kinds(old) == (["sketch", None] if patient else [])
    host.before_step = once(lambda: engine.ask("a", Wish(scene(0.4), SETTINGS), newest.append, patient))
    engine.work()
    assert kinds(new) == (["sketch", None] if patient else [])
    engine.work()
    assert kinds(newest) == ["sketch"]
    clock.now += 1
    host.before_step = once(lambda: engine.ask("a", Wish(scene(0.2), SETTINGS), old.append, patient))
    engine.work()
    assert "full" not in host.passes, "the sketch after a pause and the picture itself are ended by patient ones too"


@pytest.mark.parametrize("patient", [True, False])
def test_what_was_to_come_before_a_patient_request_ends_with_the_page(engine, host, patient):
    heard: list = []
    engine.ask("a", Wish(scene(), SETTINGS), heard.append)

    def leave():
        engine.ask("a", Wish(scene(0.2), SETTINGS), heard.append, patient=True)
        if patient:
            engine.stop("a")
        else:  # a third one, that is not
            engine.ask("a", Wish(scene(0.3), SETTINGS), heard.append)

    host.before_step = once(leave)
    engine.work()
    assert heard == [] and host.calls == 1
    assert work(engine) == (0 if patient else 1)


def test_a_page_that_leaves_ends_its_pass(engine, host):
    heard: list = []
    request = engine.ask("a", Wish(scene(), SETTINGS), heard.append)
    host.before_step = request.cancel
    work(engine)
    assert heard == [] and host.calls == 1
    assert not engine.host.turns._taken


def test_pages_take_turns(engine, host, clock):
    order: list[str] = []
    for name in ("a", "b"):
        what = scene(noise={"visual": {"strength": 1.0}}, motion={"kind": "circle"})
        requests = {}
        wish = Wish(what, SETTINGS, breathe=True)
        requests[name] = engine.ask(name, wish, lambda event, name=name: order.append(name))
    for _ in range(2 * UNREAD):
        clock.now += 0.01
        engine.work()
    assert order == ["a", "b"] * UNREAD


def test_a_breath_waits_for_a_slow_page(engine, host, clock):
    what = scene(noise={"visual": {"strength": 1.0}}, motion={"kind": "circle"})
    heard: list = []
    request = engine.ask("a", Wish(what, SETTINGS, breathe=True), heard.append)
    work(engine)
    assert kinds(heard) == ["frame"] * UNREAD
    assert [event.frame for event in heard] == [1, 2]
    assert heard[0].wish.scene.animation.frames == BREATH
    request.taken()
    work(engine)
    assert kinds(heard) == ["frame"] * (UNREAD + 1)


def test_nothing_to_breathe_is_said_and_the_picture_made(engine, clock):
    heard = ask(engine, scene(), breathe=True)
    work(engine)
    clock.now += 1
    work(engine)
    assert kinds(heard) == ["still", "sketch", "full", None]
    assert not moves(scene(noise={"visual": {"strength": 1.0}})) and not moves(scene(motion={"kind": "circle"}))


def test_an_error_is_said_once_and_does_not_loop(engine, host, clock):
    def fail():
        raise RuntimeError("out of memory")

    host.before_step = fail
    heard = ask(engine, scene())
    for _ in range(5):
        clock.now += 1
        work(engine)
    assert kinds(heard) == ["error", None] and heard[0].words == "out of memory"
    assert host.calls == 0
    host.before_step = lambda: None
    again = ask(engine, scene())
    work(engine)
    assert kinds(again) == ["sketch"]


def test_a_job_of_the_user_comes_first(host):
    engine = Engine(host)
    heard: list = []
    entered, inside, leave = threading.Event(), threading.Event(), threading.Event()

    def slow():
        entered.set()
        time.sleep(0.01)

    def job():
        with host.turns.job():
            inside.set()
            leave.wait(10)

    host.before_step = slow
    engine.ask("a", Wish(scene(), Settings(size=(64, 64), steps=150)), heard.append)
    assert entered.wait(10)
    while "full" not in kinds(heard) and host.calls < SKETCH_STEPS + 2:
        time.sleep(0.01)  # into the full pass
    thread = threading.Thread(target=job)
    thread.start()
    assert inside.wait(10), "the running pass makes room between two steps"
    calls = host.calls
    time.sleep(0.1)
    assert host.calls == calls and "paused" in kinds(heard)
    leave.set()
    thread.join(10)
    end = time.monotonic() + 20
    while None not in heard and time.monotonic() < end:
        time.sleep(0.02)
    assert kinds(heard)[-2:] == ["full", None]
    engine.close()
    assert not engine._thread.is_alive()


def test_a_thousand_edits_leave_no_more_than_the_last(engine, host, clock):
    import tracemalloc

    def edits(count):
        for i in range(count):
            ask(engine, scene(0.1 + 0.8 * (i % 97) / 97))
            work(engine)

    edits(100)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    edits(1000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1e6
    assert len(engine._sessions) == 1


def test_another_model_makes_another_picture_and_begins_anew(engine, host, clock):
    ask(engine, scene())
    clock.now += 1
    work(engine)
    host.model = "two"
    heard = ask(engine, scene())
    work(engine)
    clock.now += 1
    work(engine)
    assert kinds(heard) == ["sketch", "full", None]
    assert host.lasts == [None, None], "another model's latents mean something else"


def test_another_size_begins_anew(engine, host):
    for side in (64, 128, 64):
        heard: list = []
        engine.ask("a", Wish(scene(), replace(SETTINGS, size=(side, side))), heard.append)
        work(engine)
        assert kinds(heard) == ["sketch"]
    assert host.lasts == [None] * 3


def test_a_job_that_comes_while_live_gets_its_turn_is_let_by(engine, host):
    """As in a queue where it stands behind: no step is made before."""
    heard = ask(engine, scene())
    answers = iter([False, True])
    host.busy = lambda: next(answers, False)
    assert engine.work() and heard == [] and host.calls == 0
    work(engine)
    assert kinds(heard) == ["sketch"]


def test_an_imprint_does_not_depend_on_the_order_of_concepts():
    concepts = [
        {"prompt": "an ocean", "mask": {"kind": "split", "to": 0.4}},
        {"prompt": "ice", "mask": {"kind": "split", "from": 0.6}},
    ]
    first, second = (
        imprint(Wish(one, SETTINGS), Maps(one, (8, 8)), 0)
        for one in (Scene.parse({"concepts": concepts}), Scene.parse({"concepts": concepts[::-1]}))
    )
    assert not first.differs(second)
    assert first.differs(None)


# --- Decoding


def test_a_distilled_decoder_serves_its_own_autoencoder_only(tmp_path):
    torch.manual_seed(0)
    weights = {"conv.weight": torch.randn(4, 4, 3, 3), "conv.bias": torch.randn(4)}
    made = TinyDecoder()
    made.save(tmp_path / "tiny.npz", fingerprint(weights))
    loaded = tiny_decoder({name: t.half() for name, t in weights.items()}, tmp_path / "tiny.npz")
    latent = torch.randn(2, 4, 5, 6)
    assert loaded is not None and loaded(latent).shape == (2, 3, 40, 48)
    assert torch.allclose(loaded(latent), made(latent), atol=0.02)
    assert tiny_decoder({**weights, "conv.bias": torch.randn(4)}, tmp_path / "tiny.npz") is None
    assert tiny_decoder(weights, tmp_path / "none.npz") is None


def test_known_models_have_a_linear_map_to_colours():
    shown = linear_rgb(torch.zeros(1, 4, 3, 2), 0.18215)
    assert shown.shape == (1, 3, 3, 2) and float(shown.mean()) == 0.5
    assert linear_rgb(torch.zeros(1, 4, 3, 2), 0.344551) is None
    assert linear_rgb(torch.zeros(1, 16, 3, 2), 0.18215) is None


# --- The route


@pytest.fixture
def client(host):
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    from lib_masknoise.live_routes import add_live

    app = fastapi.FastAPI()
    engine = Engine(host)
    add_live(app, engine)
    with testclient.TestClient(app) as made:
        yield made
    engine.close()


BODY = {"session": "a", "width": 64, "height": 64, "steps": 5, "scene": scene().to_dict()}


def test_the_route_streams_lines(client, host):
    answer = client.post("/masknoise/v1/live", json=BODY)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["kind"] for line in lines] == ["sketch", "full"]
    assert lines[0]["image"].startswith("data:image/jpeg;base64,")
    assert lines[1]["image"].startswith("data:image/png;base64,")
    assert lines[0]["steps"] == SKETCH_STEPS and set(lines[0]["milliseconds"]) == {"draw", "denoise", "decode"}
    assert host.calls == SKETCH_STEPS + 5


def test_the_route_takes_the_values_of_the_accordion(client):
    from lib_masknoise.ui import inputs

    values = inputs.show(scene())
    answer = client.post("/masknoise/v1/live", json={**BODY, "scene": {}, "args": values})
    assert answer.status_code == 200 and len(answer.text.splitlines()) == 2


@pytest.mark.parametrize(
    "change, path",
    [
        ({"width": 65}, "width"),
        ({"steps": 0}, "steps"),
        ({"scene": {"concepts": [{"prompt": "", "weight": 99}]}}, "concepts[0].weight"),
        ({"seed": "x"}, "seed"),
        ({"colour": 1}, "colour"),
        ({"sampler": "Euler"}, "sampler"),
    ],
)
def test_the_route_refuses_what_is_wrong(client, host, change, path):
    answer = client.post("/masknoise/v1/live", json={**BODY, **change})
    assert answer.status_code == 422 and answer.json()[0]["path"] == path
    assert host.calls == 0


def test_the_route_asks_for_a_type_that_other_sites_cannot_send(client, host):
    answer = client.post("/masknoise/v1/live", content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert answer.status_code == 415 and host.calls == 0


def test_stop_is_always_answered(client):
    for body in (b'{"session": "a"}', b"", b"[]", b"nonsense"):
        assert client.post("/masknoise/v1/live/stop", content=body).status_code == 204


def test_the_route_decides_choices_by_the_seed(client):
    wish = {**BODY, "scene": {"concepts": [{"prompt": "__nowhere__"}]}}
    answer = client.post("/masknoise/v1/live", json=wish)
    assert answer.status_code == 422 and answer.json()[0]["path"] == "concepts[0].prompt"
