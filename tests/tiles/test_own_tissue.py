"""Tissue methods of a user or a package: their mask is cleaned as ours, and its origin is in the provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_modules import imports_from, write_distribution
from skimage.morphology import remove_small_holes, remove_small_objects

from slideio_pipe import export_cohort, find_tissue, open_bag, open_slide
from slideio_pipe.errors import ConfigError, PartNameWarning
from slideio_pipe.export.cohort import ExportWork
from slideio_pipe.export.config import export_config
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.own_tissue import own_method

MODULE = """
def darker(rgb, mpp):
    return rgb.mean(axis=2) < {limit}
"""


def specked_slide() -> tuple[Slide, np.ndarray[Any, Any]]:
    """A slide of 2 µm with tissue, one hole of each size, specks; and its overview at 4 µm, exactly half its size."""
    rng = np.random.default_rng(5)
    pixels = np.full((400, 500, 3), 243, np.uint8)
    pixels[60:300, 60:400] = 150, 80, 140
    pixels[100:104, 100:104] = 243  # 64 µm²
    pixels[150:200, 150:220] = 243
    for y, x in rng.integers(310, 390, (5, 2)):
        pixels[y : y + 2, x : x + 2] = 100
    return open_slide(np.repeat(np.repeat(pixels, 2, 0), 2, 1), slide_mpp=2.0), pixels


def grey(rgb: Any, mpp: float) -> Any:
    """The protocol's usual form."""
    assert rgb.dtype == np.uint8
    assert mpp == pytest.approx(4.0)
    return rgb.mean(axis=2) < 200


def test_its_mask_is_cleaned_as_ours() -> None:
    """Holes are filled, then specks removed, up to the given areas; scikit-image does the same to the same mask."""
    slide, overview = specked_slide()
    tissue = find_tissue(slide, method=grey, mpp=4.0, min_area_um2=16 * 30.0, max_hole_um2=16 * 100.0)
    plain = overview.mean(axis=2) < 200
    expected = remove_small_objects(
        remove_small_holes(plain, max_size=100, connectivity=1), max_size=29, connectivity=2
    )
    assert not expected[310:].any()
    assert plain[310:].any()
    assert not plain[101, 101]
    np.testing.assert_array_equal(tissue.mask, expected)
    assert tissue.method == "grey"


def test_a_function_of_the_overview_alone() -> None:
    """Whose second parameter is another setting; whole numbers that are not 0 count as tissue."""
    slide, _ = specked_slide()
    tissue = find_tissue(slide, method=lambda rgb, limit=200: (rgb.mean(axis=2) < limit).astype(np.uint8), mpp=4.0)
    assert tissue.mask.sum() == find_tissue(slide, method=grey, mpp=4.0).mask.sum() > 0


def test_it_gets_a_copy() -> None:
    """A function that writes into its argument changes nothing else."""
    slide, _ = specked_slide()

    def writing(rgb: Any) -> Any:
        found = rgb.mean(axis=2) < 200
        rgb[:] = 0
        return found

    first = find_tissue(slide, method=writing, mpp=4.0)
    np.testing.assert_array_equal(first.mask, find_tissue(slide, method=writing, mpp=4.0).mask)


def test_by_import_path_in_settings(tmp_path: Path) -> None:
    """The module is beside the YAML; a bag's provenance has path and digest, which are part of the settings."""
    (tmp_path / "tissue_of_mine.py").write_text(MODULE.format(limit=200))
    (tmp_path / "mine.yaml").write_text("tissue: {method: 'tissue_of_mine:darker', mpp: 4}\nview: {mpp: 2}\n")
    with imports_from(tmp_path, on_path=False):
        config = export_config(tmp_path / "mine.yaml")
        settings = ExportWork(tmp_path, config, 1).settings
        made = find_tissue(specked_slide()[0], **config.tissue.model_dump()).provenance()
    assert made["method"] == "tissue_of_mine:darker"
    assert made["settings"]["function"] == "tissue_of_mine:darker"
    assert settings["tissue_source"] == made["settings"]["source"]
    (tmp_path / "tissue_of_mine.py").write_text(MODULE.format(limit=190))
    with imports_from(tmp_path, on_path=False):
        changed = ExportWork(tmp_path, export_config(tmp_path / "mine.yaml"), 1).settings
    assert changed["tissue_source"] != settings["tissue_source"]


def test_settings_of_our_methods_are_as_before(tmp_path: Path) -> None:
    """So that bags of older runs are kept."""
    settings = ExportWork(tmp_path, export_config(None), 1).settings
    assert not any(key.startswith("tissue_") for key in settings)
    assert own_method("otsu") is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rgb: None, r"returned a NoneType for an overview of 500×400 px; return \(400, 500\) bool"),
        (lambda rgb: rgb.mean(axis=2) / 255, r"returned float64 of the shape \(400, 500\) .* with a threshold"),
        (lambda rgb: rgb < 200, r"returned bool of the shape \(400, 500, 3\)"),
        (lambda rgb: rgb.nothing, r"raised AttributeError: .*; correct it; it gets \(h, w, 3\) uint8 RGB and mpp"),
    ],
)
def test_what_is_no_mask(function: Any, message: str) -> None:
    """The slide, the shapes, what to return."""
    with pytest.raises(ConfigError, match=r"array: the tissue method <lambda> " + message):
        find_tissue(specked_slide()[0], method=function, mpp=4.0)


def test_refused_before_a_slide_is_read(tmp_path: Path) -> None:
    """Unknown names, functions of a notebook in settings, a threshold that nothing uses."""
    with pytest.raises(ConfigError, match=r"tissue\.method='ostu': should be 'otsu', 'threshold' or 'none', or my_"):
        export_config({"tissue": {"method": "ostu"}})
    with pytest.raises(ConfigError, match="without an import path; define it with def"):
        export_config({"tissue": {"method": lambda rgb: rgb[..., 0] < 200}})
    assert export_config({"tissue": {"method": own_method}}).tissue.method == "slideio_pipe.tiles.own_tissue:own_method"
    slide = specked_slide()[0]
    with pytest.raises(ConfigError, match=r"a threshold of 0\.1 for the tissue method grey, which has its own; leave"):
        find_tissue(slide, method=grey, threshold=0.1)
    with pytest.raises(ConfigError, match="there is no module far_away"):
        find_tissue(slide, method="far_away:find")
    with pytest.raises(ConfigError, match="method 'ostu'; pass one of otsu, threshold, none"):
        find_tissue(slide, method="ostu")
    with pytest.raises(ConfigError, match="a tuple is no tissue method"):
        find_tissue(slide, method="slideio_pipe.tiles.own_tissue:METHODS")


def test_of_an_installed_package(tmp_path: Path) -> None:
    """By its name, in Python and in settings; the package is in the provenance; a name of ours stays ours."""
    write_distribution(
        tmp_path, "her-package", {"tissue": {"darker": "her_tissue:darker", "otsu": "her_tissue:darker"}}
    )
    (tmp_path / "her_tissue.py").write_text(MODULE.format(limit=200))
    with imports_from(tmp_path):
        slide = specked_slide()[0]
        tissue = find_tissue(slide, method="darker", mpp=4.0)
        assert export_config({"tissue": {"method": "darker"}}).tissue.method == "darker"
        with pytest.raises(ConfigError, match="'none', 'darker' of her-package, 'otsu' of her-package, or my_module"):
            export_config({"tissue": {"method": "darkr"}})
        with pytest.warns(PartNameWarning, match='brings the tissue method "otsu"; the one of slideio-pipe is used'):
            ours = find_tissue(slide, mpp=4.0)
    assert tissue.provenance()["settings"]["package"] == "her-package 1.0"
    assert "ignore_pen" in ours.settings
    assert "ignore_pen" not in tissue.settings


@pytest.mark.system
def test_in_worker_processes(tmp_path: Path) -> None:
    """They find the module beside the settings, and the bags have its tissue."""
    (tmp_path / "tissue_of_workers.py").write_text(MODULE.format(limit=200))
    settings = "tissue: {method: 'tissue_of_workers:darker', mpp: 4}\nview: {mpp: 2}\ngrid: {tile_size: 64}\n"
    (tmp_path / "mine.yaml").write_text(settings)
    slides = []
    for name in ("a", "b"):
        slide, _ = specked_slide()
        slides.append(tmp_path / f"{name}.tif")
        slide.view().save(slides[-1])
        slide.close()
    with imports_from(tmp_path, on_path=False):
        done = export_cohort(slides, tmp_path / "bags", tmp_path / "mine.yaml", workers=2, progress=False)
    assert done.done == 2
    with open_bag(tmp_path / "bags" / "a.bag.zarr") as bag:
        assert len(bag) > 0
        assert bag.provenance()["tissue"]["method"] == "tissue_of_workers:darker"
