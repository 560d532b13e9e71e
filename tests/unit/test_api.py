"""The extension's routes, in an application as a WebUI has one."""

import asyncio
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import Depends, FastAPI, HTTPException  # noqa: E402
from fastapi.security import HTTPBasic, HTTPBasicCredentials  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from lib_masknoise import preview  # noqa: E402
from lib_masknoise.api import LARGEST, MAX_BODY, PREFIX, PreviewRequest, add_routes  # noqa: E402
from lib_masknoise.presets import Presets  # noqa: E402
from lib_masknoise.scene import Part, Scene  # noqa: E402

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
        ({"scene": {"concepts": [{"prompt": "", "weight": 9}]}}, "scene.concepts[0].weight"),
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


@pytest.mark.parametrize("said", [True, False])
def test_a_body_that_is_too_large_is_refused(client, said):
    """Whether its length is said before it or not. One that is just small enough is read."""
    for method, route in (("POST", "validate"), ("POST", "preview"), ("PUT", "presets/sea")):
        body = json.dumps({"concepts": [{"prompt": "a" * (MAX_BODY + 1)}]}).encode()
        body = body if said else iter([body[:100], body[100:]])
        found = refused(client.request(method, f"{PREFIX}/{route}", content=body), 413)
        assert found == {"": "expected a body of at most 16 MB, got more"}
    assert client.get(f"{PREFIX}/presets").json() == []
    assert client.post(f"{PREFIX}/validate", content=json.dumps(SCENE).encode().ljust(MAX_BODY)).status_code == 200


@pytest.mark.parametrize(("method", "route"), [("POST", "validate"), ("POST", "preview"), ("PUT", "presets/sea")])
def test_a_third_request_at_once_is_told_to_come_back(client, monkeypatch, method, route):
    inside, go_on = threading.Barrier(3), threading.Event()
    parse = Part.parse.__func__

    def slowly(cls, body):
        if body == b'{"enabled": false}':
            inside.wait(20)
            go_on.wait(20)
            body = b'{"scene": {}}' if cls is PreviewRequest else body
        return parse(cls, body)

    monkeypatch.setattr(Part, "parse", classmethod(slowly))
    slow = {"content": '{"enabled": false}'}
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(client.request, method, f"{PREFIX}/{route}", **slow) for _ in range(2)]
        inside.wait(20)
        response = client.request(method, f"{PREFIX}/{route}", content="{}")
        go_on.set()
        assert [request.result().status_code for request in first] == [200, 200]
    assert "at most 2 requests" in refused(response, 429)[""] and int(response.headers["retry-after"]) >= 1
    assert client.post(f"{PREFIX}/validate", content="{}").status_code == 200


def test_a_request_that_was_refused_leaves_its_place(client):
    for _ in range(5):
        refused(client.post(f"{PREFIX}/validate", content="{"))
        refused(client.post(f"{PREFIX}/validate", content=b" " * (MAX_BODY + 1)), 413)
    assert client.post(f"{PREFIX}/validate", content="{}").status_code == 200
