"""Find the slides among the files of a folder, a pattern or a list: one path per slide, also for several files."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from slideio_pipe.errors import PartsWarning, warn_caller
from slideio_pipe.slides.backends.companions import named_in_index
from slideio_pipe.slides.backends.dicom_header import Instance, base_first, read_instance

# Endings searched for in folders. Pictures are taken only where there is no slide, because masks and thumbnails are
# often stored beside slides; and of the first kind that there is, because masks of JPEGs are often PNG.
SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
_JPEG, _PNG = (".jpg", ".jpeg"), (".png",)
PICTURES = (*_JPEG, *_PNG)
_FOLDER_SLIDES = (".zarr",)
_ZARR = ("zarr.json", ".zgroup", ".zarray")
# Written by this package: bags and features are not slides when subfolders are searched.
_WRITTEN = (".bag.zarr", ".features.zarr")


def is_collection(source: Path) -> bool:
    """Return whether a path is a folder of slides, or a pattern such as ``raw/*.svs``; a zarr is neither."""
    if source.is_dir():
        return not _is_zarr(source)
    return not source.exists() and glob.has_magic(str(source))


def slides_in(source: Path) -> list[Path] | None:
    """Return the slides of a folder or of a pattern, in order, each once; None for anything else.

    If a folder has no slides, all its subfolders are searched; if there are none either, each JPEG of the folder is a
    slide, or each PNG if it has no JPEG. Warn with PartsWarning if subfolders were searched or contain slides that are
    left out, if several files are one slide, or if pictures of the other kind are left out.
    """
    found = files_in(source)
    return None if found is None else slides_of(found)


def files_in(source: Path) -> list[Path] | None:
    """Return the files of slides, like ``slides_in``, but all files of a slide."""
    if not is_collection(source):
        return None
    if not source.is_dir():
        return sorted(Path(path).absolute() for path in glob.glob(str(source), recursive=True))
    folder = source.absolute()
    with os.scandir(folder) as entries:
        files, inner = _slides_and_folders(entries)
    found = sorted(folder / name for name in files)
    if found:
        _warn_of_folders(folder, inner)
        return found
    found = sorted(_below(folder))
    if found:
        where = {path.parent for path in found}
        folders = f"{len(where)} folder{'' if len(where) == 1 else 's'}"
        summary = (
            f"{_count(len(found), 'file')} of slides {'is' if len(found) == 1 else 'are'} taken from {folders} below it"
        )
        warn_caller(PartsWarning(f"{folder}: no slides in it; {summary}"))
    return found or _pictures(folder)


def slides_of(paths: Sequence[Path]) -> list[Path]:
    """Return one path per slide: the largest file of a DICOM series, without files that belong to another slide.

    Warn with PartsWarning if several of the paths are one slide.
    """
    whole = without_companions(paths)
    series = dicom_series(whole)
    dropped = {path for files in series for path in files[1:]}
    kept = [path for path in whole if path not in dropped]
    if len(kept) < len(paths):
        many = f"{len(paths) - len(kept)} of {len(paths)} paths are parts of other slides"
        for_each = f", such as {series[0][1].name} of {series[0][0].name}" if series else ""
        warn_caller(PartsWarning(f"{many}{for_each}: each slide is taken once ({_count(len(kept), 'slide')})"))
    return kept


def without_companions(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that are not inside another slide or part of it: a zarr, MIRAX, VSI, Hamamatsu's VMS."""
    companions = set(_companions(paths))
    return [path for path in paths if path not in companions]


def dicom_series(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the DICOM slides that consist of several files, each as its files, the largest level first."""
    series: dict[tuple[Path, str], list[Instance]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        found = read_instance(path) if is_named_dicom(path) and path.is_file() else None
        if found is not None and found.series:
            series[path.parent, found.series].append(found)
    several = [sorted(files, key=base_first) for files in series.values() if len(files) > 1]
    return [[instance.path for instance in files] for files in several]


def is_named_dicom(path: Path) -> bool:
    """Return whether a file has a DICOM ending; the headers of other files are not read."""
    return path.suffix.lower() in (".dcm", ".dicom")


def _companions(paths: Sequence[Path]) -> Iterator[Path]:
    folders: set[Path] = set()
    zarrs: set[Path] = set()
    named: set[Path] = set()
    for path in paths:
        ending = path.suffix.lower()
        if ending == ".mrxs":
            folders.add(path.with_suffix(""))
        elif ending == ".vsi":
            folders.add(path.parent / f"_{path.stem}_")
        elif ending in (".vms", ".vmu"):
            named.update(path.parent / name for name in named_in_index(path, pixels_only=False))
        elif ending in _FOLDER_SLIDES and path.is_dir():
            zarrs.add(path)
    if not (folders or zarrs or named):  # the usual case, without hashing 50,000 paths and their parents
        return
    for path in paths:
        if path in named or path in folders or any(up in folders or up in zarrs for up in path.parents):
            yield path


def _below(folder: Path) -> Iterator[Path]:
    """Yield the slides of all subfolders; zarrs and MIRAX folders are not searched."""
    for place, folders, files in os.walk(folder):
        folder_path = Path(place)
        names = set(files)
        yield from (folder_path / name for name in files if not name.startswith(".") and _has_ending(name, SLIDES))
        zarrs = [name for name in folders if _has_ending(name, _FOLDER_SLIDES)]
        yield from (folder_path / name for name in zarrs if not name.endswith(_WRITTEN) and not name.startswith("."))
        companions = {name for name in folders if f"{name}.mrxs" in names}
        folders[:] = sorted(
            name for name in folders if name not in zarrs and name not in companions and not name.startswith(".")
        )


def _pictures(folder: Path) -> list[Path]:
    """Return the JPEGs of a folder, or its PNGs if it has no JPEG; warn of PNGs that are left out."""
    names = sorted(name for name in _names(folder) if not name.startswith("."))
    jpegs, pngs = ([name for name in names if _has_ending(name, endings)] for endings in (_JPEG, _PNG))
    if jpegs and pngs:
        left = f"{_count(len(pngs), 'PNG')} beside {_count(len(jpegs), 'JPEG')} {'is' if len(pngs) == 1 else 'are'}"
        warn_caller(PartsWarning(f"{folder}: {left} left out, as masks of them; '{folder}/*.png' is a pattern for all"))
    return [folder / name for name in jpegs or pngs]


def _slides_and_folders(entries: Iterable[os.DirEntry[str]]) -> tuple[list[str], list[str]]:
    """Return the names of slides, and of folders that are not slides; hidden ones are ignored."""
    slides, folders = [], []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        is_folder = entry.is_dir()
        if _has_ending(entry.name, _FOLDER_SLIDES if is_folder else SLIDES):
            slides.append(entry.name)
        elif is_folder:
            folders.append(entry.name)
    return slides, folders


def _warn_of_folders(folder: Path, inner: Sequence[str]) -> None:
    """Warn of slides in subfolders of a folder that has slides itself: they are left out."""
    count = 0
    for name in inner:
        if not (folder / f"{name}.mrxs").exists():
            count += sum(not n.startswith(".") and _has_ending(n, SLIDES) for n in _names(folder / name))
    if count:
        more = f"{_count(count, 'file')} of slides in folders below it {'is' if count == 1 else 'are'} left out"
        warn_caller(PartsWarning(f"{folder}: {more}; '{folder}/**/*.svs' is a pattern for all"))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _has_ending(name: str, endings: tuple[str, ...]) -> bool:
    return name.lower().endswith(endings)


def _is_zarr(folder: Path) -> bool:
    return folder.suffix.lower() in _FOLDER_SLIDES or any((folder / name).exists() for name in _ZARR)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
