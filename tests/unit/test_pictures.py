"""Pictures of masks: decoded once, remembered within bounds, limited in all."""

import json
import threading

import numpy as np
import pytest

from lib_masknoise import Concept, ImageMask, Scene, SceneError
from lib_masknoise.maps import Maps
from lib_masknoise.scene import MAX_UNPACKED_BYTES, pictures
from lib_masknoise.scene.pictures import Memory, data_url, mask_values, unpacked_bytes


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The pictures that are decoded, none being known yet."""
    seen = []
    decode = pictures.decode_pictures

    def counted(data):
        seen.append(data)
        return decode(data)

    monkeypatch.setattr(pictures, "decode_pictures", counted)
    pictures._levels.clear()
    pictures._good.clear()
    return seen


def picture(value: int, side: int = 8) -> str:
    return data_url(np.full((side, side), value, np.uint8))


def image(data: str) -> dict:
    return {"kind": "image", "data": data}


def test_a_picture_is_decoded_once_in_all(decoded):
    stamps = [{"mask": image(picture(i % 2))} for i in range(100)]
    keys = [{"frame": 1, "mask": image(picture(1))}]
    body = json.dumps(
        {
            "concepts": [
                {"prompt": "", "mask": {"kind": "strokes", "strokes": stamps}},
                {"prompt": "", "mask": image(picture(0)), "keyframes": keys},
            ]
        }
    )
    scene = Scene.parse(body)
    Scene.parse(scene.to_json()).replace({"blend.feather": 0.1, "concepts[0].weight": 0.5})
    for size in ((8, 8), (16, 24)):
        Maps(scene, size).weights()
    assert sorted(decoded) == sorted([picture(0), picture(1)])


def test_what_was_refused_is_refused_again(decoded):
    broken = picture(3)[:-30]
    for _ in range(2):
        with pytest.raises(SceneError, match="data: "):
            ImageMask(data=broken)
    assert len(decoded) == 2


def test_a_known_picture_that_was_forgotten_is_still_good(decoded):
    data = picture(7)
    ImageMask(data=data)
    pictures._levels.clear()
    ImageMask(data=data)
    assert len(decoded) == 1
    assert mask_values(data)[0, 0] == np.float32(7 / 255) and len(decoded) == 2


def test_values_are_not_to_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        mask_values(picture(9))[0, 0] = 1


def test_memory_keeps_what_was_used_last_within_its_bound():
    memory = Memory(100)
    for key in (b"a", b"b", b"c"):
        memory.put(key, key, 40)
    assert (memory.get(b"a"), memory.get(b"b"), memory.get(b"c")) == (None, b"b", b"c")
    memory.get(b"b")
    memory.put(b"d", b"d", 40)
    assert (memory.get(b"b"), memory.get(b"c"), memory.get(b"d")) == (b"b", None, b"d")
    memory.put(b"d", b"D", 60)  # in place of the other
    assert (memory.get(b"b"), memory.get(b"d")) == (b"b", b"D")
    memory.put(b"e", b"e", 101)  # larger than all
    assert [memory.get(key) for key in (b"b", b"d", b"e")] == [None] * 3
    memory.put(b"f", b"f", 100)
    assert memory.get(b"f") == b"f"


def test_memory_in_many_threads():
    memory, wrong = Memory(50), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for key in rng.integers(0, 20, 2000):
            name = bytes([key])
            memory.put(name, name, int(key) % 9 + 1)
            if memory.get(name) not in (None, name):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and 0 < memory._held == sum(size for _, size in memory._entries.values()) <= 50


# --- The limit of a scene


@pytest.mark.parametrize(
    ("array", "size"), [(np.zeros((5, 7), bool), 35), (np.zeros((5, 7), np.uint8), 35), (np.full((5, 7), 0.3), 70)]
)
def test_unpacked_bytes(array, size, decoded):
    data = data_url(array)
    assert unpacked_bytes(data) == size and not decoded
    mask_values(data)
    assert unpacked_bytes(data) == size
    assert unpacked_bytes("no picture") == 0


def large(i: int) -> str:
    """A fifth of what a scene may have, in a few kB."""
    side = int((MAX_UNPACKED_BYTES / 5) ** 0.5)
    array = np.zeros((side, side), bool)
    array[0, i] = True
    return data_url(array)


def test_all_pictures_of_a_scene_together_are_limited_before_any_is_decoded(decoded):
    strokes = {"kind": "strokes", "strokes": [{"points": [[0, 0]]}, {"mask": image(large(2))}]}
    fitting = [
        {"prompt": "", "mask": image(large(0))},
        {
            "prompt": "",
            "mask": image(large(0)),
            "keyframes": [{"mask": image(large(1))}, {"frame": 3, "mask": strokes}],
        },
        {"prompt": "", "keyframes": [{"mask": image(large(3))}, {"frame": 3, "mask": image(large(1))}]},
        {"prompt": "", "mask": image(large(4))},
    ]
    for mask, path in (
        (image(large(5)), "concepts[4].mask.data"),
        ({"kind": "strokes", "strokes": [{"mask": image(large(5))}]}, "concepts[4].mask.strokes[0].mask.data"),
    ):
        with pytest.raises(SceneError) as caught:
            Scene.parse({"concepts": [*fitting, {"prompt": "", "mask": mask}]})
        (problem,) = caught.value.problems
        assert problem.path == path and "at most 64 MiB of unpacked pixels together, got 76.8 MiB" in problem.message
    assert not decoded
    scene = Scene.parse({"concepts": fitting})
    assert len(decoded) == 5
    with pytest.raises(SceneError, match=r"concepts\[4\]\.mask\.data: .* 64 MiB"):
        Scene(concepts=[*scene.concepts, Concept(prompt="", mask=ImageMask(data=large(5)))])


def test_what_is_no_scene_at_all_has_no_pictures():
    for concepts in (3, "x", [3, None, {"mask": 3}, {"mask": {"data": 3, "strokes": {"mask": 1}}}, {"keyframes": [1]}]):
        with pytest.raises(SceneError):
            Scene.parse({"concepts": concepts})
