"""Kill -9 of an export at random moments, repeatedly: no incomplete bag has its final name, and none is lost.

python tests/benchmarks/kills.py --times 100
python tests/benchmarks/kills.py --times 20 --cluster     # a Dask scheduler and two workers; they are killed, too

Each time an export of the same slides is started and, after a random time, either the run, one of its workers or the
whole process group is killed. Then every bag that has its final name is compared with that of an undisturbed export,
byte by byte. The next export resumes in the same folder; when one is complete, all bags are compared, and the next one
starts with an empty folder. With --quick the whole process group is killed once, while a bag is half written.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from benchmark import parsed, parser_of, require

import slideio_pipe as sp

VICTIMS = ("run", "worker", "group")
Bags = dict[str, dict[str, bytes]]


def bags_in(folder: Path) -> Bags:
    """Return the files of every bag with a final name."""
    return {
        bag.name: {str(file.relative_to(bag)): file.read_bytes() for file in bag.rglob("*") if file.is_file()}
        for bag in folder.glob("*.bag.zarr")
    }


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def exporting(slides: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start an export of many small tiles, in its own process group."""
    options = ["--mpp", "native", "--tile-size", "64", "--tissue", "none", "--threads", "1", *more]
    command = [sys.executable, "-m", "slideio_pipe", "export", str(slides), "--out", str(out), *options]
    return subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


class Cluster:
    """A Dask scheduler and two workers on this machine."""

    def __init__(self, folder: Path) -> None:
        file = str(folder / "scheduler.json")
        self._start("scheduler", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", file)
        place = ("--scheduler-file", file, "--local-directory", str(folder))
        self.nannies = [self._start("worker", "--nthreads", "1", *place) for _ in range(2)]
        while not Path(file).exists():
            time.sleep(0.1)
        from distributed import Client

        self._client = Client(scheduler_file=file)
        self.address = self._client.scheduler.address
        self._client.wait_for_workers(2)

    def _start(self, *arguments: str) -> int:
        module = f"distributed.cli.dask_{arguments[0]}"
        return subprocess.Popen([sys.executable, "-m", module, *arguments[1:]], stderr=subprocess.DEVNULL).pid

    def workers(self) -> list[int]:
        """Return Dask's workers: the nannies start them again."""
        return [child for nanny in self.nannies for child in children(nanny)[-1:]]

    def close(self) -> None:
        """End the cluster."""
        self._client.shutdown()


def kill(victim: str, run: subprocess.Popen[bytes], cluster: Cluster | None, rng: random.Random) -> bool:
    """Kill the victim; return whether one existed."""
    if run.poll() is not None:
        return False
    if victim == "worker":
        workers = children(run.pid)[1:] if cluster is None else cluster.workers()  # the first is a resource tracker
        if not workers:
            return False
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
        return True
    (os.killpg if victim == "group" else os.kill)(run.pid, signal.SIGKILL)
    return True


def half_written(out: Path) -> list[Path]:
    """Return bags without a final name."""
    return list(out.glob("*.partial"))


def main(times: int, slides: int, side: int, seed: int, on_cluster: bool, scratch: Path, mid_write: bool) -> None:
    """Kill this many times, at random or in the middle of a bag, and print the result."""
    rng, counts, problems = random.Random(seed), Counter[str](), list[str]()
    (scratch / "slides").mkdir()
    for k in range(slides):
        sp.write_synthetic_slide(scratch / "slides" / f"s{k}.svs", size=(side, side * 3 // 4), seed=k)
    cluster = Cluster(scratch) if on_cluster else None
    who = ["--workers", "2"] if cluster is None else ["--cluster", cluster.address]
    begun = time.monotonic()
    assert exporting(scratch / "slides", scratch / "whole", *who).wait() == 0
    longest, whole, out = time.monotonic() - begun, bags_in(scratch / "whole"), scratch / "out"

    def compare(when: str, complete: bool) -> None:
        found = bags_in(out)
        wrong = [name for name, bag in found.items() if bag != whole[name]]
        left = [path.name for path in out.glob("*.bag.zarr.*")] if complete else []
        if wrong or left or (complete and found.keys() != whole.keys()):
            problems.append(f"{when}: {wrong} differ, {sorted(whole.keys() - found.keys())} missing, {left} left")
        counts["bags compared"] += len(found)

    while sum(counts[victim] for victim in VICTIMS) < times or (mid_write and not counts["bags half done"]):
        run, victim = exporting(scratch / "slides", out, *who), "group" if mid_write else rng.choice(VICTIMS)
        if mid_write:
            while run.poll() is None and not half_written(out):
                time.sleep(0.001)
        else:
            time.sleep(rng.uniform(0.5, longest))
        was_killed = kill(victim, run, cluster, rng)
        print(f"{sum(counts[each] for each in VICTIMS) + was_killed} of {times}", end="\r", file=sys.stderr, flush=True)
        if was_killed:
            counts[victim] += 1
        if victim == "worker" or not was_killed:
            code = run.wait()
            compare(f"the end of a run, exit code {code}", complete=True)
            counts["runs that ended by themselves"] += 1
            counts["of them with failures"] += code != 0
            shutil.rmtree(out)
        else:
            run.wait()
            counts["bags half done"] += len(half_written(out))
            compare(f"after a kill of the {victim}", complete=False)
    code = exporting(scratch / "slides", out, *who).wait()
    if code != 0:
        problems.append(f"the last run ended with exit code {code}")
    compare("the last run", complete=True)
    if cluster is not None:
        cluster.close()
    times = sum(counts[victim] for victim in VICTIMS)
    kills = ", ".join(f"{counts[victim]} of the {victim}" for victim in VICTIMS)
    print(f"{times} kills ({kills}) of an export of {slides} slides that takes {longest:.1f} s undisturbed")
    for name in ("bags half done", "runs that ended by themselves", "of them with failures", "bags compared"):
        print(f"{name}: {counts[name]:,}")
    print(f"problems: {len(problems)}", *problems, sep="\n  ")
    require(not problems, f"{len(problems)} problems")
    require(counts["bags compared"] >= slides, "no bag was compared")


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--side", type=int, default=3072, help="of a slide, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster", action="store_true")
    given = parsed(parser, times=1, slides=2, side=768)
    with tempfile.TemporaryDirectory() as folder:
        main(given.times, given.slides, given.side, given.seed, given.cluster, Path(folder), given.quick)
