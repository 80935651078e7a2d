"""JPEGs of every kind that libjpeg-turbo's cjpeg and Pillow write, each beside the pixels that Pillow reads from it.

    python tools/golden/jpegs.py tests/golden/jpeg       # the committed ones, at least 40 kinds
    python tools/golden/jpegs.py --all FOLDER            # at least 300, for the histogram: tests/jpeg.rs says how

Needs cjpeg (Debian: libjpeg-turbo-progs) and Pillow. Files that Pillow refuses, and the library has to as well, have no PNG.
"""

import argparse
import io
import itertools
import pathlib
import subprocess
import tempfile

import numpy as np
from PIL import Image

SAMPLINGS = {
    "444": "1x1", "422": "2x1", "420": "2x2", "440": "1x2", "411": "4x1", "410": "4x2", "441": "1x4", "2x4": "2x4",
    "3x1": "3x1", "3x2": "3x2", "1x3": "1x3", "mixed-a": "2x2,2x1,1x2", "mixed-b": "2x1,1x1,2x1", "mixed-c": "2x2,1x1,2x2",
    "chroma-finer": "1x1,2x2,1x1", "all-2x1": "2x1,2x1,2x1",
    "2x1-of-4": "4x1,2x1,2x1", "1x2-of-4": "1x4,1x2,1x2", "3x2-1x2": "3x2,1x2,1x2",
}  # fmt: skip

#: Scan scripts as cjpeg reads them.
SCRIPTS = {
    "scans": "0;1;2;",
    "scans-2": "0; 1 2;",
    "spectral": "0,1,2: 0-0, 0, 0; 0: 1-9, 0, 0; 1: 1-63, 0, 0; 2: 1-63, 0, 0; 0: 10-63, 0, 0;",
    "successive": "0: 0-0, 0, 2; 1,2: 0-0, 0, 2; 0: 0-0, 2, 1; 1: 0-0, 2, 1; 2: 0-0, 2, 1; 0,1,2: 0-0, 1, 0;"
    "2: 1-63, 0, 3; 1: 1-63, 0, 2; 0: 1-5, 0, 2; 0: 6-63, 0, 2; 0: 1-63, 2, 1; 0: 1-63, 1, 0; 1: 1-63, 2, 1; 1: 1-63, 1, 0;"
    "2: 1-63, 3, 2; 2: 1-63, 2, 1; 2: 1-63, 1, 0;",
    "dc-only": "0,1,2: 0-0, 0, 0;",
    "unrefined": "0,1,2: 0-0, 0, 1; 0: 1-63, 0, 2; 1: 1-63, 0, 1; 2: 1-5, 0, 2;",
}

MODES = {
    "baseline": [],
    "optimized": ["-optimize"],
    "progressive": ["-progressive"],
    "arithmetic": ["-arithmetic"],
    "rows": ["-restart", "1"],
    "mcus": ["-restart", "3B"],
    "progressive-mcus": ["-progressive", "-restart", "2B"],
    "arithmetic-progressive-rows": ["-arithmetic", "-progressive", "-restart", "1"],
}

SIZES = [(1, 1), (2, 3), (7, 9), (8, 8), (15, 17), (16, 16), (17, 15), (33, 31), (70, 70), (64, 48), (1, 70), (70, 1), (41, 5), (24, 40)]


def picture(width, height, seed=0):
    """Slopes, a hard edge and some noise: what shows an upsampling or a wrong block."""
    y, x = np.indices((height, width))
    noise = np.random.default_rng(seed).integers(-12, 13, (height, width, 3))
    slopes = np.stack([x * 5 + y, y * 6 + x, 255 - x * 3 - y * 2], axis=-1) % 256
    slopes[(x // 6 + y // 9) % 3 == 0] = [230, 40, 60]
    return Image.fromarray(np.clip(slopes + noise, 0, 255).astype(np.uint8))


def cjpeg(image, *options, script=None):
    ppm = io.BytesIO()
    image.save(ppm, "PPM")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as scans:
        if script:
            scans.write(script)
            scans.flush()
            options += ("-scans", scans.name)
        return subprocess.run(["cjpeg", *options], input=ppm.getvalue(), stdout=subprocess.PIPE, check=True).stdout


def pillow(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def cmyk(image):
    c, m, y = image.split()
    return Image.merge("CMYK", (c, m, y, y.point(lambda v: v // 3)))


def segments(file):
    """(marker, bytes) up to and with the first scan's header, then the rest."""
    at, found = 2, []
    while True:
        size = 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        found.append((file[at + 1], file[at : at + size]))
        at += size
        if found[-1][0] == 0xDA:
            return found, file[at:]


def without(file, *markers):
    head, rest = segments(file)
    return file[:2] + b"".join(part for marker, part in head if marker not in markers) + rest


def restarts(file):
    """Where the restart markers stand."""
    return [at for at in range(len(file) - 1) if file[at] == 0xFF and 0xD0 <= file[at + 1] <= 0xD7]


def as_lossless_frame(file):
    return file.replace(b"\xff\xc0", b"\xff\xc3", 1)


def specials():
    """Kinds beside cjpeg's grid: name, file, and the whole file whose pixels it must have (None: an error)."""
    some = picture(41, 30, 1)
    gray = some.convert("L")
    plain = pillow(some)
    for mode, options in MODES.items():
        yield f"gray-{mode}", *twice(cjpeg(some, "-grayscale", *options))
        yield f"rgb-{mode}", *twice(cjpeg(some, "-rgb", *options))
        yield f"rgb-420-{mode}", *twice(cjpeg(some, "-rgb", "-sample", "2x2", *options))
        yield f"gray-2x2-{mode}", *twice(cjpeg(some, "-grayscale", "-sample", "2x2", *options))
    for name, file in [("pillow-gray", pillow(gray)), ("pillow-progressive", pillow(some, progressive=True)), ("pillow-rgb", pillow(some, keep_rgb=True))]:
        yield name, *twice(file)
    for size in [(1, 1), (17, 15), (40, 33)]:
        four = pillow(cmyk(picture(*size)), quality=90)
        name = f"{size[0]}x{size[1]}"
        yield f"cmyk-{name}", *twice(four)
        yield f"ycck-{name}", *twice(four.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"))
        yield f"cmyk-no-adobe-{name}", *twice(without(four, 0xEE))
        yield f"cmyk-420-{name}", *twice(pillow(cmyk(picture(*size)), subsampling=2))
        yield f"cmyk-progressive-{name}", *twice(pillow(cmyk(picture(*size)), progressive=True))
    for quality in (1, 5, 20, 50, 85, 100):
        for sampling in ("1x1", "2x2"):
            yield f"quality-{quality}-{sampling}", *twice(cjpeg(some, "-quality", str(quality), "-sample", sampling))
    yield "adobe-ycc", *twice(without(plain, 0xE0)[:2] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\1" + without(plain, 0xE0)[2:])
    yield "no-app0", *twice(without(plain, 0xE0))
    yield "16-bit-tables", *twice(cjpeg(some, "-quality", "1"))
    # As cameras and programs leave them.
    for sampling in ("1x1", "2x1", "2x2"):
        file = cjpeg(some, "-sample", sampling)
        bare = without(file, 0xC4)
        yield f"mjpeg-{sampling}", bare, file
        yield f"mjpeg-no-app0-{sampling}", without(file, 0xC4, 0xE0), file
        yield f"mjpeg-avi1-{sampling}", bare[:2] + b"\xff\xe0\0\x10AVI1" + bytes(10) + without(bare, 0xE0)[2:], file
        yield f"mjpeg-no-end-{sampling}", bare[:-2], file
        marked = cjpeg(some, "-sample", sampling, "-restart", "2B")
        yield f"no-end-{sampling}", file[:-2], file
        yield f"half-an-end-{sampling}", file[:-1], file
        yield f"zeros-for-an-end-{sampling}", file[:-2] + bytes(40), file
        head, rest = segments(file)
        yield f"stray-between-{sampling}", file[:2] + b"\0\x12".join([b""] + [part for _, part in head]) + rest, file
        yield f"fill-between-{sampling}", file[:2] + b"\xff\xff".join([b""] + [part for _, part in head]) + rest, file
        yield f"garbage-behind-{sampling}", file + b"a camera's own data" * 3, file
        yield f"garbage-in-front-{sampling}", b"\r\n--frame\r\n" + file, file
        at = restarts(marked)[1]
        yield f"stray-before-restart-{sampling}", marked[:at] + b"\x11\x22\x33" + marked[at:], marked
        yield f"fill-before-restart-{sampling}", marked[:at] + b"\xff\xff" + marked[at:], marked
        yield f"zero-before-restart-{sampling}", marked[:at] + b"\0" + marked[at:], marked
        yield f"lost-restart-{sampling}", marked[:at] + marked[at + 2 :], None
        yield f"cut-{sampling}", file[: len(file) * 3 // 4], None
        yield f"cut-near-end-{sampling}", file[:-12], None
        yield f"cut-with-an-end-{sampling}", file[: len(file) * 3 // 4] + b"\xff\xd9", None
        yield f"cut-restarts-{sampling}", marked[: restarts(marked)[-1]], None
    progressive = cjpeg(some, "-progressive")
    yield "progressive-no-end", progressive[:-2], progressive
    yield "progressive-cut", progressive[: len(progressive) // 2], None
    yield "lossless", as_lossless_frame(plain), None
    yield "12-bit", plain.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), None


def twice(file):
    return file, file


def grid():
    """Samplings by modes, each in three sizes that walk through the list, and scan scripts by sampling."""
    sizes = itertools.cycle(SIZES)
    for (sampling, factors), (mode, options) in itertools.product(SAMPLINGS.items(), MODES.items()):
        for _ in range(3):
            size = next(sizes)
            file = cjpeg(picture(*size, seed=size[0]), "-sample", factors, *options)
            yield f"{sampling}-{mode}-{size[0]}x{size[1]}", *twice(file)
    for (script, text), sampling in itertools.product(SCRIPTS.items(), SAMPLINGS):
        size = next(sizes)
        file = cjpeg(picture(*size, seed=size[1]), "-sample", SAMPLINGS[sampling], script=text)
        yield f"{script}-{sampling}-{size[0]}x{size[1]}", *twice(file)


def committed():
    """One of each kind, small."""
    seen = set()
    for name, file, whole in specials():
        if name in SPECIALS:
            yield name, file, whole
    small = picture(27, 19, 2)
    for sampling, factors in SAMPLINGS.items():
        yield f"sampling-{sampling}", *twice(cjpeg(small, "-sample", factors))
    for mode, options in MODES.items():
        yield f"mode-{mode}", *twice(cjpeg(small, *options))
    for script, text in SCRIPTS.items():
        yield f"script-{script}", *twice(cjpeg(small, script=text))
    for width, height in [(1, 1), (2, 3), (8, 8), (17, 1)]:
        yield f"size-{width}x{height}", *twice(cjpeg(picture(width, height)))
    assert not seen & SPECIALS


SPECIALS = {
    "gray-baseline", "rgb-baseline", "gray-2x2-progressive", "rgb-420-baseline", "cmyk-17x15", "ycck-17x15", "cmyk-no-adobe-17x15",
    "cmyk-420-17x15", "quality-1-2x2", "quality-100-1x1", "adobe-ycc", "no-app0", "mjpeg-2x1", "mjpeg-no-app0-2x2", "mjpeg-avi1-2x1",
    "mjpeg-no-end-2x1", "no-end-2x2", "half-an-end-1x1", "zeros-for-an-end-2x2", "stray-between-2x2", "fill-between-2x1",
    "garbage-behind-2x2", "garbage-in-front-2x2", "stray-before-restart-2x2", "fill-before-restart-1x1", "zero-before-restart-2x1",
    "lost-restart-2x2", "cut-2x2", "cut-near-end-2x1", "cut-with-an-end-2x2", "cut-restarts-1x1", "progressive-no-end",
    "progressive-cut", "lossless", "12-bit",
}  # fmt: skip


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.jpg"), *folder.glob("*.png")]:
        old.unlink()
    count = 0
    for name, file, whole in files:
        (folder / f"{name}.jpg").write_bytes(file)
        count += 1
        if whole is not None:
            Image.open(io.BytesIO(whole)).convert("RGB").save(folder / f"{name}.png", optimize=True)
    print(f"{count} JPEGs, {sum(f.stat().st_size for f in folder.iterdir())} bytes in {folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="every kind, for the histogram")
    arguments = parser.parse_args()
    write(arguments.folder, itertools.chain(specials(), grid()) if arguments.all else committed())


if __name__ == "__main__":
    main()
