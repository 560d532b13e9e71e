"""Masks as weight maps: what is drawn, how it is resized, and the coefficients made from it."""

import base64
import io
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_masknoise.maps import (
    Maps,
    coefficients,
    covered,
    feather,
    level_size,
    level_with,
    pin,
    rasterize,
    resize,
    strokes,
)
from lib_masknoise.maps.shapes import _ellipse_distance
from lib_masknoise.scene import Scene
from lib_masknoise.ui import inputs

unit = st.floats(0, 1)
small_sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
quick = settings(max_examples=40, deadline=None)


def draw(size, kind="rect", **fields) -> torch.Tensor:
    return rasterize(
        Scene.parse({"concepts": [{"prompt": "", "mask": {"kind": kind, **fields}}]}).concepts[0].mask, size
    )


def brush(size, *points, **fields) -> torch.Tensor:
    return draw(size, "strokes", strokes=[{"points": list(points), **fields}])


def random_maps(size, count=2, seed=0) -> torch.Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


spans = st.tuples(unit, unit).map(sorted)
shapes = st.one_of(
    st.builds(
        lambda across, down, width: dict(
            kind="rect", left=across[0], right=across[1], top=down[0], bottom=down[1], feather=width
        ),
        spans,
        spans,
        unit,
    ),
    st.builds(
        lambda span, axis, width: {
            "kind": "split",
            "axis": axis,
            "from": span[0],
            "to": span[1],
            "feather": width,
        },
        spans,
        st.sampled_from("xy"),
        unit,
    ),
    st.builds(
        lambda x, rx, ry, angle, width: dict(kind="ellipse", x=x, rx=rx, ry=ry, angle=angle, feather=width),
        unit,
        st.floats(0.1, 2),
        st.floats(0.1, 2),
        st.floats(-360, 360),
        unit,
    ),
    st.builds(
        lambda shape, x, smooth: {
            "kind": "gradient",
            "shape": shape,
            "from": [x, 0.1],
            "to": [0.5, 1],
            "smooth": smooth,
        },
        st.sampled_from(["linear", "radial"]),
        unit,
        st.booleans(),
    ),
    st.builds(
        lambda points, radius, hardness, erase: {
            "kind": "strokes",
            "strokes": [
                {"points": points, "radius": radius, "hardness": hardness},
                {"points": points[:1], "radius": radius / 2, "erase": erase},
            ],
        },
        st.lists(st.lists(unit, min_size=2, max_size=3), min_size=1, max_size=5),
        st.floats(0.05, 1),
        unit,
        st.booleans(),
    ),
)


# --- Every kind


@quick
@given(shapes, small_sizes)
def test_values_lie_between_0_and_1_at_any_size(shape, size):
    drawn = draw(size, **shape)
    assert drawn.shape == size and drawn.dtype == torch.float32
    assert 0 <= drawn.min() and drawn.max() <= 1


TAPERED = {
    "kind": "strokes",
    "strokes": [
        {"points": [[0.0, 0.0], [0.0, 0.5, 0.0]], "radius": 1.0, "hardness": 1.0},
        {"points": [[0.0, 0.0]], "radius": 0.5, "erase": False},
    ],
}


@quick
@given(shapes, st.tuples(st.integers(16, 70), st.integers(16, 70)))
@example(TAPERED, (16, 16))
def test_drawing_large_and_shrinking_is_drawing_small(shape, size):
    small, large = draw(size, **shape), draw((2 * size[0], 2 * size[1]), **shape)
    difference = (resize(large, size) - small).abs()
    # Rectangles, splits and gradients are exact; a stroke's mean is that of a straight, axis-parallel one, so
    # that single pixels may differ where hard strokes of a pixel's radius, as here, turn or meet.
    most, mean = {"ellipse": (0.1, 0.002), "strokes": (0.5, 0.01)}.get(shape["kind"], (0.02, 1e-4))
    if any(len(point) == 3 for stroke in shape.get("strokes", ()) for point in stroke["points"]):
        mean = 0.02  # where pressure tapers a stroke, its edge is not parallel to its path, as the averaging takes it
    assert difference.max() < most and difference.mean() < mean


# --- Shapes


def test_the_default_mask_is_full_and_keeps_its_borders():
    assert draw((5, 7)).eq(1).all() and draw((5, 7), feather=0.5).eq(1).all()


def test_rect_covers_parts_of_pixels():
    drawn = draw((2, 4), left=0.125, right=0.75, bottom=0.75)
    row = torch.tensor([0.5, 1, 1, 0])
    torch.testing.assert_close(drawn, torch.stack([row, row / 2]))


def test_rect_without_extent_is_empty():
    assert draw((4, 4), left=0.0, right=0.0, feather=0.5).eq(0).all()


def test_rect_feather_is_a_fraction_of_the_shorter_side_on_both_axes():
    drawn = draw((100, 400), left=0.5, top=0.5, feather=0.2)
    x, y = drawn[-1], drawn[:, -1]
    assert (x[:190] == 0).all() and (x[211:] == 1).all() and x[199] + x[200] == pytest.approx(1)
    assert (y[:40] == 0).all() and (y[61:] == 1).all() and y[49] + y[50] == pytest.approx(1)


@quick
@given(st.lists(unit, min_size=1, max_size=4), unit, st.integers(1, 50))
def test_splits_that_meet_add_up_to_1(edges, width, n):
    ends = [0.0, *sorted(edges), 1.0]
    assume(all(low < high for low, high in zip(ends, ends[1:], strict=False)))
    strips = [
        draw((3, n), "split", feather=width, **{"from": low, "to": high})
        for low, high in zip(ends, ends[1:], strict=False)
    ]
    torch.testing.assert_close(sum(strips), torch.ones(3, n))


def test_split_feather_is_a_smoothstep():
    drawn = draw((1, 1000), "split", feather=0.4, **{"from": 0.5, "to": 1.0})[0]
    t = ((torch.arange(1000) + 0.5) / 1000 - 0.3) / 0.4
    torch.testing.assert_close(drawn, (t.clamp(0, 1) ** 2 * (3 - 2 * t.clamp(0, 1))), atol=1e-4, rtol=0)


def test_split_along_y():
    torch.testing.assert_close(draw((4, 1), "split", axis="y", to=0.5)[:, 0], torch.tensor([1.0, 1, 0, 0]))


@pytest.mark.parametrize("angle", [0, 37])
def test_ellipse_has_its_area(angle):
    drawn = draw((120, 120), "ellipse", rx=0.3, ry=0.1, angle=angle)
    assert drawn.mean() == pytest.approx(math.pi * 0.3 * 0.1, rel=2e-3)


def test_ellipse_is_relative_to_each_axis_and_turns_clockwise():
    drawn = draw((100, 200), "ellipse", rx=0.25, ry=0.25)
    assert drawn.mean() == pytest.approx(math.pi / 16, rel=2e-3)
    turned = draw((100, 100), "ellipse", rx=0.4, ry=0.05, angle=45)
    assert turned[70, 70] == 1 and turned[30, 70] == 0


@pytest.mark.parametrize(("a", "b"), [(10, 10), (30, 12), (5, 90), (3, 1)])
def test_ellipse_distance_is_the_true_distance(a, b):
    x, y = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 200)) * [[a], [b]]
    turn = np.linspace(0, 2 * np.pi, 20_000)
    true = np.hypot(a * np.cos(turn) - x[:, None], b * np.sin(turn) - y[:, None]).min(1)
    distance = _ellipse_distance(x, y, a, b)
    np.testing.assert_allclose(np.abs(distance), true, atol=0.005)
    np.testing.assert_array_equal(distance < 0, (x / a) ** 2 + (y / b) ** 2 < 1)


def test_gradients_reach_from_1_to_0():
    linear = draw((3, 100), "gradient", smooth=False, **{"from": [0.25, 0.5], "to": [0.75, 0.5]})
    assert (linear[:, :25] == 1).all() and (linear[:, 75:] == 0).all()
    torch.testing.assert_close(linear[1, 25:75], 1 - (torch.arange(50) + 0.5) / 50)
    radial = draw((50, 100), "gradient", shape="radial", **{"from": [0.5, 0.5], "to": [0.5, 1.0]})
    torch.testing.assert_close(radial[25, 39], radial[35, 50], atol=1e-5, rtol=0)  # a circle at any aspect
    assert radial[:, :24].eq(0).all()


# --- Strokes


def test_brush_profile():
    """A long horizontal stroke: the profile of the docstring, averaged over a pixel."""
    drawn = brush((64, 200), [0.0, 0.5], [1.0, 0.5], radius=0.25, hardness=0.5)[:, 100]
    fine = (np.arange(6400) + 0.5) / 100
    t = np.clip((np.abs(fine - 32) - 8) / 8, 0, 1)
    profile = (1 - t * t * (3 - 2 * t)).reshape(64, 100).mean(1)
    np.testing.assert_allclose(drawn.numpy(), profile, atol=1e-4)


def test_thin_and_hard_lines_keep_their_weight():
    assert brush((64, 64), [0, 0.5], [1, 0.5], radius=0.002, hardness=1)[:, 32].sum() == pytest.approx(0.256, abs=1e-3)
    hard = brush((64, 64), [0.5, 0.5], radius=0.25, hardness=1)
    assert hard.mean() == pytest.approx(math.pi / 16, rel=2e-3)


def test_brush_is_round_at_any_aspect():
    wide, tall = (brush(size, [0.5, 0.5], radius=0.3) for size in ((40, 120), (120, 40)))
    torch.testing.assert_close(wide, tall.T)
    torch.testing.assert_close(wide[:, 40:80], brush((40, 40), [0.5, 0.5], radius=0.3))


def test_pressure_scales_the_radius_along_the_segment():
    drawn = brush((100, 100), [0.0, 0.5, 0.0], [1.0, 0.5, 1.0], radius=0.2, hardness=1)
    assert drawn[:, 25].sum() == pytest.approx(10.25, abs=0.5) and drawn[:, 75].sum() == pytest.approx(30.25, abs=1)


def test_strokes_are_composed_in_their_order():
    dot = {"points": [[0.5, 0.5]], "radius": 1.0, "hardness": 1.0, "opacity": 0.5}
    erase = {**dot, "erase": True}

    def middle(*strokes):
        return draw((5, 5), "strokes", strokes=list(strokes))[2, 2].item()

    assert middle(dot) == pytest.approx(0.5)
    assert middle(dot, dot) == pytest.approx(0.75)
    assert middle(dot, erase) == pytest.approx(0.25)
    assert middle(erase, dot) == pytest.approx(0.5)
    assert middle() == 0


def test_a_stroke_does_not_add_to_itself():
    once, twice = [[0.2, 0.5], [0.8, 0.5]], [[0.2, 0.5], [0.8, 0.5], [0.2, 0.5]]
    torch.testing.assert_close(brush((50, 50), *once, opacity=0.5), brush((50, 50), *twice, opacity=0.5))


def painted(size, *operations) -> torch.Tensor:
    return draw(size, "strokes", strokes=list(operations))


@quick
@given(shapes.filter(lambda shape: shape["kind"] != "strokes"), small_sizes)
def test_a_shape_among_strokes_is_that_shape(shape, size):
    assert torch.equal(painted(size, {"mask": shape}), draw(size, **shape))


def test_shapes_are_composed_as_strokes_are():
    base = {"mask": {}, "opacity": 0.5}
    assert painted((4, 4), base, {"mask": {"right": 0.5}, "opacity": 0.4})[0].tolist() == pytest.approx(
        [0.7, 0.7, 0.5, 0.5]
    )
    assert painted((4, 4), base, {"mask": {"right": 0.5}, "erase": True})[0].tolist() == [0, 0, 0.5, 0.5]


def test_filters_change_what_came_before_them():
    left, bottom = {"mask": {"right": 0.5}}, {"mask": {"top": 0.5}}
    inverted = painted((4, 4), left, {"filter": "invert"}, bottom)
    assert inverted[0].tolist() == [0, 0, 1, 1] and inverted[3].tolist() == [1, 1, 1, 1]
    blurred = painted((64, 64), left, {"filter": "blur", "amount": 0.25})
    torch.testing.assert_close(blurred, feather(painted((64, 64), left), 0.25))


def test_flow_builds_up_where_a_stroke_goes_again():
    style = {"radius": 0.2, "hardness": 1, "flow": 0.1}
    there = brush((100, 100), [0.2, 0.5], [0.8, 0.5], **style)
    and_back = brush((100, 100), [0.2, 0.5], [0.8, 0.5], [0.2, 0.5], **style)
    # A dab each quarter of the radius, each as wide as eight of these steps: 8 or 9 dabs reach a place, then 16 to 18.
    assert 1 - 0.9**7.5 < there[50, 50] < 1 - 0.9**9.5
    assert 1 - 0.9**15.5 < and_back[50, 50] < 1 - 0.9**18.5


def test_flow_reaches_at_most_the_opacity_and_a_single_dab_is_the_brush():
    many = brush((60, 60), *[[0.5, 0.5], [0.55, 0.5]] * 40, radius=0.2, flow=0.5, opacity=0.6)
    assert many.max() == pytest.approx(0.6, abs=1e-3)
    one, plain = (brush((60, 60), [0.4, 0.6], radius=0.2, **more) for more in ({"flow": 0.5}, {}))
    torch.testing.assert_close(one, 0.5 * plain, atol=1e-6, rtol=0)


def test_flow_keeps_its_look_at_other_sizes():
    points = [[0.1, 0.2], [0.9, 0.3], [0.2, 0.8]]
    large, small = (brush(size, *points, radius=0.1, flow=0.2) for size in ((256, 256), (64, 64)))
    assert (resize(large, (64, 64)) - small).abs().mean() < 0.003


@quick
@given(st.lists(st.sampled_from("abcde"), max_size=8), st.integers(0, 8))
def test_what_is_remembered_changes_no_map(names, first):
    """In any order of requests, with beginnings known and unknown, a map is that of all operations drawn anew."""
    entries = {
        "a": {"points": [[0.2, 0.3], [0.8, 0.6]], "radius": 0.2},
        "b": {"points": [[0.7, 0.3]], "radius": 0.3, "erase": True},
        "c": {"mask": {"kind": "ellipse"}, "opacity": 0.5},
        "d": {"filter": "invert"},
        "e": {"filter": "blur", "amount": 0.3},
    }
    operations = [entries[name] for name in names]
    painted((20, 20), *operations[:first])
    seen = painted((20, 20), *operations)
    strokes._memory.clear()
    assert torch.equal(painted((20, 20), *operations), seen)


def test_no_more_is_remembered_than_a_few_small_maps():
    for i in range(100):
        painted((8, 8), {"points": [[i / 100, 0.5]]})
    painted((257, 257), {"points": [[0.5, 0.5]]})
    assert len(strokes._memory) <= 64 and all(max(one.shape) <= 256 for one in strokes._memory.values())


def test_tiles_and_runs_do_not_show():
    """Against every segment at every pixel, over more points than are taken at once."""
    generator = np.random.default_rng(3)
    path = np.clip(np.cumsum(generator.normal(0, 0.03, (300, 2)), 0) + 0.5, 0, 1)
    pressure = generator.uniform(0, 1, 300)
    points = [[*point, p] for point, p in zip(path.tolist(), pressure.tolist(), strict=True)]
    drawn = brush((37, 53), *points, radius=0.12, hardness=0.3)
    pieces = [brush((37, 53), a, b, radius=0.12, hardness=0.3) for a, b in zip(points, points[1:], strict=False)]
    torch.testing.assert_close(drawn, torch.stack(pieces).amax(0), atol=1e-4, rtol=0)


def test_many_strokes_take_seconds():
    generator = np.random.default_rng(0)
    strokes = [
        {"points": [start.tolist(), np.clip(start + 0.02, 0, 1).tolist()], "radius": 0.02}
        for start in generator.uniform(0, 1, (1000, 2))
    ]
    started = time.process_time()
    assert draw((512, 512), "strokes", strokes=strokes).max() == 1
    assert time.process_time() - started < 3


# --- Pictures


def picture(array: np.ndarray, mode: str | None = None, format: str = "PNG", **options) -> str:
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, format, **options)
    return base64.b64encode(file.getvalue()).decode()


RAMP = np.array([[0, 51], [204, 255]], np.uint8)
EXPECTED = torch.tensor([[0, 0.2], [0.8, 1]])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_brightness_of_an_opaque_picture(mode):
    torch.testing.assert_close(draw((2, 2), "image", data=picture(RAMP, mode)), EXPECTED)


def test_varying_alpha_counts_and_colour_does_not():
    layers = np.dstack([np.zeros((2, 2, 3), np.uint8), RAMP])
    torch.testing.assert_close(draw((2, 2), "image", data=picture(layers)), EXPECTED)
    torch.testing.assert_close(draw((2, 2), "image", data=picture(layers), invert=True), 1 - EXPECTED)


def test_a_black_and_white_picture_with_some_pixels_not_quite_opaque_counts_by_its_brightness():
    layers = np.full((8, 8, 4), 255, np.uint8)
    layers[:, 4:, :3] = 0
    layers[0, 0, 3], layers[5, 6, 3] = 250, 128
    torch.testing.assert_close(draw((1, 2), "image", data=picture(layers)), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("paint", [0, 255, "photo"])
@pytest.mark.parametrize("most", [255, 60])
def test_paint_on_an_empty_layer_counts_by_its_alpha(paint, most):
    """Whatever its colours, also faint paint."""
    layers = np.zeros((8, 8, 4), np.uint8)
    layers[:, 4:, 3] = most
    layers[:4, :4, :3] = 255
    layers[:, 4:, :3] = np.arange(8)[:, None, None] * 36 if paint == "photo" else paint
    torch.testing.assert_close(draw((1, 2), "image", data=picture(layers)), torch.tensor([[0.0, most / 255]]))


def test_a_layer_faint_in_places_counts_by_its_alpha_where_its_colours_are_more_even():
    layers = np.full((8, 8, 4), 200, np.uint8)
    layers[:, 4:, 3] = 51
    layers[0, 0, :3] = 180
    torch.testing.assert_close(draw((1, 2), "image", data=picture(layers)), torch.tensor([[200 / 255, 0.2]]))


def test_transparent_palette_entry_counts_as_alpha():
    half = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P")
    file = io.BytesIO()
    half.save(file, "PNG", transparency=half.getpixel((0, 0)))
    data = base64.b64encode(file.getvalue()).decode()
    torch.testing.assert_close(draw((1, 2), "image", data=data), torch.tensor([[0.0, 1.0]]))


def test_sixteen_bit_grey():
    array = np.array([[0, 13107], [52428, 65535]], np.uint16)
    torch.testing.assert_close(draw((2, 2), "image", data=picture(array)), EXPECTED, atol=1e-5, rtol=0)


def test_black_and_white_bits():
    torch.testing.assert_close(
        draw((1, 2), "image", data=picture(np.array([[0, 255]], np.uint8), "1")), torch.tensor([[0.0, 1.0]])
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats(format):
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow has no {format}")
    drawn = draw((16, 16), "image", data=picture(np.full((32, 32), 128, np.uint8), "RGB", format))
    torch.testing.assert_close(drawn, torch.full((16, 16), 128 / 255), atol=0.02, rtol=0)


# --- Feather


@quick
@given(small_sizes, unit)
def test_feather_keeps_the_range_and_a_full_map(size, amount):
    maps = random_maps(size)
    soft = feather(maps, amount)
    assert soft.min() >= maps.min() - 1e-6 and soft.max() <= maps.max() + 1e-6
    torch.testing.assert_close(feather(torch.ones(1, *size), amount), torch.ones(1, *size))


def test_feather_makes_a_hard_edge_the_same_smoothstep():
    hard = draw((50, 80), "split", **{"from": 0.5, "to": 1.0})
    soft = draw((50, 80), "split", feather=0.25, **{"from": 0.5, "to": 1.0})  # 20 pixels of 80
    torch.testing.assert_close(feather(hard, 0.4), soft, atol=2e-3, rtol=0)  # 20 pixels of 50


def test_more_feather_is_never_steeper_and_keeps_the_order():
    hard = draw((40, 40), left=0.3, right=0.7)[20:21].expand(40, 40)
    steepest = 1.0
    for amount in (0.0, 0.1, 0.3, 0.6, 1.0):
        soft = feather(hard, amount)[0]
        assert soft[:20].diff().min() >= -1e-6 and soft[20:].diff().max() <= 1e-6
        assert soft.diff().abs().max() <= steepest + 1e-6
        steepest = soft.diff().abs().max()


# --- Sizes


@quick
@given(small_sizes, small_sizes, st.integers(0, 9))
def test_resize_keeps_the_range(size, other, seed):
    maps = random_maps(size, seed=seed)
    resized = resize(maps, other)
    assert resized.shape == (2, *other) and resized.dtype == maps.dtype
    for before, after in zip(maps, resized, strict=True):
        assert before.min() <= after.min() and after.max() <= before.max()


@quick
@given(small_sizes, st.data())
def test_shrinking_keeps_the_mean(size, data):
    smaller = data.draw(st.integers(1, size[0])), data.draw(st.integers(1, size[1]))
    maps = random_maps(size).double()
    torch.testing.assert_close(resize(maps, smaller).mean((1, 2)), maps.mean((1, 2)))


def test_shrinking_by_a_fraction_weighs_parts_of_elements():
    torch.testing.assert_close(resize(torch.tensor([[0.0, 3, 6]]), (1, 2)), torch.tensor([[1.0, 5]]))


def test_shrinking_twice_is_shrinking_once():
    maps = random_maps((48, 36))
    torch.testing.assert_close(resize(resize(maps, (24, 12)), (8, 6)), resize(maps, (8, 6)))


def test_growing_is_smooth():
    ramp = torch.arange(8.0).expand(8, 8)
    grown = resize(ramp, (8, 64))[0]
    torch.testing.assert_close(grown[12:-12].diff(), torch.full((39,), 1 / 8))
    edge = resize((ramp > 3).float(), (64, 64))
    assert edge.unique().numel() > 4 and edge[0].diff().min() >= -1e-6


def test_one_axis_may_grow_while_the_other_shrinks():
    maps = random_maps((10, 30))
    torch.testing.assert_close(resize(maps, (20, 10)), resize(resize(maps, (20, 30)), (20, 10)), atol=0.05, rtol=0)


def test_resize_takes_half_precision_and_any_leading_axes():
    resized = resize(random_maps((9, 7)).half()[None, :, None], (4, 3))
    assert resized.shape == (1, 2, 1, 4, 3) and resized.dtype == torch.float16


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 5))
def test_level_size_is_what_repeated_halving_gives(height, width, level):
    size = height, width
    for _ in range(level):
        size = (size[0] + 1) // 2, (size[1] + 1) // 2
    assert level_size((height, width), level) == size


# --- The maps of a scene

THREE = {
    "concepts": [
        {"prompt": "", "mask": {"kind": "split", "to": 0.5}},
        {"prompt": "", "mask": {"kind": "ellipse", "feather": 0.2}},
        {"prompt": ""},
    ],
}


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (33, 17), (1, 1), (200, 3)])
def test_weight_maps(size):
    maps = Maps(Scene.parse(THREE), size).weights()[0]
    assert maps.shape == (3, *size) and maps.dtype == torch.float32
    assert 0 <= maps.min() and maps.max() <= 1 and maps[2].eq(1).all()
    torch.testing.assert_close(maps[0].mean(), torch.tensor(0.5))


def test_weight_maps_agree_between_sizes():
    scene = Scene.parse({**THREE, "blend": {"feather": 0.3}})
    torch.testing.assert_close(
        resize(Maps(scene, (64, 96)).weights()[0], (32, 48)), Maps(scene, (32, 48)).weights()[0], atol=0.01, rtol=0
    )


def test_strokes_agree_between_sizes():
    strokes = [
        {"points": [[0.1, 0.2], [0.6, 0.7, 0.3], [0.9, 0.1]], "radius": 0.06, "hardness": 1.0},
        {"points": [[0.2, 0.8], [0.8, 0.8]], "radius": 0.02, "erase": True},
    ]
    scene = Scene.parse({"concepts": [{"prompt": "", "mask": {"kind": "strokes", "strokes": strokes}}]})
    large, small = resize(Maps(scene, (48, 64)).weights()[0], (24, 32)), Maps(scene, (24, 32)).weights()[0]
    assert (large - small).abs().max() < 0.01


def test_scene_feather_softens_every_mask():
    maps = Maps(Scene.parse({**THREE, "blend": {"feather": 0.5}}), (32, 32)).weights()[0]
    assert 0.1 < maps[0, 16, 12] < 1 and maps[2].min() > 1 - 1e-6


def test_without_concepts():
    maps = Maps(Scene.parse({}), (4, 6)).weights()[0]
    assert maps.shape == (0, 4, 6)
    assert pin(maps).eq(0).all() and pin(maps).shape == (4, 6)
    for mode in ("interpolate", "add"):
        assert coefficients(maps, [], mode, 1.0).eq(1).all() and len(coefficients(maps, [], mode, 1.0)) == 1


def test_pin_is_the_strongest_mask():
    assert pin(torch.tensor([[[0.2, 0.9]], [[0.5, 0.1]]])).tolist() == [[0.5, pytest.approx(0.9)]]


# --- Coefficients

weights_of_three = st.lists(st.floats(-4, 4), min_size=3, max_size=3)


@quick
@given(weights_of_three, st.floats(0, 2), st.integers(0, 99))
def test_interpolated_coefficients_sum_to_1(weights, scale, seed):
    found = coefficients(random_maps((4, 5), 3, seed), weights, "interpolate", scale)
    assert found.shape == (4, 4, 5)
    torch.testing.assert_close(found.sum(0), torch.ones(4, 5), atol=1e-5, rtol=0)


@quick
@given(weights_of_three, st.floats(0, 2), st.integers(0, 99))
def test_interpolated_coefficients_are_bounded_and_continuous(weights, scale, seed):
    maps = random_maps((4, 5), 3, seed).double()
    found = coefficients(maps, weights, "interpolate", scale)
    wanted = scale * torch.tensor(weights, dtype=maps.dtype)[:, None, None] * maps
    positive = wanted.clamp(min=0)
    bound = positive.amax(0).clamp(min=1)
    assert (found[1:].clamp(min=0).sum(0) <= bound + 1e-9).all()
    assert (found[1:].sign() == wanted.sign()).all()
    alone = positive.sum(0) <= bound
    torch.testing.assert_close(found[1:][:, alone], wanted[:, alone])
    nudged = coefficients(maps + 1e-6, weights, "interpolate", scale)
    assert (nudged - found).abs().max() < 1e-3


def at(maps, weights, mode="interpolate", scale=1.0):
    return coefficients(torch.tensor(maps)[:, None, None], weights, mode, scale).flatten().tolist()


def test_coefficients_by_hand():
    assert at([0.25], [1]) == [0.75, 0.25]
    assert at([1.0], [1]) == [0, 1]
    assert at([1.0, 1.0], [1, 1]) == [0, 0.5, 0.5]
    assert at([1.0], [2]) == [-1, 2]
    assert at([1.0, 1.0], [2, 1]) == pytest.approx([-1, 4 / 3, 2 / 3])
    assert at([1.0, 1.0], [1, -1]) == [1, 1, -1]
    assert at([0.5, 1.0], [1, 1], "add", 0.25) == [1, 0.125, 0.25]


def test_unknown_mode():
    with pytest.raises(ValueError, match='"interpolate" or "add"'):
        at([1.0], [1], "mix")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4))
def test_the_level_with_that_many_locations(height, width, level):
    """Whatever the latent's proportions. Levels with equally many locations have the same size."""
    size = level_size((height, width), level)
    assert level_with((height, width), size[0] * size[1]) == size


@pytest.mark.parametrize("locations", [0, 5, 25, 1000])
def test_no_level_has_other_numbers_of_locations(locations):
    with pytest.raises(ValueError, match=f"no level of a 4×6 latent has {locations} locations"):
        level_with((4, 6), locations)


# --- Overlap


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 5))
def test_a_pile_shows_of_each_layer_what_those_above_leave(seed, count):
    maps = random_maps((3, 4), count, seed)
    seen = covered(maps)
    for i in range(count):
        expected = maps[i].double()
        for above in maps[i + 1 :]:
            expected = expected * (1 - above.double())
        assert torch.allclose(seen[i].double(), expected, atol=1e-7)
    assert seen.shape == maps.shape and torch.equal(covered(maps), seen)
    assert torch.allclose(seen.sum(0), 1 - (1 - maps).prod(0), atol=1e-6)


def test_the_last_concept_lies_on_top_and_everything_follows_from_it():
    ellipse = {"kind": "ellipse", "rx": 0.3, "ry": 0.3, "feather": 0.2}
    below, above = {"prompt": "a marsh"}, {"prompt": "lava", "mask": ellipse}
    scene = Scene.parse({"concepts": [below, above], "blend": {"overlap": "top"}})
    mixed = scene.replace({"blend.overlap": "mix"})
    maps, drawn = Maps(scene, (32, 32)), Maps(mixed, (32, 32)).weights()[0]
    weights = maps.weights()[0]
    assert torch.equal(weights[1], drawn[1]) and torch.equal(weights[0], 1 - drawn[1])
    assert weights[:, 16, 16].tolist() == [0, 1], "the middle is all lava"
    assert torch.equal(maps.pins()[0], torch.maximum(1 - drawn[1], drawn[1])), "the soft edge between them is free"
    base, *parts = coefficients(weights, [1, 1], "interpolate", 1.0)
    assert base.abs().max() < 1e-6 and torch.equal(torch.stack(parts), weights)


def test_scenes_without_the_field_are_as_before_and_the_canvas_begins_on_top():
    assert Scene.parse({}).blend.overlap == "mix" and "overlap" not in Scene.parse({}).to_dict(defaults=False)
    assert inputs.read(["", True]).blend.overlap == "top"
    assert inputs.read(inputs.show(Scene.parse({"concepts": []}))).blend.overlap == "mix"


# --- Parts of a picture


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_parts_of_a_picture_put_together_are_the_whole(scale):
    """Two by two windows of a scene, each drawn alone, are its maps at twice the size."""
    scene = Scene.parse(
        {
            "concepts": [
                {"prompt": "a", "mask": {"kind": "ellipse", "x": 0.4, "rx": 0.3, "ry": 0.2, "feather": 0.2}},
                {"prompt": "b", "mask": {"kind": "strokes", "strokes": [{"points": [[0.1, 0.2], [0.9, 0.7]]}]}},
            ],
            "blend": {"feather": 0.1},
        }
    )
    size = 8 * scale, 12 * scale
    windows = [(y, x, y + 0.5, x + 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5)]
    a, b, c, d = (Maps(scene, size, window=window).weights()[0] for window in windows)
    whole = Maps(scene, (2 * size[0], 2 * size[1])).weights()[0]
    assert torch.allclose(torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2), whole, atol=1e-6)


@pytest.mark.parametrize("factor", [1, None])
def test_beyond_the_picture_masks_go_on_as_they_end(factor):
    mask = {"kind": "split", "axis": "y", "to": 0.25}
    maps = Maps(Scene.parse({"concepts": [{"prompt": "a", "mask": mask}]}), (8, 4), factor, (-0.5, 0.0, 1.5, 1.0))
    assert maps.weights()[0, 0].mean(1).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
