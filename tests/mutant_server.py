"""Tests for mutants.py, without starting Python and importing torch for each of them.

Input is a line of JSON: the copy of the repository, the files to test, the time limit in seconds. Every file runs in a
fork of this process, which has imported other packages but not this one. Output is a line: "killed" with the test that
failed, "survived" or "time out".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import h5py  # noqa: F401
import imagecodecs  # noqa: F401
import pydantic  # noqa: F401
import pytest
import scipy.ndimage  # noqa: F401
import skimage.morphology  # noqa: F401
import tifffile  # noqa: F401
import torch  # noqa: F401
import typer  # noqa: F401


def run(tree: str, file: str, output: IO[str]) -> None:
    """Run one file in this process, which ends with it."""
    os.setsid()
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path[:0] = [tree]
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", file])
    sys.stdout.flush()
    os._exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code))  # no doctests


def outcome(tree: str, file: str, until: float) -> tuple[str, str]:
    """Test one file in a fork, and kill it at its time limit."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            run(tree, file, output)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "time out", file
            time.sleep(0.05)
        output.seek(0)
        lines = output.read().splitlines()
    found = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), " ".join(lines[-2:]))
    return ("survived", "") if ended[1] == 0 else ("killed", found[:300])


def main() -> None:
    """Answer each line in order."""
    for line in sys.stdin:
        tree, files, timeout = json.loads(line)
        until, answer = time.monotonic() + timeout, ("survived", "")
        for file in files:
            answer = outcome(tree, file, until)
            if answer[0] != "survived":
                break
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent)
    main()
