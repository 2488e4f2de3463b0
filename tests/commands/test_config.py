"""``slideio-pipe config`` lists and prints presets, explains keys, and prints the schemas of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from command_line import run
from paths import CONFIGS, ROOT

import slideio_pipe as sp
from slideio_pipe.commands import app as cli
from slideio_pipe.commands.completion import LAYOUTS
from slideio_pipe.commands.documentation.schemas import schemas
from slideio_pipe.commands.documentation.write_pages import made_files
from slideio_pipe.commands.settings import CLUSTER_READERS, READERS, settings
from slideio_pipe.commands.train import changed
from slideio_pipe.config import Record, sections
from slideio_pipe.errors import ConfigError
from slideio_pipe.export.config import ExportConfig, load_config
from slideio_pipe.export.layouts import LAYOUTS as KNOWN_LAYOUTS
from slideio_pipe.mil.config import TrainConfig, load_train_config
from slideio_pipe.presets import KINDS, presets, settings_file, transform_named_in
from slideio_pipe.streaming.config import LoaderConfig, load_loader_config

PRESETS = list(presets().values())
NAMES = [preset.name for preset in PRESETS]


def schema_of(text: str) -> dict[str, Any]:
    """Return the schema that the first line of a YAML file names."""
    named = text.partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    schema: dict[str, Any] = json.loads((CONFIGS / named).read_text(encoding="utf-8"))
    return schema


def errors_of(schema: str, text: str) -> list[str]:
    """Return what a schema of ``configs/`` refuses in a YAML text."""
    validator = jsonschema.Draft7Validator(json.loads((CONFIGS / schema).read_text(encoding="utf-8")))
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


# --- schemas


@pytest.mark.parametrize("name", schemas())
def test_committed_schemas_are_those_of_the_records(name: str) -> None:
    """Otherwise: ``python -m slideio_pipe.commands.documentation.write_pages``."""
    assert (CONFIGS / name).read_text(encoding="utf-8") == made_files()[f"configs/{name}"]
    jsonschema.Draft7Validator.check_schema(schemas()[name])


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_every_preset_names_a_schema_that_it_satisfies(preset: Any) -> None:
    """An editor shows no error in it."""
    text = preset.path.read_text(encoding="utf-8")
    assert not list(jsonschema.Draft7Validator(schema_of(text)).iter_errors(yaml.safe_load(text)))


BROKEN = {
    "an unknown section": ("schema.json", "gird: {tile_size: 256}"),
    "an unknown key": ("schema.json", "grid: {tilesize: 256}"),
    "a wrong type": ("schema.json", "grid: {tile_size: large}"),
    "a value out of range": ("schema.json", "fit: {epochs: 0}"),
    "a wrong choice": ("schema.json", "tissue: {method: magic}"),
    "an unknown encoding": ("schema.json", "store: {pixels: 'jpeg:0'}"),
    "a wrong resolution": ("schema.json", "view: {mpp: 20x}"),
    "an export with a task": ("schema.json", "store: {pixels: zstd}\ntask: {label: grade}"),
    "jobs without memory": ("slurm.schema.json", "jobs: 3\ncores: 4"),
    "an unknown resource": ("slurm.schema.json", "jobs: 3\ncores: 4\nmemory: 8GB\npartition: gpu"),
    "no transform": ("transform.schema.json", "Compose: []"),
    "a misspelt transform": ("transform.schema.json", "transform: {__class_fullname__: slideio_pipe.StainJiter}"),
    "a wrong argument": (
        "transform.schema.json",
        "transform: {__class_fullname__: Compose, transforms: [{__class_fullname__: slideio_pipe.Flip, mirror: true}]}",
    ),
    "a missing argument": ("transform.schema.json", "transform: {__class_fullname__: slideio_pipe.RandomResizedCrop}"),
}


@pytest.mark.parametrize(("schema", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_violates_its_schema(schema: str, text: str) -> None:
    """The editor marks it."""
    assert errors_of(schema, text)


ACCEPTED = [
    "view: {mpp: native}",
    "view: {mpp: null}",
    "store: {pixels: 'jpeg:90'}",
    "grid: {}\ntask: {kind: survival}",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_the_records_accept_satisfies_the_schema(text: str) -> None:
    """Values that are checked by code of ours, not by pydantic's types."""
    assert not errors_of("schema.json", text)


# --- explain


def keys(record: type[Record]) -> set[str]:
    """Return the keys of a record, with their sections, and the sections."""
    inner = {f"{name}.{key}" for name, section in sections(record).items() for key in section.model_fields}
    return set(record.model_fields) | inner


def test_explain_has_the_keys_and_defaults_of_the_records() -> None:
    """Every key of every file, none more."""
    cluster = {key for key, setting in settings().items() if setting.option == "--cluster"}
    assert set(settings()) - cluster == keys(ExportConfig) | keys(TrainConfig)
    for record in (ExportConfig(), TrainConfig()):
        for key, value in record.model_dump(mode="json").items():
            inner = value if key in sections(type(record)) else {}
            for name, default in {f"{key}.{name}": default for name, default in inner.items()}.items():
                assert settings()[name].default == default, name


def test_every_section_names_commands_that_exist() -> None:
    """Those with --config, or with --cluster."""
    commands = typer.main.get_command(cli.app).commands
    for option, names in [("--config", set().union(*READERS.values())), ("--cluster", CLUSTER_READERS)]:
        for name in names:
            assert any(option in parameter.opts for parameter in commands[name].params), (name, option)
    assert all("profile" in READERS[key] for key in LoaderConfig.model_fields)
    assert all("export" in READERS[key] for key in ExportConfig.model_fields)


def test_explain_prints_values_default_and_commands() -> None:
    """Of one key."""
    text = run("config", "explain", "fit.epochs").stdout
    assert text.splitlines() == [
        "fit.epochs: Maximum number of epochs; see patience.",
        "  values     whole number (at least 1)",
        "  default    50",
        "  read by    train (--config)",
        "  change it  slideio-pipe train --set fit.epochs=50",
    ]


def test_a_bare_name_finds_all_its_sections() -> None:
    """As text and as JSON."""
    found = json.loads(run("config", "explain", "mpp", "--json").stdout)
    assert [setting["key"] for setting in found] == ["view.mpp", "tissue.mpp"]
    assert "tissue.mpp" in run("config", "explain", "mpp").stdout


def test_explaining_a_section_lists_its_keys() -> None:
    """With their defaults."""
    text = run("config", "explain", "grid").stdout
    assert all(f"grid.{key}" in text for key in sections(ExportConfig)["grid"].model_fields)
    assert "[default: 256]" in text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("fit.epoch", "fit.epochs"), ("grid.tilesize", "grid.tile_size"), ("tilesize", "grid.tile_size")],
)
def test_a_wrong_key_gets_a_suggestion(wrong: str, right: str) -> None:
    """And exit code 2."""
    assert right in " ".join(run("config", "explain", wrong, code=2).stderr.split())


# --- presets


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_every_preset_has_a_summary_of_one_line_and_is_listed(preset: Any) -> None:
    """Its first line of comment."""
    assert preset.summary.endswith(".")
    assert len(preset.summary) < 120
    listed = json.loads(run("config", "list", "--json").stdout)
    assert {"name": preset.name, "kind": preset.kind, "use": preset.use, "summary": preset.summary} in listed
    assert preset.name in run("config", "list").stdout


def test_a_shown_preset_is_a_file_to_start_from(tmp_path: Path) -> None:
    """It reads back as the preset, also in another folder."""
    (tmp_path / "mine.yaml").write_text(run("config", "show", "mil-end-to-end").stdout, encoding="utf-8")
    assert load_train_config(tmp_path / "mine.yaml") == load_train_config("mil-end-to-end")
    assert json.loads(run("config", "show", "uni-224", "--json").stdout) == {
        "view": {"mpp": 0.5},
        "grid": {"tile_size": 224},
    }


def test_presets_are_found_by_name_in_python() -> None:
    """Wherever a YAML file is accepted."""
    assert load_config("uni-224").grid.tile_size == 224
    assert load_train_config("mil") == TrainConfig()
    assert load_loader_config("mil") == LoaderConfig()
    assert load_loader_config("uni-224").grid.tile_size == 224
    assert sp.load_transform("stain-light").to_dict() == sp.load_transform(CONFIGS / "stain-light.yaml").to_dict()


def test_a_file_of_that_name_has_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name has not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mil").mkdir()
    (tmp_path / "uni-224").write_text("grid: {tile_size: 64}\n", encoding="utf-8")
    assert load_config("uni-224").grid.tile_size == 64
    assert load_train_config("mil") == TrainConfig()


def test_a_preset_named_in_a_file_keeps_its_name(tmp_path: Path) -> None:
    """So that a run can be resumed on another computer; a file beside the YAML file has precedence."""
    (tmp_path / "a.yaml").write_text("slide_transform: stain-light\ntile_transform: own.yaml\n", encoding="utf-8")
    config = load_loader_config(tmp_path / "a.yaml")
    assert (config.slide_transform, config.tile_transform) == ("stain-light", str(tmp_path / "own.yaml"))
    (tmp_path / "stain-light").write_text("", encoding="utf-8")
    assert transform_named_in(tmp_path, "stain-light") == str(tmp_path / "stain-light")


WRONG = [
    ("uni-244", 'did you mean "uni-224"?'),
    ("something", "slideio-pipe config list"),
    ("configs/uni-224.yaml", 'pass the preset "uni-224"'),
    ("mil", "here: clam-like, export, uni-224"),
    ("stain-light", "is a preset for --transform of view"),
    ("nothing-alike.yaml", "check the path"),
]


@pytest.mark.parametrize(("name", "words"), WRONG)
def test_a_wrong_name_is_refused(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a similar one, or what is accepted there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_config(name)
    assert words in str(raised.value)
    assert name in str(raised.value)


def test_a_preset_is_looked_for_among_all_kinds_by_default() -> None:
    """``config show`` accepts any."""
    assert {settings_file(preset.name, *KINDS) for preset in PRESETS} == {preset.path for preset in PRESETS}


# --- completion


def test_layouts_are_those_of_convert() -> None:
    """The shell completes the names without importing them."""
    assert set(LAYOUTS) == set(KNOWN_LAYOUTS)


@pytest.mark.system
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("slideio-pipe export a.svs --config u", "uni-224"),
        ("slideio-pipe train --config mil-s", "mil-survival"),
        ("slideio-pipe train --set fit.ep", "fit.epochs="),
        ("slideio-pipe view a.svs --transform stain-l", "stain-light"),
        ("slideio-pipe convert bags --to tri", "trident"),
        ("slideio-pipe config explain grid.t", "grid.tile_size"),
        ("slideio-pipe exp", "export"),
    ],
)
def test_the_shell_completes_names(words: str, expected: str) -> None:
    """And loads no NumPy for it, which would take a second per Tab."""
    code = (
        "import os, sys\n"
        f"os.environ |= {{'_SLIDEIO_PIPE_COMPLETE': 'complete_zsh', '_TYPER_COMPLETE_ARGS': {words!r}}}\n"
        "from slideio_pipe.commands.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('numpy' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert expected in done.stdout, done.stderr
    assert done.stderr.strip() == "False"


# --- train


@pytest.mark.parametrize("key", [key for key, one in settings().items() if "train" in one.commands and not one.keys])
def test_every_key_of_a_training_can_be_set(key: str) -> None:
    """To its default, as ``explain`` shows; newer keys, which are left out of recorded settings, as well."""
    assert changed(TrainConfig(), [f"{key}={json.dumps(settings()[key].default)}"]) == TrainConfig()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("fit.epoch=3", "did you mean fit.epochs"),
        ("epochs=3", "did you mean fit.epochs"),
        ("encoder.worker=2", "did you mean encoder.workers"),
        ("grid=3", "there is no setting"),
        ("store.pixels=zstd", 'there is no setting "store.pixels" of a training'),
        ("fit.epochs", "pass --set fit.epochs=VALUE"),
        ("fit.epochs=[", "is no YAML"),
        ("fit.epochs=0", "should be at least 1"),
    ],
)
def test_a_wrong_change_is_refused(change: str, words: str) -> None:
    """With a similar key, or what is missing."""
    with pytest.raises(ConfigError) as raised:
        changed(TrainConfig(), [change])
    assert words in str(raised.value)


def test_train_uses_the_preset_mil_by_default(tmp_path: Path) -> None:
    """And says so; CONFIG and --config are the same, and only one of them is given."""
    missing = tmp_path / "none.csv"
    assert "the preset mil" in run("train", "--cohort", missing, code=2).stderr
    assert "the preset mil" not in run("train", "--config", "mil", "--cohort", missing, code=2).stderr
    assert "the preset mil" not in run("train", "mil", "--cohort", missing, code=2).stderr
    assert "both given" in run("train", "mil", "--config", "mil", "--cohort", missing, code=2).stderr
