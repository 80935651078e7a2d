"""The world the demo model knows: coloured shapes, arrows, numbers and words, laid out in a picture."""

from dataclasses import dataclass, field

import numpy as np

from .glyphs import Line, print_line

SHAPES = ["circle", "square", "rectangle", "triangle", "star", "cross", "heart", "ring"]
KINDS = [*SHAPES, "arrow", "text"]
COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]
DIRECTIONS = ["right", "down", "left", "up"]
WORDS = (
    "STOP GO EXIT OPEN CLOSED ON OFF UP DOWN LEFT RIGHT YES NO HELP FIRE WATER DOOR ROOM LAB HOME DANGER SLOW FAST "
    "TAXI BUS CAR TRAM SHIP CAT DOG BIRD FISH HORSE SUN MOON STAR TREE BOOK CAFE BAR SHOP SALE PUSH PULL HOT COLD "
    "IN OUT NORTH SOUTH EAST WEST HELLO ROBOT BOX KEY LIFT WIFI FREE START END"
).split()

# Hue in degrees, saturation, value. The gaps between neighbours are what makes every shade nameable.
SHADES = {
    "red": ((-8, 8), (0.7, 1.0), (0.55, 1.0)),
    "orange": ((22, 40), (0.75, 1.0), (0.85, 1.0)),
    "yellow": ((49, 63), (0.6, 1.0), (0.78, 1.0)),
    "green": ((88, 155), (0.5, 1.0), (0.35, 1.0)),
    "blue": ((205, 245), (0.6, 1.0), (0.45, 1.0)),
    "purple": ((272, 302), (0.4, 1.0), (0.35, 0.95)),
    "black": ((0, 360), (0.0, 0.4), (0.0, 0.14)),
    "white": ((0, 360), (0.0, 0.06), (0.92, 1.0)),
}
PURE = {
    "red": [(255, 0, 0), (220, 20, 60), (200, 0, 0)],
    "orange": [(255, 165, 0), (255, 140, 0), (255, 128, 0)],
    "yellow": [(255, 255, 0), (255, 215, 0), (240, 220, 40)],
    "green": [(0, 255, 0), (0, 128, 0), (34, 139, 34), (0, 200, 0)],
    "blue": [(0, 0, 255), (30, 144, 255), (0, 0, 200), (65, 105, 225)],
    "purple": [(128, 0, 128), (160, 32, 240), (148, 0, 211)],
    "black": [(0, 0, 0), (20, 20, 20)],
    "white": [(255, 255, 255), (245, 245, 245)],
}


@dataclass
class Thing:
    """One object. Coordinates are picture pixels; a shape has contours, a text has a printed line."""

    kind: str
    colour: str | None
    rgb: np.ndarray
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    contours: list = field(default_factory=list)
    stroke: float = 0.0  # > 0: the contours are open lines of this thickness
    direction: str | None = None
    text: str | None = None
    line: Line | None = None

    def placed_contours(self):
        return [contour + (self.x, self.y) for contour in self.contours]


@dataclass
class Scene:
    width: int
    height: int
    background: tuple  # two RGB corners of a gradient; equal for a plain one
    things: list

    @property
    def ordered(self):
        return sorted(self.things, key=lambda thing: thing.x)


def sample_shade(colour, rng):
    if rng.random() < 0.3:
        return np.array(PURE[colour][rng.integers(len(PURE[colour]))], np.float32)
    hue, saturation, value = (rng.uniform(*bounds) for bounds in SHADES[colour])
    return hsv_to_rgb(hue, saturation, value)


def hsv_to_rgb(hue, saturation, value):
    sector = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (255 * value * (1 - saturation * ramp)).astype(np.float32)


# --- geometry: contours around the origin, in a box of about 2 x 2 ---------------------------------------------------


def _ellipse(radius=1.0, points=40):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _star(rng):
    points = 5 if rng.random() < 0.85 else 6
    angle = np.arange(2 * points) * np.pi / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.36, 0.5))
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def _heart():
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3 / 16, -(y + 2.5) / 14.5], 1)


def _cross(rng):
    a = rng.uniform(0.22, 0.38)
    return np.array([(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)])


def _triangle(rng):
    if rng.random() < 0.2:
        return np.array([(-0.9, -0.9), (-0.9, 0.9), (0.9, 0.9)])
    return np.array([(rng.uniform(-0.25, 0.25), -0.95), (rng.uniform(0.75, 1.0), 0.85), (-rng.uniform(0.75, 1.0), 0.85)])


def _rectangle(rng):
    thin = 1 / rng.uniform(2.4, 3.6)
    return np.array([(-1, -thin), (1, -thin), (1, thin), (-1, thin)])


def _arrow(rng):
    """Points right."""
    shaft, head, wing = rng.uniform(0.1, 0.26), rng.uniform(0.0, 0.35), rng.uniform(0.45, 0.75)
    notch = 0.1 if rng.random() < 0.2 else 0.0
    return np.array([(-1, -shaft), (head + notch, -shaft), (head, -wing), (1, 0), (head, wing), (head + notch, shaft), (-1, shaft)])


def _line_arrow(rng):
    tip, wing = rng.uniform(0.25, 0.6), rng.uniform(0.28, 0.55)
    return [np.array([(-1.0, 0), (1, 0)]), np.array([(1 - tip, -wing), (1, 0), (1 - tip, wing)])]


def _turn(contours, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [contour @ np.array([[c, s], [-s, c]]) for contour in contours]


def _small_tilt(rng, limit):
    return 0.0 if rng.random() < 0.45 else rng.uniform(-limit, limit)


def make_shape(kind, colour, rgb, diameter, rng):
    """A shape or an arrow of the given diameter, centred on its bounding box."""
    direction, stroke = None, 0.0
    if kind == "circle":
        contours = [_ellipse()]
    elif kind == "ring":
        contours = [_ellipse(), _ellipse(rng.uniform(0.45, 0.68))]
    elif kind == "square":
        contours = _turn([0.85 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])], _small_tilt(rng, 18))
    elif kind == "rectangle":
        contours = _turn([_rectangle(rng)], _small_tilt(rng, 15) + 90 * rng.integers(2))
    elif kind == "triangle":
        contours = _turn([_triangle(rng)], _small_tilt(rng, 180))
    elif kind == "star":
        contours = _turn([_star(rng)], _small_tilt(rng, 36))
    elif kind == "cross":
        contours = _turn([_cross(rng)], _small_tilt(rng, 25) + (45 if rng.random() < 0.15 else 0))
    elif kind == "heart":
        contours = _turn([_heart()], _small_tilt(rng, 30))
    else:
        quarter = rng.integers(4)
        direction = DIRECTIONS[quarter]
        thin = rng.random() < 0.35
        contours = _turn(_line_arrow(rng) if thin else [_arrow(rng)], 90 * quarter + _small_tilt(rng, 18))
        stroke = rng.uniform(0.06, 0.14) * diameter if thin else 0.0
    contours = [contour * diameter / 2 for contour in contours]
    everything = np.vstack(contours)
    low, high = everything.min(0) - stroke / 2, everything.max(0) + stroke / 2
    contours = [contour - (low + high) / 2 for contour in contours]
    return Thing(kind, colour, rgb, *(high - low), contours=contours, stroke=stroke, direction=direction)


def make_text(text, rgb, height, rng):
    line = print_line(text, height, rng)
    return Thing("text", None, rgb, line.mask.shape[1], line.mask.shape[0], text=text, line=line)


# --- layout ----------------------------------------------------------------------------------------------------------

PICTURE_SIZES = [(640, 480), (320, 240), (480, 360), (400, 300), (256, 192), (512, 512), (224, 224), (300, 300)]


def _picture_size(rng):
    """Pictures as cameras and programs make them; the second value says if squares keep their looks in it."""
    style = rng.random()
    if style < 0.5:
        return PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))], True
    longest = int(rng.choice([200, 240, 280, 320, 400, 480, 640], p=[0.2, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05]))
    if style < 0.9:
        ratio = rng.uniform(1.0, 1.8)
        size = longest, int(longest / ratio)
        return (size[::-1] if rng.random() < 0.25 and ratio < 1.4 else size), True
    ratio = rng.uniform(1.8, 2.8)
    size = longest, int(longest / ratio)
    return (size[::-1] if rng.random() < 0.3 else size), False


def _background(rng):
    style = rng.random()
    if style < 0.35:
        corner = np.full(3, rng.choice([255, 255, 255, 0, 240, 200, 128]), np.float32)
        return corner, corner
    first = hsv_to_rgb(rng.uniform(0, 360), rng.uniform(0, 0.35) if rng.random() < 0.75 else rng.uniform(0.3, 0.9), rng.uniform(0.08, 1))
    if style < 0.6:
        return first, first
    return first, np.clip(first + rng.normal(0, 30, 3) + rng.normal(0, 25), 0, 255).astype(np.float32)


def _stands_out(rgb, background):
    return all(np.sqrt(((rgb - corner) ** 2 * (0.8, 1.4, 0.8)).sum()) > 110 for corner in background)


def _pick_colour(background, rng):
    for _ in range(40):
        colour = COLOURS[rng.integers(len(COLOURS))]
        rgb = sample_shade(colour, rng)
        if _stands_out(rgb, background):
            return colour, rgb
    return ("white", np.full(3, 255.0)) if np.mean(background) < 128 else ("black", np.zeros(3))


def _fits(thing, scene, overlap):
    for other in scene.things:
        touching = overlap and other.colour != thing.colour and "text" not in (other.kind, thing.kind)
        margin = 0.02 * scene.width
        width = min(thing.x + thing.width / 2, other.x + other.width / 2) - max(thing.x - thing.width / 2, other.x - other.width / 2)
        height = min(thing.y + thing.height / 2, other.y + other.height / 2) - max(thing.y - thing.height / 2, other.y - other.height / 2)
        if touching and max(width, 0) * max(height, 0) > 0.15 * min(thing.width * thing.height, other.width * other.height):
            return False
        if not touching and width > -margin and height > -margin:
            return False
        if abs(thing.x - other.x) < 0.035 * scene.width:
            return False  # the order from left to right must be visible
    return True


def _place(thing, scene, overlap, rng):
    """Adds the thing where it fits; a thing that fits nowhere is left out."""
    if thing.width > 0.98 * scene.width or thing.height > 0.98 * scene.height:
        return
    for _ in range(25):
        thing.x = rng.uniform(thing.width / 2, scene.width - thing.width / 2)
        thing.y = rng.uniform(thing.height / 2, scene.height - thing.height / 2)
        if _fits(thing, scene, overlap):
            scene.things.append(thing)
            return


def _sample_text(rng, free_text):
    style = rng.random()
    if style < 0.6:
        return "".join(str(d) for d in rng.integers(0, 10, rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15])))
    if style < 0.6 + 0.25 * free_text:
        return "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"), rng.integers(1, 5)))
    return WORDS[rng.integers(len(WORDS))]


def _add_text(scene, rng, free_text):
    text = _sample_text(rng, free_text)
    rgb = sample_shade(COLOURS[rng.integers(len(COLOURS))], rng)
    if not _stands_out(rgb, scene.background):
        rgb = np.full(3, 0.0 if np.mean(scene.background) > 128 else 255.0)
    # Below about 6 pixels a character in the overview tile, people cannot read it either.
    widest, tallest = 0.92 * scene.width, 0.8 * scene.height
    height = scene.height * min(np.exp(rng.uniform(np.log(0.13), np.log(0.6))), 0.8)
    thing = make_text(text, rgb, height, rng)
    shrink = min(1.0, widest / thing.width, tallest / thing.height)
    if shrink < 1:
        thing = make_text(text, rgb, height * shrink * 0.9, rng)
    if thing.width < widest * 1.08 and thing.width > 0.065 * scene.width * len(text):
        _place(thing, scene, False, rng)


def sample_scene(rng, free_text=False, text_share=0.25):
    """A random scene. With `free_text`, printed letters are also random strings (to learn to read, not to guess)."""
    (width, height), true_squares = _picture_size(rng)
    scene = Scene(width, height, _background(rng), [])
    style = rng.random()
    with_text, with_arrow = style < text_share, text_share <= style < text_share + 0.17
    if with_text:
        _add_text(scene, rng, free_text)
    others = rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.2, 0.15]) if with_text or with_arrow else rng.choice(
        [1, 2, 3, 4, 5, 6], p=[0.17, 0.22, 0.22, 0.18, 0.13, 0.08])
    count = others + with_arrow
    kinds = [kind for kind in SHAPES if true_squares or kind not in ("square", "rectangle")]
    repeat = rng.choice(kinds) if rng.random() < 0.3 else None
    overlap = rng.random() < 0.2
    largest = 0.85 if count == 1 and not with_text else [0, 0.7, 0.55, 0.45, 0.4, 0.36, 0.33][max(1, count)]
    for index in range(count):
        arrow = with_arrow and index == 0
        kind = "arrow" if arrow else repeat if repeat and rng.random() < 0.6 else kinds[rng.integers(len(kinds))]
        colour, rgb = _pick_colour(scene.background, rng)
        low = 0.24 if arrow else 0.17
        diameter = min(width, height) * np.exp(rng.uniform(np.log(low), np.log(max(largest, low + 0.1))))
        if max(width, height) > 1.8 * min(width, height):
            diameter *= 1.25
        _place(make_shape(kind, colour, rgb, min(diameter, 0.9 * min(width, height)), rng), scene, overlap, rng)
    return scene if scene.things else sample_scene(rng, free_text, text_share)
