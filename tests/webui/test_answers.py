"""What comes back: pictures, animations, names, the script's arguments, the routes; by plain HTTP and by webuiapi."""

from __future__ import annotations

import io
import json
import urllib.parse

import pytest
from PIL import Image

from tests.webui import hosts
from tests.webui.client import FILES, difference
from tests.webui.scenes import BUSY, animated, everywhere, halves

SIGNATURES = {"gif": b"GIF8", "webp": b"RIFF", "apng": b"\x89PNG", "png": b"\x89PNG", "mp4": b"ftyp"}


@pytest.mark.parametrize("kind", ["gif", "webp", "apng", "mp4"])
def test_the_animation_is_the_last_item(webui, kind):
    images = webui.txt2img(animated(4, kind), batch_size=2)
    assert len(images.raw) == 5
    (name,) = images.file_names
    assert name.endswith(f".{kind}")
    last = images.raw[-1]
    assert SIGNATURES[kind] in last[:12]
    if kind != "mp4":
        picture = Image.open(io.BytesIO(last))
        assert (picture.n_frames, picture.size) == (4, (hosts.SIZE, hosts.SIZE))


def test_every_format_at_once(webui):
    images = webui.txt2img(animated(3, "gif", "webp", "apng", "mp4", "sheet"))
    assert len(images.raw) == 3 + 5
    assert len(images.file_names) == 5 and len(set(images.file_names)) == 5
    for name, raw in zip(images.file_names, images.raw[3:], strict=True):
        assert SIGNATURES[name.rpartition(".")[2]] in raw[:12], name


def test_a_rubber_band_goes_there_and_back(webui):
    scene = animated(4, "webp")
    scene["animation"]["rubber_band"] = True
    images = webui.txt2img(scene)
    assert Image.open(io.BytesIO(images.raw[-1])).n_frames == 6


@pytest.mark.parametrize(("frames", "batch_size", "n_iter"), [(1, 1, 1), (1, 2, 2), (3, 1, 1), (5, 2, 1), (2, 4, 3)])
def test_as_many_pictures_as_frames(webui, frames, batch_size, n_iter):
    images = webui.txt2img(animated(frames), batch_size=batch_size, n_iter=n_iter)
    expected = frames if frames > 1 else batch_size * n_iter
    assert len(images.pixels) == expected
    assert len(images.file_names) == (frames > 1)
    assert len(images.info["all_seeds"]) == expected
    if frames > 1:
        assert set(images.info["all_seeds"]) == {7}


def test_as_many_infotexts_as_items(webui):
    """A script that goes through both together must not lose count."""
    images = webui.txt2img(animated(3, "gif", "webp"))
    assert len(images.infotexts) == len(images.raw)


def test_saved_where_the_host_saves(webui):
    images = webui.txt2img(animated(2), save_images=True)
    (name,) = images.file_names
    assert "/" not in name and name.endswith(".gif")


def test_without_images_the_files_are_named_still(webui):
    images = webui.txt2img(animated(2), send_images=False)
    assert images.raw == []
    assert images.parameters[FILES].endswith(".gif")


def test_json_text_is_the_scene_too(webui):
    assert webui.txt2img(json.dumps(BUSY)).hashes == webui.txt2img(BUSY).hashes


def test_the_size_of_the_answer_does_not_hold_the_masks(webui):
    """They are in the infotext of each image once, compactly."""
    images = webui.txt2img(BUSY)
    assert len(images.infotexts[0]) < 6000


def _info(webui, is_img2img=False):
    """What the host says of the script in one of its two tabs."""
    infos = webui.get("/sdapi/v1/script-info")
    (ours,) = [info for info in infos if info["name"] == "masknoise" and info["is_img2img"] == is_img2img]
    return ours


@pytest.mark.parametrize("is_img2img", [False, True])
def test_script_info_describes_the_arguments(webui, is_img2img):
    ours = _info(webui, is_img2img)
    assert ours["is_alwayson"]
    arguments = {argument["label"]: argument for argument in ours["args"]}
    assert len(arguments) == len(ours["args"]), "labels are not unique"
    for label, least, most in [
        ("Weight of all concepts", 0, 2),
        ("Visual noise strength", 0, 1),
        ("Frames", 1, 10_000),
        ("Motion cycles", 1, 1000),
    ]:
        assert (arguments[label]["minimum"], arguments[label]["maximum"]) == (least, most)
    assert "circle" in arguments["Motion"]["choices"]
    assert all(argument["label"] for argument in ours["args"])


def test_default_arguments_are_a_job_without_the_extension(webui, plain):
    ours = _info(webui)
    answer = webui.ask(args=[argument["value"] for argument in ours["args"]], batch_size=2)
    assert answer.status == 200, str(answer)
    assert type(plain.first)(answer.json).hashes == plain.before[0]


def test_the_accordions_values_make_the_same_image(webui):
    """The arguments one by one, as the user interface sends them."""
    ours = _info(webui)
    values = {argument["label"]: argument["value"] for argument in ours["args"]}
    args = [*values.values()]
    labels = list(values)
    scene = {**halves("an ocean", "a forest", 0.3), "blend": {"scale": 0.8, "overlap": "top"}}
    scene["noise"] = {"concept": {"strength": 0.5}}
    args[1] = True
    args[2] = json.dumps({"concepts": scene["concepts"]})
    args[labels.index("Weight of all concepts")] = 0.8
    args[labels.index("Concept noise strength")] = 0.5
    answer = webui.ask(args=args)
    assert answer.status == 200, str(answer)
    by_scene = webui.txt2img(scene)
    assert type(by_scene)(answer.json).hashes == by_scene.hashes


def test_img2img_has_it_too(webui, plain):
    """A concept with a full mask is the plain picture of its prompt there as well."""
    job = {"path": "img2img", "init_images": [plain.picture], "denoising_strength": 0.6}
    alone, ours = (
        webui.ask(scene, prompt=prompt, **job)
        for scene, prompt in (({"enabled": False}, "an ocean"), (everywhere("an ocean"), "red bricks"))
    )
    assert (alone.status, ours.status) == (200, 200)
    assert difference(*(type(plain.first)(answer.json) for answer in (alone, ours))) <= hosts.tolerance()
    assert webui.ask({"concepts": 1}, **job).status == 422


# --- The extension's own routes


def test_schema(webui):
    schema = webui.get("/masknoise/v1/schema")
    assert {"concepts", "blend", "noise", "motion", "animation"} <= set(schema["properties"])


def test_validate_fills_in_what_is_missing(webui):
    scene = webui.post("/masknoise/v1/validate", {"concepts": [{"prompt": "an ocean"}]})
    assert scene["version"] == 1 and scene["concepts"][0]["weight"] == 1
    assert webui.post("/masknoise/v1/validate", scene) == scene


@pytest.mark.parametrize("what", ["coefficients", "noise"])
def test_preview(webui, what):
    schema = webui.get("/openapi.json")["paths"]
    assert "/masknoise/v1/preview" in schema
    answer = webui.request(
        "POST", "/masknoise/v1/preview", {"scene": BUSY, "what": what, "width": 200, "height": 120, "frame": 0}
    )
    assert (answer.status, answer.content_type) == (200, "image/png"), str(answer)
    Image.open(io.BytesIO(answer.body)).verify()


def test_presets_are_kept_by_name(webui):
    path = "/masknoise/v1/presets/" + urllib.parse.quote("tests of webui")
    try:
        assert webui.request("PUT", path, everywhere("an ocean")).status == 200
        assert "tests of webui" in webui.get("/masknoise/v1/presets")
        assert webui.get(path)["concepts"][0]["prompt"] == "an ocean"
    finally:
        assert webui.request("DELETE", path).status == 204
    assert webui.request("GET", path).status == 404


@pytest.mark.parametrize("name", ["../secret", "..", "a/b", "/etc/passwd", ".hidden", "a\\b", "CON", "x" * 300, "%00"])
def test_no_path_leaves_the_presets(webui, name):
    path = "/masknoise/v1/presets/" + urllib.parse.quote(name, safe="")
    for method, body in (("PUT", [{}]), ("GET", []), ("DELETE", [])):
        assert webui.request(method, path, *body).status in (404, 405, 422), f"{method} {name}"


# --- The public Python client


@pytest.fixture(scope="module")
def api():
    webuiapi = pytest.importorskip("webuiapi", reason="webuiapi is not installed: pip install '.[webui]'")
    parts = urllib.parse.urlsplit(hosts.URL)
    https = parts.scheme == "https"
    return webuiapi.WebUIApi(host=parts.hostname, port=parts.port or (443 if https else 80), use_https=https)


def _by_client(api, scene, **job):
    defaults = {k: v for k, v in hosts.webui().defaults.items()}
    return api.txt2img(**{**defaults, **job}, alwayson_scripts={"MaskNoise": {"args": [scene]}})


def test_webuiapi_a_picture(webui, api):
    result = _by_client(api, BUSY)
    assert result.image.size == (hosts.SIZE, hosts.SIZE)
    assert webui.txt2img(BUSY).pixels[0].astype("uint8").tobytes() == result.image.convert("RGB").tobytes()


def test_webuiapi_an_animation(api):
    result = _by_client(api, animated(3, "gif"))
    assert len(result.images) == 4
    assert result.images[-1].format == "GIF" and result.images[-1].n_frames == 3
    assert result.info["extra_generation_params"][FILES].endswith(".gif")


def test_webuiapi_a_wrong_scene(api):
    with pytest.raises(RuntimeError) as error:
        _by_client(api, {"blend": {"scale": 9}})
    assert error.value.args[0] == 422 and "blend.scale" in error.value.args[1]


def test_webuiapi_lists_the_script(api):
    assert "masknoise" in [name.lower() for name in api.get_scripts()["txt2img"]]
