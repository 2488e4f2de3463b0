"""Find the pages of the site that answer a question, with the search index that mkdocs wrote."""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A word of a heading counts as much as this many of the text.
_HEADING = 6
# The guide answers questions; the reference of Python has the most words.
_WEIGHTS = (
    ("reference/python/", 0.5),
    ("reference/", 0.8),
    ("notebooks/", 0.8),
    ("index", 0.5),
    ("files/", 0.4),
    ("", 1.0),
)
# Okapi BM25 with the usual constants: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009.
_K1, _B = 1.2, 0.75
# Words that every page has.
_COMMON = re.compile(
    "a|an|and|are|as|at|be|by|can|do|does|for|from|has|have|how|i|in|is|it|its|my|of|on|or|so|that|the|them|there|they|"
    "this|to|was|what|when|where|which|while|why|with|you|your"
)
_ENDINGS = ("ations", "ation", "ings", "ing", "edly", "ies", "ed", "es", "e", "s", "y")
_EXCERPT = 160  # characters


@dataclass(frozen=True)
class Hit:
    """A page of the site and its best section."""

    page: str
    section: str  # "" where the page's beginning is the best
    location: str  # below the site's folder, with the anchor
    excerpt: str
    score: float


@dataclass(frozen=True)
class _Section:
    location: str
    title: str
    prose: str  # the text without blocks of code
    words: Counter[str]


def find_pages(site: Path, question: str, count: int = 5) -> list[Hit]:
    """Return the best pages for a question, each with its best section, best first."""
    documents = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    sections = [_section(document) for document in documents]
    titles = {section.location: section.title for section in sections if "#" not in section.location}
    best: dict[str, tuple[float, _Section]] = {}
    for score, section in _scored(sections, set(_stems(question))):
        page = section.location.partition("#")[0]
        if score > best.get(page, (0.0,))[0]:
            best[page] = score, section
    ranked = sorted(best.items(), key=lambda item: -item[1][0])[:count]
    return [
        Hit(
            titles.get(page, page),
            section.title if "#" in section.location else "",
            section.location,
            _excerpt(section.prose, set(_stems(question))),
            round(score, 3),
        )
        for page, (score, section) in ranked
    ]


def _section(document: dict[str, str]) -> _Section:
    title = _plain(document["title"])
    prose = _plain(re.sub(r"<pre>.*?</pre>", " ", document["text"], flags=re.DOTALL))
    words = Counter(_stems(_plain(document["text"])))
    for stem in _stems(title):
        words[stem] += _HEADING
    return _Section(document["location"], title, prose, words)


def _plain(text: str) -> str:
    """Return a text of the index without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def _stems(text: str) -> Iterator[str]:
    """Yield the words of a text without endings, also the parts of ``tile_size`` and ``TileBag``.

    Examples
    --------
    >>> list(_stems("How does resuming of a TileBag hang?"))
    ['resum', 'til', 'bag', 'hang']
    """
    for word in re.findall(r"[a-z0-9µ]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()):
        if not _COMMON.fullmatch(word):
            ending = next((end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), "")
            yield word.removesuffix(ending)


def _scored(sections: list[_Section], stems: set[str]) -> Iterator[tuple[float, _Section]]:
    """Yield the score of each section that has a word of the question."""
    mean = sum(section.words.total() for section in sections) / max(len(sections), 1)
    rarity = {}
    for stem in stems:
        having = sum(stem in section.words for section in sections)
        rarity[stem] = math.log(1 + (len(sections) - having + 0.5) / (having + 0.5))
    for section in sections:
        length = _K1 * (1 - _B + _B * section.words.total() / mean)
        score = sum(
            rarity[stem] * section.words[stem] * (_K1 + 1) / (section.words[stem] + length)
            for stem in stems
            if stem in section.words
        )
        if score:
            yield score * next(weight for start, weight in _WEIGHTS if section.location.startswith(start)), section


def _excerpt(text: str, stems: set[str]) -> str:
    """Return the sentence that has most words of a question, shortened."""
    sentences = re.split(r"(?<=[.:;?!])\s+", text)
    best = max(sentences, key=lambda sentence: len(stems & set(_stems(sentence))))
    return best if len(best) <= _EXCERPT else best[: best.rfind(" ", 0, _EXCERPT)] + " …"
