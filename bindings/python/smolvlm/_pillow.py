"""Pillow's images as the library would have them from their files: upright, transparency on white."""

from __future__ import annotations

import array
import sys
from typing import Any, Tuple

from ._errors import InvalidArgumentError

#: Modes of 16 bits, and whether the high byte comes first.
_DEEP = {"I;16": False, "I;16L": False, "I;16B": True, "I;16N": sys.byteorder == "big"}
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
#: EXIF's tag, and the transposition that each of its values asks for.
_ORIENTATION = 0x112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip

#: The fields of a `Frame`.
Pixels = Tuple[bytes, int, int, str, int, bool]


def module() -> Any:
    """Where the program uses it: an image of it cannot come from elsewhere."""
    return sys.modules.get("PIL.Image")


def pixels(image: Any, name: str, exif: bool) -> Pixels:
    pillow = module()
    try:
        # First of all, since a TIFF turns itself upright while it loads, and a PNG may have its EXIF behind the pixels.
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidArgumentError(f"{name}: {error}") from error
    orientation = _orientation(image, pillow) if exif else 1
    if orientation in _UPRIGHT:
        image = image.transpose(getattr(getattr(pillow, "Transpose", pillow), _UPRIGHT[orientation]))
    if image.mode == "I":  # 32 bits, in which Pillow has PGM files of 16 bits, and older versions PNG files
        lowest, highest = image.getextrema()
        if lowest < 0 or highest > 65535:
            raise InvalidArgumentError(f"{name}: mode I with values {lowest} to {highest}, 0 to 65535 needed; scale them")
        image = image.convert("I;16")
    if image.mode in _DEEP:
        key = image.info.get("transparency")
        if image.mode == "I;16" and isinstance(key, int):
            return _keyed(image, key), image.width, image.height, "16UC1", 0, sys.byteorder == "big"
        return image.tobytes(), image.width, image.height, "16UC1", 0, _DEEP[image.mode]
    image = _flat(image, pillow, name)
    return image.tobytes(), image.width, image.height, "mono8" if image.mode == "L" else "rgb8", 0, False


def _keyed(image: Any, key: int) -> bytes:
    """Values in the byte order of this machine, the transparent one as white, which is what the largest becomes."""
    values = array.array("H", image.tobytes())
    if sys.byteorder == "big":
        values.byteswap()
    white = max(values) or 65535
    return array.array("H", [white if value == key else value for value in values]).tobytes()


def _orientation(image: Any, pillow: Any) -> int:
    """From the image's EXIF alone, as for files; `getexif` would take that of XMP as well."""
    data = image.info.get("exif")
    if not isinstance(data, bytes):
        return 1
    exif = pillow.Exif()
    try:
        exif.load(data)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to refuse whole pixels, and Pillow says it in many ways
        return 1


def _flat(image: Any, pillow: Any, name: str) -> Any:
    """In mode L or RGB."""
    if image.mode == "F":
        raise InvalidArgumentError(f'{name}: mode F holds floats; scale them to 0..255 and .convert("L"), or hand over an array of uint16')
    try:
        if image.mode in _WITH_ALPHA or "transparency" in image.info:
            if image.mode == "La":
                image = image.convert("LA")
            image = image.convert("RGBA")
            return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
        return image if image.mode in ("RGB", "L") else image.convert("RGB")
    except ValueError as error:
        raise InvalidArgumentError(f"{name}: mode {image.mode}: {error}; hand it over in mode RGB") from error
