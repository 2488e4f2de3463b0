"""The extras of the package, each used once in a process of its own: a crash of one ends neither the report nor others.

Extras are those of the installed metadata, so that a new one is in the report by itself.
"""

from __future__ import annotations

import importlib.metadata
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from slideio_pipe.commands.doctor.findings import Finding, error_text
from slideio_pipe.commands.doctor.packages import PROJECT, Installed, extras, installed, requirements
from slideio_pipe.cores import usable_cores

# Proved only with --all, because their packages take seconds to import.
SLOW = frozenset({"bench", "dev", "docs", "memmap", "onnx", "timm", "train", "transformers"})
_LIMIT_S = 120.0
# Paths are passed as they are here, also those that were added while this process ran.
_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from slideio_pipe.commands.doctor.proofs import main
main(sys.argv[2])
"""


def examine_extras(every: bool) -> list[Finding]:
    """Return a finding for each extra.

    Parameters
    ----------
    every : bool
        Whether also those that take seconds are proved.
    """
    try:
        names = extras()
    except importlib.metadata.PackageNotFoundError:
        return []  # the finding about packages says so
    # Requirements are parsed in this thread: Python 3.11 can fail if several threads parse at the same time
    # (SystemError "AST constructor recursion depth mismatch", CPython issue 106905). Threads wait for processes.
    found = [(name, [installed(requirement) for requirement in requirements(name)]) for name in names]
    with ThreadPoolExecutor(max(1, usable_cores())) as pool:
        return list(pool.map(lambda one: _of_extra(one[0], one[1], every), found))


def _of_extra(extra: str, packages: list[Installed], every: bool) -> Finding:
    missing = [package.requirement.name for package in packages if not package.version]
    install = f'pip install "{PROJECT}[{extra}]"'
    if missing:
        return Finding("extras", extra, f"missing: {', '.join(missing)}", "optional", install)
    different = [package for package in packages if package.too_different]
    if different:
        found = ", ".join(f"{package}, which is not {package.requirement.specifier}" for package in different)
        return Finding("extras", extra, found, "broken", install)
    if extra in SLOW and not every:
        return Finding("extras", extra, f"{_versions(packages)}: installed; --all uses it", "untried")
    return _proved(extra, packages)


def _proved(extra: str, packages: list[Installed]) -> Finding:
    outcome = prove(extra)
    if "done" in outcome:
        return Finding("extras", extra, f"{_versions(packages)}: {outcome['done']}")
    remedy = f'pip install --force-reinstall "{PROJECT}[{extra}]"'
    return Finding("extras", extra, f"{_versions(packages)}: fails: {outcome['error']}", "broken", remedy)


def prove(extra: str) -> dict[str, str]:
    """Use an extra in another process; return ``done``, what it did, or ``error``."""
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(sys.path), extra]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"did not end within {_LIMIT_S:.0f} s"}
    except OSError as error:
        return {"error": f"Python cannot be started: {error_text(error)}"}
    try:
        outcome: dict[str, str] = json.loads(child.stdout)
    except ValueError:
        return {"error": _cause_of_death(child.returncode, child.stderr)}
    return outcome


def _cause_of_death(code: int, printed: str) -> str:
    lines = printed.strip().splitlines()
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how}: {lines[-1].strip()}" if lines else how


def _versions(packages: list[Installed]) -> str:
    """Return the first packages with their versions."""
    shown = ", ".join(map(str, packages[:3]))
    return f"{shown}, …" if len(packages) > 3 else shown
