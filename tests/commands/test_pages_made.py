"""The reference of commands and of settings is made from the code, and has every option and every key."""

from __future__ import annotations

import re

import pytest
import typer
from command_line import run
from paths import ROOT

from slideio_pipe.commands import app as cli
from slideio_pipe.commands.documentation.commands_page import commands
from slideio_pipe.commands.documentation.write_pages import REFERENCE, made_files
from slideio_pipe.commands.settings import settings
from slideio_pipe.presets import presets

PAGES = [name for name in made_files() if name.startswith(REFERENCE)]
CALLED = dict(commands(typer.main.get_command(cli.app), "slideio-pipe"))


@pytest.mark.parametrize("name", PAGES)
def test_committed_pages_are_those_of_the_code(name: str) -> None:
    """Otherwise: ``python -m slideio_pipe.commands.documentation.write_pages``."""
    assert (ROOT / name).read_text(encoding="utf-8") == made_files()[name]


def test_the_page_of_commands_has_every_option() -> None:
    """In the section of its command, with its help; those of every command once."""
    text = made_files()[f"{REFERENCE}/commands.md"]
    for path, command in CALLED.items():
        section = re.split(r"^## ", text.partition(f"\n## {path}\n")[2], maxsplit=1, flags=re.M)[0]
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                place = text if option.name in ("verbose", "quiet", "as_json") else section
                assert all(f"`{name}`" in place for name in option.opts), (path, option.opts)


def test_the_page_of_settings_has_every_key_and_preset() -> None:
    """As code, so that a search finds them."""
    text = made_files()[f"{REFERENCE}/settings.md"]
    assert not [key for key, setting in settings().items() if not setting.keys and f"`{key}`" not in text]
    assert not [name for name in presets() if f"| `{name}` |" not in text]


@pytest.mark.parametrize("path", CALLED)
def test_every_command_has_an_example_of_itself_with_options_that_exist(path: str) -> None:
    """In its help: it begins with the command's name."""
    name = path.removeprefix("slideio-pipe ")
    text = " ".join(run(*name.split(), "--help", columns=400).stdout.split())
    assert f": {path}" in text
    known = {name for option in CALLED[path].params for name in option.opts}
    examples = re.findall(r"\[bold\](slideio-pipe .*?)\[/\]", CALLED[path].help)
    assert examples
    for example in examples:
        assert example.startswith(path)
        assert set(re.findall(r" (--?[a-z][a-z0-9-]*)", example)) <= known, example


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("path", CALLED)
def test_no_word_of_a_help_screen_is_broken(path: str, columns: int) -> None:
    """A value such as drop|shift|pad is copied from it."""
    text = run(*path.removeprefix("slideio-pipe ").split(), "--help", columns=columns).stdout
    for option in CALLED[path].params:
        if option.param_type_name == "option" and option.metavar:
            assert option.metavar in text, option.opts
