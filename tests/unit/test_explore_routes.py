"""The views' routes and the workshop behind them, with a model that draws without one."""

import base64
import io
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import Depends, FastAPI, HTTPException  # noqa: E402
from fastapi.security import HTTPBasic, HTTPBasicCredentials  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from lib_masknoise.api import MAX_BODY  # noqa: E402
from lib_masknoise.conditioning import Encoded  # noqa: E402
from lib_masknoise.explore.map import preset_prompts  # noqa: E402
from lib_masknoise.explore.model import Moment, Recording  # noqa: E402
from lib_masknoise.explore.requests import REQUESTS, BetweenRequest, GridRequest, MapRequest, PlaceRequest  # noqa: E402
from lib_masknoise.explore.workshop import PLACES, REMEMBERED, Workshop  # noqa: E402
from lib_masknoise.explore_routes import PATH, add_explore  # noqa: E402
from lib_masknoise.presets import Presets  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

WORDS = ["lava", "ice", "a forest", "an ocean", "a desert"]
SMALL = {"width": 64, "height": 64, "steps": 2}


class Flat:
    """A model whose pictures are of one colour, by prompt or context and seed."""

    longest, size = 75, (64, 64)

    def __init__(self):
        self.made = 0

    def encode(self, prompts):
        def context(text):
            return torch.randn(7, 12, generator=torch.Generator().manual_seed(sum(map(ord, text))))

        return {text: Encoded(context(text) if text else torch.zeros(7, 12)) for text in prompts}

    def tokens(self, prompt):
        return len(prompt.split())

    def _image(self, value):
        self.made += 1
        return Image.new("RGB", (64, 64), (int(value) % 256, self.made % 256, 0))

    def rendered(self, scene, settings, frames, report):
        for frame in frames:
            report(1)
            yield self._image(60 * frame)

    def plain(self, prompts, seeds, settings, report):
        images = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            report(1)
            images.append(self._image(len(prompt) + seed))
        return images

    def blended(self, contexts, seeds, settings, report):
        report(len(contexts))
        return [self._image(100 * float(one.context.mean())) for one in contexts]

    def recorded(self, scene, settings, report):
        report(1)
        latents = torch.randn(settings.steps + 1, 4, 8, 8, generator=torch.Generator().manual_seed(settings.seed))
        return Recording([Moment(float(2 - i), one, one) for i, one in enumerate(latents)], self._image(7))

    def decoded(self, latents):
        return [self._image(i) for i in range(len(latents))]


class Host:
    def __init__(self):
        self.model, self.lock, self.loaded, self.shown = Flat(), threading.Lock(), "first", []

    def settings(self, asked):
        return replace(asked.settings(), model=self.loaded)

    def state(self):
        return self.loaded

    @contextmanager
    def turn(self):
        with self.lock:
            yield

    def progress(self, words, done, total):
        self.shown.append(words)


@pytest.fixture
def workshop(tmp_path):
    presets = Presets(tmp_path / "presets")
    presets.save("coast", Scene.parse({"concepts": [{"prompt": "a cliff"}, {"prompt": "lava"}]}))
    (tmp_path / "presets" / "broken.json").write_text("{")
    return Workshop(Host(), tmp_path / "views", lambda: preset_prompts(presets))


@pytest.fixture
def client(workshop):
    app = FastAPI()
    add_explore(app, workshop)
    return TestClient(app)


def asked_for(client, view, **body):
    response = client.post(f"{PATH}/{view}", json={**SMALL, **body})
    assert response.status_code == 200, response.text
    made = response.json()
    assert made["view"] == view and not made["interrupted"]
    for name, data in made["files"].items():
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
        assert name not in ("explore.json", "index.html")
    return made


def problems(response, status=422):
    assert response.status_code == status, response.text
    return {problem["path"]: problem["message"] for problem in response.json()}


def test_a_journey(client):
    made = asked_for(client, "journey", prompt="a forest", seed=3)
    assert len(made["steps"]) == 3 and {made["steps"][-1][name] for name in ("x0", "x_t", "pca")} <= set(made["files"])
    assert made["animation"][0] in made["files"]
    assert made["settings"]["seed"] == 3 and made["settings"]["size"] == [64, 64]


def test_between_and_its_bridges(client):
    made = asked_for(client, "between", **{"from": "lava", "to": "ice"}, stops=5, bridges=2, beyond=0.25, prompts=WORDS)
    assert [stop["t"] for stop in made["stops"]][0::6] == [-0.25, 1.25]
    assert {one["prompt"] for one in made["bridges"]} <= set(WORDS) - {"lava", "ice"}
    assert all(stop["file"] in made["files"] for stop in made["stops"])


def test_between_two_concepts_of_a_scene(client):
    scene = {"concepts": [{"prompt": "lava", "mask": {"kind": "split", "to": 0.6, "feather": 0.4}},
                          {"prompt": "ice", "mask": {"kind": "split", "from": 0.4, "feather": 0.4}}]}  # fmt: skip
    made = asked_for(client, "between", prompt="rock", scene=scene, stops=2, bridges=1, prompts=WORDS)
    assert (made["from"], made["to"], made["passage"]["base"]) == ("lava", "ice", "rock")
    assert made["passage"]["scene"]["concepts"][0]["mask"]["to"] == 0.6
    other = asked_for(client, "between", prompt="rock", scene=scene, to="moss", stops=2, bridges=0)
    assert (other["from"], other["to"], other["passage"]["base"]) == ("lava", "moss", "")


def test_a_map_has_the_scenes_and_the_presets_prompts(client):
    scene = {"concepts": [{"prompt": "a river", "mask": {"kind": "rect"}}]}
    made = asked_for(client, "map", prompt="a town", prompts=["# All", *WORDS], columns=2, scene=scene)
    groups = {point["prompt"]: point["group"] for point in made["points"]}
    assert groups["a town"] == groups["a river"] == "The scene"
    assert groups["a cliff"] == groups["lava"] == "The presets" and groups["ice"] == "All"
    assert len(groups) == len(made["points"]) == len(WORDS) + 3
    plain = asked_for(client, "map", prompts=WORDS, columns=0, presets=False)
    assert [point["prompt"] for point in plain["points"]] == WORDS and plain["places"] == []


def test_the_picture_of_a_place(client):
    made = asked_for(client, "place", prompts=["lava", "ice"], weights=[1.5, -0.5])
    assert list(made["files"]) == [made["file"]]


def test_a_grid(client):
    made = asked_for(client, "grid", prompt="a forest", seeds=[1, 2], step_counts=[2, 3], guidances=[1, 4], words=True)
    assert len(made["cells"]) == 16 and all(cell["file"] in made["files"] for cell in made["cells"])
    assert made["axes"]["steps"] == [2, 3] and made["sheet"] in made["files"]
    small = asked_for(client, "grid", prompt="a", seeds=[7], steps=4, guidance_scale=3)
    assert [(cell["steps"], cell["guidance"]) for cell in small["cells"]] == [(4, 3.0)]


@pytest.mark.parametrize(
    ("view", "body", "paths"),
    [
        ("journey", {}, {"prompt"}),
        ("journey", {"prompt": "a", "width": 65, "speed": 1}, {"speed"}),
        ("journey", {"prompt": "a", "width": 65, "height": 100}, {"width", "height"}),
        ("journey", {"prompt": "a", "scene": {"noise": {"exponent": 99}}}, {"scene.noise.exponent"}),
        ("between", {"from": "a"}, {"to"}),
        ("between", {"scene": {"concepts": [{"prompt": "a"}]}}, {"to"}),
        ("between", {"from": "a", "to": "b", "stops": 1, "prompts": [1]}, {"stops", "prompts[0]"}),
        ("map", {"prompts": "all", "columns": -1}, {"prompts", "columns"}),
        ("map", {"prompts": ["a", "b"], "presets": False}, {"prompts"}),
        ("place", {}, {"prompts", "weights"}),
        ("place", {"prompts": ["a"], "weights": [1, 1]}, {"weights"}),
        ("place", {"prompts": ["a", "b"], "weights": [1, 1]}, {"weights"}),
        ("place", {"prompts": ["a", "b"], "weights": [9, -8]}, {"weights[0]", "weights[1]"}),
        ("grid", {"prompt": "a", "seeds": [-1], "step_counts": [0]}, {"seeds[0]", "step_counts[0]"}),
        ("grid", {"prompt": "a", "guidances": [1, "x"]}, {"guidances[1]"}),
        ("grid", {"words": True}, {"prompt"}),
        ("grid", {"prompt": "a", "seeds": list(range(1024)), "step_counts": [1, 2, 3, 4, 5]}, {""}),
        ("grid", {"prompt": "a", "seeds": []}, {"seeds"}),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_its_path(client, view, body, paths):
    assert set(problems(client.post(f"{PATH}/{view}", json=body))) == paths


def test_other_content_and_large_bodies_are_refused(client):
    for view in REQUESTS:
        assert problems(client.post(f"{PATH}/{view}", content=b"{}"), 415)
        response = client.post(
            f"{PATH}/{view}", content=b" " * (MAX_BODY + 1), headers={"content-type": "application/json"}
        )
        assert problems(response, 413)
    response = client.post(f"{PATH}/grid", content=b"{", headers={"content-type": "application/json"})
    assert "not valid JSON" in problems(response)[""]


def test_the_hosts_authentication_is_asked(workshop):
    def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008
        if (credentials.username, credentials.password) != ("me", "secret"):
            raise HTTPException(401)

    app = FastAPI()
    add_explore(app, workshop, [Depends(check)])
    client = TestClient(app)
    for view in [*REQUESTS, "stop"]:
        assert client.post(f"{PATH}/{view}", json={}).status_code == 401
    assert client.post(f"{PATH}/grid", json={"prompt": "a", **SMALL}, auth=("me", "secret")).status_code == 200


def test_a_view_is_made_once_for_a_model(client, workshop):
    model = workshop.host.model
    body = {"prompt": "a forest", "seeds": [1, 2]}
    asked_for(client, "grid", **body)
    count = model.made
    asked_for(client, "grid", **body, session="another page")
    assert model.made == count
    workshop.host.loaded = "second"
    assert asked_for(client, "grid", **body)["settings"]["model"] == "second"
    assert model.made == 2 * count
    workshop.host.loaded = "first"
    asked_for(client, "grid", **body)
    assert model.made == 2 * count


def test_the_last_views_are_kept_and_the_others_pictures_go(workshop):
    asked = [GridRequest.parse({**SMALL, "prompt": "a", "seeds": [n]}) for n in range(REMEMBERED + 2)]
    made = [workshop.make(one) for one in asked]
    assert [workshop.known(one) is not None for one in asked] == [False] * 2 + [True] * REMEMBERED
    assert [one.folder.exists() for one in made] == [False] * 2 + [True] * REMEMBERED
    place = {**SMALL, "prompts": ["lava", "ice"]}
    for n in range(PLACES + 1):
        workshop.make(PlaceRequest.parse({**place, "weights": [n / 1000, 1 - n / 1000]}))
    assert sum(workshop.known(one) is not None for one in asked) == REMEMBERED
    assert workshop.known(PlaceRequest.parse({**place, "weights": [0, 1]})) is None


def test_a_session_is_stopped_and_what_there_is_is_shown(workshop):
    asked = GridRequest.parse({**SMALL, "prompt": "a", "seeds": list(range(9)), "batch_size": 1, "session": "mine"})
    told = []

    def tell(words, done, total):
        told.append(words)
        if done >= 3:
            workshop.stop("another")
            workshop.stop("mine")

    made = workshop.make(asked, tell)
    assert made.view["interrupted"] and sum(cell["file"] is not None for cell in made.view["cells"]) == 3
    assert told == workshop.host.shown == [f"Sampling: {n}.0 of 9 pictures" for n in (1, 2, 3)]
    assert workshop.known(asked) is None and not workshop.make(asked).view["interrupted"]


def test_stopped_while_it_waits_for_its_turn(client, workshop):
    answers = []
    body = {**SMALL, "prompt": "a", "session": "mine"}
    with workshop.host.lock:
        asking = threading.Thread(target=lambda: answers.append(client.post(f"{PATH}/grid", json=body)))
        asking.start()
        while "mine" not in workshop._stops:
            threading.Event().wait(0.01)
        assert client.post(f"{PATH}/stop", json={"session": "mine"}).status_code == 204
    asking.join()
    assert problems(answers[0], 409) and workshop.host.model.made == 0
    assert client.post(f"{PATH}/stop", content=b"[").status_code == 204


def test_what_a_request_says_is_all_that_its_view_depends_on():
    asked = BetweenRequest.parse({"from": " lava ", "to": "ice", "session": "mine"})
    assert asked.ends == ["lava", "ice"] and "session" not in asked.said and asked.said["view"] == "between"
    assert MapRequest.parse({}).listed(list)[0].group != "The scene"


def test_whoever_is_slow_hears_the_newest_only(workshop):
    """A page takes its time for every report; it must not lag behind what is done, or a stop takes minutes to show."""
    asked = GridRequest.parse({**SMALL, "prompt": "a", "seeds": list(range(400)), "batch_size": 1, "session": "mine"})
    heard = []
    for event in workshop.events(asked):
        heard.append(event)
        threading.Event().wait(0.2)
    assert not isinstance(heard[-1], tuple) and len(heard[-1].view["cells"]) == 400
    assert 1 < len(heard) < 100
    counts = [done for _, done, _ in heard[:-1]]
    assert counts == sorted(counts)


def test_who_leaves_ends_it(workshop):
    asked = GridRequest.parse({**SMALL, "prompt": "a", "seeds": list(range(400)), "batch_size": 1, "session": "mine"})
    events = workshop.events(asked)
    next(events)
    events.close()
    assert workshop.host.model.made < 400 and not workshop.host.lock.locked()


def test_silence_is_broken(workshop, monkeypatch):
    """While it waits for its turn, and while it writes what it has."""
    from lib_masknoise.explore import workshop as workshops

    monkeypatch.setattr(workshops, "HEARTBEAT", 0.05)
    events = workshop.events(GridRequest.parse({**SMALL, "prompt": "a", "seeds": [1, 2]}))
    with workshop.host.lock:
        assert [next(events) for _ in range(3)] == [("Waiting…", 0.0, 1.0)] * 3
    assert not isinstance(list(events)[-1], tuple)
