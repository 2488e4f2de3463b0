"""Check the installation: packages, readable formats, GPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from rich.markup import escape

from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import out, print_json, reported
from slideio_pipe.cores import usable_cores

Status = Literal["ok", "optional", "problem"]

PACKAGES = (
    "pyvips",
    "pyvips-binary",
    "albumentationsxl",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "numpy",
    "zarr",
    "torch",
    "scikit-image",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    group: str
    what: str
    found: str
    status: Status = "ok"
    remedy: str = ""


def examine() -> list[Finding]:
    """Return all findings; a ``problem`` affects something that the main job needs."""
    return [*_machine(), *_packages(), *_formats(), *_gpu()]


def report_of(findings: list[Finding]) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "healthy": all(finding.status != "problem" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _machine() -> list[Finding]:
    return [
        Finding("machine", "Python", platform.python_version()),
        Finding("machine", "system", f"{platform.system()} {platform.machine()}, {usable_cores()} cores"),
        _tile_programs(),
    ]


def _tile_programs() -> Finding:
    """Return whether tiles are sampled and coloured by compiled code."""
    from slideio_pipe.compiled.library import SWITCH, load  # loads NumPy, which --help does not need

    programs = load()
    if programs is None:
        off = os.environ.get(SWITCH) == "0"
        build = "install slideio-pipe again; in a checkout: python slideio_pipe/compiled/compile_programs.py"
        remedy = f"unset {SWITCH}" if off else build
        found = (
            f"off, {SWITCH}=0" if off else "not compiled; OpenCV and NumPy: augmented tiles take three times as long"
        )
        return Finding("machine", "tile programs", found, "optional", remedy)
    instructions = {1: "", 2: ", x86-64-v2", 3: ", x86-64-v3"}[programs.instruction_set()]
    return Finding("machine", "tile programs", f"compiled{instructions}")


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding("packages", name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("packages", name, "not by this name", "optional", f"pip install {name}"))
    return findings


def _formats() -> list[Finding]:
    """Open and read a slide with each reader; a version number alone proves nothing."""
    proofs: tuple[tuple[str, str, Callable[[Path], str]], ...] = (
        ("Aperio SVS, generic and OME pyramids", "libvips", _prove_tiff),
        ("JPEG 2000 and other codecs in TIFF", "imagecodecs", _prove_jpeg2000),
        ("NDPI, MIRAX, SCN, BIF, VMS, DICOM", "OpenSlide", _prove_openslide),
        ("OME-Zarr and zarr", "zarr", _prove_zarr),
        ("PNG, JPEG, WebP", "libvips", _prove_png),
    )
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for formats, reader, prove in proofs:
            try:
                findings.append(Finding("formats", formats, f"{reader}: {prove(Path(folder))}"))
            except Exception as error:  # a broken installation may raise anything
                remedy = "reinstall it, and what it depends on"
                findings.append(Finding("formats", formats, f"{reader} fails: {error}", "problem", remedy))
    return findings


def _gradient() -> Any:
    import numpy as np

    y, x = np.mgrid[:320, :320]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def _check_reads(path: Path, backend: str = "auto") -> str:
    """Open ``path``, read a tile across stored tiles, and compare it with the written gradient."""
    import numpy as np

    from slideio_pipe.slides.slide import open_slide
    from slideio_pipe.tiles.reader import TileReader

    with open_slide(path, backend=backend) as slide:
        tile = TileReader(slide.view(), 64).read([[200, 220]])[0]
    if not np.array_equal(tile, _gradient()[220:284, 200:264]):
        raise ValueError("reads other pixels than were written")
    return "reads what was written"


def _write_tiff(path: Path, compression: str) -> Path:
    import tifffile

    tifffile.imwrite(path, _gradient(), tile=(256, 256), photometric="rgb", compression=compression)
    return path


def _prove_tiff(folder: Path) -> str:
    return _check_reads(_write_tiff(folder / "lzw.tif", "lzw"), "tiff")


def _prove_jpeg2000(folder: Path) -> str:
    return _check_reads(_write_tiff(folder / "j2k.tif", "jpeg2000"), "tiff")


def _prove_openslide(folder: Path) -> str:
    return _check_reads(_write_tiff(folder / "deflate.tif", "deflate"), "openslide")


def _prove_zarr(folder: Path) -> str:
    import zarr

    path = folder / "array.zarr"
    zarr.save_array(str(path), _gradient(), zarr_format=3)
    return _check_reads(path)


def _prove_png(folder: Path) -> str:
    from PIL import Image

    path = folder / "flat.png"
    Image.fromarray(_gradient()).save(path)
    return _check_reads(path)


def _gpu() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = "built for the CPU" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        advice = 'everything runs with device="cpu"; for a GPU install a CUDA build of torch and a driver'
        return [Finding("GPU", "CUDA", f"none (torch is {built})", "optional", advice)]
    devices = enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))
    return [Finding("GPU", f"cuda:{i}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB") for i, p in devices]


@reported
def doctor(as_json: options.Json = False) -> None:
    """Check the installation: packages, formats (each is read), GPU. Exit code 2 if the main job cannot run.

    Example: [bold]slideio-pipe doctor[/]
    """
    findings = examine()
    if as_json:
        print_json(report_of(findings))
    else:
        marks = {"ok": "[green]✓[/]", "optional": "[yellow]–[/]", "problem": "[red]✗[/]"}
        group = ""
        for finding in findings:
            if finding.group != group:
                group = finding.group
                out.print(f"[bold]{group}[/]")
            line = f"{marks[finding.status]} {escape(finding.what):<40}{escape(finding.found)}"
            out.print(line, soft_wrap=True)
            if finding.remedy:
                out.print(f"  [dim]{escape(finding.remedy)}[/]", soft_wrap=not out.is_terminal)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(2)
