"""Masks that are sequences of pictures: which picture stands at which frame, and what lies between two."""

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_masknoise import ImageMask, Scene, SceneError, infotext
from lib_masknoise.__main__ import main
from lib_masknoise.live.engine import moves
from lib_masknoise.maps import Maps
from lib_masknoise.preview import picture
from lib_masknoise.scene import MAX_UNPACKED_BYTES, pictures

SIZE = (4, 6)


def drawing(seed: int, size=(16, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def scene(mask, frames=6, loop=False, **more) -> Scene:
    return Scene.parse(
        {
            "concepts": [{"prompt": "an ocean", "mask": mask.to_dict() if isinstance(mask, ImageMask) else mask}],
            "motion": {"loop": loop},
            "animation": {"frames": frames},
            **more,
        }
    )


def weights(mask, frames, total=6, loop=False) -> torch.Tensor:
    return Maps(scene(mask, total, loop), SIZE).weights(frames)[:, 0]


def stills(images) -> torch.Tensor:
    return torch.stack([weights(ImageMask.of(one), [0], 1)[0] for one in images])


def encoded(images, format: str, **options) -> str:
    file = io.BytesIO()
    images[0].save(file, format, save_all=True, append_images=images[1:], **options)
    return base64.b64encode(file.getvalue()).decode()


def sequence(count: int, **fields) -> ImageMask:
    return ImageMask(data=ImageMask.of([drawing(k) for k in range(count)]).data, **fields)


# --- Which picture when


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(2, 9), st.booleans(), st.booleans(), st.integers(0, 4))
def test_a_frame_is_the_still_of_its_picture(count, total, loop, invert, first):
    first = first % count
    found = weights(sequence(count, picture=first, invert=invert), range(total), total, loop)
    images = [drawing(k) for k in range(count)]
    for frame in range(total):
        k = (first + frame) % count if loop else min(first + frame, count - 1)
        assert torch.equal(found[frame], weights(ImageMask.of(images[k], invert=invert), [0], 1)[0])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4),
    st.sampled_from(["frames", "stretch", "still"]),
    st.booleans(),
    st.lists(st.integers(0, 5) | st.floats(0, 6, exclude_max=True), min_size=1, max_size=4),
    st.sampled_from(["L", "1", "RGB", "RGBA", "LA"]),
)
def test_equal_pictures_are_the_picture(count, mode, loop, frames, pixels):
    one = drawing(3).convert(pixels)
    many = ImageMask.of([one] * count)
    assert many.count == count
    found = weights(ImageMask(data=many.data, sequence=mode), frames, loop=loop)
    assert all(torch.equal(row, weights(ImageMask.of(one), [0])[0]) for row in found)


def test_stretched_all_pictures_come_and_pass_into_each_other():
    mask, (a, b, c) = sequence(3, sequence="stretch"), stills([drawing(k) for k in range(3)])
    line = weights(mask, range(5), 5)
    assert torch.equal(line[0], a) and torch.equal(line[2], b) and torch.equal(line[4], c)
    assert torch.allclose(line[1], (a + b) / 2, atol=1e-6) and torch.allclose(line[3], (b + c) / 2, atol=1e-6)
    loop = weights(mask, [0, 2, 4, 5, 6], 6, loop=True)
    assert torch.equal(loop[2], c) and torch.equal(loop[4], a)
    assert torch.allclose(loop[3], (c + a) / 2, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["frames", "stretch"]), st.booleans(), st.floats(0, 5))
def test_fractions_of_a_frame_are_continuous(mode, loop, frame):
    near, far = weights(sequence(4, sequence=mode), [frame, frame + 1e-3], loop=loop)
    assert (near - far).abs().max() <= 2e-3


def test_a_still_shows_one_picture_and_a_sequence_can_be_held():
    images = stills([drawing(k) for k in range(3)])
    assert torch.equal(weights(sequence(3), [0], 1)[0], images[0])
    assert torch.equal(weights(sequence(3, picture=2), [0], 1)[0], images[2])
    held = scene(sequence(3, picture=1, sequence="still"))
    assert not Maps(held, SIZE).moving and not moves(held)
    assert torch.equal(Maps(held, SIZE).weights([4])[0, 0], images[1])


def test_keyframes_run_through_a_sequence():
    mask = sequence(5, sequence="still").to_dict()
    keys = [{"frame": 0, "mask": {**mask, "picture": 4}}, {"frame": 2, "mask": {**mask, "picture": 0}}]
    concept = {"prompt": "a", "keyframes": keys}
    backwards = Scene.parse({"concepts": [concept], "motion": {"loop": False}, "animation": {"frames": 5}})
    images = stills([drawing(k) for k in range(5)])
    assert torch.equal(Maps(backwards, SIZE).weights([0, 1, 2])[:, 0], images[[4, 2, 0]])


def test_sequences_painted_on_move_too():
    strokes = {"kind": "strokes", "strokes": [{"mask": sequence(3).to_dict()}, {"filter": "invert"}]}
    assert moves(scene(strokes))
    images = stills([drawing(k) for k in range(3)])
    assert torch.allclose(weights(strokes, range(3)), 1 - images, atol=1e-6)


def test_the_preview_moves():
    shown = [np.asarray(picture(scene(sequence(3)), "coefficients", frame, (32, 48))) for frame in (0, 1)]
    assert np.abs(shown[0].astype(int) - shown[1]).max() > 20


# --- Files


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animated_files_are_sequences(format):
    images = [drawing(k) for k in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    mask = ImageMask(data=encoded(images, format, **options))
    assert mask.count == 3
    assert torch.equal(weights(mask, range(3)), stills(images))


def test_what_carries_a_sequence_is_decided_for_all_of_it():
    """A picture on an empty layer is its alpha, be the layer filled or empty at some frames."""
    paint = [Image.merge("LA", (drawing(9), drawing(k))) for k in range(2)]
    paint[1].putalpha(255)
    empty = Image.new("LA", (24, 16))
    assert torch.equal(weights(ImageMask.of([paint[0], paint[1], empty]), [1, 2]).amin((1, 2)), torch.tensor([1.0, 0]))


def test_pages_are_no_sequence():
    mask = ImageMask(data=encoded([drawing(k) for k in range(3)], "TIFF"))
    assert mask.count == 1 and not mask.moves
    (remark,) = [one for one in scene(mask).remarks() if one.path.endswith("data")]
    assert remark.message == "a file of 3 pictures that is no animation: the first is the mask"


def test_colours_of_a_sequence():
    left, right = (Image.new("RGB", (16, 16), "white") for _ in range(2))
    left.paste((255, 0, 0), (0, 0, 8, 16))
    right.paste((0, 0, 255), (8, 0, 16, 16))
    data = ImageMask.of([left, right]).data
    red, blue = (weights(ImageMask(data=data, colour=colour), [0, 1]) for colour in ("#ff0000", "#0000ff"))
    assert red[0, :, 0].min() == 1 and not red[1].any() and not blue[0].any() and blue[1, :, -1].min() == 1
    later = scene(ImageMask(data=data, colour="#0000ff"), 2)
    assert "concepts[0].mask.colour" not in [one.path for one in Maps(later, SIZE).remarks()]
    with pytest.raises(SceneError, match="colour: #00ff00 is no flat colour"):
        ImageMask(data=data, colour="#00ff00")


@pytest.mark.parametrize(
    "images",
    [
        [np.zeros((3, 4), bool), np.full((3, 4), 0.3), drawing(1, (3, 4))],
        [drawing(1), drawing(1).convert("RGBA"), drawing(2).convert("P")],
        [drawing(1).convert("1"), drawing(2)],
    ],
)
def test_pictures_of_different_kinds_are_kept_without_loss(images):
    mask = ImageMask.of(images)
    for k, one in enumerate(images):
        expected = pictures.mask_values(ImageMask.of(one).data)
        assert np.abs(pictures.mask_values(mask.data, k) - expected).max() < 1e-6


def test_a_folder_or_a_pattern_in_the_order_of_numbers(tmp_path, capsys):
    for k in (10, 2, 1):
        drawing(k).save(tmp_path / f"mask-{k}.png")
    (tmp_path / "notes.txt").write_text("none")
    expected = ImageMask.of([drawing(k) for k in (1, 2, 10)])
    assert ImageMask.read(tmp_path) == ImageMask.read(tmp_path / "*.png") == expected
    assert main(["sequence", str(tmp_path), "--prompt", "fog", "--out", str(tmp_path / "scene.json")]) == 0
    made = Scene.read(tmp_path / "scene.json")
    assert (made.concepts[0].mask, made.concepts[0].prompt, made.animation.frames) == (expected, "fog", 3)
    assert "scene.json: 3 pictures" in capsys.readouterr().out
    drawing(1, (8, 8)).save(tmp_path / "mask-3.png")
    for source, words in ((tmp_path, "picture 2: expected the first one's size, 24 × 16, got 8 × 8"),
                          (tmp_path / "none", "no picture there")):  # fmt: skip
        assert main(["sequence", str(source), "--out", str(tmp_path / "other.json")]) == 2
        assert words in capsys.readouterr().err


def test_infotexts_keep_sequences():
    data = "data:image/gif;base64," + encoded([drawing(k) for k in range(3)], "GIF")
    given = scene(ImageMask(data=data, sequence="stretch", picture=1.5))
    assert infotext.read(infotext.write(given)) == given


# --- What is refused, and what is said


def test_problems_have_their_place():
    good = sequence(3).to_dict()
    with pytest.raises(SceneError) as wrong:
        scene({**good, "picture": 3})
    assert str(wrong.value) == "concepts[0].mask.picture: expected at most 2, as there are 3 pictures; got 3"
    with pytest.raises(SceneError, match=r"concepts\[0\].mask.sequence: expected .*; did you mean"):
        scene({**good, "sequence": "strech"})
    broken = base64.b64encode(base64.b64decode(good["data"].split(",")[1])[:-700] + b"IEND").decode()
    with pytest.raises(SceneError, match=r"concepts\[0\].mask.data: "):
        scene({**good, "data": broken})
    for images in ([], [drawing(0), drawing(0, (3, 3))]):
        with pytest.raises(SceneError, match="expected"):
            ImageMask.of(images)


def test_all_pictures_count_for_the_limit():
    side = int((MAX_UNPACKED_BYTES / 5) ** 0.5)
    most = [np.zeros((side, side), bool)] * 6
    masks = [ImageMask.of(most[:count]).to_dict() for count in (4, 2)]
    with pytest.raises(SceneError, match=r"concepts\[1\].mask.data: expected all pictures .* got 76"):
        Scene.parse({"concepts": [{"prompt": "", "mask": mask} for mask in masks]})
    with pytest.raises(SceneError, match=r"at most 64 MiB of unpacked pixels, got 76.8 MiB in 6 pictures"):
        ImageMask.of(most)


@pytest.mark.parametrize(
    "fields, frames, path, words",
    [
        ({}, 1, "data", "a picture of 4 frames: the first is the mask of a still"),
        ({"picture": 2}, 1, "data", "a picture of 4 frames: number 2 is the mask of a still"),
        ({}, 3, "sequence", "there are 3 frames: the sequence's 4 pictures do not all come; stretch spreads them"),
        ({"picture": 1}, 3, "", ""),
        ({"sequence": "stretch"}, 3, "", ""),
        ({"sequence": "still"}, 3, "", ""),
        ({}, 4, "", ""),
    ],
)
def test_remarks(fields, frames, path, words):
    said = [one for one in scene(sequence(4, **fields), frames).remarks() if ".mask" in one.path]
    found = [(one.path, one.message[: len(words)]) for one in said]
    assert found == ([(f"concepts[0].mask.{path}", words)] if path else [])


def test_a_sequence_that_shows_at_one_frame_is_not_empty():
    flash = ImageMask.of([np.full((4, 4), k == 7) for k in range(40)])
    assert not [one for one in Maps(scene(flash, 40), SIZE).remarks() if one.path == "concepts[0].mask"]
    held = ImageMask(data=flash.data, sequence="still")
    assert [one for one in Maps(scene(held, 40), SIZE).remarks() if one.path == "concepts[0].mask"]


def test_a_sequence_makes_an_animation():
    equal = [one.path for one in scene(sequence(3)).remarks()]
    assert "animation.frames" not in equal
    assert "animation.frames" in [one.path for one in scene(sequence(3, sequence="still")).remarks()]
