"""The prose of the project: comments, docstrings and messages of the package, and the text of its pages."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

PACKAGE = ROOT / "slideio_pipe"
GUIDE = ROOT / "examples" / "guide"
OTHERS = ("openseadragon.min.js",)  # not written here


def pages() -> list[Path]:
    """Return the Markdown pages; those of the reference of Python have nothing but names."""
    named = [ROOT / name for name in ("README.md", "CHANGELOG.md", "tests/benchmarks/README.md")]
    return [*named, *sorted(PACKAGE.glob("*.md")), *sorted(GUIDE.glob("*.md")), *sorted(GUIDE.glob("reference/*.md"))]


def prose() -> Iterator[tuple[str, str]]:
    """Yield the place of each text, and the text without code."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield from _of_python(file)
    for file in sorted((PACKAGE / "viewer" / "page").glob("*.*")):
        if file.name not in OTHERS and file.suffix in (".js", ".css", ".html"):
            comments = r"(?<!:)//.*$|/\*[^*]*\*/|<!--.*?-->"
            for found in re.finditer(comments, file.read_text(encoding="utf-8"), re.MULTILINE):
                yield str(file.relative_to(ROOT)), found[0]
    for file in pages():
        yield from _lines(file, without_code(file.read_text(encoding="utf-8")))
    for file in sorted(GUIDE.glob("notebooks/*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                yield from _lines(file, without_code("".join(cell["source"])))


def _lines(file: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        yield f"{file.relative_to(ROOT)}:{number}", line


def without_code(text: str) -> str:
    """Return Markdown without blocks of code, code in lines, and addresses of links; its lines stay where they are."""
    return re.sub(r"\]\([^)\s]*\)|<!--.*?-->", "", without_fences(text))


def without_fences(text: str) -> str:
    """Return Markdown without blocks of code and code in lines; its lines stay where they are."""
    text = re.sub(r"^(`{3,}).*?^\1 *$", lambda found: "\n" * found[0].count("\n"), text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "", text)


def _of_python(file: Path) -> Iterator[tuple[str, str]]:
    source = file.read_text(encoding="utf-8")
    where = file.relative_to(ROOT).as_posix()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield f"{where}:{token.start[0]}", re.sub(r"`[^`]*`", "", token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.split("\n")):
                if not re.match(r"\s*(>>>|\.\.\. )|\s*\w+(, \w+)* : ", line):  # an example, or a parameter of numpydoc
                    yield f"{where}:{node.lineno + number}", re.sub(r"``[^`]*``|`[^`]*`", "", line)
