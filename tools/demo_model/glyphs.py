"""Printed lines of digits and capitals, from glyphs that were rasterised once per font."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Pillow finds these by file name in the system's font folders; the ones that are not installed are left out.
FONT_FILES = [
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique", "Mono", "Mono-Bold")),
    *(f"DejaVuSansCondensed{style}.ttf" for style in ("", "-Bold")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "Condensed", "Condensed-Bold")),
    *(
        f"Liberation{family}-{style}.ttf"
        for family in ("Sans", "Serif", "Mono", "SansNarrow")
        for style in ("Regular", "Bold", "Italic", "BoldItalic")
    ),
]
HERSHEY_FONTS = [
    (cv2.FONT_HERSHEY_SIMPLEX, 2),
    (cv2.FONT_HERSHEY_SIMPLEX, 5),
    (cv2.FONT_HERSHEY_SIMPLEX, 8),
    (cv2.FONT_HERSHEY_DUPLEX, 3),
    (cv2.FONT_HERSHEY_DUPLEX, 6),
    (cv2.FONT_HERSHEY_COMPLEX, 4),
    (cv2.FONT_HERSHEY_TRIPLEX, 4),
]
GLYPH_SIZE = 64


@dataclass(frozen=True)
class Line:
    """A printed line: its coverage, and the box (left, top, right, bottom) of each character in it."""

    mask: np.ndarray
    boxes: np.ndarray


def _outline_glyph(font, character):
    left, top, right, bottom = font.getbbox(character, anchor="ls")
    image = Image.new("L", (right - left, 2 * GLYPH_SIZE))
    ImageDraw.Draw(image).text((-left, int(1.4 * GLYPH_SIZE)), character, fill=255, font=font, anchor="ls")
    return np.asarray(image)


def _stroke_glyph(font, thickness, character):
    canvas = np.zeros((2 * GLYPH_SIZE, 3 * GLYPH_SIZE), np.uint8)
    origin = (GLYPH_SIZE // 2, int(1.4 * GLYPH_SIZE))
    cv2.putText(canvas, character, origin, font, 2.0, 255, thickness, cv2.LINE_AA)
    columns = np.flatnonzero(canvas.any(0))
    return canvas[:, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=1)
def fonts():
    """One dictionary from character to glyph per font; all glyphs of a font share one height."""
    loaded = [ImageFont.load_default(GLYPH_SIZE)]
    for name in FONT_FILES:
        try:
            loaded.append(ImageFont.truetype(name, GLYPH_SIZE))
        except OSError:
            continue
    alphabets = [{c: _outline_glyph(font, c) for c in CHARACTERS} for font in loaded]
    alphabets += [{c: _stroke_glyph(font, thick, c) for c in CHARACTERS} for font, thick in HERSHEY_FONTS]
    cropped = []
    for glyphs in alphabets:
        rows = np.flatnonzero(np.any([g.any(1) for g in glyphs.values()], axis=0))
        cropped.append({c: np.ascontiguousarray(g[rows[0] : rows[-1] + 1]) for c, g in glyphs.items()})
    return cropped


def print_line(text, height, rng):
    """`text` in a random font, `height` pixels high, slightly stretched, spaced and turned."""
    glyphs = fonts()[rng.integers(len(fonts()))]
    gap = np.zeros((glyphs["0"].shape[0], int(rng.uniform(4, 16))), np.uint8)
    pieces, boxes, x = [], [], 0
    for character in text:
        glyph = glyphs[character]
        pieces += [glyph, gap]
        rows = np.flatnonzero(glyph.any(1))
        boxes.append((x, rows[0], x + glyph.shape[1], rows[-1] + 1))
        x += glyph.shape[1] + gap.shape[1]
    mask = np.hstack(pieces[:-1])
    scale_y = height / mask.shape[0]
    scale_x = scale_y * rng.uniform(0.85, 1.2)
    angle = 0.0 if rng.random() < 0.5 else rng.normal(0, 4)
    return _transform(mask, np.array(boxes, np.float32), scale_x, scale_y, np.clip(angle, -10, 10))


def _transform(mask, boxes, scale_x, scale_y, angle):
    size = max(1, round(mask.shape[1] * scale_x)), max(1, round(mask.shape[0] * scale_y))
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA if scale_y < 1 else cv2.INTER_LINEAR)
    boxes = boxes * (scale_x, scale_y, scale_x, scale_y)
    if angle == 0:
        return Line(mask, boxes)
    matrix = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), angle, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    width, height = int(size[0] * cos + size[1] * sin) + 1, int(size[0] * sin + size[1] * cos) + 1
    matrix[:, 2] += (width - size[0]) / 2, (height - size[1]) / 2
    centres = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], 1) / 2
    halves = np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], 1) / 2
    centres = centres @ matrix[:, :2].T + matrix[:, 2]
    return Line(cv2.warpAffine(mask, matrix, (width, height)), np.hstack([centres - halves, centres + halves]))
