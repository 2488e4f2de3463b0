"""Write the tissue masks of a cohort to files that can be corrected, and a manifest with these masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import SUFFIX, bag_name
from slideio_pipe.cohort.records import Records
from slideio_pipe.cohort.run import RunReport, run_cohort
from slideio_pipe.cohort.table import TABLES
from slideio_pipe.cohort.workers.pool import OnProgress
from slideio_pipe.errors import ConfigError, NoTissueError, OutputExistsError, SlideioPipeError
from slideio_pipe.export.config import ExportConfig, export_config
from slideio_pipe.progress import Report
from slideio_pipe.slides.frames import Frame, frame_corner
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.tiles.find_tissue import find_tissue
from slideio_pipe.tiles.own_tissue import method_fingerprint

FORMATS = ("geojson", "png")
# Ledger entry for an mpp that the slide's file does not state: its mask is valid only with that mpp.
_MPP = "slide_mpp"


@dataclass(frozen=True)
class TissueWork:
    """The tissue masks of a cohort's slides."""

    folder: Path
    config: ExportConfig
    form: str = "geojson"
    on_error: str = "raise"  # not a setting: a mask of an undamaged slide is the same with both
    frame: Frame = "qupath"  # frame of GeoJSON

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the masks depend on."""
        known = self.config.model_dump(mode="json")
        frame = {} if self.frame == "qupath" else {"frame": self.frame}
        own = method_fingerprint(self.config.tissue.method)
        return {"slide": known["slide"], "tissue": known["tissue"], "format": self.form} | frame | own

    def output(self, slide: CohortSlide) -> Path:
        """Return the mask of a slide, named after the slide in the cohort, without its ending."""
        return self.folder / f"{bag_name(slide.name).removesuffix(SUFFIX)}.{self.form}"

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Find the tissue of a slide and write it."""
        assert isinstance(slide.source, Path)
        on_stage("open")
        how = self.config.slide
        with open_slide(slide.source, **how.in_cohort(slide.mpp), backend=how.backend) as opened:
            from_settings = slide.mpp is None and opened.mpp_source.endswith("argument")
            on_stage("tissue")
            mask = find_tissue(opened, **self.config.tissue.model_dump(), on_error=self.on_error)
        if mask.is_empty:
            remedy = "look at the slide; try another method of finding tissue, or draw a mask"
            raise NoTissueError("no tissue found", slide=slide.name, remedy=remedy)
        on_stage("write")
        target = self.output(slide)
        if self.form == "png":
            mask.to_png(target, overwrite=overwrite)
        else:
            mask.to_geojson(target, overwrite=overwrite, frame=self.frame)
        made = {"mask": str(target), "tissue": round(mask.fraction, 4), "method": mask.method}
        return made | ({_MPP: how.slide_mpp} if from_settings else {})

    def recall(self, slide: CohortSlide) -> dict[str, Any]:
        """Return the entries of a mask that was written before a kill; warn as when the slide was opened for it."""
        assert isinstance(slide.source, Path)
        how = self.config.slide
        open_slide(slide.source, **how.in_cohort(slide.mpp), backend=how.backend).close()
        return {"mask": str(self.output(slide))}


def tissue_cohort(
    cohort: Any,
    out: str | Path,
    config: ExportConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    form: str = "geojson",
    manifest: str | Path | None = None,
    workers: int = 1,
    time_limit_s: float | None = None,
    memory_limit_gb: float | None = None,
    overwrite: bool = False,
    retry: bool = False,
    on_error: str = "raise",
    frame: Frame = "qupath",
    cluster: str | Path | None = None,
    progress: Report | bool | None = None,
) -> RunReport:
    """Write the tissue mask of every slide of a cohort; run it again to continue after a stop.

    Correct the masks (GeoJSON opens in QuPath) and export with ``manifest``: the export then uses them. An existing
    mask is not computed again, so corrections are kept. Slides with a mask in the cohort keep it.

    Parameters
    ----------
    cohort : path, list or Cohort
        A manifest, a folder, a pattern or a list of slides; see ``Cohort.of``.
    out : str or Path
        The folder of the masks, ``<name>.geojson``, of ``run.json`` and of ``failures.csv``.
    config : ExportConfig, path of a YAML file, name of a preset or dict, optional
        Its sections slide and tissue are used; mpp of a slide comes from the cohort.
    form : "geojson" or "png"
        Outlines, or a grey picture of the whole slide.
    manifest : str or Path, optional
        A CSV or Parquet file to write: the cohort with its masks in the column "mask", empty without a mask.
    workers, time_limit_s, memory_limit_gb, retry, cluster, progress
        As for ``export_cohort``.
    overwrite : bool
        Replace masks of other settings, corrected or not, and another manifest.
    on_error : {"raise", "white"}
        "white" treats undecodable places as glass.
    frame : {"qupath", "level0"}
        Origin of coordinates in GeoJSON; see ``TissueMask.to_geojson``.

    Returns
    -------
    RunReport

    Raises
    ------
    ConfigError
        The cohort has errors, listed together; or masks of other settings exist.
    OutputExistsError
        ``manifest`` exists, and is the cohort itself or one of other slides.
    OutputError
        Another run writes into this folder, or the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from slideio_pipe.synthetic.slide import write_synthetic_slide
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_synthetic_slide(folder / "a.svs", size=(2048, 1536), seed=3)
    >>> report = tissue_cohort(folder, folder / "masks", manifest=folder / "corrected.csv")
    >>> report.done, Cohort.of(folder / "corrected.csv")[0].mask.name
    (1, 'a.geojson')
    """
    if form not in FORMATS:
        raise ConfigError(f"no mask is called {form!r}", remedy=f"pass {' or '.join(FORMATS)}")
    slides, folder = Cohort.of(cohort), Path(out).expanduser().absolute()
    target = None if manifest is None else Path(manifest).expanduser()
    if target is not None:
        _check_manifest(target, cohort, slides, overwrite)
    frame_corner(frame, None)
    work = TissueWork(folder, export_config(config), form, on_error, frame)
    report = run_cohort(
        work,
        Cohort.unchecked(slide for slide in slides if slide.mask is None),
        folder,
        workers=workers,
        time_limit_s=time_limit_s,
        memory_limit_bytes=None if memory_limit_gb is None else round(memory_limit_gb * 1e9),
        overwrite=overwrite,
        retry=retry,
        cluster=cluster,
        progress=progress,
    )
    if target is not None:
        failed = {failure.slide for failure in report.failed}
        with_masks(slides, work, failed).write(target)
    return report


def with_masks(slides: Cohort, work: TissueWork, failed: set[str]) -> Cohort:
    """Return the cohort with the masks of this and earlier runs, and with the mpp used from the settings."""
    mpps = {record.slide: record.made[_MPP] for record in Records(work.folder) if _MPP in record.made}
    return Cohort.unchecked(
        replace(slide, mask=work.output(slide), mpp=mpps.get(slide.name, slide.mpp))
        if slide.mask is None and slide.name not in failed and work.output(slide).exists()
        else slide
        for slide in slides
    )


def _check_manifest(target: Path, cohort: Any, slides: Cohort, overwrite: bool) -> None:
    """Refuse to overwrite the cohort itself, or a file that is not a manifest of these slides."""
    if target.suffix.lower() not in TABLES:
        raise ConfigError("is no table", slide=str(target), remedy="end the manifest in .csv, .tsv, .xlsx or .parquet")
    if overwrite or not target.exists():
        return
    remedy = "pass {overwrite=True} or another name for the manifest"
    if isinstance(cohort, str | Path) and Path(cohort).expanduser().exists() and target.samefile(Path(cohort)):
        raise OutputExistsError("is the cohort itself", slide=str(target), remedy=remedy)
    try:
        same = [slide.name for slide in Cohort.of(target)] == [slide.name for slide in slides]
    except SlideioPipeError:
        same = False
    if not same:
        raise OutputExistsError("is there already, and lists other slides", slide=str(target), remedy=remedy)
