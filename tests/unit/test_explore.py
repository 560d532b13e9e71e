"""The engine of the views: planes and blends, stops, bridges, grids, folders. Without a model."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_masknoise import smoothness
from lib_masknoise.conditioning import Encoded, condition
from lib_masknoise.explore import between, bridges, grid, views
from lib_masknoise.explore import map as maps
from lib_masknoise.explore.folder import Folder, page
from lib_masknoise.explore.journey import Colours, Path
from lib_masknoise.explore.model import Moment, Recording, Stop, average, blend, heard
from lib_masknoise.explore.plane import Blend, Plane, _on_grid, delaunay, principal
from lib_masknoise.maps import Maps
from lib_masknoise.render import Settings
from lib_masknoise.scene import Scene, SceneError
from tests.materialised import location_embeddings

TOKENS, WIDTH = 7, 12
QUIET = settings(max_examples=40, deadline=None)


def prompt_map(seed: int, count: int = 30) -> maps.PromptMap:
    generator = torch.Generator().manual_seed(seed)
    entries = [maps.Entry(f"prompt {i}", "") for i in range(count)]
    encoded = {entry.prompt: Encoded(torch.randn(TOKENS, WIDTH, generator=generator)) for entry in entries}
    return maps.lay_out(entries, encoded, Encoded(torch.zeros(TOKENS, WIDTH)))


# --- The plane


@QUIET
@given(st.integers(0, 10**6), st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_a_click_becomes_weights_whose_blended_context_projects_back_to_it(seed, right, up):
    """Inside the hull and beyond it; by way of the float32 context that a model would be given."""
    chart = prompt_map(seed)
    low, high = chart.plane.points.min(0), chart.plane.points.max(0)
    x, y = low + (high - low) * np.array([right, up])
    made = chart.plane.weights(x, y)
    assert sum(made.weights) == pytest.approx(1, abs=1e-9)
    assert np.allclose(chart.plane.place(made), (x, y), atol=1e-9 * max(1, *map(abs, made.weights)))
    landed = chart.plane.project(average(chart.blended(made)).numpy())
    assert np.abs(landed - (x, y)).max() < 1e-5 * max(1, *map(abs, made.weights))


@QUIET
@given(st.integers(0, 10**6))
def test_weights_are_negative_beyond_the_hull_only(seed):
    chart = prompt_map(seed)
    points = chart.plane.points
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(points)))
    assert not chart.plane.weights(*(shares @ points)).extrapolates
    centre = points.mean(0)
    outside = centre + 3 * (points[np.abs(points - centre).max(1).argmax()] - centre)
    assert chart.plane.weights(*outside).extrapolates


@pytest.mark.parametrize("count", [4, 60, 400])
@pytest.mark.parametrize("kind", ["spread", "lattice", "circle"])
def test_the_triangulation_is_that_of_qhull(count, kind):
    """As many triangles, all anticlockwise, covering the hull once, and no point inside a circumcircle."""
    scipy = pytest.importorskip("scipy.spatial")
    random = np.random.default_rng(count)
    points = {
        "spread": random.normal(size=(count, 2)),
        "lattice": random.integers(0, 12, size=(count, 2)).astype(float),
        "circle": np.stack([np.cos(t := random.uniform(0, 6.28, count)), np.sin(t)], 1),
    }[kind]
    made = delaunay(points)
    corners = points[made]

    def areas(corners):
        across, along = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        return (across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]) / 2

    assert (areas(_on_grid(points)[made]) > 0).all()
    assert areas(corners).sum() == pytest.approx(scipy.ConvexHull(points).volume, rel=2e-3)  # rounded to the grid
    known = scipy.Delaunay(np.unique(_on_grid(points), axis=0)).simplices
    assert len(made) == len(known)
    for a, b, c in corners[:: max(1, len(corners) // 50)]:
        left = 2 * np.array([b - a, c - a])
        if abs(np.linalg.det(left)) < 1e-3:
            continue
        centre = np.linalg.solve(left, [b @ b - a @ a, c @ c - a @ a])
        radius = np.linalg.norm(a - centre)
        assert (np.linalg.norm(points - centre, axis=1) > radius - 5e-3 * max(1, radius)).all()


def test_no_plane_without_three_directions():
    with pytest.raises(ValueError, match="at least three"):
        Plane.of(np.eye(4)[:2])
    with pytest.raises(ValueError, match="on one line"):
        Plane.of(np.outer(np.arange(6.0), np.ones(5)))
    same = {name: Encoded(torch.ones(TOKENS, WIDTH)) for name in "abcd"}
    with pytest.raises(SceneError, match="tells apart"):
        maps.lay_out([maps.Entry(name, "") for name in same], same, Encoded(torch.zeros(TOKENS, WIDTH)))


def test_components_do_not_depend_on_the_signs_of_the_decomposition():
    vectors = np.random.default_rng(0).normal(size=(20, 6)) * np.arange(6, 0, -1)
    mean, axes, explained = principal(vectors, 2)
    assert np.allclose(axes @ axes.T, np.eye(2))
    assert all(axis[np.abs(axis).argmax()] > 0 for axis in axes)
    kept = ((vectors - mean) @ axes.T).var(0)
    assert np.allclose(kept / (vectors - mean).var(0).sum(), explained)


def test_prompts_that_say_nothing_are_no_corners():
    words = {f"word {i}": Encoded(torch.full((TOKENS, WIDTH), 1.0) + torch.eye(WIDTH)[i] * 9) for i in range(5)}
    silent = {f"noise {i}": Encoded(torch.eye(WIDTH)[i] * 1e-3 + torch.zeros(TOKENS, WIDTH)) for i in range(6)}
    encoded = {**silent, **words}
    chart = maps.lay_out([maps.Entry(text, "") for text in encoded], encoded, Encoded(torch.zeros(TOKENS, WIDTH)))
    assert chart.heard == [False] * 6 + [True] * 5
    assert set(chart.plane.triangles.flatten()) <= set(range(6, 11))
    assert heard(torch.zeros(0, 3), torch.zeros(3)).tolist() == []


@QUIET
@given(st.integers(0, 10**6), st.floats(-0.3, 1.3), st.floats(-0.3, 1.3))
def test_the_scene_of_a_place_makes_the_blend_of_that_place(seed, right, up):
    """What a location of the sent scene sees is the context whose projection is the click."""
    chart = prompt_map(seed)
    low, high = chart.plane.points.min(0), chart.plane.points.max(0)
    made = chart.plane.weights(*(low + (high - low) * np.array([right, up])))
    if max(map(abs, made.weights)) > maps.FURTHEST:
        return
    names = [chart.entries[i].prompt for i in made.points]
    base, scene = maps.scene_of(names, made.weights)
    known = {name: chart.encoded[name] for name in names}
    seen = condition(Maps(scene, (1, 1)), known[base], {n: known[n] for n in names if n != base})
    got = location_embeddings(seen, 0, (1, 1))[0][0]
    assert torch.allclose(got, blend([known[n] for n in names], made.weights).context, atol=2e-5)


def test_contexts_of_different_lengths_are_not_blended():
    with pytest.raises(ValueError, match="one length"):
        blend([Encoded(torch.zeros(3, 2)), Encoded(torch.zeros(4, 2))], [0.5, 0.5])


# --- Prompts


def test_the_built_in_list_is_about_five_hundred_different_prompts_in_groups():
    entries = maps.read_prompts(maps.BUILT_IN)
    assert 450 <= len(entries) <= 700
    assert len({entry.prompt for entry in entries}) == len(entries)
    assert len({entry.group for entry in entries}) >= 12 and all(entry.group for entry in entries)
    assert all(len(entry.prompt.split()) <= 8 for entry in entries)


def test_a_list_has_headings_and_each_prompt_once(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("loose\n# Land\na field\n\n  a field \n## Sea\nwaves\n", "utf-8-sig")
    assert maps.read_prompts(path) == [
        maps.Entry("loose", ""),
        maps.Entry("a field", "Land"),
        maps.Entry("waves", "Sea"),
    ]
    with pytest.raises(SceneError, match="cannot read"):
        maps.read_prompts(tmp_path / "nowhere.txt")


# --- The journey


def recording(steps: int = 5, side: int = 4) -> Recording:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(steps, 2, 4, side, side, generator=generator)
    moments = [Moment(float(steps - 1 - i), x_t, x0) for i, (x_t, x0) in enumerate(latents)]
    return Recording(moments, Image.new("RGB", (side * 8, side * 8)))


def test_one_basis_for_the_colours_of_all_steps():
    """A value of the latent has the same colour whichever step, and whatever stands beside it."""
    colours = Colours.of(recording().moments[-1].x0)
    one = torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(3))
    alone = colours.picture(one, (1, 1)).getpixel((0, 0))
    for moment in recording().moments:
        latent = moment.x0.clone()
        latent[:, 2, 1] = one[:, 0, 0]
        assert colours.picture(latent, (4, 4)).getpixel((1, 2)) == alone
    assert sum(colours.explained) <= 1 + 1e-9 and list(colours.explained) == sorted(colours.explained, reverse=True)


def test_both_paths_lie_in_the_plane_that_holds_most_of_them():
    made = recording(steps=12)
    path = Path.of(made)
    assert path.x0.shape == path.x_t.shape == (12, 2)
    both = torch.stack([m.x0.flatten() for m in made.moments] + [m.x_t.flatten() for m in made.moments]).double()
    spread = (both - both.mean(0)).square().sum()
    planar = np.concatenate([path.x0, path.x_t])
    assert (planar**2).sum() / float(spread) == pytest.approx(sum(path.explained))


# --- Between


class Drawing:
    """A model whose picture of t has a stripe pattern that is shifted by a curve of t: changes at a known rate."""

    longest = 75
    size = (32, 32)

    def __init__(self, curve, stop_after=None):
        self.curve, self.asked, self.stop_after = curve, [], stop_after

    def rendered(self, scene, settings, frames, report):
        self.asked.append(list(frames))
        for frame in frames:
            if self.stop_after is not None and sum(map(len, self.asked)) > self.stop_after:
                raise Stop
            (row,) = Maps(scene, (1, 1)).passages([frame])
            yield self.picture(row[0].weight)

    def plain(self, prompts, seeds, settings, report):
        return [self.picture(seed + len(prompt) / 10) for prompt, seed in zip(prompts, seeds, strict=True)]

    def encode(self, prompts):
        generator = torch.Generator()
        return {
            text: Encoded(
                torch.randn(TOKENS, WIDTH, generator=generator.manual_seed(len(text) + ord((text or "~")[-1])))
            )
            for text in prompts
        }

    def tokens(self, prompt):
        return len(prompt.split())

    def picture(self, t):
        x = np.arange(32)[None, :] / 32
        levels = 127 + 120 * np.sin(6.28 * (x * 2 + self.curve(t)))
        return Image.fromarray(np.repeat(levels, 32, 0).astype(np.uint8)).convert("RGB")


def line_of(curve) -> between.Line:
    return between.Line(Drawing(curve), Settings(prompt="a", batch_size=None), "b", views.silent)


@pytest.mark.parametrize("curve", [lambda t: t / 4, lambda t: t**4 / 4, lambda t: 0.25 / (1 + np.exp(-24 * (t - 0.6)))])
def test_even_stops_are_even(curve):
    line = line_of(curve)
    stops = between.even(line, 13)
    assert len(stops) == 13 and stops[0] == 0 and stops[-1] == 1 and stops == sorted(stops)
    assert smoothness.evenness(line.distances(stops)) >= between.EVEN


def test_stops_are_refined_where_neighbours_are_farthest_apart():
    line = line_of(lambda t: 0.25 / (1 + np.exp(-40 * (t - 0.7))))
    stops = between.refined(line, 17)
    assert len(stops) == 17 and stops[0] == 0 and stops[-1] == 1
    gaps = {a: b - a for a, b in pairwise(stops)}
    closest = min(gaps, key=gaps.get)
    assert 0.6 <= closest <= 0.8 and max(gaps.values()) > 2 * min(gaps.values())
    assert len(line.model.asked[0]) == 9  # the even ones in one batch


def test_a_stop_is_rendered_once():
    line = line_of(lambda t: t)
    line.images([0.0, 0.5, 0.5, 1.0])
    line.images([0.5, 0.25, 0.0])
    assert line.model.asked == [[1.0, 1.5, 2.0], [1.25]]


def test_the_line_goes_through_both_and_beyond():
    scene = between.line_scene("b")
    encoded = {"a": Encoded(torch.randn(5, 6)), "b": Encoded(torch.randn(5, 6))}
    for t in (-0.5, 0.0, 0.3, 1.0, 1.75):
        seen = condition(Maps(scene, (1, 1)), encoded["a"], {"b": encoded["b"]}, [t + between.REACH])
        wanted = (1 - t) * encoded["a"].context + t * encoded["b"].context
        assert torch.allclose(location_embeddings(seen, 0, (1, 1))[0][0], wanted, atol=1e-5)
    assert between.beyond(0.5) == ([-0.5, -0.25], [1.25, 1.5])
    assert between.beyond(0.0) == ([], [])


# --- Bridges


def contexts(*rows: list[float]) -> list[Encoded]:
    return [Encoded(torch.tensor([row] * 3)) for row in rows]


def test_bridges_are_the_nearest_names_along_the_way_with_their_distances():
    first, second, early, middle, far, same = contexts([0, 0], [4, 0], [1, 0.4], [2, 1], [2, 9], [4, 0])
    named = bridges.Named({"far": far, "middle": middle, "early": early, "same": same})
    found = bridges.bridges(named, first, second, 3)
    assert [(one.t, one.prompt) for one in found] == [(0.25, "early"), (0.5, "middle"), (0.75, "far")]
    assert [one.distance for one in found] == pytest.approx([0.1, 0.25, np.hypot(1, 9) / 4])
    assert bridges.nearest(named, first, second, 1.0, 1)[0].prompt == "middle"  # not the second prompt itself
    assert bridges.nearest(named, first, first, 0.5, 3) == []


def test_a_bridge_stands_where_both_fade():
    scene = between.graded("wheat", "ocean")
    made = bridges.bridged(scene, 0, 1, "marsh")
    assert [concept.prompt for concept in made.concepts] == ["wheat", "ocean", "marsh"]
    m_a, m_b, m = Maps(made, (64, 64)).weights()[0]
    assert torch.allclose(m, 4 * m_a * m_b, atol=0.02)
    assert m[:, 31:33].min() > 0.99 and m[:, :6].max() == 0 == m[:, -6:].max()
    assert Scene.parse(made.to_json()) == made


def test_hard_masks_are_softened_and_masks_that_do_not_meet_refused():
    def split(first, second):
        return Scene.parse({"concepts": [
            {"prompt": p, "mask": {"kind": "split", "from": ends[0], "to": ends[1]}}
            for p, ends in (("a", first), ("b", second))
        ]})  # fmt: skip

    mask = bridges.bridge_mask(split((0, 0.5), (0.5, 1)), 0, 1)
    assert mask[:, 127:129].min() > 0.9 and mask[:, 0].max() == 0
    with pytest.raises(ValueError, match="do not meet"):
        bridges.bridge_mask(split((0, 0.2), (0.8, 1)), 0, 1)


# --- The grid


def test_every_combination_has_a_cell_and_batches_share_a_schedule():
    wanted = grid.Grid("a b", (1, 2), (5, 10), (1.0, 4.0), by_word=True)
    assert len(wanted.cells) == 16 and len(set(wanted.cells)) == 16
    assert wanted.cells[0] == grid.Cell("a", 1, 1, 5, 1.0) and wanted.cells[1].prompt == "a b"
    model = Drawing(lambda t: t)
    asked = []
    model.plain = lambda prompts, seeds, s, report: (
        asked.append((s.steps, s.guidance_scale, list(zip(prompts, seeds, strict=True)))),
        [Image.new("RGB", (8, 8))] * len(seeds),
    )[1]
    made = dict(grid.pictures(model, wanted.cells, views.DISABLED, Settings(batch_size=3), lambda more: None))
    assert set(made) == set(wanted.cells)
    assert [len(rows) for *_, rows in asked] == [3, 1] * 4
    with pytest.raises(ValueError, match="cells"):
        grid.Grid("a", tuple(range(5000)), (1,), (1.0,)).cells  # noqa: B018


def test_the_sheet_has_every_picture_where_its_axes_meet():
    wanted = grid.Grid("a", (1, 2), (5,), (1.0, 4.0, 8.0))
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (99, 99, 99), (200, 200, 0)]
    images = {cell: Image.new("RGB", (60, 40), colour) for cell, colour in zip(wanted.cells, colours, strict=True)}
    sheet = grid.sheet(wanted, images)
    left, top = sheet.width - 3 * 62, sheet.height - 2 * 42
    for i, colour in enumerate(colours):
        assert sheet.getpixel((left + i % 3 * 62 + 30, top + i // 3 * 42 + 20)) == colour
    label = np.asarray(sheet.crop((left, 0, sheet.width, top)))
    assert label.min() < 100  # something is written there
    del images[wanted.cells[4]]
    assert grid.sheet(wanted, images).getpixel((left + 92, top + 62)) == (255, 255, 255)


# --- Folders


def test_a_stopped_view_keeps_what_there_is(tmp_path):
    model = Drawing(lambda t: t / 4, stop_after=9)
    folder = Folder(tmp_path)
    made = views.between(model, Settings(prompt="a"), "b", folder, views.silent, stops=17, bridges=0)
    assert made["interrupted"] and len(made["stops"]) == 9
    known = json.loads((tmp_path / "explore.json").read_text("utf-8"))
    assert known["stops"][0]["t"] == 0 and known["view"] == "between"
    assert all((tmp_path / stop["file"]).exists() for stop in known["stops"])


def test_a_whole_between_has_stops_bridges_and_scenes(tmp_path):
    names = [maps.Entry(f"name {letter}", "") for letter in "klmnop"]
    made = views.between(
        Drawing(lambda t: t / 4), Settings(prompt="a", size=(32, 64)), "b", Folder(tmp_path), views.silent,
        stops=5, even=True, reach=0.25, bridges=2, names=names,
    )  # fmt: skip
    assert [stop["t"] for stop in made["stops"]][:2] == [-0.25, 0.0] and len(made["stops"]) == 7
    assert made["evenness"] >= 0.9 and len(made["bridges"]) == 2
    for bridge in made["bridges"]:
        assert Scene.parse(bridge["scene"]).concepts[2].prompt == bridge["prompt"]
    assert Scene.parse(made["keyframes"]).animation.frames == 48
    assert {"index.html", "explore.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_page_needs_no_other_file_and_survives_its_own_prompts(tmp_path):
    folder = Folder(tmp_path)
    folder.picture("one", Image.new("RGB", (4, 4), "red"))
    hostile = "</script><script>alert(1)</script>"
    view = folder.finish({"view": "grid", "settings": {"prompt": hostile}})
    text = (tmp_path / "index.html").read_text("utf-8")
    assert hostile not in text and "http://www.w3.org/2000/svg" in text
    assert 'src="http' not in text and "@import" not in text and "<link" not in text
    data = text.split('id="data">', 1)[1].split("</script>", 1)[0]
    assert json.loads(data)["settings"]["prompt"] == hostile
    assert "http://elsewhere/one.png" in page(view, {"pictures/one.png": "http://elsewhere/one.png"})


def test_an_extrapolating_blend_says_so():
    assert Blend((0, 1, 2), (0.5, 0.7, -0.2)).extrapolates
    assert not Blend((0, 1, 2), (1.0, 0.0, -1e-17)).extrapolates
