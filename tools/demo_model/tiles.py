"""The processor's resizing and tiling, for training: the same steps as Idefics3ImageProcessorPil, without its overhead."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

TILE = 96
PATCH = 8
SCALE_FACTOR = 3
LONGEST_EDGE = 192
TOKEN = PATCH * SCALE_FACTOR  # pixels along the side of one image token
PATCHES = TILE // PATCH
TOKENS = TILE // TOKEN


@dataclass(frozen=True)
class Grid:
    """How a picture is cut: into rows x columns tiles (0 x 0: only the overview)."""

    rows: int
    columns: int

    @property
    def tiles(self):
        return self.rows * self.columns + 1

    def windows(self):
        """Each tile's (left, top, width, height) as fractions of the picture, the overview last."""
        cells = [(c / self.columns, r / self.rows, 1 / self.columns, 1 / self.rows) for r in range(self.rows) for c in range(self.columns)]
        return np.array([*cells, (0.0, 0.0, 1.0, 1.0)], np.float32)


def _rescaled_size(width, height):
    ratio = width / height
    if width >= height:
        other = int(LONGEST_EDGE / ratio)
        return LONGEST_EDGE, max(1, other + other % 2)
    other = int(LONGEST_EDGE * ratio)
    return max(1, other + other % 2), LONGEST_EDGE


def _tiled_size(width, height):
    ratio = width / height
    if width >= height:
        width = math.ceil(width / TILE) * TILE
        height = math.ceil(int(width / ratio) / TILE) * TILE
    else:
        height = math.ceil(height / TILE) * TILE
        width = math.ceil(int(height * ratio) / TILE) * TILE
    return width, height


def grid_of(width, height):
    width, height = _tiled_size(*_rescaled_size(width, height))
    return Grid(height // TILE, width // TILE)


def split(picture):
    """A uint8 RGB array -> uint8 tiles [n, TILE, TILE, 3], row-major, the overview last."""
    image = Image.fromarray(picture)
    image = image.resize(_rescaled_size(*image.size), Image.Resampling.LANCZOS)
    size = _tiled_size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    rows, columns = size[1] // TILE, size[0] // TILE
    tiles = pixels.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    overview = np.asarray(image.resize((TILE, TILE), Image.Resampling.LANCZOS))
    return np.concatenate([tiles, overview[None]])
