"""Words of code, messages and pages: spelt right, British, of the field, without personification."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT
from prose import pages, prose, without_fences

# American spelling that is right here: computer programs, what NumPy calls an array, an argument, a paper's title.
AMERICAN = {"program", "programs", "writable", "normalize", "normalizing"}
# Functions, files and options do not do what people do; a term of the field has one word.
NOT_USED = {
    r"patch(es)?": "tile",
    r"told|tells?": "says, is given",
    r"bears?|borne": "has, records",
    r"hop(e|es|ed|ing|eful|efully)": "",
    r"fare[sd]?": "",
    r"lies|lied": "is, is wrong",
    r"welcom(e|es|ed|ing)": "",
    r"happy|unhappy|sadly|alas": "",
    r"knows|wants|thinks|believes|remembers|feels|wishes": "has, needs, keeps",
    r"forg[eo]ts?|forgotten": "drops",
    r"promises?": "",
    r"deliveries|(a|the next|the last|each) delivery": "chunk, batch",
    r"magic(al)?": "",
}
# Words in names of other tools, of their files and options; the patches of a vision transformer.
ALLOWED = {
    r"patch(es)?": r"CLAM|TRIDENT|STAMP|clam|trident|torchmil|patches/|_patches|--patch-size|patch_size|say \*?patch|"
    r"called patch|^slideio_pipe/features/encoders/|[Tt]okens before those of patches|pathology-whole-slide-data",
}


def test_spelling() -> None:
    """codespell finds nothing in code and pages; words that are misspelt on purpose are listed in pyproject.toml."""
    pytest.importorskip("codespell_lib")
    places = ["slideio_pipe", "examples", "tests", "configs", *(path.name for path in ROOT.glob("*.md"))]
    done = subprocess.run([sys.executable, "-m", "codespell_lib", *places], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.system
def test_spelling_is_british() -> None:
    """As in the names of this package: colour, normalise, centre. Code and parameters keep their names."""
    codespell = pytest.importorskip("codespell_lib")
    lines = (Path(codespell.__file__).parent / "data" / "dictionary_en-GB_to_en-US.txt").read_text("utf-8").split()
    pairs = [line.split("->") for line in lines if "->" in line]
    british = {pair[0] for pair in pairs}
    american = {pair[1].strip(","): pair[0] for pair in pairs}
    assert american["color"] == "colour"
    found = [
        f"{where}: {word}, {american[word]}"
        for where, text in prose()
        for word in re.findall(r"(?<![\w.=(/\"'\-])[a-z]+(?![\w(=.\"'/]*[\w(=])", text)
        if word in american and word not in british | AMERICAN
    ]
    assert not found


def unusual_words() -> Iterator[str]:
    """Yield each place with a word that is not used, and what to write in its place."""
    patterns = {pattern: re.compile(rf"\b({pattern})\b", re.IGNORECASE) for pattern in NOT_USED}
    for where, text in prose():
        for pattern, compiled in patterns.items():
            found = compiled.search(text)
            if found and not (pattern in ALLOWED and re.search(ALLOWED[pattern], f"{where} {text}")):
                yield f"{where}: {found[0]!r} {NOT_USED[pattern] and f'({NOT_USED[pattern]})'} in {text.strip()!r}"


@pytest.mark.system
def test_words_are_plain_and_those_of_the_field() -> None:
    """A tile is never a patch, except in names of other tools; nothing of the package hopes, knows or tells."""
    assert list(unusual_words()) == []


def test_links_of_pages_resolve() -> None:
    """Relative links name a file, and their anchors a heading of it, as GitHub numbers them; others are addresses."""
    wrong = []
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text(encoding="utf-8"))):
            if re.match(r"\w+:", target):
                if not re.match(r"https://[\w.-]+\.[a-z]+(/\S*)?$", target):
                    wrong.append(f"{page.name}: {target}")
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            made = anchor.startswith("slideio_pipe.")  # mkdocstrings makes it; the site's test checks it
            if not file.exists() or (anchor and not made and anchor not in anchors(file)):
                wrong.append(f"{page.name}: {target}")
    assert not wrong


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    text = re.sub(r"^(`{3,}).*?^\1 *$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
