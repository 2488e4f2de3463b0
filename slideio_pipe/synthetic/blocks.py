"""A rectangle of a slide that is painted in one step, with coarse samples that its fields are interpolated from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from slideio_pipe.synthetic.anatomy import Floats
from slideio_pipe.synthetic.textures import Plane


@dataclass(frozen=True)
class Block:
    """A rectangle of the slide in px, with coarse samples that its fields are interpolated from."""

    x: int
    y: int
    width: int
    height: int
    step: int  # px between coarse samples; divides all of the above
    margin: int  # coarse samples beyond each edge
    mpp: float

    def axes(self) -> tuple[Floats, Floats]:
        """Return the coarse positions in µm, from absolute indices, so that neighbours use the same numbers."""
        columns = np.arange(self.x // self.step - self.margin, (self.x + self.width) // self.step + self.margin)
        rows = np.arange(self.y // self.step - self.margin, (self.y + self.height) // self.step + self.margin)
        x: Floats = (columns + np.float64(0.5)) * (self.step * self.mpp)
        y: Floats = (rows + np.float64(0.5)) * (self.step * self.mpp)
        return x[None, :], y[:, None]

    def coarser(self, factor: int) -> Block:
        """Return the block at a lower resolution, one coarse sample larger on each side, on the same samples."""
        step, around = self.step // factor, 2 * (self.step // factor)
        return Block(
            x=self.x // factor - step,
            y=self.y // factor - step,
            width=self.width // factor + around,
            height=self.height // factor + around,
            step=step,
            margin=self.margin - 1,
            mpp=self.mpp * factor,
        )

    def expand(self, coarse: Plane) -> Plane:
        """Interpolate a coarse field to the pixels of the block."""
        if self.step == 1:
            return np.ascontiguousarray(coarse[self.margin : -self.margin, self.margin : -self.margin])
        around = self.margin - 1  # one sample is kept on each side
        inner = coarse[around : coarse.shape[0] - around, around : coarse.shape[1] - around]
        size = (self.width + 2 * self.step, self.height + 2 * self.step)
        full: Plane = cv2.resize(inner, size, interpolation=cv2.INTER_LINEAR)
        return full[self.step : -self.step, self.step : -self.step]

    def lookup(self, coarse: Plane, x_um: Floats, y_um: Floats) -> Plane:
        """Return a coarse field at positions in µm, nearest sample."""
        unit = self.step * self.mpp
        columns = (x_um // unit).astype(np.intp) - (self.x // self.step - self.margin)
        rows = (y_um // unit).astype(np.intp) - (self.y // self.step - self.margin)
        values: Plane = coarse[rows.clip(0, coarse.shape[0] - 1), columns.clip(0, coarse.shape[1] - 1)]
        return values


def window(texture: Plane, block: Block) -> Plane:
    """Return the part of a periodic texture in level-0 px that covers a block."""
    side = texture.shape[0]
    x, y = block.x % side, block.y % side
    copies = math.ceil((y + block.height) / side), math.ceil((x + block.width) / side)
    return np.tile(texture, copies)[y : y + block.height, x : x + block.width]
