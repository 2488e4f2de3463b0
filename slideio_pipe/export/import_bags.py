"""Import coordinates and pixels of other tools as bags, one file or the files of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.names import SUFFIX, file_stem
from slideio_pipe.cohort.run import RunReport, run_cohort
from slideio_pipe.cohort.slide_files import files_in, without_companions
from slideio_pipe.cohort.workers.pool import OnProgress
from slideio_pipe.errors import BagFormatError, ConfigError
from slideio_pipe.export.layouts import from_clam, from_trident
from slideio_pipe.export.layouts.clam_pixels import PixelFile
from slideio_pipe.export.slide import bag_path
from slideio_pipe.progress import Report
from slideio_pipe.slides.config import SlideConfig
from slideio_pipe.slides.slide import open_slide
from slideio_pipe.store import StoredBag, save_bag
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.tile_bag import TileBag


@dataclass(frozen=True)
class ImportWork:
    """The import of a study's files of coordinates or pixels as bags."""

    folder: Path
    source: str  # clam or trident
    slides: Path | None  # the slide, or the folder of slides; None for files with pixels
    sizes: Mapping[str, int | None] = field(default_factory=dict)  # tile_size and tile_size_level0
    slide_mpp: float | None = None  # replaces one slide's value; for several, used if they state none
    slide_mpp_override: bool = False  # replace the slides' values for several files, too
    pixels: str = "zstd"
    threads: int | None = None
    outside: str = "white"  # colour beyond the slide's edge

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the bags depend on."""
        return {
            "source": self.source,
            "slides": None if self.slides is None else str(self.slides.absolute()),
            "sizes": dict(self.sizes),
            "slide_mpp": self.slide_mpp,
            **({"slide_mpp_override": self.slide_mpp_override} if self.slide_mpp is not None else {}),
            "pixels": self.pixels,
            **({} if self.outside == "white" else {"outside": self.outside}),
        }

    def output(self, slide: CohortSlide) -> Path:
        """Return the bag of a file, named after the file."""
        return self.folder / f"{_stem(Path(slide.name))}{SUFFIX}"

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: OnProgress) -> dict[str, Any]:
        """Write the bag of a file."""
        assert isinstance(slide.source, Path)
        on_stage("tiles")
        mpps = SlideConfig(slide_mpp=self.slide_mpp, slide_mpp_override=self.slide_mpp_override).in_cohort(slide.mpp)
        how: dict[str, Any] = {"patient": slide.patient, "overwrite": overwrite, "progress": False, "mpps": mpps}
        with self.make(slide.source, self.output(slide), slide.label, **how) as bag:
            return {"bag": str(bag.path), "tiles": len(bag)}

    def make(
        self,
        file: Path,
        out: Path,
        label: Label = None,
        *,
        mpps: Mapping[str, float | None] | None = None,
        patient: str | None = None,
        overwrite: bool = False,
        progress: Report | bool | None = None,
    ) -> StoredBag:
        """Write the bag of one file, named after the slide if ``out`` is a folder.

        ``mpps`` are ``slide_mpp`` and ``default_mpp`` of ``open_slide``; by default ``slide_mpp`` of this import. Raise
        ConfigError if the tool is unknown, or no slide is named like the file.
        """
        readers: dict[str, Any] = {"clam": from_clam, "trident": from_trident}
        if self.source not in readers:
            raise ConfigError(f"no coordinates of {self.source!r}", remedy='pass {source="clam"} or {source="trident"}')
        how: dict[str, Any] = {"pixels": self.pixels, "overwrite": overwrite, "threads": self.threads}
        if self.slides is None:
            found = self._pixels(file, label, patient)
            target = out if out.suffix == ".zarr" else out / f"{_stem(file)}{SUFFIX}"
            return save_bag(found, target, progress=progress, **how)
        how_opened: dict[str, Any] = {"slide_mpp": self.slide_mpp} if mpps is None else dict(mpps)
        with open_slide(slide_of(file, self.slides), **how_opened) as slide:
            bag: TileBag = readers[self.source](file, slide, **self.sizes, label=label, outside=self.outside)
            bag.patient = patient
            return save_bag(bag, bag_path(slide, out), progress=progress, **how)

    def _pixels(self, file: Path, label: Label, patient: str | None) -> PixelFile:
        none = ConfigError("coordinates have no pixels", slide=str(file), remedy="pass {slides=…}")
        if self.source != "clam":
            raise none
        try:
            return PixelFile(file, label, self.slide_mpp, patient)
        except BagFormatError as error:
            raise none from error


def import_cohort(work: ImportWork, cohort: Cohort, **settings: Any) -> RunReport:
    """Write a bag for each file of a study; see ``run_cohort``."""
    return run_cohort(work, cohort, work.folder, **settings)


def slide_of(file: Path, slides: Path) -> Path:
    """Return the slide whose name a file of coordinates has; raise ConfigError if there is none, or more than one."""
    if not slides.is_dir() or slides.suffix == ".zarr":
        return slides
    stem = _stem(file)
    found = [path for path in without_companions(sorted(slides.iterdir())) if stem in (path.name, file_stem(path.name))]
    if not found:
        found = [path for path in files_in(slides) or () if stem in (path.name, file_stem(path.name))]
    if len(found) != 1:
        what = "no slide" if not found else f"{len(found)} slides"
        raise ConfigError(f"{what} in {slides} called {stem}", slide=str(file), remedy="pass {slide=…} with its path")
    return found[0]


def _stem(file: Path) -> str:
    return file.name.removesuffix(".h5").removesuffix(".hdf5").removesuffix("_patches")
