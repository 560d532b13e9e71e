"""A mask that does not move is drawn once a size, a picture decoded once, however often maps are asked for."""

import pytest

from bench.maps import BATCH, HIRES, JOBS, SIZE, counted
from lib_masknoise.maps import Maps
from lib_masknoise.scene import Scene

EXPECTED = {
    f"{BATCH} stills, painted masks": (4, 0),
    "the same with a hires pass": (8, 0),
    "the page's preview of 24 frames": (6, 1),  # two masks; a map, a strip and the visual noise's latent
}


@pytest.mark.parametrize("name", JOBS)
def test_every_mask_is_drawn_once_a_size(name):
    scene, _, work = JOBS[name]
    with counted() as counts:
        work(Scene.parse(scene))
    assert (counts["drawn"], counts["decoded"]) == EXPECTED[name]


def test_masks_between_keyframes_are_drawn_for_their_frame_and_own_masks_once():
    moving = {"kind": "ellipse", "x": 0.2}, {"kind": "ellipse", "x": 0.8}
    keyframes = [{"frame": 0, "mask": moving[0]}, {"frame": 2, "mask": moving[1]}]
    scene = Scene.parse(
        {
            "concepts": [
                {"prompt": "a", "keyframes": keyframes},
                {"prompt": "b", "mask": {"kind": "split", "to": 0.5}},
            ],
            "noise": {"visual": {"strength": 0.5}},
            "motion": {"kind": "circle", "loop": False},
            "animation": {"frames": 3},
        }
    )
    with counted() as counts:
        for size in (SIZE, HIRES):
            maps = Maps(scene, size)
            for _ in range(3):
                maps.weights([0, 1, 2])
                maps.amount("visual", [0, 1, 2])
    assert counts["drawn"] == 2 * (3 + 1)
