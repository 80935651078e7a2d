"""JPEGs of every kind that libjpeg-turbo's cjpeg and Pillow write, with the pixels that Pillow reads from them.

    python tools/golden/jpegs.py tests/golden/jpeg       # the committed ones, at least 40 kinds
    python tools/golden/jpegs.py --all FOLDER            # at least 300, for the histogram: tests/jpeg.rs says how

Needs cjpeg (Debian: libjpeg-turbo-progs) and Pillow. The pixels of A-B.jpg are in A-B.png or B.png; refused-*.jpg are no whole pictures.
"""

import argparse
import io
import itertools
import pathlib
import struct
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
    "no-fine": "0,1,2: 0-0, 0, 0; 0: 1-63, 0, 0; 1: 1-20, 0, 0; 2: 1-9, 0, 1; 2: 1-9, 1, 0;",
    "unrefined-fine": "0,1,2: 0-0, 0, 1; 0,1,2: 0-0, 1, 0; 0: 1-9, 0, 0; 0: 10-63, 0, 2; 1: 1-63, 0, 0; 2: 1-9, 0, 0;",
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

SIZES = [(1, 1), (2, 3), (7, 9), (8, 8), (15, 17), (16, 16), (17, 15), (33, 31), (70, 70), (64, 48), (1, 70), (70, 1), (41, 5), (24, 40), (4, 4), (6, 5), (5, 11)]


def picture(width, height, seed=0):
    """Slopes, a hard edge and some noise: what shows an upsampling or a wrong block."""
    y, x = np.indices((height, width))
    noise = np.random.default_rng(seed).integers(-3, 4, (height, width, 1))
    slopes = np.stack([x * 5 + y, y * 6 + x, 255 - x * 3 - y * 2], axis=-1) % 256
    slopes[(x // 6 + y // 9) % 3 == 1] = [230, 40, 60]
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


def as_frame(file, marker):
    """Says that the frame is of another kind than it is."""
    return file.replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


def swapped(file):
    """The second restart marker before the first."""
    first, second = restarts(file)[:2]
    return file[: first + 1] + file[second + 1 : second + 2] + file[first + 2 : second + 1] + file[first + 1 : first + 2] + file[second + 2 :]


def segment(marker, body):
    return bytes([0xFF, marker]) + (2 + len(body)).to_bytes(2, "big") + body


def after_start(file, *parts):
    return file[:2] + b"".join(parts) + file[2:]


def with_ids(file, ids):
    """Renames the three components, in the frame and in the scan."""
    head, rest = segments(file)
    renamed = []
    for marker, part in head:
        first, step = (10, 3) if marker in (0xC0, 0xC2) else (5, 2)
        if marker in (0xC0, 0xC2, 0xDA):
            part = bytearray(part)
            part[first : first + 3 * step : step] = ids
        renamed.append(bytes(part))
    return file[:2] + b"".join(renamed) + rest


def merged_tables(file):
    """All Huffman tables in one segment, all quantisation tables in another."""
    head, rest = segments(file)
    bodies = {m: b"".join(part[4:] for marker, part in head if marker == m) for m in (0xC4, 0xDB)}
    others = [part for marker, part in head if marker not in bodies]
    return file[:2] + b"".join(segment(m, body) for m, body in bodies.items()) + b"".join(others) + rest


def with_dnl(file):
    """The height stands behind the scan."""
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + b"\0\0" + file[at + 2 : -2] + segment(0xDC, file[at : at + 2]) + file[-2:]


def second_scan(file):
    """Where the second scan's header begins."""
    return file.index(b"\xff\xda", file.index(b"\xff\xda") + 2)


def exif(thumbnail):
    """An APP1 segment that turns nothing, and whose second directory has a thumbnail, as cameras write it."""
    entry = lambda tag, kind, value: struct.pack("<HHII", tag, kind, 1, value)
    first = struct.pack("<H", 1) + entry(0x112, 3, 1) + struct.pack("<I", 26)
    second = struct.pack("<H", 2) + entry(0x201, 4, 56) + entry(0x202, 4, len(thumbnail)) + bytes(4)
    return segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + thumbnail)


def specials():
    """Kinds beside cjpeg's grid: name, file, and the whole file whose pixels it must have (None: an error)."""
    some = picture(33, 20, 1)
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
        yield f"fill-before-end-{sampling}", file[:-2] + b"\xff\xff" + file[-2:], file
        yield f"stray-before-end-{sampling}", file[:-2] + b"\0\x12\xff\0" + file[-2:], file
        yield f"restart-before-end-{sampling}", marked[:-2] + b"\xff\xd7" + marked[-2:], marked
        yield f"no-end-of-restarts-{sampling}", marked[:-2], marked
        yield f"swapped-restarts-{sampling}", swapped(marked), None
        yield f"exif-thumbnail-{sampling}", after_start(without(file, 0xE0), exif(pillow(some.resize((16, 10))))), file
        profile = [segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 3]) + bytes(range(200))) for n in (1, 2, 3)]
        yield f"icc-{sampling}", after_start(file, *profile), file
        yield f"two-pictures-{sampling}", file + pillow(picture(9, 9)), file
        yield f"two-pictures-no-end-{sampling}", file[:-2] + pillow(picture(9, 9)), file
        yield f"cut-then-another-{sampling}", file[: len(file) * 3 // 4] + pillow(picture(9, 9)), None
        yield f"extended-{sampling}", as_frame(file, 0xC1), file
        yield f"merged-tables-{sampling}", *twice(merged_tables(file))
        yield f"comments-{sampling}", after_start(file, segment(0xFE, b"\xff\xd8\xff\xd9"), segment(0xED, bytes(99))), file
        yield f"dnl-{sampling}", with_dnl(file), None
        for interval in ("1B", "5B", "7B", "2", "3"):
            yield f"every-{interval}-{sampling}", *twice(cjpeg(some, "-sample", sampling, "-restart", interval))
        fine = cjpeg(some, "-sample", sampling, "-quality", "95")
        scan = fine.index(b"\xff\xda")
        assert fine.count(b"\xff\0", scan)
        yield f"fill-in-data-fine{sampling}", fine[:scan] + fine[scan:].replace(b"\xff\0", b"\xff\xff\0"), fine
        progressive = cjpeg(some, "-progressive", "-sample", sampling)
        yield f"progressive-no-end-{sampling}", progressive[:-2], progressive
        yield f"progressive-cut-{sampling}", progressive[: len(progressive) // 2], None
        yield f"progressive-cut-with-an-end-{sampling}", progressive[: len(progressive) // 2] + b"\xff\xd9", None
        yield f"progressive-no-tables-{sampling}", without(progressive, 0xC4), None
        at = second_scan(progressive)
        yield f"stray-between-scans-{sampling}", progressive[:at] + b"\x31\x41\0" + progressive[at:], progressive
        later = segment(0xDB, b"\0" + bytes([99] * 64))
        yield f"later-table-{sampling}", *twice(progressive[:at] + later + progressive[at:])
        yield f"cut-between-scans-{sampling}", progressive[:at] + pillow(picture(9, 9)), None
        yield f"scan-twice-{sampling}", progressive[:at] + progressive[progressive.index(b"\xff\xda") :], None
    rgb = cjpeg(some, "-rgb")
    yield "ids-rgb", *twice(without(rgb, 0xEE))
    yield "adobe-rgb", *twice(with_ids(rgb, b"\1\2\3"))
    yield "ids-0-1-2", *twice(without(with_ids(plain, b"\0\1\2"), 0xE0))
    yield "ids-rgb-of-jfif", *twice(with_ids(plain, b"RGB"))
    yield "adobe-rgb-of-jfif", *twice(after_start(plain, segment(0xEE, b"Adobe\0d\0\0\0\0\0")))
    mpo = io.BytesIO()
    some.save(mpo, "MPO", save_all=True, append_images=[picture(33, 20, 9)])
    yield "mpo", *twice(mpo.getvalue())
    yield "icc-pillow", *twice(pillow(some, icc_profile=bytes(range(256)) * 600))
    yield "lossless", as_frame(plain, 0xC3), None
    yield "hierarchical", as_frame(plain, 0xC5), None
    yield "jpeg-ls", as_frame(plain, 0xF7), None
    yield "12-bit", plain.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), None
    yield "no-scan", plain[: plain.index(b"\xff\xda")] + plain[-2:], None
    yield "only-a-start", plain[:2], None


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
    for name, file, whole in specials():
        if name in SPECIALS:
            yield name, file, whole
    small = picture(23, 18, 2)
    for sampling, factors in SAMPLINGS.items():
        yield f"sampling-{sampling}", *twice(cjpeg(small, "-sample", factors))
    for mode, options in MODES.items():
        yield f"mode-{mode}", *twice(cjpeg(small, *options))
    for script, text in SCRIPTS.items():
        yield f"script-{script}", *twice(cjpeg(small, script=text))
    for width, height in [(1, 1), (2, 3), (4, 4), (6, 5), (8, 8), (17, 1)]:
        yield f"size-{width}x{height}", *twice(cjpeg(picture(width, height)))


SPECIALS = {
    "gray-baseline", "rgb-baseline", "gray-2x2-progressive", "gray-2x2-baseline", "rgb-420-baseline", "cmyk-17x15", "ycck-17x15", "cmyk-no-adobe-17x15",
    "cmyk-420-17x15", "quality-1-2x2", "quality-100-1x1", "adobe-ycc", "no-app0", "mjpeg-2x1", "mjpeg-no-app0-2x2", "mjpeg-avi1-2x1",
    "mjpeg-no-end-2x1", "no-end-2x2", "half-an-end-2x2", "zeros-for-an-end-2x2", "stray-between-2x2", "fill-between-2x1",
    "garbage-behind-2x2", "garbage-in-front-2x2", "stray-before-restart-2x2", "fill-before-restart-2x2", "zero-before-restart-2x1",
    "lost-restart-2x2", "cut-2x2", "cut-near-end-2x1", "cut-with-an-end-2x2", "cut-restarts-1x1", "progressive-no-end-2x2",
    "progressive-cut-2x2", "progressive-cut-with-an-end-2x2", "progressive-no-tables-2x1", "lossless", "hierarchical", "jpeg-ls", "12-bit",
    "fill-before-end-2x2", "stray-before-end-2x1", "restart-before-end-2x2", "no-end-of-restarts-2x1", "swapped-restarts-2x2",
    "exif-thumbnail-2x2", "icc-2x1", "two-pictures-2x2", "two-pictures-no-end-2x1", "cut-then-another-2x2", "extended-2x2",
    "merged-tables-2x1", "comments-2x2", "dnl-2x2", "every-1B-1x1", "stray-between-scans-2x2", "scan-twice-2x1", "later-table-2x1", "fill-in-data-fine2x2", "cut-between-scans-2x1", "ids-rgb", "adobe-rgb",
    "ids-rgb-of-jfif", "adobe-rgb-of-jfif", "mpo", "no-scan", "only-a-start",
}  # fmt: skip


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.jpg"), *folder.glob("*.png")]:
        old.unlink()
    count = 0
    for name, file, whole in files:
        count += 1
        if whole is None:
            (folder / f"refused-{name}.jpg").write_bytes(file)
            continue
        (folder / f"{name}.jpg").write_bytes(file)
        # What is done to a whole file changes no pixel: those of one sampling share theirs.
        path = folder / f"{name if whole is file else name.split('-')[-1]}.png"
        pixels = Image.open(io.BytesIO(whole)).convert("RGB")
        assert not path.exists() or Image.open(path).tobytes() == pixels.tobytes(), name
        pixels.save(path, optimize=True)
    print(f"{count} JPEGs, {sum(f.stat().st_size for f in folder.iterdir())} bytes in {folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="every kind, for the histogram")
    arguments = parser.parse_args()
    write(arguments.folder, itertools.chain(specials(), grid()) if arguments.all else committed())


if __name__ == "__main__":
    main()
