"""Layouts of a user or a package: by object, import path and entry point, resumed and in worker processes as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from own_modules import imports_from, write_distribution

from slideio_pipe import Layout, TileBag, TileGrid, convert, open_slide, save_bag
from slideio_pipe.errors import ConfigError, PartNameWarning

MODULE = """
import numpy as np
from slideio_pipe import Layout

class MeanColours(Layout):
    def outputs(self, item, folder):
        return [folder / f"{item.stem}.npy"]

    def writes_pixels(self, item):
        return True

    def write(self, item, folder):
        means = [tiles.mean(axis=(1, 2)) for _, tiles in item.chunks()]
        np.save(folder / f"{item.stem}.npy", np.concatenate(means))

    def finish(self, bags, folder):
        path = folder / "labels.txt"
        path.write_text(" ".join(f"{bag.stem}={bag.label}" for bag in bags))
        return [path]
"""


def bags(folder: Path) -> list[Path]:
    """Two stored bags of different pixels."""
    paths = []
    for label, name in enumerate(("a", "b")):
        pixels = np.random.default_rng(label).integers(0, 255, (200, 300, 3), dtype=np.uint8)
        tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(64, 64), photometric="rgb")
        view = open_slide(folder / f"{name}.tif", slide_mpp=0.5).view()
        bag = TileBag(view, TileGrid(view, tile_size=100), label=label)
        paths.append(folder / f"{name}.bag.zarr")
        save_bag(bag, paths[-1], progress=False)
    return paths


def check_files(paths: list[Path], out: Path) -> None:
    """The files are what NumPy computes of the pixels."""
    for label, name in enumerate(("a", "b")):
        pixels = np.random.default_rng(label).integers(0, 255, (200, 300, 3), dtype=np.uint8)
        tiles = pixels.reshape(2, 100, 3, 100, 3).swapaxes(1, 2).reshape(6, 100, 100, 3)
        np.testing.assert_allclose(np.load(out / f"{name}.npy"), tiles.mean(axis=(1, 2)))
    assert (out / "labels.txt").read_text() == "a=0 b=1"


def test_by_import_path_object_and_entry_point(tmp_path: Path) -> None:
    """A second call keeps what is there; a changed class is another layout."""
    paths = bags(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "layout_of_mine.py").write_text(MODULE)
    points = {"means": "layout_of_mine:MeanColours", "clam": "layout_of_mine:MeanColours"}
    write_distribution(site, "her-package", {"layouts": points})
    with imports_from(site):
        done = convert(paths, "layout_of_mine:MeanColours", tmp_path / "path", progress=False)
        assert (done.layout, done.bags) == ("MeanColours", 2)
        check_files(paths, tmp_path / "path")
        assert convert(paths, "layout_of_mine:MeanColours", tmp_path / "path", progress=False).kept == 2
        import layout_of_mine  # type: ignore[import-not-found]

        convert(paths, layout_of_mine.MeanColours(), tmp_path / "object", progress=False)
        check_files(paths, tmp_path / "object")
        assert convert(paths, "means", tmp_path / "point", progress=False).layout == "means"
        check_files(paths, tmp_path / "point")
        with pytest.raises(ConfigError, match=r"no layout 'meanz'; pass clam, .*, hf, means, or one of your"):
            convert(paths, "meanz", tmp_path / "x")
        with pytest.warns(PartNameWarning, match='her-package 1.0 brings the layout "clam"; the one of slideio-pipe'):
            assert (convert(paths[0], "clam", tmp_path / "clam").paths[0].name) == "a.h5"


@pytest.mark.system
def test_in_worker_processes(tmp_path: Path) -> None:
    """They import the class again; a local one is refused before anything is written."""
    paths = bags(tmp_path)
    (tmp_path / "layout_of_workers.py").write_text(MODULE)
    with imports_from(tmp_path):
        convert(paths, "layout_of_workers:MeanColours", tmp_path / "out", workers=2, progress=False)
    check_files(paths, tmp_path / "out")

    class Local(Layout):
        def outputs(self, item: Any, folder: Path) -> list[Path]:
            return []

        def write(self, item: Any, folder: Path) -> None:
            pass

    with pytest.raises(ConfigError, match="the layout Local cannot be sent to worker processes; make it a class"):
        convert(paths, Local(), tmp_path / "local", workers=2)


def test_what_is_no_layout(tmp_path: Path) -> None:
    """Said before anything is written."""

    class Half(Layout):
        def outputs(self, item: Any, folder: Path) -> list[Path]:
            return []

    with pytest.raises(ConfigError, match=r"the layout Half cannot be made: .* abstract method"):
        convert([], Half, tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"int is no layout; derive a class from slideio_pipe\.Layout"):
        convert([], 5, tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="MeanColours: there is no module far_away"):
        convert([], "far_away:MeanColours", tmp_path / "x")
    assert not (tmp_path / "x").exists()
