"""Hooks of mkdocs: notebooks become pages, and files beside the guide that pages link to become pages of the site.

mkdocs loads this file by its path, before the package is installed: it imports nothing of it.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

# A link of Markdown, or code, in which nothing is a link.
_LINK = re.compile(
    r"^```.*?^```|`[^`\n]*`(?!\])|(?<!!)\[(?P<text>[^\]]*)\]\((?P<link>[^)\s]+)\)", re.DOTALL | re.MULTILINE
)
# What a test of the pages reads: blocks that should fail. A fence with two words is no code for Markdown.
_RAISES = re.compile(r"^(```(?:python|bash)) raises$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".txt": "text", ".json": "json", ".cff": "yaml"}
FOLDER = "files"  # in the site: files of the repository outside the guide
# Of pages in the search, by the beginning of their path, as in site_search.py: the guide answers questions, its index
# has the words of all, and the reference of Python the most words.
_BOOSTS = {"index": 0.5, "notebooks/": 1, "reference/python/": 0.5, "reference/": 1, f"{FOLDER}/": 0.5, "": 4}


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook and each linked file, and pictures of notebooks."""
    guide = Path(config.docs_dir)
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        name = file.src_uri.removesuffix(".ipynb")
        page, pictures = notebook_page(json.loads((guide / file.src_uri).read_text(encoding="utf-8")), Path(name).name)
        files.append(File.generated(config, f"{name}.md", content=page))
        for number, picture in enumerate(pictures, 1):
            files.append(File.generated(config, f"{name}/{number}.jpg", content=picture))
    for target in sorted(_linked_files(guide)):
        files.append(File.generated(config, _page_of(target), content=_file_page(guide.parent.parent, target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at the pages that stand for notebooks and for files outside the guide."""
    del config
    boost = next(number for start, number in _BOOSTS.items() if page.file.src_uri.startswith(start))
    page.meta.setdefault("search", {"boost": boost})
    here = posixpath.dirname(page.file.src_uri)

    def point(found: re.Match[str]) -> str:
        text, link = found["text"], found["link"] or ""
        path, hash_, anchor = link.partition("#")
        if not path or ":" in path:
            return found[0]
        if path.endswith(".ipynb"):
            return f"[{text}]({path.removesuffix('.ipynb')}.md)"
        target = _target(here, path)
        if target is None:
            return found[0]
        # A folder, or a file that only another file outside the guide links to, is no page.
        known = files.get_file_from_path(_page_of(target)) is not None
        return f"[{text}]({posixpath.relpath(_page_of(target), here or '.')}{hash_}{anchor})" if known else text

    return _RAISES.sub(r"\1", _LINK.sub(point, markdown))


def _target(here: str, path: str) -> str | None:
    """Return the path in the repository of a link that leaves the guide."""
    start = here.removeprefix(FOLDER).lstrip("/") if here.startswith(FOLDER) else f"examples/guide/{here}"
    target = posixpath.normpath(posixpath.join(start, path))
    return None if target.startswith(("examples/guide/", "..")) or target == "examples/guide" else target


def _linked_files(guide: Path) -> Iterator[str]:
    """Yield files outside the guide that its pages link to, each once."""
    found = set()
    for page in guide.rglob("*.md"):
        here = page.parent.relative_to(guide).as_posix()
        for link in _LINK.finditer(page.read_text(encoding="utf-8")):
            path = (link["link"] or ":").partition("#")[0]
            target = None if ":" in path else _target(here, path)
            if target and (guide.parent.parent / target).is_file() and Path(target).suffix in {".md", *_LANGUAGES}:
                found.add(target)
    yield from found


def _page_of(target: str) -> str:
    """Return the page of the site for a file of the repository."""
    return f"{FOLDER}/{target if target.endswith('.md') else target + '.md'}"


def _file_page(root: Path, target: str) -> str:
    text = (root / target).read_text(encoding="utf-8")
    if target.endswith(".md"):
        return text
    return f"# {target}\n\n````{_LANGUAGES[Path(target).suffix]}\n{text}\n````\n"


def notebook_page(notebook: dict[str, Any], name: str) -> tuple[str, list[bytes]]:
    """Return a notebook as Markdown, and its pictures, which the page calls ``name/1.jpg`` and so on."""
    parts: list[str] = []
    pictures: list[bytes] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts.extend(_output(output, name, pictures) for output in cell["outputs"])
    return "\n\n".join(parts) + "\n", pictures


def _output(output: dict[str, Any], name: str, pictures: list[bytes]) -> str:
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items() if kind != "application/json"}
    if "image/jpeg" in data:  # before HTML: a viewer in a frame is shown as its picture
        pictures.append(base64.b64decode(data["image/jpeg"]))
        return f"![Output of the cell]({name}/{len(pictures)}.jpg)"
    if "text/html" in data:
        return f'<div class="notebook-output">{data["text/html"]}</div>'
    text = data.get("text/plain") or "".join(output.get("text", []))
    return f"```text\n{text.rstrip()}\n```"
