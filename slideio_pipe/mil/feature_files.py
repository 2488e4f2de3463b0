"""Find the feature files of a cohort's slides in a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import file_stem
from slideio_pipe.cohort.table import Table, file_name, is_table, read_table
from slideio_pipe.errors import ConfigError
from slideio_pipe.features.feature_bag import FeatureBag
from slideio_pipe.store.feature_arrays import encoder_names
from slideio_pipe.store.metadata import is_bag_store

# Endings of a slide's features, after its stem: our stores, files of TRIDENT, STAMP and CLAM.
ENDINGS = (".features.zarr", ".bag.zarr", ".h5", ".pt")
_FILES = (".h5", ".hdf5", ".pt")
_SHOWN = 10


def holds_features(path: Path, *, pixels: bool = False) -> bool:
    """Return whether a path is a store or file of features, by its name or its contents.

    A bag store has pixels as well: with ``pixels``, it counts only if it also has features.
    """
    if path.is_dir():
        of_bag = is_bag_store(path) and (not pixels or bool(encoder_names(path)))
        return path.name.endswith(".features.zarr") or of_bag
    return path.suffix.lower() in _FILES


def features_in(source: Path) -> list[Path]:
    """Return the files and stores of features in a folder, or those that match a pattern, in order."""
    place = source.expanduser()
    if place.is_dir() and not place.name.endswith(ENDINGS):
        found = list(place.iterdir())
    elif place.name.endswith(ENDINGS) and set(place.name) & set("*?["):
        found = list(place.parent.glob(place.name))
    else:
        return []
    return sorted(path for path in found if path.name.endswith(ENDINGS))


def feature_cohort(cohort: Any, folder: str | Path) -> Cohort:
    """Return the cohort with its slides replaced by the files of their features, found by name.

    Raise ConfigError if slides have no features, listed together; or several slides would share one file.

    Parameters
    ----------
    cohort : path, list or Cohort
        A table's slides need not exist as files; ``slide_id`` and ``case_id`` are accepted as column names.
    folder : path
        Contains ``<slide>.features.zarr``, ``.bag.zarr``, ``.h5`` or ``.pt``.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise ConfigError("is no folder of features", slide=str(folder), remedy="run slideio-pipe features")
    if isinstance(cohort, Table) or is_table(cohort):
        return _of_table(cohort if isinstance(cohort, Table) else read_table(cohort), place)
    slides = list(Cohort.of(cohort))
    found = [None if not isinstance(s.source, Path) else _file(place, s.source.name, s.name) for s in slides]
    _refuse_missing(place, [s.name for s, file in zip(slides, found, strict=True) if file is None])
    pairs = [(s, file) for s, file in zip(slides, found, strict=True) if file is not None]
    found_all = Cohort(replace(slide, source=file, mask=None) for slide, file in pairs)
    _refuse_shared(found_all)
    return found_all


def is_unnamed(slide: CohortSlide, bag: FeatureBag) -> bool:
    """Return whether a slide is named after its feature store, which has the real name."""
    return "slide" in bag.provenance and isinstance(slide.source, Path) and slide.name == slide.source.name


def tiling_of(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the sections ``view``, ``grid`` and ``tissue`` with which slides get the tiles of features.

    None if unknown, as for files of other tools, or if settings cannot express it: tissue outlined by hand.
    """
    try:
        view, grid, tissue = (provenance[name] for name in ("view", "grid", "tissue"))
        settings = {} if tissue is None else tissue["settings"]
        if tissue is not None and "min_area_um2" not in settings:
            return None
        found: dict[str, Any] = {"method": "none"} if tissue is None else {"method": tissue["method"]}
        found |= {
            name: settings[name] for name in ("mpp", "min_area_um2", "max_hole_um2", "ignore_pen") if name in settings
        }
        return {
            "view": {"mpp": sum(view["mpp"]) / 2} | _context_of(provenance),
            "grid": {name: grid[name] for name in ("tile_size", "stride", "edge", "min_tissue", "align")},
            "tissue": found | {"threshold": settings.get("asked_threshold")},
        }
    except (KeyError, TypeError):
        return None


def _context_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the view for several magnifications."""
    mpps = (provenance.get("context") or {}).get("mpp")
    return {"mpp": mpps[0], "context": mpps[1:]} if mpps else {}


def _of_table(table: Table, folder: Path) -> Cohort:
    rows, missing = [], []
    for cells in table.rows:
        slide = file_name(cells.get("slide", ""))
        file = _file(folder, slide) if slide else None
        if file is None and slide:
            missing.append(slide)
        rows.append({**cells, "slide": str(file or ""), "name": cells.get("name") or slide, "mask": ""})
    _refuse_missing(folder, missing)
    header = table.header if "name" in table.header else (*table.header, "name")
    cohort = Cohort.from_table(replace(table, header=header, rows=tuple(rows)))
    _refuse_shared(cohort)
    return cohort


def _file(folder: Path, *names: str) -> Path | None:
    """Return the features of a slide, named after its file or its id, with or without its ending."""
    stems = dict.fromkeys(stem for name in names for stem in (name, file_stem(name)))
    candidates = [folder / f"{stem}{ending}" for stem in stems for ending in ENDINGS]
    return next((file for file in candidates if file.exists()), None)


def _refuse_shared(cohort: Cohort) -> None:
    """Refuse slides that share one file: a.svs and a.ndpi with only one a.h5."""
    names = defaultdict(list)
    for slide in cohort:
        names[slide.source].append(slide.name)
    shared = [f"{' and '.join(slides)} ({Path(str(file)).name})" for file, slides in names.items() if len(slides) > 1]
    if shared:
        raise ConfigError(
            f"slides have one file of features: {'; '.join(shared[:_SHOWN])}",
            remedy="call each file as its slide with its ending (a.svs.h5), or leave slides out",
        )


def _refuse_missing(folder: Path, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise ConfigError(
            f"{len(names)} slides have no features there: {shown}",
            slide=str(folder),
            remedy="compute them, or leave these slides out",
        )
