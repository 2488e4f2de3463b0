"""Draws of many tiles at once are those of each tile alone, bit for bit, and those of earlier versions."""

from __future__ import annotations

from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from drawn_transforms import BASIS, KEY, TILES, TRANSFORMS, draws, stored
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples

import slideio_pipe as sp
from slideio_pipe.augment import draw_tiles as module
from slideio_pipe.augment.affines import mirrored
from slideio_pipe.augment.compose import draw
from slideio_pipe.augment.draw import Draw
from slideio_pipe.augment.draw_tiles import draw_tiles, in_arrays
from slideio_pipe.augment.draws import Draws
from slideio_pipe.augment.geometric_transforms import RandomAffine
from slideio_pipe.augment.operation_columns import LAB, NOISE, OPAQUE, STAIN, TONE
from slideio_pipe.augment.operations import Stain
from slideio_pipe.augment.slide_colour import SlideColour
from slideio_pipe.augment.steps import Steps
from slideio_pipe.augment.transform_base import Context
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size

MANY = 60
SIZES = ((97, 61), (224, 224), (60, 1023))
ARRAYS = ("tiles", "canvases", "affines", "kinds", "numbers", "moves", "lowered")
# Transforms that these sizes are too small for have an error of their own (below).
FITTING = {name: transform for name, transform in TRANSFORMS.items() if name != "geometry in a row"}


@pytest.fixture(autouse=True)
def _arrays_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tiles are drawn in arrays as well, which would be slower, not different."""
    monkeypatch.setattr(module, "_FEWEST", 1)


def check_equal(many: Draws, one_by_one: list[Draw]) -> None:
    """Records, their JSON and their arrays are equal, bit for bit."""
    assert list(many) == one_by_one
    assert [each.to_json() for each in many] == [each.to_json() for each in one_by_one]
    # JSON has a sign of zero, == does not.
    assert [each.model_dump_json() for each in many] == [each.model_dump_json() for each in one_by_one]
    expected = Draws.of(one_by_one)
    for draws_of in (many, expected):
        assert [draws_of.operations(row) for row in range(len(many))] == [each.operations for each in one_by_one]
    for name in ARRAYS:
        found, wanted = getattr(many, name), getattr(expected, name)
        assert found.dtype == wanted.dtype, name
        assert np.array_equal(found, wanted), name
    assert many.moves.tolist() == [each.moves for each in one_by_one]
    assert many.lowered.tolist() == [each.lowered for each in one_by_one]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_stored_draws_are_drawn_again(name: str) -> None:
    """Alone and together: what version 0.1.0 drew."""
    assert [draw(TRANSFORMS[name], tile=tile, **KEY).to_json() for tile in TILES] == stored()[name]
    assert [each.to_json() for each in draw_tiles(TRANSFORMS[name], tiles=TILES, **KEY)] == stored()[name]


def test_every_transform_has_stored_draws() -> None:
    """A new one needs its own."""
    assert stored().keys() == TRANSFORMS.keys() == draws().keys()


@pytest.mark.combinations
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FITTING)
def test_many_tiles_are_drawn_as_one(name: str, size: tuple[int, int]) -> None:
    """Every transform and composition, in three epochs and sizes."""
    for epoch in range(3):
        key: dict[str, Any] = {"seed": 11, "epoch": epoch, "slide": "é.svs", "size": size}
        one_by_one = [draw(TRANSFORMS[name], tile=tile, **key) for tile in range(MANY)]
        check_equal(draw_tiles(TRANSFORMS[name], tiles=range(MANY), **key), one_by_one)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_is_drawn_in_arrays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but transforms that run lazily only: none falls back to drawing one by one unseen."""
    monkeypatch.setattr(module, "draw_one", None)
    transform = TRANSFORMS[name]
    assert in_arrays(transform) == (name != "Blur")
    if in_arrays(transform):
        assert len(draw_tiles(transform, tiles=range(MANY), seed=3, size=(97, 61))) == MANY


PARTS = st.sampled_from([transform for name, transform in FITTING.items() if "Crop" not in name])


def composed(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Compositions of parts."""
    several = st.lists(parts, min_size=1, max_size=3)
    chances = st.sampled_from([0.05, 0.3, 1.0])
    return st.one_of(
        st.builds(A.Compose, several, p=chances),
        st.builds(A.Sequential, several),
        st.builds(A.OneOf, several, p=chances),
        st.builds(
            lambda some, replace, p: A.SomeOf(some, min(2, len(some)), replace, p), several, st.booleans(), chances
        ),
        st.builds(A.OneOrOther, parts, parts, p=chances),
    )


@examples(200)
@given(
    st.recursive(PARTS, composed, max_leaves=6),
    st.integers(0, 2**64),
    st.integers(0, 2**60),
    st.integers(1, 2000),
    st.integers(1, 2000),
)
def test_any_composition_is_drawn_as_one(transform: Any, seed: int, first: int, width: int, height: int) -> None:
    """Nested, with parts that are rarely drawn."""
    key: dict[str, Any] = {"seed": seed, "epoch": 1, "slide": "s", "size": (width, height)}
    tiles = [first + 7 * k for k in range(9)]
    with np.errstate(all="ignore"):
        many = draw_tiles(transform, tiles=tiles, **key)
    check_equal(many, [draw(transform, tile=tile, **key) for tile in tiles])


# -- what transforms get -------------------------------------------------------------------------------------------

COLOUR = SlideColour(basis=BASIS, strength=(1.5, 0.9, 1.0), lab_mean=(60, 20, -10), lab_std=(10, 5, 4))


@pytest.mark.parametrize("transform", [sp.StainJitter("slide", beta=0.1), sp.StainNormalize(), sp.RandStainNA()])
def test_the_colours_of_the_slide_are_used(transform: Any) -> None:
    """As for one tile; without them the error is the same."""
    key: dict[str, Any] = {"slide": "a", "size": (60, 50)}
    many = draw_tiles(transform, tiles=range(MANY), colour=COLOUR, **key)
    check_equal(many, [draw(transform, tile=tile, colour=COLOUR, **key) for tile in range(MANY)])
    with pytest.raises(ConfigError) as one:
        draw(transform, tile=0, **key)
    with pytest.raises(ConfigError) as all_tiles:
        draw_tiles(transform, tiles=range(MANY), **key)
    assert str(one.value) == str(all_tiles.value)


class Nudged(RandomAffine):
    """A user's class, which draws numbers of one tile."""

    def draw_steps(self, rng: np.random.Generator, size: Size, context: Context) -> Steps:
        """Mirror if the number is small: a plain ``if``."""
        if rng.normal() < 0:
            return mirrored(size, horizontal=True, vertical=False)
        return super().draw_steps(rng, size, context)


class Darker(A.ImageOnlyTransform):
    """A user's class that runs lazily only."""

    def apply(self, img: Any, **params: Any) -> Any:
        """Half."""
        return img // 2

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """None."""
        return ()


@pytest.mark.parametrize("part", [Nudged(), Darker(p=0.5), A.Blur(p=0.5)], ids=["moves", "colours", "opaque"])
def test_classes_of_users_and_opaque_ones_are_drawn_one_by_one(part: Any) -> None:
    """Among others, and inside a composition."""
    transform = A.Compose([A.HorizontalFlip(), A.OneOf([part, sp.ColorJitter()], p=0.9)])
    assert not in_arrays(transform)
    many = draw_tiles(transform, tiles=range(MANY), seed=2, size=(60, 50))
    check_equal(many, [draw(transform, tile=tile, seed=2, size=(60, 50)) for tile in range(MANY)])


@pytest.mark.parametrize(
    "transform",
    [
        A.RandomCrop(90, 90, p=0.2),
        A.RandomGamma((-10, 100), p=0.2),
        A.SomeOf([A.HorizontalFlip(), A.VerticalFlip()], n=3, replace=False),
        sp.StainNormalize(p=0.1),
        A.Rotate(crop_border=True, p=0.2),
        A.HueSaturationValue((20, -20), p=0.5),
        A.Affine(scale=(1e308, 1e308), p=0.2),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_errors_are_those_of_the_first_tile_that_is_wrong(transform: Any) -> None:
    """Also where only some tiles draw the transform, or only some numbers are wrong."""

    def first_error() -> str | None:
        try:
            for tile in range(MANY):
                draw(transform, tile=tile, size=(60, 50))
        except (ArithmeticError, ValueError) as error:
            return str(error)
        return None

    expected = first_error()
    assert expected is not None
    with pytest.raises((ArithmeticError, ValueError)) as found:
        draw_tiles(transform, tiles=range(MANY), size=(60, 50))
    assert str(found.value) == expected


@pytest.mark.parametrize("transform", [A.AdvancedBlur(), "flip"], ids=str)
def test_what_draw_refuses_is_refused(transform: Any) -> None:
    """Also for no tile at all."""
    for tiles in ([], [0], range(MANY)):
        with pytest.raises(ConfigError):
            draw_tiles(transform, tiles=tiles, size=(60, 50))


@pytest.mark.parametrize("name", ["classic", "Blur"])
def test_no_tiles_have_no_draws(name: str) -> None:
    """In arrays or not."""
    found = draw_tiles(TRANSFORMS[name], tiles=[], size=(60, 50))
    assert (len(found), found.affines.shape, found.canvases.shape, list(found)) == (0, (0, 6), (0, 2), [])


def test_few_tiles_are_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As arrays of few would be slower; the arrays are the same."""
    together = draw_tiles(TRANSFORMS["classic"], tiles=range(3), size=(60, 50))
    monkeypatch.setattr(module, "_FEWEST", 4)
    check_equal(draw_tiles(TRANSFORMS["classic"], tiles=range(3), size=(60, 50)), list(together))


# -- the record ----------------------------------------------------------------------------------------------------


def test_arrays_hold_the_numbers_of_operations() -> None:
    """Kinds from the left, and fields in the order of their records."""
    transform = A.Compose(
        [sp.StainJitter(beta=0.1), sp.GaussianNoise(p=0.5), A.RandomGamma(p=1), sp.RandStainNA(source="cohort")]
    )
    found = draw_tiles(transform, tiles=range(MANY), size=(60, 50))
    for draws_of, kinds, numbers in zip(found, found.kinds.tolist(), found.numbers, strict=True):
        stain = draws_of.operations[0]
        assert isinstance(stain, Stain)
        assert numbers[0].tolist() == [*sum(stain.matrix, ()), *stain.offset]
        assert kinds in ([STAIN, NOISE, TONE, LAB], [STAIN, TONE, LAB, 0])
        assert numbers[kinds.index(TONE)].tolist() == [
            1,
            1,
            0.5,
            draws_of.operations[kinds.index(TONE)].gamma,
            *[0] * 8,
        ]
        assert kinds[-1] or not numbers[-1].any()


def test_opaque_operations_are_records_beside_the_arrays() -> None:
    """A record of draws keeps what arrays cannot hold."""
    records = [draw(A.Blur(p=1), tile=tile, size=(60, 50)) for tile in range(3)]
    found = Draws.of(records)
    assert found.kinds.tolist() == [[OPAQUE]] * 3
    assert not found.lowered.any()
    assert [found[k] for k in range(3)] == records


def test_draws_are_a_sequence() -> None:
    """Items, slices, negative positions, and parts by position."""
    found = draw_tiles(TRANSFORMS["classic"], tiles=range(10, 30), size=(60, 50))
    assert [each.tile for each in found] == list(range(10, 30))
    assert found[-1] == found[19] == found[np.int64(19)]
    assert [each.tile for each in found[4:8:2]] == [14, 16]
    assert [each.tile for each in found.only([3, 1])] == [13, 11]
    assert Draws.of(found) is found
    with pytest.raises(IndexError):
        found[20]
