"""What a viewer can show: files, open slides and views, bags with and without their slide, cohorts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas
import pytest
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.errors import ConfigError, SlideNotFoundError
from slideio_pipe.viewer.bag_slide import BagSlide
from slideio_pipe.viewer.scene import OPEN_SLIDES, Scene, facts_of
from slideio_pipe.viewer.tile_source import ViewTiles


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated slide of 1500×1200 px at 0.25 µm."""
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    made_slide(path, size=(1500, 1200), seed=3, lesions=1, pieces=1)
    return path


def test_everything_that_is_a_slide(file: Path) -> None:
    """A path, an open slide, a view and a bag over one are shown as themselves."""
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5)
        bag = sp.TileBag(view, sp.TileGrid(view, 128), label="tumour")
        scene = Scene([file, slide, view, bag])
        assert [each.name for each in scene.slides.values()] == ["a.svs"] * 4
        assert [tuple(scene.view(key).plain_size) for key in scene.slides] == [
            (1500, 1200),
            (1500, 1200),
            (750, 600),
            (750, 600),
        ]
        assert scene["s3"].label == "tumour"


def test_a_view_keeps_its_draw(file: Path, tmp_path: Path) -> None:
    """The plain slide is shown under the draw of a view or a bag, stored or not."""
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5).adjusted(eosin=0.7, turn=20)
        bag = sp.TileBag(view, sp.TileGrid(view, 128))
        sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
        scene = Scene([view, bag, sp.open_bag(tmp_path / "a.bag.zarr"), slide])
        assert [scene.own_draw(key) for key in scene.slides] == [view.draw, view.draw, view.draw, None]
        assert all(scene.view(key).draw is None for key in ("s0", "s1", "s3"))
        assert scene.view("s0").plain_size == view.plain_size


def test_a_cohort_has_names_labels_and_splits(file: Path, tmp_path: Path) -> None:
    """They are those of its table; slides are opened when they are looked at, and few stay open."""
    table = tmp_path / "cohort.csv"
    with table.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["slide", "name", "label", "split"])
        for number in range(OPEN_SLIDES + 4):
            copy = tmp_path / f"{number}.svs"
            copy.write_bytes(file.read_bytes())
            writer.writerow([copy.name, f"case {number}", number % 2, "train" if number % 3 else "test"])
    scene = Scene(table)
    assert scene["s1"].to_json() == {"id": "s1", "name": "case 1", "label": "1", "split": "train", "encoders": []}
    for key in scene.slides:
        scene.view(key)
    assert len(scene._views) == OPEN_SLIDES
    assert "path" not in str(scene["s1"].to_json())


def test_a_dataframe_is_a_cohort(file: Path) -> None:
    """As its file is."""
    frame = pandas.DataFrame({"slide": [str(file)], "name": ["one"], "label": ["tumour"]})
    (shown,) = Scene(frame).slides.values()
    assert (shown.name, shown.label, shown.source) == ("one", "tumour", file)


def test_a_stored_bag_with_its_slide(file: Path, tmp_path: Path) -> None:
    """The slide is found in the folder of slides, or among the slides of the viewer."""
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5)
        sp.save_bag(sp.TileBag(view, sp.TileGrid(view, 128)), tmp_path / "a.bag.zarr", progress=False)
    assert tuple(Scene(tmp_path / "a.bag.zarr", slides=file.parent).view("s0").plain_size) == (1500, 1200)
    assert tuple(Scene([tmp_path / "a.bag.zarr", file]).view("s0").plain_size) == (1500, 1200)
    with pytest.raises(ConfigError, match="no folder"):
        Scene(file, slides=tmp_path / "none")


def test_of_several_magnifications_the_finest_is_shown(file: Path, tmp_path: Path) -> None:
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5)
        bag = sp.ContextBag(view, sp.TileGrid(view, 128), mpp=[0.5, 2.0])
        sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
        whole = ViewTiles(Scene(tmp_path / "a.bag.zarr").view("s0")).tile(0, 0, 0)
        assert np.array_equal(whole[:128, :128], bag[0, 0])


def test_a_stored_bag_without_its_slide(file: Path, tmp_path: Path) -> None:
    """Its stored tiles are shown where they were, white elsewhere, with the coordinates of the slide."""
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5)
        kept = sp.TileGrid.from_coords(view, [[0, 0], [512, 256], [1024, 512]], 128)
        bag = sp.TileBag(view, kept)
        sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
        shown = Scene(tmp_path / "a.bag.zarr").view("s0")
        assert isinstance(shown.slide, BagSlide)
        tiles = ViewTiles(shown)
        whole = tiles.tile(0, 0, 0)
        for tile, (x, y) in zip(bag[:], kept.origins.tolist(), strict=True):
            seen = whole[y : y + 128, x : x + 128]
            assert (seen == tile[: seen.shape[0], : seen.shape[1]]).all()
        assert (whole[:128, 128:256] == 255).all()
        facts = facts_of(shown)
        assert facts["downsample"] == [2.0, 2.0]
        assert facts["mpp"] == pytest.approx([0.25, 0.25])
        assert "where they were" in facts["note"]
        assert shown.slide.thumbnail(64).shape[1] == 64


def test_tiles_that_overlap_are_shown_in_rows(file: Path, tmp_path: Path) -> None:
    """They cannot all be in place."""
    with sp.open_slide(file) as slide:
        view = slide.view(mpp=0.5)
        bag = sp.TileBag(view, sp.TileGrid(view, 128, stride=100))
        sp.save_bag(bag, tmp_path / "a.bag.zarr", progress=False)
        shown = Scene(tmp_path / "a.bag.zarr").view("s0")
        assert "in the order of the bag" in facts_of(shown)["note"]
        assert (ViewTiles(shown).tile(0, 0, 0)[:128, :128] == bag[0]).all()


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    """Errors name what was given."""
    with pytest.raises(ConfigError, match="no slide to show"):
        Scene([])
    with pytest.raises(ConfigError, match="a int cannot be shown"):
        Scene(3)
    scene = Scene([sp.open_slide(np.zeros((9, 9, 3), np.uint8))])
    with pytest.raises(ConfigError, match="no such slide"):
        scene.view("s1")
    gone = tmp_path / "gone.svs"
    with pytest.raises((ConfigError, SlideNotFoundError), match=r"gone\.svs"):
        Scene(gone).view("s0")
