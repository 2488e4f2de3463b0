"""Open the features of a slide's tiles, from any supported store or file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import BagFormatError, ConfigError, require
from slideio_pipe.export.layouts.hdf5 import number
from slideio_pipe.export.layouts.trident import level0_side
from slideio_pipe.features.scales import CONTEXT, SCALE, SCALE_OF, in_words, mpps_in
from slideio_pipe.files import not_there
from slideio_pipe.geometry import Affine, Mpp
from slideio_pipe.slides.resolution import checked_mpp
from slideio_pipe.store import StoredBag
from slideio_pipe.store.feature_arrays import (
    encoder_attributes,
    encoder_names,
    is_feature_store,
    open_feature_store,
    stored_features,
)
from slideio_pipe.store.metadata import is_bag_store
from slideio_pipe.tiles.bag import Label
from slideio_pipe.tiles.quality.tile_quality import TileQuality

HDF5 = (".h5", ".hdf5")
# Names of feature arrays: CLAM and TRIDENT, STAMP.
_ARRAYS = ("features", "feats")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBag:
    """The features of one slide's tiles, one row per tile; opened by ``open_features``.

    Examples
    --------
    >>> bag = FeatureBag("a", np.zeros((2, 8)), np.array([[0, 0], [512, 0]]), 512, 1, "tiny", None)
    >>> len(bag), bag.features.shape, bag.label
    (2, (2, 8), 1)
    """

    name: str  # the slide's name, if the file states it
    features: NDArray[Any]  # (N, D), memory-mapped if from a store
    coords: NDArray[np.int64] | None  # (N, 2) top-left corners (x, y), level-0 px; None if unknown
    tile_size_level0: float | None  # side of a tile, level-0 px
    label: Label
    encoder: str | None  # name of the encoder, if known
    view_mpp: Mpp | None  # µm per px of the tiles
    provenance: Mapping[str, Any] = field(default_factory=dict)  # provenance of the tiles
    encoder_facts: Mapping[str, Any] = field(default_factory=dict)  # digest, normalisation, input size, versions
    patient: str | None = None  # patient of the slide, if known
    quality: TileQuality | None = None  # of the tiles, if it was measured

    @property
    def nominal_mpps(self) -> tuple[float, ...]:
        """µm per px of the magnifications whose features are side by side, finest first; empty for one."""
        return mpps_in(self.encoder_facts)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        of = "" if self.encoder is None else f" of {self.encoder}"
        label = "" if self.label is None else f", label {self.label}"
        return f"FeatureBag({self.name}: {self.features.shape} {self.features.dtype}{of}{label})"


def open_features(path: str | Path, encoder: str | None = None, *, slide_mpp: float | None = None) -> FeatureBag:
    """Return the features of a slide.

    Parameters
    ----------
    path : str or Path
        A ``.bag.zarr`` with features beside its tiles, a ``.features.zarr``; an HDF5 file of TRIDENT, CLAM or STAMP;
        a ``.pt`` file of CLAM, whose coordinates are read from ``h5_files`` beside its folder, if present.
    encoder : str, optional
        Name of the encoder, if there are several. If features of several magnifications are stored apart, the name of
        one of them, such as ``uni-2um``; that of the encoder joins them, finest first.
    slide_mpp : float, optional
        µm per level-0 px. STAMP stores coordinates in µm: without this argument its bags have none.

    Raises
    ------
    BagFormatError
        There are no features, or they are damaged.
    ConfigError
        There are several encoders and ``encoder`` is not given; or ``slide_mpp`` is impossible.

    Examples
    --------
    >>> open_features("nowhere.features.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    slideio_pipe.errors.BagFormatError: nowhere.features.zarr: no features: nothing is there; check the path
    """
    if slide_mpp is not None:
        checked_mpp("slide_mpp", slide_mpp)
    file = Path(path).expanduser()
    if not file.exists():
        raise not_there(BagFormatError, "no features: nothing is there", file)
    if file.is_dir():
        return _from_store(file, encoder)
    if file.suffix.lower() in HDF5:
        return _from_hdf5(file, encoder, slide_mpp)
    if file.suffix.lower() == ".pt":
        return _from_tensor(file, encoder)
    remedy = "pass a .bag.zarr, a .features.zarr, an .h5 or a .pt"
    raise BagFormatError("no features can be read from this", slide=str(file), remedy=remedy)


def _from_store(path: Path, encoder: str | None) -> FeatureBag:
    if is_feature_store(path):
        store = open_feature_store(path)
        described, count, coords, quality = store.attributes, store.tiles, store.columns["coords"], store.quality
    elif is_bag_store(path):
        with StoredBag(path) as bag:
            described, count, coords, quality = bag.provenance(), len(bag), bag.coords, bag.quality
    else:
        raise BagFormatError("no store of features", slide=str(path), remedy="pass a .bag.zarr or a .features.zarr")
    name = _chosen(path, encoder)
    values, facts = _stored(path, name, count)
    return FeatureBag(
        name=str(described["slide"]["name"]),
        features=values,
        coords=coords,
        tile_size_level0=_side_level0(described),
        label=described.get("label"),
        encoder=name,
        view_mpp=_view_mpp(described),
        provenance=described,
        encoder_facts=facts,
        patient=described.get("patient"),
        quality=quality,
    )


def _chosen(path: Path, encoder: str | None) -> str:
    """Return the name of the encoder to open."""
    if encoder is not None:
        return encoder
    names = list(dict.fromkeys(_encoder_of(path, array) for array in encoder_names(path)))
    if not names:
        raise BagFormatError("no features are stored here", slide=str(path), remedy="run slideio-pipe features")
    if len(names) > 1:
        remedy = f'pass {{encoder="{names[0]}"}}'
        raise ConfigError(f"features of several encoders: {', '.join(names)}", slide=str(path), remedy=remedy)
    return names[0]


def _encoder_of(path: Path, array: str) -> str:
    """Return the encoder of an array: its name, unless it is of one of several magnifications."""
    return str((encoder_attributes(path, array) or {}).get(SCALE_OF, array))


def _stored(path: Path, name: str, count: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return the features of a name: of an array; or of the arrays of an encoder's magnifications, joined."""
    if encoder_attributes(path, name) is not None:
        return stored_features(path, name, count)
    known = {each: encoder_attributes(path, each) or {} for each in encoder_names(path)}
    scales = {facts[SCALE]: each for each, facts in known.items() if facts.get(SCALE_OF) == name}
    if not scales:
        return stored_features(path, name, count)  # raises
    wanted = known[next(iter(scales.values()))][CONTEXT]
    missing = [mpp for mpp in wanted if mpp not in scales]
    if missing:
        reason = f"features of {name} lack {in_words(missing)}"
        raise BagFormatError(reason, slide=str(path), remedy="run slideio-pipe features again")
    found = [stored_features(path, scales[mpp], count) for mpp in wanted]
    facts = {key: value for key, value in found[0][1].items() if key not in (SCALE, SCALE_OF)}
    return np.concatenate([values for values, _ in found], axis=1), facts | {"name": name}


def _side_level0(described: Mapping[str, Any]) -> float | None:
    """Return the side of a tile at level 0, also of a rotated one: rotation does not change areas."""
    try:
        return float(described["grid"]["tile_size"]) * Affine.from_tuple(described["view"]["affine"]).mean_stretch()
    except (KeyError, TypeError, ValueError):
        return None


def _view_mpp(described: Mapping[str, Any]) -> Mpp | None:
    mpp = (described.get("view") or {}).get("mpp")
    return None if mpp is None else Mpp.of(mpp)


def _from_hdf5(file: Path, encoder: str | None, slide_mpp: float | None) -> FeatureBag:
    h5py = require("h5py", "hdf5")
    try:
        with h5py.File(file, "r") as opened:
            array = next((name for name in _ARRAYS if name in opened), None)
            if array is None:
                raise KeyError(f"no {' or '.join(_ARRAYS)}")
            values = np.asarray(opened[array])
            own = {**opened.attrs, **opened[array].attrs}
            places = np.asarray(opened["coords"]) if "coords" in opened else None
            beside = {} if places is None else dict(opened["coords"].attrs)
    except (OSError, KeyError) as error:
        raise BagFormatError(f"no features ({error})", slide=str(file), remedy="pass a file of features") from error
    attributes = {key: _plain(value) for key, value in (own | beside).items() if key not in ("savetodir", "save_path")}
    values = _rows(file, values)
    in_um = attributes.get("unit") == "um"
    side = level0_side(attributes)
    mpp = None
    if in_um:  # STAMP
        side_um, side_px = number(attributes, "tile_size_um"), number(attributes, "tile_size_px")
        mpp = None if side_um is None or side_px is None else Mpp.of(side_um / side_px)
        side = None if side_um is None or slide_mpp is None else side_um / slide_mpp
        places = None if places is None or slide_mpp is None else places / slide_mpp
    described = attributes.get("extractor") if in_um else attributes.get("encoder")
    known = encoder if described is None else str(described)
    if encoder is not None and known != encoder:
        raise BagFormatError(f"features of {known}, not of {encoder}", slide=str(file), remedy="pass another file")
    corners, patient = _corners(file, places, values), attributes.get("patient")
    return FeatureBag(file.stem, values, corners, side, None, known, mpp, attributes, {}, patient)


def _from_tensor(file: Path, encoder: str | None) -> FeatureBag:
    import torch

    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True).detach()
        values = _rows(file, (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    except BagFormatError:
        raise
    except Exception as error:  # pickles of other objects may raise anything
        message = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BagFormatError(f"no tensor of features ({message})", slide=str(file), remedy="save a tensor") from error
    beside = file.parent.parent / "h5_files" / f"{file.stem}.h5"
    places, side = None, None
    if beside.is_file():
        described = _from_hdf5(beside, None, None)
        places, side = (described.coords, described.tile_size_level0) if len(described) == len(values) else (None, None)
    return FeatureBag(file.stem, values, places, side, None, encoder, None)


def _rows(file: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 3 and values.shape[0] == 1:  # some tools store a batch of one bag
        values = values[0]
    if values.ndim != 2 or values.dtype.kind != "f":
        raise BagFormatError(
            f"features are {values.shape} {values.dtype}", slide=str(file), remedy="they should be (N, D) floats"
        )
    return values


def _corners(file: Path, places: Any, values: NDArray[Any]) -> NDArray[np.int64] | None:
    if places is None:
        return None
    found = np.asarray(places)
    if found.ndim == 3 and found.shape[0] == 1:  # some tools store a batch of one bag
        found = found[0]
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iuf":
        reason = f"coordinates are {found.shape} {found.dtype}"
        raise BagFormatError(reason, slide=str(file), remedy="they should be (N, 2) numbers: x, y")
    if len(found) != len(values):
        reason = f"{len(values):,} features and {len(found):,} coordinates"
        raise BagFormatError(reason, slide=str(file), remedy="compute them again")
    if not np.isfinite(found).all():
        raise BagFormatError("coordinates are not finite", slide=str(file), remedy="compute them again")
    return found.round().astype(np.int64)


def _plain(value: Any) -> Any:
    """Return an attribute of HDF5 as a Python value."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
