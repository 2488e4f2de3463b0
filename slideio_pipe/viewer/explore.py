"""Explore slides in the browser: ``explore`` starts the viewer and returns a handle to it."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slideio_pipe.arguments import whole_number
from slideio_pipe.tiles.config import GridConfig, TissueConfig
from slideio_pipe.viewer.controls import AdjustPanel, Panel
from slideio_pipe.viewer.drawn import DrawnSlides
from slideio_pipe.viewer.editing import SaveFolder
from slideio_pipe.viewer.layers import Layers, LayerSettings
from slideio_pipe.viewer.notebook import notebook_bundle
from slideio_pipe.viewer.pages import Pages
from slideio_pipe.viewer.scene import Scene
from slideio_pipe.viewer.server import ViewerServer
from slideio_pipe.viewer.tile_source import TileSource
from slideio_pipe.viewer.trained import split_trainings


class Explorer:
    """A running viewer; a context manager.

    Attributes
    ----------
    url : str
        The address of its page, with the token that the page needs.
    port : int
        The port of this computer that is used.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import open_slide
    >>> viewer = explore(open_slide(np.zeros((600, 800, 3), np.uint8)))
    >>> viewer.port > 0
    True
    >>> viewer.close()
    >>> viewer
    Explorer(closed)
    """

    def __init__(self, server: ViewerServer, source: TileSource, scene: Scene, scores: Any = None) -> None:
        self._server, self._source, self._scene, self._scores = server, source, scene, scores
        self._closed = False

    @property
    def url(self) -> str:
        """The address of the page."""
        return self._server.url

    @property
    def port(self) -> int:
        """The port that is used."""
        return self._server.port

    def open(self) -> bool:
        """Open the page in the default browser; return whether there is one."""
        try:
            return webbrowser.open(self.url)
        except webbrowser.Error:
            return False

    def close(self) -> None:
        """End the viewer: its page no longer works, and the port is free."""
        if not self._closed:
            self._closed = True
            self._server.stop()
            self._source.close()
            self._scene.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Return what a notebook shows: the page where the browser reaches it, else a picture that zooms."""
        return notebook_bundle(self, self._scene, self._scores, running=not self._closed) | {"text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Explorer({'closed' if self._closed else self.url})"


def explore(
    source: Any,
    *,
    transform: Any = None,
    seed: int | None = None,
    annotations: Any = None,
    scores: Any = None,
    tissue: TissueConfig | None = None,
    grid: GridConfig | None = None,
    tile_mpp: float | None = 0.5,
    slides: str | Path | None = None,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    backend: str = "auto",
    port: int = 0,
    browser: bool = False,
    hosts: Sequence[str] = (),
    labels: bool = False,
    save_to: str | Path | None = None,
) -> Explorer:
    """Start a viewer of slides in the browser, and return a handle with its address.

    The viewer runs in threads of this process until ``close``, and serves this computer only.

    Parameters
    ----------
    source : path, Slide, SlideView, bag, Cohort, or a list of these
        A folder, a pattern or a manifest shows all their slides. The folder of a training, or its checkpoint, shows
        them as the training saw them: with its transform, seed and resolution; its own slides if no others are given.
    transform : an albumentationsxl transform, optional
        The augmentation that the page's controls are made from; by default stains, colours, turn, mirror and scale.
    seed : int, optional
        Seed of the first draw; by default that of the training, or 0.
    annotations : path, Annotations, LabelMask, or mapping of slide names to these, optional
        Polygons or labels to draw over the slides. A folder has a file per slide, named as the slide.
    scores : path, Prediction, list of Prediction, or mapping of slide names to these, optional
        Scores of tiles: ``tiles.csv``, or the folder that ``slideio-pipe predict`` wrote.
    tissue : TissueConfig, optional
        How tissue is found.
    grid : GridConfig, optional
        The tiles of the layer "grid".
    tile_mpp : float, optional
        µm per pixel of these tiles; None is level 0 as stored.
    slides : path, optional
        Folder of the slides of stored bags. Of a bag without its slide, the stored tiles are shown.
    mpp : float, optional
        µm per pixel at full zoom, the resolution that the transform is drawn at; by default level 0.
    slide_mpp : float, optional
        µm per level-0 pixel, for files that state none.
    backend : {"auto", "tiff", "openslide", "array"}
        Backend that reads files.
    port : int
        Port; 0 is any free one. If it is in use, the next free one is taken.
    browser : bool
        Whether to open the page.
    hosts : sequence of str
        Names besides localhost under which the page is opened, such as that of a JupyterHub.
    labels : bool
        Whether label and macro images, which may show a patient's name, can be seen.
    save_to : path, optional
        The folder that the page may save to: settings for an export, corrected masks and regions. Without it nothing
        is written; GeoJSON can be downloaded in any case.

    Raises
    ------
    ConfigError, SlideNotFoundError
        There is no slide, or no port.

    Examples
    --------
    >>> import numpy as np
    >>> from slideio_pipe import open_slide
    >>> with explore(open_slide(np.zeros((600, 800, 3), np.uint8))) as viewer:
    ...     viewer.url.startswith("http://127.0.0.1:")
    True
    """
    source, training = split_trainings(source)
    if training is not None:
        config = training.config
        transform = training.transform() if transform is None else transform
        seed = config.seed if seed is None else seed
        mpp, tissue, grid = mpp or config.view.mpp, tissue or config.tissue, grid or config.grid
        slide_mpp = slide_mpp or config.slide.slide_mpp
    folder = None if slides is None else Path(slides).expanduser()
    scene = Scene(source, slides=folder, mpp=mpp, backend=backend, slide_mpp=slide_mpp)
    panel: Panel = AdjustPanel()
    if transform is not None:
        from slideio_pipe.viewer.transform_controls import TransformPanel  # imports albumentationsxl, which takes 2 s

        panel = TransformPanel(transform)
    tiles = TileSource()
    settings = {"seed": whole_number(seed or 0, "a seed", least=0), "start": "plain" if transform is None else "seed"}
    layers = Layers(scene, LayerSettings(tissue or TissueConfig(), grid or GridConfig(), tile_mpp, annotations, scores))
    saved = None if save_to is None else SaveFolder(Path(save_to).expanduser().absolute())
    pages = Pages(scene, DrawnSlides(scene, panel), tiles, layers, settings, private_images=labels, folder=saved)
    try:
        server = ViewerServer(pages, port, hosts)
    except BaseException:
        tiles.close()
        raise
    server.start()
    viewer = Explorer(server, tiles, scene, scores)
    if browser:
        viewer.open()
    return viewer
