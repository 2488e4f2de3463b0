"""Plain tiles of a slide by the tile makers of other viewers, timed; run by ``viewer.py``, in any Python that has them.

    python tests/benchmarks/tile_peers.py < request.json

The request has a slide, the side of a tile, and for every zoom a list of (column, row). The answer has, for every peer
that is installed, the ms of each tile at every zoom. Tiles are JPEG of quality 90 with full chroma.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Make = Callable[[int, int, int], object]  # (halvings, column, row) to a JPEG


def openslide_deep_zoom(slide: str, side: int) -> Make:
    """OpenSlide's DeepZoomGenerator."""
    import openslide
    from openslide.deepzoom import DeepZoomGenerator

    deep = DeepZoomGenerator(openslide.OpenSlide(slide), tile_size=side, overlap=0)

    def make(zoom: int, column: int, row: int) -> None:
        _jpeg(deep.get_tile(deep.level_count - 1 - zoom, (column, row)))

    return make


def large_image_region(slide: str, side: int) -> Make:
    """large_image's region of the size of a tile: its own tiles are as large as those of the file."""
    import large_image

    source = large_image.open(slide, encoding="JPEG", jpegQuality=90, jpegSubsampling=0)

    def make(zoom: int, column: int, row: int) -> None:
        whole = side << zoom
        region = {"left": column * whole, "top": row * whole, "width": whole, "height": whole, "units": "base_pixels"}
        source.getRegion(region=region, output={"maxWidth": side, "maxHeight": side}, encoding="JPEG")

    return make


def tiatoolbox_tile(slide: str, side: int) -> Make:
    """The generator behind TIAToolbox's tile server."""
    from tiatoolbox.tools.pyramid import ZoomifyGenerator
    from tiatoolbox.wsicore.wsireader import WSIReader

    tiles = ZoomifyGenerator(WSIReader.open(slide), tile_size=side)

    def make(zoom: int, column: int, row: int) -> None:
        _jpeg(tiles.get_tile(tiles.level_count - 1 - zoom, column, row))

    return make


PEERS = {
    "OpenSlide deep zoom": openslide_deep_zoom,
    "large_image": large_image_region,
    "TIAToolbox": tiatoolbox_tile,
}


def _jpeg(image: Any) -> None:
    image.convert("RGB").save(io.BytesIO(), "JPEG", quality=90, subsampling=0)


def timed(make: Make, zoom: int, places: list[list[int]]) -> list[float]:
    """Return the ms of each tile."""
    spent = []
    for column, row in places:
        begun = time.perf_counter()
        make(zoom, column, row)
        spent.append(1000 * (time.perf_counter() - begun))
    return spent


def main() -> None:
    """Read a request and print the times."""
    request = json.load(sys.stdin)
    found = {}
    for name, start in PEERS.items():
        try:
            make = start(request["slide"], request["side"])
        except ImportError:
            continue
        found[name] = [timed(make, zoom, places) for zoom, places in enumerate(request["places"])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
