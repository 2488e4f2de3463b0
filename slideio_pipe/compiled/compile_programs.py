"""Build the compiled tile programs, by the C compiler of the package ``ziglang``: no compiler of the system is used.

``pip install`` does it (``build_commands.py``). In a checkout:

    pip install "ziglang==0.17.1"                            # once
    python slideio_pipe/compiled/compile_programs.py                    # for this machine, beside this file
    python slideio_pipe/compiled/compile_programs.py --wheels dist/     # one wheel per system and processor

This file imports nothing of the package: it runs before the package is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
# No fused operations: every processor computes the same bytes.
FLAGS = (
    "-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
    "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=all", "-g0",
)  # fmt: skip
# A wheel for another machine is built with this set to the name of a target.
TARGET = "SLIDEIO_PIPE_TARGET"


class Target(NamedTuple):
    """A system and processor that programs are compiled for."""

    zig: str  # as the compiler calls it
    tag: str  # as wheels call it
    library: str  # name of the file

    @property
    def copies(self) -> tuple[tuple[str, str], ...]:
        """The copies of the code, (suffix, processor)."""
        return (
            (("_v2", "x86_64_v2"), ("_v3", "x86_64_v3")) if self.zig.startswith("x86_64") else (("_any", "baseline"),)
        )


TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux2014_x86_64", "tile_program.so"),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "manylinux2014_aarch64", "tile_program.so"),
    "musl-x86_64": Target("x86_64-linux-musl", "musllinux_1_2_x86_64", "tile_program.so"),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", "tile_program.dylib"),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", "tile_program.dylib"),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", "tile_program.dll"),
    "windows-arm64": Target("aarch64-windows-gnu", "win_arm64", "tile_program.dll"),
}


def own_target() -> str | None:
    """Return the name of the target for this machine, or for the one in the environment; None if there is none."""
    asked = os.environ.get(TARGET)
    if asked is not None:
        return asked
    system = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}.get(platform.system(), "")
    if system == "linux" and platform.libc_ver()[0] != "glibc":
        system = "musl"
    arm = "aarch64" if system == "linux" else "arm64"
    processor = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": arm, "arm64": arm}.get(platform.machine().lower())
    name = f"{system}-{processor}"
    return name if name in TARGETS else None


def digest() -> str:
    """Return a number that depends on the sources; the library has that of the sources it was compiled from."""
    sources = sorted([*HERE.glob("*.c"), *HERE.glob("*.h")])
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def has_sources() -> bool:
    """Return whether the sources are beside this file."""
    return (HERE / "tile_program.h").exists()


def compile_library(target: Target, folder: Path) -> Path:
    """Compile the programs for a target; return the library in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / target.library
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig, *FLAGS]
    zig += [] if "windows" in target.zig else ["-fPIC"]
    with tempfile.TemporaryDirectory() as made:
        objects = []
        for suffix, processor in target.copies:
            objects.append(str(Path(made) / f"tile_program{suffix}.o"))
            source = ["-c", str(HERE / "tile_program.c"), f"-DSUFFIX={suffix}", f"-mcpu={processor}"]
            subprocess.run([*zig, *source, "-o", objects[-1]], check=True)
        linked = Path(made) / target.library
        last = [str(HERE / "dispatch.c"), str(HERE / "stored_tiles.c"), f'-DBUILT_FROM="{digest()}"', *objects]
        subprocess.run([*zig, "-shared", "-s", *last, "-o", str(linked)], check=True)
        partial = folder / f".{target.library}.partial"
        partial.write_bytes(linked.read_bytes())
        partial.replace(library)  # a process that has the old one open goes on with it
    return library


def main() -> None:
    """Build in a checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="build a wheel for every target into it")
    parser.add_argument("--target", choices=TARGETS, action="append", help="of the wheels; by default all")
    args = parser.parse_args()
    if args.wheels is None:
        name = own_target()
        if name is None:
            sys.exit(f"no target for {platform.platform()}: pass one of {', '.join(TARGETS)} in {TARGET}")
        print(compile_library(TARGETS[name], HERE))
        return
    for name in args.target or TARGETS:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(args.wheels),
            str(HERE.parents[1]),
        ]
        subprocess.run(command, check=True, env=os.environ | {TARGET: name})


if __name__ == "__main__":
    main()
