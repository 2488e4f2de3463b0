"""Points and boxes of tiles, from any source that has them in px of a slide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slideio_pipe.augment.target_rules import TargetRules
from slideio_pipe.geometry import Affine, products
from slideio_pipe.slides.view import SlideView
from slideio_pipe.tiles.bag import Bag
from slideio_pipe.tiles.drawn_bag import DrawnBag
from slideio_pipe.tiles.label_mask import tile_affines, tile_size_of
from slideio_pipe.tiles.marks.marks import Marks
from slideio_pipe.tiles.marks.targets import Targets, count_points, targets_of


class TileTargets(ABC):
    """Points and boxes with classes, counted and mapped into tiles."""

    classes: Mapping[str, int]
    affine: Affine  # from their px to level-0 px

    @property
    @abstractmethod
    def all_marks(self) -> Marks:
        """Points and boxes."""

    @abstractmethod
    def on(self, slide: Any) -> TileTargets:
        """Return them in level-0 px of a slide."""

    @abstractmethod
    def _of_bag(self, bag: Bag) -> TileTargets:
        """Return them in a frame that is known, for a bag of their slide."""

    def counts(self, bag: Bag, indices: ArrayLike | None = None) -> dict[str, NDArray[np.int64]]:
        """Return how many points of each class are in each tile: one (n,) array per class.

        A point on the border of two tiles is in the right or lower one. ``pandas.DataFrame`` takes the dictionary.

        Parameters
        ----------
        bag : Bag
            Of this slide; its view and its tiles may be augmented.
        indices : (n,) int array, optional
            Positions in the bag; all by default.

        Examples
        --------
        >>> from slideio_pipe import Annotations, TileBag, TileGrid, open_slide
        >>> view = open_slide(np.zeros((200, 400, 3), np.uint8)).view()
        >>> cells = Annotations.from_arrays([(30, 40), (250, 90), (390, 9)], ["lymphocyte", "lymphocyte", "mitosis"])
        >>> {name: found.tolist() for name, found in cells.counts(TileBag(view, TileGrid(view, tile_size=200))).items()}
        {'lymphocyte': [1, 1], 'mitosis': [0, 1]}
        """
        known = self._of_bag(bag)
        found = count_points(
            known.all_marks, _from_tiles(known, bag, indices), tile_size_of(bag), [*self.classes.values()]
        )
        return {name: found[:, column] for column, name in enumerate(self.classes)}

    def targets(
        self, bag: Bag, indices: ArrayLike | None = None, *, bbox_params: Any = None, keypoint_params: Any = None
    ) -> list[Targets]:
        """Return the boxes and points of each tile in px of ``bag.read(indices)``, after all draws.

        A turned box becomes the hull of its corners. Boxes are clipped to their tile, and points outside are left out.

        Parameters
        ----------
        bag : Bag
            Of this slide; its view and its tiles may be augmented.
        indices : (n,) int array, optional
            Positions in the bag; all by default.
        bbox_params, keypoint_params : BboxParams, KeypointParams or dict, optional
            Which are kept and how they are written, as albumentationsxl defines it: by default those of the ``Compose``
            of the tiles, else of that of the view.

        Raises
        ------
        ConfigError
            All of them are outside the slide, the bag is of several slides, or a parameter is impossible.

        Examples
        --------
        >>> from slideio_pipe import Annotations, TileBag, TileGrid, open_slide
        >>> view = open_slide(np.zeros((200, 400, 3), np.uint8)).view()
        >>> drawn = Annotations.from_arrays(boxes=[(180, 20, 220, 60)], box_classes=["mitosis"])
        >>> found = drawn.targets(TileBag(view, TileGrid(view, tile_size=200)), bbox_params={"format": "coco"})
        >>> [each.to_albumentations()["bboxes"] for each in found]
        [[(180.0, 20.0, 20.0, 40.0, 1)], [(0.0, 20.0, 20.0, 40.0, 1)]]
        """
        known = self._of_bag(bag)
        own = bag.target_rules if isinstance(bag, DrawnBag) else TargetRules()
        rules = TargetRules.of(bbox_params, keypoint_params).otherwise(own)
        return targets_of(known.all_marks, _from_tiles(known, bag, indices), tile_size_of(bag), rules)

    def in_view(self, view: SlideView, *, bbox_params: Any = None, keypoint_params: Any = None) -> Targets:
        """Return the boxes and points of a whole view in its px, clipped to it; see ``targets`` and ``through``."""
        known = self.on(view.slide)
        rules = TargetRules.of(bbox_params, keypoint_params).otherwise(TargetRules.of(*view.target_params))
        affine = np.array([known.affine.inverse() @ view.affine])
        return targets_of(known.all_marks, affine, view.size, rules)[0]


def _from_tiles(known: TileTargets, bag: Bag, indices: ArrayLike | None) -> NDArray[np.float64]:
    """Return one affine per tile, from its px to those of the points and boxes, (n, 6)."""
    affines = np.array([*tile_affines(bag, indices)], np.float64).reshape(-1, 6)
    return products(np.array(known.affine.inverse()), affines) if len(affines) else affines
