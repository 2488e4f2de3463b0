"""Draws from explicit values: the records that transforms with ranges of one value draw, their pixels, their texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import albumentationsxl as A
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import examples
from paths import ROOT
from rich_transform import SIZE, rich

import slideio_pipe as sp
from slideio_pipe.augment.draw_tiles import draw_tiles, in_arrays
from slideio_pipe.augment.operations import Hsv, Saturation, Stain, Tone
from slideio_pipe.augment.stain_matrices import HED, as_matrix, optical_density
from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import Size

ONE = (1.0, 1.0)
SAME = {
    "stain": (sp.StainJitter(alpha=(1.3, 1.3)), {"haematoxylin": 1.3, "eosin": 1.3, "residual": 1.3}),
    "macenko": (
        sp.StainJitter(basis="macenko", alpha=(0.7, 0.7)),
        {"haematoxylin": 0.7, "eosin": 0.7, "residual": 0.7, "basis": "macenko"},
    ),
    "brightness": (sp.ColorJitter((1.2, 1.2), ONE, ONE, 0), {"brightness": 1.2}),
    "contrast": (sp.ColorJitter(ONE, (0.6, 0.6), ONE, 0), {"contrast": 0.6}),
    "pivot": (sp.ColorJitter(ONE, (0.6, 0.6), ONE, 0, pivot=0.8), {"contrast": 0.6, "pivot": 0.8}),
    "saturation": (sp.ColorJitter(ONE, ONE, (1.7, 1.7), 0), {"saturation": 1.7}),
    "hue": (sp.ColorJitter(ONE, ONE, ONE, (-0.2, -0.2)), {"hue": -0.2}),
    "turn": (sp.RandomAffine(rotate=(33, 33), flip=False), {"turn": 33}),
    "quarter turn": (sp.RandomAffine(rotate=(90, 90), flip=False), {"turn": 90}),
    "scale": (sp.RandomAffine(rotate=0, scale=(1.4, 1.4), flip=False), {"scale": 1.4}),
    "turn and scale": (sp.RandomAffine(rotate=(-70, -70), scale=(0.8, 0.8), flip=False), {"turn": -70, "scale": 0.8}),
    "all in order": (
        A.Compose(
            [
                sp.StainJitter(alpha=(1.2, 1.2)),
                sp.ColorJitter((1.1, 1.1), ONE, ONE, 0),
                sp.ColorJitter(ONE, ONE, (0.9, 0.9), 0),
                sp.ColorJitter(ONE, ONE, ONE, (0.05, 0.05)),
                sp.RandomAffine(rotate=(12, 12), flip=False),
            ]
        ),
        {
            "haematoxylin": 1.2,
            "eosin": 1.2,
            "residual": 1.2,
            "brightness": 1.1,
            "saturation": 0.9,
            "hue": 0.05,
            "turn": 12,
        },
    ),
}


@pytest.mark.parametrize("tile", [None, 3], ids=["slide", "tile"])
@pytest.mark.parametrize("name", SAME)
def test_it_is_the_record_that_a_transform_with_one_value_draws(name: str, tile: int | None) -> None:
    """Bit for bit, with the canvas of a slide that grows and the canvas of a tile that stays."""
    transform, values = SAME[name]
    for size in ((40, 30), (97, 61), (1023, 60)):
        drawn = sp.draw(transform, slide="a", tile=tile, size=size)
        assert sp.build_draw(size, slide="a", tile=tile, **values) == drawn


def test_a_mirrored_draw_is_that_of_random_affine() -> None:
    """RandomAffine mirrors in half of the draws: a seed with which it does."""
    transform = sp.RandomAffine(rotate=(20, 20), flip=True)
    draws = [sp.draw(transform, seed=seed, size=SIZE) for seed in range(8)]
    mirrored = [each for each in draws if each.affine[0] * each.affine[4] - each.affine[1] * each.affine[3] < 0]
    assert 0 < len(mirrored) < 8
    assert sp.build_draw(SIZE, mirror=True, turn=20) == mirrored[0].model_copy(update={"seed": 0})


def test_each_stain_has_its_own_factor() -> None:
    """Concentrations in float64, from the definition: od = c · basis."""
    (stain,) = sp.build_draw((4, 4), haematoxylin=1.5, eosin=0.5, residual=2.0).operations
    assert isinstance(stain, Stain)
    pixel = np.array([0.4, 0.3, 0.2])  # concentrations
    found = np.array(stain.matrix) @ (pixel @ np.array(HED))
    assert found == pytest.approx((pixel * (1.5, 0.5, 2.0)) @ np.array(HED), abs=1e-12)
    assert optical_density(255) == 0  # glass has none of any stain: it stays white


def test_colours_are_in_the_stated_order() -> None:
    """Stains, tone, saturation, hue; what changes nothing is left out."""
    whole = sp.build_draw((4, 4), eosin=0.5, gamma=1.1, saturation=0.5, hue=0.1)
    assert [type(each) for each in whole.operations] == [Stain, Tone, Saturation, Hsv]
    assert whole.operations[1] == Tone(gamma=1.1)
    assert sp.build_draw((4, 4)).is_identity


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"haematoxylin": 0}, "haematoxylin=0: should be more than 0"),
        ({"eosin": -1}, "eosin=-1: should be more than 0"),
        ({"hue": 0.6}, "hue=0.6: should be at most 0.5"),
        ({"scale": 0}, "scale=0: should be at least 0.001"),
        ({"turn": float("nan")}, "turn=nan: should be"),
        ({"gamma": "much"}, "gamma='much': should be a number"),
        ({"mirror": "both"}, "mirror='both': should be true or false"),
        ({"basis": "slide"}, "pass basis=slide.colour.basis"),
        ({"basis": "pas"}, 'no stain basis "pas"'),
    ],
)
def test_a_value_out_of_bounds_is_named(values: dict[str, object], said: str) -> None:
    """With what to pass instead."""
    with pytest.raises(ConfigError) as caught:
        sp.build_draw((40, 30), **values)
    assert said in str(caught.value)


def test_an_image_without_pixels_is_refused() -> None:
    """As by ``draw``."""
    with pytest.raises(ConfigError, match=r"an image of 0x3 px; pass size=\(width, height\)"):
        sp.build_draw((0, 3))


@pytest.mark.system
def test_building_a_draw_does_not_import_albumentationsxl() -> None:
    """Its import takes seconds."""
    code = "import sys, slideio_pipe as sp; sp.build_draw((4, 3), turn=9); print('albumentationsxl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- on a view -----------------------------------------------------------------------------------------------------

y, x = np.mgrid[:300, :420]
PIXELS = np.stack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), (x + y) / 7], axis=-1).astype(np.uint8)


def slide() -> sp.Slide:
    return sp.open_slide(PIXELS, slide_mpp=0.25)


def test_a_view_a_reader_and_a_bag_make_the_pixels_of_the_transform() -> None:
    """Bit for bit: lazily, tile by tile, and in the transform's own view."""
    transform, values = SAME["all in order"]
    wanted = slide().view(mpp=0.5, transform=transform)
    for view in (slide().view(mpp=0.5).adjusted(**values), slide().view(mpp=0.5, draw=wanted.draw)):
        assert view.draw == wanted.draw
        assert np.array_equal(view.image.numpy(), wanted.image.numpy())
        grids = [sp.TileGrid(each, tile_size=32) for each in (view, wanted)]
        bags = [sp.TileBag(each, grid) for each, grid in zip((view, wanted), grids, strict=True)]
        assert len(bags[0]) > 9
        assert np.array_equal(bags[0][:], bags[1][:])


def test_a_slides_own_stains_are_measured() -> None:
    """The same matrix as StainJitter draws with them."""
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal((170, 90, 160), (30, 30, 20), (600, 800, 3)), 0, 255).astype(np.uint8)
    tissue[:, 500:] = 255
    own = sp.open_slide(tissue, slide_mpp=0.5)
    drawn = own.view(transform=sp.StainJitter(basis="slide", alpha=(1.2, 1.2)))
    assert own.view().adjusted(haematoxylin=1.2, eosin=1.2, residual=1.2, basis="slide").draw == drawn.draw


def test_a_view_with_a_draw_is_not_adjusted() -> None:
    """Its draw would be lost."""
    with pytest.raises(ConfigError, match="the view has a draw already"):
        slide().view(mpp=0.5).adjusted(turn=3).adjusted(turn=4)


# -- texts ---------------------------------------------------------------------------------------------------------


@examples()
@given(st.integers(0, 10**6), st.booleans())
def test_json_yaml_and_python_are_exact(seed: int, whole: bool) -> None:
    """Each text gives the draw to the last bit; YAML as the transform of a configuration."""
    drawn = sp.draw(rich(), seed=seed, tile=None if whole else 5, size=SIZE)
    assert sp.Draw.from_json(drawn.to_json()) == drawn
    assert sp.Draw.from_json(json.dumps(drawn.to_json())) == drawn
    assert eval(drawn.to_python(), {"sp": sp}) == drawn  # the text is meant to be run
    assert "\n" not in drawn.to_python()
    written = yaml.safe_load(drawn.to_yaml())["transform"]["draw"]
    assert sp.Draw.from_json(written) == drawn


def test_the_yaml_is_a_configuration_that_draws_the_same(tmp_path: Path) -> None:
    """Of a slide, and of a tile; albumentationsxl reads and writes it as well."""
    for tile in (None, 7):
        drawn = sp.draw(rich(), seed=3, tile=tile, size=SIZE)
        (tmp_path / "seen.yaml").write_text(drawn.to_yaml(), encoding="utf-8")
        loaded = sp.load_transform(tmp_path / "seen.yaml")
        assert sp.draw(loaded, seed=3, tile=tile, size=SIZE) == drawn
        A.save(loaded, str(tmp_path / "again.yaml"), data_format="yaml")
        assert sp.draw(sp.load_transform(tmp_path / "again.yaml"), seed=3, tile=tile, size=SIZE) == drawn


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "a draw that is no JSON"),
        ([1], "a draw of type list"),
        ({"size": [4, 3]}, '"canvas" is missing'),
        ({"size": [4, 3], "canvas": [4, 3], "afine": []}, 'unknown key "afine", did you mean "affine"'),
    ],
)
def test_text_that_is_no_draw_is_refused(value: object, said: str) -> None:
    """It says what is wrong."""
    with pytest.raises(ConfigError) as caught:
        sp.Draw.from_json(value)
    assert said in str(caught.value)
    assert "pass what Draw.to_json returned" in str(caught.value)


# -- Replay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"turn": 20, "eosin": 0.8}, {"mirror": True, "scale": 0.7}, {"hue": 0.1}])
@pytest.mark.parametrize("tile", [None, 3], ids=["slide", "tile"])
def test_a_replay_on_another_size_is_the_draw_built_for_it(values: dict[str, object], tile: int | None) -> None:
    """The same values, about that image's middle."""
    transform = sp.Replay(sp.build_draw((40, 30), tile=tile, **values))
    for size in ((40, 30), (97, 61)):
        assert sp.draw(transform, tile=tile, size=size) == sp.build_draw(size, tile=tile, **values)


def test_many_tiles_are_replayed_as_each_alone() -> None:
    """In arrays, with tiles whose sides an earlier step has swapped."""
    transform = A.Compose([sp.Rotate90(), sp.Replay(sp.build_draw((40, 30), tile=0, turn=20, eosin=0.8))])
    assert in_arrays(transform)
    for number, drawn in enumerate(draw_tiles(transform, tiles=range(40), size=(40, 30))):
        assert drawn == sp.draw(transform, tile=number, size=(40, 30))


def test_a_crop_is_replayed_on_its_own_size_only() -> None:
    """Elsewhere it has no meaning."""
    drawn = sp.draw(sp.RandomResizedCrop(16), tile=1, size=(40, 30))
    assert sp.draw(sp.Replay(drawn), tile=1, size=Size(40, 30)) == drawn
    with pytest.raises(ConfigError, match="a draw that crops or shifts an image of 40×30 px, on another size"):
        sp.draw(sp.Replay(drawn), tile=1, size=(50, 30))


def test_a_draw_that_runs_lazily_only_is_replayed_one_by_one() -> None:
    """Its transform is part of the record; arrays of tiles have no place for it."""
    drawn = sp.draw(A.Blur(p=1), tile=1, size=(40, 30))
    assert not drawn.lowered
    again = sp.Replay(drawn)
    assert sp.draw(again, tile=1, size=(40, 30)) == drawn
    assert not in_arrays(again)
    assert [each.operations for each in draw_tiles(again, tiles=range(20), size=(40, 30))] == [drawn.operations] * 20
    (step,) = sp.explain(again).steps
    assert step.runs == "lazy libvips graph only"


def test_replay_is_explained() -> None:
    """As one step that moves pixels and changes colours."""
    (step,) = sp.explain(sp.Replay(sp.build_draw((40, 30), turn=20, eosin=0.8))).steps
    assert step.name == "Replay"
    assert step.runs == "pyramid: one affine, then pixels"
    (colours,) = sp.explain(sp.Replay(sp.build_draw((40, 30), eosin=0.8))).steps
    assert colours.runs == "pixels: decoded tiles, device or lazy graph"
    assert colours.ms_per_tile < step.ms_per_tile


def test_a_matrix_of_stains_is_taken() -> None:
    """As by StainJitter."""
    basis = as_matrix(np.array(HED)[[1, 0, 2]])
    drawn = sp.draw(sp.StainJitter(basis=basis, alpha=(1.1, 1.1)), size=(4, 4))
    assert sp.build_draw((4, 4), haematoxylin=1.1, eosin=1.1, residual=1.1, basis=basis) == drawn
