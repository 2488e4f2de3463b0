"""The command ``predict``: predict slides, and write heat maps and other pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from slideio_pipe.commands import cohort as cohort_commands
from slideio_pipe.commands import options
from slideio_pipe.commands.completion import encoder_names
from slideio_pipe.commands.terminal import out, print_failure, print_metrics, reported, say, shown, warn
from slideio_pipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.mil.prediction.predict_cohort import PredictedCohort

_SHOWN = 40
# Text for the part of the training that slides belong to.
_PARTS = {
    "train": ", used to train the model",
    "val": ", used to choose the epoch",
    "test": ", used to test the model",
    "new": ", not used in the training",
}

Checkpoint = Annotated[Path, typer.Argument(help="best.ckpt of a training, or its folder.", metavar="CHECKPOINT")]
Slides = Annotated[
    list[Path],
    typer.Argument(
        help="Slides, or a folder, a pattern or a table of them; features (.features.zarr, .bag.zarr, "
        ".h5, .pt) for a model of features.",
        metavar="SLIDE|COHORT",
    ),
]
Folder = Annotated[
    Path | None,
    options.of_output("--out -o", "Folder for predictions.csv and a folder of pictures per slide.", unit="FOLDER"),
]
ScoresShown = Annotated[
    str | None,
    options.of_output(
        "--scores",
        "Scores to draw: attention, or the prediction for each tile alone. "
        r"\[default: attention, unless it is equal for all tiles]",
        unit="attention|instance",
    ),
]
Pyramid = Annotated[bool, options.of_output("--pyramid", "Also write heatmap.ome.tif, a pyramid.")]
SlideFolder = Annotated[
    Path | None,
    options.option(
        "--slides",
        "Folder of the slides of bags or features, for pictures of their tissue; of a table, the folder of its ids.",
        unit="FOLDER",
    ),
]
Encoder = Annotated[
    str | None,
    options.option(
        "--encoder",
        "For a model that was trained with your own network, that network as a file; for a model of features, "
        "their encoder, to predict from slides: a name such as uni, timm:NAME, hf:NAME, a.pt2.",
        unit="ENCODER",
        autocompletion=encoder_names,
    ),
]
Model = Annotated[
    str | None,
    options.option(
        "--model",
        "For a model that was trained with your own aggregator, passed in Python: that aggregator, as "
        "my_module:MyAggregator.",
        unit="MODULE:NAME",
    ),
]
Features = Annotated[
    Path | None,
    options.option(
        "--features",
        "Folder of the slides' features, as for train: <slide>.features.zarr, .bag.zarr, .h5 or .pt.",
        unit="FOLDER",
    ),
]
Device = Annotated[str | None, options.option("--device", r"\[default: cuda if available]", unit="cpu|cuda")]


@reported
def predict(
    checkpoint: Checkpoint,
    slides: Slides,
    save: Folder = None,
    scores: ScoresShown = None,
    pyramid: Pyramid = False,
    frame: options.OutputFrame = None,
    slide_folder: SlideFolder = None,
    features: Features = None,
    model: Model = None,
    encoder: Encoder = None,
    trust_remote_code: options.TrustRemoteCode = False,
    device: Device = None,
    slide_mpp: options.CohortMpp = None,
    clinical: options.Clinical = None,
    column: options.ColumnNames = None,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Predict slides with a trained model, and show its attention.

    With --out, each slide gets heatmap.png, heatmap.geojson (for QuPath), tiles.png (the highest scores) and tiles.csv
    (all tiles). If a cohort has the true values, predictions are measured: AUROC and others, with intervals; separately
    for slides of the model's training and new ones (column part of predictions.csv). Slides that fail
    are listed, the others are predicted, and the exit code is 1; paths that do not exist are refused first.

    Example: [bold]slideio-pipe predict run/best.ckpt a.svs b.svs --out predicted/[/]

    A cohort, with pyramids: [bold]slideio-pipe predict run/ cohort.csv --out predicted/ --pyramid[/]
    """
    import torch

    from slideio_pipe.cohort.table import is_table
    from slideio_pipe.mil.prediction.predict_cohort import predict_cohort
    from slideio_pipe.mil.prediction.prediction import checked_scores
    from slideio_pipe.mil.prediction.predictor import load_predictor
    from slideio_pipe.mil.run_folder import is_unfinished
    from slideio_pipe.slides.frames import checked_frame

    if save is None and pyramid:
        raise ConfigError("--pyramid without --out", remedy="pass --out FOLDER")
    kind = checked_scores(scores)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor = load_predictor(
        checkpoint, model=model, encoder=encoder, device=target, trust_remote_code=trust_remote_code
    )
    if is_unfinished(checkpoint):
        kept = "last" if predictor.config.fit.monitor == "none" else "best"
        warn(f"{checkpoint}: this training is not finished; the model is that of its {kept} epoch so far")
    tables = cohort_commands.table_options(None, clinical, column)
    if len(slides) == 1 and is_table(slides[0]):
        cohort, pictured = _of_table(slides[0], root, features, slide_folder, tables)
    else:
        cohort = _cohort(slides, root, features, takes_features=predictor.encoder is None, tables=tables)
        pictured = slide_folder
    found = predict_cohort(
        predictor,
        cohort,
        save,
        scores=kind,
        slides=pictured,
        slide_mpp=slide_mpp,
        pyramid=pyramid,
        frame=checked_frame(frame or "qupath"),
        overwrite=overwrite,
        progress=shown(as_json),
    )
    cohort_commands.finish(found, as_json, lambda report: _print(report, save))


def _of_table(
    source: Path, root: Path | None, features: Path | None, folder: Path | None, tables: Mapping[str, Any]
) -> tuple[Cohort, Path | None]:
    """Return the slides or features of a table, and the folder of --slides if it is for pictures, not for ids."""
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.cohort.slide_search import join_files
    from slideio_pipe.cohort.study_table import study_table
    from slideio_pipe.mil.feature_files import feature_cohort

    table = study_table(source, **tables)
    if features is not None:
        return feature_cohort(table, features), folder
    joined = table if folder is None else join_files(table, folder)
    is_for_ids = [row.get("slide") for row in joined.rows] != [row.get("slide") for row in table.rows]
    return Cohort.from_table(joined, root), None if is_for_ids else folder


def _cohort(
    sources: list[Path], root: Path | None, features: Path | None, *, takes_features: bool, tables: Mapping[str, Any]
) -> Cohort:
    """Return the slides, or their features if the model uses these."""
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.mil.feature_files import feature_cohort, features_in

    if tables:
        return cohort_commands.cohort_of(sources, root, tables)  # which refuses them
    if features is not None:
        return feature_cohort(sources[0] if len(sources) == 1 else cohort_commands.cohort_of(sources, root), features)
    listed = features_in(sources[0]) if takes_features and len(sources) == 1 else []
    if listed:
        return Cohort.of(listed, root=root)
    if len(sources) == 1 and not cohort_commands.is_cohort(sources):
        return Cohort.of([sources[0]], root=root)
    return cohort_commands.cohort_of(sources, root)


def _print(found: PredictedCohort, save: Path | None) -> None:
    from rich.table import Table

    rows = [slide.row() for slide in found.slides if slide.prediction is not None]
    if rows:
        columns = [name for name in rows[0] if any(row[name] != "" for row in rows)]
        table = Table(*(name.replace("_", " ") for name in columns))
        for row in rows[:_SHOWN]:
            table.add_row(*(_cell(name, row[name]) for name in columns))
        out.print(table)
    if len(rows) > _SHOWN:
        say(f"and {len(rows) - _SHOWN:,} more")
    for part, measured in found.parts.items():
        count = f"{measured.slides:,} {found.unit}{'' if measured.slides == 1 else 's'} with a known truth"
        print_metrics(f"{count}{_PARTS[part]}", measured.metrics)
        if measured.note is not None:
            say(measured.note)
    for slide in found.failed:
        assert slide.error is not None
        print_failure(slide.name, slide.error)
    if found.table is not None:
        say(f"predictions: {found.table}")
        first = next((slide for slide in found.slides if slide.folder is not None), None)
        if first is not None:
            more = f" (a folder for each {found.unit})" if len(rows) > 1 else ""
            say(f"pictures: {first.folder}: {', '.join(first.files)}{more}")
    elif save is None and rows:
        say("for heat maps and the most attended tiles, pass --out FOLDER")


def _cell(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if name.startswith("probability") else f"{value:.4g}"
    return f"{value:,}" if name == "tiles" and isinstance(value, int) else escape(str(value))
