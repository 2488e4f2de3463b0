"""Messages name an argument as it is used: as an option, as a keyword of Python, or as a column of a cohort."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from pyramids import coordinate_pixels, write_pyramid

import slideio_pipe as sp
from slideio_pipe.commands.export import export
from slideio_pipe.commands.train import train
from slideio_pipe.commands.words import command_words, options_of
from slideio_pipe.errors import MissingResolutionError, NoTissueError, OutputExistsError
from slideio_pipe.export.cohort import export_cohort
from slideio_pipe.export.slide import export_slide

OF_COHORT = '0.25, or 0.25 in the column "mpp" of the cohort'


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide without mpp, one of glass, and a manifest of both."""
    folder = tmp_path_factory.mktemp("slides")
    write_pyramid(folder / "plain.tif", coordinate_pixels(600, 600), levels=(1,), mpp=None)
    write_pyramid(folder / "glass.tif", np.full((600, 600, 3), 243, np.uint8), levels=(1,))
    (folder / "cohort.csv").write_text("slide\nplain.tif\nglass.tif\n")
    return folder


def listed(folder: Path) -> list[str]:
    """Return the content of failures.csv, run.jsonl and report.html of a run, without markup."""
    events = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines() if line]
    output = "\n".join(str(event["remedy"]) for event in events if event.get("event") == "failed")
    csv = (folder / "failures.csv").read_text().replace('""', '"')
    page = (folder / "report.html").read_text().replace("&quot;", '"').replace("&#x27;", "'").replace("&#34;", '"')
    return [csv, output, page]


def test_errors_of_one_slide_name_options_or_keywords(slides: Path, tmp_path: Path) -> None:
    """Options that the command has; keywords of the function in Python."""
    refused = run("export", slides / "plain.tif", "--out", tmp_path, code=2).stderr
    assert "; pass --slide-mpp 0.25: µm per level-0 pixel" in refused
    assert "slide_mpp" not in refused
    with pytest.raises(MissingResolutionError, match=r"; pass slide_mpp=0\.25: µm per level-0 pixel") as caught:
        export_slide(slides / "plain.tif", tmp_path)
    assert caught.value.arguments == {"slide_mpp": "0.25"}
    advised = ("--slide-mpp", caught.value.arguments["slide_mpp"], "--tissue", "none", "--mpp", "native")
    run("export", slides / "plain.tif", "--out", tmp_path, *advised)
    other = run("export", slides / "plain.tif", "--out", tmp_path, *advised, "--tile-size", 128, code=2).stderr
    assert "--overwrite" in other
    assert "overwrite=" not in other
    with pytest.raises(OutputExistsError, match="pass overwrite=True or another path"):
        export_slide(slides / "plain.tif", tmp_path)


def test_an_error_with_four_arguments_names_them_all(slides: Path, tmp_path: Path) -> None:
    """One has another name on the command line."""
    refused = run("export", slides / "glass.tif", "--out", tmp_path, code=2).stderr
    assert "pass --mask, keep every tile with --tissue none, or pass --allow-empty" in refused
    with pytest.warns(sp.errors.EmptyTissueWarning), pytest.raises(NoTissueError) as caught:
        export_slide(slides / "glass.tif", tmp_path)
    assert 'pass tissue_file=…, keep every tile with method="none", or pass allow_empty=True' in str(caught.value)
    missing = run("export", slides / "glass.tif", "--out", tmp_path, "--mask", slides / "no.geojson", code=2).stderr
    assert "no.geojson: no such file; check the path" in missing


@pytest.mark.system
def test_errors_of_a_cohort_name_options_or_columns(slides: Path, tmp_path: Path) -> None:
    """As the run was started: by command or in Python; following the remedies works."""
    output = run("export", slides / "cohort.csv", "--out", tmp_path / "a", code=1).stdout
    for text in (output, *listed(tmp_path / "a")):
        assert f"pass --slide-mpp {OF_COHORT}" in text
        assert 'pass a file in the column "mask" of the cohort, keep every tile with --tissue none' in text
        assert "slide_mpp" not in text.replace('"slide_mpp"', "").replace("slide.slide_mpp", "")
        assert "method=" not in text
    report = export_cohort(slides / "cohort.csv", tmp_path / "b", progress=False)
    for text in listed(tmp_path / "b"):
        assert f"pass slide_mpp={OF_COHORT}" in text
        assert 'keep every tile with method="none", or pass allow_empty=True' in text
        assert "--slide-mpp" not in text
    assert "pass slide_mpp=0.25:" in str(report.failed[0].error)
    (slides / "mpp.csv").write_text("slide,mpp\nplain.tif,0.25\nglass.tif,\n")
    run("export", slides / "mpp.csv", "--out", tmp_path / "a", "--tissue", "none", "--overwrite")


def test_a_command_names_options_or_settings() -> None:
    """Its own options first, then settings of a training, then options of other commands."""
    words, of_training = command_words(export), command_words(train)
    assert words("min_tissue", "") == "--min-tissue"
    assert words("pixels", '"jpeg:90"') == "--pixels jpeg:90"
    assert words("mpp", "None") == "--mpp native"
    assert words("features", "…") == "encoder.folder"
    assert words("store.pixels", "") == "--pixels"
    assert words("ExportConfig", "") == "slideio-pipe export --help"
    assert of_training("features", "…") == "--features"
    assert of_training("edge", '"pad"') == "--set grid.edge=pad"
    assert of_training("slide_mpp", "0.25") == f"--set slide.slide_mpp={OF_COHORT}"
    assert {"--set", "--out", "-o"} <= options_of(train)
