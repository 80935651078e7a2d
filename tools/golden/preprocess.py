"""Preprocessing cases: pictures in, the sha256 of the reference's tile bytes out.

cases.json holds
    cases: a list of
        kind, width, height    the picture: a formula of pictures.py; or `file`: a PNG in the same folder
        tile_size, longest_edge, split    the options
        rows, cols, count      rows = cols = 0: one frame
        sha256                 of u8 [count, tile_size, tile_size, 3]
    composite_sha256: of u8 [256, 256, 3]: pixel (alpha a in row a, value v in column v; channels v, 255 - v, v ^ a)
        composited onto white
    normalise: a list of {rescale_factor, mean, std, bits}: bits are the 3 x 256 float32 results as integers
"""

import hashlib
import json

import numpy as np
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from .pictures import picture
from .reference import cut

CONFIGS = {"512": (512, 2048), "384": (384, 1536), "96": (96, 192)}

# (configuration, kind, width, height, longest_edge or None for the configuration's own, split)
FORMULA_CASES = [
    ("512", "hash", 640, 480, None, True),
    ("512", "waves", 480, 640, None, True),
    ("512", "blocks", 1, 1, None, True),
    ("512", "hash", 512, 512, 512, True),
    ("512", "hash", 2048, 1536, None, True),
    ("512", "waves", 1920, 1080, None, True),
    ("512", "waves", 1920, 1080, 1024, True),
    ("512", "blocks", 1280, 720, 512, True),
    ("512", "hash", 333, 777, 1536, True),
    ("512", "hash", 5000, 7, None, True),
    ("512", "waves", 7, 5000, None, True),
    ("512", "hash", 300, 200, 5000, True),
    ("512", "waves", 200, 300, 4608, True),
    ("512", "blocks", 101, 53, None, False),
    ("512", "hash", 640, 480, 512, False),
    ("512", "hash", 1024, 2048, 1024, True),
    ("512", "hash", 1024, 2050, 2048, True),
    ("512", "waves", 1200, 2300, 640, False),
    ("512", "hash", 3000, 4000, 1024, True),
    ("512", "waves", 513, 511, 513, True),
    ("512", "hash", 511, 513, 511, True),
    ("384", "hash", 640, 480, None, True),
    ("384", "waves", 375, 500, None, True),
    ("384", "blocks", 1, 37, None, True),
    ("384", "hash", 37, 1, None, True),
    ("384", "waves", 384, 384, 384, True),
    ("384", "hash", 1536, 384, None, True),
    ("384", "hash", 385, 383, 768, True),
    ("384", "blocks", 800, 600, None, False),
    ("384", "waves", 3, 1000, None, False),
    ("384", "hash", 4097, 33, None, True),
    ("384", "hash", 33, 4500, 4500, True),
    ("96", "hash", 96, 96, None, True),
    ("96", "hash", 97, 95, None, True),
    ("96", "waves", 192, 96, None, True),
    ("96", "blocks", 31, 17, None, True),
    ("96", "hash", 2, 3, None, True),
    ("96", "waves", 640, 480, 96, True),
    ("96", "hash", 640, 480, 97, True),
    ("96", "hash", 640, 480, 480, True),
    ("96", "blocks", 1, 255, None, True),
    ("96", "hash", 255, 1, None, False),
    ("96", "waves", 1000, 999, 288, True),
    ("96", "hash", 19, 23, 1, True),
    ("96", "blocks", 23, 19, 3, False),
    ("96", "hash", 700, 701, 191, True),
]


def _png_pictures():
    """Name -> PIL image, one for each way a PNG can be other than RGB."""
    rgb = picture("waves", 61, 40)
    gray = np.ascontiguousarray(rgb[..., 0])
    alpha = picture("hash", 61, 40)[..., 1].copy()
    alpha[:5], alpha[5:10] = 0, 255
    palette = Image.fromarray(rgb).quantize(16)
    key = Image.fromarray(picture("blocks", 45, 60))
    return {
        "rgb": (Image.fromarray(rgb), {}),
        "gray": (Image.fromarray(gray), {}),
        "bilevel": (Image.fromarray(gray).convert("1"), {}),
        "gray_alpha": (Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]), {}),
        "gray_key": (Image.fromarray(picture("blocks", 45, 60)[..., 0].copy()), {"transparency": 255}),
        "rgba": (Image.fromarray(np.dstack([rgb, alpha])), {}),
        "rgb_key": (key, {"transparency": (255, 0, 255)}),
        "palette": (palette, {}),
        "palette_alpha": (palette, {"transparency": bytes(range(0, 256, 16))}),
    }


def _outcome(image, tile_size, longest_edge, split):
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest_edge}, max_image_size={"longest_edge": tile_size}
    )
    tiles, rows, cols = cut(processor, image, longest_edge, split)
    return {
        "tile_size": tile_size,
        "longest_edge": longest_edge,
        "split": split,
        "rows": rows,
        "cols": cols,
        "count": len(tiles),
        "sha256": hashlib.sha256(tiles.tobytes()).hexdigest(),
    }


def _composite_sha256():
    a, v = np.indices((256, 256), dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([v, 255 - v, v ^ a, a]))
    background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    rgb = np.asarray(Image.alpha_composite(background, rgba).convert("RGB"))
    return hashlib.sha256(rgb.tobytes()).hexdigest()


def _normalise(rescale_factor, mean, std):
    values = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 16, 16))
    processor = Idefics3ImageProcessorPil()
    table = processor.normalize(processor.rescale(values, rescale_factor), mean, std)
    if table.dtype != np.float32:
        raise TypeError(f"normalised values are {table.dtype}, float32 wanted")
    bits = np.ascontiguousarray(table).view(np.uint32).reshape(3, 256)
    return {"rescale_factor": rescale_factor, "mean": mean, "std": std, "bits": bits.tolist()}


def write(folder):
    """Writes the folder and returns the number of cases."""
    folder.mkdir(parents=True)
    cases = []
    for config, kind, width, height, longest_edge, split in FORMULA_CASES:
        tile_size, default_edge = CONFIGS[config]
        image = Image.fromarray(picture(kind, width, height))
        cases.append(
            {"kind": kind, "width": width, "height": height}
            | _outcome(image, tile_size, longest_edge or default_edge, split)
        )
    for name, (image, options) in _png_pictures().items():
        file = f"{name}.png"
        image.save(folder / file, **options)
        for config, split in (("96", True), ("384", False)):
            tile_size, longest_edge = CONFIGS[config]
            with Image.open(folder / file) as opened:
                cases.append({"file": file} | _outcome(opened, tile_size, longest_edge, split))
    document = {
        "cases": cases,
        "composite_sha256": _composite_sha256(),
        "normalise": [
            _normalise(0.00392156862745098, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
            _normalise(1 / 255, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        ],
    }
    # One case a line: the file is meant to be read as well.
    lines = [json.dumps(case) for case in cases]
    text = json.dumps(document | {"cases": "@"}).replace('"@"', "[\n" + ",\n".join(lines) + "\n]")
    (folder / "cases.json").write_text(text + "\n", encoding="utf-8")
    return len(cases)
