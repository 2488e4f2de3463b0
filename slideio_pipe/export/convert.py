"""The bags of a study to the layouts of other tools: what is done stays done, what fails is listed.

What a conversion of several bags has done is kept in ``<out>/.convert-<layout>``, a ledger as that of an export.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.ledger import Entry, Ledger
from slideio_pipe.cohort.names import stem_of
from slideio_pipe.cohort.slide_files import is_collection
from slideio_pipe.cohort.table import TABLES
from slideio_pipe.cohort.workers.pool import OnProgress, Outcome, WorkerPool
from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import (
    ConfigError,
    OutputError,
    OutputExistsError,
    SkippedWarning,
    SlideioPipeError,
    warn_caller,
)
from slideio_pipe.export.layouts.feature_input import ENDINGS
from slideio_pipe.export.layouts.item import BagRow, Item, LabelType, Layout, write_item
from slideio_pipe.export.layouts.registry import (
    UNNAMED,
    Converted,
    Extras,
    Sources,
    check_free,
    check_stems,
    label_type,
    layout_of,
    warn_of_empty,
)
from slideio_pipe.export.layouts.registry import convert as convert_alone
from slideio_pipe.files import file_fingerprint
from slideio_pipe.progress import Report, reporting
from slideio_pipe.store import StoredBag, open_bag
from slideio_pipe.store.layout import is_bag_store
from slideio_pipe.tiles.bag import Bag, patient_of
from slideio_pipe.tiles.failures import TileFailure

# So many bags in a row that cannot be written: it is the disk.
_UNWRITABLE = 3
_NOTHING = np.empty((0, 0), np.float32)  # stands for features where only their being given counts


def convert(
    bags: Sources | Cohort,
    to: str,
    out: str | Path,
    *,
    features: Any = None,
    encoder: str = UNNAMED,
    instance_labels: Any = None,
    overwrite: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    root: str | Path | None = None,
    progress: Report | bool | None = None,
) -> Converted:
    """Write bags in the layout of another tool; several go on where they were stopped when it is called again.

    Parameters
    ----------
    bags : bag, path, several of them, or Cohort
        ``TileBag``, ``StoredBag`` or the ``.bag.zarr`` of one; a folder or a pattern of them, or a CSV or Parquet file
        with bags in the column "slide", as ``Cohort.of`` takes it: its names and labels, where it has some, stand in
        place of the bags' own.
    to : "clam", "clam-pixels", "trident", "stamp", "torchmil", "webdataset", "memmap" or "hf"
        Coordinates for CLAM and TRIDENT; features for STAMP; pixels, or features where they are given, for torchmil;
        pixels for CLAM's older bags, WebDataset, TensorDict and Hugging Face datasets, the last of which take the JPEG
        of a bag that holds such, unchanged.
    out : str or Path
        The folder that the tool is given.
    features : array, str or Path, optional
        (N, D) in the order of the bag: an array or a file (.npy, .pt, .h5) for one bag, or the folder of
        ``<slide>.npy``, ``.pt`` or ``.h5``.
    encoder : str
        Whose features they are; names their folder. Without ``features``, those that lie beside the pixels of each
        bag under this name.
    instance_labels : array, str or Path, optional
        For torchmil: (N,) whole numbers, from an array or a file (.npy) for one bag, or the folder of ``<slide>.npy``.
    overwrite : bool
        Whether to replace files that are there. Of several bags, what is the same as before is kept all the same.
    workers : int, optional
        Processes, for several bags; by default this one. In a script, call it below ``if __name__ == "__main__":``.
    threads : int, optional
        Threads that decode; by default one per core, 8 at most, shared out between processes.
    root : str or Path, optional
        A folder that every bag of a study has to lie in, links followed.
    progress : callable, bool or None
        Called as ``progress(done_tiles, total_tiles)`` after each bag; see ``save_bag``.

    Returns
    -------
    Converted
        Of several bags, those that failed cost themselves only: they are in ``failed`` and listed in
        ``<out>/.convert-<layout>/failures.csv``, and a warning says so.

    Raises
    ------
    ConfigError
        An unknown layout, two bags of one name; one bag alone that the layout cannot hold. Nothing is written then.
    OutputExistsError
        One bag alone whose file is there already.
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
    extras = Extras(to, features, encoder, instance_labels)
    study = _study(bags, root)
    if not isinstance(study, list):
        given: dict[str, Any] = {"features": features, "encoder": encoder, "instance_labels": instance_labels}
        return convert_alone(study, to, out, **given, overwrite=overwrite, threads=threads, progress=progress)
    layout, folder = layout_of(to), Path(out).expanduser().absolute()
    if threads is None:
        threads = decoding_threads(workers or 1)
    conversion = _Conversion(layout, folder, extras, threads, overwrite)
    conversion.look_at(study)
    left_out = [each.row.name for each in conversion.bags if layout.leaves_out_empty and not each.tiles]
    conversion.bags = [each for each in conversion.bags if each.tiles or not layout.leaves_out_empty]
    with Ledger(folder / f".convert-{to}") as ledger:
        with reporting(progress, f"converting to {to}") as report:
            conversion.go(ledger, workers, report)
        shared = layout.finish([each.row for each in conversion.done], folder) if conversion.done else []
    if left_out:
        warn_of_empty(to, left_out)
    if conversion.failed:
        failed, listed = conversion.failed, ledger.folder / "failures.csv"
        what = f"{len(failed):,} of {len(study):,} bags could not be converted, such as {failed[0]} (all: {listed})"
        warn_caller(SkippedWarning(what))
    return Converted(
        to,
        (*(path for each in conversion.done for path in each.paths), *shared),
        len(conversion.done),
        sum(each.tiles for each in conversion.done),
        tuple(left_out),
        conversion.kept,
        tuple(conversion.failed),
        ledger.folder / "failures.csv" if conversion.failed else None,
    )


def _study(bags: Any, root: str | Path | None) -> list[CohortSlide] | Bag | str | Path:
    """Return the bags of a study, or the one bag that was given."""
    if isinstance(bags, Bag):
        return bags
    if isinstance(bags, str | Path):
        path = Path(bags).expanduser()
        is_one = is_bag_store(path) or (not is_collection(path) and path.suffix.lower() not in TABLES)
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


@dataclass(frozen=True, slots=True)
class _Known:
    """A bag that was looked at."""

    source: Path | Bag
    row: BagRow
    tiles: int
    digest: str  # of the bag and of what goes with it
    paths: tuple[Path, ...]  # its outputs


@dataclass(frozen=True, slots=True)
class _Job:
    """A bag that is to be converted."""

    bag: _Known
    entry: Entry
    kind: LabelType


@dataclass(frozen=True, slots=True)
class _Work:
    """Converts a bag, in whatever process."""

    folder: Path
    extras: Extras
    threads: int

    def __call__(self, job: _Job, on_stage: OnProgress) -> None:
        on_stage("convert")
        row = job.bag.row
        with _opened(job.bag.source) as bag:
            item = self.extras.item(bag, row, job.kind, self.threads, many=True)
            write_item(layout_of(self.extras.to), item, self.folder)


@dataclass(slots=True)
class _Conversion:
    layout: Layout
    folder: Path
    extras: Extras
    threads: int
    overwrite: bool
    bags: list[_Known] = field(default_factory=list)
    done: list[_Known] = field(default_factory=list)  # by this run or one before, in the order of the study
    kept: int = 0
    failed: list[TileFailure] = field(default_factory=list)
    kind: LabelType = "int64"
    _early: list[tuple[str, SlideioPipeError]] = field(default_factory=list)

    def look_at(self, study: Iterable[CohortSlide]) -> None:
        """Open every bag once and remember what its conversion depends on, a kilobyte for each."""
        for slide in study:
            try:
                self.bags.append(self._known(slide))
            except SlideioPipeError as error:
                self._early.append((slide.name, error))
        check_stems([each.row.stem for each in self.bags])
        self.kind = label_type(each.row.label for each in self.bags)

    def _known(self, slide: CohortSlide) -> _Known:
        with _opened(slide.source) as bag:
            own = isinstance(slide.source, Path) and slide.name != slide.source.name
            name = slide.name if own else bag.name
            label = bag.label if slide.label is None else slide.label
            row = BagRow(stem_of(name), name, label, slide.patient or patient_of(bag))
            given = None if self.extras.features is None else _NOTHING
            beside = bag.features(self.extras.encoder) if given is None and _has(bag, self.extras.encoder) else None
            labels = None if self.extras.instance_labels is None else _NOTHING
            shown = given if beside is None else _NOTHING
            encoder = self.extras.encoder
            item = Item(bag, row.stem, shown, encoder, row.label, "int64", 1, labels, row.patient)
            if given is None and beside is None:
                self.extras.item(bag, row, "int64", 1, many=True)  # refuses an encoder without any
            paths = tuple(self.layout.outputs(item, self.folder))
            return _Known(slide.source, row, len(bag), self._digest(bag, row, beside), paths)

    def _digest(self, bag: Bag, row: BagRow, beside: Any) -> str:
        pixels = bag.attributes["pixels"] if isinstance(bag, StoredBag) else None
        extras = [_fingerprint(given, row.stem) for given in (self.extras.features, self.extras.instance_labels)]
        # What was converted before the patient was known of any bag is the same, where it is still not known.
        said = list(row) if row.patient else list(row)[:-1]
        known = [bag.provenance(), list(bag.shape), pixels, said, extras]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        for values in (bag.coords, bag.grid_index, bag.tissue):
            digest.update(np.ascontiguousarray(values).tobytes())
        if beside is not None:
            digest.update(np.ascontiguousarray(beside[:64]).tobytes() + np.ascontiguousarray(beside[-64:]).tobytes())
        return digest.hexdigest()[:16]

    @property
    def settings(self) -> dict[str, Any]:
        """What all bags are converted with."""
        joined: dict[str, Any] = {"label_type": self.kind} if self.layout.joins_labels else {}
        joined |= {"version": self.layout.version} if self.layout.version > 1 else {}
        return {"layout": self.extras.to, "encoder": self.extras.encoder} | joined

    def go(self, ledger: Ledger, workers: int | None, progress: Report) -> None:
        """Convert what is not there yet, and note it."""
        ledger.begin(self.settings)
        for name, error in self._early:
            self._fail(ledger, name, "open", error)
        total, ended, unwritable = sum(each.tiles for each in self.bags), 0, 0
        done: set[str] = set()
        jobs = []
        for bag in self.bags:
            job = self._job(ledger, bag)
            jobs += [] if job is None else [job]
            if job is None:
                ended += bag.tiles
        done |= {each.row.stem for each in self.done}
        progress(ended, total)
        work = _Work(self.folder, self.extras, self.threads)
        with closing(_here(work, self._begun(ledger, jobs), workers)) as outcomes:
            for outcome in outcomes:
                job = outcome.task
                if outcome.error is None:
                    ledger.note(job.bag.row.stem, replace(job.entry, event="done"))
                    done.add(job.bag.row.stem)
                    unwritable = 0
                else:
                    self._fail(ledger, job.bag.row.stem, outcome.stage, outcome.error)
                    unwritable = unwritable + 1 if isinstance(outcome.error, OutputError) else 0
                    if unwritable >= _UNWRITABLE:
                        raise outcome.error
                ended += job.bag.tiles
                progress(ended, total)
        self.done = [each for each in self.bags if each.row.stem in done]

    def _begun(self, ledger: Ledger, jobs: Iterable[_Job]) -> Iterator[_Job]:
        for job in jobs:
            ledger.note(job.bag.row.stem, job.entry)
            yield job

    def _job(self, ledger: Ledger, bag: _Known) -> _Job | None:
        """Return what is to be done for a bag; None when that is nothing, or may not be."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        now, known = Entry("start", digest, bag.digest), ledger.entries.get(bag.row.stem)
        there = [path for path in bag.paths if os.path.lexists(path)]
        same = known is not None and (known.settings, known.fingerprint) == (now.settings, now.fingerprint)
        if known is not None and same and known.event == "done" and len(there) == len(bag.paths):
            self.done.append(bag)
            self.kept += 1
            return None
        ours = known is not None and not known.replaces and (same or known.event == "start")
        if there and not ours and not self.overwrite:
            try:
                check_free(there, overwrite=False)
            except OutputExistsError as error:
                other = "is of another bag, or was made with other settings"
                reason = error.reason if known is None or known.event == "start" else other
                self._fail(
                    ledger, bag.row.stem, "open", OutputExistsError(reason, slide=error.slide, remedy=error.remedy)
                )
            return None
        return _Job(bag, replace(now, replaces=bool(there) and not ours), self.kind)

    def _fail(self, ledger: Ledger, name: str, stage: str, error: SlideioPipeError) -> None:
        ledger.fail(name, stage, error)
        self.failed.append(TileFailure(name, error))


def _here(work: _Work, jobs: Iterator[_Job], workers: int | None) -> Generator[Outcome]:
    """Yield what became of each job: done in worker processes, or in this one."""
    if workers is not None:
        yield from WorkerPool(work, workers).outcomes(jobs)
        return
    for job in jobs:
        begun, error = time.perf_counter(), None
        try:
            work(job, lambda stage: None)
        except SlideioPipeError as caught:
            error = caught.with_traceback(None)
        yield Outcome(job, None, error, "convert", time.perf_counter() - begun)


def _opened(source: Path | Bag) -> Any:
    return open_bag(source) if isinstance(source, Path) else nullcontext(source)


def _has(bag: Bag, encoder: str) -> bool:
    return isinstance(bag, StoredBag) and encoder in bag.encoders


def _fingerprint(source: Any, stem: str) -> str | None:
    """Return what tells the features of a bag from others: of their file, which is in a folder."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    files = [file for ending in ENDINGS if (file := path / f"{stem}{ending}").is_file()]
    return file_fingerprint(files[0]) if files else None
