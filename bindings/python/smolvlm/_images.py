"""Pictures as Python has them, lent to C without a copy where its struct can say how they lie in memory."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Tuple, Union

from . import _abi, _pillow
from ._check import choice, integer
from ._errors import InvalidArgumentError, NotFoundError


class ArrayLike(Protocol):
    """A NumPy array, a Pillow image, or whatever else shows its memory as NumPy does."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class Message(Protocol):
    """A `sensor_msgs/Image` with its fields of a `Frame`, or a `sensor_msgs/CompressedImage` with `format`."""

    @property
    def data(self) -> Any: ...


#: The bytes of a file. An `array.array("B")`, an `mmap`, a one-dimensional array of uint8 and any other row of single bytes do as well.
Bytes = Union[bytes, bytearray, memoryview]
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Frame:
    """Raw pixels without NumPy, with the fields of `sensor_msgs/Image`: `Frame(m.data, m.width, m.height, m.encoding, m.step)`."""

    data: Any
    width: int
    height: int
    #: rgb8, bgr8, rgba8, bgra8, mono8, mono16, or OpenCV's 8UC1, 8UC3 and 8UC4, which have blue first, and 16UC1. Of 16 bits, the
    #: picture's largest value is white, and 0 black; a sensor that marks what it did not see with 65535 needs it replaced by 0.
    encoding: str = "rgb8"
    #: Bytes from one row to the next; 0: rows without padding.
    step: int = 0
    #: Of 16 bits: whether the high byte comes first.
    is_bigendian: bool = False


#: What may stand before the question: a path, the bytes of a file, an array of pixels, a Pillow image, a `Frame`, and messages that
#: have the fields of `sensor_msgs/Image` or `sensor_msgs/CompressedImage`.
Image = Union[str, "os.PathLike[str]", Bytes, ArrayLike, Frame, Message]

_ENCODINGS = {
    **{name: _abi.FORMATS[name] for name in ("rgb8", "bgr8", "rgba8", "bgra8")},
    "mono8": _abi.FORMATS["gray8"],
    # OpenCV's names say no order of channels; its pictures have blue first.
    "8UC1": _abi.FORMATS["gray8"], "8UC3": _abi.FORMATS["bgr8"], "8UC4": _abi.FORMATS["bgra8"],
    "mono16": _abi.FORMATS["gray16"], "16UC1": _abi.FORMATS["gray16"],
}  # fmt: skip
_FLOATS = "floats; multiply metres by 1000, set NaN and infinity to 0, and hand over an array of uint16"
#: By channel order and number of channels.
_LAYOUTS = {
    ("rgb", 1): "gray8", ("bgr", 1): "gray8",
    ("rgb", 3): "rgb8", ("bgr", 3): "bgr8",
    ("rgb", 4): "rgba8", ("bgr", 4): "bgra8",
}  # fmt: skip
_REVERSED = {"rgb": "bgr", "bgr": "rgb"}
#: The struct, and what must live as long as it does.
Lent = Tuple[_abi.Image, object]


def lend(image: Image, channels: Channels, name: str, exif: bool = True) -> Lent:
    if isinstance(image, (str, os.PathLike)):
        return _encoded(_read(image), name)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _encoded(image, name)
    if isinstance(image, Frame):
        return _frame(image, name)
    pillow = _pillow.module()
    if pillow is not None and isinstance(image, pillow.Image):
        return _frame(Frame(*_pillow.pixels(image, name, exif)), name)
    interface = getattr(image, "__array_interface__", None)
    if interface is not None and not _is_file(interface):
        return _array(image, channels, name)
    # Messages of ROS, which are recognised by their fields: there are many libraries that make such classes.
    message: Any = image
    if hasattr(message, "data") and isinstance(getattr(message, "encoding", None), str):
        step, big = getattr(message, "step", 0), getattr(message, "is_bigendian", False)
        return _frame(Frame(message.data, message.width, message.height, message.encoding, step, big), name)
    if hasattr(message, "data") and isinstance(getattr(message, "format", None), str):
        return _compressed(message.data, message.format, name)
    try:
        memoryview(image)  # type: ignore[arg-type]
    except TypeError:
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise TypeError(f"{name}: a {kind} given; a path, bytes, an array of uint8 or uint16, a Pillow image or a Frame needed") from None
    except ValueError:
        pass  # closed, which is told below
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


def _view(data: Any, name: str) -> memoryview:
    if isinstance(data, (list, tuple)):  # as some ROS clients have uint8[]
        try:
            data = bytes(data)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{name}: {error}") from None
    try:
        return memoryview(data)
    except TypeError:
        raise TypeError(f"{name}: a {type(data).__name__} given, bytes needed") from None
    except (ValueError, BufferError) as error:  # an mmap that is closed, a view that is released
        raise InvalidArgumentError(f"{name}: {error}") from None


def _memory(view: memoryview, name: str) -> tuple[int, int, object]:
    """Address and size of a buffer, and what keeps it there. Read-only ones of other kinds than bytes are copied."""
    if view.nbytes == 0:
        raise InvalidArgumentError(f"{name}: 0 bytes given")
    if view.readonly or not view.c_contiguous:
        whole = view.obj
        data = whole if isinstance(whole, bytes) and view.c_contiguous and view.nbytes == len(whole) else view.tobytes()
        return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0, len(data), data
    lent = (ctypes.c_char * view.nbytes).from_buffer(view)
    return ctypes.addressof(lent), view.nbytes, lent


def _encoded(data: Any, name: str) -> Lent:
    """The bytes of a file, in whatever has a buffer of single bytes."""
    view = _view(data, name)
    if view.itemsize != 1 or view.ndim != 1:
        what = f"a buffer of {view.ndim} dimensions with items of {view.itemsize} bytes"
        raise TypeError(f"{name}: {what} given, a row of single bytes needed; pixels are a NumPy array or a Frame")
    address, size, keep = _memory(view, name)
    return _abi.Image(data=address, data_size=size, format=_abi.FORMATS["encoded"]), keep


#: Before the PNG of a compressed depth image: a format, and what floats were quantised with.
_DEPTH_HEADER = 12


def _compressed(data: Any, kind: str, name: str) -> Lent:
    """The data of a `sensor_msgs/CompressedImage`: a file, or what the plugin for depth images puts before one."""
    if "compressedDepth" in kind:
        if "32FC1" in kind or "rvl" in kind.lower():
            raise InvalidArgumentError(f"{name}.format: {kind!r} is no picture file; let image_transport decode it, and hand over 16UC1")
        data = _view(data, f"{name}.data")[_DEPTH_HEADER:]
    return _encoded(data, f"{name}.data")


def _frame(frame: Frame, name: str) -> Lent:
    if frame.encoding in ("32FC1", "64FC1"):
        raise InvalidArgumentError(f"{name}.encoding: {frame.encoding} holds {_FLOATS}")
    view = _view(frame.data, f"{name}.data")
    lent = _abi.Image(
        stride=integer(frame.step, f"{name}.step"),
        width=integer(frame.width, f"{name}.width"),
        height=integer(frame.height, f"{name}.height"),
        format=choice(frame.encoding, _ENCODINGS, f"{name}.encoding"),
    )
    if lent.format == _abi.FORMATS["gray16"] and bool(frame.is_bigendian) != (sys.byteorder == "big"):
        view = memoryview(_swapped(view, lent))
    lent.data, lent.data_size, keep = _memory(view, f"{name}.data")
    return lent, keep


def _swapped(view: memoryview, lent: _abi.Image) -> bytearray:
    """A copy with the bytes of each value exchanged; too short a buffer is left for C to refuse."""
    data, width = bytearray(view.tobytes()), 2 * lent.width
    row = lent.stride or width
    if row >= width > 0:
        for begin in range(0, min(len(data), row * lent.height), row):
            end = min(begin + width, len(data))
            end -= (end - begin) % 2
            data[begin:end:2], data[begin + 1 : end : 2] = data[begin + 1 : end : 2], data[begin:end:2]
    return data


def _array(picture: Any, channels: Channels, name: str) -> Lent:
    interface = picture.__array_interface__
    kind = interface["typestr"]
    if kind not in ("|u1", "<u2", ">u2"):
        cure = "scale it, then .astype(numpy.uint8), or numpy.uint16 for depths"
        raise TypeError(f"{name}: an array of {kind} given, uint8 or uint16 needed: {cure}")
    shape = tuple(interface["shape"])
    depth = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or depth not in (1, 3, 4) or 0 in shape:
        raise InvalidArgumentError(f"{name}: shape {shape}, HxW, HxWx1, HxWx3 or HxWx4 needed")
    if kind != "|u1" and depth > 1:
        return _deep_colours(picture, channels, name)
    lent = _borrowed(picture, channels, name)
    if lent is None:
        import numpy

        picture = numpy.ascontiguousarray(picture, numpy.uint8 if kind == "|u1" else numpy.uint16)
        lent = _borrowed(picture, channels, name)
        assert lent is not None, "C can say how a contiguous array lies"
    return lent, picture


def _deep_colours(picture: Any, channels: Channels, name: str) -> Lent:
    """Colours of 16 bits, for which C has no word, as a PPM file, whose high bytes come first."""
    import numpy

    values = numpy.asarray(picture)[..., :3] if channels == "rgb" else numpy.asarray(picture)[..., 2::-1]
    head = f"P6 {values.shape[1]} {values.shape[0]} 65535\n".encode("ascii")
    return _encoded(head + values.astype(">u2").tobytes(), name)


def _borrowed(picture: Any, channels: str, name: str) -> _abi.Image | None:
    """The array's own memory, or None where C has no words for its strides or its byte order."""
    interface = picture.__array_interface__
    height, width, depth = (*interface["shape"], 1)[:3]
    item = int(interface["typestr"][2:])
    if item == 2 and interface["typestr"][0] != ("<" if sys.byteorder == "little" else ">"):
        return None
    row, pixel, channel = (*(interface.get("strides") or (width * depth * item, depth * item)), 1)[:3]
    address = interface["data"][0]
    # Along an axis of one there is no step to take.
    pixel, channel = pixel if width > 1 else depth * item, channel if depth > 1 else 1
    if depth == 3 and channel == -1:  # array[..., ::-1]: the same bytes in the other order
        address, channel, channels = address - 2, 1, _REVERSED[channels]
    row = row if height > 1 else width * pixel
    size = row * (height - 1) + width * pixel
    if depth == 3 and pixel == 4 and _owns(picture, address + size):  # array[..., :3] of four channels
        depth = 4
    if channel != 1 or pixel != depth * item or row < width * pixel:
        return None
    return _abi.Image(
        data=address,
        data_size=size,
        stride=row,
        width=integer(width, f"{name}.width"),
        height=integer(height, f"{name}.height"),
        format=_abi.FORMATS["gray16" if item == 2 else _LAYOUTS[channels, depth]],
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
