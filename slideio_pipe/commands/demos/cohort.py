"""``slideio-pipe demo --cohort``: a small study from slides to a report, with three intended failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.run import RunReport
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError, MissingExtraError
from slideio_pipe.export.cohort import export_cohort
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.export.convert import convert
from slideio_pipe.files import make_folder, write_file
from slideio_pipe.progress import reporting
from slideio_pipe.slides.config import ViewConfig
from slideio_pipe.synthetic.slide import write_synthetic_slide
from slideio_pipe.tiles.config import GridConfig

Say = Callable[[str], object]

MANIFEST = "cohort.csv"
LAYOUTS = ("clam", "torchmil", "webdataset")
_CONFIG = ExportConfig(view=ViewConfig(mpp=0.5), grid=GridConfig(tile_size=256, min_tissue=0.3))
_MPP = 0.25
_SMALLEST = (2048, 1536)
# One of each: a truncated copy, another file with a slide's name, glass without tissue.
_TRUNCATED, _NO_SLIDE, _GLASS = "truncated", "no-slide", "glass"


@dataclass(frozen=True, slots=True)
class _Plan:
    """A slide to make."""

    number: int
    name: str
    broken: str | None
    says_mpp: bool = True
    says_magnification: bool = True


def make_cohort(
    folder: str | Path,
    slides: int = 24,
    *,
    size: tuple[int, int] = _SMALLEST,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Make small slides of different sizes, stains and lesions, three of them broken, and return their manifest.

    Two slides each are of one patient. Some state no mpp: the manifest has it, or, for one, only the magnification is
    known. Existing files are kept.

    Parameters
    ----------
    folder : str or Path
        Folder for ``cohort.csv`` and ``slides/``.
    slides : int
        Number of slides, at least 8.
    size : (int, int)
        Width and height of the smallest, px at 0.25 µm; those of the largest are 1.75 and 1.5 times as large.
    progress : callable, optional
        Called with (slides done, slides in all).

    Raises
    ------
    ConfigError
        Too few slides.
    OutputError
        The folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> Cohort.of(make_cohort(tempfile.mkdtemp(), 8))
    Cohort(8 slides, labels 0 and 1)
    """
    if slides < 8:
        raise ConfigError(f"a cohort of {slides} slides", remedy="pass slides=8 or more")
    report, place = progress or (lambda done, total: None), Path(folder).expanduser() / "slides"
    make_folder(place)
    plans = list(_plans(slides))
    with ThreadPoolExecutor(min(4, usable_cores())) as threads:
        for done, _ in enumerate(threads.map(lambda plan: _make_slide(plan, place, size), plans), 1):
            report(done, slides)
    rows = [
        CohortSlide(
            place / plan.name,
            plan.name,
            label=int(_lesions(plan) > 0),
            mpp=None if plan.says_mpp or plan.says_magnification else _MPP,
            patient=f"P{plan.number // 2 + 1:02}",
        )
        for plan in plans
    ]
    return Cohort(rows).write(place.parent / MANIFEST)


def _plans(slides: int) -> Iterator[_Plan]:
    broken = {slides // 4: _TRUNCATED, slides // 2: _NO_SLIDE, 3 * slides // 4: _GLASS}
    for k in range(slides):
        kind = broken.get(k)
        silent, estimated = k % 8 == 3, k == 1
        name = f"S{k + 1:02}{f'-{kind}' if kind else ''}.svs"
        yield _Plan(k, name, kind, says_mpp=not (silent or estimated), says_magnification=not silent)


def _lesions(plan: _Plan) -> int:
    return 0 if plan.broken == _GLASS or plan.number // 2 % 2 else 1 + plan.number % 3


def _make_slide(plan: _Plan, folder: Path, smallest: tuple[int, int]) -> None:
    path = folder / plan.name
    if path.exists():
        return
    if plan.broken == _NO_SLIDE:
        write_file(path, b"<html>404 Not Found</html>\n", overwrite=False)
        return
    k = plan.number
    pieces = 0 if plan.broken == _GLASS else 1 + k % 3
    size = (smallest[0] * (4 + k % 4) // 4, smallest[1] * (4 + k // 2 % 3) // 4)
    # Under a temporary name until it is complete.
    whole = path.with_name(f".{plan.name}")
    write_synthetic_slide(whole, size=size, mpp=_MPP, seed=k, lesions=_lesions(plan), pieces=pieces, overwrite=True)
    content = whole.read_bytes()
    if not plan.says_mpp:
        content = content.replace(b"|MPP = ", b"|Xpp = ")
    if not plan.says_magnification:
        content = content.replace(b"|AppMag = ", b"|XppMag = ")
    if plan.broken == _TRUNCATED:
        content = content[: len(content) * 2 // 3]
    write_file(path, content, overwrite=True)
    whole.unlink()


def run_cohort_demo(
    folder: Path,
    *,
    slides: int = 24,
    size: tuple[int, int] = _SMALLEST,
    workers: int = 2,
    say: Say,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Make a cohort in ``folder``, export it, convert its bags, and report.

    Run it again to continue after an interruption, as with any export.

    Parameters
    ----------
    folder : Path
        Created if missing.
    slides, size
        As for ``make_cohort``.
    workers : int
        Number of export processes.
    say, progress
        As for ``run_demo``; so are the results.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    started = time.perf_counter()
    with reporting(progress, f"making {slides} slides") as report:
        manifest = make_cohort(folder, slides, size=size, progress=report)
    say(f"made {slides} small slides, 3 of them broken on purpose: {manifest} ({time.perf_counter() - started:.1f} s)")
    done = export_cohort(manifest, folder / "bags", _CONFIG, workers=workers, progress=progress)
    say(
        f"exported {done.done + done.kept} of {done.slides} slides with {workers} workers ({done.seconds:.1f} s), "
        f"{done.warned} with a warning"
    )
    _print_failures(done, {plan.name for plan in _plans(slides) if plan.broken}, say)
    bags = sorted((folder / "bags").glob("*.bag.zarr"))
    layouts = [layout for layout in LAYOUTS if _convert(bags, layout, folder / layout, say, progress)]
    return {"folder": str(folder), "manifest": str(manifest), "layouts": layouts} | done.summary()


def _print_failures(done: RunReport, expected: set[str], say: Say) -> None:
    for failure in done.failed:
        what = "as intended" if failure.slide in expected else "UNEXPECTEDLY"
        say(f"  {failure.slide} failed, {what}: {failure.error.reason}")
    for name in sorted(expected - {failure.slide for failure in done.failed}):
        say(f"  {name} was done, UNEXPECTEDLY")


def _convert(bags: list[Path], layout: str, folder: Path, say: Say, progress: bool | None) -> bool:
    try:
        written = convert(bags, layout, folder, overwrite=True, progress=progress)
    except MissingExtraError as error:
        say(f"no {layout}: {error}")
        return False
    say(f"converted to {layout}: {written.tiles:,} tiles of {written.bags} bags, {folder}")
    return True
