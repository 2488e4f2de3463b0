"""The README is correct: its Python runs, its commands exist, its links resolve."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from paths import ROOT
from typer.testing import CliRunner

from slideio_pipe.commands.app import app
from slideio_pipe.synthetic.slide import write_synthetic_slide

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(language: str) -> list[list[str]]:
    """Return the arguments of each slideio-pipe command in the blocks of a language."""
    lines = [line.split("#")[0].split() for block in blocks(language) for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "slideio-pipe"]


def run(words: list[str]) -> None:
    """Run a command in this process; it should succeed."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks run in order on a slide called a.svs, and write a bag."""
    write_synthetic_slide(tmp_path / "a.svs", size=(4096, 3072), seed=5)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)  # because the README is this package's
    batch = names["batch"]
    assert tuple(batch.tiles.shape[1:]) == (3, 256, 256)  # type: ignore[attr-defined]
    assert str(batch.tiles.dtype) == "torch.float16"  # type: ignore[attr-defined]
    assert (tmp_path / "a.bag.zarr" / "zarr.json").exists()


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slideio-pipe command of the README for a user's own slide runs unchanged."""
    write_synthetic_slide(tmp_path / "a.svs", size=(4096, 3072), seed=5)
    monkeypatch.chdir(tmp_path)
    lines = commands("bash")
    assert [words[0] for words in lines] == ["info", "export", "view"]
    for words in lines:
        # A viewer runs until it is stopped: tests/system/test_viewer_page.py starts it; here its options are parsed.
        run([*words, "--help"] if words[0] == "view" else words)
    assert (tmp_path / "bags" / "a.bag.zarr").is_dir()


@pytest.mark.learning
def test_the_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study is made, a model is trained on it (here for two of its epochs), and a slide has its heat map."""
    pytest.importorskip("lightning_fabric")
    monkeypatch.chdir(tmp_path)
    lines = commands("sh")
    assert [words[0] for words in lines] == ["demo", "train", "predict"]
    for words in lines:
        run([*words, "--set", "fit.epochs=2"] if words[0] == "train" else words)
    (heat_map,) = re.findall(r"# (seen/\S+)", README)
    assert (tmp_path / heat_map).stat().st_size > 10_000


def test_it_stays_short() -> None:
    """The README is about one screen and a half of prose; the guide has the rest."""
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len(re.sub(r"\]\([^)]*\)", "]", prose).split()) < 800


def test_links_resolve() -> None:
    """Every relative link of both READMEs names a file or folder of the project."""
    for page in (ROOT / "README.md", ROOT / "slideio_pipe" / "README.md"):
        targets = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8"))
        missing = [target for target in targets if not (page.parent / target).exists()]
        assert not missing, f"{page}: {missing}"


def test_the_map_names_every_room() -> None:
    """And every module outside rooms; each room states its purpose and an existing file to open first."""
    package = ROOT / "slideio_pipe"
    page = (package / "README.md").read_text(encoding="utf-8")
    rooms = [path.parent for path in package.glob("**/__init__.py") if path.parent != package]
    # _version is written by a build.
    modules = [path.stem for path in package.glob("*.py") if not path.stem.startswith("_")]
    assert len(modules) <= 10
    assert [name for name in modules if f"`{name}`" not in page] == []
    assert [room.name for room in rooms if f"`{room.name}/`" not in page] == []
    for room in rooms:
        purpose = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert re.search(r"^In: .+ Out: .+", purpose, re.MULTILINE), room
        first = re.search(r"Open first: ``(\w+\.py)``", purpose)
        assert first, room
        assert (room / first[1]).is_file(), room
