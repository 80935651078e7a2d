"""Pictures as Python has them, lent to C without a copy where its struct can say how they lie in memory."""

from __future__ import annotations

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


Bytes = Union[bytes, bytearray, memoryview]
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Frame:
    """Raw pixels without NumPy, with the fields of `sensor_msgs/Image`: `Frame(m.data, m.width, m.height, m.encoding, m.step)`."""

    data: Any
    width: int
    height: int
    #: rgb8, bgr8, rgba8, bgra8 or mono8
    encoding: str = "rgb8"
    #: Bytes from one row to the next; 0: rows without padding.
    step: int = 0


#: What may stand before the question: a path, the bytes of a file, an array of pixels, a Pillow image, a `Frame`.
Image = Union[str, "os.PathLike[str]", Bytes, ArrayLike, Frame]

_ENCODINGS = {**{name: code for name, code in _abi.FORMATS.items() if name not in ("encoded", "gray8")}, "mono8": _abi.FORMATS["gray8"]}
#: By channel order and number of channels.
_LAYOUTS = {
    ("rgb", 1): "gray8", ("bgr", 1): "gray8",
    ("rgb", 3): "rgb8", ("bgr", 3): "bgr8",
    ("rgb", 4): "rgba8", ("bgr", 4): "bgra8",
}  # fmt: skip
_REVERSED = {"rgb": "bgr", "bgr": "rgb"}
#: Pillow's modes with more than 8 bits a channel, which it would cut off.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

#: The struct, and what must live as long as it does.
Lent = Tuple[_abi.Image, object]


def lend(image: Image, channels: Channels, name: str) -> Lent:
    if isinstance(image, (str, os.PathLike)):
        return _encoded(_read(image), name)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _encoded(image, name)
    if isinstance(image, Frame):
        return _frame(image, name)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _frame(_flat(image, pillow, name), name)
    if hasattr(image, "__array_interface__"):
        return _array(image, channels, name)
    kind = f"{type(image).__module__}.{type(image).__qualname__}"
    raise TypeError(f"{name}: a {kind} given; a path, bytes, an array of uint8, a Pillow image or a Frame needed")


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


def _encoded(data: Bytes, name: str) -> Lent:
    address, size, keep = _memory(data, name)
    return _abi.Image(data=address, data_size=size, format=_abi.FORMATS["encoded"]), keep


def _frame(frame: Frame, name: str) -> Lent:
    address, size, keep = _memory(frame.data, f"{name}.data")
    lent = _abi.Image(
        data=address,
        data_size=size,
        stride=integer(frame.step, f"{name}.step"),
        width=integer(frame.width, f"{name}.width"),
        height=integer(frame.height, f"{name}.height"),
        format=choice(frame.encoding, _ENCODINGS, f"{name}.encoding"),
    )
    return lent, keep


def _flat(image: Any, pillow: Any, name: str) -> Frame:
    """A Pillow image as the library would have it from a file: transparency on white. Pillow's own memory cannot be lent."""
    if image.mode in _DEEP_MODES:
        raise InvalidArgumentError(f"{name}: mode {image.mode}, 8 bits a channel needed")
    if image.mode not in ("RGB", "L"):
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return Frame(image.tobytes(), image.width, image.height, "mono8" if image.mode == "L" else "rgb8")


def _array(array: Any, channels: Channels, name: str) -> Lent:
    interface = array.__array_interface__
    if interface["typestr"] != "|u1":
        raise TypeError(f"{name}: an array of {interface['typestr']} given, uint8 needed")
    shape = tuple(interface["shape"])
    depth = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or depth not in (1, 3, 4) or 0 in shape:
        raise InvalidArgumentError(f"{name}: shape {shape}, HxW, HxWx1, HxWx3 or HxWx4 needed")
    lent = _borrowed(array, channels, name)
    if lent is None:
        import numpy

        array = numpy.ascontiguousarray(array)
        lent = _borrowed(array, channels, name)
        assert lent is not None, "C can say how a contiguous array lies"
    return lent, array


def _borrowed(array: Any, channels: str, name: str) -> _abi.Image | None:
    """The array's own memory, or None where C has no words for its strides."""
    interface = array.__array_interface__
    height, width, depth = (*interface["shape"], 1)[:3]
    row, pixel, channel = (*(interface.get("strides") or (width * depth, depth)), 1)[:3]
    address = interface["data"][0]
    # Along an axis of one there is no step to take.
    pixel, channel = pixel if width > 1 else depth, channel if depth > 1 else 1
    if depth == 3 and channel == -1:  # array[..., ::-1]: the same bytes in the other order
        address, channel, channels = address - 2, 1, _REVERSED[channels]
    row = row if height > 1 else width * pixel
    size = row * (height - 1) + width * pixel
    if depth == 3 and pixel == 4 and _owns(array, address + size):  # array[..., :3] of four channels
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


def _owns(array: Any, end: int) -> bool:
    """Whether the array that this one is a view of reaches up to an address: a view may leave out the last pixel's fourth byte."""
    owner = getattr(array, "base", None)
    interface = getattr(owner, "__array_interface__", None)
    if interface is None or interface.get("strides"):
        return False
    size = int(interface["typestr"][2:])
    for edge in interface["shape"]:
        size *= edge
    return bool(end <= interface["data"][0] + size)
