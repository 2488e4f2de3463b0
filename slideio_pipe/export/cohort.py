"""Export the slides of a cohort to bags on disk, in worker processes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import bag_name
from slideio_pipe.cohort.patient_files import PatientFiles, check_patient_names, write_patient_files
from slideio_pipe.cohort.patients import by_patient
from slideio_pipe.cohort.report_page import picture_file
from slideio_pipe.cohort.run import RunReport, run_cohort
from slideio_pipe.cohort.workers.pool import OnProgress
from slideio_pipe.cores import decoding_threads
from slideio_pipe.errors import SlideioPipeWarning
from slideio_pipe.export.config import ExportConfig, export_config
from slideio_pipe.export.preview import overview
from slideio_pipe.export.slide import Exported, export_slide
from slideio_pipe.files import make_folder, write_file
from slideio_pipe.progress import Report
from slideio_pipe.slides.frames import Frame, frame_corner
from slideio_pipe.slides.slide import Slide, open_slide
from slideio_pipe.store import StoredBag
from slideio_pipe.store.failed_tiles import check_store_on_error
from slideio_pipe.tiles.marks.annotation_marks import class_names
from slideio_pipe.tiles.own_tissue import method_fingerprint
from slideio_pipe.tiles.tile_bag import TileBag

# Numbers of an export that a bag does not store.
_UNKNOWN = ("seconds", "tiles_per_second", "tissue_covered")


@dataclass(frozen=True)
class ExportWork:
    """The export of a cohort's slides to bags."""

    folder: Path
    config: ExportConfig
    threads: int
    allow_empty: bool = False
    on_error: str = "raise"  # not a setting: a bag without damaged tiles is the same with both
    mask_frame: Frame | None = None  # frame of the masks in the cohort
    cell_classes: tuple[str, ...] | None = None  # of the cohort's cells

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the bags depend on."""
        frame = {} if self.mask_frame is None else {"mask_frame": self.mask_frame}
        # Without the unit: the bags of slides are the same with both.
        config = self.config.model_dump(mode="json", exclude={"unit"})
        own = method_fingerprint(self.config.tissue.method)
        classes = {} if self.cell_classes is None else {"cell_classes": [*self.cell_classes]}
        return config | {"allow_empty": self.allow_empty} | frame | own | classes

    def output(self, slide: CohortSlide) -> Path:
        """Return the bag of a slide, named after the slide in the cohort."""
        return self.folder / bag_name(slide.name)

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Export a slide."""
        assert isinstance(slide.source, Path)
        mpps = self.config.slide.in_cohort(slide.mpp)
        own = self.config.slide.model_copy(update={"slide_mpp": mpps["slide_mpp"]})
        config = self.config.model_copy(update={"slide": own})
        done = export_slide(
            slide.source,
            self.output(slide),
            config,
            label=slide.label,
            default_mpp=mpps["default_mpp"],
            patient=slide.patient,
            tissue_file=slide.mask,
            mask_frame=self.mask_frame,
            cell_file=slide.cell_file,
            cell_classes=self.cell_classes,
            overwrite=overwrite,
            allow_empty=self.allow_empty,
            on_error=self.on_error,
            threads=self.threads,
            progress=False,
            on_stage=on_stage,
            on_plan=partial(self._draw, slide.name),
        )
        done.bag.close()
        return done.summary() | ({} if slide.mpp is None else {"mpp_source": "the cohort"})

    def recall(self, slide: CohortSlide) -> dict[str, Any]:
        """Return the entries of a bag that was written before a kill; warn as when the slide was opened for it."""
        assert isinstance(slide.source, Path)
        open_slide(slide.source, **self.config.slide.in_cohort(slide.mpp), backend=self.config.slide.backend).close()
        with StoredBag(self.output(slide)) as bag:
            known = Exported(bag, math.nan, math.nan).summary()
        known |= {} if slide.mpp is None else {"mpp_source": "the cohort"}
        return {key: value for key, value in known.items() if key not in _UNKNOWN}

    def join_patients(
        self, cohort: Cohort, *, done: Collection[str], fresh: Collection[str], overwrite: bool
    ) -> PatientFiles | None:
        """Write the file of each patient whose slides are all done; nothing with the unit slide."""
        if self.config.unit == "slide":
            return None
        rows = by_patient(cohort)
        return write_patient_files(self.folder, rows, self.output, done=done, fresh=fresh, overwrite=overwrite)

    def _draw(self, name: str, slide: Slide, bag: TileBag) -> None:
        """Draw the slide for the report, before its bag is written: so a bag written before a kill has its picture."""
        try:
            drawn = io.BytesIO()
            overview(slide, bag).save(drawn, "JPEG", quality=82)
            file = picture_file(self.folder, name)
            make_folder(file.parent)
            write_file(file, drawn.getvalue(), overwrite=True)
        except Exception as error:  # any error: the tiles may still be valid
            warnings.warn(SlideioPipeWarning(f"no picture for the report ({error})"), stacklevel=2)
            slide.renew()  # libvips would return an undecodable tile as black afterwards


def export_cohort(
    cohort: Any,
    out: str | Path,
    config: ExportConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    workers: int = 1,
    threads: int | None = None,
    time_limit_s: float | None = None,
    memory_limit_gb: float | None = None,
    overwrite: bool = False,
    retry: bool = False,
    allow_empty: bool = False,
    on_error: str = "raise",
    mask_frame: Frame | None = None,
    cell_classes: Sequence[str] | None = None,
    cluster: str | Path | None = None,
    progress: Report | bool | None = None,
) -> RunReport:
    """Write the tissue tiles of every slide of a cohort into a bag; run it again to continue after a stop.

    A slide that fails does not stop the others: it is listed in ``out/failures.csv`` with the stage, the error and the
    remedy. ``out/report.html`` shows every slide with its tissue, its tiles and its numbers, worst first.

    With ``unit: patient`` each patient whose slides all have bags also gets ``out/<patient>.patient.json``, a small
    file that names these bags; ``open_bag`` returns it as a ``PatientBag``. The bags are the same with both units.

    Parameters
    ----------
    cohort : path, list or Cohort
        A manifest, a folder, a pattern or a list of slides; see ``Cohort.of``.
    out : str or Path
        The folder of the bags, ``<name>.bag.zarr``, and of ``report.html``, ``run.json`` and ``failures.csv``.
    config : ExportConfig, path of a YAML file, name of a preset such as ``"uni-224"`` or dict, optional
        Resolution, tissue, grid and codec; mpp and mask of a slide come from the cohort.
    workers : int
        Number of processes. In a script, call it below ``if __name__ == "__main__":``.
    threads : int, optional
        Per worker; by default the cores are divided, and it is one on a cluster, which has one slide per core.
    time_limit_s : float, optional
        Limit per slide.
    memory_limit_gb : float, optional
        Limit per worker, resident (Linux).
    overwrite : bool
        Replace bags of other settings; bags of these settings are kept.
    retry : bool
        Retry slides that crashed two worker processes.
    allow_empty : bool
        Write empty bags for slides without tissue, instead of listing them as failed.
    on_error : {"raise", "white"}
        Handling of damaged slides; see ``export_slide``.
    mask_frame : {"qupath", "level0"}, optional
        Frame of the cohort's masks; see ``export_slide``.
    cell_classes : sequence of str, optional
        Classes of the cells in the files of the column "cell_file", by default all in each file; see ``export_slide``.
    cluster : str or Path, optional
        A Dask scheduler, ``tcp://host:8786``, or a YAML file like the preset ``slurm``, instead of ``workers``
        processes of this machine. Slides and ``out`` must be on a disk that all see under the same path.
    progress : callable, bool or None
        See ``progress.reporting``; counts slides.

    Returns
    -------
    RunReport

    Raises
    ------
    ConfigError
        The cohort has errors, listed together; with ``unit: patient`` also if slides of a patient have several labels,
        or a patient is no name for a file; or bags of other settings exist.
    OutputError
        Another run writes into this folder, or the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe.synthetic.slide import write_synthetic_slide
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_synthetic_slide(folder / "a.svs", size=(2048, 1536), seed=3)
    >>> report = export_cohort(folder, folder / "bags")
    >>> report.done, report.failures, sorted(path.name for path in report.folder.glob("*.zarr"))
    (1, None, ['a.bag.zarr'])
    """
    check_store_on_error(on_error)
    classes = None if cell_classes is None else tuple(class_names(cell_classes, None) or ())
    frame_corner(mask_frame or "qupath", None)
    slides, settings = Cohort.of(cohort), export_config(config)
    folder = Path(out).expanduser().absolute()
    if settings.unit == "patient":
        check_patient_names(folder, by_patient(slides))
    if threads is None:
        threads = 1 if cluster is not None else decoding_threads(workers)
    return run_cohort(
        ExportWork(folder, settings, threads, allow_empty, on_error, mask_frame, classes),
        slides,
        folder,
        workers=workers,
        time_limit_s=time_limit_s,
        memory_limit_bytes=None if memory_limit_gb is None else round(memory_limit_gb * 1e9),
        overwrite=overwrite,
        retry=retry,
        cluster=cluster,
        progress=progress,
    )
