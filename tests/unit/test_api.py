"""The extension's routes, in an application as a WebUI has one."""

import asyncio
import io
import json
import threading

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import Depends, FastAPI, HTTPException  # noqa: E402
from fastapi.security import HTTPBasic, HTTPBasicCredentials  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from lib_masknoise import preview  # noqa: E402
from lib_masknoise.api import LARGEST, PREFIX, add_routes  # noqa: E402
from lib_masknoise.presets import Presets  # noqa: E402
from lib_masknoise.scene import Scene  # noqa: E402

SCENE = {"concepts": [{"prompt": "麦畑", "mask": {"kind": "split", "to": 0.5}}], "noise": {"visual": {"strength": 0.5}}}


@pytest.fixture
def client(tmp_path):
    app = FastAPI()
    add_routes(app, Presets(tmp_path))
    return TestClient(app)


def refused(response, status=422) -> dict[str, str]:
    assert response.status_code == status
    assert all(set(problem) == {"path", "message"} for problem in response.json())
    return {problem["path"]: problem["message"] for problem in response.json()}


def test_the_schema(client):
    assert client.get(f"{PREFIX}/schema").json() == Scene.json_schema()


def test_a_valid_scene_comes_back_complete(client):
    response = client.post(f"{PREFIX}/validate", json=SCENE)
    assert response.status_code == 200
    assert response.json() == Scene.parse(SCENE).to_dict()


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ('{"noise": {"exponent": 99}, "speed": 1}', "noise.exponent", "expected a number from 0 to 16, got 99"),
        ('{"noise": {"exponent": 99}, "speed": 1}', "speed", "unknown field"),
        ("{", "", "not valid JSON"),
        ("", "", "not valid JSON"),
        ("[]", "", "expected an object"),
        (b"\xff\x00", "", "not valid JSON"),
        ("[" * 100_000, "", "nested too deeply"),
    ],
)
def test_an_invalid_scene_is_refused_with_its_paths(client, body, path, message):
    assert message in refused(client.post(f"{PREFIX}/validate", content=body))[path]


@pytest.mark.parametrize("what", preview.KINDS)
def test_a_preview_is_a_picture_of_the_size_asked_for(client, what):
    body = {"scene": SCENE, "what": what, "frame": 0, "width": 96, "height": 64}
    response = client.post(f"{PREFIX}/preview", json=body)
    assert response.headers["content-type"] == "image/png"
    seen = Image.open(io.BytesIO(response.content))
    assert seen.tobytes() == preview.picture(Scene.parse(SCENE), what, 0, (64, 96)).tobytes()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"scene": {"concepts": [{"weight": 9}]}}, "scene.concepts[0].weight"),
        ({"scene": None}, "scene"),
        ({"what": "mask"}, "what"),
        ({"frame": -1}, "frame"),
        ({"frame": "1"}, "frame"),
        ({"width": LARGEST + 1}, "width"),
        ({"height": 0}, "height"),
        ({"height": 10.5}, "height"),
        ({"size": 64}, "size"),
    ],
)
def test_a_preview_that_cannot_be_is_refused(client, change, path):
    assert path in refused(client.post(f"{PREFIX}/preview", json={"scene": SCENE, **change}))


def test_a_preview_needs_a_scene(client):
    assert "missing" in refused(client.post(f"{PREFIX}/preview", json={}))["scene"]
    assert "not valid JSON" in refused(client.post(f"{PREFIX}/preview", content="no"))[""]


def test_presets_are_kept_given_and_removed(client):
    assert client.get(f"{PREFIX}/presets").json() == []
    assert client.put(f"{PREFIX}/presets/wheat (2)", json=SCENE).json() == Scene.parse(SCENE).to_dict()
    assert client.get(f"{PREFIX}/presets").json() == ["wheat (2)"]
    assert client.get(f"{PREFIX}/presets/wheat%20(2)").json() == Scene.parse(SCENE).to_dict()
    assert client.delete(f"{PREFIX}/presets/wheat (2)").status_code == 204
    assert client.get(f"{PREFIX}/presets").json() == []


def test_presets_that_cannot_be_are_refused(client):
    for method in (client.get, client.delete):
        assert "no preset" in refused(method(f"{PREFIX}/presets/sea"), 404)["name"]
        assert "Windows" in refused(method(f"{PREFIX}/presets/nul"))["name"]
        assert method(f"{PREFIX}/presets/..%2F..%2Fsecret").status_code == 404
    assert "noise" in refused(client.put(f"{PREFIX}/presets/sea", json={"noise": 3}))
    assert "Windows" in refused(client.put(f"{PREFIX}/presets/nul", json=SCENE))["name"]
    assert client.get(f"{PREFIX}/presets").json() == []


def test_every_route_is_under_the_hosts_authentication(tmp_path):
    def authorise(given: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008
        if (given.username, given.password) != ("user", "secret"):
            raise HTTPException(401)

    app = FastAPI(openapi_url=None)
    before = set(map(id, app.routes))
    add_routes(app, Presets(tmp_path), [Depends(authorise)])
    client = TestClient(app)
    calls = [
        *(("GET", f"/{path}") for path in ("schema", "presets", "presets/a")),
        *(("POST", f"/{path}") for path in ("validate", "preview")),
        *(("PUT", "/presets/a"), ("DELETE", "/presets/a")),
    ]
    assert len(app.routes) > len(before)
    for method, path in calls:
        assert client.request(method, PREFIX + path, content="{}").status_code == 401
        with_password = client.request(method, PREFIX + path, content=json.dumps(SCENE), auth=("user", "secret"))
        assert with_password.status_code != 401
    assert not any(tmp_path.iterdir())


def test_work_is_done_off_the_event_loop(client, monkeypatch):
    threads = []

    def draw(*_):
        threads.append(threading.current_thread())
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return Image.new("RGB", (16, 16))

    monkeypatch.setattr(preview, "picture", draw)
    assert client.post(f"{PREFIX}/preview", json={"scene": {}}).status_code == 200
    assert threads
