"""Frozen records for every stage, with their defaults; YAML to records and back, unknown keys refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from slideio_pipe.errors import ConfigError
from slideio_pipe.geometry import too_fine
from slideio_pipe.slides.frames import Frame

Edge = Literal["drop", "shift", "pad"]
TissueMethod = Literal["otsu", "threshold", "none"]
Resolution = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # µm per px


def _possible(mpp: float) -> float:
    if too_fine(mpp):
        raise ValueError(f"{mpp:g} is {too_fine(mpp)}")
    return mpp


SlideResolution = Annotated[Resolution, AfterValidator(_possible)]  # µm per level-0 px
Area = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # µm²


def jpeg_quality(pixels: str) -> int | None:
    """Return Q of "jpeg:Q", 1 to 100; None for anything else.

    >>> jpeg_quality("jpeg:90"), jpeg_quality("jpeg:0"), jpeg_quality("zstd")
    (90, None, None)
    """
    found = re.fullmatch(r"jpeg:([1-9][0-9]?|100)", pixels)
    return int(found[1]) if found else None


def _known_pixels(pixels: str) -> str:
    if pixels not in ("source", "zstd", "none") and jpeg_quality(pixels) is None:
        raise ValueError(f'{pixels!r} should be "source", "jpeg:Q" with Q from 1 to 100, "zstd" or "none"')
    return pixels


Pixels = Annotated[str, AfterValidator(_known_pixels)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlideConfig(Record):
    """How slides are opened."""

    # µm per level-0 px: of one slide, in place of what its file states; of a cohort, for slides that state none.
    slide_mpp: SlideResolution | None = None
    slide_mpp_override: bool = False  # of a cohort, slide_mpp replaces what files state as well
    backend: Literal["auto", "tiff", "openslide", "array"] = "auto"

    def in_cohort(self, own: float | None) -> dict[str, float | None]:
        """Return ``slide_mpp`` and ``default_mpp`` of ``open_slide`` for a slide of a cohort, which states ``own``.

        >>> SlideConfig(slide_mpp=0.5).in_cohort(None), SlideConfig(slide_mpp=0.5).in_cohort(0.25)
        ({'slide_mpp': None, 'default_mpp': 0.5}, {'slide_mpp': 0.25, 'default_mpp': None})
        """
        if own is not None:
            return {"slide_mpp": own, "default_mpp": None}
        if self.slide_mpp_override:
            return {"slide_mpp": self.slide_mpp, "default_mpp": None}
        return {"slide_mpp": None, "default_mpp": self.slide_mpp}

    @model_serializer(mode="wrap")
    def _without_defaults_of_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the override where there is nothing to override: older runs have the same settings then."""
        values: dict[str, Any] = dump(self)
        if self.slide_mpp is None and not self.slide_mpp_override:
            del values["slide_mpp_override"]
        return values


class ViewConfig(Record):
    """How a slide is looked at."""

    mpp: Resolution | None = 0.5  # µm per view px, "20×"; None, in YAML also "native", is level 0 as stored

    @field_validator("mpp", mode="before")
    @classmethod
    def _native(cls, value: object) -> object:
        return None if value == "native" else value


class TissueConfig(Record):
    """How tissue is found: what ``find_tissue`` takes, with its defaults."""

    method: TissueMethod = "otsu"
    mpp: Resolution = 8.0  # µm per mask px
    min_area_um2: Area = 128.0**2  # smaller regions are dropped; one tile of 256 px at 0.5 µm
    max_hole_um2: Area = 128.0**2  # enclosed holes up to this are filled
    ignore_pen: bool = True  # leave out red, green, blue and black ink
    threshold: Area | None = None  # in place of the method's own; its unit depends on the method


class GridConfig(Record):
    """How a view is cut into tiles."""

    tile_size: int = Field(default=256, ge=1)  # view px
    stride: int | None = Field(default=None, ge=1)  # view px; tile_size when neither stride nor overlap is given
    overlap: int | None = Field(default=None, ge=0)  # view px; tile_size - stride
    edge: Edge = "drop"
    min_tissue: float = Field(default=0.5, ge=0, le=1)  # fraction of a kept tile
    align: bool = False  # on the stored tiles: sizes above are snapped to them

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if self.stride is not None and self.overlap is not None and self.tile_size - self.overlap != self.stride:
            raise ValueError("stride and overlap contradict each other; give one of them")
        if self.overlap is not None and self.overlap >= self.tile_size:
            raise ValueError("overlap must be smaller than tile_size")
        return self

    @property
    def step(self) -> int:
        """Distance between neighbouring tiles, view px."""
        if self.overlap is not None:
            return self.tile_size - self.overlap
        return self.tile_size if self.stride is None else self.stride


class StoreConfig(Record):
    """How a bag is written."""

    pixels: Pixels = "zstd"  # or "source", the slide's own JPEG bytes; "jpeg:Q"; "none"


class ExportConfig(Record):
    """A slide to a bag on disk: what ``slideio-pipe export`` does."""

    slide: SlideConfig = SlideConfig()
    view: ViewConfig = ViewConfig()
    tissue: TissueConfig = TissueConfig()
    grid: GridConfig = GridConfig()
    store: StoreConfig = StoreConfig()


class LoaderConfig(Record):
    """Slides to the bags that are trained on: what ``BagDataset`` does with each slide of a cohort."""

    slide: SlideConfig = SlideConfig()
    view: ViewConfig = ViewConfig()
    tissue: TissueConfig = TissueConfig()
    grid: GridConfig = GridConfig()
    # Where (0, 0) of the cohort's masks is; null: where QuPath has it, or for pictures what their shape says.
    mask_frame: Frame | None = None
    slide_transform: str | None = None  # a YAML file of a transform, drawn once per slide and epoch
    tile_transform: str | None = None  # likewise, drawn once per tile and epoch
    max_tiles: int | None = Field(default=None, ge=1)  # of a bag and epoch, drawn anew each time; null: all
    seed: int = Field(default=0, ge=0)  # of every draw: transforms, tiles, order

    @model_serializer(mode="wrap")
    def _without_default_of_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the frame of masks where none is given: older runs have the same settings then."""
        values: dict[str, Any] = dump(self)
        if self.mask_frame is None:
            values.pop("mask_frame", None)
        return values


# What else a training's file holds, for mil.settings: a loader takes the same file and passes over it.
TRAINING_SECTIONS = ("cohort", "task", "model", "encoder", "fit")


class ClusterConfig(Record):
    """What is asked of SLURM: jobs, each a Dask worker that does as many slides at a time as it has cores.

    The names are those of ``dask_jobqueue.SLURMCluster``, but for ``jobs``, ``wait_s`` and ``options``.
    """

    jobs: int = Field(ge=1)
    cores: int = Field(ge=1)  # of a job, and slides at a time; each is decoded by one thread
    memory: str  # of a job, "16GB"
    walltime: str | None = None  # of a job, "12:00:00"; jobs that are over are submitted again
    queue: str | None = None  # partition
    account: str | None = None
    job_name: str | None = None
    job_extra_directives: tuple[str, ...] = ()  # "--constraint=ssd", without #SBATCH
    job_script_prologue: tuple[str, ...] = ()  # lines before the worker: module load …
    log_directory: str | None = None  # of what the jobs print
    local_directory: str | None = None  # where workers put their own files
    interface: str | None = None  # network: ib0
    python: str | None = None  # of the jobs; null: this one
    wait_s: float | None = Field(default=None, gt=0)  # give up after so long without a job running; null: never
    options: dict[str, Any] = {}  # whatever else SLURMCluster takes, as it is


R = TypeVar("R", bound=Record)


def checked(record: type[R], where: str | None, /, **values: Any) -> R:
    """Return a validated record.

    Raises
    ------
    ConfigError
        Naming every value that makes no sense.

    Examples
    --------
    >>> checked(GridConfig, None, tile_size=256, overlap=64).step
    192
    >>> checked(GridConfig, "a.svs", stride=0)
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.ConfigError: a.svs: stride=0: should be at least 1; see GridConfig
    """
    return _validated(record, where, values, f"see {record.__name__}")


def _validated(record: type[R], where: str | None, values: Mapping[str, Any], remedy: str) -> R:
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_in_words(error, record), slide=where, remedy=remedy) from None


def read_yaml(path: str | Path, remedy: str) -> Any:
    """Return what a YAML file holds.

    Raises
    ------
    ConfigError
        It cannot be read, or is no YAML; ``remedy`` says where to look for an example.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", slide=str(path), remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"is no YAML ({reason})", slide=str(path), remedy=remedy) from error


def load_config(path: str | Path) -> ExportConfig:
    """Read an export configuration from YAML; keys left out have their defaults.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    return load_record(ExportConfig, path, "see configs/export.yaml")


def export_config(source: ExportConfig | str | Path | Mapping[str, Any] | None) -> ExportConfig:
    """Return an export configuration as it is given: a record, a YAML file, a dictionary, or None for the defaults.

    Raises
    ------
    ConfigError
        It is none of these, the file is missing or no YAML mapping, or keys are unknown or values impossible.
    """
    if isinstance(source, ExportConfig):
        return source
    if source is None or isinstance(source, Mapping):
        return _validated(ExportConfig, None, dict(source or {}), "see configs/export.yaml")
    if isinstance(source, str | Path):
        return load_config(source)
    remedy = "pass an ExportConfig, the path of a YAML file, or a dictionary"
    raise ConfigError(f"a configuration is no {type(source).__name__}", remedy=remedy)


def load_cluster_config(path: str | Path) -> ClusterConfig:
    """Read from YAML what is asked of SLURM; unknown keys are refused, those of ``options`` passed on.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    return load_record(ClusterConfig, path, "see configs/slurm.yaml")


def load_loader_config(source: str | Path | Mapping[str, Any] | None) -> LoaderConfig:
    """Return a loader's configuration from YAML or a dictionary; keys left out have their defaults.

    Transforms are files beside the YAML file. What the file says of training is passed over.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    if source is None or isinstance(source, Mapping):
        return checked(LoaderConfig, None, **dict(source or {}))
    config = load_record(LoaderConfig, source, "see configs/mil.yaml", TRAINING_SECTIONS)
    files = {"slide_transform": config.slide_transform, "tile_transform": config.tile_transform}
    folder = Path(source).parent
    return config.model_copy(update={key: str(folder / file) for key, file in files.items() if file is not None})


def load_record(record: type[R], path: str | Path, remedy: str, others: Sequence[str] = ()) -> R:
    """Return a validated record from YAML; ``others`` are keys to pass over, ``remedy`` where to look for an example.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML mapping, or has unknown keys or impossible values.
    """
    values = read_yaml(path, remedy)
    if not isinstance(values, Mapping | None):
        raise ConfigError("is no mapping", slide=str(path), remedy=remedy)
    named = {str(key): value for key, value in (values or {}).items() if key not in others}
    return _validated(record, str(path), named, remedy)


# What pydantic's types of complaint mean to somebody who wrote a value.
_COMPLAINTS = {
    "greater_than_equal": "should be at least {ge:g}",
    "greater_than": "should be more than {gt:g}",
    "less_than_equal": "should be at most {le:g}",
    "literal_error": "should be {expected}",
    "finite_number": "should be a finite number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "model_type": "should be a section with keys of its own",
}


def _in_words(error: ValidationError, record: type[Record]) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"])
        kind, details = problem["type"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            parts.append(f'unknown key "{place}"{_meant(record, problem["loc"])}')
        elif kind == "value_error":
            parts.append(f"{place}: {details['error']}" if place else str(details["error"]))
        elif kind == "missing":
            parts.append(f'"{place}" is missing')
        elif kind in _COMPLAINTS:
            parts.append(f"{place}={problem['input']!r}: {_COMPLAINTS[kind].format(**details)}")
        else:  # sections that are no mappings, and what a later pydantic may come up with
            parts.append(f"{place}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return "; ".join(parts)


def _meant(record: type[Record], place: tuple[int | str, ...]) -> str:
    """Return which key an unknown one may have been meant to be: a like one of its section, or its name elsewhere."""
    *path, name = map(str, place)
    section: type[Record] | None = record
    for step in path:
        section = None if section is None else _sections(section).get(step)
    near = [] if section is None else difflib.get_close_matches(name, list(section.model_fields), 1, 0.7)
    elsewhere = [f"{at}.{name}" for at, other in _sections(record).items() if name in other.model_fields]
    meant = [".".join([*path, *near]) if near else "", *elsewhere]
    return next((f', did you mean "{key}"?' for key in meant if key), "")


def _sections(record: type[Record]) -> dict[str, type[Record]]:
    """Return the fields of a record that are records themselves."""
    found = {}
    for name, field in record.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Record):
                found[name] = kind
    return found
