"""Costs of a run beside its work: scheduling of empty work over many slides, and two workers against one.

python tests/benchmarks/cohort.py schedule --slides 50000
python tests/benchmarks/cohort.py export --slides 64 --size 8192 6144
python tests/benchmarks/cohort.py page --slides 50000
"""

from __future__ import annotations

import json
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import parsed, parser_of, require

import slideio_pipe as sp
from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.cohort_slide import CohortSlide
from slideio_pipe.cohort.report_page import write_page

_DIFFERENT = 8  # slides that are drawn for `export`; the others are these again


@dataclass(frozen=True)
class Nothing:
    """Empty work."""

    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return no settings."""
        return {}

    def output(self, slide: CohortSlide) -> Path:
        """Return a name; nothing is written there."""
        return self.folder / f"{slide.name}.out"

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: Any) -> dict[str, Any]:
        """Do nothing."""
        return {}


def peak_mb() -> float:
    """Return the peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def schedule(slides: int, folder: Path) -> None:
    """Time a run of empty work; memory after a fifth and at the end."""
    (folder / "a").write_bytes(b"slide")
    cohort = Cohort.unchecked(CohortSlide(folder / "a", f"s{k}") for k in range(slides))
    marks = [peak_mb()]

    def mark(done: int, total: int) -> None:
        if done in (total // 5, total):
            marks.append(peak_mb())

    report = sp.run_cohort(Nothing(folder / "out"), cohort, folder / "out", progress=mark)
    require(report.done == slides, f"{report.done} of {slides} slides were done")
    each = 1e3 * report.seconds / slides
    print(f"{slides:,} slides: {each:.3f} ms each; peak MB before, after a fifth, at the end: {marks}")


def export(slides: int, folder: Path, size: tuple[int, int], turns: int) -> None:
    """Time the export of synthetic slides with one worker and with two, in turns."""
    (folder / "slides").mkdir()
    for k in range(slides):
        path = folder / "slides" / f"s{k:03}.svs"
        if k < _DIFFERENT:
            sp.write_synthetic_slide(path, size=size, seed=k)
        else:
            path.hardlink_to(path.with_name(f"s{k % _DIFFERENT:03}.svs"))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(turns):
        for workers in seconds:
            report = sp.export_cohort(folder / "slides", folder / "bags", workers=workers, threads=1, progress=False)
            seconds[workers].append(round(report.seconds, 2))
            bags = len(list((folder / "bags").glob("*.bag.zarr")))
            require(bags == slides, f"{bags} bags of {slides} slides with {workers} workers")
            shutil.rmtree(folder / "bags")
        ratio = seconds[1][turn] / seconds[2][turn]
        print(f"{slides} slides of {size} px: one worker {seconds[1][turn]} s, two {seconds[2][turn]} s: {ratio:.2f}")
    ratios = sorted(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print(f"median of the ratios: {ratios[len(ratios) // 2]:.2f}")


def page(slides: int, folder: Path) -> None:
    """Time the report of a finished folder; print its size and the memory that it adds."""
    known = {"settings": "s" * 16, "fingerprint": "f" * 16}
    made = {
        "tiles": 1000,
        "tissue": 0.5,
        "tissue_covered": 0.9,
        "mpp": [0.5, 0.5],
        "mpp_source": "file",
        "bytes": 10**8,
    }
    with (folder / "run.jsonl").open("w", encoding="utf-8") as file:
        for k in range(slides):
            slide = {"slide": f"slide-{k:06}.svs", **known}
            done = slide | {"event": "done", "seconds": 12.5, "made": made | {"tiles": 1000 + k % 5000}}
            file.write(f"{json.dumps(slide | {'event': 'start', 'label': k % 2})}\n{json.dumps(done)}\n")
    before, begun = peak_mb(), time.perf_counter()
    path, _ = write_page(folder, None, {"state": "finished", "done": slides})
    seconds = time.perf_counter() - begun
    reported = path.read_text(encoding="utf-8")
    require(all(f"slide-{k:06}.svs" in reported for k in (0, slides - 1)), "the page lacks slides")
    size = path.stat().st_size / 1e6
    print(f"{slides:,} slides: {seconds:.1f} s, {peak_mb() - before:.0f} MB more memory, a page of {size:.1f} MB")


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=["schedule", "export", "page"])
    parser.add_argument("--slides", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(4096, 3072), help="px, of the slides of `export`")
    given = parsed(parser, slides=3, size=(1024, 768), turns=1)
    with tempfile.TemporaryDirectory() as scratch:
        if given.what == "export":
            export(given.slides, Path(scratch), tuple(given.size), given.turns)
        else:
            {"schedule": schedule, "page": page}[given.what](given.slides, Path(scratch))
