"""Commands of setuptools that put compiled tile programs and presets into the wheel (``[tool.setuptools.cmdclass]``).

Setuptools loads this file alone, before the package is installed, so it finds ``compile_programs.py`` by its path.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
sys.path.insert(0, str(HERE))
from compile_programs import (  # type: ignore[import-not-found]  # noqa: E402
    TARGET,
    TARGETS,
    compile_library,
    own_target,
)

DOCUMENTATION = HERE.parent / "commands" / "documentation"
sys.path.insert(0, str(DOCUMENTATION))
from site_build import build_site  # type: ignore[import-not-found]  # noqa: E402

sys.path.remove(str(HERE))
sys.path.remove(str(DOCUMENTATION))


class BuildPrograms(build_py):  # type: ignore[misc]  # setuptools has no types
    """Copy the Python files and presets, build documentation and programs; without these two, the package works."""

    def run(self) -> None:
        """Build all."""
        if not self.editable_mode:  # an earlier build's modules, and its library for another system, would be kept
            shutil.rmtree(Path(self.build_lib) / "slideio_pipe", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            copy_presets(Path(self.build_lib) / "slideio_pipe" / "configs")
            self.build_documentation()  # an editable installation builds it when it is first opened
        name = own_target()
        if name is None:
            self.warn(f"no compiled tile programs for {platform.platform()}: OpenCV and NumPy are used, slower")
            return
        folder = HERE if self.editable_mode else Path(self.build_lib) / "slideio_pipe" / "compiled"
        try:
            compile_library(TARGETS[name], folder)
        except (OSError, subprocess.CalledProcessError) as error:
            if TARGET in os.environ:
                raise
            self.warn(f"tile programs were not compiled ({error}): OpenCV and NumPy are used, slower")

    def build_documentation(self) -> None:
        """Build the site that ``slideio-pipe docs`` opens; where mkdocs is missing, the package works without."""
        folder = Path(self.build_lib) / "slideio_pipe" / "commands" / "documentation" / "site"
        try:
            build_site(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the documentation was not built: {getattr(error, 'stderr', '') or error}")


def copy_presets(folder: Path) -> None:
    """Copy presets and their schemas from the checkout's ``configs/`` into a folder of the package."""
    folder.mkdir(parents=True)
    files = [file for ending in ("*.yaml", "*.json") for file in CONFIGS.glob(ending)]
    if not files:
        raise FileNotFoundError(f"no presets in {CONFIGS}")
    for file in files:
        shutil.copy(file, folder)


class PlatformWheel(bdist_wheel):  # type: ignore[misc]  # setuptools has no types
    """A wheel for any Python on one system and processor: ctypes calls the library, not Python's C interface."""

    def finalize_options(self) -> None:
        """Declare that the wheel has compiled code."""
        self.distribution.has_ext_modules = lambda: own_target() is not None
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag."""
        name = own_target()
        return ("py3", "none", "any" if name is None else TARGETS[name].tag)
