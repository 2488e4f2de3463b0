"""Pen, folds, bubbles and white are found where they were drawn, and hardly elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_artefacts import folded, with_bubble, with_pen
from made_slides import made_slide
from PIL import Image

import slideio_pipe as sp
from slideio_pipe.tiles.quality.masks import MASKS, quality_masks

pytestmark = pytest.mark.system  # the generated slide takes two seconds


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Generated H&E at 8 µm per pixel, with lesions of dense nuclei, fat and glands."""
    path = tmp_path_factory.mktemp("slides") / "large.svs"
    made_slide(path, size=(360, 280), mpp=8.0, seed=6, lesions=2, levels=(1,))
    return np.asarray(sp.open_slide(path).region(0, 0, size=(360, 280)))


def hit(found: np.ndarray, drawn: np.ndarray) -> float:
    """Return the fraction of what was drawn that was found."""
    return np.count_nonzero(found & drawn) / np.count_nonzero(drawn)


def test_clean_tissue_has_no_artefact(tissue: np.ndarray) -> None:
    """Dense nuclei are no fold, glands no bubble, haematoxylin no pen."""
    masks = quality_masks(tissue, 8.0)
    assert set(masks) == set(MASKS)
    assert {name: float(masks[name].mean()) for name in ("pen", "bubble")} == {"pen": 0.0, "bubble": 0.0}
    assert masks["fold"].mean() < 1e-3


def test_glass_is_white_and_tissue_is_not(tissue: np.ndarray) -> None:
    """The independent rule: all channels within 8 levels of the glass, which is 243 of 255."""
    white = quality_masks(tissue, 8.0)["white"]
    even = (np.abs(tissue.astype(int) - 243) <= 4).all(axis=-1)
    pink = tissue[..., 1].astype(int) < 200
    assert hit(white, even) > 0.99
    assert hit(white, pink) < 0.01


def test_a_second_layer_of_tissue_is_a_fold(tissue: np.ndarray) -> None:
    where = np.zeros(tissue.shape[:2], bool)
    where[60:140, 50:62] = True  # 100 µm wide
    # Where both layers are stroma: a fold of fat or of a gland is as pale as one layer.
    thick = folded(tissue, where)
    dense = where & (tissue[..., 1] < 200) & (thick[..., 1] < 0.75 * tissue[..., 1])
    found = quality_masks(thick, 8.0)["fold"]
    assert np.count_nonzero(dense) > 300
    assert hit(found, dense) > 0.7
    assert np.count_nonzero(found & ~where) < 0.4 * np.count_nonzero(where)


@pytest.mark.parametrize("centre", [(118, 90), (180, 120), (270, 140)])
def test_a_bubble_is_its_rim_and_what_it_encloses(tissue: np.ndarray, centre: tuple[int, int]) -> None:
    drawn, inside = with_bubble(tissue, centre, radius=30, rim=1.6)
    found = quality_masks(drawn, 8.0)["bubble"]
    assert hit(found, inside) > 0.9
    assert np.count_nonzero(found & ~inside) < 0.25 * np.count_nonzero(inside)


def test_ink_is_pen_and_neither_fold_nor_white(tissue: np.ndarray) -> None:
    drawn, ink = with_pen(tissue, [(20, 60), (120, 80), (300, 40)], 12)
    masks = quality_masks(drawn, 8.0)
    assert hit(masks["pen"], ink) > 0.99
    assert not (masks["fold"] & ink).any()
    assert not (masks["white"] & ink).any()


def test_fluorescence_has_none() -> None:
    """The rules are for brightfield."""
    dark = np.zeros((80, 80, 3), np.uint8)
    dark[20:60, 20:60, 2] = 90
    assert not any(mask.any() for mask in quality_masks(dark, 8.0).values())


def test_real_tissue(shared_data: Path) -> None:
    """Red ink over tissue and fat is pen; the rolled edges of a real resection are folds, its inside is not."""
    inked = np.asarray(Image.open(shared_data / "images/tcga-red-pen.png").convert("RGB"))
    red, green, blue = inked.astype(int).transpose(2, 0, 1)
    masks = quality_masks(inked, 16.0)
    assert hit(masks["pen"], (red > 150) & (green < 60) & (blue < 60)) > 0.99
    slide = sp.open_slide(shared_data / "slides/TCGA-CR-7395-01A-01-TS1.svs", slide_mpp=2.0)
    rgb, affine = slide.overview(8.0)
    fold = quality_masks(rgb, affine.scale()[0] * 2.0)["fold"]
    assert 0.003 < fold.mean() < 0.03
    assert rgb[fold].mean() < 0.75 * rgb[rgb[..., 1] < 190].mean()
