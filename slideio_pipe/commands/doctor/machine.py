"""The machine: Python, cores, tile programs, disk, shared memory, GPU; the viewer's page and the documentation."""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path

import slideio_pipe
from slideio_pipe.commands.doctor.findings import Finding, guarded
from slideio_pipe.commands.environment import COMPILED
from slideio_pipe.cores import usable_cores
from slideio_pipe.files import size_text

_SHARED_MEMORY = Path("/dev/shm")
# torch's DataLoader passes bags of its workers through it; containers have 64 MB unless they are started with more.
_ENOUGH_SHARED_BYTES = 10**9
# A thousand bags of a thousand 256-px tiles take 100 to 200 GB; below this, not even one export fits.
_ENOUGH_DISK_BYTES = 2 * 10**9


def examine_machine() -> list[Finding]:
    """Return the findings."""
    checks = {
        "tile programs": _tile_programs,
        "disk": lambda: _disk("disk", Path.cwd(), "free some space, or write to another disk"),
        "temporary files": lambda: _disk(
            "temporary files", Path(tempfile.gettempdir()), "free some space, or set TMPDIR to a folder on another disk"
        ),
        "shared memory": _shared_memory,
        "viewer": _viewer,
        "documentation": _documentation,
    }
    about = f"{platform.system()} {platform.machine()}, {usable_cores()} cores"
    return [
        Finding("machine", "slideio-pipe", slideio_pipe.__version__),
        Finding("machine", "Python", platform.python_version()),
        Finding("machine", "system", about),
        *(guarded("machine", what, examine) for what, examine in checks.items()),
    ]


def examine_gpu() -> list[Finding]:
    """Return a finding for each CUDA device, or one that there is none."""
    import torch

    if not torch.cuda.is_available():
        built = "built for the CPU" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        advice = 'everything runs with device="cpu"; for a GPU install a CUDA build of torch and a driver'
        return [Finding("GPU", "CUDA", f"none (torch is {built})", "optional", advice)]
    devices = enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))
    return [Finding("GPU", f"cuda:{i}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB") for i, p in devices]


def _tile_programs() -> Finding:
    """Return whether tiles are sampled and coloured by compiled code."""
    from slideio_pipe.compiled.library import is_compiled_used, load  # loads NumPy, which --help does not need

    programs = load()
    if programs is None:
        off = not is_compiled_used()
        build = "install slideio-pipe again; in a checkout: python slideio_pipe/compiled/compile_programs.py"
        remedy = f"unset {COMPILED}" if off else build
        found = (
            f"off, {COMPILED}=0" if off else "not compiled; OpenCV and NumPy: augmented tiles take three times as long"
        )
        return Finding("machine", "tile programs", found, "optional", remedy)
    instructions = {1: "", 2: ", x86-64-v2", 3: ", x86-64-v3"}[programs.instruction_set()]
    return Finding("machine", "tile programs", f"compiled{instructions}")


def _disk(what: str, folder: Path, remedy: str) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{size_text(free)} free in {folder}"
    if free < _ENOUGH_DISK_BYTES:
        return Finding("machine", what, found, "optional", remedy)
    return Finding("machine", what, found)


def _shared_memory() -> Finding:
    if not _SHARED_MEMORY.is_dir():
        return Finding("machine", "shared memory", f"no {_SHARED_MEMORY} on this system")
    size = shutil.disk_usage(_SHARED_MEMORY).total
    found = f"{size_text(size)} in {_SHARED_MEMORY}"
    if size < _ENOUGH_SHARED_BYTES:
        remedy = "BagLoader does not need it; for torch's DataLoader with workers: docker run --shm-size=8g"
        return Finding("machine", "shared memory", found, "optional", remedy)
    return Finding("machine", "shared memory", found)


def _documentation() -> Finding:
    from slideio_pipe.commands.documentation.site_build import SETTINGS, SHIPPED

    if (SHIPPED / "index.html").is_file():
        return Finding("machine", "documentation", f"a copy is in {SHIPPED}")
    if SETTINGS.is_file():
        return Finding("machine", "documentation", "built from this checkout when it is first opened", "untried")
    return Finding("machine", "documentation", "this installation has none", "optional", "install it from a wheel")


def _viewer() -> Finding:
    page = Path(slideio_pipe.__file__).parent / "viewer" / "page"
    missing = [name for name in ("index.html", "main.js", "openseadragon.min.js") if not (page / name).is_file()]
    if missing:
        found, remedy = f"its page has no {', '.join(missing)}", "install slideio-pipe again"
        return Finding("machine", "viewer", found, "broken", remedy)
    return Finding("machine", "viewer", "its page is complete")
