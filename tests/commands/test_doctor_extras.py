"""Every extra is used, and a package that is missing, broken, wrong or crashes is one line of the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from made_metadata import write_metadata
from paths import ROOT

from slideio_pipe.commands.doctor import extras
from slideio_pipe.commands.doctor.proofs import PROOFS

# Packages that an extra's proof must need: (extra, module).
NEEDED = [
    ("hdf5", "h5py"),
    ("parquet", "pyarrow"),
    ("hf", "pyarrow"),
    ("memmap", "tensordict"),
    ("cluster", "distributed"),
    ("cluster", "dask_jobqueue"),
    ("onnx", "onnx"),
    ("onnx", "onnxscript"),
    ("onnx", "onnxruntime"),
    ("timm", "timm"),
    ("timm", "safetensors"),
    ("transformers", "transformers"),
    ("train", "lightning_fabric"),
    ("train", "torchmetrics"),
    ("train", "torchmil"),
    ("train", "tensorboard"),
    ("train", "matplotlib"),
]
# Stand-ins that load the real package and then spoil what the proof reads: (extra, module, code).
SPOILED = [
    ("hdf5", "h5py", "real.Dataset.read_direct = lambda *a, **k: None"),
    (
        "memmap",
        "tensordict",
        "take = real.TensorDict.__getitem__; real.TensorDict.__getitem__ = lambda *a: take(*a) ^ 1",
    ),
    ("cluster", "distributed", "real.Future.result = lambda *a, **k: 4"),
]
REAL = """
import importlib, sys
from pathlib import Path
sys.path.remove(str(Path(__file__).parent))
del sys.modules[__name__]
real = importlib.import_module(__name__)
"""


def stand_in(folder: Path, module: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a module that Python finds before the installed package of that name."""
    (folder / f"{module}.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(folder)


def without(folder: Path, *distributions: str) -> dict[str, str]:
    """Return an environment whose Python does not have some distributions: the others are linked into a new folder."""
    hidden = set()
    for name in distributions:
        for file in importlib.metadata.files(name) or []:
            hidden.add(Path(file).parts[0])
    folder.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in hidden and not entry.name.endswith(".pth"):
            (folder / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


def report(environment: dict[str, str], *options: str) -> tuple[int, dict[str, Any]]:
    """Run the doctor in another environment; return its exit code, and the findings by group and name."""
    command = [sys.executable, "-S", "-m", "slideio_pipe", "doctor", "--json", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert "Traceback" not in done.stderr + done.stdout
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, {f"{line['group']} {line['what']}": line for line in findings}


@pytest.mark.slow
def test_extras_are_those_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new extra appears by itself: its packages are imported, or it says what is missing or too old."""
    write_metadata(
        tmp_path,
        monkeypatch,
        *(f"Provides-Extra: {name}" for name in ("new", "absent", "old", "itself")),
        'Requires-Dist: tifffile>=2020; extra == "new"',
        'Requires-Dist: no-such-package; extra == "absent"',
        'Requires-Dist: another-one; extra == "absent"',
        'Requires-Dist: numpy>=99; extra == "old"',
        "Requires-Dist: also-missing; extra == \"old\" and sys_platform == 'amiga'",
        'Requires-Dist: slideio-pipe[new]; extra == "itself"',
    )
    new, absent, old, itself = extras.examine_extras(every=False)
    assert (new.status, new.found) == ("ok", f"tifffile {importlib.metadata.version('tifffile')}: can be imported")
    assert (absent.status, absent.found) == ("optional", "missing: no-such-package, another-one")
    assert absent.remedy == 'pip install "slideio-pipe[absent]"'
    assert (old.status, old.found) == ("broken", f"numpy {importlib.metadata.version('numpy')}, which is not >=99")
    assert itself.status == "ok"


def test_a_quick_report_says_what_it_did_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras whose packages take seconds to import."""
    write_metadata(tmp_path, monkeypatch, "Provides-Extra: train", 'Requires-Dist: numpy; extra == "train"')
    (train,) = extras.examine_extras(every=False)
    assert (train.status, train.found.split(": ")[1]) == ("untried", "installed; --all uses it")


def test_every_proof_has_its_packages_in_these_tests() -> None:
    """So that a proof cannot pass without what it proves."""
    assert {extra for extra, _ in NEEDED} == set(PROOFS)


@pytest.mark.system
def test_installed_extras_work() -> None:
    """Each extra of the installed package whose packages are all here."""
    found = extras.examine_extras(every=True)
    assert [line.what for line in found] == extras.extras()
    assert not [line for line in found if line.status not in ("ok", "optional")]
    used = {line.what for line in found if line.status == "ok"}
    assert {"hdf5", "parquet", "hf", "memmap", "cluster", "train"} <= used


@pytest.mark.system
@pytest.mark.parametrize(("extra", "module"), NEEDED)
def test_a_broken_package_is_found(extra: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be imported, although its metadata are there."""
    stand_in(tmp_path, module, "raise ImportError('symbol not found: a_b_c')", monkeypatch)
    assert "symbol not found: a_b_c" in extras.prove(extra)["error"]


@pytest.mark.system
@pytest.mark.parametrize(("extra", "module", "code"), SPOILED, ids=[extra for extra, *_ in SPOILED])
def test_wrong_values_are_found(
    extra: str, module: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that can be imported and reads or computes something else."""
    stand_in(tmp_path, module, REAL + code, monkeypatch)
    assert "ValueError" in extras.prove(extra)["error"]


@pytest.mark.system
def test_a_crash_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's process ends by a signal; the report does not."""
    stand_in(tmp_path, "h5py", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", monkeypatch)
    found = {line.what: line for line in extras.examine_extras(every=False)}
    assert found["hdf5"].status == "broken"
    assert "fails: ended by SIGSEGV" in found["hdf5"].found
    assert "--force-reinstall" in found["hdf5"].remedy
    assert found["parquet"].status == "ok"


@pytest.mark.system
def test_a_hanging_package_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a limit, which is an error of that extra."""
    stand_in(tmp_path, "h5py", "import time; time.sleep(600)", monkeypatch)
    monkeypatch.setattr(extras, "_LIMIT_S", 3.0)
    assert extras.prove("hdf5") == {"error": "did not end within 3 s"}


@pytest.mark.system
@pytest.mark.parametrize(
    ("hidden", "line", "status", "code"),
    [
        ("h5py", "extras hdf5", "optional", 0),
        ("imagecodecs", "formats JPEG 2000 and other codecs in TIFF", "problem", 2),
        ("torch", "GPU GPU", "problem", 2),
        ("numpy", "formats PNG, JPEG, WebP", "problem", 2),
        ("packaging", "packages packages", "problem", 2),
    ],
)
def test_a_missing_package_is_found(hidden: str, line: str, status: str, code: int, tmp_path: Path) -> None:
    """In an environment that really does not have it: a line with what to do, and no traceback."""
    ended, found = report(without(tmp_path / "site", hidden))
    assert found[line]["status"] == status
    assert hidden in found[line]["found"]
    assert found[line]["remedy"]
    assert ended == code
    assert found["machine Python"]["status"] == "ok"
