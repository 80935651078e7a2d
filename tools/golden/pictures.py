"""Synthetic pictures from integer formulas that another language reproduces in a few lines."""

import numpy as np


def picture(kind, width, height):
    """uint8 [height, width, 3]; every formula is over the column x, the row y and the channel c."""
    y, x, c = np.indices((height, width, 3), dtype=np.uint32)
    if kind == "hash":  # noise: wrapping 32-bit arithmetic
        v = ((x * np.uint32(73856093)) ^ (y * np.uint32(19349663)) ^ (c * np.uint32(83492791))) * np.uint32(2654435761)
        v = v >> np.uint32(24)
    elif kind == "waves":  # smooth slopes
        t = (x * 5 + y * (3 + 2 * c)) & 511
        v = np.minimum(t, 511 - t)
    elif kind == "blocks":  # hard edges, which make Lanczos overshoot and clip
        v = ((x // 7 + y // 5 + c) & 1) * 255
    else:
        raise ValueError(f"unknown kind of picture: {kind}")
    return v.astype(np.uint8)
