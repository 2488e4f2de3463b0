"""Files that a page of the guide asks for by name: ``<!-- files: study cohort -->`` on its first line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import tifffile
from made_slides import made_slide
from scipy.ndimage import distance_transform_edt
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, regionprops
from skimage.segmentation import watershed


def write_study(folder: Path) -> None:
    """Write study.csv and the features of its slides as TRIDENT does, by an encoder called uni."""
    (folder / "uni").mkdir()
    rng = np.random.default_rng(0)
    for k in range(10):
        with h5py.File(folder / "uni" / f"s{k}.h5", "w") as file:
            features = file.create_dataset("features", data=rng.normal(size=(12, 8)).astype(np.float32) + k % 2)
            features.attrs["encoder"] = "uni"
            coords = file.create_dataset("coords", data=np.stack([np.arange(12) % 4, np.arange(12) // 4], 1) * 512)
            coords.attrs["patch_size_level0"] = 512
    rows = "".join(f"s{k}.svs,p{k},{k % 2}\n" for k in range(10))
    (folder / "study.csv").write_text(f"slide,patient,label\n{rows}", encoding="utf-8")


def write_cohort(folder: Path) -> None:
    """Write slides/s0.svs to s5.svs, two of each patient, and cohort.csv with slide, patient and label."""
    (folder / "slides").mkdir()
    rows = [["slide", "patient", "label"]]
    for k in range(6):
        made_slide(folder / "slides" / f"s{k}.svs", size=(2400, 1800), seed=20 + k, lesions=k % 2, pieces=1)
        rows.append([f"slides/s{k}.svs", f"p{k // 2}", str(k % 2)])
    with (folder / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_broken(folder: Path) -> None:
    """Write broken.svs, a copy of a slide that ended early."""
    made_slide(folder / "broken.svs", size=(2400, 1800), seed=31, pieces=1)
    data = (folder / "broken.svs").read_bytes()
    (folder / "broken.svs").write_bytes(data[: len(data) // 3])


def write_without_mpp(folder: Path) -> None:
    """Write no_mpp.svs, a slide whose header states no resolution."""
    made_slide(folder / "no_mpp.svs", size=(2400, 1800), seed=32, pieces=1)
    data = (folder / "no_mpp.svs").read_bytes()
    # Of the same length, so that offsets in the TIFF stay right.
    data = re.sub(rb"\|AppMag = [^|\0]*|\|MPP = [^|\0]*", lambda found: b" " * len(found[0]), data)
    (folder / "no_mpp.svs").write_bytes(data)


def write_cells(folder: Path) -> None:
    """Write cells.json, the nuclei of a.svs as CellViT writes them; small and round ones are inflammatory cells."""
    pixels = tifffile.imread(folder / "a.svs", key=0)
    stain = gaussian(rgb2hed(pixels)[..., 0], 2)
    dark = stain > threshold_otsu(stain)
    depth = gaussian(distance_transform_edt(dark), 2)
    middles = np.zeros(dark.shape, np.int32)
    for number, (row, column) in enumerate(peak_local_max(depth, min_distance=9, labels=label(dark)), 1):
        middles[row, column] = number
    regions = regionprops(watershed(-depth, middles, mask=dark))
    cells = []
    for region in regions:
        if 150 < region.area < 3000:
            (row, column), (top, left, lower, right) = region.centroid, region.bbox
            kind = 2 if region.area < 700 and region.eccentricity < 0.75 else 1
            cells.append({"bbox": [[top, left], [lower, right]], "centroid": [column + 0.5, row + 0.5], "type": kind})
    document = {"type_map": {"Background": 0, "Neoplastic": 1, "Inflammatory": 2}, "cells": cells}
    (folder / "cells.json").write_text(json.dumps(document), encoding="utf-8")


FILES: dict[str, Callable[[Path], None]] = {
    "study": write_study,
    "cohort": write_cohort,
    "broken": write_broken,
    "no_mpp": write_without_mpp,
    "cells": write_cells,
}


def write_files(folder: Path, names: list[str]) -> None:
    """Write a.svs, which every page has, and the files of these names."""
    made_slide(folder / "a.svs", size=(4096, 3072), seed=5)
    for name in names:
        if name not in FILES:
            raise ValueError(f"no files are called {name!r}; tests/support/page_files.py has {', '.join(FILES)}")
        FILES[name](folder)
