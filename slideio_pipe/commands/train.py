"""The command ``train``: train a model on a cohort."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.completion import changes as completed_changes
from slideio_pipe.commands.completion import preset_names
from slideio_pipe.commands.settings import settings, similar_keys
from slideio_pipe.commands.terminal import note, print_json, print_metrics, reported, say, shown
from slideio_pipe.errors import ConfigError, SlideioPipeWarning

if TYPE_CHECKING:
    from slideio_pipe.cohort.table import Table
    from slideio_pipe.mil.config import TrainConfig
    from slideio_pipe.mil.results import Fitted

Settings = Annotated[
    Path | None, typer.Argument(help="The settings, instead of --config.", metavar="CONFIG", show_default=False)
]
SettingsFile = Annotated[
    Path | None,
    options.option(
        "--config",
        r"Settings: a file, or a preset (slideio-pipe config list). \[default: the preset mil]",
        unit="YAML|PRESET",
        autocompletion=preset_names("train"),
    ),
]
CohortFile = Annotated[
    Path | None,
    options.option(
        "--cohort",
        "Table with slides and labels (CSV, TSV, Excel, Parquet); by default the one in the settings.",
        unit="TABLE",
    ),
]
Features = Annotated[
    Path | None, options.option("--features", "Folder of <slide>.features.zarr, .bag.zarr, .h5 or .pt.", unit="FOLDER")
]
Model = Annotated[
    str | None,
    options.option(
        "--model",
        "The model, instead of model.name: gated, attention, mean, max, torchmil:NAME, or your own as "
        "my_module:MyAggregator.",
        unit="MODEL",
    ),
]
Folder = Annotated[Path, options.of_output("--out -o", "Folder of the run.", unit="FOLDER")]
Set = Annotated[
    list[str] | None,
    options.option(
        "--set",
        "Override a setting, such as fit.epochs=20 (slideio-pipe config explain); repeatable.",
        unit="KEY=VALUE",
        autocompletion=completed_changes,
    ),
]
Anew = Annotated[bool, options.of_output("--overwrite", "Start again if FOLDER contains another training.")]


@reported
def train(
    config: Settings = None,
    settings_file: SettingsFile = None,
    cohort: CohortFile = None,
    features: Features = None,
    model: Model = None,
    slide_folder: options.SlidesOfTable = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    save: Folder = Path("run"),
    changes: Set = None,
    overwrite: Anew = False,
    as_json: options.Json = False,
) -> None:
    """Train a multiple-instance model: on features, or end to end from slides with the exact gradient.

    Run it again after an interruption to continue from the last checkpoint. FOLDER gets best.ckpt, predictions.csv,
    metrics.json, history.csv and TensorBoard's events.

    Example: [bold]slideio-pipe train --cohort cohort.csv --features features/ --out run/[/]

    Five folds: [bold]slideio-pipe train --config mil-survival --cohort cohort.csv --set fit.folds=5 --out run/[/]
    """
    from slideio_pipe.mil.config import load_train_config
    from slideio_pipe.mil.fit import fit

    if int(os.environ.get("LOCAL_RANK", "0")):  # another process of this training: only the first one prints
        warnings.simplefilter("ignore", SlideioPipeWarning)
    chosen = changed(load_train_config(_chosen(config, settings_file)), changes or ())
    if features is not None:
        encoder = chosen.encoder.model_copy(update={"folder": str(features)})
        chosen = chosen.model_copy(update={"encoder": encoder})
    tables = cohort_commands.table_options(slide_folder, clinical, column)
    study = _study(cohort, chosen, tables) if tables else cohort
    fitted = fit(study, chosen, save, model=model, overwrite=overwrite, progress=shown(as_json) is None)
    if not _is_first():  # each process of a training runs this command
        return
    if as_json:
        print_json(fitted.summary())
    else:
        _print(fitted)


def _chosen(argument: Path | None, option: Path | None) -> Path:
    """Return the settings to use: a file, or the name of a preset."""
    if argument is not None and option is not None:
        raise ConfigError(f"CONFIG ({argument}) and --config are both given", remedy="give one of them")
    if argument is None and option is None:
        note("settings: the preset mil (slideio-pipe config show mil)")
    return argument or option or Path("mil")


def _study(cohort: Path | None, config: TrainConfig, tables: Mapping[str, Any]) -> Table:
    """Return the table of a cohort, with what the options add to it."""
    from slideio_pipe.cohort.study_table import study_table

    given = cohort if cohort is not None else config.cohort
    if given is None:
        raise ConfigError("no cohort", remedy="pass --cohort with a table")
    return study_table(given, **tables)


def changed(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """Return settings with some replaced, each given as "section.key=value" with a value in YAML.

    Raise ConfigError if there is no such setting, or the value is invalid.
    """
    from slideio_pipe.config import checked
    from slideio_pipe.mil.config import TrainConfig

    values: dict[str, Any] = config.model_dump(exclude_unset=True)  # what is left out may depend on the encoder
    for change in changes:
        place, equals, text = change.partition("=")
        *sections, key = place.strip().split(".")
        if not equals:
            raise ConfigError(f"--set {change} has no value", remedy=f"pass --set {change}=VALUE")
        if sections != ["model", "settings"]:
            _check_key(place.strip())
        inside = values
        for section in sections:
            inside = inside.setdefault(section, {})
        try:
            inside[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {change} is no YAML", remedy="pass one such as fit.epochs=20") from error
    return checked(TrainConfig, "--set", **values)


def _check_key(key: str) -> None:
    """Raise ConfigError, with similar keys, if a training has no such setting."""
    own = {name for name, one in settings().items() if "train" in one.commands and not one.keys}
    if key not in own:
        close = [name for name in similar_keys(key) if name in own]
        hint = f"did you mean {', '.join(close)}?" if close else "slideio-pipe config explain lists all keys"
        raise ConfigError(f'--set {key}: there is no setting "{key}" of a training', remedy=hint)


def _is_first() -> bool:
    """Return whether this process is the one that prints."""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def _print(fitted: Fitted) -> None:
    for part, metrics in fitted.metrics.items():
        if metrics:
            count = fitted.slides[part]
            name = {"val": "validation"}.get(part, part)
            print_metrics(f"{name}, {count:,} {fitted.unit}{'' if count == 1 else 's'}", metrics)
            if part in fitted.notes:
                say(fitted.notes[part])
    say(fitted.course())
    say(f"model: {', '.join(str(path) for path in fitted.checkpoints)}")
    say(f"predictions: {fitted.predictions}")
