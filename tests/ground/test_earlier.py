"""Files of version 0.1.0, before the package was split into rooms, open with the same content."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import earlier
import numpy as np
import pytest

import slideio_pipe as sp

ARCHIVE = Path(earlier.__file__).with_suffix(".zip")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files of version 0.1.0, in a new folder."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def then() -> dict[str, Any]:
    """Their content, as version 0.1.0 read it."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return {name: json.loads(archive.read(f"{name}.json")) for name in ("draws", "surface", "loader", "seen")}


def test_files_of_0_1_0_open_with_the_same_content(files: Path, then: dict[str, Any]) -> None:
    """Bags of every kind, features, masks and labels bit for bit; predictions of a checkpoint in float32."""
    pytest.importorskip("lightning_fabric")
    now = json.loads(json.dumps(earlier.seen(files)))
    for name in ("logits", "attention"):
        np.testing.assert_allclose(now.pop(name), then["seen"][name], rtol=1e-5, atol=1e-6)
    assert now == {name: value for name, value in then["seen"].items() if name not in ("logits", "attention")}


def test_draws_equal_those_of_0_1_0(then: dict[str, Any]) -> None:
    """Drawn again from (seed, epoch, slide, tile), and read from files: every number."""
    assert earlier.draws() == then["draws"]
    for value in then["draws"].values():
        assert sp.Draw.model_validate(value).to_json() == value


def test_bags_equal_those_of_0_1_0(files: Path, tmp_path: Path) -> None:
    """Stores of the same slide have the same pixels, also augmented ones and those between pixels."""
    with sp.open_slide(files / "slides" / "a.tif") as slide:
        earlier.bags(tmp_path, slide)
    for store in sorted(tmp_path.glob("*.bag.zarr")):
        with sp.open_bag(store) as now, sp.open_bag(files / "bags" / store.name) as stored:
            assert np.abs(now[:].astype(int) - stored[:]).max(initial=0) <= 1, store.name
            assert np.array_equal(now.coords, stored.coords)


@pytest.mark.slow
def test_a_run_of_0_1_0_can_be_resumed(files: Path) -> None:
    """Finished bags are kept, the quarantined slide is not tried again; bytes do not change."""
    before = {path: path.read_bytes() for path in (files / "export").glob("*.bag.zarr/**/*") if path.is_file()}
    report = sp.export_cohort(files / "slides" / "cohort.csv", files / "export", earlier.EXPORT, progress=False)
    assert (report.done, report.kept, len(report.failed)) == (0, 2, 1)
    assert before == {path: path.read_bytes() for path in before}
    masks = sp.tissue_cohort(files / "slides" / "cohort.csv", files / "masks", earlier.EXPORT, progress=False)
    assert (masks.done, masks.kept) == (0, 2)


def test_features_of_0_1_0_are_kept(files: Path) -> None:
    """The encoder's digest is the same, in a feature store and in a bag."""
    encoder = earlier.encoder()
    out, slide = files / "features", files / "slides" / "a.tif"
    report = sp.encode_cohort(slide, encoder, out, earlier.LOADING, device="cpu", progress=False)
    assert (report.done, report.kept) == (0, 1)
    report = sp.encode_cohort([files / "bags" / "source.bag.zarr"], encoder, device="cpu", progress=False)
    assert (report.done, report.kept) == (0, 1)


def test_a_conversion_of_0_1_0_is_kept(files: Path) -> None:
    """Its ledger lists the converted bags."""
    pytest.importorskip("h5py")
    bags = [files / "export" / f"{name}.bag.zarr" for name in "ab"]
    changed = {path: path.stat().st_mtime_ns for path in (files / "clam" / "patches").iterdir()}
    sp.convert(bags, "clam", files / "clam", progress=False)
    assert changed == {path: path.stat().st_mtime_ns for path in (files / "clam" / "patches").iterdir()}


def test_a_loader_state_of_0_1_0_can_be_loaded(files: Path, then: dict[str, Any]) -> None:
    """The next chunk is the first one not delivered then."""
    slides = files / "slides"
    dataset = sp.BagDataset([slides / "a.tif", slides / "b.tif"], {**earlier.LOADING, "seed": 3})
    with sp.BagLoader(dataset, chunk_size=4, ordered=True, device="cpu", normalize=None) as loader:
        whole = list(loader)
    with sp.BagLoader(dataset, chunk_size=4, ordered=True, device="cpu", normalize=None) as loader:
        loader.load_state_dict(then["loader"])
        rest = list(loader)
    assert [(chunk.bag, len(chunk.tiles)) for chunk in rest] == [(chunk.bag, len(chunk.tiles)) for chunk in whole[1:]]
    for one, other in zip(rest, whole[1:], strict=True):
        assert np.array_equal(one.tiles.numpy(), other.tiles.numpy())


def test_a_finished_training_of_0_1_0_is_kept(files: Path) -> None:
    """Its last checkpoint is of the same training, so nothing is trained again."""
    pytest.importorskip("lightning_fabric")
    before = (files / "training" / "history.csv").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = sp.fit(files / "study" / "cohort.csv", earlier.TRAINING, files / "training", progress=False)
    assert fitted.checkpoints[0].is_file()
    assert (files / "training" / "history.csv").read_bytes() == before


def test_no_public_name_command_or_option_is_removed(then: dict[str, Any]) -> None:
    """Compared with version 0.1.0."""
    now = earlier.surface()
    assert set(then["surface"]["names"]) <= set(now["names"])
    _assert_within(then["surface"]["commands"], now["commands"])


def _assert_within(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert set(before["options"]) <= set(now["options"])
    for name, part in before.get("commands", {}).items():
        _assert_within(part, now["commands"][name])
