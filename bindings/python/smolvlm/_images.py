"""Pictures as Python has them, lent to C without a copy where its struct can say how they lie in memory."""

from __future__ import annotations

import array
import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Tuple, Union

from . import _abi
from ._check import choice, integer
from ._errors import InvalidArgumentError, NotFoundError


class ArrayLike(Protocol):
    """A NumPy array, a Pillow image, or whatever else shows its memory as NumPy does."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


#: The bytes of a file; an `array.array("B")`, an `mmap` and other one-dimensional buffers of single bytes do as well.
Bytes = Union[bytes, bytearray, memoryview]
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Frame:
    """Raw pixels without NumPy, with the fields of `sensor_msgs/Image`: `Frame(m.data, m.width, m.height, m.encoding, m.step)`."""

    data: Any
    width: int
    height: int
    #: rgb8, bgr8, rgba8, bgra8, mono8, 8UC1, 8UC3, 8UC4 (OpenCV's channel order: blue first), mono16 or 16UC1
    encoding: str = "rgb8"
    #: Bytes from one row to the next; 0: rows without padding.
    step: int = 0
    #: Of 16 bits: whether the high byte comes first.
    is_bigendian: bool = False


#: What may stand before the question: a path, the bytes of a file, an array of pixels, a Pillow image, a `Frame`.
Image = Union[str, "os.PathLike[str]", Bytes, ArrayLike, Frame]

_ENCODINGS = {**{name: code for name, code in _abi.FORMATS.items() if name not in ("encoded", "gray8")}, "mono8": _abi.FORMATS["gray8"]}
#: OpenCV's names say no order of channels; its pictures have blue first.
_ENCODINGS.update({"8UC1": _abi.FORMATS["gray8"], "8UC3": _abi.FORMATS["bgr8"], "8UC4": _abi.FORMATS["bgra8"]})
#: Gray of 16 bits, which goes to C as a PGM file: one rule for all doors, and it stands there.
_DEEP_ENCODINGS = {"mono16": 1, "16UC1": 1}
#: By channel order and number of channels.
_LAYOUTS = {
    ("rgb", 1): "gray8", ("bgr", 1): "gray8",
    ("rgb", 3): "rgb8", ("bgr", 3): "bgr8",
    ("rgb", 4): "rgba8", ("bgr", 4): "bgra8",
}  # fmt: skip
_REVERSED = {"rgb": "bgr", "bgr": "rgb"}
#: Pillow's modes of 16 bits; whether the high byte comes first.
_DEEP_MODES = {"I;16": False, "I;16L": False, "I;16B": True, "I;16N": sys.byteorder == "big"}
#: EXIF's tag, and the Pillow transposition that each of its values asks for.
_ORIENTATION = 0x112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip

#: The struct, and what must live as long as it does.
Lent = Tuple[_abi.Image, object]


def lend(image: Image, channels: Channels, name: str, exif: bool = True) -> Lent:
    if isinstance(image, (str, os.PathLike)):
        return _encoded(_read(image), name)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _encoded(image, name)
    if isinstance(image, Frame):
        return _frame(image, name)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _pillow(image, pillow, name, exif)
    interface = getattr(image, "__array_interface__", None)
    if interface is not None and not _is_file(interface):
        return _array(image, channels, name)
    # A message of type sensor_msgs/CompressedImage; sensor_msgs/Image has an encoding beside.
    if isinstance(getattr(image, "format", None), str) and hasattr(image, "data") and not hasattr(image, "encoding"):
        return _encoded(image.data, f"{name}.data")
    try:
        memoryview(image)  # type: ignore[arg-type]
    except TypeError:
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise TypeError(f"{name}: a {kind} given; a path, bytes, an array of uint8 or uint16, a Pillow image or a Frame needed") from None
    return _encoded(image, name)


def _is_file(interface: dict[str, Any]) -> bool:
    """Whether an array is a row of bytes, and no picture."""
    return len(interface["shape"]) == 1 and interface["typestr"] in ("|u1", "|i1", "|S1", "|V1")


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise NotFoundError(f"{os.fspath(path)}: {error.strerror}") from error


def _memory(data: Any, name: str) -> tuple[int, int, object]:
    """Address and size of an object's bytes, and what keeps them there. Only read-only views of other kinds are copied."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"{name}: a {type(data).__name__} given, bytes needed") from None
    if view.nbytes == 0:
        raise InvalidArgumentError(f"{name}: 0 bytes given")
    if view.readonly or not view.c_contiguous:
        data = data if isinstance(data, bytes) else view.tobytes()
        return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0, len(data), data
    lent = (ctypes.c_char * view.nbytes).from_buffer(view)
    return ctypes.addressof(lent), view.nbytes, lent


def _encoded(data: Any, name: str) -> Lent:
    """The bytes of a file, in whatever has a buffer of single bytes."""
    if isinstance(data, (list, tuple)):  # as some ROS clients have uint8[]
        data = _of_numbers(data, name)
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"{name}: a {type(data).__name__} given, bytes needed") from None
    if view.itemsize != 1 or view.ndim != 1:
        raise TypeError(f"{name}: a buffer of {view.ndim} dimensions and {view.itemsize} bytes an item given, a row of single bytes needed")
    address, size, keep = _memory(data, name)
    return _abi.Image(data=address, data_size=size, format=_abi.FORMATS["encoded"]), keep


def _of_numbers(data: Any, name: str) -> bytes:
    try:
        return bytes(data)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: {error}") from None


def _frame(frame: Frame, name: str) -> Lent:
    if frame.encoding in _DEEP_ENCODINGS:
        return _deep_frame(frame, name)
    address, size, keep = _memory(frame.data, f"{name}.data")
    lent = _abi.Image(
        data=address,
        data_size=size,
        stride=integer(frame.step, f"{name}.step"),
        width=integer(frame.width, f"{name}.width"),
        height=integer(frame.height, f"{name}.height"),
        format=choice(frame.encoding, {**_ENCODINGS, **_DEEP_ENCODINGS}, f"{name}.encoding"),
    )
    return lent, keep


def _deep_frame(frame: Frame, name: str) -> Lent:
    """Gray of 16 bits with a row step."""
    width, height = integer(frame.width, f"{name}.width"), integer(frame.height, f"{name}.height")
    step = integer(frame.step, f"{name}.step") or 2 * width
    data = memoryview(frame.data)
    if step < 2 * width:
        raise InvalidArgumentError(f"{name}.step: {step} bytes given, a row has {2 * width}")
    needed = step * (height - 1) + 2 * width if height and width else 0
    if data.nbytes < needed:
        raise InvalidArgumentError(f"{name}.data: {data.nbytes} bytes given, {needed} needed")
    flat = data.tobytes()
    rows = b"".join(flat[y * step : y * step + 2 * width] for y in range(height))
    return _pnm(rows, width, height, 1, bool(frame.is_bigendian), name)


def _pnm(values: bytes, width: int, height: int, depth: int, big: bool, name: str) -> Lent:
    """Values of 16 bits as a PGM or PPM file, whose high bytes come first."""
    if not big:
        swapped = array.array("H", values)
        assert swapped.itemsize == 2, "two bytes on every platform that Python runs on"
        swapped.byteswap()
        values = swapped.tobytes()
    head = f"P{5 if depth == 1 else 6} {width} {height} 65535\n".encode("ascii")
    return _encoded(head + values, name)


def _pillow(image: Any, pillow: Any, name: str, exif: bool) -> Lent:
    """A Pillow image as the library would have it from its file: upright, transparency on white. Pillow's own memory cannot be lent."""
    orientation = image.getexif().get(_ORIENTATION, 1) if exif else 1
    if orientation in _UPRIGHT:
        image = image.transpose(getattr(getattr(pillow, "Transpose", pillow), _UPRIGHT[orientation]))
    if image.mode in _DEEP_MODES:
        return _pnm(image.tobytes(), image.width, image.height, 1, _DEEP_MODES[image.mode], name)
    if image.mode == "I":  # 32 bits, in which older versions have what a file of 16 bits holds
        lowest, highest = image.getextrema()
        if lowest < 0 or highest > 65535:
            raise InvalidArgumentError(f"{name}: mode I with values {lowest} to {highest}, 0 to 65535 needed")
        wide = array.array("i", image.tobytes())
        return _pnm(array.array("H", wide).tobytes(), image.width, image.height, 1, sys.byteorder == "big", name)
    return _frame(_flat(image, pillow, name), name)


def _flat(image: Any, pillow: Any, name: str) -> Frame:
    if image.mode == "F":
        raise InvalidArgumentError(f"{name}: mode F, 8 or 16 bits a channel needed")
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return Frame(image.tobytes(), image.width, image.height, "mono8" if image.mode == "L" else "rgb8")


def _array(picture: Any, channels: Channels, name: str) -> Lent:
    interface = picture.__array_interface__
    deep = interface["typestr"] in ("<u2", ">u2")
    if interface["typestr"] != "|u1" and not deep:
        raise TypeError(f"{name}: an array of {interface['typestr']} given, uint8 or uint16 needed")
    shape = tuple(interface["shape"])
    depth = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or depth not in (1, 3, 4) or 0 in shape:
        raise InvalidArgumentError(f"{name}: shape {shape}, HxW, HxWx1, HxWx3 or HxWx4 needed")
    if deep:
        import numpy

        values = numpy.asarray(picture).astype(">u2", copy=False).reshape(*shape[:2], depth)
        values = values[..., :3] if channels == "rgb" or depth == 1 else values[..., 2::-1]
        return _pnm(values.tobytes(), shape[1], shape[0], depth, True, name)
    lent = _borrowed(picture, channels, name)
    if lent is None:
        import numpy

        picture = numpy.ascontiguousarray(picture)
        lent = _borrowed(picture, channels, name)
        assert lent is not None, "C can say how a contiguous array lies"
    return lent, picture


def _borrowed(picture: Any, channels: str, name: str) -> _abi.Image | None:
    """The array's own memory, or None where C has no words for its strides."""
    interface = picture.__array_interface__
    height, width, depth = (*interface["shape"], 1)[:3]
    row, pixel, channel = (*(interface.get("strides") or (width * depth, depth)), 1)[:3]
    address = interface["data"][0]
    # Along an axis of one there is no step to take.
    pixel, channel = pixel if width > 1 else depth, channel if depth > 1 else 1
    if depth == 3 and channel == -1:  # array[..., ::-1]: the same bytes in the other order
        address, channel, channels = address - 2, 1, _REVERSED[channels]
    row = row if height > 1 else width * pixel
    size = row * (height - 1) + width * pixel
    if depth == 3 and pixel == 4 and _owns(picture, address + size):  # array[..., :3] of four channels
        depth = 4
    if channel != 1 or pixel != depth or row < width * pixel:
        return None
    return _abi.Image(
        data=address,
        data_size=size,
        stride=row,
        width=integer(width, f"{name}.width"),
        height=integer(height, f"{name}.height"),
        format=_abi.FORMATS[_LAYOUTS[channels, depth]],
    )


def _owns(picture: Any, end: int) -> bool:
    """Whether the array that this one is a view of reaches up to an address: a view may leave out the last pixel's fourth byte."""
    owner = getattr(picture, "base", None)
    interface = getattr(owner, "__array_interface__", None)
    if interface is None or interface.get("strides"):
        return False
    size = int(interface["typestr"][2:])
    for edge in interface["shape"]:
        size *= edge
    return bool(end <= interface["data"][0] + size)
