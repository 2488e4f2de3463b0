"""Draws: what they depend on, probabilities of compositions, the order of geometry, and transforms in files."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from paths import CONFIGS, ROOT, SUPPORT
from rich_transform import SIZE, rich

from slideio_pipe.augment.colour_transforms import ColorJitter, RandStainNA, StainJitter, StainNormalize
from slideio_pipe.augment.compose import draw, leaves, load_transform, measured, needs_slide
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.geometric_transforms import Flip, RandomAffine, RandomResizedCrop, Rotate90
from slideio_pipe.augment.operations import Hsv, Stain, Tone
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.stain_matrices import HED, as_matrix
from slideio_pipe.errors import ConfigError, NoTissueError
from slideio_pipe.geometry import Affine, Size
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.tiles.grid import TileGrid
from slideio_pipe.tiles.tile_bag import TileBag

PRESETS = sorted(path for kind in ("stain", "tellez", "randstainna") for path in CONFIGS.glob(f"{kind}-*.yaml"))
COLOUR = SlideColour(basis=as_matrix(HED), lab_mean=(60, 20, -10), lab_std=(10, 5, 4))


# -- what a draw depends on ----------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_epoch_slide_and_tile() -> None:
    """Each of the four changes the draw; nothing else does."""
    base = {"seed": 1, "epoch": 2, "slide": "a.svs", "tile": 3}
    first = draw(rich(), size=SIZE, **base)
    assert draw(rich(), size=SIZE, **base) == first
    for change in ({"seed": 2}, {"epoch": 3}, {"slide": "b.svs"}, {"tile": 4}):
        other = draw(rich(), size=SIZE, **(base | change))
        assert (other.affine, other.operations) != (first.affine, first.operations)


def test_default_arguments_draw_as_seed_0_epoch_0() -> None:
    """For the whole slide: what JSON of earlier versions leaves out."""
    found = Draw(size=Size(*SIZE), canvas=Size(*SIZE))
    assert (found.seed, found.epoch, found.slide, found.tile, found.version) == (0, 0, "", None, 1)
    assert found.is_identity
    assert not found.model_copy(update={"operations": (Tone(brightness=0.5),)}).is_identity
    assert not found.model_copy(update={"canvas": Size(1, 1)}).is_identity


def test_draws_do_not_depend_on_threads() -> None:
    """Four threads in any order draw the same as one."""
    transform = rich()
    one = [draw(transform, slide="a.svs", tile=tile, size=SIZE) for tile in range(64)]
    with ThreadPoolExecutor(4) as pool:
        tiles = list(reversed(range(64)))
        four = list(pool.map(lambda tile: draw(transform, slide="a.svs", tile=tile, size=SIZE), tiles))
    assert four[::-1] == one


@pytest.mark.system
def test_another_process_draws_the_same() -> None:
    """Also with another hash seed; the JSON record is the same."""
    code = (
        f"import json, sys; sys.path[:0] = [{str(SUPPORT)!r}];"
        "from rich_transform import SIZE, rich; from slideio_pipe.augment.compose import draw;"
        "print(json.dumps(draw(rich(), seed=9, slide='é.svs', tile=5, size=SIZE).to_json()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(out.stdout) == draw(rich(), seed=9, slide="é.svs", tile=5, size=SIZE).to_json()


def test_global_generators_are_neither_used_nor_touched() -> None:
    """Seeding ``random`` and numpy changes no draw, and drawing changes neither."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    first = draw(rich(), size=SIZE)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
    random.seed(2)
    assert draw(rich(), size=SIZE) == first


@examples()
@given(st.integers(0, 2**63), st.integers(0, 10**6))
def test_json_round_trip_is_exact(seed: int, tile: int) -> None:
    """A draw is stored with what it produced, and replays to the last bit."""
    drawn = draw(rich(), seed=seed, tile=tile, size=SIZE)
    assert Draw.model_validate(json.loads(json.dumps(drawn.to_json()))) == drawn


def test_numpy_integers_are_accepted() -> None:
    """Indices often come from arrays."""
    assert draw(rich(), seed=np.int64(1), tile=np.int32(2), size=SIZE) == draw(rich(), seed=1, tile=2, size=SIZE)


# -- compositions --------------------------------------------------------------------------------------------------

MARKS = {
    name: ColorJitter(0, 0, 0, (turn, turn), p=p)
    for name, turn, p in (("a", 0.1, 0.5), ("b", 0.2, 0.25), ("c", 0.3, 0.25))
}


def drawn_marks(transform: object, count: int = 600) -> list[str]:
    """Which of the marks each draw has, in order."""
    names = {0.1: "a", 0.2: "b", 0.3: "c"}
    draws = (draw(transform, seed=seed, tile=0, size=SIZE) for seed in range(count))
    return ["".join(names[round(o.turn, 6)] for o in each.operations if isinstance(o, Hsv)) for each in draws]


def share(results: list[str], what: str) -> float:
    """Return the fraction of draws that are exactly this."""
    return results.count(what) / len(results)


def near(expected: float) -> object:
    """Within four standard deviations of 600 draws."""
    return pytest.approx(expected, abs=4 * math.sqrt(max(expected * (1 - expected), 0.01) / 600))


def test_a_single_transform_is_drawn_as_a_compose_of_it() -> None:
    """Its p applies."""
    assert share(drawn_marks(MARKS["a"]), "a") == near(0.5)
    assert share(drawn_marks(A.Compose([MARKS["a"]])), "a") == near(0.5)


def test_probabilities_multiply() -> None:
    """Compose(p=0.5) around p=0.5 and p=0.25."""
    results = drawn_marks(A.Compose([MARKS["a"], MARKS["b"]], p=0.5))
    assert share(results, "ab") == near(0.5 * 0.5 * 0.25)
    assert share(results, "a") == near(0.5 * 0.5 * 0.75)
    assert share(results, "") == near(0.5 + 0.5 * 0.5 * 0.75)


def test_always_apply_wins_over_a_compose_that_is_skipped() -> None:
    """As in albumentationsxl."""
    always = ColorJitter(0, 0, 0, (0.3, 0.3), always_apply=True, p=0.1)
    results = drawn_marks(A.Compose([MARKS["a"], A.OneOf([always], p=0.5)], p=0))
    assert set(results) == {"c"}


def test_one_of_chooses_by_p_and_always_applies_its_choice() -> None:
    """0.5 : 0.25 : 0.25 of 80 %."""
    results = drawn_marks(A.OneOf(list(MARKS.values()), p=0.8))
    assert share(results, "") == near(0.2)
    assert share(results, "a") == near(0.4)
    assert share(results, "b") == near(0.2)


def test_some_of_takes_n_with_and_without_replacement() -> None:
    """Two of three; the same one twice only with replacement."""
    without = drawn_marks(A.SomeOf(list(MARKS.values()), n=2, replace=False))
    assert {len(each) for each in without} == {2}
    assert not any(each[0] == each[1] for each in without)
    assert share(drawn_marks(A.SomeOf(list(MARKS.values()), n=2)), "aa") == near(0.25)


def test_some_of_too_many_names_it() -> None:
    """Three of two cannot be without replacement."""
    with pytest.raises(ConfigError, match="SomeOf"):
        draw(A.SomeOf([Flip(), Rotate90()], n=3, replace=False), size=SIZE)


def test_one_or_other_applies_exactly_one() -> None:
    """With probability p the first, else the last."""
    results = drawn_marks(A.OneOrOther(MARKS["a"], MARKS["b"], p=0.3))
    assert share(results, "a") == near(0.3)
    assert share(results, "b") == near(0.7)


def test_sequential_runs_its_parts_by_their_own_p() -> None:
    """Inside OneOf, where its p is a weight."""
    results = drawn_marks(A.OneOf([A.Sequential([MARKS["a"], MARKS["b"]], p=1)], p=1))
    assert share(results, "ab") == near(0.125)


def test_order_of_operations_is_that_of_the_compose() -> None:
    """Nested or not."""
    first, last = A.RandomGamma(p=1), StainJitter()
    drawn = draw(A.Compose([first, A.Sequential([A.Compose([Flip()]), last])]), size=SIZE)
    assert [type(each) for each in drawn.operations] == [Tone, Stain]


@pytest.mark.parametrize("transform", [None, [Flip()], lambda image: image])
def test_an_object_that_is_no_transform_is_refused(transform: object) -> None:
    """The error names lists and functions, and what to pass."""
    with pytest.raises(ConfigError, match=r"A\.Compose"):
        draw(transform, size=SIZE)


def test_unknown_compositions_are_refused_by_name() -> None:
    """PerChannel is one: albumentationsxl's does not work on pyvips images."""
    from albumentationsxl.core.composition import PerChannel

    with pytest.raises(ConfigError, match="PerChannel"):
        draw(A.Compose([PerChannel([Flip()])]), size=SIZE)


def test_leaves_finds_nested_transforms() -> None:
    """Also the one that needs the slide's colours."""
    assert [type(each).__name__ for each in leaves(A.Compose([Flip(), A.OneOf([Rotate90(), A.Blur()])]))] == [
        "Flip",
        "Rotate90",
        "Blur",
    ]
    assert needs_slide(A.Compose([Flip(), A.OneOf([RandStainNA(), A.Blur()])]))
    assert not needs_slide(rich())


def test_a_transform_gets_the_slides_colours() -> None:
    """As a stain basis or as all measured values."""
    transform = StainJitter(basis="slide")
    expected = draw(StainJitter(basis="hed"), size=SIZE)
    assert draw(transform, size=SIZE, basis=np.array(HED)) == expected
    assert draw(transform, size=SIZE, colour=COLOUR) == expected
    with pytest.raises(ConfigError, match="singular"):
        draw(transform, size=SIZE, basis=np.ones((3, 3)))


# -- geometry ------------------------------------------------------------------------------------------------------


def chain() -> list[tuple[str, A.BasicTransform]]:
    """Transforms without chance."""
    return [
        ("flip", A.HorizontalFlip(p=1)),
        ("turn", RandomAffine(rotate=(30, 30), flip=False)),
        ("stretch", A.Affine(scale={"x": 1.3, "y": 0.8}, translate_px={"x": 5, "y": -7}, p=1)),
        ("crop", A.CenterCrop(200, 260)),
        ("transpose", A.Transpose(p=1)),
        ("resize", A.Resize(120, 310)),
    ]


@examples()
@given(st.permutations(chain()), st.integers(1, 6))
def test_several_geometries_are_applied_in_order(order: list[tuple[str, A.BasicTransform]], count: int) -> None:
    """A chain maps points as its steps do, each drawn on the canvas of the one before."""
    parts = [transform for _, transform in order[:count]]
    points, size = np.array([[0.0, 0.0], [17.5, 3.25], [399.0, 120.0]]), SIZE
    expected = points
    try:
        for part in parts:
            step = draw(part, tile=0, size=size)
            expected, size = Affine.from_tuple(step.affine).apply(expected), step.canvas
    except ConfigError:  # a crop that no longer fits: then the chain does not either
        with pytest.raises(ConfigError, match="CenterCrop"):
            draw(A.Compose(parts), tile=0, size=SIZE)
        return
    whole = draw(A.Compose(parts), tile=0, size=SIZE)
    assert np.allclose(Affine.from_tuple(whole.affine).apply(points), expected, atol=1e-6)
    assert whole.canvas == size


def test_two_geometries_move_pixels_as_numpy_does() -> None:
    """To mirror and then turn differs from to turn and then mirror."""
    pixels = np.arange(300 * 400).reshape(300, 400)
    steps = {"flip": A.HorizontalFlip(p=1), "turn": RandomAffine(rotate=(90, 90), flip=False)}
    by_numpy = {"flip": lambda image: image[:, ::-1], "turn": np.rot90}
    for names in (("flip", "turn"), ("turn", "flip")):
        drawn = draw(A.Compose([steps[name] for name in names]), size=SIZE)
        y, x = np.mgrid[: drawn.canvas.height, : drawn.canvas.width] + 0.5
        column, row = Affine.from_tuple(drawn.affine).inverse().apply(np.stack([x, y], axis=-1)).transpose(2, 0, 1)
        expected = pixels
        for name in names:
            expected = by_numpy[name](expected)
        assert np.array_equal(pixels[row.astype(int), column.astype(int)], expected)


@examples()
@given(st.lists(st.floats(-180, 180), min_size=1, max_size=4), st.integers(0, 1000))
def test_a_slides_canvas_fits_its_content(angles: list[float], seed: int) -> None:
    """After any number of rotations no corner is cut off, and no row or column is empty."""
    parts = [RandomAffine(rotate=(angle, angle), scale=0.2, shear=5) for angle in angles]
    drawn = draw(A.Compose(parts), seed=seed, size=SIZE)
    corners = Affine.from_tuple(drawn.affine).apply([[0, 0], [400, 0], [0, 300], [400, 300]])
    assert np.allclose(corners.min(axis=0), 0, atol=1e-6)
    assert (corners.max(axis=0) <= np.array(drawn.canvas) + 1e-6).all()
    assert (corners.max(axis=0) > np.array(drawn.canvas) - 1).all()


def test_turns_between_rotations_do_not_add_margins() -> None:
    """45°, a quarter turn and 45° back are a quarter turn, on its canvas."""
    parts = [RandomAffine((45, 45), flip=False), A.Transpose(p=1), RandomAffine((45, 45), flip=False)]
    drawn = draw(A.Compose(parts), size=SIZE)
    assert drawn.canvas == (300, 400)
    assert drawn.affine == draw(A.Transpose(p=1), size=SIZE).affine


def test_a_rotation_after_a_crop_does_not_restore_cropped_content() -> None:
    """The canvas grows around the crop, not around the slide."""
    drawn = draw(A.Compose([A.CenterCrop(100, 100), RandomAffine((90, 90), flip=False)]), size=SIZE)
    assert drawn.canvas == (100, 100)
    assert Affine.from_tuple(drawn.affine).apply([150, 100]).tolist() == [0, 100]


def test_tiles_keep_their_size_unless_resized() -> None:
    """A rotated tile is as large as before, a crop is as large as given."""
    assert draw(RandomAffine(), tile=0, size=SIZE).canvas == SIZE
    both = A.Compose([RandomAffine(rotate=25), RandomResizedCrop(224)])
    assert draw(both, tile=0, size=SIZE).canvas == (224, 224)


def test_a_geometry_and_its_inverse_are_exactly_the_identity() -> None:
    """Rounding of the product does not show."""
    there = [RandomAffine((angle, angle), flip=False) for angle in (33, -33)]
    drawn = draw(A.Compose([A.HorizontalFlip(p=1), *there, A.HorizontalFlip(p=1)]), tile=0, size=SIZE)
    assert drawn.is_identity


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    """There is nothing to draw for."""
    with pytest.raises(ConfigError, match="px"):
        draw(Flip(), size=size)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_load_and_draw(path: Path) -> None:
    """Ours and the published ones; every one changes colours, and none moves a pixel."""
    transform = load_transform(path)
    drawn = draw(transform, seed=1, slide="a.svs", size=SIZE, colour=COLOUR)
    assert drawn.lowered
    assert drawn.operations
    assert not drawn.moves


def test_presets_are_all_found() -> None:
    """The pattern of the tests above matches files."""
    assert len(PRESETS) == 5


def test_a_saved_transform_is_loaded(tmp_path: Path) -> None:
    """What A.save writes, in YAML and in JSON."""
    for kind in ("yaml", "json"):
        A.save(rich(), str(tmp_path / kind), kind)
        # In JSON, where a pair and a list are the same.
        assert json.dumps(A.to_dict(load_transform(tmp_path / kind))) == json.dumps(A.to_dict(rich()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transform: {__class_fullname__: slideio_pipe.StainJitter, alhpa: 0.2}", '.*StainJitter: unknown .*"alpha"'),
        ("transform: {__class_fullname__: HEDShift, shift: 0.2}", 'HEDShift: unknown key "shift"'),
        ("transform: {__class_fullname__: slideio_pipe.Flipp}", 'no transform "slideio_pipe.Flipp".*_pipe.Flip"'),
        ("transform: {__class_fullname__: Lambda, name: x}", 'no transform "Lambda"'),
        ("transform: {__class_fullname__: slideio_pipe.StainJitter, alpha: 0}", "StainJitter: alpha=0"),
        ("transform: {__class_fullname__: Compose, transforms: 3}", "Compose: transforms is no list"),
        ("transform: {__class_fullname__: Compose}", "Compose: .*transforms"),
        ("transform: {__class_fullname__: Compose, transforms: [{alpha: 2}]}", "no .__class_fullname__"),
        ("transform: {__class_fullname__: Blur, blur_limit: [1, 2, 3]}", "Blur: "),
        ("{transform: {__class_fullname__: NoOp}, seed: 3}", 'unknown key "seed"'),
        ("alpha: 3", 'has no "transform"'),
        ("- 3", 'has no "transform"'),
        ("a: [", "is no YAML"),
    ],
)
def test_errors_of_files_name_file_transform_and_remedy(text: str, message: str, tmp_path: Path) -> None:
    """For unknown keys, transforms and values."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {message}"):
        load_transform(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error comes before anything is loaded."""
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_transform(tmp_path / "none.yaml")


def test_a_refused_transform_of_small_probability_fails_at_the_first_draw() -> None:
    """It does not wait until it is chosen."""
    rare = A.Compose([A.HorizontalFlip(), A.AdvancedBlur(p=0.001)])
    for seed in range(20):
        with pytest.raises(ConfigError, match="AdvancedBlur"):
            draw(rare, seed=seed, size=(10, 10))


def test_a_summary_shows_the_rotation_angle_scale_and_mirroring() -> None:
    """30° counter-clockwise is shown as 30°, a resize as a scale, a flip as mirrored."""
    assert draw(RandomAffine(rotate=(30, 30)), size=(100, 80)).summary() == "turned 30°"
    assert draw(A.Resize(40, 50, p=1), tile=0, size=(100, 80)).summary() == "scaled 0.50×"
    assert "mirrored" in draw(A.HorizontalFlip(p=1), size=(100, 80)).summary()


@pytest.mark.parametrize(
    ("transform", "instead"),
    [
        (StainJitter(basis="slide"), 'StainJitter(basis="hed")'),
        (StainNormalize(), 'StainNormalize(basis="hed")'),
        (A.Compose([Flip(), A.OneOf([RandStainNA(), A.Blur()])]), 'RandStainNA(source="cohort")'),
    ],
)
@pytest.mark.parametrize("level", [255, 244, 0])
def test_the_error_of_a_slide_without_tissue_names_the_transform(transform: object, instead: str, level: int) -> None:
    """And its argument, for a view and for tiles; the slide is glass or black."""
    slide = open_slide(np.full((400, 500, 3), level, np.uint8), slide_mpp=0.5)
    message = re.escape(f"array: {instead.split('(')[0]}: the slide's own colours: glass only")
    with pytest.raises(NoTissueError, match=message) as caught:
        slide.view(transform=transform)
    assert f"pass {instead}, or leave the slide out" in str(caught.value)
    view = slide.view()
    with pytest.raises(NoTissueError, match=message):
        TileBag(view, TileGrid(view, 100), tile_transform=transform)


def test_a_slide_is_not_measured_for_transforms_that_do_not_need_it() -> None:
    """A slide of glass only works with them."""
    slide = open_slide(np.full((400, 500, 3), 244, np.uint8))
    assert measured(slide, A.Compose([StainJitter(), RandStainNA(source="cohort")])) is None
