"""``from_numpy``: a user's function on tiles, with our seeds, in views, bags, streams, YAML, replays and workers."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import albumentationsxl as A
import numpy as np
import pytest
from own_modules import imports_from

from slideio_pipe import (
    BagDataset,
    BagLoader,
    Draw,
    Replay,
    StainJitter,
    TileBag,
    TileGrid,
    draw,
    explain,
    from_numpy,
    load_transform,
    open_slide,
    stream,
)
from slideio_pipe.errors import ConfigError

MODULE = """
import numpy as np

def darker(tile, rng):
    return (tile * rng.uniform(0.2, 1.0)).astype(np.uint8)
"""


def darker(tile: Any, rng: Any) -> Any:
    """A drawn factor for the whole tile."""
    return (tile * rng.uniform(0.2, 1.0)).astype(np.uint8)


def mirrored(tile: Any) -> Any:
    """No randomness; needs the whole tile."""
    return tile[:, ::-1].copy()


def pixels() -> Any:
    """Distinct tiles."""
    return np.random.default_rng(3).integers(60, 250, (300, 400, 3), dtype=np.uint8)


def bag_of(transform: Any, *, view_transform: Any = None, seed: int = 5, epoch: int = 0) -> TileBag:
    view = open_slide(pixels(), slide_mpp=0.5).view(transform=view_transform, seed=seed)
    return TileBag(view, TileGrid(view, tile_size=100), tile_transform=transform, seed=seed, epoch=epoch)


def factor_of(drawn: Draw) -> float:
    """What ``darker`` draws, from the record's seed and NumPy's generator."""
    return float(np.random.Generator(np.random.Philox(drawn.operations[-1].seed)).uniform(0.2, 1.0))  # type: ignore[union-attr]


def test_each_tile_has_its_own_draw() -> None:
    """The generator is seeded by (seed, epoch, slide, tile): pixels are those of NumPy with the drawn factor."""
    bag = bag_of(from_numpy(darker))
    plain = bag_of(None)
    for tile in range(len(bag)):
        expected = (plain[tile] * factor_of(bag.draw(tile))).astype(np.uint8)
        np.testing.assert_array_equal(bag[tile], expected)
    factors = {round(factor_of(bag.draw(tile)), 6) for tile in range(len(bag))}
    assert len(factors) == len(bag)
    np.testing.assert_array_equal(bag.read(np.arange(len(bag))[::-1], threads=3)[::-1], bag[:])
    assert (bag_of(from_numpy(darker), seed=6)[0] != bag[0]).any()
    assert (bag_of(from_numpy(darker), epoch=1)[0] != bag[0]).any()


def test_the_function_gets_the_whole_tile_after_geometry_in_the_order_of_colours() -> None:
    """Between colours of ours, once per tile; geometry is sampled before all of them."""
    bag = bag_of(A.Compose([from_numpy(mirrored), A.VerticalFlip(p=1)]))
    np.testing.assert_array_equal(bag[:], bag_of(None)[:][:, ::-1, ::-1])
    stained = bag_of(A.Compose([StainJitter(alpha=0.4), from_numpy(lambda tile: tile // 2)]))
    before = bag_of(A.Compose([StainJitter(alpha=0.4)]))
    np.testing.assert_array_equal(stained[:], before[:] // 2)


def test_of_a_slide_all_squares_have_one_draw() -> None:
    """The view's pixels are the plain ones times one factor, in the bag and in crops."""
    bag = bag_of(None, view_transform=from_numpy(darker))
    assert bag.view.draw is not None
    expected = (pixels() * factor_of(bag.view.draw)).astype(np.uint8)
    np.testing.assert_array_equal(bag.view.crop(20, 10, (300, 280)), expected[10:290, 20:320])
    np.testing.assert_array_equal(bag[1], expected[:100, 100:200])


def test_with_probability_and_in_one_of() -> None:
    """Tiles that do not draw it are unchanged."""
    bag, plain = bag_of(A.OneOf([from_numpy(mirrored), A.NoOp()], p=1)), bag_of(None)
    changed = [bool((bag[tile] != plain[tile]).any()) for tile in range(len(bag))]
    assert True in changed
    assert False in changed
    assert changed == [bool(bag.draw(tile).operations) for tile in range(len(bag))]


@pytest.mark.system
def test_in_streams_and_loaders_with_worker_processes(tmp_path: Path) -> None:
    """The tiles are those of the bag; worker processes import the function again."""
    bag = bag_of(from_numpy(darker))
    tiles = np.concatenate(
        [batch.tiles.permute(0, 2, 3, 1).numpy() for batch in stream(bag, device="cpu", normalize=None)]
    )
    np.testing.assert_array_equal(tiles, bag[:])
    (tmp_path / "transform_of_workers.py").write_text(MODULE)
    with imports_from(tmp_path):
        slide = tmp_path / "a.tif"
        open_slide(pixels(), slide_mpp=0.5).view().save(slide)
        settings = {"grid": {"tile_size": 100, "min_tissue": 0}, "tissue": {"method": "none"}, "view": {"mpp": 0.5}}
        dataset = BagDataset([slide], settings, tile_transform=from_numpy("transform_of_workers:darker"))
        expected = dataset[0].tiles.numpy()
        with BagLoader(dataset, device="cpu", normalize=None, workers=1) as loader:
            for chunk in loader:
                np.testing.assert_array_equal(chunk.tiles.numpy(), expected[chunk.index])
        assert len(np.unique(expected[:, 0, 0, 0])) > 3


def test_a_lambda_is_refused_by_worker_processes_with_our_error() -> None:
    """In this process and its threads it works; a function of a module is pickled by its name."""
    transform = from_numpy(lambda tile: tile // 2)
    np.testing.assert_array_equal(bag_of(transform)[0], bag_of(None)[0] // 2)
    with pytest.raises(ConfigError, match=r"<lambda> cannot be sent to a worker process; define it with def in a mod"):
        pickle.dumps(transform)
    with pytest.raises(ConfigError, match="cannot be sent to a worker process"):
        pickle.dumps(bag_of(transform))
    again = pickle.loads(pickle.dumps(bag_of(from_numpy(darker))))
    np.testing.assert_array_equal(again[:], bag_of(from_numpy(darker))[:])


def test_yaml_by_import_path(tmp_path: Path) -> None:
    """As one step beside others, from a module beside the file; ``A.to_dict`` writes it so that it is read again."""
    (tmp_path / "transform_of_mine.py").write_text(MODULE)
    steps = "- transform_of_mine:darker\n  - {__class_fullname__: HorizontalFlip, p: 1.0}\n"
    (tmp_path / "t.yaml").write_text(f"transform:\n  __class_fullname__: Compose\n  transforms:\n  {steps}")
    with imports_from(tmp_path, on_path=False):
        loaded = load_transform(tmp_path / "t.yaml")
        bag, plain = bag_of(loaded), bag_of(None)
        expected = (plain[2][:, ::-1] * factor_of(bag.draw(2))).astype(np.uint8)
        np.testing.assert_array_equal(bag[2], expected)
        A.save(loaded, str(tmp_path / "again.yaml"), data_format="yaml")
        sys.path.remove(str(tmp_path))
        del sys.modules["transform_of_mine"]  # as in another process
        np.testing.assert_array_equal(bag_of(load_transform(tmp_path / "again.yaml"))[:], bag[:])
        (tmp_path / "wrong.yaml").write_text("transform: transform_of_mine:darkr\n")
        with pytest.raises(ConfigError, match=r"the module has no darkr; did you mean darker\?"):
            load_transform(tmp_path / "wrong.yaml")


def test_a_replay_repeats_it(tmp_path: Path) -> None:
    """From the JSON of a draw the function is found by its import path; a local one cannot be."""
    (tmp_path / "transform_of_replay.py").write_text(MODULE)
    with imports_from(tmp_path):
        bag = bag_of(from_numpy("transform_of_replay:darker"))
        drawn = bag.draw(3)
        read = Draw.from_json(drawn.to_json())
        assert read == drawn
        repeated = bag_of(Replay(read))
        factor = factor_of(drawn)
        np.testing.assert_array_equal(repeated[1], (bag_of(None)[1] * factor).astype(np.uint8))
    local = draw(from_numpy(lambda tile: tile), tile=0, size=(100, 100))
    with pytest.raises(ConfigError, match="the draw has a function that is no longer there; define it with def"):
        _ = bag_of(Replay(Draw.from_json(local.to_json())))[0]


def test_explain_measures_it_and_says_that_it_is_opaque() -> None:
    """One row with its name and a cost above 0, and a warning about devices."""
    found = explain(A.Compose([StainJitter(), from_numpy(darker, p=0.5)]))
    step = found.steps[1]
    assert (step.name, step.p, step.runs) == ("from_numpy(darker)", 0.5, "your function, on the CPU")
    assert "opaque" in step.why
    assert step.ms_per_tile is not None
    assert step.ms_per_tile > 0
    assert "a function of your own prevents the whole transform from running on the device" in found.warnings
    with pytest.raises(ConfigError, match=r"from_numpy\(darker\) cannot run on a device"):
        stream(bag_of(from_numpy(darker)), device="cpu", normalize=None, colours="device")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda tile: None, r"returned a NoneType for a tile of uint8 \(100, 100, 3\); return uint8 of the same shape"),
        (lambda tile: tile / 255, r"returned float64 \(100, 100, 3\)"),
        (lambda tile: tile[::2], r"returned uint8 \(50, 100, 3\) .*; put changes of the size into RandomResizedCrop"),
        (lambda tile: tile.nothing, r"raised AttributeError: .*; correct it; it gets a tile"),
        (
            lambda tile: (tile * np.random.rand()).astype(np.uint8),  # noqa: NPY002
            r"two calls of <lambda> with one tile differ; give",
        ),
        (
            lambda tile, rng: (tile * np.random.default_rng().random()).astype(np.uint8),
            r"two calls of <lambda> with one tile and one seed differ; draw from rng alone",
        ),
    ],
)
def test_what_a_function_may_not_do(function: Any, message: str) -> None:
    """Said when a tile is read, of a tile's transform and of a slide's."""
    transform = from_numpy(function)
    with pytest.raises(ConfigError, match=message):
        _ = bag_of(transform)[0]
    bag = bag_of(None, view_transform=from_numpy(function))
    for _ in range(2):  # libvips would return black at the second time
        with pytest.raises(ConfigError):
            _ = bag[0]
        with pytest.raises(ConfigError):
            bag.view.crop(0, 0, (50, 50))


def test_no_function() -> None:
    """Said where it is made; a bare function is no transform, and the error says how to make one of it."""
    with pytest.raises(ConfigError, match=r"function: no albumentationsxl transform; .*; from_numpy\(function\) makes"):
        bag_of(mirrored)
    with pytest.raises(ConfigError, match="from_numpy: a int is no function"):
        from_numpy(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no import path"):
        from_numpy("darker")
