"""The documentation site: built without a broken link, complete, and its search answers what users ask."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM

import slideio_pipe as sp
from slideio_pipe.commands.documentation.site_build import build_site
from slideio_pipe.commands.documentation.site_search import find_pages

# Questions from issue trackers of other tools, and the pages that answer them.
QUESTIONS = {
    "GPU utilisation is low while reading slides": ("07_streaming", "17_settings", "15_problems"),
    "slide has no mpp": ("03_resolution", "15_problems"),
    "out of memory with a large bag": ("11_training", "15_problems"),
    "num_workers hangs": ("15_problems", "07_streaming"),
    "stain augmentation is slow": ("05_augmentation",),
    "resume after crash": ("09_cohorts",),
    "black corners after rotation": ("05_augmentation",),
    "export tiles as JPEG": ("08_stores",),
    "export tiles as h5": ("08_stores",),
    "pen marks kept as tissue": ("04_tissue",),
    "slides in S3": ("14_remote",),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this checkout; a broken link or anchor, or a docstring that cannot be parsed, is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers")
    folder = tmp_path_factory.mktemp("documentation") / "site"
    build_site(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without any network."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_it_needs_no_internet(site: Path) -> None:
    """No page, style or script loads anything from elsewhere."""
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]+src="?(?:https?:)?//|<link[^>]+rel="?(?:stylesheet|preload|icon)[^>]+//"""
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))]
    styles = [style.read_text(encoding="utf-8") for style in site.rglob("*.css")]
    assert styles
    assert not [style for style in styles if re.search(r"url\(\W*https?:|@import", style)]


def test_every_block_of_code_is_one(site: Path) -> None:
    """No fence of a block is shown as text."""
    assert not [page.name for page in site.rglob("*.html") if "```" in page.read_text(encoding="utf-8")]


def public_members() -> Iterator[str]:
    """Yield the public names, and the public methods and properties of the classes, also inherited from ours."""
    for name in sp.__all__:
        value = getattr(sp, name)
        yield name
        if inspect.isclass(value):
            for member in dir(value):
                owner = next((kind for kind in value.__mro__ if member in vars(kind)), object)
                kept = inspect.isroutine(getattr(value, member)) or isinstance(vars(owner).get(member), property)
                if not member.startswith("_") and owner.__module__.startswith("slideio_pipe") and kept:
                    yield f"{name}.{member}"


def test_the_reference_has_every_public_name_once(site: Path) -> None:
    """And every public method and property of the classes, also those of mixins such as ``explore``."""
    pages = (site / "reference" / "python").glob("*.html")
    found = Counter(
        place for page in pages for place in re.findall(r'<h\d id="?slideio_pipe\.([\w.]+)', page.read_text("utf-8"))
    )
    wanted = set(public_members())
    assert {"TileBag.explore", "Slide.level_dimensions", "open_slide", "BagLoader.state_dict"} <= wanted
    assert sorted(wanted - set(found)) == []
    assert [place for place, count in found.items() if count > 1] == []


def test_every_notebook_is_a_page_with_its_pictures(site: Path) -> None:
    """Which are files of the site, and not in the text."""
    pages = sorted((site / "notebooks").glob("*.html"))
    assert len(pages) == 7
    for page in pages:
        pictures = re.findall(rf'src="?({page.stem}/\d+\.jpg)', page.read_text(encoding="utf-8"))
        assert len(pictures) >= 2
        assert all((page.parent / picture).stat().st_size > 1000 for picture in pictures)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_command_finds_the_page_of_a_question(site: Path, question: str) -> None:
    """Among the first three."""
    pages = [Path(hit.location.partition("#")[0]).stem for hit in find_pages(site, question, 3)]
    assert set(pages) & set(QUESTIONS[question]), pages


def test_the_search_of_the_site_finds_the_page_of_each_question(site: Path, browser: Any) -> None:
    """Among the first three pages, over file://, without an error or a request for another place."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and problems.append(request.url))
    page.goto((site / "index.html").as_uri())
    wrong = {}
    for question, wanted in QUESTIONS.items():
        page.fill("input[name=query]", "")
        page.click("input[name=query]")
        page.keyboard.type(question)
        asked = json.dumps(question)
        page.wait_for_function(f"document.querySelector('input[name=query]').value === {asked}")
        page.wait_for_selector(".md-search-result__item > a")
        page.wait_for_timeout(400)  # the list follows the last key
        links = [link.get_attribute("href") for link in page.query_selector_all(".md-search-result__list li > a")]
        found = list(dict.fromkeys(Path(link.partition("?")[0].partition("#")[0]).stem for link in links))[:3]
        if not set(found) & set(wanted):
            wrong[question] = found
    assert not wrong
    assert not problems
    page.close()
