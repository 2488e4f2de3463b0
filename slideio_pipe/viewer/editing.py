"""Corrections by hand: tissue that is added or erased, regions with a class; and the files that they are saved to."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from slideio_pipe.errors import ConfigError, OutputExistsError
from slideio_pipe.files import make_folder, write_file
from slideio_pipe.slides.slide import Slide
from slideio_pipe.tiles.annotations import Annotations
from slideio_pipe.tiles.config import GridConfig, TissueConfig
from slideio_pipe.tiles.mask_files import Annotation
from slideio_pipe.tiles.outlines import polygons_to_mask
from slideio_pipe.tiles.tissue_mask import TissueMask
from slideio_pipe.viewer.attachments import stem_of

MOST_EDITS, MOST_POINTS = 2000, 20_000
CORRECTED = "corrected"  # the method of a mask that was changed by hand


@dataclass(frozen=True)
class Edit:
    """A region that was drawn by hand: tissue to add, tissue to erase, or a region of a class.

    Attributes
    ----------
    kind : {"add", "erase", "region"}
    ring : (n, 2) float64
        Its outline (x, y), level-0 px.
    class_name : str
        Of a region.
    """

    kind: str
    ring: NDArray[np.float64]
    class_name: str = ""


def edits_of(sent: Any) -> tuple[Edit, ...]:
    """Return the edits that a page sent; raise ConfigError for what is none."""
    if not isinstance(sent, Sequence) or isinstance(sent, str) or len(sent) > MOST_EDITS:
        raise ConfigError("these are no regions", remedy="reload the page")
    return tuple(_edit(each) for each in sent)


def _edit(sent: Any) -> Edit:
    try:
        kind, ring = str(sent["kind"]), np.asarray(sent["ring"], np.float64)
        name = str(sent.get("class", ""))[:200]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ConfigError("this is no region", remedy="draw it again") from None
    shaped = ring.ndim == 2 and ring.shape[1:] == (2,) and 3 <= len(ring) <= MOST_POINTS
    if kind not in ("add", "erase", "region") or not shaped or not np.isfinite(ring).all():
        raise ConfigError("this is no region", remedy="draw it again, with at least three points")
    return Edit(kind, ring, name)


def corrected(mask: TissueMask, edits: Sequence[Edit]) -> TissueMask:
    """Return the mask with tissue added and erased, in the order of the edits.

    >>> from slideio_pipe.geometry import Affine, Size
    >>> empty = TissueMask(np.zeros((4, 4), bool), Affine.scaling(10, 10), Size(40, 40))
    >>> left = Edit("add", np.array([[0.0, 0], [20, 0], [20, 40], [0, 40]]))
    >>> corrected(empty, [left]).fraction, corrected(empty, [left, replace(left, kind="erase")]).fraction
    (0.5, 0.0)
    """
    changes = [edit for edit in edits if edit.kind != "region"]
    if not changes:
        return mask
    pixels, to_mask = mask.mask.copy(), mask.affine.inverse()
    height, width = pixels.shape
    for edit in changes:
        inside = polygons_to_mask([[to_mask.apply(edit.ring)]], width, height)
        pixels = pixels | inside if edit.kind == "add" else pixels & ~inside
    settings = dict(mask.settings) | {"corrections": len(changes), "before": mask.method}
    return replace(mask, mask=pixels, method=CORRECTED, settings=settings)


def regions_of(edits: Sequence[Edit]) -> Annotations:
    """Return the regions with a class as annotations, in level-0 px."""
    regions = [Annotation(edit.class_name or None, [edit.ring]) for edit in edits if edit.kind == "region"]
    names = dict.fromkeys(edit.class_name or "unclassified" for edit in edits if edit.kind == "region")
    return Annotations(regions, {name: number for number, name in enumerate(names, 1)})


def geojson_of(thing: TissueMask | Annotations, slide: Slide) -> bytes:
    """Return what QuPath opens."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.geojson"
        if isinstance(thing, TissueMask):
            thing.to_geojson(file)
        else:
            thing.to_geojson(file, slide=slide)
        return file.read_bytes()


@dataclass
class SaveFolder:
    """The one folder that a viewer writes to; files that it did not write itself are never replaced.

    Parameters
    ----------
    folder : Path
    """

    folder: Path
    _own: set[Path] = field(default_factory=set)

    def write(self, name: str, content: bytes) -> str:
        """Write a file, and return its path; a file that is there with the same content is left as it is."""
        make_folder(self.folder)
        path = self.folder / Path(name).name
        if _holds(path, content):
            return str(path)
        try:
            write_file(path, content, overwrite=path in self._own)
        except OutputExistsError:
            remedy = "move that file, or start the viewer with another folder to save to"
            raise OutputExistsError("already there", slide=str(path), remedy=remedy) from None
        self._own.add(path)
        return str(path)

    def save(
        self,
        slide: Slide,
        mask: TissueMask,
        edits: Sequence[Edit],
        settings: Mapping[str, Any],
    ) -> list[str]:
        """Write the settings that an export takes, the mask, and regions with a class if there are some.

        Parameters
        ----------
        settings : mapping
            Of ``ExportConfig``, as JSON values.
        """
        stem = stem_of(slide.name)
        # Without --mask an export would find the tissue again, and leave out what was corrected by hand. No slide is
        # named: the next slide with these settings has the same file.
        head = (
            "# Settings of tissue and tiles, made in the viewer. With the mask as it was saved, corrections included:\n"
            "# slideio-pipe export SLIDE --config tissue.yaml --mask SLIDE.geojson\n"
        )
        text = head + yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        written = [
            self.write("tissue.yaml", text.encode()),
            self.write(f"{stem}.geojson", geojson_of(mask, slide)),
        ]
        regions = regions_of(edits)
        if len(regions):
            written.append(self.write(f"{stem}.regions.geojson", geojson_of(regions, slide)))
        return written


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def export_settings(tissue: TissueConfig, grid: GridConfig, mpp: float | None) -> dict[str, Any]:
    """Return the sections of ``ExportConfig`` that differ from its defaults, as JSON values."""
    changed = json.loads(grid.model_dump_json(exclude_defaults=True))
    known = {"tissue": json.loads(tissue.model_dump_json()), "view": {"mpp": "native" if mpp is None else mpp}}
    return known | ({"grid": changed} if changed else {})
