"""The patient of a slide is kept from the manifest to the files of other tools, whose splits are by patient."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from command_line import run
from memory_bag import MemoryBag
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.errors import OutputExistsError, SkippedWarning
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.streaming.dataset import BagDataset

CONFIG = {"view": {"mpp": None}, "grid": {"tile_size": 64}, "tissue": {"method": "none"}}
PATIENTS = {"s0": "p0", "s1": "p0", "s2": "p1", "s3": "p1"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slides of a study, their manifest and their bags, made once: a run starts a process."""
    folder = write_study(tmp_path_factory.mktemp("study"))
    config = ExportConfig.model_validate(CONFIG)
    sp.export_cohort(folder / "cohort.csv", folder / "bags", config, progress=False)
    return folder


def write_study(folder: Path) -> Path:
    """Write four slides of two patients, and a manifest; return the folder."""
    rows = ["slide,label,patient"]
    for number, (name, patient) in enumerate(PATIENTS.items()):
        write_pyramid(folder / f"{name}.tif", coordinate_pixels(300 + number, 200), (1,), mpp=0.5)
        rows.append(f"{name}.tif,{number // 2},{patient}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def study(exported: Path, tmp_path: Path) -> Path:
    """Four slides of two patients, in a manifest."""
    for file in exported.iterdir():
        if file.is_file():
            shutil.copy2(file, tmp_path)
    return tmp_path


@pytest.fixture
def bags(study: Path, exported: Path) -> Path:
    """The bags of the study."""
    shutil.copytree(exported / "bags", study / "bags")
    return study / "bags"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def features(bags: Path) -> Path:
    """Return a folder of features, one column, for each bag."""
    folder = bags.parent / "features"
    folder.mkdir()
    for name in PATIENTS:
        with sp.open_bag(bags / f"{name}.bag.zarr") as bag:
            np.save(folder / f"{name}.npy", np.ones((len(bag), 1), np.float32))
    return folder


@pytest.mark.slow
def test_bags_and_their_stores_keep_the_patient(bags: Path) -> None:
    """The manifest's patient is in the store's JSON, and in the bag opened from it."""
    for name, patient in PATIENTS.items():
        store = bags / f"{name}.bag.zarr"
        assert zarr.open_group(store, mode="r").attrs["tile_bag"]["patient"] == patient
        with sp.open_bag(store) as bag:
            assert (bag.patient, bag.provenance()["patient"]) == (patient, patient)
            sp.save_bag(bag, bags.parent / "again.bag.zarr", overwrite=True, progress=False).close()
        with sp.open_bag(bags.parent / "again.bag.zarr") as again:
            assert again.patient == patient


def test_stores_of_earlier_versions_have_no_patient(tmp_path: Path) -> None:
    """Neither have bags of other packages; both open."""
    sp.save_bag(MemoryBag(), tmp_path / "a.bag.zarr", progress=False).close()
    assert "patient" not in json.loads((tmp_path / "a.bag.zarr" / "zarr.json").read_text())["attributes"]["tile_bag"]
    with sp.open_bag(tmp_path / "a.bag.zarr") as bag:
        assert bag.patient is None
        sp.convert(bag, "torchmil", tmp_path / "out")
    assert not (tmp_path / "out" / "bags.csv").exists()


def test_data_sets_and_loaders_return_the_patient(study: Path, bags: Path) -> None:
    """Of slides and of stores; the cohort has priority over the store."""
    wanted = list(PATIENTS.values())
    assert [bag.patient for bag in BagDataset(study / "cohort.csv", CONFIG)] == wanted  # type: ignore[attr-defined]
    stores = [bags / f"{name}.bag.zarr" for name in PATIENTS]
    dataset = BagDataset(stores, CONFIG)
    assert [dataset[k].patient for k in range(4)] == wanted
    with sp.BagLoader(dataset, chunk_size=4, device="cpu", normalize=None) as loader:
        assert sorted((bag.bag, bag.patient) for bag in loader.bags()) == [
            (f"{name}.bag.zarr", patient) for name, patient in PATIENTS.items()
        ]
    named = sp.Cohort([CohortSlide(stores[0], "s0", patient="other")])
    assert BagDataset(named, CONFIG)[0].patient == "other"
    opened = sp.Cohort.of([sp.open_bag(store) for store in stores])
    assert [slide.patient for slide in opened] == wanted


def test_features_keep_the_patient(study: Path, bags: Path) -> None:
    """In a feature store, beside the pixels, and in HDF5 of other tools."""
    from slideio_pipe.store.feature_arrays import add_features, create_feature_store

    with sp.open_bag(bags / "s2.bag.zarr") as bag:
        values = np.ones((len(bag), 3), np.float16)
        create_feature_store(study / "s2.features.zarr", bag, bag.provenance(), {"uni": (values, {})})
        add_features(bags / "s2.bag.zarr", "uni", values, {})
        sp.convert(bag, "trident", study / "trident", encoder="uni")
        sp.convert(bag, "stamp", study / "stamp", encoder="uni")
    places = [study / "s2.features.zarr", bags / "s2.bag.zarr", *(study / "trident").rglob("s2.h5")]
    for path in (*places, study / "stamp" / "uni" / "s2.h5"):
        assert sp.open_features(path).patient == "p1"


def test_encoding_a_cohort_keeps_the_patient(study: Path, tmp_path: Path) -> None:
    """The feature store of a slide has the patient of the manifest."""
    import torch

    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = sp.load_encoder(module, name="mean", normalize="imagenet", input_size=64)
    sp.encode_cohort(
        study / "cohort.csv", encoder, tmp_path / "f", ExportConfig.model_validate(CONFIG), device="cpu", progress=False
    )
    for name, patient in PATIENTS.items():
        assert sp.open_features(tmp_path / "f" / f"{name}.features.zarr").patient == patient


@pytest.mark.parametrize("layout", ["clam", "clam-pixels"])
@pytest.mark.parametrize("source", ["bags", "manifest"])
def test_clams_case_id_is_the_patient(study: Path, bags: Path, layout: str, source: str) -> None:
    """CLAM keeps slides of one ``case_id`` together; it comes from the bag or the manifest of bags."""
    given: Any = bags
    if source == "manifest":
        given = study / "bags.csv"
        listed = [f"bags/{name}.bag.zarr,{number // 2},m{number // 2}" for number, name in enumerate(PATIENTS)]
        given.write_text("\n".join(["slide,label,patient", *listed]) + "\n")
    elif layout == "clam":
        given = [bags / f"{name}.bag.zarr" for name in PATIENTS]
    if source == "bags":
        given = [sp.open_bag(bags / f"{name}.bag.zarr") for name in PATIENTS]
        for number, bag in enumerate(given):
            bag.label = number // 2
    sp.convert(given, layout, study / "out")
    cases: dict[str, set[str]] = {}
    for row in rows(study / "out" / "labels.csv"):
        cases.setdefault(row["case_id"], set()).add(row["slide_id"])
    first = "p" if source == "bags" else "m"
    assert cases == {f"{first}0": {"s0", "s1"}, f"{first}1": {"s2", "s3"}}


def test_the_table_of_slides_for_clam(bags: Path) -> None:
    """CLAM's extraction looks for ``patches/<slide_id up to the ending>.h5`` of every row, and opens that slide."""
    sp.convert(bags, "clam", bags.parent / "out")
    found = rows(bags.parent / "out" / "process_list_autogen.csv")
    assert [row["slide_id"] for row in found] == [f"{name}.tif" for name in PATIENTS]
    for row in found:
        assert (bags.parent / "out" / "patches" / f"{row['slide_id'].split('.tif')[0]}.h5").is_file()
        assert (bags.parent / row["slide_id"]).is_file()
        assert (row["process"], row["status"]) == ("0", "processed")
    sp.convert(bags / "s0.bag.zarr", "clam", bags.parent / "out", overwrite=True)
    assert len(rows(bags.parent / "out" / "process_list_autogen.csv")) == 4


def test_stamp_tables_list_files_and_labels_by_patient(study: Path, bags: Path) -> None:
    """Files are relative to the folder of features; each patient has one label."""
    sp.convert(bags, "stamp", study / "out", features=features(bags), encoder="uni")
    slides = rows(study / "out" / "slide.csv")
    assert {row["FILENAME"]: row["PATIENT"] for row in slides} == {f"{n}.h5": p for n, p in PATIENTS.items()}
    assert all((study / "out" / "uni" / row["FILENAME"]).is_file() for row in slides)
    assert rows(study / "out" / "clini.csv") == [{"PATIENT": "p0", "label": "0"}, {"PATIENT": "p1", "label": "1"}]


def test_a_patient_with_two_labels_is_in_no_table_of_patients(study: Path, bags: Path) -> None:
    """A warning names the patient; the others are in it."""
    given = [sp.open_bag(bags / f"{name}.bag.zarr") for name in PATIENTS]
    given[0].label = 1
    with pytest.warns(SkippedWarning, match=r"1 patients are left out of .*clini\.csv.*\(p0\)"):
        sp.convert(given, "stamp", study / "out", features=features(bags))
    assert rows(study / "out" / "clini.csv") == [{"PATIENT": "p1", "label": "1"}]


def test_tables_of_trident_and_torchmil_have_a_column_patient(study: Path, bags: Path) -> None:
    """Beside the labels; a table without it, of an earlier version, keeps its rows."""
    (study / "trident").mkdir()
    (study / "trident" / "labels.csv").write_text("wsi,label\nold.svs,1\n")
    sp.convert(bags, "trident", study / "trident")
    found = {row["wsi"]: row["patient"] for row in rows(study / "trident" / "labels.csv")}
    assert found == {"old.svs": ""} | {f"{name}.tif": patient for name, patient in PATIENTS.items()}
    sp.convert(bags, "torchmil", study / "torchmil")
    assert {row["bag_name"]: row["patient"] for row in rows(study / "torchmil" / "bags.csv")} == PATIENTS


def test_a_table_that_this_package_did_not_write_is_not_replaced(study: Path, bags: Path) -> None:
    """It lacks the column by which ours are recognised."""
    (study / "out").mkdir()
    (study / "out" / "labels.csv").write_text("name,age\na,60\n")
    with pytest.raises(OutputExistsError, match='without the column "slide_id"'):
        sp.convert(bags / "s0.bag.zarr", "clam", study / "out")
    assert (study / "out" / "labels.csv").read_text() == "name,age\na,60\n"


def test_tiles_of_other_formats_have_the_patient(study: Path, bags: Path) -> None:
    """Samples of WebDataset, rows of Hugging Face, bags of TensorDict."""
    tensordict = pytest.importorskip("tensordict")
    parquet = pytest.importorskip("pyarrow.parquet")
    for layout in ("webdataset", "hf", "memmap"):
        sp.convert(bags, layout, study / layout)
    for name, patient in PATIENTS.items():
        with tarfile.open(study / "webdataset" / f"{name}-000000.tar") as tar:
            files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
            assert {json.loads(file.read())["patient"] for file in files if file is not None} == {patient}
        table = parquet.read_table(study / "hf" / "data" / f"{name}.parquet")
        assert set(table["patient"].to_pylist()) == {patient}
        assert tensordict.TensorDict.load_memmap(study / "memmap" / name).get_non_tensor("patient") == patient


@pytest.mark.parametrize(("layout", "joined"), [("hf", {"label_type": "int64"}), ("torchmil", {})])
def test_a_folder_of_an_earlier_version_is_not_extended(
    bags: Path, tmp_path: Path, layout: str, joined: dict[str, str]
) -> None:
    """Rows with and without patient, or two shapes of labels, are no one data set: such bags fail."""
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    done = sp.convert(bags, layout, out)
    assert sp.convert(bags, layout, out).kept == done.bags == 4
    ledger = out / f".convert-{layout}" / "run.jsonl"
    earlier = json.dumps({"layout": layout, "encoder": "features"} | joined, sort_keys=True).encode()
    digest = hashlib.sha256(earlier).hexdigest()[:16]
    now = set(re.findall(r'"settings": ?"([0-9a-f]{16})"', ledger.read_text()))
    assert len(now) == 1
    ledger.write_text(ledger.read_text().replace(now.pop(), digest))
    with pytest.warns(SkippedWarning, match="could not be converted"):
        again = sp.convert(bags, layout, out)
    assert (again.kept, len(again.failed)) == (0, 4)


def test_the_export_command_has_an_option_patient(study: Path) -> None:
    """For one slide; a cohort has a column."""
    run("export", study / "s0.tif", "--out", study / "one", "--tissue", "none", "--tile-size", 64, "--patient", "p7")
    with sp.open_bag(study / "one" / "s0.bag.zarr") as bag:
        assert bag.patient == "p7"


@pytest.mark.slow
def test_coordinates_of_a_study_keep_the_patient(study: Path, bags: Path) -> None:
    """Imported from CLAM by a manifest of its files."""
    sp.convert(bags, "clam", study / "clam")
    listed = [f"clam/patches/{name}.h5,{patient}" for name, patient in PATIENTS.items()]
    (study / "files.csv").write_text("\n".join(["slide,patient", *listed]) + "\n")
    run("convert", study / "files.csv", "--from", "clam", "--slides", study, "--out", study / "back")
    for name, patient in PATIENTS.items():
        with sp.open_bag(study / "back" / f"{name}.bag.zarr") as bag:
            assert bag.patient == patient
