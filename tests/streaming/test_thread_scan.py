"""The number of threads that is enough: found by reading, on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run
from made_slides import made_slide

import slideio_pipe as sp
from slideio_pipe.cores import usable_cores
from slideio_pipe.errors import ConfigError
from slideio_pipe.streaming.profile import Profile
from slideio_pipe.streaming.thread_scan import ThreadScan


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_slide(tmp_path_factory.mktemp("scan") / "a.svs", size=(2000, 1500), seed=1).path


def measured(*rates: tuple[int, float]) -> ThreadScan:
    return ThreadScan(tuple(Profile(1.0, round(rate), 1, threads, 0, 0, 0, {}, "") for threads, rate in rates))


@pytest.mark.parametrize(
    ("rates", "best", "said"),
    [
        (((1, 100),), 1, "1 thread reads 100 tiles/s. More were not tried"),
        (
            ((1, 100), (2, 190), (4, 195)),
            2,
            "2 threads read 190 tiles/s, 1.9 times one thread. 4 threads would",
        ),
        (((1, 100), (2, 90)), 1, "1 thread reads 100 tiles/s. 2 threads would bring -10%: set threads=1."),
        (((2, 100), (4, 200), (8, 400)), 8, "8 threads read 400 tiles/s, 4.0 times 2 threads. More were not tried"),
    ],
)
def test_the_fewest_threads_that_are_enough(rates: tuple[tuple[int, float], ...], best: int, said: str) -> None:
    """Within 5 % of the highest rate."""
    found = measured(*rates)
    assert found.best.threads == best
    assert found.verdict().startswith(said)
    assert repr(found) == f"ThreadScan({len(found.runs)} runs. {found.verdict()})"


def test_every_count_reads_the_same_tiles(slide: Path) -> None:
    """By default powers of two up to the cores."""
    dataset = sp.BagDataset([slide], {"view": {"mpp": "native"}, "tissue": {"method": "none"}})
    found = sp.scan_threads(dataset, [2, 1, 2], workers=(), max_tiles=20, chunk_size=8)
    assert [run.threads for run in found.runs] == [1, 2]
    assert {run.tiles for run in found.runs} == {24}
    usual = sp.scan_threads(dataset, workers=(), max_tiles=8, chunk_size=8)
    assert (usual.runs[0].threads, usual.runs[-1].threads) == (1, usable_cores())
    for counts in ([], [0, 1]):
        with pytest.raises(ConfigError, match="as numbers of threads; pass whole numbers from 1 on"):
            sp.scan_threads(dataset, counts)


@pytest.mark.parametrize(
    ("rate", "best", "said"),
    [
        (195, 0, "set threads=2. 4 worker processes would bring +3%."),
        (
            300,
            4,
            "2 threads read 190 tiles/s, 1.9 times one thread. 4 worker processes bring +58% over threads: set work",
        ),
    ],
)
def test_worker_processes_are_chosen_if_they_bring_more(rate: int, best: int, said: str) -> None:
    """More than 5 % above the best number of threads."""
    threads = measured((1, 100), (2, 190), (4, 190)).runs
    found = ThreadScan((*threads, Profile(1.0, rate, 1, 4, 0, 0, 0, {}, "", workers=4)))
    assert found.best.workers == best
    assert said in found.verdict()


def test_the_start_is_not_counted() -> None:
    """The rate of a scan is that after the first chunk."""
    run = Profile(3.0, 300, 1, 2, 2.0, 0, 0, {}, "", workers=2, first_tiles=100)
    assert run.steady_rate == 200
    assert run.rate == 100


@pytest.mark.system
def test_the_command_prints_a_row_per_count(slide: Path) -> None:
    """And what to set; as JSON as well; not with a fixed number of threads."""
    arguments = ("profile", slide, "--scan", "--tiles", 16, "--chunk-size", 8)
    text = run(*arguments).stdout
    assert "threads" in text
    assert "tiles/s" in text
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["runs"][0]["threads"] == 1
    refused = run(*arguments, "--threads", 2, code=2)
    assert "--scan together with --threads" in refused.stderr
