"""The process that runs the blocks of one page of the guide: ``python page_session.py PAGE FOLDER RESULTS.json``."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from page_blocks import Block, read_blocks
from PIL import Image

COLUMNS = 100


def run_page(page: Path, folder: Path) -> list[dict[str, Any]]:
    """Run the blocks of a page in a folder; a block that fails is the last one."""
    names: dict[str, object] = {"__name__": "__main__"}
    results = []
    for block in read_blocks(page.read_text(encoding="utf-8")):
        if block.title:
            (folder / block.title).write_text(block.code, encoding="utf-8")
            continue
        if block.language == "python":
            output, failure = run_python(block, names, page)
        elif block.language == "bash":
            output, failure = run_bash(block, folder)
        else:
            continue
        results.append(
            {"line": block.line, "output": output.replace(str(folder), "/home/you/work"), "failure": failure}
        )
        if failure:
            break
    return results


def run_python(block: Block, names: dict[str, object], page: Path) -> tuple[str, str]:
    """Return what a block prints, with the value of a last expression, and why it failed."""
    tree = ast.parse(block.code, filename=str(page))
    ast.increment_lineno(tree, block.line)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, issued, failure = io.StringIO(), [], ""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__module__.startswith("slideio_pipe"):
            printed.write(f"{category.__name__}: {message}\n")
            issued.append(f"{category.__name__}: {message}")

    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            exec(compile(tree, str(page), "exec"), names)
            if last is not None:
                show_value(eval(compile(ast.Expression(last.value), str(page), "eval"), names), block)
            if block.raises:
                failure = "raised no error"
            elif issued and not block.has_output:
                failure = f"issued a warning that the page does not show: {issued[0]}"
        except Exception as error:
            printed.write(f"{type(error).__name__}: {error}\n")
            failure = "" if block.raises else traceback.format_exc()
    return printed.getvalue(), failure


def show_value(value: object, block: Block) -> None:
    """Print the value of a last expression, as a notebook does, or save the picture that the page shows after it."""
    if value is None:
        return
    if block.picture and isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        value = Image.fromarray(value)
    if block.picture and isinstance(value, Image.Image):
        value.convert("RGB").save(block.picture, quality=85)  # PNG ignores the quality
    elif block.picture and hasattr(value, "savefig"):
        value.savefig(block.picture)
    else:
        print(repr(value))


def run_bash(block: Block, folder: Path) -> tuple[str, str]:
    """Return what the commands of a block print on both streams, and why the block failed."""
    shell = ["bash", "-uo", "pipefail", *([] if block.raises else ["-e"]), "-c", block.code]
    programs = folder.parent / "bin"
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "COLUMNS": str(COLUMNS)}
    environment |= {"NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        shell, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = done.stdout.decode("utf-8")
    if done.returncode and not block.raises:
        return output, f"exit code {done.returncode}"
    if not block.has_output and any(line.startswith("warning: ") for line in output.splitlines()):
        return output, "printed a warning that the page does not show"
    return output, ""


def write_programs(folder: Path) -> None:
    """Write ``slideio-pipe`` and ``python``, which run this interpreter."""
    folder.mkdir()
    for name, arguments in {"slideio-pipe": "-m slideio_pipe", "python": "", "python3": ""}.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', encoding="utf-8")
        program.chmod(0o755)


if __name__ == "__main__":
    page, folder, results = (Path(argument) for argument in sys.argv[1:])
    write_programs(folder.parent / "bin")
    os.chdir(folder)
    sys.path.insert(0, "")  # as in a session of Python: modules of the current folder
    results.write_text(json.dumps(run_page(page, folder)), encoding="utf-8")
