"""The options of the command line: one type per option, with help text, unit and panel."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slideio_pipe.commands.completion import encoder_names, preset_names
from slideio_pipe.commands.terminal import note
from slideio_pipe.errors import ConfigError

if TYPE_CHECKING:
    from slideio_pipe.export.config import ExportConfig


def _panel(title: str | None) -> Callable[..., Any]:
    """Return a function that makes the options of one panel of the help screen."""

    def option(names: str, text: str, *, unit: str = "", **more: Any) -> Any:
        return typer.Option(*names.split(), metavar=unit, help=text, rich_help_panel=title, **more)

    return option


# Each takes the option's names, its help, and what stands for its value: a unit or the choices.
option = _panel(None)
of_slide, of_tiles, of_tissue = _panel("Slide"), _panel("Resolution and tiles"), _panel("Tissue")
of_quality = _panel("Quality of tiles")
of_cells = _panel("Cells")
of_output, of_cohort, of_encoding = _panel("Output"), _panel("Cohorts"), _panel("Encoding")

SlideFile = Annotated[
    Path, typer.Argument(help="A slide: SVS, TIFF, NDPI, MRXS, SCN, DICOM, OME-Zarr, PNG…", metavar="SLIDE")
]
InfoFile = Annotated[
    Path,
    typer.Argument(
        help="A slide: SVS, TIFF, NDPI, MRXS, SCN, DICOM, OME-Zarr, PNG…; or a cohort: a folder, a pattern, or a table "
        "with a column slide.",
        metavar="SLIDE|COHORT",
    ),
]
Exported = Annotated[
    list[Path],
    typer.Argument(
        help="A slide; or a cohort: several slides, a folder, a pattern, or a table with a column slide (CSV, TSV, "
        "Excel, Parquet).",
        metavar="SLIDE|COHORT",
    ),
]
SlideMpp = Annotated[
    float | None,
    of_slide(
        "--slide-mpp", "µm per pixel of the slide (level 0), if the file states none or a wrong value.", unit="µm"
    ),
]
CohortMpp = Annotated[
    float | None,
    of_slide(
        "--slide-mpp",
        "µm per pixel of the slide (level 0): for one slide it replaces the file's value; for a cohort it is used "
        "where files state none.",
        unit="µm",
    ),
]
CohortMppOverride = Annotated[
    bool,
    of_slide(
        "--slide-mpp-override",
        "In a cohort, --slide-mpp also replaces the files' values. The cohort's column mpp still has precedence.",
    ),
]
Backend = Annotated[
    str | None,
    of_slide("--backend", r"Reader of the slide: auto, tiff, openslide or array. \[default: auto]", unit="NAME"),
]
Config = Annotated[
    Path | None,
    option(
        "--config",
        "Settings: a file, or a preset such as uni-224 (slideio-pipe config list); options override them.",
        unit="YAML|PRESET",
        autocompletion=preset_names("export"),
    ),
]
Picture = Annotated[Path | None, of_output("--picture", "Write a picture of the result.", unit="PNG")]
Overwrite = Annotated[bool, of_output("--overwrite", "Replace existing files.")]
Json = Annotated[bool, of_output("--json", "Print only JSON on standard output.")]

MemoryMpp = Annotated[
    float | None, option("--mpp", r"Memory at this many µm per pixel. \[default: level 0 as stored]", unit="µm")
]

MaskFile = Annotated[
    Path | None,
    of_output(
        "--out -o",
        "Write the mask, as GeoJSON for QuPath or as a PNG of 0 and 255; for a cohort, the folder of the masks.",
        unit="GEOJSON|PNG|FOLDER",
    ),
]
MaskForm = Annotated[
    str | None, of_cohort("--format", r"File format of a cohort's masks. \[default: geojson]", unit="geojson|png")
]
MaskManifest = Annotated[
    Path | None, of_cohort("--manifest", "Write the cohort with its masks, for export.", unit="TABLE")
]
Method = Annotated[
    str | None,
    option(
        "--method",
        r"Method of finding tissue, onnx:FILE of a model, or MODULE:NAME of your own. \[default: otsu]",
        unit="otsu|threshold|none",
    ),
]
MaskMpp = Annotated[float | None, option("--mpp", r"µm per pixel of the mask. \[default: 8]", unit="µm")]

BagFolder = Annotated[
    Path | None,
    of_output(
        "--out -o",
        r"Folder for <slide>.bag.zarr, or a path ending in .zarr. \[default: the current folder]",
        unit="FOLDER",
    ),
]
TileMpp = Annotated[
    str | None, of_tiles("--mpp", r"µm per tile pixel; native: level 0 as stored. \[default: 0.5]", unit="µm|native")
]
Magnification = Annotated[
    float | None, of_tiles("--mag", "Magnification, instead of --mpp: 20 means 0.5 µm.", unit="20")
]
Context = Annotated[
    list[float] | None,
    of_tiles(
        "--context",
        "Further magnification, µm per pixel: with each tile comes a concentric one of as many pixels, which shows a "
        "larger field. Repeatable, ascending.",
        unit="µm",
    ),
]
TileSize = Annotated[int | None, of_tiles("--tile-size --patch-size", r"Side of a tile. \[default: 256]", unit="px")]
Stride = Annotated[int | None, of_tiles("--stride", r"Distance between tiles. \[default: the tile size]", unit="px")]
Overlap = Annotated[int | None, of_tiles("--overlap", "Instead of --stride: tile size - stride.", unit="px")]
Edge = Annotated[
    str | None,
    of_tiles(
        "--edge",
        r"Tiles beyond the right and lower edge: dropped, shifted inside, or padded with white. \[default: drop]",
        unit="drop|shift|pad",
    ),
]
Align = Annotated[
    bool, of_tiles("--align", "Align tiles to those stored in the file: read fastest; allows --pixels source.")
]
TissueMethod = Annotated[
    str | None,
    of_tissue(
        "--tissue",
        r"Method of finding tissue, onnx:FILE of a model, or MODULE:NAME of your own; none keeps every tile. "
        r"\[default: otsu]",
        unit="otsu|threshold|none",
    ),
]
Mask = Annotated[Path | None, of_tissue("--mask", "Tissue mask to use instead.", unit="GEOJSON|PNG")]
MaskFrame = Annotated[
    str | None,
    of_tissue(
        "--mask-frame",
        "Origin of masks: the corner of the scanned area, as in QuPath, or the corner of level 0. "
        r"\[default: qupath; for pictures, from their shape]",
        unit="qupath|level0",
    ),
]
OutputFrame = Annotated[
    str | None,
    of_output(
        "--frame",
        "Origin of GeoJSON: the corner of the scanned area, as in QuPath, or the corner of level 0, for tools "
        r"that read with OpenSlide. \[default: qupath]",
        unit="qupath|level0",
    ),
]
MinTissue = Annotated[
    float | None, of_tissue("--min-tissue", r"Minimum tissue fraction of a tile. \[default: 0.5]", unit="0…1")
]
Quality = Annotated[
    bool, of_quality("--quality", "Measure focus, pen, folds, bubbles and white of every tile, and store them.")
]
MinFocus = Annotated[
    float | None, of_quality("--min-focus", "Drop tiles of less focus: variance of the Laplacian at 1 µm.", unit="40")
]
MaxPen = Annotated[float | None, of_quality("--max-pen", "Drop tiles with more ink.", unit="0…1")]
MaxFold = Annotated[float | None, of_quality("--max-fold", "Drop tiles with more folded tissue.", unit="0…1")]
MaxBubble = Annotated[float | None, of_quality("--max-bubble", "Drop tiles with more air bubbles.", unit="0…1")]
MaxWhite = Annotated[float | None, of_quality("--max-white", "Drop tiles with more glass.", unit="0…1")]
Cells = Annotated[
    Path | None,
    of_cells("--cells", "Cells of QuPath, CellViT or StarDist: their number per tile is stored.", unit="FILE"),
]
CellClasses = Annotated[
    list[str] | None, of_cells("--cell-class", "Class of cells to count, by default all. Repeatable.", unit="NAME")
]
AllowEmpty = Annotated[bool, of_tissue("--allow-empty", "Write an empty bag if there is no tissue.")]
OnError = Annotated[
    str | None,
    of_slide(
        "--on-error",
        r"Damaged slides fail; or undecodable places are treated as white glass, and listed. \[default: raise]",
        unit="raise|white",
    ),
]
Pixels = Annotated[
    str | None,
    of_output(
        "--pixels",
        r"Lossless; the slide's own JPEG bytes (see --align); JPEG of quality Q; raw. \[default: zstd]",
        unit="zstd|source|jpeg:Q|none",
    ),
]
Label = Annotated[str | None, of_output("--label", "Label to store with the bag: 1, 0.5, tumour…", unit="L")]
Patient = Annotated[str | None, of_output("--patient", "Patient of the slide, to store with the bag.", unit="ID")]
Unit = Annotated[
    str | None,
    of_output(
        "--unit",
        r"patient: also write <patient>.patient.json for each patient of the cohort, which names the bags of all its "
        r"slides. \[default: slide]",
        unit="slide|patient",
    ),
]
Threads = Annotated[
    int | None, option("--threads", r"Number of decoding threads. \[default: one per core, at most 8]", unit="n", min=1)
]

DemoFolder = Annotated[Path, of_output("--out -o", "Folder for slides, bags and picture.", unit="FOLDER")]
DemoCohort = Annotated[bool, option("--cohort", "Many small slides, from a manifest to a report.")]
DemoMil = Annotated[bool, option("--mil", "A study to train on: 40 slides, half of them with a lesion.")]
DemoPatients = Annotated[bool, option("--patients", "A study by patient: 30 patients with one to four slides.")]
DemoLaboratory = Annotated[
    str,
    option(
        "--laboratory", "Laboratory that stained the slides of --mil: usual, faded, thick, violet, far.", unit="NAME"
    ),
]
Device = Annotated[
    str | None, option("--device", r"Device of the batches. \[default: cuda if available]", unit="cpu|cuda")
]

BenchSlide = Annotated[
    Path | None, typer.Argument(help="A slide that all readers support: SVS, TIFF. By default one is generated.")
]
Cases = Annotated[
    list[str] | None,
    option(
        "--case",
        r"aligned, half, fractional, off-grid, sparse, threads, memory or slides; repeatable. \[default: all]",
        unit="CASE",
    ),
]
Peers = Annotated[
    list[str] | None,
    option(
        "--peer",
        "simplejpeg, openslide, cucim, fastslide, tiffslide, microtome or pyvips; repeatable. "
        r"\[default: all installed ones]",
        unit="READER",
    ),
]
Rounds = Annotated[int, option("--rounds", "Number of rounds per reader.", unit="n", min=1)]
MostTiles = Annotated[int, option("--tiles", "Maximum tiles per case.", unit="n", min=1)]
OtherPython = Annotated[
    Path | None,
    option("--python", r"Python interpreter with the other readers installed. \[default: this one]", unit="PATH"),
]

ProfiledCohort = Annotated[
    list[Path],
    typer.Argument(
        help="Slides or bags (.bag.zarr), a folder of them, or a table with a column slide (CSV, TSV, Excel, Parquet).",
        metavar="SLIDE|COHORT",
    ),
]
MaxFailures = Annotated[int, option("--max-failures", "Slides that may fail; they are listed.", unit="n", min=0)]
LoaderFile = Annotated[
    Path | None,
    option(
        "--config",
        "Settings: a file, or a preset such as mil (slideio-pipe config list); options override them.",
        unit="YAML|PRESET",
        autocompletion=preset_names("export", "train"),
    ),
]
LoaderThreads = Annotated[
    int | None,
    option("--threads", r"Number of decoding threads. \[default: one fewer than the cores]", unit="n", min=1),
]
ReadingWorkers = Annotated[
    int,
    option("--workers", "Worker processes that read in place of threads: for many cores. 0: none.", unit="n", min=0),
]
ChunkSize = Annotated[int, option("--chunk-size", "Tiles per chunk.", unit="n", min=1)]
Mix = Annotated[int, option("--mix", "Chunks over which tiles are shuffled; 0: no shuffling.", unit="n", min=0)]
ProfileDevice = Annotated[str, option("--device", "Device of the tiles.", unit="cpu|cuda")]
StepMs = Annotated[
    float, option("--step-ms", "Simulated training step per chunk; the consumer waits.", unit="ms", min=0)
]
ProfiledTiles = Annotated[
    int | None, option("--tiles", r"Stop after this many tiles. \[default: the whole cohort]", unit="n", min=1)
]
Scan = Annotated[
    bool, option("--scan", "Try 1, 2, 4, … threads, then worker processes, up to the cores; print what is enough.")
]
Trace = Annotated[Path | None, of_output("--trace", "Write every span of every thread, for Perfetto.", unit="JSON")]

Workers = Annotated[
    int | None, of_cohort("--workers", r"Number of processes, one slide each. \[default: 1]", unit="n", min=1)
]
FeatureWorkers = Annotated[
    int | None,
    of_cohort(
        "--workers",
        "Encode in processes, one slide each: for CPUs, and for slides that crash their reader.",
        unit="n",
        min=1,
    ),
]
Cluster = Annotated[
    str | None,
    of_cohort(
        "--cluster",
        "A Dask scheduler, or a file of SLURM resources (slideio-pipe config show slurm), instead of --workers.",
        unit="tcp://…|YAML",
    ),
]
TimeLimit = Annotated[float | None, of_cohort("--time-limit", "Time limit per slide.", unit="s")]
MemoryLimit = Annotated[float | None, of_cohort("--memory-limit", "Memory limit per process.", unit="GB")]
Retry = Annotated[bool, of_cohort("--retry", "Retry slides that crashed or exceeded a limit twice.")]
SlidesOfTable = Annotated[
    Path | None,
    of_cohort(
        "--slides",
        "Folder of the slides (or bags, or features) that a table names by ids; its subfolders are searched.",
        unit="FOLDER",
    ),
]
Clinical = Annotated[
    Path | None,
    of_cohort(
        "--clinical", "Table of patients, with labels for example, that is joined to the table of slides.", unit="TABLE"
    ),
]
ColumnNames = Annotated[
    list[str] | None,
    of_cohort(
        "--column",
        "Which column of a table is the slide, label, patient, mpp, mask, split, fold or cell_file: label=isMSIH. "
        "Repeatable.",
        unit="NAME=COLUMN",
    ),
]
Root = Annotated[Path | None, of_cohort("--root", "Folder that must contain all slides.", unit="FOLDER")]

Encoded = Annotated[
    list[Path],
    typer.Argument(
        help="Bags (.bag.zarr) or slides, a folder or pattern of them, or a table with a column slide (CSV, TSV, "
        "Excel, Parquet).",
        metavar="COHORT",
    ),
]
Encoders = Annotated[
    list[str],
    of_encoding(
        "--encoder",
        "A name, such as uni (slideio-pipe encoders lists them), or uni@FILE (weights); timm:NAME, timm:NAME@FILE, "
        "hf:NAME, hf:FOLDER; or a file of TorchScript or of an exported program (.pt2), which are code: load only "
        "those you trust. mine=timm:NAME sets a name. Repeatable.",
        unit="ENCODER",
        autocompletion=encoder_names,
    ),
]
Normalization = Annotated[
    str | None,
    of_encoding(
        "--normalize",
        "Normalisation, for encoders whose configuration, or FILE.json beside them, states none.",
        unit="imagenet|half|identity",
    ),
]
InputSize = Annotated[int | None, of_encoding("--input-size", "Likewise: side of the square input.", unit="px", min=1)]
TokenPooling = Annotated[
    str | None, of_encoding("--pooling", "Likewise: pooling of a tile's tokens.", unit="class|mean|class+mean")
]
Precision = Annotated[
    str | None,
    of_encoding(
        "--precision",
        r"float16, bfloat16 or float32: of the computation on a GPU, for features in float16. "
        r"\[default: the encoder's, else float16]",
        unit="DTYPE",
    ),
]
TrustRemoteCode = Annotated[
    bool, of_encoding("--trust-remote-code", "Run the code that an encoder's repository on the hub contains.")
]
KnownName = Annotated[
    str | None,
    typer.Argument(help="Name of an encoder. By default all are listed.", metavar="NAME", autocompletion=encoder_names),
]
OnThisMachine = Annotated[bool, option("--installed", "Only encoders whose weights and package are on this machine.")]
FeatureDtype = Annotated[
    str, of_encoding("--dtype", "Dtype of the features, and of the computation on a GPU.", unit="float16|float32")
]
BatchSize = Annotated[int, of_encoding("--batch-size", "Tiles per batch.", unit="n", min=1)]
EncoderDevice = Annotated[str | None, of_encoding("--device", r"\[default: cuda if available]", unit="cpu|cuda|cuda:1")]
EncoderTileSize = Annotated[
    int | None,
    of_tiles(
        "--tile-size --patch-size",
        r"Side of a tile of slides; resized for the encoder. \[default: the encoder's, else its input size]",
        unit="px",
    ),
]
EncoderMpp = Annotated[
    str | None, of_tiles("--mpp", r"µm per tile pixel. \[default: the encoder's, if known, else 0.5]", unit="µm|native")
]
FeatureFolder = Annotated[
    Path | None,
    of_output(
        "--out -o", r"Folder for <slide>.features.zarr. \[default: into the bags, beside their pixels]", unit="FOLDER"
    ),
]
ContextFeatures = Annotated[
    str,
    of_encoding(
        "--context-features",
        "With --context: the features of all magnifications of a tile in one array, or an array for each.",
        unit="concat|apart",
    ),
]
Shard = Annotated[
    str | None, of_cohort("--shard", "The k-th of n parts, from 0/n: for one process per GPU.", unit="k/n")
]

Manifest = Annotated[
    Path,
    typer.Argument(
        help="A table with a column slide (CSV, TSV, Excel, Parquet); a folder; a pattern.", metavar="COHORT"
    ),
]
ManifestOut = Annotated[
    Path | None,
    of_output(
        "--out -o", r"The manifest to write: .csv, .tsv, .xlsx or .parquet. \[default: the given one]", unit="TABLE"
    ),
]
Parts = Annotated[
    str | None,
    option("--parts", r"Splits by fraction of patients. \[default: train=0.7,val=0.15,test=0.15]", unit="NAME=0…1,…"),
]
Folds = Annotated[int | None, option("--folds", "Number of folds, instead of parts.", unit="k", min=2)]
Seed = Annotated[int, option("--seed", "Random seed of the assignment.", unit="n", min=0)]
Plain = Annotated[bool, option("--plain", "Do not stratify by label.")]
SplitBy = Annotated[
    str | None, option("--by", r"Stratify by this column, such as grade or event. \[default: label]", unit="column")
]

of_layers, of_server = _panel("Layers"), _panel("Server")
Shown = Annotated[
    list[Path],
    typer.Argument(
        help="Slides or bags (.bag.zarr), a folder or pattern of them, or a table with a column slide (CSV, TSV, "
        "Excel, Parquet); the folder of a training, to see slides as it saw them.",
        metavar="SLIDE|BAG|COHORT|TRAINING",
    ),
]
ShownTransform = Annotated[
    Path | None,
    option(
        "--transform",
        "Augmentation with controls: a file, or a preset such as stain-light. "
        r"\[default: stains, colours, turn, mirror, scale]",
        unit="YAML|PRESET",
        autocompletion=preset_names("transform"),
    ),
]
ShownSeed = Annotated[
    int | None, option("--seed", r"Seed of the first draw. \[default: the training's, or 0]", unit="n", min=0)
]
ShownMpp = Annotated[
    float | None,
    of_slide("--mpp", r"µm per pixel at full zoom, at which transforms are drawn. \[default: level 0]", unit="µm"),
]
SlidesOfBags = Annotated[
    Path | None,
    of_slide(
        "--slides",
        "Folder of the slides of bags, else of a bag its stored tiles are shown; of a table, the folder of its ids.",
        unit="FOLDER",
    ),
]
ShownAnnotations = Annotated[
    Path | None,
    of_layers(
        "--annotations", "Polygons, points, cells or labels; a folder has a file per slide.", unit="GEOJSON|PNG|FOLDER"
    ),
]
ShownScores = Annotated[
    Path | None, of_layers("--scores", "tiles.csv of predict, or the folder that predict wrote.", unit="CSV|FOLDER")
]
ShownConfig = Annotated[
    Path | None,
    of_layers(
        "--config",
        "Tissue and grid of the layers: a file, or a preset such as uni-224.",
        unit="YAML|PRESET",
        autocompletion=preset_names("export"),
    ),
]
SaveTo = Annotated[
    Path | None,
    of_output("--save-to", "Folder that the page may save settings, masks and regions to.", unit="FOLDER"),
]
Port = Annotated[
    int, of_server("--port", "Port; 0: any free one. If it is in use, the next free one.", unit="n", min=0, max=65535)
]
NoBrowser = Annotated[bool, of_server("--no-browser", "Print the link, and open no browser.")]
Question = Annotated[
    list[str] | None, typer.Argument(help="What you want to know. Without it, the browser opens.", metavar="[QUESTION]")
]
HitCount = Annotated[int, option("--count", "Number of pages.", unit="n", min=1)]
Hosts = Annotated[
    list[str] | None,
    of_server("--host", "Name under which the page is opened through a proxy. Repeatable.", unit="NAME"),
]
PatientLabels = Annotated[
    bool, of_slide("--labels", "Show label and macro images too, which may show a patient's name.")
]


def settings_of(
    slide: Path, file: Path | None, given: dict[str, dict[str, Any]], *, unit: str | None = None
) -> ExportConfig:
    """Return the configuration of the file, or the default one, overridden by the given options."""
    from slideio_pipe.config import checked
    from slideio_pipe.export.config import ExportConfig, load_config

    values = (load_config(file) if file else ExportConfig()).model_dump(exclude_unset=True)
    for stage, options in given.items():
        chosen = {name: value for name, value in options.items() if value is not None}
        if "stride" in chosen or "overlap" in chosen:  # one replaces the other
            chosen = {"stride": None, "overlap": None} | chosen
        values[stage] = values.get(stage, {}) | chosen
    if unit is not None:
        values["unit"] = unit
    return checked(ExportConfig, slide.name, **values)


def mpp_of(magnification: float, mpp: str | None) -> float:
    """Return the mpp of a magnification, and print it."""
    from slideio_pipe.geometry import magnification_to_mpp

    if mpp is not None:
        raise ConfigError("--mag and --mpp are both given", remedy="give one of them")
    if not (math.isfinite(magnification) and magnification > 0):
        raise ConfigError(f"--mag {magnification:g} is no magnification", remedy="pass 20, 40, …")
    found = magnification_to_mpp(magnification)
    note(f"--mag {magnification:g} means {found:g} µm per pixel")
    return found
