"""What runs when, and fixtures that several test modules share.

Plain ``pytest`` leaves out the folders ``system``, ``learning`` and ``examples``, whose tests have the mark of that
name, and the tests of other rooms with such a mark or the mark ``slow`` (about a second or more); a path on the command
line or ``-m`` brings them in. Whole
folders are tested on all cores, single files in one process, ``system`` as well unless its files are kept together
(``--dist=loadfile``, see ``.ci/run``).
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis_profiles import PROFILE
from paths import MADE_SLIDES, ROOT, TESTS

if TYPE_CHECKING:
    from unequal_slide import Unequal

# Tests send SIGINT, which is ignored by processes that a shell starts in its background, and by their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Threads of torch that wait for each other on busy cores take most of the time. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests set the width of a terminal: pytest-xdist sets 80 columns in its processes.
os.environ.pop("COLUMNS", None)

collect_ignore_glob = ["mut*.py"]  # mutants.py needs cosmic-ray, in an environment of its own

LONG = ("system", "learning", "examples")
QUICK = "not (system or learning or examples or slow)"
DEMOS = ROOT / "slideio_pipe" / "commands" / "demos"
MOST_WORKERS = 8
SHARED = ROOT.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Leave out slow folders unless a path or mark selects them; make a folder for slides that tests share."""
    if not config.option.markexpr and config.args_source is config.ArgsSource.TESTPATHS:
        config.option.markexpr = QUICK
    if MADE_SLIDES not in os.environ:  # processes of pytest-xdist inherit it
        made = tempfile.mkdtemp(prefix="made-slides-")
        os.environ[MADE_SLIDES] = made
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import tests that are left out."""
    if config.option.markexpr == QUICK and collection_path.parent == TESTS and collection_path.name in LONG:
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their folder; of tests with many combinations of parameters leave out most, in profile "dev"."""
    for item in items:
        for mark in LONG:
            if (TESTS / mark) in item.path.parents:
                item.add_marker(mark)
        if isinstance(item, pytest.DoctestItem) and item.path.parent == DEMOS:  # each makes slides
            item.add_marker("slow")
    named = config.option.keyword or any("::" in argument for argument in config.args)
    if PROFILE == "dev" and not named:
        kept = [item for same in by_function(items) for item in (fewer(same) if len(same) > 1 else same)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def by_function(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """Return the combinations of each test marked ``combinations``, and every other test by itself."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        many = item.get_closest_marker("combinations")
        groups.setdefault(item.nodeid.partition("[")[0] if many else item.nodeid, []).append(item)
    return list(groups.values())


def fewer(combinations: list[pytest.Item]) -> list[pytest.Item]:
    """Return every fifth or so, so that each value of each parameter is among them."""
    count = len(combinations)
    step = next(step for step in range(5, 5 + count) if math.gcd(step, count) == 1)
    return combinations[::step]


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which many tests run: half a second each."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of test processes: one where tests would disturb each other, or are faster in one."""
    named = config.args if config.args_source is config.ArgsSource.ARGS else []
    few = bool(named) and not any(Path(name).is_dir() for name in named)
    marks = "" if config.option.markexpr == QUICK else config.option.markexpr.replace("not system", "")
    serial = any("system" in name for name in (*named, marks))
    from slideio_pipe.cores import usable_cores

    return 0 if few or serial else min(usable_cores(), MOST_WORKERS)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real slides is not beside this checkout")
    return SHARED


@pytest.fixture
def coordinate_slide(tmp_path: Path) -> Path:
    """A 1000×700 pyramid (levels 1, 4, 16; mpp 0.25) whose pixels encode their own coordinates."""
    from pyramids import coordinate_pixels, write_pyramid

    return write_pyramid(tmp_path / "coordinates.tif", coordinate_pixels(1000, 700))


@pytest.fixture(params=("jpeg", "deflate", "lzw", "ome-zarr"))
def unequal(request: pytest.FixtureRequest, tmp_path: Path) -> Unequal:
    """A slide on which no two sides are alike, in every format."""
    from unequal_slide import write_unequal

    return write_unequal(tmp_path / "unequal", request.param)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots of trainings, which take half the time of a small one; test_plots.py is about them."""
    monkeypatch.setattr("slideio_pipe.mil.results.write_plots", lambda *_, **__: [])


@pytest.fixture(params=["compiled", "opencv"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the compiled tile programs, and with OpenCV and NumPy in their place."""
    monkeypatch.setattr("slideio_pipe.compiled.library._in_use", request.param == "compiled")
    return str(request.param)
