"""Dense labels: what a scene puts under every patch and every image token of every tile.

A model this small does not find out from answers alone that pictures matter; told what each patch shows, it learns to see in minutes.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .glyphs import CHARACTERS
from .scenes import COLOURS, DIRECTIONS, KINDS
from .tiles import PATCH, PATCHES, TILE, TOKENS, grid_of

SLOTS = 2  # objects whose centre lies in one token's cell
CHARACTER_SLOTS = 4
COVERAGE = 0.12  # of a patch or a cell, from which on a thing counts as being there


@dataclass
class Labels:
    """Class 0 is always 'nothing'. T tiles; patches and tokens row-major."""

    patch_kind: np.ndarray  # [T, 144]
    patch_colour: np.ndarray  # [T, 144]
    patch_character: np.ndarray  # [T, 144]
    patch_offset: np.ndarray  # [T, 144, 2] from the patch to its object's centre, in tiles
    slot_kind: np.ndarray  # [T, 16, SLOTS] objects centred in the cell, from left to right
    slot_colour: np.ndarray  # [T, 16, SLOTS]
    slot_box: np.ndarray  # [T, 16, SLOTS, 4] centre within the cell, and size in tiles
    direction: np.ndarray  # [T, 16] of an arrow centred in the cell
    characters: np.ndarray  # [T, 16, CHARACTER_SLOTS] centred in the cell, from left to right
    cover_kind: np.ndarray  # [T, 16, kinds] 0 or 1
    cover_colour: np.ndarray  # [T, 16, colours] 0 or 1

    def stack_with(self, others):
        everything = [self, *others]
        return Labels(**{name: np.concatenate([getattr(x, name) for x in everything]) for name in FIELDS})

    def pick(self, tiles):
        return Labels(**{name: getattr(self, name)[tiles] for name in FIELDS})


FIELDS = list(Labels.__dataclass_fields__)


def _canvases(scene, grid):
    """Maps of object number and of character, on the pixels of all tiles side by side."""
    width, height = grid.columns * TILE, grid.rows * TILE
    scale = np.array([width / scene.width, height / scene.height])
    objects, characters = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    for number, thing in enumerate(scene.things, 1):
        if thing.line is not None:
            boxes = thing.line.boxes + np.tile((thing.x - thing.width / 2, thing.y - thing.height / 2), 2)
            for character, box in zip(thing.text, np.round(boxes * np.tile(scale, 2)).astype(int)):
                objects[box[1] : box[3], box[0] : box[2]] = number
                characters[box[1] : box[3], box[0] : box[2]] = CHARACTERS.index(character) + 1
            continue
        contours = [np.round(contour * scale * 16).astype(np.int32) for contour in thing.placed_contours()]
        if thing.stroke:
            cv2.polylines(objects, contours, False, number, max(1, round(thing.stroke * scale.mean())), cv2.LINE_8, 4)
        else:
            cv2.fillPoly(objects, contours, number, cv2.LINE_8, 4)
    return objects, characters


def _cut(canvas, grid):
    tiles = canvas.reshape(grid.rows, TILE, grid.columns, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    overview = cv2.resize(canvas, (TILE, TILE), interpolation=cv2.INTER_NEAREST)
    return np.concatenate([tiles, overview[None]])


def _coverage(tiles, values, cells):
    """Which share of each cell shows each value: [T, cells * cells, values]."""
    side = TILE // cells
    shares = [(tiles == v).reshape(len(tiles), cells, side, cells, side).mean((2, 4)) for v in range(1, values + 1)]
    return np.stack(shares, -1).reshape(len(tiles), cells * cells, values).astype(np.float32)


def _dominant(coverage):
    return np.where(coverage.max(-1) >= COVERAGE, coverage.argmax(-1) + 1, 0)


def _fill_slots(labels, scene, windows):
    for tile, (left, top, width, height) in enumerate(windows):
        slots, characters = {}, {}
        for thing in scene.ordered:
            x, y = (thing.x / scene.width - left) / width, (thing.y / scene.height - top) / height
            size = thing.width / scene.width / width, thing.height / scene.height / height
            if 0 <= x < 1 and 0 <= y < 1:
                slots.setdefault((int(y * TOKENS), int(x * TOKENS)), []).append((thing, x * TOKENS % 1, y * TOKENS % 1, *size))
            if thing.line is None:
                continue
            for character, box in zip(thing.text, thing.line.boxes):
                x = ((thing.x - thing.width / 2 + (box[0] + box[2]) / 2) / scene.width - left) / width
                y = ((thing.y - thing.height / 2 + (box[1] + box[3]) / 2) / scene.height - top) / height
                if 0 <= x < 1 and 0 <= y < 1:
                    characters.setdefault((int(y * TOKENS), int(x * TOKENS)), []).append(CHARACTERS.index(character) + 1)
        for (row, column), found in slots.items():
            cell = row * TOKENS + column
            for slot, (thing, *box) in enumerate(found[:SLOTS]):
                labels.slot_kind[tile, cell, slot] = KINDS.index(thing.kind) + 1
                labels.slot_colour[tile, cell, slot] = COLOURS.index(thing.colour) + 1 if thing.colour else 0
                labels.slot_box[tile, cell, slot] = box
                if thing.direction:
                    labels.direction[tile, cell] = DIRECTIONS.index(thing.direction) + 1
        for (row, column), found in characters.items():
            labels.characters[tile, row * TOKENS + column, : len(found[:CHARACTER_SLOTS])] = found[:CHARACTER_SLOTS]


def label(scene):
    grid = grid_of(scene.width, scene.height)
    objects, characters = (_cut(canvas, grid) for canvas in _canvases(scene, grid))
    windows, count, tiles = grid.windows(), len(scene.things), grid.tiles
    kinds = np.array([0] + [KINDS.index(thing.kind) + 1 for thing in scene.things])
    colours = np.array([0] + [COLOURS.index(thing.colour) + 1 if thing.colour else 0 for thing in scene.things])
    owner = _dominant(_coverage(objects, count, PATCHES))

    steps = (np.arange(PATCHES) + 0.5) / PATCHES
    patches = np.stack(np.meshgrid(steps, steps), -1).reshape(1, -1, 2)
    centres = np.array([(0, 0)] + [(thing.x / scene.width, thing.y / scene.height) for thing in scene.things])
    offset = (centres[owner] - windows[:, None, :2]) / windows[:, None, 2:] - patches

    cells = _coverage(objects, count, TOKENS) >= COVERAGE
    cell_kinds = np.zeros((tiles, TOKENS**2, len(KINDS) + 1), np.uint8)
    cell_colours = np.zeros((tiles, TOKENS**2, len(COLOURS) + 1), np.uint8)
    for number in range(count):
        cell_kinds[..., kinds[number + 1]] |= cells[..., number]
        cell_colours[..., colours[number + 1]] |= cells[..., number]

    middle = characters[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].reshape(tiles, -1)
    empty = lambda *shape: np.zeros((tiles, TOKENS**2, *shape), np.uint8)
    labels = Labels(
        patch_kind=kinds[owner].astype(np.uint8),
        patch_colour=colours[owner].astype(np.uint8),
        patch_character=middle,
        patch_offset=np.where(owner[..., None] > 0, offset, 0).astype(np.float32),
        slot_kind=empty(SLOTS),
        slot_colour=empty(SLOTS),
        slot_box=empty(SLOTS, 4).astype(np.float32),
        direction=empty(),
        characters=empty(CHARACTER_SLOTS),
        cover_kind=cell_kinds[..., 1:],
        cover_colour=cell_colours[..., 1:],
    )
    _fill_slots(labels, scene, windows)
    return labels
