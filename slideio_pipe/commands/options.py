"""The options of the command line: one type each, with its help, unit and place on the help screen."""

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
    """Return an option; what stands for its value is the unit or the choices."""
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
        text="µm per pixel of the slide itself (level 0), if the file does not say or is wrong.",
    ),
]
CohortMpp = Annotated[
    float | None,
    _option(
        "--slide-mpp",
        unit="µm",
        panel=SLIDE,
        text="µm per pixel of the slide itself (level 0): of one slide, whatever its file states; of a cohort, for "
        "slides that state none.",
    ),
]
CohortMppOverride = Annotated[
    bool,
    _option(
        "--slide-mpp-override",
        panel=SLIDE,
        text="Of a cohort: --slide-mpp replaces what files state, too. The column mpp of the cohort stays.",
    ),
]
Backend = Annotated[
    str | None,
    _option("--backend", unit="auto|tiff|openslide|array", panel=SLIDE, text=r"Who reads the slide. \[default: auto]"),
]
Config = Annotated[
    Path | None,
    _option("--config", unit="YAML", text="Settings, as in configs/export.yaml; options win over them."),
]
Picture = Annotated[Path | None, _option("--picture", unit="PNG", panel=OUTPUT, text="Draw what was found.")]
Overwrite = Annotated[bool, _option("--overwrite", panel=OUTPUT, text="Replace what is there already.")]
Json = Annotated[bool, _option("--json", panel=OUTPUT, text="Print JSON, and nothing else, on standard output.")]

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
        text="Write the mask, for QuPath or as 0 and 255; of a cohort, the folder of the masks.",
    ),
]
MaskForm = Annotated[
    str | None,
    _option("--format", unit="geojson|png", panel=COHORT, text=r"What masks of a cohort are. \[default: geojson]"),
]
MaskManifest = Annotated[
    Path | None,
    _option("--manifest", unit="CSV", panel=COHORT, text="Write the cohort with its masks, for export to use."),
]
Method = Annotated[
    str | None, _option("--method", unit="otsu|threshold|none", text=r"How tissue is found. \[default: otsu]")
]
MaskMpp = Annotated[float | None, _option("--mpp", unit="µm", text=r"µm per pixel of the mask. \[default: 8]")]

BagFolder = Annotated[
    Path | None,
    _option(
        "--out",
        "-o",
        unit="FOLDER",
        panel=OUTPUT,
        text=r"Where <slide>.bag.zarr goes, or a whole name ending in .zarr. \[default: here]",
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
    int | None, _option("--stride", unit="px", panel=TILES, text=r"From tile to tile. \[default: the tile size]")
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
        text=r"Tiles over the right and lower edge: left out, moved inside, or white there. \[default: drop]",
    ),
]
Align = Annotated[
    bool,
    _option(
        "--align", panel=TILES, text="Lay tiles on those stored in the file: soonest read, and --pixels source can be."
    ),
]
TissueMethod = Annotated[
    str | None,
    _option(
        "--tissue",
        unit="otsu|threshold|none",
        panel=TISSUE,
        text=r"How tissue is found; none keeps every tile. \[default: otsu]",
    ),
]
Mask = Annotated[Path | None, _option("--mask", unit="GEOJSON|PNG", panel=TISSUE, text="Tissue mask to use instead.")]
MaskFrame = Annotated[
    str | None,
    _option(
        "--mask-frame",
        unit="qupath|level0",
        panel=TISSUE,
        text="Where (0, 0) of masks is: where QuPath has it, the corner of what was scanned, or the corner of level 0. "
        r"\[default: qupath; of pictures, what their shape says]",
    ),
]
OutputFrame = Annotated[
    str | None,
    _option(
        "--frame",
        unit="qupath|level0",
        panel=OUTPUT,
        text="Where (0, 0) of GeoJSON is: where QuPath has it, the corner of what was scanned, or the corner of level "
        r"0, for tools that read with OpenSlide. \[default: qupath]",
    ),
]
MinTissue = Annotated[
    float | None,
    _option("--min-tissue", unit="0…1", panel=TISSUE, text=r"Least part of a tile that is tissue. \[default: 0.5]"),
]
AllowEmpty = Annotated[
    bool, _option("--allow-empty", panel=TISSUE, text="Write a bag of no tiles if there is no tissue.")
]
OnError = Annotated[
    str | None,
    _option(
        "--on-error",
        unit="raise|white",
        panel=SLIDE,
        text=r"Damaged slides fail, or what cannot be decoded is glass and white, and listed. \[default: raise]",
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
Label = Annotated[str | None, _option("--label", unit="L", panel=OUTPUT, text="Kept with the bag: 1, 0.5, tumour…")]
Patient = Annotated[
    str | None, _option("--patient", unit="ID", panel=OUTPUT, text="Whose slide it is, kept with the bag.")
]
Threads = Annotated[
    int | None, _option("--threads", unit="n", min=1, text=r"How many decode. \[default: one per core, at most 8]")
]

DemoFolder = Annotated[
    Path, _option("--out", "-o", unit="FOLDER", panel=OUTPUT, text="Where slides, bags and picture go.")
]
DemoCohort = Annotated[bool, typer.Option("--cohort", help="Many small slides, from a manifest to a report.")]
DemoMil = Annotated[bool, typer.Option("--mil", help="A study to train on: 40 slides, half of them with a lesion.")]
DemoLaboratory = Annotated[
    str,
    _option("--laboratory", unit="NAME", text="Who stained the slides of --mil: usual; faded, thick, violet, far."),
]
Device = Annotated[
    str | None, _option("--device", unit="cpu|cuda", text=r"Where batches go. \[default: cuda if there is one]")
]

BenchSlide = Annotated[
    Path | None, typer.Argument(help="A slide that the others open, too: SVS, TIFF. One is generated when left out.")
]
Cases = Annotated[
    list[str] | None,
    _option(
        "--case",
        unit="CASE",
        text=r"aligned, half, off-grid, sparse, threads, memory or slides; may be given again. \[default: all]",
    ),
]
Peers = Annotated[
    list[str] | None,
    _option(
        "--peer",
        unit="READER",
        text="simplejpeg, openslide, cucim, fastslide, tiffslide or pyvips; may be given again. "
        r"\[default: all that are installed]",
    ),
]
Rounds = Annotated[int, _option("--rounds", unit="n", min=1, text="How often each reader takes its turn.")]
MostTiles = Annotated[int, _option("--tiles", unit="n", min=1, text="Most tiles per case.")]
OtherPython = Annotated[
    Path | None,
    _option("--python", unit="PATH", text=r"The Python that has the other readers installed. \[default: this one]"),
]

ProfiledCohort = Annotated[
    list[Path], typer.Argument(help="Slides or bags (.bag.zarr), or one CSV with a column slide.", metavar="SLIDE|CSV")
]
MaxFailures = Annotated[int, _option("--max-failures", unit="n", min=0, text="Slides that may fail; they are named.")]
LoaderFile = Annotated[
    Path | None, _option("--config", unit="YAML", text="Settings, as in configs/mil.yaml; options win over them.")
]
LoaderThreads = Annotated[
    int | None, _option("--threads", unit="n", min=1, text=r"How many decode. \[default: the cores less one]")
]
ChunkSize = Annotated[int, _option("--chunk-size", unit="n", min=1, text="Tiles per chunk.")]
Mix = Annotated[int, _option("--mix", unit="n", min=0, text="Chunks over which tiles are shuffled; 0: not at all.")]
ProfileDevice = Annotated[str, _option("--device", unit="cpu|cuda", text="Where tiles go.")]
StepMs = Annotated[
    float, _option("--step-ms", unit="ms", min=0, text="What a training step would take per chunk; the consumer waits.")
]
ProfiledTiles = Annotated[
    int | None, _option("--tiles", unit="n", min=1, text=r"Stop after so many. \[default: the whole cohort]")
]
Trace = Annotated[
    Path | None, _option("--trace", unit="JSON", panel=OUTPUT, text="Every span of every thread, for Perfetto.")
]

Workers = Annotated[
    int | None, _option("--workers", unit="n", min=1, panel=COHORT, text=r"Processes, a slide each. \[default: 1]")
]
FeatureWorkers = Annotated[
    int | None,
    _option(
        "--workers",
        unit="n",
        min=1,
        panel=COHORT,
        text="Encode in processes, each slide by itself: for CPUs, and slides that crash their reader.",
    ),
]
Cluster = Annotated[
    str | None,
    _option(
        "--cluster",
        unit="tcp://…|YAML",
        panel=COHORT,
        text="A Dask scheduler, or what to ask SLURM for (configs/slurm.yaml), in place of --workers.",
    ),
]
TimeLimit = Annotated[
    float | None, _option("--time-limit", unit="s", panel=COHORT, text="After which a slide is given up.")
]
MemoryLimit = Annotated[
    float | None,
    _option("--memory-limit", unit="GB", panel=COHORT, text="Of a process, beyond which its slide is given up."),
]
Retry = Annotated[
    bool, _option("--retry", panel=COHORT, text="Try slides again that crashed or ran into a limit, twice.")
]
Root = Annotated[Path | None, _option("--root", unit="FOLDER", panel=COHORT, text="Where all slides have to lie.")]

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
        "program (.pt2), which are code: those that you trust. uni=timm:NAME gives a name. May be given again.",
    ),
]
Normalization = Annotated[
    str | None,
    _option(
        "--normalize",
        unit="imagenet|half|identity",
        panel=ENCODING,
        text="Of encoders whose configuration, or FILE.json beside them, does not say it.",
    ),
]
InputSize = Annotated[
    int | None,
    _option("--input-size", unit="px", min=1, panel=ENCODING, text="Likewise: side of the squares that they take."),
]
TokenPooling = Annotated[
    str | None,
    _option("--pooling", unit="class|mean", panel=ENCODING, text="Likewise: what becomes of a tile's tokens."),
]
FeatureDtype = Annotated[
    str,
    _option("--dtype", unit="float16|float32", panel=ENCODING, text="Of the features; also what a GPU computes in."),
]
BatchSize = Annotated[int, _option("--batch-size", unit="n", min=1, panel=ENCODING, text="Tiles per batch.")]
EncoderDevice = Annotated[
    str | None,
    _option("--device", unit="cpu|cuda|cuda:1", panel=ENCODING, text=r"\[default: cuda if there is one]"),
]
EncoderTileSize = Annotated[
    int | None,
    _option(
        "--tile-size",
        "--patch-size",
        unit="px",
        panel=TILES,
        text=r"Side of a tile of slides; encoders get it resized. \[default: what the (largest) encoder takes]",
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
        text=r"Where <slide>.features.zarr goes. \[default: into the bags, beside their pixels]",
    ),
]
Shard = Annotated[
    str | None,
    _option("--shard", unit="k/n", panel=COHORT, text="The k-th of n parts, from 0/n: a process for each GPU."),
]

Manifest = Annotated[
    Path, typer.Argument(help="A CSV or Parquet file with a column slide; a folder; a pattern.", metavar="COHORT")
]
ManifestOut = Annotated[
    Path | None,
    _option("--out", "-o", unit="CSV", panel=OUTPUT, text=r"The manifest to write. \[default: the one given]"),
]
Parts = Annotated[
    str | None,
    _option("--parts", unit="NAME=0…1,…", text=r"Parts of the patients. \[default: train=0.7,val=0.15,test=0.15]"),
]
Folds = Annotated[int | None, _option("--folds", unit="k", min=2, text="Folds, in place of parts.")]
Seed = Annotated[int, _option("--seed", unit="n", min=0, text="Who goes where.")]
Plain = Annotated[bool, _option("--plain", text="Without regard to labels.")]
SplitBy = Annotated[
    str | None,
    _option("--by", unit="column", text=r"Evenly over this column, such as grade or event. \[default: label]"),
]


def settings_of(slide: Path, file: Path | None, given: dict[str, dict[str, Any]]) -> ExportConfig:
    """Return the configuration of the file, or the default one, with the options that were given put over it."""
    from slideio_pipe.config import checked
    from slideio_pipe.export.config import ExportConfig, load_config

    values = (load_config(file) if file else ExportConfig()).model_dump()
    for stage, wanted in given.items():
        chosen = {name: value for name, value in wanted.items() if value is not None}
        if "stride" in chosen or "overlap" in chosen:  # one replaces the other
            values[stage] |= {"stride": None, "overlap": None}
        values[stage] |= chosen
    return checked(ExportConfig, slide.name, **values)


def mpp_of(magnification: float, mpp: str | None) -> float:
    """Return what a magnification means, and say so."""
    from slideio_pipe.geometry import magnification_to_mpp

    if mpp is not None:
        raise ConfigError("--mag and --mpp are both given", remedy="give one of them")
    if not (math.isfinite(magnification) and magnification > 0):
        raise ConfigError(f"--mag {magnification:g} is no magnification", remedy="pass 20, 40, …")
    found = magnification_to_mpp(magnification)
    err.print(f"--mag {magnification:g} means {found:g} µm per pixel", soft_wrap=True)
    return found
