"""``slideio-pipe docs`` finds pages in the index of a site, and opens it; building it: tests/system/test_site.py."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from command_line import run

from slideio_pipe.commands.documentation import site_files
from slideio_pipe.commands.documentation.site_search import find_pages

DOCUMENTS = [
    ("03_resolution.html", "Resolution", "<p>A view has an mpp.</p>"),
    ("03_resolution.html#no-mpp", "A slide has no mpp", "<p>It is refused. Pass <code>slide_mpp</code>.</p>"),
    ("04_tissue.html", "Tissue", "<p>Which parts are tiles.</p> <pre><code>pen = 3  # marks</code></pre>"),
    ("04_tissue.html#pen", "Pen", "<p>Marks of a pen are left out. Resolution does not matter &amp; holes do.</p>"),
    ("reference/python/slides.html#open", "open_slide", "<p>Open a slide that has no mpp, with an mpp.</p>"),
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of an installed package."""
    (tmp_path / "search").mkdir()
    documents = [{"location": place, "title": title, "text": text} for place, title, text in DOCUMENTS]
    (tmp_path / "search" / "search_index.json").write_text(json.dumps({"docs": documents}), encoding="utf-8")
    (tmp_path / "index.html").write_text("<h1>Guide</h1>", encoding="utf-8")
    monkeypatch.setattr(site_files, "SHIPPED", tmp_path)
    return tmp_path


def test_the_best_section_of_each_page_is_found(site: Path) -> None:
    """Words count in any form, in headings more; a page is listed once, with its best section and sentence."""
    hits = find_pages(site, "Why have my slides no MPP?")
    assert [(hit.page, hit.section, hit.location) for hit in hits] == [
        ("Resolution", "A slide has no mpp", "03_resolution.html#no-mpp"),
        ("reference/python/slides.html", "open_slide", "reference/python/slides.html#open"),
    ]
    (pen,) = find_pages(site, "pen marks", 1)
    assert (pen.section, pen.excerpt) == ("Pen", "Marks of a pen are left out.")
    (tissue,) = find_pages(site, "which part is a tile", 1)
    assert (tissue.page, tissue.section, tissue.excerpt) == ("Tissue", "", "Which parts are tiles.")
    assert find_pages(site, "zebra") == find_pages(site, "") == []


def test_the_command_prints_pages_and_links(site: Path) -> None:
    """As text and as JSON; "find" before a question is no word of it."""
    found = run("docs", "slide", "has", "no", "mpp", "--count", 1).stdout
    assert found.splitlines()[0] == "Resolution: A slide has no mpp"
    assert f"{site.as_uri()}/03_resolution.html#no-mpp" in found
    listed = json.loads(run("docs", "find", "slide has no mpp", "--json").stdout)
    assert [hit["location"] for hit in listed] == ["03_resolution.html#no-mpp", "reference/python/slides.html#open"]
    assert listed[0]["url"] == f"{site.as_uri()}/03_resolution.html#no-mpp"
    assert "no page has these words" in run("docs", "zebra").stdout


def test_the_command_opens_the_site(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the browser, unless only the link is wanted; where there is no browser, a warning says so."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) < 2)
    url = (site / "index.html").as_uri()
    assert json.loads(run("docs", "--json").stdout) == {"url": url}
    assert url in run("docs", "--no-browser").stdout
    assert not opened
    assert "warning" not in run("docs").output
    assert "no browser was found" in run("docs").output
    assert opened == [url, url]


def test_without_a_site_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a package without one, and in a checkout without mkdocs."""
    monkeypatch.setattr(site_files, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(site_files, "BUILT", tmp_path / "none")
    monkeypatch.setattr(site_files, "SETTINGS", tmp_path / "mkdocs.yml")
    assert "install slideio-pipe from a wheel" in run("docs", code=2).output
    (tmp_path / "mkdocs.yml").write_text("site_name: a\n", encoding="utf-8")
    monkeypatch.setattr(site_files.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "slideio-pipe[docs]"' in run("docs", code=2).output
