"""Colour-coded pictures: flat colours and what lies between them."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lib_masknoise import infotext
from lib_masknoise.__main__ import main
from lib_masknoise.maps import rasterize
from lib_masknoise.scene import Concept, ImageMask, Scene, SceneError, colours, pictures

RED, GREEN, BROWN, WHITE = "#ff0000", "#00ff00", "#804040", "#ffffff"
SIZE = 192


def shapes(n: int) -> Image.Image:
    """Three of them on white, without smoothing."""
    image = Image.new("RGB", (n, n), WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, n * 3 // 4, n, n], fill=BROWN)
    draw.ellipse([n // 10, n // 10, n // 2, n * 7 // 8], fill=RED)
    draw.polygon([(n // 3, n // 5), (n - 9, n // 3), (n // 2, n - 9)], fill=GREEN)
    return image


def drawn(smooth: int = 1) -> Image.Image:
    """The same; smooth: drawn that many times larger, and averaged down."""
    return shapes(SIZE * smooth).resize((SIZE, SIZE), Image.Resampling.BOX)


def colour_coded(path: Path) -> None:
    drawn(4).save(path, **({"quality": 85} if path.suffix == ".jpg" else {}))


def url(image: Image.Image, kind: str = "PNG", **options) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def exact(colour: str) -> np.ndarray:
    """Where a colour is in the picture without smoothing, averaged as the smoothed one is."""
    hit = (np.asarray(shapes(4 * SIZE)) == colours.parsed(colour)).all(-1)
    return hit.reshape(SIZE, 4, SIZE, 4).mean((1, 3))


@pytest.mark.parametrize("colour", [RED, GREEN, BROWN])
def test_smoothed_edges_are_shared_as_they_were_smoothed(colour):
    made = pictures.colour_values(url(drawn(4)), colour)
    difference = np.abs(made - exact(colour))
    assert difference.mean() < 1e-3 and (difference > 0.02).mean() < 0.01  # where three colours meet


@pytest.mark.parametrize("quality", [95, 75, 40])
def test_jpeg(quality):
    data = url(drawn(4), "JPEG", quality=quality)
    found = pictures.colour_map(data)
    assert len(found.colours) == 4
    for colour in (RED, GREEN, BROWN):
        assert np.abs(pictures.colour_values(data, colour) - exact(colour)).mean() < 0.015


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8))
def test_shares_add_up_at_every_pixel(seed, count):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (count, 3))
    blocks = palette[rng.integers(0, count, (4, 5))].repeat(12, 0).repeat(12, 1).astype(np.uint8)
    smooth = Image.fromarray(blocks).resize((50, 40), Image.Resampling.BILINEAR)
    found = colours.unmix(np.asarray(smooth.convert("RGBA")))
    total = sum(found.of(k).astype(int) for k in range(len(found.colours)))
    assert (total == 255).all() and found.shares.sum() == pytest.approx(1)


def test_what_is_transparent_is_nothing():
    image = drawn().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, SIZE, SIZE // 2))
    found = pictures.colour_map(url(image))
    total = sum(found.of(k).astype(int) for k in range(len(found.colours)))
    assert (total[: SIZE // 2] == 0).all() and (total[SIZE // 2 :] == 255).all()


def test_hues_of_regional_prompter_are_told_apart():
    """Hues of saturation and value one half, as that extension numbers its regions; here the first eight."""
    import colorsys

    hues = [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 3 / 8, 5 / 8, 7 / 8]
    palette = [[int(256 * v) for v in colorsys.hsv_to_rgb(hue, 0.5, 0.5)] for hue in hues]
    image = np.array(palette, np.uint8).repeat(20, 0)[None].repeat(40, 0)
    found = pictures.colour_map(url(Image.fromarray(image)))
    assert sorted(found.colours.tolist()) == sorted(palette)


def masks(data, *names):
    return {"concepts": [{"prompt": name, "mask": {"kind": "image", "data": data, "colour": name}} for name in names]}


def test_a_mask_is_a_colour_of_its_picture():
    data = url(drawn(4))
    scene = Scene.parse(masks(data, RED, GREEN))
    first, second = (rasterize(concept.mask, (SIZE, SIZE)) for concept in scene.concepts)
    assert (first + second).max() <= 1 + 1e-6 and first.mean() > 0.1
    assert (
        rasterize(scene.concepts[0].mask.copy(update={"invert": True}), (SIZE, SIZE)) - (1 - first)
    ).abs().max() < 1e-6
    assert infotext.read(infotext.write(scene)) == scene
    assert len(infotext.write(scene)[infotext.MASKS]) < 1.2 * len(
        infotext.write(Scene.parse(masks(data, RED)))[infotext.MASKS]
    )


def test_a_colour_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(SceneError) as raised:
        Scene.parse(masks(url(drawn()), "#0000ff"))
    (problem,) = raised.value.problems
    assert problem.path == "concepts[0].mask.colour"
    assert problem.message.startswith("#0000ff is no flat colour of the picture, which has #ffffff (")
    assert "#804040" in problem.message
    with pytest.raises(SceneError, match='mask.colour: expected a colour such as "#ff8000", got "red"'):
        Scene.parse(masks(url(drawn()), "red"))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    with pytest.raises(SceneError, match="which has none"):
        Scene.parse(masks(url(noise), RED))


def test_colours_without_a_concept_are_remarked_on():
    scene = Scene.parse(masks(url(drawn()), RED))
    (remark,) = scene.remarks()
    assert remark.path == "concepts[0].mask.colour" and "#804040" in remark.message and WHITE not in remark.message
    assert not Scene.parse(masks(url(drawn()), RED, GREEN, BROWN)).remarks()


def test_from_python():
    scene = Scene.from_colours(drawn(), {RED: "a wheat field", GREEN: "an ocean"})
    assert [concept.prompt for concept in scene.concepts] == ["a wheat field", "an ocean"]
    mask = ImageMask(data=url(drawn()), colour=RED)
    assert Concept(prompt="x", mask=mask).mask == mask


def test_decoded_once(monkeypatch):
    calls = []
    monkeypatch.setattr(colours, "unmix", lambda *args, own=colours.unmix: calls.append(1) or own(*args))
    image = drawn()
    image.putpixel((0, 0), (1, 2, 3))  # another picture than elsewhere
    scene = Scene.parse(masks(url(image), RED, GREEN, BROWN))
    for concept in scene.concepts:
        rasterize(concept.mask, (24, 24))
    assert len(calls) == 1


def test_the_command_line_lists_colours_and_writes_a_scene(tmp_path, capsys):
    colour_coded(tmp_path / "map.png")
    assert main(["colours", str(tmp_path / "map.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].split()[0] == WHITE and lines[0].endswith(" %")
    prompts = ["--prompt", f"{RED}=a wheat field", "--prompt", f"{GREEN}=an ocean"]
    assert main(["colours", str(tmp_path / "map.png"), *prompts, "--out", str(tmp_path / "scene.json")]) == 0
    assert [concept.mask.colour for concept in Scene.read(tmp_path / "scene.json").concepts] == [RED, GREEN]
    assert main(["colours", str(tmp_path / "none.png")]) == 2 and "none.png" in capsys.readouterr().err
    assert main(["colours", str(tmp_path / "map.png"), *prompts, "--out", str(tmp_path / "new" / "scene.json")]) == 0
    assert (tmp_path / "new" / "scene.json").read_bytes() == (tmp_path / "scene.json").read_bytes()
    assert main(["colours", str(tmp_path / "map.png"), *prompts, "--out", str(tmp_path / "map.png" / "x.json")]) == 2
    assert "map.png: a file; expected a folder" in capsys.readouterr().err
    assert main(["colours", str(tmp_path / "map.png"), "--prompt", "#0000ff=lava", "--out", str(tmp_path / "x")]) == 2
    assert "#0000ff is no flat colour" in capsys.readouterr().err and not (tmp_path / "x").exists()
