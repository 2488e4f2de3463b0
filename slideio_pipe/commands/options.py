"""The options of the command line: one type per option, with help text, unit and panel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from slideio_pipe.commands.terminal import err
from slideio_pipe.errors import ConfigError

if TYPE_CHECKING:
    from slideio_pipe.export.config import ExportConfig

from pathlib import Path
from typing import Annotated, Any

import typer

SLIDE, TILES, TISSUE, OUTPUT = "Slide", "Resolution and tiles", "Tissue", "Output"
COHORT = "Cohorts"
ENCODING = "Encoding"


def _option(*names: str, unit: str | None = None, panel: str | None = None, text: str, **more: Any) -> Any:
    """Return an option; its placeholder shows the unit or the choices."""
    return typer.Option(*names, metavar=unit, help=text, rich_help_panel=panel, **more)


SlideFile = Annotated[Path, typer.Argument(help="SVS, TIFF, NDPI, MRXS, SCN, DICOM, OME-Zarr, PNG…")]
Exported = Annotated[
    list[Path],
    typer.Argument(
        help="A slide; or a cohort: several slides, a folder, a pattern, or a CSV or Parquet file with a column slide.",
        metavar="SLIDE|COHORT",
    ),
]
SlideMpp = Annotated[
    float | None,
    _option(
        "--slide-mpp",
        unit="µm",
        panel=SLIDE,
        text="µm per pixel of the slide (level 0), if the file states none or a wrong value.",
    ),
]
CohortMpp = Annotated[
    float | None,
    _option(
        "--slide-mpp",
        unit="µm",
        panel=SLIDE,
        text="µm per pixel of the slide (level 0): for one slide it replaces the file's value; for a cohort it is used "
        "where files state none.",
    ),
]
CohortMppOverride = Annotated[
    bool,
    _option(
        "--slide-mpp-override",
        panel=SLIDE,
        text="In a cohort, --slide-mpp also replaces the files' values. The cohort's column mpp still has precedence.",
    ),
]
Backend = Annotated[
    str | None,
    _option(
        "--backend",
        unit="auto|tiff|openslide|array",
        panel=SLIDE,
        text=r"Backend that reads the slide. \[default: auto]",
    ),
]
Config = Annotated[
    Path | None,
    _option("--config", unit="YAML", text="Settings, as in configs/export.yaml; options override them."),
]
Picture = Annotated[Path | None, _option("--picture", unit="PNG", panel=OUTPUT, text="Write a picture of the result.")]
Overwrite = Annotated[bool, _option("--overwrite", panel=OUTPUT, text="Replace existing files.")]
Json = Annotated[bool, _option("--json", panel=OUTPUT, text="Print only JSON on standard output.")]

MemoryMpp = Annotated[
    float | None,
    _option("--mpp", unit="µm", text=r"Memory at this many µm per pixel. \[default: level 0 as stored]"),
]

MaskFile = Annotated[
    Path | None,
    _option(
        "--out",
        "-o",
        unit="GEOJSON|PNG|FOLDER",
        panel=OUTPUT,
        text="Write the mask, as GeoJSON for QuPath or as a PNG of 0 and 255; for a cohort, the folder of the masks.",
    ),
]
MaskForm = Annotated[
    str | None,
    _option("--format", unit="geojson|png", panel=COHORT, text=r"File format of a cohort's masks. \[default: geojson]"),
]
MaskManifest = Annotated[
    Path | None,
    _option("--manifest", unit="CSV", panel=COHORT, text="Write the cohort with its masks, for export."),
]
Method = Annotated[
    str | None, _option("--method", unit="otsu|threshold|none", text=r"Method of finding tissue. \[default: otsu]")
]
MaskMpp = Annotated[float | None, _option("--mpp", unit="µm", text=r"µm per pixel of the mask. \[default: 8]")]

BagFolder = Annotated[
    Path | None,
    _option(
        "--out",
        "-o",
        unit="FOLDER",
        panel=OUTPUT,
        text=r"Folder for <slide>.bag.zarr, or a path ending in .zarr. \[default: the current folder]",
    ),
]
TileMpp = Annotated[
    str | None,
    _option(
        "--mpp", unit="µm|native", panel=TILES, text=r"µm per tile pixel; native: level 0 as stored. \[default: 0.5]"
    ),
]
Magnification = Annotated[
    float | None, _option("--mag", unit="20", panel=TILES, text="Magnification, instead of --mpp: 20 means 0.5 µm.")
]
TileSize = Annotated[
    int | None,
    _option("--tile-size", "--patch-size", unit="px", panel=TILES, text=r"Side of a tile. \[default: 256]"),
]
Stride = Annotated[
    int | None, _option("--stride", unit="px", panel=TILES, text=r"Distance between tiles. \[default: the tile size]")
]
Overlap = Annotated[
    int | None, _option("--overlap", unit="px", panel=TILES, text="Instead of --stride: tile size - stride.")
]
Edge = Annotated[
    str | None,
    _option(
        "--edge",
        unit="drop|shift|pad",
        panel=TILES,
        text=r"Tiles beyond the right and lower edge: dropped, shifted inside, or padded with white. \[default: drop]",
    ),
]
Align = Annotated[
    bool,
    _option(
        "--align", panel=TILES, text="Align tiles to those stored in the file: read fastest; allows --pixels source."
    ),
]
TissueMethod = Annotated[
    str | None,
    _option(
        "--tissue",
        unit="otsu|threshold|none",
        panel=TISSUE,
        text=r"Method of finding tissue; none keeps every tile. \[default: otsu]",
    ),
]
Mask = Annotated[Path | None, _option("--mask", unit="GEOJSON|PNG", panel=TISSUE, text="Tissue mask to use instead.")]
MaskFrame = Annotated[
    str | None,
    _option(
        "--mask-frame",
        unit="qupath|level0",
        panel=TISSUE,
        text="Origin of masks: the corner of the scanned area, as in QuPath, or the corner of level 0. "
        r"\[default: qupath; for pictures, from their shape]",
    ),
]
OutputFrame = Annotated[
    str | None,
    _option(
        "--frame",
        unit="qupath|level0",
        panel=OUTPUT,
        text="Origin of GeoJSON: the corner of the scanned area, as in QuPath, or the corner of level 0, for tools "
        r"that read with OpenSlide. \[default: qupath]",
    ),
]
MinTissue = Annotated[
    float | None,
    _option("--min-tissue", unit="0…1", panel=TISSUE, text=r"Minimum tissue fraction of a tile. \[default: 0.5]"),
]
AllowEmpty = Annotated[bool, _option("--allow-empty", panel=TISSUE, text="Write an empty bag if there is no tissue.")]
OnError = Annotated[
    str | None,
    _option(
        "--on-error",
        unit="raise|white",
        panel=SLIDE,
        text=r"Damaged slides fail; or undecodable places are treated as white glass, and listed. \[default: raise]",
    ),
]
Pixels = Annotated[
    str | None,
    _option(
        "--pixels",
        unit="zstd|source|jpeg:Q|none",
        panel=OUTPUT,
        text=r"Lossless; the slide's own JPEG bytes (see --align); JPEG of quality Q; raw. \[default: zstd]",
    ),
]
Label = Annotated[
    str | None, _option("--label", unit="L", panel=OUTPUT, text="Label to store with the bag: 1, 0.5, tumour…")
]
Patient = Annotated[
    str | None, _option("--patient", unit="ID", panel=OUTPUT, text="Patient of the slide, to store with the bag.")
]
Threads = Annotated[
    int | None,
    _option("--threads", unit="n", min=1, text=r"Number of decoding threads. \[default: one per core, at most 8]"),
]

DemoFolder = Annotated[
    Path, _option("--out", "-o", unit="FOLDER", panel=OUTPUT, text="Folder for slides, bags and picture.")
]
DemoCohort = Annotated[bool, typer.Option("--cohort", help="Many small slides, from a manifest to a report.")]
DemoMil = Annotated[bool, typer.Option("--mil", help="A study to train on: 40 slides, half of them with a lesion.")]
DemoLaboratory = Annotated[
    str,
    _option(
        "--laboratory",
        unit="NAME",
        text="Laboratory that stained the slides of --mil: usual, faded, thick, violet, far.",
    ),
]
Device = Annotated[
    str | None, _option("--device", unit="cpu|cuda", text=r"Device of the batches. \[default: cuda if available]")
]

BenchSlide = Annotated[
    Path | None, typer.Argument(help="A slide that all readers support: SVS, TIFF. By default one is generated.")
]
Cases = Annotated[
    list[str] | None,
    _option(
        "--case",
        unit="CASE",
        text=r"aligned, half, off-grid, sparse, threads, memory or slides; repeatable. \[default: all]",
    ),
]
Peers = Annotated[
    list[str] | None,
    _option(
        "--peer",
        unit="READER",
        text="simplejpeg, openslide, cucim, fastslide, tiffslide or pyvips; repeatable. "
        r"\[default: all installed ones]",
    ),
]
Rounds = Annotated[int, _option("--rounds", unit="n", min=1, text="Number of rounds per reader.")]
MostTiles = Annotated[int, _option("--tiles", unit="n", min=1, text="Maximum tiles per case.")]
OtherPython = Annotated[
    Path | None,
    _option("--python", unit="PATH", text=r"Python interpreter with the other readers installed. \[default: this one]"),
]

ProfiledCohort = Annotated[
    list[Path], typer.Argument(help="Slides or bags (.bag.zarr), or one CSV with a column slide.", metavar="SLIDE|CSV")
]
MaxFailures = Annotated[int, _option("--max-failures", unit="n", min=0, text="Slides that may fail; they are listed.")]
LoaderFile = Annotated[
    Path | None, _option("--config", unit="YAML", text="Settings, as in configs/mil.yaml; options override them.")
]
LoaderThreads = Annotated[
    int | None,
    _option("--threads", unit="n", min=1, text=r"Number of decoding threads. \[default: one fewer than the cores]"),
]
ChunkSize = Annotated[int, _option("--chunk-size", unit="n", min=1, text="Tiles per chunk.")]
Mix = Annotated[int, _option("--mix", unit="n", min=0, text="Chunks over which tiles are shuffled; 0: no shuffling.")]
ProfileDevice = Annotated[str, _option("--device", unit="cpu|cuda", text="Device of the tiles.")]
StepMs = Annotated[
    float, _option("--step-ms", unit="ms", min=0, text="Simulated training step per chunk; the consumer waits.")
]
ProfiledTiles = Annotated[
    int | None, _option("--tiles", unit="n", min=1, text=r"Stop after this many tiles. \[default: the whole cohort]")
]
Trace = Annotated[
    Path | None, _option("--trace", unit="JSON", panel=OUTPUT, text="Write every span of every thread, for Perfetto.")
]

Workers = Annotated[
    int | None,
    _option("--workers", unit="n", min=1, panel=COHORT, text=r"Number of processes, one slide each. \[default: 1]"),
]
FeatureWorkers = Annotated[
    int | None,
    _option(
        "--workers",
        unit="n",
        min=1,
        panel=COHORT,
        text="Encode in processes, one slide each: for CPUs, and for slides that crash their reader.",
    ),
]
Cluster = Annotated[
    str | None,
    _option(
        "--cluster",
        unit="tcp://…|YAML",
        panel=COHORT,
        text="A Dask scheduler, or SLURM resources (configs/slurm.yaml), instead of --workers.",
    ),
]
TimeLimit = Annotated[float | None, _option("--time-limit", unit="s", panel=COHORT, text="Time limit per slide.")]
MemoryLimit = Annotated[
    float | None,
    _option("--memory-limit", unit="GB", panel=COHORT, text="Memory limit per process."),
]
Retry = Annotated[bool, _option("--retry", panel=COHORT, text="Retry slides that crashed or exceeded a limit twice.")]
Root = Annotated[
    Path | None, _option("--root", unit="FOLDER", panel=COHORT, text="Folder that must contain all slides.")
]

Encoded = Annotated[
    list[Path],
    typer.Argument(
        help="Bags (.bag.zarr) or slides, a folder or pattern of them, or a CSV or Parquet file with a column slide.",
        metavar="COHORT",
    ),
]
Encoders = Annotated[
    list[str],
    _option(
        "--encoder",
        unit="ENCODER",
        panel=ENCODING,
        text="timm:NAME, timm:NAME@weights.safetensors, hf:NAME, hf:FOLDER; or a file of TorchScript or of an exported "
        "program (.pt2), which are code: load only those you trust. uni=timm:NAME sets a name. Repeatable.",
    ),
]
Normalization = Annotated[
    str | None,
    _option(
        "--normalize",
        unit="imagenet|half|identity",
        panel=ENCODING,
        text="Normalisation, for encoders whose configuration, or FILE.json beside them, states none.",
    ),
]
InputSize = Annotated[
    int | None,
    _option("--input-size", unit="px", min=1, panel=ENCODING, text="Likewise: side of the square input."),
]
TokenPooling = Annotated[
    str | None,
    _option("--pooling", unit="class|mean", panel=ENCODING, text="Likewise: pooling of a tile's tokens."),
]
FeatureDtype = Annotated[
    str,
    _option(
        "--dtype",
        unit="float16|float32",
        panel=ENCODING,
        text="Dtype of the features, and of the computation on a GPU.",
    ),
]
BatchSize = Annotated[int, _option("--batch-size", unit="n", min=1, panel=ENCODING, text="Tiles per batch.")]
EncoderDevice = Annotated[
    str | None,
    _option("--device", unit="cpu|cuda|cuda:1", panel=ENCODING, text=r"\[default: cuda if available]"),
]
EncoderTileSize = Annotated[
    int | None,
    _option(
        "--tile-size",
        "--patch-size",
        unit="px",
        panel=TILES,
        text=r"Side of a tile of slides; resized for the encoder. \[default: the (largest) input size]",
    ),
]
EncoderMpp = Annotated[
    str | None,
    _option(
        "--mpp", unit="µm|native", panel=TILES, text=r"µm per tile pixel. \[default: the encoder's, if known, else 0.5]"
    ),
]
FeatureFolder = Annotated[
    Path | None,
    _option(
        "--out",
        "-o",
        unit="FOLDER",
        panel=OUTPUT,
        text=r"Folder for <slide>.features.zarr. \[default: into the bags, beside their pixels]",
    ),
]
Shard = Annotated[
    str | None,
    _option("--shard", unit="k/n", panel=COHORT, text="The k-th of n parts, from 0/n: for one process per GPU."),
]

Manifest = Annotated[
    Path, typer.Argument(help="A CSV or Parquet file with a column slide; a folder; a pattern.", metavar="COHORT")
]
ManifestOut = Annotated[
    Path | None,
    _option("--out", "-o", unit="CSV", panel=OUTPUT, text=r"The manifest to write. \[default: the given one]"),
]
Parts = Annotated[
    str | None,
    _option(
        "--parts", unit="NAME=0…1,…", text=r"Splits by fraction of patients. \[default: train=0.7,val=0.15,test=0.15]"
    ),
]
Folds = Annotated[int | None, _option("--folds", unit="k", min=2, text="Number of folds, instead of parts.")]
Seed = Annotated[int, _option("--seed", unit="n", min=0, text="Random seed of the assignment.")]
Plain = Annotated[bool, _option("--plain", text="Do not stratify by label.")]
SplitBy = Annotated[
    str | None,
    _option("--by", unit="column", text=r"Stratify by this column, such as grade or event. \[default: label]"),
]


def settings_of(slide: Path, file: Path | None, given: dict[str, dict[str, Any]]) -> ExportConfig:
    """Return the configuration of the file, or the default one, overridden by the given options."""
    from slideio_pipe.config import checked
    from slideio_pipe.export.config import ExportConfig, load_config

    values = (load_config(file) if file else ExportConfig()).model_dump()
    for stage, options in given.items():
        chosen = {name: value for name, value in options.items() if value is not None}
        if "stride" in chosen or "overlap" in chosen:  # one replaces the other
            values[stage] |= {"stride": None, "overlap": None}
        values[stage] |= chosen
    return checked(ExportConfig, slide.name, **values)


def mpp_of(magnification: float, mpp: str | None) -> float:
    """Return the mpp of a magnification, and print it."""
    from slideio_pipe.geometry import magnification_to_mpp

    if mpp is not None:
        raise ConfigError("--mag and --mpp are both given", remedy="give one of them")
    if not (math.isfinite(magnification) and magnification > 0):
        raise ConfigError(f"--mag {magnification:g} is no magnification", remedy="pass 20, 40, …")
    found = magnification_to_mpp(magnification)
    err.print(f"--mag {magnification:g} means {found:g} µm per pixel", soft_wrap=True)
    return found
