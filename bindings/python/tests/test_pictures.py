"""One picture in every form that Python programs, ROS and Pillow have it, and the forms that are refused by name."""

import array
import ctypes
import io
import mmap
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ANSWER, EXCHANGED, PICTURE, QUESTION, ROOT
from PIL import Image, PngImagePlugin

import smolvlm
from smolvlm import _abi

ORIENTATION = 0x112
BIG = sys.byteorder == "big"


def sampled(model, picture, **parameters):
    """Tokens that any change of the picture changes: drawn from nearly all of the vocabulary."""
    answer = model.ask(picture, QUESTION, temperature=8, seed=3, max_new_tokens=24, **parameters)
    return answer.prompt_tokens, answer.tokens


@pytest.fixture(scope="module")
def small():
    """Of more height than width, unlike itself however it is turned; the edges are of one colour, or a JPEG would have many."""
    y, x = np.mgrid[:96, :64]
    return np.stack([x * 4, y * 2, (x + y) % 16 * 16], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def depth():
    """Millimetres as a depth camera has them, in a small part of the range; 0: nothing was seen."""
    y, x = np.mgrid[:60, :80]
    return np.where((x - 40) ** 2 + (y - 30) ** 2 < 400, 700 + 3 * x, np.where(x > 70, 0, 1800 + 20 * y)).astype(np.uint16)


def scaled(depth):
    """The rule: the largest value is white."""
    most = max(int(depth.max()), 1)
    return ((depth.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_bytes_of_a_file_in_any_buffer(model, tmp_path):
    data = PICTURE.read_bytes()
    with open(PICTURE, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    spread = bytearray(2 * len(data))
    spread[::2] = data
    row = np.frombuffer(data, np.uint8)
    pictures = {
        "array": array.array("B", data),
        "signed array": array.array("b", np.frombuffer(data, np.int8).tolist()),
        "mmap": mapped,
        "read-only row": row,
        "row": row.copy(),
        "signed row": row.view(np.int8),
        "row of void": row.view("V1"),
        "every second byte": np.frombuffer(spread, np.uint8)[::2],
        "memoryview of every second byte": memoryview(spread)[::2],
        "memoryview of a part": memoryview(b"front" + data)[5:],
        "memoryview of chars": memoryview(data).cast("c"),
        "ctypes": (ctypes.c_ubyte * len(data)).from_buffer_copy(data),
        "memmap": np.memmap(PICTURE, np.uint8, "r"),
        "BytesIO": io.BytesIO(data).getbuffer(),
        "CompressedImage": SimpleNamespace(format="jpeg", data=array.array("B", data)),
        "list of a CompressedImage": SimpleNamespace(format="rgb8; jpeg compressed bgr8", data=list(data)),
    }
    for name, picture in pictures.items():
        assert model.ask(picture, QUESTION).text == ANSWER, name
    del picture, pictures
    mapped.close()
    with pytest.raises(smolvlm.InvalidArgumentError, match="^image 0: mmap closed or invalid$"):
        model.ask(mapped, QUESTION)
    released = memoryview(data)
    released.release()
    with pytest.raises(smolvlm.InvalidArgumentError, match="^image 0: operation forbidden on released memoryview object$"):
        model.ask(released, QUESTION)


@pytest.mark.parametrize("items", ["H", "h", "i", "I", "f", "d"])
def test_arrays_of_other_items_are_named(model, items):
    picture = array.array(items, [1, 2, 3])
    with pytest.raises(TypeError, match=rf"^image 0: a buffer of 1 dimensions with items of {picture.itemsize} bytes given, a row of single"):
        model.ask(picture, QUESTION)


def test_buffers_of_two_dimensions_are_named(model):
    with pytest.raises(TypeError, match="^image 0: a buffer of 2 dimensions with items of 1 bytes given"):
        model.ask(memoryview(np.zeros((4, 4), np.uint8)), QUESTION)


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b""), array.array("B"), np.zeros(0, np.uint8), smolvlm.Frame(b"", 1, 1)])
def test_nothing_is_named(model, empty):
    with pytest.raises(smolvlm.InvalidArgumentError, match=r"^image 0(\.data)?: 0 bytes given$"):
        model.ask(empty, QUESTION)


def test_the_names_of_opencv_have_blue_first(model, pillow_picture):
    rgb = np.asarray(pillow_picture)
    height, width = rgb.shape[:2]
    four = np.dstack([rgb[..., ::-1], np.full((height, width), 9, np.uint8)])
    assert model.ask(smolvlm.Frame(rgb[..., ::-1].tobytes(), width, height, "8UC3"), QUESTION).text == ANSWER
    assert model.ask(smolvlm.Frame(rgb.tobytes(), width, height, "8UC3"), QUESTION).text == EXCHANGED
    assert model.ask(smolvlm.Frame(four.tobytes(), width, height, "8UC4"), QUESTION).text == ANSWER
    gray = np.ascontiguousarray(rgb[..., 0])
    assert sampled(model, smolvlm.Frame(gray.tobytes(), width, height, "8UC1")) == sampled(model, gray)
    # A message itself, from any of the libraries that have such classes.
    message = SimpleNamespace(data=list(rgb[..., ::-1].tobytes()), width=width, height=height, encoding="bgr8", step=3 * width, is_bigendian=0)
    assert model.ask(message, QUESTION).text == ANSWER
    assert model.ask(SimpleNamespace(data=rgb.tobytes(), width=width, height=height, encoding="rgb8"), QUESTION).text == ANSWER


def frame(depth, order, padding, encoding="16UC1", make=bytes):
    rows = np.full((depth.shape[0], 2 * depth.shape[1] + padding), 0xA5, np.uint8)
    rows[:, : 2 * depth.shape[1]] = depth.astype(f"{order}u2").view(np.uint8).reshape(depth.shape[0], -1)
    data = make(rows.tobytes()[: rows.size - padding])
    return smolvlm.Frame(data, depth.shape[1], depth.shape[0], encoding, rows.shape[1] if padding else 0, order == ">")


def test_gray_of_16_bits_is_one_picture_on_every_way(model, depth, tmp_path):
    wanted = sampled(model, scaled(depth))
    others = [depth >> 8, np.minimum(depth, 255), 255 - scaled(depth)]
    assert all(sampled(model, other.astype(np.uint8)) != wanted for other in others), "what the test is to tell apart"
    pil = Image.fromarray(depth)
    assert pil.mode == "I;16"
    files = {kind: saved(pil, kind) for kind in ("PNG", "TIFF", "PPM")}
    path = tmp_path / "depth.png"
    path.write_bytes(files["PNG"])
    wide = np.zeros((60, 200), np.uint16)
    wide[:, 50:130] = depth
    message = SimpleNamespace(**vars(frame(depth, ">", 6, "mono16")))
    pictures = {
        "array": depth,
        "array of one channel": depth[..., None],
        "big-endian array": depth.astype(">u2"),
        "a region": wide[:, 50:130],
        "columns first": np.asfortranarray(depth),
        "mirrored": depth[:, ::-1].copy()[:, ::-1],
        "upside down": depth[::-1].copy()[::-1],
        "path": path,
        **files,
        "frame": frame(depth, "<", 0),
        "mono16, padded": frame(depth, "<", 10, "mono16"),
        "odd step": frame(depth, "<", 3),
        "big-endian": frame(depth, ">", 0),
        "big-endian, odd step": frame(depth, ">", 7),
        "message": message,
        "frame of an array": smolvlm.Frame(depth, 80, 60, "16UC1", 0, BIG),
        "frame of array.array": smolvlm.Frame(array.array("H", depth.ravel().tolist()), 80, 60, "16UC1", 160, BIG),
        "frame of a list": frame(depth, ">", 2, make=list),
        "Pillow": pil,
        "Pillow, high byte first": Image.frombytes("I;16B", (80, 60), depth.astype(">u2").tobytes()),
        "Pillow, 32 bits": Image.fromarray(depth.astype(np.int32)),
        **{f"Pillow's {kind}": Image.open(io.BytesIO(file)) for kind, file in files.items()},
        "compressedDepth": SimpleNamespace(format="16UC1; compressedDepth png", data=array.array("B", bytes(12) + files["PNG"])),
    }
    for name, picture in pictures.items():
        assert sampled(model, picture) == wanted, name
    assert sampled(model, np.zeros((60, 80), np.uint16)) == sampled(model, np.zeros((60, 80), np.uint8)), "black stays black"


def test_an_array_of_16_bits_is_lent(model, depth, monkeypatch):
    seen = []

    def process(session, request, out):
        image = request._obj.images[0]
        seen[:] = [image.data, image.stride, image.format]
        return _abi.library.smolvlm_session_process(session, request, out)

    monkeypatch.setattr(smolvlm.Session, "_process", staticmethod(process))
    region = depth[3:, 5:]
    model.ask(region, QUESTION, max_new_tokens=1)
    assert seen == [region.ctypes.data, depth.strides[0], _abi.FORMATS["gray16"]]
    held = bytearray(depth.tobytes())
    model.ask(smolvlm.Frame(held, 80, 60, "16UC1", 160, BIG), QUESTION, max_new_tokens=1)
    assert seen[0] == ctypes.addressof(ctypes.c_char.from_buffer(held))


def test_colours_of_16_bits_keep_their_high_byte(model, small):
    deep = small.astype(np.uint16) * 256 + 255
    wanted = sampled(model, small)
    four = np.dstack([deep, np.full(small.shape[:2], 7, np.uint16)])
    ppm = b"P6 64 96 65535\n" + deep.astype(">u2").tobytes()
    for name, picture in {"array": deep, "four": four, "big-endian": deep.astype(">u2"), "PPM": ppm}.items():
        assert sampled(model, picture) == wanted, name
    assert sampled(model, deep[..., ::-1], channels="bgr") == wanted
    assert sampled(model, four[..., [2, 1, 0, 3]], channels="bgr") == wanted


@pytest.fixture(scope="module")
def kinds(small):
    """One picture in files that can say how it is to be turned, without loss but for JPEG."""
    return {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_on_every_way(model, small, kinds, kind, tmp_path):
    upright = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = Image.fromarray(small)
        data = saved(image, kind, exif=exif, **kinds[kind])
        (tmp_path / "picture").write_bytes(data)
        with open(tmp_path / "picture", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            ways = [tmp_path / "picture", data, bytearray(data), mapped, array.array("B", data), np.frombuffer(data, np.uint8)]
            wanted = sampled(model, ways[0])
            assert all(sampled(model, way) == wanted for way in ways[1:]), orientation
            del ways
        opened = Image.open(io.BytesIO(data))
        assert sampled(model, opened) == wanted, orientation
        assert sampled(model, opened) == wanted, "the caller's image is as it was"
        upright.add(str(wanted))
        if kind == "TIFF":  # Pillow has turned it while it read it
            assert sampled(model, data, exif=False) == sampled(model, small)
            continue
        assert sampled(model, opened.copy()) == wanted
        stored = sampled(model, Image.open(io.BytesIO(data)), exif=False)
        assert stored == sampled(model, data, exif=False) == sampled(model, np.asarray(Image.open(io.BytesIO(data))))
        assert sampled(model, opened, exif=None) == wanted
        # Turned by the caller already.
        from PIL import ImageOps

        assert sampled(model, ImageOps.exif_transpose(opened)) == wanted
    assert len(upright) == 8


def test_what_is_no_orientation_turns_nothing(model, small):
    image = Image.fromarray(small)
    wanted = sampled(model, image)
    for exif in (b"", b"damaged", b"Exif\0\0MM\0*\0\0\0\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0"):
        image.info["exif"] = exif
        assert sampled(model, image) == wanted, exif
    image.info = {"exif": "text"}
    assert sampled(model, image) == wanted
    # XMP is read from no file, and so from no image.
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>')
    data = saved(image, "PNG", pnginfo=xmp)
    opened = Image.open(io.BytesIO(data))
    assert opened.getexif().get(ORIENTATION) == 6
    assert sampled(model, opened) == sampled(model, data) == wanted


def test_pictures_of_16_bits_are_turned(model, depth):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = saved(Image.fromarray(depth), "PNG", exif=exif)
    turned = sampled(model, scaled(np.rot90(depth, -1)))
    assert sampled(model, data) == sampled(model, Image.open(io.BytesIO(data))) == turned
    big = Image.frombytes("I;16B", (80, 60), depth.astype(">u2").tobytes())
    wide = Image.fromarray(depth.astype(np.int32))
    big.info["exif"] = wide.info["exif"] = exif.tobytes()
    assert sampled(model, big) == sampled(model, wide) == turned


FILES = ROOT / "tests" / "golden" / "files"


@pytest.mark.parametrize(
    "name", ["depth.png", "depth.tif", "depth.pgm", "turned.jpg", "turned.png", "turned-late.png", "turned.webp", "turned-6.tif"]
    + ["animated.gif", "transparent.gif", "pages.tif", "palette.png", "gray-key.png", "bits.png", "p4.pbm", "cmyk.tif", "rgb-16.png"]
)  # fmt: skip
def test_the_files_that_other_doors_are_asked_about(model, name):
    """As tests/doors.rs and tests/c/doors.c have it: all of them compare with the same plain picture."""
    wanted = sampled(model, np.asarray(Image.open(FILES / f"{name}.seen.png").convert("RGB")))
    data = (FILES / name).read_bytes()
    for picture in (FILES / name, data, array.array("B", data), np.frombuffer(data, np.uint8), Image.open(FILES / name)):
        assert sampled(model, picture) == wanted, type(picture)


@pytest.mark.parametrize("key", [0, 1800, 5000])
def test_a_transparent_depth_is_white(model, depth, key):
    """As programs for maps mark where they have no data."""
    data = saved(Image.fromarray(depth), "PNG", transparency=key)
    opened = Image.open(io.BytesIO(data))
    opened.load()
    assert (opened.mode, opened.info["transparency"]) == ("I;16", key)
    wanted = sampled(model, np.where(depth == key, 255, scaled(depth)).astype(np.uint8))
    assert sampled(model, data) == sampled(model, opened) == wanted
    black = saved(Image.fromarray(depth * 0), "PNG", transparency=0)
    assert sampled(model, black) == sampled(model, Image.open(io.BytesIO(black)))


def transparent(mode, small):
    image = Image.fromarray(small)
    if mode in ("L", "RGB", "1", "P"):
        image = image.convert(mode)
        image.info["transparency"] = image.getpixel((40, 50))
        return image
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(small[..., 1]))
    return image.convert(mode) if mode != "PA" else image.convert("P").convert("PA")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "RGB", "1", "P"])
def test_modes_of_pillow_with_transparency_are_their_files(model, small, mode):
    image = transparent(mode, small)
    data = saved(image, "PNG", **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
    assert sampled(model, Image.open(io.BytesIO(data))) == sampled(model, data)
    assert sampled(model, data) != sampled(model, small)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "La", "RGBa"])
def test_every_mode_of_pillow_is_seen(model, small, mode):
    image = Image.fromarray(small)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
        expected = {"La": small_gray(small), "RGBa": small}[mode]
    elif mode in ("LA",):
        image, expected = image.convert(mode), small_gray(small)
    elif mode == "PA":
        image = image.convert("P").convert(mode)
        expected = np.asarray(Image.fromarray(small).convert("P").convert("RGB"))
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("L" if mode in ("1", "L") else "RGB"))
    assert sampled(model, image) == sampled(model, np.ascontiguousarray(expected))


def small_gray(small):
    return np.asarray(Image.fromarray(small).convert("L"))


def closed():
    image = Image.open(PICTURE)
    image.close()
    return image


def cut():
    return Image.open(io.BytesIO(PICTURE.read_bytes()[:3000]))


class Unwilling(Image.Image):
    """Of a mode that this version of Pillow converts into no other, of which there are fewer with each."""

    mode, size = "RGBX", (4, 4)

    def convert(self, *_):
        raise ValueError("not today")


REFUSED = {
    "image 0.encoding: 32FC1 holds floats; multiply metres by 1000": lambda: smolvlm.Frame(bytes(16), 2, 2, "32FC1"),
    "image 0.encoding: 64FC1 holds floats": lambda: smolvlm.Frame(bytes(32), 2, 2, "64FC1"),
    "image 0.encoding: '16SC1' is none of": lambda: smolvlm.Frame(bytes(8), 2, 2, "16SC1"),
    "request.images[0].data_size: 7 bytes given, 8 needed": lambda: smolvlm.Frame(bytes(7), 2, 2, "16UC1"),
    "request.images[0].data_size: 7 bytes given, 8 needed ": lambda: smolvlm.Frame(bytes(7), 2, 2, "16UC1", 0, True),
    "request.images[0].stride: 3 bytes given, a row has 4": lambda: smolvlm.Frame(bytes(8), 2, 2, "16UC1", 3, True),
    "request.images[0].width: 0 pixels": lambda: smolvlm.Frame(bytes(8), 0, 2, "16UC1", 0, True),
    "request.images[0].height: 4294967295 pixels": lambda: smolvlm.Frame(bytes(8), 1, 2**32 - 1, "16UC1", 0, True),
    "image 0.data: bytes must be in range(0, 256)": lambda: smolvlm.Frame([1, 256], 1, 1),
    "image 0: mode F holds floats; scale them to 0..255": lambda: Image.new("F", (4, 4)),
    "image 0: mode I with values -1 to -1, 0 to 65535 needed": lambda: Image.new("I", (4, 4), -1),
    "image 0: mode I with values 65536 to 65536, 0 to 65535 needed": lambda: Image.new("I", (4, 4), 65536),
    "image 0: mode RGBX: not today; hand it over in mode RGB": lambda: Unwilling(),
    "image 0: Operation on closed image": closed,
    "image 0: image file is truncated": cut,
    "image 0.format: '32FC1; compressedDepth png' is no picture file": lambda: SimpleNamespace(format="32FC1; compressedDepth png", data=b"x"),
    "image 0.format: '16UC1; compressedDepth rvl' is no picture file": lambda: SimpleNamespace(format="16UC1; compressedDepth rvl", data=b"x"),
    "image 0.data: 0 bytes given": lambda: SimpleNamespace(format="16UC1; compressedDepth", data=b"short"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_by_name(model, message):
    with pytest.raises(smolvlm.InvalidArgumentError) as error:
        model.ask(REFUSED[message](), QUESTION)
    assert str(error.value).startswith(message.rstrip())


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "i4", "u4", "i8", "?"])
def test_arrays_of_other_numbers_are_named_with_the_cure(model, kind):
    with pytest.raises(TypeError, match=r"^image 0: an array of ... given, uint8 or uint16 needed: scale it, then \.astype"):
        model.ask(np.zeros((4, 4), kind), QUESTION)


@pytest.mark.parametrize(("start", "name"), [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file"), (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF file")])
def test_phones_files_are_named(model, start, name):
    with pytest.raises(smolvlm.InvalidArgumentError, match=f"{name}, which is not read; give JPEG, PNG"):
        model.ask(start, QUESTION)
