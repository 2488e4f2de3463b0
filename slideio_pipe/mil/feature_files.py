"""A cohort of slides, and the folder where their features are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slideio_pipe.cohort import Cohort, CohortSlide
from slideio_pipe.errors import ConfigError
from slideio_pipe.foreign.converting import stem_of
from slideio_pipe.manifest import TABLES, Table, read_table
from slideio_pipe.store.features import encoder_names
from slideio_pipe.store.layout import is_bag_store

# What a slide's features may be called, after its stem: our stores, TRIDENT's, STAMP's and CLAM's files.
ENDINGS = (".features.zarr", ".bag.zarr", ".h5", ".pt")
# What CLAM and others call the columns of their tables.
_ALSO = {"slide_id": "slide", "case_id": "patient"}
_FILES = (".h5", ".hdf5", ".pt")
_SHOWN = 10


def holds_features(path: Path, *, pixels: bool = False) -> bool:
    """Return whether it is something that features are kept in, by its name or what it holds.

    A bag store has pixels as well: where these do (``pixels``), features have to be there.
    """
    if path.is_dir():
        of_bag = is_bag_store(path) and (not pixels or bool(encoder_names(path)))
        return path.name.endswith(".features.zarr") or of_bag
    return path.suffix.lower() in _FILES


def feature_cohort(cohort: Any, folder: str | Path) -> Cohort:
    """Return the cohort with the files of its slides' features in place of the slides, found by name.

    Parameters
    ----------
    cohort : path, list or Cohort
        A table's slides need not be files that are there; ``slide_id`` and ``case_id`` are understood as well.
    folder : path
        Holds ``<slide>.features.zarr``, ``.bag.zarr``, ``.h5`` or ``.pt``.

    Raises
    ------
    ConfigError
        Slides without features, all at once.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise ConfigError("is no folder of features", slide=str(folder), remedy="run slideio-pipe features")
    if isinstance(cohort, str | Path) and Path(cohort).suffix.lower() in TABLES:
        return _of_table(Path(cohort).expanduser(), place)
    slides = list(Cohort.of(cohort))
    found = [None if not isinstance(s.source, Path) else _file(place, s.source.name) for s in slides]
    _refuse_missing(place, [s.name for s, file in zip(slides, found, strict=True) if file is None])
    return Cohort(_with_features(s, file) for s, file in zip(slides, found, strict=True) if file is not None)


def tiling_of(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the sections ``view``, ``grid`` and ``tissue`` that lay tiles as those of features lie.

    None where it is not told, by files of others, or cannot be said in settings: tissue that was outlined by hand.
    """
    try:
        view, grid, tissue = (provenance[name] for name in ("view", "grid", "tissue"))
        told = {} if tissue is None else tissue["settings"]
        if tissue is not None and "min_area_um2" not in told:
            return None
        found: dict[str, Any] = {"method": "none"} if tissue is None else {"method": tissue["method"]}
        found |= {name: told[name] for name in ("mpp", "min_area_um2", "max_hole_um2", "ignore_pen") if name in told}
        return {
            "view": {"mpp": sum(view["mpp"]) / 2},
            "grid": {name: grid[name] for name in ("tile_size", "stride", "edge", "min_tissue", "align")},
            "tissue": found | {"threshold": told.get("asked_threshold")},
        }
    except (KeyError, TypeError):
        return None


def _with_features(slide: CohortSlide, file: Path) -> CohortSlide:
    return replace(slide, source=file, mask=None)


def _of_table(path: Path, folder: Path) -> Cohort:
    table = read_table(path)
    names = {old: new for old, new in _ALSO.items() if old in table.header and new not in table.header}
    header = [names.get(name, name) for name in table.header]
    rows, missing = [], []
    for row in table.rows:
        cells = {names.get(name, name): value for name, value in row.items()}
        slide = cells.get("slide", "")
        file = _file(folder, Path(slide).name) if slide else None
        if file is None and slide:
            missing.append(Path(slide).name)
        name = cells.get("name") or Path(slide).name
        rows.append({**cells, "slide": str(file or ""), "name": name, "mask": ""})
    _refuse_missing(folder, missing)
    header = header if "name" in header else [*header, "name"]
    return Cohort.of_table(path, Table(tuple(header), tuple(rows), table.places))


def _file(folder: Path, name: str) -> Path | None:
    """Return the features of a slide: called as it is, or as it is without its ending."""
    candidates = [folder / f"{stem}{ending}" for stem in dict.fromkeys((name, stem_of(name))) for ending in ENDINGS]
    return next((file for file in candidates if file.exists()), None)


def _refuse_missing(folder: Path, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise ConfigError(
            f"{len(names)} slides have no features there: {shown}",
            slide=str(folder),
            remedy="compute them, or leave these slides out",
        )
