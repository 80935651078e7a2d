"""Picture files of every kind but JPEG, each beside the picture that Pillow sees in it by the library's rules: the first of several,
upright, transparency on white, gray of 16 bits scaled so that its largest value is white.

    python tools/golden/files.py tests/golden/files

Needs Pillow, tifffile and imagecodecs. Files that the library must refuse have no PNG.
"""

import io
import pathlib
import sys

import numpy as np
import tifffile
from PIL import Image, ImageOps, TiffImagePlugin

WIDTH, HEIGHT = 37, 29
ORIENTATION = 0x112


def colours():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([x * 6, y * 8, (x * 3 + y * 5) % 256], axis=-1)
    picture[4:12, 5:20] = [230, 40, 60]
    return picture.astype(np.uint8)


def depths():
    """Millimetres in a small part of the range; 0: nothing was seen."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.where((x - 18) ** 2 + (y - 14) ** 2 < 90, 700 + 3 * x, np.where(x > 33, 0, 1800 + 20 * y)).astype(np.uint16)


def scaled(depth):
    most = max(int(depth.max()), 1)
    return ((depth.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def as_seen(name, file):
    """What the library is to see."""
    if name.startswith("p7-") and "five" not in name:  # which Pillow does not read
        return as_seen("", {"p7-rgb.pam": png("RGB"), "p7-gray.pam": png("L"), "p7-rgba.pam": png("RGBA")}[name])
    image = Image.open(io.BytesIO(file))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(scaled(np.asarray(image).astype(np.uint16))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def png(mode):
    image = Image.fromarray(colours())
    if mode == "RGBA":
        image.putalpha(image.convert("L"))
    return saved(image.convert(mode), "PNG")


def tiffs():
    rgb, depth = Image.fromarray(colours()), depths()
    gray, deep = rgb.convert("L"), colours().astype(np.uint16) * 256 + 77
    palette, bits, cmyk = rgb.quantize(16), gray.convert("1"), rgb.convert("CMYK")
    alpha = rgb.copy()
    alpha.putalpha(gray)
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate", "jpeg", "zstd", "lzma"):
        options = {"quality": 100} if name == "jpeg" else {}
        yield f"rgb-{name.removeprefix('tiff_')}", saved(rgb, "TIFF", compression=name, **options)
    for name in ("tiff_lzw", "packbits", "jpeg"):
        yield f"gray-{name.removeprefix('tiff_')}", saved(gray, "TIFF", compression=name)
    for name in ("group3", "group4", "packbits", "tiff_lzw"):
        yield f"bits-{name}", saved(bits, "TIFF", compression=name)
    yield "bits", saved(bits, "TIFF")
    yield "gray-alpha", saved(alpha.convert("LA"), "TIFF")
    yield "rgba", saved(alpha, "TIFF")
    yield "rgba-premultiplied", tiff(np.asarray(alpha.convert("RGBa")), photometric="rgb", extrasamples=["assocalpha"])
    yield "palette", saved(palette, "TIFF")
    yield "palette-lzw", saved(palette, "TIFF", compression="tiff_lzw")
    yield "cmyk", saved(cmyk, "TIFF")
    yield "cmyk-lzw", saved(cmyk, "TIFF", compression="tiff_lzw")
    yield "ycbcr", saved(rgb.convert("YCbCr"), "TIFF")
    yield "lab", saved(rgb.convert("LAB"), "TIFF")
    yield "pages", saved(rgb, "TIFF", save_all=True, append_images=[gray.convert("RGB"), alpha])
    yield "tiled", tiff(colours(), tile=(16, 16), photometric="rgb")
    yield "tiled-deflate", tiff(colours(), tile=(16, 32), photometric="rgb", compression="zlib", predictor=True)
    yield "strips", tiff(colours(), rowsperstrip=5, photometric="rgb", compression="lzw", predictor=True)
    yield "planes", tiff(np.moveaxis(colours(), 2, 0), photometric="rgb", planarconfig="separate")
    yield "big-endian", tiff(colours(), photometric="rgb", byteorder=">")
    yield "white-is-zero", tiff(np.asarray(gray), photometric="miniswhite")
    yield "white-is-zero-16", tiff(depth, photometric="miniswhite")
    yield "bigtiff", tiff(colours(), photometric="rgb", bigtiff=True)
    yield "depth", saved(Image.fromarray(depth), "TIFF")
    yield "depth-lzw", saved(Image.fromarray(depth), "TIFF", compression="tiff_lzw")
    yield "depth-big-endian", tiff(depth, photometric="minisblack", byteorder=">")
    yield "depth-tiled-predictor", tiff(depth, tile=(16, 16), photometric="minisblack", compression="zlib", predictor=True)
    yield "rgb-16", tiff(deep, photometric="rgb")
    yield "rgb-16-big-endian", tiff(deep, photometric="rgb", byteorder=">", compression="lzw")
    yield "signed-16", tiff(depth.astype(np.int16), photometric="minisblack")
    yield "gray-32", tiff(depth.astype(np.uint32), photometric="minisblack")
    yield "float-gray", tiff(depth.astype(np.float32), photometric="minisblack")
    yield "float-rgb", tiff(colours().astype(np.float32) / 255, photometric="rgb")
    yield "double", tiff(depth.astype(np.float64), photometric="minisblack")
    yield "half", tiff(depth.astype(np.float16), photometric="minisblack")
    yield "four-bits", nibbles(np.asarray(gray) // 16)
    yield "two-channels", tiff(np.asarray(rgb)[..., :2].copy(), photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"])
    yield "five-channels", tiff(np.dstack([colours(), colours()[..., :2]]), photometric="rgb", extrasamples=["unspecified"] * 2)
    for orientation in range(2, 9):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[ORIENTATION] = orientation
        yield f"turned-{orientation}", saved(rgb, "TIFF", tiffinfo=info, compression="tiff_lzw")


def nibbles(values):
    """Gray of four bits, which neither Pillow nor tifffile writes."""
    padded = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    data = (padded[:, ::2] << 4 | padded[:, 1::2]).astype(np.uint8).tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, 4), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, HEIGHT), (279, len(data))]
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    return head + b"".join(np.array([tag, 4, 1, 0, value, 0], "<u2").tobytes()[:4] + np.array([1, value], "<u4").tobytes() for tag, value in tags) + bytes(4) + data


def gifs():
    rgb = Image.fromarray(colours())
    palette = rgb.quantize(32)
    yield "palette", saved(palette, "GIF")
    yield "plain", saved(palette, "GIF", interlace=0)
    yield "gray", saved(rgb.convert("L"), "GIF")
    yield "two-colours", saved(rgb.convert("1"), "GIF")
    yield "interlaced", saved(palette, "GIF", interlace=1)
    yield "animated", saved(palette, "GIF", save_all=True, append_images=[rgb.rotate(90).quantize(32), rgb.rotate(180).quantize(8)], loop=0)
    yield "transparent", saved(palette, "GIF", transparency=palette.getpixel((10, 8)))
    small = palette.crop((0, 0, 20, 15))
    yield "background", frame_in(saved(small, "GIF", interlace=0), 40, 33, 7, 5)
    yield "comment", saved(palette, "GIF", comment=b"a comment " * 60)


def frame_in(file, width, height, left, top):
    """The first frame as a part of a larger picture, which is what is left of an optimised animation."""
    at = file.index(b"\x2c\0\0\0\0")
    file = file[:6] + np.array([width, height], "<u2").tobytes() + file[10 : at + 1] + np.array([left, top], "<u2").tobytes() + file[at + 5 :]
    return file


def portable():
    rgb = Image.fromarray(colours())
    gray, depth = np.asarray(rgb.convert("L")), depths()
    size = f"{WIDTH} {HEIGHT}".encode()
    text = lambda values: "\n".join(" ".join(map(str, row)) for row in values.reshape(HEIGHT, -1)).encode() + b"\n"  # noqa: E731
    bits = (gray < 100).astype(np.uint8)
    yield "p1.pbm", b"P1\n# bits\n" + size + b"\n" + text(bits)
    yield "p1-without-spaces.pbm", b"P1\n" + size + b"\n" + b"\n".join(bytes(row + 48) for row in bits) + b"\n"
    yield "p2.pgm", b"P2\n" + size + b"\n255\n" + text(gray)
    yield "p2-15.pgm", b"P2\n# of few tones\n" + size + b" # here too\n15\n" + text(gray // 17)
    yield "p2-16.pgm", b"P2\n" + size + b"\n65535\n" + text(depth)
    yield "p3.ppm", b"P3\n" + size + b"\n255\n" + text(colours())
    yield "p4.pbm", b"P4\n" + size + b"\n" + np.packbits(bits, axis=1).tobytes()
    yield "p5.pgm", b"P5 " + size + b" 255\n" + gray.tobytes()
    yield "p5-comments.pgm", b"P5\n# one\n#two\n" + size + b"\n# three\n255\n" + gray.tobytes()
    yield "p5-100.pgm", b"P5\n" + size + b"\n100\n" + (gray // 3).tobytes()
    yield "depth.pgm", b"P5\n" + size + b"\n65535\n" + depth.astype(">u2").tobytes()
    yield "p5-4095.pgm", b"P5\n" + size + b"\n4095\n" + depth.astype(">u2").tobytes()
    yield "p6.ppm", b"P6\n" + size + b"\n255\n" + colours().tobytes()
    yield "p6-127.ppm", b"P6\n" + size + b"\n127\n" + (colours() // 2).tobytes()
    yield "p6-16.ppm", b"P6\n" + size + b"\n65535\n" + (colours().astype(">u2") * 257).tobytes()
    yield "p6-1023.ppm", b"P6\n" + size + b"\n1023\n" + (colours().astype(">u2") * 4).astype(">u2").tobytes()
    pam = lambda depth, kind: f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH {depth}\nMAXVAL 255\nTUPLTYPE {kind}\nENDHDR\n".encode()  # noqa: E731
    yield "p7-rgb.pam", pam(3, "RGB") + colours().tobytes()
    yield "p7-gray.pam", pam(1, "GRAYSCALE") + gray.tobytes()
    yield "p7-rgba.pam", pam(4, "RGB_ALPHA") + np.dstack([colours(), gray]).tobytes()
    yield "p7-five.pam", pam(5, "STEREO") + np.dstack([colours(), colours()[..., :2]]).tobytes()
    yield "short.pgm", b"P5\n" + size + b"\n255\n" + gray.tobytes()[:-1]
    yield "float.pfm", b"Pf\n" + size + b"\n-1.0\n" + depth.astype("<f4").tobytes()


def others():
    rgb, depth = Image.fromarray(colours()), depths()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    yield "depth.png", saved(Image.fromarray(depth), "PNG")
    yield "turned.png", saved(rgb, "PNG", exif=exif)
    yield "turned-late.png", late_exif(saved(rgb, "PNG"), exif.tobytes()[6:])
    yield "turned.webp", saved(rgb, "WEBP", lossless=True, exif=exif)
    yield "rgb-16.png", imagecodecs_png(colours().astype(np.uint16) * 256 + 77)
    gray = rgb.convert("L").quantize(24).convert("L")
    yield "gray-key.png", saved(gray, "PNG", transparency=gray.getpixel((10, 8)))
    yield "rgb-key.png", saved(rgb, "PNG", transparency=(230, 40, 60))
    yield "palette.png", saved(rgb.quantize(16), "PNG", transparency=3)
    yield "bits.png", saved(rgb.convert("1"), "PNG")
    # Blocks of one tone each, of which every decoder makes the same pixels.
    blocks = np.kron(np.arange(24, dtype=np.uint8).reshape(6, 4) * 10 + 7, np.ones((8, 8), np.uint8))
    yield "turned.jpg", saved(Image.fromarray(blocks), "JPEG", quality=100, exif=exif)
    for name in ("animated", "animated-late"):
        frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
        yield f"{name}.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=name.endswith("late"))
    yield "animated.webp", saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)], lossless=True)


def imagecodecs_png(pixels):
    import imagecodecs

    return imagecodecs.png_encode(pixels)


def late_exif(file, exif):
    """Behind the pixels, where PNG allows it."""
    import zlib

    chunk = b"eXIf" + exif
    at = file.index(b"IEND") - 4
    return file[:at] + len(exif).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + file[at:]


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    files = [*((f"{name}.tif", file) for name, file in tiffs()), *((f"{name}.gif", file) for name, file in gifs()), *portable(), *others()]
    for name, file in files:
        (folder / name).write_bytes(file)
        try:
            seen = as_seen(name, file)
        except Exception as error:  # Pillow has many
            print(f"{name}: {type(error).__name__}: {error}")
            continue
        seen.save(folder / f"{name}.seen.png", optimize=True)
    print(f"{len(files)} files")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
