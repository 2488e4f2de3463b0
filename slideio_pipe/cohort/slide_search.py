"""Join the ids of a table to the files below a folder: slides, bags, or files of features."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from slideio_pipe.cohort.cells import value_of
from slideio_pipe.cohort.slide_files import SLIDES, dicom_series, without_companions
from slideio_pipe.cohort.table import Table, file_name
from slideio_pipe.errors import ConfigError, UnmatchedWarning, warn_caller

# What a folder is searched for: the first kind that it has. Pictures come last, because they are often thumbnails.
_KINDS = {
    "slides": (*SLIDES, ".vsi", ".dicom", ".zarr"),
    "bags": (".bag.zarr",),
    "features": (".features.zarr", ".h5", ".hdf5", ".pt"),
    "pictures": (".png", ".jpg", ".jpeg"),
}
_DICOM = (".dcm", ".dicom")
_STORES = (*_KINDS["bags"], ".features.zarr")
_ENDINGS = sorted({".ome.tif", ".ome.tiff", ".ome.zarr", *(e for kind in _KINDS.values() for e in kind)}, key=len)
_ENDING = re.compile(f"({'|'.join(re.escape(ending) for ending in reversed(_ENDINGS))})$", re.IGNORECASE)
# A slide's name at TCGA: barcode, dot, UUID. Tables often have the barcode only.
_TCGA = re.compile(r"(TCGA-\w\w-\w{4}-\d\d[A-Z]-\d\d-\w+)\.[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SHOWN = 20


def stem_of_id(name: str) -> str:
    """Return an id or a file name without the ending of a slide, a bag, features or a picture.

    >>> stem_of_id("S2024.12.svs"), stem_of_id("S2024.12"), stem_of_id("a.OME.tif"), stem_of_id("a.bag.zarr")
    ('S2024.12', 'S2024.12', 'a', 'a')
    """
    return _ENDING.sub("", name) or name


def barcode_of(stem: str) -> str:
    """Return TCGA's barcode of a slide without the UUID after the first dot; other names unchanged.

    >>> barcode_of("TCGA-CR-7395-01Z-00-DX1.0a1b2c3d-1111-2222-3333-0123456789ab"), barcode_of("a.b")
    ('TCGA-CR-7395-01Z-00-DX1', 'a.b')
    """
    found = _TCGA.fullmatch(stem)
    return stem if found is None else found[1]


@dataclass
class FoundFiles:
    """The files of one kind below a folder, by the keys with which ids are compared, the more exact ones first."""

    folder: Path
    kind: str
    files: list[str]  # paths in the folder
    keys: list[dict[str, list[str]]] = field(default_factory=lambda: [defaultdict(list) for _ in range(6)])
    used: set[str] = field(default_factory=set)

    @classmethod
    def below(cls, folder: Path) -> FoundFiles:
        """Return the files of the first kind that a folder has: slides, bags, features, pictures."""
        if not folder.is_dir():
            raise ConfigError("{slides=} is no folder", slide=str(folder), remedy="pass the folder of the slides")
        kinds = _by_kind(folder)
        kind = next((kind for kind in _KINDS if kinds[kind]), "slides")
        whole = without_companions([folder / name for name in sorted(kinds[kind])])
        found = cls(folder, kind, [str(path)[len(str(folder)) :].lstrip("/") for path in whole])
        for path in found.files:
            found._add(path)
        return found

    def _add(self, path: str) -> None:
        inner, slash, name = path.rpartition("/")
        stem = stem_of_id(name)
        for number, key in enumerate((path, f"{inner}{slash}{stem}", name, stem, stem_of_id(stem))):
            self.keys[number][key].append(path)  # the last: a.svs.h5 is of a.svs, and of a
        if barcode_of(stem) != stem:
            self.keys[5][barcode_of(stem)].append(path)
        if inner and name.lower().endswith(_DICOM):  # the files of a folder are one slide
            parts = inner.split("/")
            above = {key for k in range(len(parts)) for key in (parts[k], "/".join(parts[: k + 1]))}
            for key in above:
                self.keys[4][key].append(path)

    def of(self, cell: str) -> list[str]:
        """Return the files of an id, one for each slide: usually one, none if there is none."""
        path, name = cell.replace("\\", "/"), file_name(cell)
        stem = stem_of_id(name)
        # Which key of files is compared with which form of the id, in this order; the first that is known decides.
        tries = [(0, path), (1, path), (2, name), (3, name), (3, stem), (4, name), (4, stem), (5, stem)]
        if barcode_of(stem) != stem:
            tries.append((3, barcode_of(stem)))
        for number, key in tries:
            found = self.keys[number].get(key)
            if found is not None:
                same_ending = [each for each in found if each.rpartition("/")[2].casefold() == name.casefold()]
                return self._slides_of(same_ending or found)
        return []

    def _slides_of(self, files: list[str]) -> list[str]:
        """Return one file for each slide: of a DICOM series the largest."""
        self.used.update(files)
        if len(files) == 1:
            return files
        inner = {path for series in dicom_series(self.folder / path for path in files) for path in series[1:]}
        return [path for path in files if self.folder / path not in inner]

    def use(self, path: Path) -> str | None:
        """Count a file as one that has a row, and return its path in the folder; None if it is elsewhere."""
        if not path.absolute().is_relative_to(self.folder):
            return None
        inner = path.absolute().relative_to(self.folder).as_posix()
        self.used.add(inner)
        return inner

    def hint(self, cell: str) -> str:
        """Return what is similar to an id without a file."""
        stem = stem_of_id(file_name(cell))
        stems = self.keys[3]
        for key in stems:
            if key.casefold() == stem.casefold():
                return f" ({key} differs in capitals)"
            if key.lstrip("0") == stem.lstrip("0") and key.lstrip("0"):
                return f" ({key} differs in leading zeros)"
        longer = [key for key in stems if key.startswith(stem)]
        return f" (the beginning of {len(longer)}, such as {longer[0]})" if longer else ""


def join_files(table: Table, folder: str | Path) -> Table:
    """Return a table whose slides are the files below a folder, found by their ids.

    A path that exists stays. Any other cell is compared with the files: first as a path in the folder, then as a name,
    without the ending of either, and as TCGA's barcode before a UUID; a beginning is never enough. Files without a row
    are listed in a warning.

    Raises
    ------
    ConfigError
        Ids without a file, with several, or two ids of one file; all together.
    """
    place = Path(folder).expanduser().absolute()
    join = _Join(FoundFiles.below(place), table.folder, _names(table.folder))
    rows = tuple(join.row(where, cells) for where, cells in zip(table.places, table.rows, strict=True))
    files, problems = join.files, join.all_problems()
    left = [path for path in files.files if path not in files.used]
    if problems or join.missing:
        raise _problem(table, files, problems, join.missing, left)
    if left and join.joined:  # with paths alone, the folder is for something else: pictures of the slides of bags
        reason = f"{place}: {len(left):,} of {len(files.files):,} {files.kind} are in no row: {listed(left)}"
        warn_caller(UnmatchedWarning(reason, names=left))
    header = table.header if "name" in table.header else (*table.header, "name")
    return replace(table, header=header, rows=rows)


@dataclass
class _Join:
    """The rows of a table so far, and what is wrong with them."""

    files: FoundFiles
    table_folder: Path
    beside: set[str]  # names in the table's folder
    problems: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)  # place and id
    rows_of: dict[str, list[tuple[str, str, bool]]] = field(default_factory=lambda: defaultdict(list))
    joined: bool = False

    def row(self, where: str, cells: dict[str, str]) -> dict[str, str]:
        """Return a row with the path of its file, if there is one."""
        cell, named = value_of(cells.get("slide", "")), value_of(cells.get("name", ""))
        if not cell:
            return cells
        if _exists(cell, self.table_folder, self.beside):
            inside = self.files.use(self.table_folder / Path(cell).expanduser())
            if inside is not None:
                self.rows_of[inside].append((where, cell, bool(named)))
            return cells
        self.joined = True
        found = self.files.of(cell)
        if len(found) == 1:
            self.rows_of[found[0]].append((where, cell, bool(named)))
            return cells | {"slide": str(self.files.folder / found[0]), "name": named or file_name(cell)}
        if found:
            listed_files = " and ".join(found[:3])
            self.problems.append(f'{where}: "{cell}" has {len(found)} {self.files.kind}: {listed_files}')
        else:
            self.missing.append((where, cell))
        return cells

    def all_problems(self) -> list[str]:
        """Return ids of several files, and files of several ids."""
        return [*self.problems, *(_twice(path, rows) for path, rows in self.rows_of.items() if _is_twice(rows))]


def _problem(
    table: Table, files: FoundFiles, problems: list[str], missing: list[tuple[str, str]], left: list[str]
) -> ConfigError:
    reasons = [*problems[:_SHOWN]] + ([f"and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else [])
    if missing:
        named = [f'{where} "{cell}"{files.hint(cell)}' for where, cell in missing[:_SHOWN]]
        named += [f"and {len(missing) - _SHOWN:,} more"] if len(missing) > _SHOWN else []
        reasons.append(f"{len(missing):,} of {len(table.rows):,} ids have no file below {files.folder}")
        reasons[-1] += f": {', '.join(named)}"
        reasons += [f"{len(left):,} {files.kind} there are in no row: {listed(left)}"] if left else []
    return ConfigError("; ".join(reasons), slide=table.where, remedy="correct the ids, or leave these rows out")


def listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of others."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _is_twice(found: Sequence[tuple[str, str, bool]]) -> bool:
    """Return whether rows of one file are not each named by the column "name"."""
    return len(found) > 1 and not all(named for *_, named in found)


def _twice(path: str, found: Sequence[tuple[str, str, bool]]) -> str:
    rows = " and ".join(f'{where} ("{cell}")' for where, cell, _ in found)
    return f"{rows} are both {path}" if len(found) == 2 else f"{rows} are all {path}"


def _exists(cell: str, folder: Path, beside: set[str]) -> bool:
    """Return whether a cell is already the path of a file, or of a store."""
    if "/" not in cell and cell not in beside:  # the usual case, without asking a server for each of 50,000 files
        return False
    try:
        path = folder / Path(cell).expanduser()
        return path.is_file() or (path.suffix.lower() == ".zarr" and path.is_dir())
    except (OSError, ValueError):
        return False


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _by_kind(folder: Path) -> dict[str, list[str]]:
    """Return the files below a folder by their kind; hidden ones, and those inside of a slide, are left out."""
    kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for place, folders, files in os.walk(folder):
        inner = place[len(str(folder)) :].lstrip("/")
        stores = [name for name in folders if name.lower().endswith(".zarr")]
        for name in _visible([*files, *stores]):
            kind = _kind_of(name)
            if kind is not None:
                kinds[kind].append(f"{inner}/{name}" if inner else name)
        names = set(files)
        folders[:] = [name for name in _visible(folders) if name not in stores and f"{name}.mrxs" not in names]
    return kinds


def _visible(names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if not name.startswith("."))


def _kind_of(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(_STORES):
        return "bags" if lower.endswith(_KINDS["bags"]) else "features"
    return next((kind for kind, endings in _KINDS.items() if lower.endswith(endings)), None)
