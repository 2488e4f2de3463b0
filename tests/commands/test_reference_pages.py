"""Pages of the reference are those of the code; every public name has an example; messages of errors exist."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
from page_blocks import read_blocks
from pages import GUIDE
from paths import ROOT

import slideio_pipe as sp
from slideio_pipe import errors
from slideio_pipe.commands.documentation.error_examples import ERROR_EXAMPLES
from slideio_pipe.commands.documentation.reference_pages import names_by_room
from slideio_pipe.commands.documentation.write_pages import made_files

PAGES = {name: text for name, text in made_files().items() if name.endswith(".md")}
CLASSES = [
    name
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, (sp.SlideioPipeError, sp.SlideioPipeWarning))
]


@pytest.mark.parametrize("name", PAGES)
def test_committed_pages_are_those_of_the_code(name: str) -> None:
    """Otherwise: ``python -m slideio_pipe.commands.documentation.write_pages``."""
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name]


def test_every_public_name_is_on_one_page() -> None:
    """And no page has another one."""
    listed = [name for names in names_by_room().values() for name in names]
    assert sorted(listed) == sorted(sp.__all__)
    shown = re.findall(r"^::: slideio_pipe\.(\w+)$", "\n".join(PAGES.values()), re.MULTILINE)
    assert sorted(shown) == sorted(sp.__all__)


# A training takes seconds, and work over a cohort is a file of its own: their examples are in pages, which a test runs.
IN_GUIDE = {
    "fit": "sp.fit(",
    "Fitted": "fitted.",
    "Predictor": "sp.load_predictor(",
    "Prediction": "prediction.",
    "run_cohort": "sp.run_cohort(",
}


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    """In its docstring or that of a public method, which pytest runs (``--doctest-modules``), or in the guide."""
    value = getattr(sp, name)
    methods = [member for key, member in vars(value).items() if key[0] != "_"] if inspect.isclass(value) else []
    texts = [inspect.getdoc(getattr(member, "__func__", member)) or "" for member in (value, *methods)]
    blocks = [
        block.code
        for page in GUIDE.glob("*.md")
        for block in read_blocks(page.read_text("utf-8"))
        if block.language == "python"
    ]
    in_guide = name in IN_GUIDE and any(IN_GUIDE[name] in code for code in blocks)
    assert in_guide or any(doctest.DocTestParser().get_examples(text) for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_explained_by_a_message_of_the_code(name: str) -> None:
    """The typical message of the page is one that a line of the package writes."""
    if name in ("SlideioPipeError", "SlideioPipeWarning"):
        assert name not in ERROR_EXAMPLES
        return
    message = ERROR_EXAMPLES[name][0]
    reason = message.partition("; ")[0]
    assert any(pattern.fullmatch(reason) or pattern.fullmatch(message) for pattern in written_messages())


@cache
def written_messages() -> list[re.Pattern[str]]:
    """Return patterns of the package's texts of several words, after a slide's name; inserted values match anything."""
    found = set()
    for file in Path(sp.__file__).parent.rglob("*.py"):
        if "documentation" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Constant, ast.JoinedStr)):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
                if all(isinstance(text, str) for text in texts):
                    text = "".join(map(str, texts))
                    if len(text.replace("\0", "").split()) >= 2:
                        found.add(".+".join(re.escape(part) for part in text.split("\0")))
    return [re.compile(rf"(\S+: )?{pattern}", re.DOTALL) for pattern in found]
