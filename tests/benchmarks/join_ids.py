"""CPU-seconds to join a table of ids to the files of a folder, and to read it as a cohort.

    python tests/benchmarks/join_ids.py            # 50,000 ids and files in 500 folders
    python tests/benchmarks/join_ids.py --quick    # 2,000

The table has ids without ending, one in ten with a name as TCGA's; files are empty. Each id must have its own file.
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path

from benchmark import parsed, parser_of, require

from slideio_pipe.cohort.cohort import Cohort
from slideio_pipe.cohort.slide_search import join_files
from slideio_pipe.cohort.table import read_table

UUID = "0a1b2c3d-1111-2222-3333-0123456789ab"


def made(folder: Path, count: int) -> dict[str, Path]:
    """Write the files and the table; return the file of each id."""
    files = {}
    for k in range(count):
        name = f"TCGA-CR-{k % 10_000:04}-01Z-00-DX{k // 10_000}" if k % 10 == 0 else f"S{k:06}"
        inner = folder / "slides" / f"{k % 500:03}"
        inner.mkdir(parents=True, exist_ok=True)
        files[name] = inner / (f"{name}.{UUID}.svs" if k % 10 == 0 else f"{name}.svs")
        files[name].touch()
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "case_id", "label"])
        writer.writerows([name, f"p{number // 2}", number // 2 % 2] for number, name in enumerate(files))
    return files


def main() -> None:
    """Print the time of each part, the best of three."""
    parser = parser_of(__doc__)
    parser.add_argument("--ids", type=int, default=50_000)
    given = parsed(parser, ids=2_000)
    with tempfile.TemporaryDirectory() as folder:
        expected = made(Path(folder), given.ids)
        best: dict[str, float] = {}
        for _ in range(3):
            times = [time.process_time()]
            table = read_table(Path(folder) / "table.csv")
            times.append(time.process_time())
            joined = join_files(table, Path(folder) / "slides")
            times.append(time.process_time())
            cohort = Cohort.from_table(joined)
            times.append(time.process_time())
            parts = {"read": times[1] - times[0], "join": times[2] - times[1], "check": times[3] - times[2]}
            parts["together"] = times[3] - times[0]
            best = {name: min(best.get(name, seconds), seconds) for name, seconds in parts.items()}
        require({slide.name: slide.source for slide in cohort} == expected, "an id has another file")
    print(f"{given.ids:,} ids and files: " + ", ".join(f"{name} {seconds:.2f} CPU-s" for name, seconds in best.items()))


if __name__ == "__main__":
    main()
