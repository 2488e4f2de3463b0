"""What a run costs beside the work: scheduling empty work over many slides, and two workers against one.

python tests/benchmarks/cohort.py schedule --slides 50000
python tests/benchmarks/cohort.py export --slides 64
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slideio_pipe as sp
from slideio_pipe.cohort import Cohort, CohortSlide


@dataclass(frozen=True)
class Nothing:
    """Work that does nothing."""

    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """There are none."""
        return {}

    def output(self, slide: CohortSlide) -> Path:
        """Return a name; nothing is written there."""
        return self.folder / f"{slide.name}.out"

    def __call__(self, slide: CohortSlide, *, overwrite: bool, on_stage: Any) -> dict[str, Any]:
        """Do nothing."""
        return {}


def peak_mb() -> float:
    """Return the most memory this process had, MB."""
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
    each = 1e3 * report.seconds / slides
    print(f"{slides:,} slides: {each:.3f} ms each; peak MB before, after a fifth, at the end: {marks}")


def export(slides: int, folder: Path) -> None:
    """Time the export of synthetic slides with one worker and with two, in turns."""
    for k in range(slides):
        sp.write_synthetic_slide(folder / "slides" / f"s{k}.svs", size=(4096, 3072), seed=k)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for workers in seconds:
            report = sp.export_cohort(folder / "slides", folder / "bags", workers=workers, threads=1)
            seconds[workers].append(report.seconds)
            shutil.rmtree(folder / "bags")
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    print(f"{slides} slides: {seconds}; one worker / two: {[round(ratio, 2) for ratio in ratios]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["schedule", "export"])
    parser.add_argument("--slides", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "slides").mkdir()
        {"schedule": schedule, "export": export}[given.what](given.slides, Path(scratch))
