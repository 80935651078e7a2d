"""Draws a scene as a camera or another program might: backgrounds, edges, light, blur, noise and JPEG all vary."""

import cv2
import numpy as np

SHIFT = 4  # OpenCV takes polygon corners as fixed-point numbers with this many fractional bits


def _fixed(contours, offset=0.0):
    return [np.round((contour + offset) * (1 << SHIFT)).astype(np.int32) for contour in contours]


def _smooth_noise(height, width, cells, rng):
    noise = rng.normal(0, 1, (cells, cells, rng.choice([1, 3]))).astype(np.float32)
    return np.atleast_3d(cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR))


def _background(scene, rng):
    height, width = scene.height, scene.width
    first, last = scene.background
    if np.array_equal(first, last):
        image = np.empty((height, width, 3), np.float32)
        image[:] = first
    else:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * np.linspace(-0.5, 0.5, width)[None, :] + np.sin(angle) * np.linspace(-0.5, 0.5, height)[:, None]
        ramp = np.clip(ramp + 0.5, 0, 1).astype(np.float32)[..., None]
        image = first * (1 - ramp) + last * ramp
        image = image.astype(np.float32)
    if rng.random() < 0.3:
        image += _smooth_noise(height, width, int(rng.integers(3, 40)), rng) * np.float32(rng.uniform(2, 16))
    return np.clip(image, 0, 255).astype(np.uint8)


def _draw_text(image, thing):
    mask = thing.line.mask
    top, left = round(thing.y - thing.height / 2), round(thing.x - thing.width / 2)
    top, left = max(0, min(top, image.shape[0] - mask.shape[0])), max(0, min(left, image.shape[1] - mask.shape[1]))
    part = image[top : top + mask.shape[0], left : left + mask.shape[1]]
    alpha = mask[: part.shape[0], : part.shape[1], None].astype(np.float32) / 255
    part[:] = np.round(part * (1 - alpha) + thing.rgb * alpha)


def _draw_shape(image, thing, line_type, border):
    colour = tuple(float(v) for v in np.round(thing.rgb))
    contours = _fixed(thing.placed_contours())
    if thing.stroke:
        cv2.polylines(image, contours, False, colour, max(1, round(thing.stroke)), line_type, SHIFT)
        return
    cv2.fillPoly(image, contours, colour, line_type, SHIFT)
    if border:
        border_colour, thickness = border
        cv2.polylines(image, contours, True, border_colour, thickness, line_type, SHIFT)


def _camera(image, rng):
    """What happens between the drawing and the file."""
    if rng.random() < 0.45:
        return image
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.004 * image.shape[1] + 0.4))
    if rng.random() < 0.5:
        gain = rng.uniform(0.78, 1.12) * rng.uniform(0.95, 1.05, 3)
        table = np.clip(255 * (np.arange(256)[:, None] / 255) ** rng.uniform(0.85, 1.2) * gain, 0, 255)
        image = cv2.LUT(image, table.astype(np.uint8)[None])
    if rng.random() < 0.25:
        height, width = image.shape[:2]
        light = 1 + rng.uniform(0.02, 0.1) * _smooth_noise(height, width, 3, rng)[..., :1]
        image = np.clip(image * light, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        noise = rng.integers(-128, 128, image.shape, dtype=np.int8).astype(np.int16)
        image = np.clip(image + (noise * rng.uniform(2, 16) / 74).astype(np.int16), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))))
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image


def render(scene, rng):
    """The picture of the scene: uint8, height x width x RGB."""
    image = _background(scene, rng)
    line_type = cv2.LINE_8 if rng.random() < 0.25 else cv2.LINE_AA
    border = None
    if rng.random() < 0.2:
        tone = rng.choice([(0.0, 0.0, 0.0), (255.0, 255.0, 255.0), tuple(rng.uniform(0, 255, 3))])
        border = tuple(float(v) for v in tone), max(1, round(scene.height * rng.uniform(0.003, 0.009)))
    for thing in scene.things:
        if thing.line is not None:
            _draw_text(image, thing)
        else:
            _draw_shape(image, thing, line_type, border)
    return _camera(image, rng)
