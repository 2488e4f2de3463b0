"""The page of a cohort shows every slide and its problems, and is safe to open."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from browser import chromium
from page_reader import Page
from PIL import Image
from run_events import done, failed, start

from slideio_pipe.cohort.records import Records
from slideio_pipe.cohort.report_page import page, picture_file, write_page
from slideio_pipe.errors import OutputError

NUMBERS = {
    "state": "finished",
    "done": 2,
    "kept": 1,
    "seconds": 7300.0,
    "slides_per_hour": 1234.5,
    "ended": "2026-01-02T03:04:05+00:00",
    "settings": {"view": {"mpp": 0.5}, "allow_empty": False},
    "packages": {"slideio-pipe": "1.2.3"},
    "host": "node7",
}


def written(folder: Path, *events: dict[str, Any], **more: Any) -> str:
    """Return the page of some events."""
    (folder / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return "".join(page("bags", Records(folder), NUMBERS, lambda name: picture_file(folder, name), **more))


def draw(folder: Path, name: str) -> None:
    """Write a picture of a slide where the page expects it."""
    picture_file(folder, name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (30, 10)).save(picture_file(folder, name))


def test_a_row_has_name_error_warnings_and_numbers(tmp_path: Path) -> None:
    """The error with stage and remedy, the numbers under their headings."""
    event = done("a.svs", 1234, seconds=2.25, warnings=["mpp estimated"])
    event["made"] |= {"mpp": [0.5, 0.5], "mpp_source": "file", "tissue": 0.25, "bytes": 5_500_000, "n_things": 7}
    found = Page(written(tmp_path, start("a.svs", label=1), event, start("b.svs"), failed("b.svs")))
    heads = found.rows[0].split("  ")[0].split()
    assert heads[:4] == ["slide", "label", "tiles", "tissue"]
    assert "n things" in found.rows[0]
    bad, good = found.rows[1:]
    assert all(part in bad for part in ("b.svs", "failed", "tiles: damaged", "copy it again"))
    assert all(part in good for part in ("a.svs", "1 warning", "mpp estimated", "1,234", "25.0", "0.5", "5.5", "2.2"))
    assert not found.all("img")


def test_totals_are_on_top(tmp_path: Path) -> None:
    """Done, kept, failed, throughput, settings, versions, host."""
    text = written(tmp_path, start("a"), done("a", 5), failed("b"))
    top = text[: text.index("<table")]
    words = re.sub(r"<[^>]+>", " ", top[top.index("<body>") :])
    for part in ("2 slides: 1 done, 1 failed", "finished 2026-01-02 03:04 UTC", "1,234", "2.0 h", "view.mpp", "node7"):
        assert part in words


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a\"b'&amp;.svs", "50%25 #?.svs", "µ × 日本.svs", "{{ 7*7 }} {% raw"]
)
def test_names_and_errors_are_escaped(tmp_path: Path, name: str) -> None:
    """Slide names, labels and errors add no elements to the page; pictures are found."""
    draw(tmp_path, name.replace("/", "_"))
    evil = "<img src=x onerror=alert(1)>"
    event = done(name, 3, warnings=[evil])
    event["made"]["note"] = evil

    def elements(slide: str, text: str) -> list[str]:
        reported = {**event, "slide": slide, "made": {**event["made"], "note": text}, "warnings": [text]}
        events = [start(slide, label=text, split=text), reported, failed(f"{slide}2", text)]
        return [tag for tag, _ in Page(written(tmp_path, *events)).tags]

    assert elements(name, evil).count("script") == 1
    assert [tag for tag in elements(name, evil) if tag not in ("img", "a")] == [
        tag for tag in elements("plain", "plain") if tag not in ("img", "a")
    ]
    text = written(tmp_path, start(name), event)
    assert name in Page(text).rows[1]
    if "/" not in name:
        (image,) = Page(text).all("img")
        assert (tmp_path / unquote(str(image["src"]))).exists()
        assert name in str(image["alt"])
        assert (image["loading"], image["width"], image["height"]) == ("lazy", "30", "10")


@pytest.mark.system
@pytest.mark.parametrize("width", [1280, 1920])
def test_long_names_do_not_widen_the_page(tmp_path: Path, width: int) -> None:
    """Of slides, labels, patients, encoders and files without a place to break them; numbers stay on one line."""
    name, long = "x" * 120 + ".svs", "unbreakable_" * 12
    event = done(name, 123_456, warnings=[long])
    event["made"] |= {"mpp": [0.2528, 0.2529], "mpp_source": long, "tissue": 0.25, "tissue_covered": 0.5}
    event["made"] |= {"bytes": 123_456_789, "tiles_per_second": 12_345.6, "features": f"/data/{long}", "encoders": long}
    draw(tmp_path, name)
    about = {"label": long[:40], "patient": long[:60], "split": "train"}
    (tmp_path / "a.html").write_text(written(tmp_path, start(name, **about), event, failed(f"b{name}", long)))
    with chromium() as browser:
        shown = browser.new_page(viewport={"width": width, "height": 800})
        shown.goto((tmp_path / "a.html").as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        fits = "cells => cells.map((cell) => [cell.innerText, cell.scrollWidth <= cell.clientWidth])"
        cells = shown.eval_on_selector_all("td:not(.t):not(:first-child)", fits)
        assert ["123,456", True] in cells
        assert all(inside for _, inside in cells)


def test_the_colours_of_pictures_are_explained_where_there_are_some(tmp_path: Path) -> None:
    """The tissue line and the tiles; a page without pictures does not speak of them."""
    records = (start("a"), done("a", 5))
    draw(tmp_path, "a")
    assert "tissue outline" in written(tmp_path, *records)
    text = "".join(page("features", Records(tmp_path), NUMBERS, None))
    assert "picture" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.DOTALL)


def test_an_incomplete_picture_is_left_out(tmp_path: Path) -> None:
    """Half of a file, for example."""
    draw(tmp_path, "a")
    picture_file(tmp_path, "a").write_bytes(b"\xff\xd8")
    assert not Page(written(tmp_path, start("a"), done("a", 1))).all("img")


def test_a_page_of_many_slides_has_pictures_of_the_worst(tmp_path: Path) -> None:
    """The others have a line each; the page says so, and needs no more memory."""
    draw(tmp_path, "s3")
    events = [event for k in range(20) for event in (start(f"s{k}"), done(f"s{k}", 100 + k, seconds=1))]
    found = Page(text := written(tmp_path, *events, pictured=5))
    assert "The worst 5 of 20 slides" in text
    assert "The other 15 slides, without pictures" in text
    assert [row.split()[0] for row in found.rows if row.split()[0] != "slide"] == [f"s{k}" for k in range(20)]
    assert len(found.all("img")) == 1


@pytest.mark.slow
def test_the_page_of_many_slides_needs_little_memory(tmp_path: Path) -> None:
    """Less than 1 kB for each of 5,000 slides: the page is never whole in memory."""
    slides = 5000
    with (tmp_path / "run.jsonl").open("w") as file:
        for k in range(slides):
            made = {"tiles": k, "note": "x" * 500}
            file.write(json.dumps(start(f"s{k}")) + "\n" + json.dumps({**done(f"s{k}", k), "made": made}) + "\n")
    tracemalloc.start()
    path, _ = write_page(tmp_path, None, NUMBERS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * slides
    assert path.read_text().count("<tr>") == slides + 2


def test_the_page_is_written_atomically(tmp_path: Path) -> None:
    """If it cannot be written, nothing is left behind and the page before remains."""
    (tmp_path / "run.jsonl").write_text(json.dumps(done("a", 1)) + "\n")
    write_page(tmp_path, None, NUMBERS)
    before = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html.partial").mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        write_page(tmp_path, None, NUMBERS)
    assert (tmp_path / "report.html").read_text() == before


def test_the_page_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    """No file but the pictures; it has a language, a title and a label of the filter."""
    draw(tmp_path, "a")
    text = written(tmp_path, start("a"), done("a", 1))
    found = Page(text)
    assert "http" not in text
    assert not found.all("link")
    assert found.all("html")[0]["lang"] == "en"
    assert found.all("label")[0]["for"] == found.all("input")[0]["id"]
    assert all(head.get("scope") == "col" for head in found.all("th"))
