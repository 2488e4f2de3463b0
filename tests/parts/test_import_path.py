"""Objects by import path: where their modules are found, and what is said when there are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from own_modules import imports_from

from slideio_pipe.errors import ConfigError
from slideio_pipe.parts.import_path import import_object, import_path_of, importable, is_import_path, source_digest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with modules of a user."""
    monkeypatch.chdir(tmp_path)
    with imports_from(tmp_path, on_path=False):
        yield tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my_module:MyPart", True),
        ("a.b_2.c:D.e", True),
        ("my_module", False),
        ("my_module:", False),
        ("../mine.py:Part", False),
        ("C:/mine.yaml", False),
        ("a:b:c", False),
        ("2a:b", False),
        ("otsu", False),
    ],
)
def test_form_of_an_import_path(text: str, expected: bool) -> None:
    """Module, colon, attribute; both may have dots."""
    assert is_import_path(text) is expected


def test_found_beside_the_settings_and_in_the_working_directory(folder: Path) -> None:
    """Also in a package, and an attribute of a class."""
    beside, here = folder / "settings", folder / "here"
    (beside / "own_pack").mkdir(parents=True)
    here.mkdir()
    (beside / "own_pack" / "__init__.py").write_text("class Part:\n    size = 3\n")
    (folder / "own_here.py").write_text("def part():\n    return 5\n")
    assert import_object("own_pack:Part.size", [beside]) == 3
    assert import_object("own_here:part")() == 5


def test_worker_processes_find_the_module(folder: Path) -> None:
    """The folder is last on sys.path, which spawned processes get; an installed module is not hidden by it."""
    (folder / "math.py").write_text("raise ValueError\n")
    importable(folder)
    importable(folder)
    assert sys.path.count(str(folder)) == 1
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("his_parts", r"his_parts: is no import path; write module:name"),
        (
            "his_part:Loss",
            r"his_part:Loss: there is no module his_part in .*, .*; did you mean his_parts\?",
        ),
        ("far_away:Loss", r"there is no module far_away in .*; it should be in the current folder, or installed"),
        ("his_parts:Los", r"the module has no Los; did you mean Loss\?"),
        ("his_parts:Loss.rat", r"the class has no rat; did you mean rate\?"),
        ("own_broken:Loss", r"its module cannot be imported \(ValueError: wrong\)"),
        ("own_syntax:Loss", r"its module cannot be imported \(SyntaxError: .*"),
        (
            "own_needy:Loss",
            r"its module cannot be imported \(ModuleNotFoundError: No module named 'not_there_at_all'\)",
        ),
        ("os:system", r"os is a module of Python itself; name a module of your own"),
    ],
)
def test_each_failure_says_what_to_do(folder: Path, path: str, message: str) -> None:
    """The import path, the reason, the remedy."""
    (folder / "his_parts.py").write_text("class Loss:\n    rate = 1\n")
    (folder / "own_broken.py").write_text("raise ValueError('wrong')\n")
    (folder / "own_syntax.py").write_text("def loss(:\n")
    (folder / "own_needy.py").write_text("import not_there_at_all.more\n")
    with pytest.raises(ConfigError, match=message) as caught:
        import_object(path, [folder])
    assert caught.value.slide == path


def test_another_module_of_that_name_is_said(folder: Path) -> None:
    """The file beside the settings is not the module that was imported under this name."""
    (folder / "slideio_pipe.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"another module is called slideio_pipe, of .*; rename one of them"):
        import_object("slideio_pipe:x", [folder])


def test_import_path_only_of_what_is_found_again(folder: Path) -> None:
    """Not of lambdas, local functions, objects and scripts; the path leads back to the object."""
    (folder / "own_found.py").write_text("class Part:\n    def run(self):\n        return 1\n\npart = Part()\n")
    part = import_object("own_found:Part")
    assert import_path_of(part) == "own_found:Part"
    assert import_path_of(part.run) == "own_found:Part.run"
    assert import_path_of(lambda: 1) is None
    assert import_path_of(import_object("own_found:part")) is None

    def local() -> int:
        return 1

    assert import_path_of(local) is None
    script = ModuleType("__main__")
    exec("def fn():\n    return 1\n", script.__dict__)
    assert import_path_of(script.fn) is None


def test_digest_follows_the_source(folder: Path) -> None:
    """Another body is another digest; of an object it is that of its class."""
    (folder / "own_one.py").write_text("def fn():\n    return 1\n\nclass Part:\n    pass\n")
    (folder / "own_two.py").write_text("def fn():\n    return 2\n")
    one, two = import_object("own_one:fn"), import_object("own_two:fn")
    assert source_digest(one) != source_digest(two)
    assert len(source_digest(one) or "") == 16
    part = import_object("own_one:Part")
    assert source_digest(part()) == source_digest(part)


def test_light() -> None:
    """Command lines look for names of packages: that loads neither NumPy nor torch."""
    code = (
        "import sys, slideio_pipe.parts.import_path, slideio_pipe.parts.entry_points as e; e.parts_of('layouts');"
        "print([n for n in ('numpy', 'torch', 'pyvips') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
