"""Converts the bags of a study to the layouts of other tools; finished bags are kept, failed ones are listed.

A conversion of several bags keeps a ledger in ``<out>/.convert-<layout>``, as an export does.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.ledger import Entry, Ledger
from slideio_pipe.cohort.names import file_stem
from slideio_pipe.cohort.run import Job, Run, RunReport, Task
from slideio_pipe.cohort.slide_files import is_collection
from slideio_pipe.cohort.table import is_table
from slideio_pipe.cohort.workers.pool import OnProgress, ThisProcess, WorkerPool
from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import ConfigError, OutputExistsError, SkippedWarning, SlideioPipeError, warn_caller
from slideio_pipe.export.layouts.feature_input import ENDINGS
from slideio_pipe.export.layouts.item import BagRow, Item, LabelType, Layout, Normalizer, described, write_item
from slideio_pipe.export.layouts.registry import UNNAMED, Converted, Extras, Sources, layout_of, layout_settings
from slideio_pipe.files import file_fingerprint
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store import StoredBag
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.tiles.bag import Bag, Label, patient_of
from slideio_pipe.tiles.failures import TileFailure

_NOTHING = np.empty((0, 0), np.float32)  # placeholder of features where only their presence matters


def convert(
    bags: Sources | Cohort,
    to: str | Layout,
    out: str | Path,
    *,
    features: Any = None,
    encoder: str = UNNAMED,
    instance_labels: Any = None,
    normalize: Normalizer | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
    progress: Report | bool | None = None,
) -> Converted:
    """Write bags in the layout of another tool; a second call resumes a stopped conversion of several bags.

    Parameters
    ----------
    bags : bag, path, several of them, or Cohort
        ``TileBag``, ``StoredBag`` or the ``.bag.zarr`` of one; a folder or a pattern of them, or a CSV or Parquet file
        with bags in the column "slide", as ``Cohort.of`` takes it: its names and labels, if any, replace the bags' own.
    to : "clam", "clam-pixels", "trident", "stamp", "torchmil", "webdataset", "memmap" or "hf", str or Layout
        Coordinates for CLAM and TRIDENT; features for STAMP; pixels, or features where they are given, for torchmil;
        pixels for CLAM's older bags, WebDataset, TensorDict and Hugging Face datasets. WebDataset and Hugging Face
        keep the bytes of a bag that is stored as JPEG.
        Your own: a ``Layout``, the import path of one, ``my_module:MyLayout``, or the name that an installed package
        gives it (entry points ``slideio_pipe.layouts``).
    out : str or Path
        The output folder, which the other tool reads.
    features : array, str or Path, optional
        (N, D) in the order of the bag: an array or a file (.npy, .pt, .h5) for one bag, or the folder of
        ``<slide>.npy``, ``.pt`` or ``.h5``.
    encoder : str
        Name of the encoder of the features; names their folder. Without ``features``, the features stored under this
        name in each bag are used.
    instance_labels : array, str or Path, optional
        For torchmil: (N,) whole numbers, from an array or a file (.npy) for one bag, or the folder of ``<slide>.npy``.
    normalize : Normalize, optional
        For memmap: pixels are written normalised, float16, each value rounded once as ``stream`` does;
        ``normalize.json`` beside them has mean and deviation.
    overwrite : bool
        Whether to replace existing files. Of several bags, those that are unchanged are kept in any case.
    workers : int, optional
        Number of processes, for several bags; by default this process. In a script, call it below
        ``if __name__ == "__main__":``.
    threads : int, optional
        Number of decoding threads; by default one per core, 8 at most, divided among the processes.
    root : str or Path, optional
        A folder that must contain every bag of a study, after symbolic links are resolved.
    progress : callable, bool or None
        Called as ``progress(done_tiles, total_tiles)`` after each bag; see ``save_bag``.

    Returns
    -------
    Converted
        If some of several bags fail, the others are converted: the failed ones are in ``failed`` and listed in
        ``<out>/.convert-<layout>/failures.csv``, and a warning is issued.

    Raises
    ------
    ConfigError
        The layout is unknown, two bags have the same name, or a single bag does not fit the layout. Nothing is
        written then.
    OutputExistsError
        The output of a single bag already exists.
    MissingExtraError
        A package that the layout needs is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe import TileBag, TileGrid, open_slide
    >>> view = open_slide(np.full((300, 500, 3), 7, np.uint8), slide_mpp=0.5).view()
    >>> bag = TileBag(view, TileGrid(view, tile_size=100), label=1)
    >>> done = convert(bag, "torchmil", tempfile.mkdtemp())
    >>> [f"{path.parent.name}/{path.name}" for path in done.paths]
    ['features/array.npy', 'coords/array.npy', 'labels/array.npy']
    """
    extras = Extras(to, features, encoder, instance_labels, normalize)
    layout, folder = layout_of(to), Path(out).expanduser().absolute()
    if workers is not None:
        _check_sendable(extras)
    study = _study(bags, root)
    if threads is None:
        threads = decoding_threads((workers or 1) if isinstance(study, list) else 1)
    if not isinstance(study, list):
        with _opened(study) as bag:
            return _convert_alone(bag, layout, folder, extras, threads, overwrite, progress)
    found, refused = _look_at(study, layout, folder, extras)
    left_out = tuple(each.row.name for each in found if layout.leaves_out_empty and not each.tiles)
    written = [each for each in found if each.tiles or not layout.leaves_out_empty]
    work = ConvertWork(folder, extras, threads, label_type(each.row.label for each in found))
    pool = ThisProcess(Task(work, folder)) if workers is None else WorkerPool(Task(work, folder), workers)
    with Ledger(folder / f".convert-{extras.name}") as ledger:
        run = _ConvertRun(
            work, Cohort.unchecked(written), ledger, RunReport(ledger.folder, len(study)), overwrite, False
        )
        ledger.begin(work.settings)
        for name, error in refused:
            run.fail(name, "open", error)
        with reporting(progress, f"converting to {extras.name}") as report:
            run.go(pool, {"workers": workers or 1}, report)
        failed = {failure.slide for failure in run.report.failed[len(refused) :]}
        done = [each for each in written if each.name not in failed]
        shared = layout.finish([each.row for each in done], folder) if done else []
    if left_out:
        _warn_of_empty(extras.name, left_out)
    failures = tuple(TileFailure(failure.slide, failure.error) for failure in run.report.failed)
    if failures:
        listed = run.report.failures
        what = f"{len(failures):,} of {len(study):,} bags could not be converted, such as {failures[0]} (all: {listed})"
        warn_caller(SkippedWarning(what))
    paths = (*(path for each in done for path in each.paths), *shared)
    tiles, kept = sum(each.tiles for each in done), run.report.kept
    return Converted(extras.name, paths, len(done), tiles, left_out, kept, failures, run.report.failures)


def _convert_alone(
    bag: Bag,
    layout: Layout,
    folder: Path,
    extras: Extras,
    threads: int,
    overwrite: bool,
    progress: Report | bool | None,
) -> Converted:
    """Convert one bag without a ledger; errors are raised."""
    row, tiles = BagRow(file_stem(bag.name), bag.name, bag.label, patient_of(bag)), len(bag)
    item = extras.item(bag, row, label_type([bag.label]), threads, many=False)
    if layout.leaves_out_empty and not tiles:
        _warn_of_empty(extras.name, (bag.name,))
        return Converted(extras.name, (), 0, 0, (bag.name,))
    paths = layout.outputs(item, folder)  # raises if the bag does not fit the layout
    there = [path for path in paths if os.path.lexists(path)]
    if there and not overwrite:
        raise _is_there(there)
    with reporting(progress, f"converting to {extras.name}") as report:
        report(0, tiles)
        write_item(layout, item, folder)
        report(tiles, tiles)
    return Converted(extras.name, (*paths, *layout.finish([row], folder)), 1, tiles, ())


def _study(bags: Any, root: str | Path | None) -> list[CohortSlide] | Bag | str | Path:
    """Return the bags of a study, or the one bag that was given."""
    if isinstance(bags, Bag):
        return bags
    if isinstance(bags, str | Path):
        path = Path(bags).expanduser()
        is_one = is_bag_store(path) or (not is_collection(path) and not is_table(path))
        return bags if is_one and root is None else list(Cohort.of(path, root=root))
    if isinstance(bags, Cohort):
        return list(Cohort.of(bags, root=root))
    given = list(bags)
    if not given:
        raise ConfigError("no bag to convert", remedy="pass bags, or paths of .bag.zarr folders")
    if len(given) == 1 and not isinstance(given[0], CohortSlide):
        return _study(given[0], root)
    if root is not None:
        return list(Cohort.of(given, root=root))
    return [_as_slide(each) for each in given]


def _as_slide(each: Any) -> CohortSlide:
    if isinstance(each, CohortSlide):
        return each
    if isinstance(each, Bag):
        return CohortSlide(each, each.name)
    path = Path(each).expanduser().absolute()
    return CohortSlide(path, path.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StudyBag(CohortSlide):
    """A bag that was opened once, and what its conversion depends on (about 1 KB); its name is its stem."""

    row: BagRow
    tiles: int
    digest: str  # of the bag, its features and its labels
    paths: tuple[Path, ...]  # its outputs


@dataclass(frozen=True)
class ConvertWork:
    """The conversion of the bags of a study."""

    folder: Path
    extras: Extras
    threads: int
    kind: LabelType  # of the labels of all bags together

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the files depend on."""
        layout = layout_of(self.extras.to)
        joined: dict[str, Any] = {"label_type": self.kind} if layout.joins_labels else {}
        joined |= {"version": layout.version} if layout.version > 1 else {}
        joined |= {"normalize": described(self.extras.normalize)} if self.extras.normalize is not None else {}
        return layout_settings(self.extras.to) | {"encoder": self.extras.encoder} | joined

    def output(self, slide: CohortSlide) -> Path:
        """Return the first file or folder of a bag."""
        assert isinstance(slide, _StudyBag)
        return slide.paths[0]

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Write the files of a bag; ``_ConvertRun.job`` has checked whether they may be replaced."""
        assert isinstance(slide, _StudyBag)
        del overwrite
        on_stage("convert")
        with _opened(slide.source) as bag:
            item = self.extras.item(bag, slide.row, self.kind, self.threads, many=True)
            write_item(layout_of(self.extras.to), item, self.folder)
        return {"tiles": slide.tiles}


class _ConvertRun(Run):
    """A run over bags: a bag has several files and may be in memory; files of other settings fail that bag only."""

    def job(self, slide: CohortSlide) -> Job | None:
        """Return the job of a bag; None if it is already converted or has failed."""
        assert isinstance(slide, _StudyBag)
        digest = hashlib.sha256(json.dumps(self.work.settings, sort_keys=True).encode()).hexdigest()[:16]
        now, known = Entry("start", digest, slide.digest), self.ledger.entries.get(slide.name)
        there = [path for path in slide.paths if os.path.lexists(path)]
        same = known is not None and (known.settings, known.fingerprint) == (now.settings, now.fingerprint)
        if known is not None and same and known.event == "done" and len(there) == len(slide.paths):
            self.report.kept += 1
            return None
        ours = known is not None and not known.replaces and (same or known.event == "start")
        if there and not ours and not self.overwrite:
            other = known is not None and known.event != "start"
            self.fail(
                slide.name,
                "open",
                _is_there(there, "is of another bag, or was made with other settings" if other else None),
            )
            return None
        return Job(slide, replace(now, replaces=bool(there) and not ours), self.overwrite)

    def weight(self, slide: CohortSlide) -> int:
        """Return the number of tiles."""
        assert isinstance(slide, _StudyBag)
        return slide.tiles

    def write_page(self, numbers: Mapping[str, Any]) -> None:
        """Write no page: the pages of the bags' own folders have the same content."""


def _look_at(
    study: Iterable[CohortSlide], layout: Layout, folder: Path, extras: Extras
) -> tuple[list[_StudyBag], list[tuple[str, SlideioPipeError]]]:
    """Open every bag once; return them, and the errors of those that cannot be converted.

    Raise ConfigError if two bags would be one file.
    """
    found: list[_StudyBag] = []
    refused: list[tuple[str, SlideioPipeError]] = []
    for slide in study:
        try:
            with _opened(slide.source) as bag:
                found.append(_study_bag(slide, bag, layout, folder, extras))
        except SlideioPipeError as error:
            refused.append((slide.name, error))
    twice = sorted(stem for stem, count in Counter(each.name for each in found).items() if count > 1)
    if twice:
        reason = f"several bags are called {', '.join(twice)}, and would be one file"
        raise ConfigError(reason, remedy="convert them into folders of their own")
    return found, refused


def _study_bag(slide: CohortSlide, bag: Bag, layout: Layout, folder: Path, extras: Extras) -> _StudyBag:
    own = isinstance(slide.source, Path) and slide.name != slide.source.name
    name, label = slide.name if own else bag.name, bag.label if slide.label is None else slide.label
    row = BagRow(file_stem(name), name, label, slide.patient or patient_of(bag))
    beside = None
    if extras.features is None:
        has = isinstance(bag, StoredBag) and extras.encoder in bag.encoders
        beside = bag.features(extras.encoder) if isinstance(bag, StoredBag) and has else None
        if not has:
            extras.item(bag, row, "int64", 1, many=True)  # raises if the encoder has no features
    shown = None if extras.features is None and beside is None else _NOTHING
    labels = None if extras.instance_labels is None else _NOTHING
    item = Item(bag, row.stem, shown, extras.encoder, row.label, "int64", 1, labels, row.patient)
    paths = tuple(layout.outputs(item, folder))
    digest = _digest(bag, row, beside, extras)
    return _StudyBag(
        slide.source, row.stem, row.label, patient=row.patient, row=row, tiles=len(bag), digest=digest, paths=paths
    )


def _digest(bag: Bag, row: BagRow, beside: Any, extras: Extras) -> str:
    pixels = bag.attributes["pixels"] if isinstance(bag, StoredBag) else None
    files = [_fingerprint(given, row.stem) for given in (extras.features, extras.instance_labels)]
    # Without a patient the row is hashed as in versions that had no patients, so that their conversions are kept.
    columns = list(row) if row.patient else list(row)[:-1]
    content = [bag.provenance(), list(bag.shape), pixels, columns, files]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for values in (bag.coords, bag.grid_index, bag.tissue):
        digest.update(np.ascontiguousarray(values).tobytes())
    if beside is not None:
        digest.update(np.ascontiguousarray(beside[:64]).tobytes() + np.ascontiguousarray(beside[-64:]).tobytes())
    return digest.hexdigest()[:16]


def _is_there(paths: Sequence[Path], reason: str | None = None) -> OutputExistsError:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    remedy = "pass {overwrite=True} or another folder"
    return OutputExistsError(reason or f"already exists{more}", slide=str(paths[0]), remedy=remedy)


def label_type(labels: Iterable[Label]) -> LabelType:
    """Return the type of a column that holds the labels of all bags."""
    types = {type(label) for label in labels}
    return "string" if str in types else "float64" if float in types else "int64"


def _check_sendable(extras: Extras) -> None:
    """Raise ConfigError if worker processes would not find a layout of a user."""
    try:
        pickle.dumps(extras.to)
    except Exception as error:  # whatever the object raises
        reason = f"the layout {extras.name} cannot be sent to worker processes"
        raise ConfigError(reason, remedy="make it a class of a module of your own, or leave {workers=} out") from error


def _warn_of_empty(to: str, names: Sequence[str]) -> None:
    warn_caller(SkippedWarning(f"{to} has no file for bags without a tile: {', '.join(names)}"))


def _opened(source: str | Path | Bag) -> Any:
    return nullcontext(source) if isinstance(source, Bag) else StoredBag(source)


def _fingerprint(source: Any, stem: str) -> str | None:
    """Return a fingerprint of a bag's file in the given folder of features or labels; None if there is none."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    files = [file for ending in ENDINGS if (file := path / f"{stem}{ending}").is_file()]
    return file_fingerprint(files[0]) if files else None
