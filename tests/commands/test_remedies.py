"""Remedies of messages work: the options that they name exist, and following them succeeds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from command_line import run
from PIL import Image
from pyramids import coordinate_pixels, write_pyramid
from typer.testing import CliRunner

import slideio_pipe as sp
from slideio_pipe.commands import app as cli
from slideio_pipe.commands.words import OPTIONS as OTHERWISE
from slideio_pipe.commands.words import RECORDS, SETTINGS, command_words
from slideio_pipe.config import sections
from slideio_pipe.errors import ARGUMENT, ConfigError, NoTissueError, SlideioPipeError, worded
from slideio_pipe.export.config import ExportConfig
from slideio_pipe.export.slide import export_slide
from slideio_pipe.mil.config import TrainConfig
from slideio_pipe.tiles.reader import empty_tiles

SOURCES = sorted((Path(sp.__file__).parent).rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return the nodes of a file of the package."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def commands(found: click.Command) -> Iterator[click.Command]:
    """Yield a command and those below it."""
    yield found
    for below in getattr(found, "commands", {}).values():
        yield from commands(below)


ALL = list(commands(typer.main.get_command(cli.app)))
OPTIONS: dict[str, list[click.Parameter]] = {}
for command in ALL:
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            OPTIONS.setdefault(name, []).append(parameter)


def texts(node: ast.expr) -> Iterator[str]:
    """Yield the possible values of a text expression; inserted values are "X"."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.BinOp):
        yield from texts(node.left)
        yield from texts(node.right)


@cache
def remedies() -> list[tuple[str, str]]:
    """Return every remedy of the package, and its position."""
    found = []
    for path in SOURCES:
        for node in nodes(path):
            values: list[ast.expr] = []
            if isinstance(node, ast.keyword) and node.arg == "remedy":
                values = [node.value]
            elif isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and "remedy" in target.id for target in targets):
                    values = [node.value]
            found += [(f"{path.name}:{value.lineno}", text) for value in values for text in texts(value)]
    return found


# Arguments with the name of an option of another meaning, and keys of a file.
NO_OPTION = {
    ("annotations.py", "slide"),
    ("cohort.py", "slides"),
    ("colour_transforms.py", "source"),
    ("files.py", "input_size"),
    ("study.py", "slides"),
}


@cache
def named() -> dict[str, list[str]]:
    """Return every argument that a text of the package names, and its positions."""
    found: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in nodes(path):
            for text in texts(node) if isinstance(node, ast.Constant | ast.JoinedStr) else ():
                for name, _ in ARGUMENT.findall(text):
                    found.setdefault(name, []).append(f"{path.name}:{node.lineno}")
    return found


@cache
def parameters() -> set[str]:
    """Return all parameters of functions, methods and records whose name has no leading underscore."""
    found = set()
    for path in SOURCES:
        if "commands" in path.relative_to(SOURCES[0].parent).parts[:1]:
            continue
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
                found |= {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found |= {
                    each.target.id
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                }
    return found


def in_options(error: SlideioPipeError) -> str:
    """Return an error as the command line prints it."""
    with worded(lambda _: command_words()):
        return str(error)


def test_there_are_remedies_to_check() -> None:
    """The search of the tests below finds them."""
    assert len(remedies()) > 300
    assert {"--mpp", "--overwrite", "--mask"} <= OPTIONS.keys()
    assert {"slide_mpp", "overwrite", "min_tissue", "pixels"} <= named().keys()


@pytest.mark.parametrize(("place", "text"), remedies())
def test_options_that_a_remedy_names_exist(place: str, text: str) -> None:
    """Spelt as on the command line, without Python values."""
    shown = in_options(SlideioPipeError("reason", remedy=text))
    ours = re.sub(r"\b(pip|conda|python|git|docker)\b[^;]*", "", shown)
    for option, value in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)(?: (None|True|False)\b)?", ours):
        assert option in OPTIONS, f"{place}: {shown}"
        assert not value, f"{place}: {shown}"


@pytest.mark.parametrize(("name", "places"), named().items(), ids=named())
def test_arguments_that_a_message_names_exist(name: str, places: list[str]) -> None:
    """As a parameter in Python, and as an option of a command."""
    if name == "X":  # filled in: an argument whose value was refused
        return
    assert name in parameters(), places
    words = command_words()(name, "1")
    assert words.split()[0] in OPTIONS, (places, words)


def test_arguments_with_an_option_are_named_in_braces() -> None:
    """Python and command line replace them by their own names; whole calls (``slide.view(mpp=…)``) are Python."""
    known = {name.removeprefix("--").replace("-", "_") for name in OPTIONS} | OTHERWISE.keys()
    for place, text in remedies():
        rest = re.sub(r"\w+\([^()]*\)", "()", ARGUMENT.sub("", text))
        bare = {*re.findall(r"(?<![\w.{-])([a-z]\w*)=(?!\(\))", rest), *re.findall(r"(?<![\w.])[a-z]+_\w+\b", rest)}
        file = place.partition(":")[0]
        assert not {name for name in bare & known if (file, name) not in NO_OPTION}, (place, text)


def test_settings_that_replace_options_exist() -> None:
    """Keys of a training, which messages name where its command has no such option; and records."""
    known = sections(TrainConfig)  # newer settings are in no dump unless they are set
    for key in SETTINGS.values():
        section, field = key.split(".")
        assert field in known[section].model_fields, key
    assert set(OTHERWISE.values()) <= OPTIONS.keys()
    defined = {node.name for path in SOURCES for node in nodes(path) if isinstance(node, ast.ClassDef)}
    assert defined >= RECORDS.keys()


def test_the_remedy_of_a_too_fine_mpp_works(tmp_path: Path) -> None:
    """``native`` stands for None on the command line."""
    slide = write_pyramid(tmp_path / "a.tif", coordinate_pixels(600, 500), (1,), mpp=0.5)
    given = ["export", str(slide), "--out", str(tmp_path / "out"), "--tissue", "none", "--mpp"]
    done = CliRunner().invoke(cli.app, [*given, "0.01"])
    assert done.exit_code == 2
    advised = re.findall(r"--mpp (\S+)", done.output.partition("; ")[2])
    assert "native" in advised
    for value in advised:
        run(*given, value, "--overwrite")


def test_the_remedy_of_tiles_that_are_no_squares_works(tmp_path: Path) -> None:
    """Exported again, they fit a layout of coordinates."""
    pytest.importorskip("h5py")
    with sp.open_slide(coordinate_pixels(600, 500), slide_mpp=(0.25, 0.5)) as slide:
        view = slide.view(mpp=(0.5, 0.5))
        bag = sp.TileBag(view, sp.TileGrid(view, tile_size=64))
        with pytest.raises(ConfigError, match="squares only") as caught:
            sp.convert(bag, "clam", tmp_path / "out")
        assert "--mpp native" in in_options(caught.value)
        native = sp.TileBag(slide.view(mpp=None), sp.TileGrid(slide.view(mpp=None), tile_size=64))
        assert sp.convert(native, "clam", tmp_path / "out").bags == 1


def test_a_mask_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its size and the limit; a large one below the limit is read without a warning."""
    pixels = np.zeros((300, 400), np.uint8)
    pixels[100:200, 100:300] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    slide = write_pyramid(tmp_path / "a.tif", coordinate_pixels(800, 600), (1,), mpp=0.5)
    with sp.open_slide(slide) as opened:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)  # Pillow warns of more, and refuses twice as much
        mask = sp.TissueMask.from_png(tmp_path / "mask.png", opened)
        assert mask.fraction == pytest.approx(100 * 200 / (300 * 400), abs=0.01)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
        with pytest.raises(
            ConfigError, match=r"has 0\.12 megapixels, and at most 0\.10 are .*smaller picture"
        ) as caught:
            sp.TissueMask.from_png(tmp_path / "mask.png", opened)
    assert "PNG" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::slideio_pipe.errors.EmptyTissueWarning")
@pytest.mark.parametrize("kind", ["geojson", "png"])
def test_the_remedy_of_a_mask_of_another_slide_describes_the_mask(tmp_path: Path, kind: str) -> None:
    """It does not advise to pass a mask, because one was passed."""
    slide = write_pyramid(tmp_path / "a.tif", coordinate_pixels(800, 600), (1,), mpp=0.5)
    mask = tmp_path / f"mask.{kind}"
    if kind == "png":
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(mask)
    else:
        ring = "[[9000,9000],[9900,9000],[9900,9900],[9000,9000]]"
        mask.write_text('{"type":"Polygon","coordinates":[' + ring + "]}")
    config = ExportConfig.model_validate({"view": {"mpp": None}, "grid": {"tile_size": 64}})
    with pytest.raises(NoTissueError, match=r"mask.* marks nothing inside the slide, 800×600 px") as caught:
        export_slide(slide, tmp_path / "out", config, tissue_file=mask)
    assert "--mask" not in in_options(caught.value)
    (tmp_path / "cohort.csv").write_text(f"slide,mask\na.tif,{mask.name}\n")
    dataset = sp.BagDataset(tmp_path / "cohort.csv", {"view": {"mpp": None}, "grid": {"tile_size": 64}})
    with pytest.raises(NoTissueError, match=r"check that .*mask.* is of this slide"):
        dataset.open(0)


class Huge(sp.TileBag):
    """A bag that states tiles larger than any memory."""

    def __init__(self, bag: sp.TileBag, side: int) -> None:
        self.__dict__.update(vars(bag))
        self.shape = (len(bag), side, side, 3)


@pytest.mark.parametrize("pixels", ["zstd", "jpeg:90", "none"])
def test_tiles_beyond_memory_are_an_error_with_numbers(tmp_path: Path, pixels: str) -> None:
    """Not a traceback of numpy; nothing remains in the folder."""
    with sp.open_slide(coordinate_pixels(600, 500), slide_mpp=0.5) as slide:
        bag: Any = Huge(sp.TileBag(slide.view(), sp.TileGrid(slide.view(), tile_size=64)), 8_000_000)
        with pytest.raises(
            ConfigError, match=r"a tile of 8,000,000×8,000,000 px takes .* GB.*pass a smaller tile_size"
        ):
            sp.save_bag(bag, tmp_path / "a.bag.zarr", pixels=pixels, progress=False)
    assert not [path for path in tmp_path.iterdir() if path.name == "a.bag.zarr"]
    with pytest.raises(ConfigError, match="takes 192,000 GB"):
        empty_tiles((3, 8_000_000, 8_000_000, 3), "a.svs")
