"""Find the tissue of a slide in an overview, or read a user's mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, CorruptSlideError, SkippedWarning, warn_caller
from slideio_pipe.geometry import Affine, Mpp, Size
from slideio_pipe.slides.frames import Frame
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles import tissue_methods
from slideio_pipe.tiles.config import TissueConfig
from slideio_pipe.tiles.onnx_tissue import is_onnx, segment_by_model
from slideio_pipe.tiles.own_tissue import TissueMethod, own_method
from slideio_pipe.tiles.tissue_mask import TissueMask, check_mpp, check_slide, mask_grid, mask_of

# One tile of 256 px at 0.5 µm: a smaller speck does not fill a tile, and a larger hole is a tile of glass.
TILE_AREA_UM2 = 128.0**2


def find_tissue(
    slide: Slide,
    *,
    method: str | TissueMethod | Callable[[NDArray[np.uint8]], NDArray[np.bool_]] = "otsu",
    mpp: float = 8.0,
    min_area_um2: float = TILE_AREA_UM2,
    max_hole_um2: float = TILE_AREA_UM2,
    ignore_pen: bool = True,
    threshold: float | None = None,
    on_error: str = "raise",
) -> TissueMask:
    """Return the tissue mask of a slide from an overview, without glass, ink and the scanner's padding.

    Parameters
    ----------
    slide : Slide
    method : {"otsu", "threshold", "none"}, str or callable
        "otsu": optical density and texture against Otsu's threshold, bounded on both sides so that pure glass gives no
        tissue and pure tissue gives a full mask. "threshold": a fixed saturation, for comparison with other tools;
        misses grey tissue. "none": the whole slide is tissue; nothing is decoded. Fluorescence (bright on black) is
        detected, and its brightest channel is compared with a bounded Otsu threshold. "onnx:FILE": a model of your
        own, with a sidecar that says what it takes (``FILE`` with the ending .yaml or .json).
        Your own: a function as ``TissueMethod`` describes it, its import path ``my_module:my_function``, or the name
        that an installed package gives it (entry points ``slideio_pipe.tissue``).
    mpp : float
        The resolution of the mask, in µm per pixel.
    min_area_um2, max_hole_um2 : float
        Smaller regions are dropped (never one of more than a twentieth of the slide), enclosed holes up to this are
        filled. Both default to one tile of 256 px at 0.5 µm.
    ignore_pen : bool
        Exclude red, green, blue and black ink. Pass False for stains of such colours (trichrome, Alcian blue). Without
        effect on a method of your own.
    threshold : float, optional
        Replaces the method's own: optical density for "otsu", saturation from 0 to 1 for "threshold", grey levels
        above the background for fluorescence.
    on_error : {"raise", "white"}
        "white" treats places that cannot be decoded, up to a quarter of the slide, as glass.

    Warns
    -----
    EmptyTissueWarning
        No tissue was found.
    SkippedWarning
        Some places cannot be decoded.

    Examples
    --------
    >>> from slideio_pipe import open_slide
    >>> pixels = np.full((800, 1000, 3), 243, np.uint8)
    >>> pixels[200:600, 250:750] = 150, 80, 140
    >>> tissue = find_tissue(open_slide(pixels, slide_mpp=2.0))
    >>> 0.24 < tissue.fraction < 0.27
    True
    """
    check_slide(slide)
    own = own_method(method, slide.name)
    called = own.name if own is not None else str(method)
    if on_error not in ("raise", "white"):
        raise ConfigError(f"{{on_error=}} is {on_error!r}", slide=slide.name, remedy='pass "raise" or "white"')
    for name, value in (("min_area_um2", min_area_um2), ("max_hole_um2", max_hole_um2)):
        if not value >= 0:
            raise ConfigError(f"{name} is {value}", slide=slide.name, remedy="pass 0 or more")
    settings: dict[str, Any] = {"mpp": float(mpp)}
    if method == "none":
        width, height, affine = mask_grid(slide, mpp)
        return mask_of(np.ones((height, width), dtype=bool), affine, slide, called, settings)
    check_mpp(slide, mpp)
    settings |= {"min_area_um2": float(min_area_um2), "max_hole_um2": float(max_hole_um2)}
    if own is None:
        settings |= {"ignore_pen": ignore_pen, "asked_threshold": threshold}
    elif threshold is not None:
        reason = f"a threshold of {threshold:g} for the tissue method {called}, which has its own"
        raise ConfigError(reason, slide=slide.name, remedy="leave threshold out")
    level0 = slide.require_mpp()
    if is_onnx(method):
        found, affine, unread = _by_model(slide, called, mpp, on_error)
        um_per_px = _um_per_px(affine, level0)
    else:
        rgb, affine, unread = _overview(slide, mpp, on_error)
        um_per_px = _um_per_px(affine, level0)
        if own is None:
            found = tissue_methods.segment(rgb, called, um_per_px, threshold=threshold, ignore_pen=ignore_pen)
        else:
            found = own.segment(rgb, um_per_px, slide.name)
    mask = tissue_methods.without_specks_and_holes(found, min_area_um2 / um_per_px**2, max_hole_um2 / um_per_px**2)
    whole = _extended_to_edge(mask, affine, slide.dimensions)
    return mask_of(whole, affine, slide, called, settings | found.details | unread)


def tissue_of(
    slide: Slide,
    config: TissueConfig,
    mask_file: str | Path | None = None,
    *,
    frame: Frame | None = None,
    on_error: str = "raise",
) -> TissueMask | None:
    """Return the tissue mask of a slide as configured, or None if every tile is kept.

    Parameters
    ----------
    slide : Slide
    config : TissueConfig
    mask_file : path, optional
        A GeoJSON or PNG mask to read instead of finding tissue.
    frame : {"qupath", "level0"}, optional
        Frame of that mask; by default QuPath's for GeoJSON, and from the shape for pictures.
    on_error : {"raise", "white"}
        As for ``find_tissue``.
    """
    if mask_file is not None:
        file = Path(mask_file)
        if file.suffix.lower() in (".geojson", ".json"):
            return TissueMask.from_geojson(file, slide, mpp=config.mpp, frame=frame or "qupath")
        return TissueMask.from_png(file, slide, frame=frame)
    if config.method == "none":
        return None
    return find_tissue(slide, **config.model_dump(), on_error=on_error)


def _um_per_px(affine: Affine, level0: Mpp) -> float:
    scale = affine.scale()
    return Mpp(scale[0] * level0.x, scale[1] * level0.y).mean


def _by_model(
    slide: Slide, method: str, mpp: float, on_error: str
) -> tuple[tissue_methods.Segmentation, Affine, dict[str, int]]:
    """Return the tissue that a model finds, its affine and its white places."""
    found, affine, unread = segment_by_model(slide, method, mpp, on_error)
    if not unread:
        return found, affine, {}
    reason = f"{slide.name}: {unread} tiles of the tissue model could not be read and are white"
    warn_caller(SkippedWarning(reason))
    return found, affine, {"unread_places": unread}


def _overview(slide: Slide, mpp: float, on_error: str) -> tuple[NDArray[np.uint8], Affine, dict[str, int]]:
    """Return the overview for the segmentation, its affine and its white places; suggest a setting if it is damaged."""
    try:
        if on_error == "raise":
            return *slide.overview(mpp), {}
        rgb, affine, errors = slide.overview_around(mpp)
    except CorruptSlideError as error:
        raise CorruptSlideError(
            f"tissue cannot be found, because {error.reason}",
            slide=slide.name,
            remedy='copy the slide again, or pass {on_error="white"}; '
            'your own mask ({tissue_file=…}) or {method="none"} does not need these pixels',
        ) from error
    if errors:
        places = "1 place is" if len(errors) == 1 else f"{len(errors)} places are"
        reason = f"{slide.name}: {places} treated as glass when tissue was found, because {errors[0].reason}"
        warn_caller(SkippedWarning(reason))
    return rgb, affine, {"unread_places": len(errors)} if errors else {}


def _extended_to_edge(mask: NDArray[np.bool_], affine: Affine, size: Size) -> NDArray[np.bool_]:
    """Return the mask with its last row and column repeated where the overview dropped a part of a pixel."""
    width, height = affine.inverse().apply(size).tolist()
    missing = np.clip(np.ceil([height - mask.shape[0] - 1e-6, width - mask.shape[1] - 1e-6]), 0, 1).astype(int)
    return np.pad(mask, [(0, missing[0]), (0, missing[1])], mode="edge")
