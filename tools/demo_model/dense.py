"""The training-only heads that ask every patch and every image token what it shows."""

import torch
import torch.nn.functional as F
from torch import nn

from .glyphs import CHARACTERS
from .labels import CHARACTER_SLOTS, FIELDS, SLOTS
from .scenes import COLOURS, DIRECTIONS, KINDS

KIND_CLASSES, COLOUR_CLASSES = len(KINDS) + 1, len(COLOURS) + 1
CHARACTER_CLASSES, DIRECTION_CLASSES = len(CHARACTERS) + 1, len(DIRECTIONS) + 1
PATCH_PARTS = {"patch_kind": KIND_CLASSES, "patch_colour": COLOUR_CLASSES, "patch_character": CHARACTER_CLASSES, "patch_offset": 2}
TOKEN_PARTS = {
    "slot_kind": SLOTS * KIND_CLASSES,
    "slot_colour": SLOTS * COLOUR_CLASSES,
    "slot_box": SLOTS * 4,
    "direction": DIRECTION_CLASSES,
    "characters": CHARACTER_SLOTS * CHARACTER_CLASSES,
    "cover_kind": len(KINDS),
    "cover_colour": len(COLOURS),
}
NOTHING_WEIGHT = 0.25  # most of a picture is background


def _classify(logits, target, classes):
    weight = torch.ones(classes)
    weight[0] = NOTHING_WEIGHT
    return F.cross_entropy(logits.reshape(-1, classes), target.reshape(-1).long(), weight=weight)


def _locate(predicted, target, valid):
    error = F.smooth_l1_loss(predicted, target, beta=0.1, reduction="none").mean(-1)
    return (error * valid).sum() / valid.sum().clamp(min=1)


class DenseHeads(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch = nn.Linear(config.vision_width, sum(PATCH_PARTS.values()))
        self.token_norm = nn.LayerNorm(config.text_width)
        self.token = nn.Linear(config.text_width, sum(TOKEN_PARTS.values()))

    def losses(self, patches, tokens, labels):
        """`labels`: a dictionary of tensors named like the fields of Labels."""
        patch = dict(zip(PATCH_PARTS, self.patch(patches).split(list(PATCH_PARTS.values()), -1)))
        token = dict(zip(TOKEN_PARTS, self.token(self.token_norm(tokens)).split(list(TOKEN_PARTS.values()), -1)))
        boxes = token["slot_box"].unflatten(-1, (SLOTS, 4))
        losses = {
            "patch_kind": _classify(patch["patch_kind"], labels["patch_kind"], KIND_CLASSES),
            "patch_colour": _classify(patch["patch_colour"], labels["patch_colour"], COLOUR_CLASSES),
            "patch_character": _classify(patch["patch_character"], labels["patch_character"], CHARACTER_CLASSES),
            "patch_offset": 2 * _locate(patch["patch_offset"], labels["patch_offset"], labels["patch_kind"] > 0),
            "slot_kind": _classify(token["slot_kind"], labels["slot_kind"], KIND_CLASSES),
            "slot_colour": _classify(token["slot_colour"], labels["slot_colour"], COLOUR_CLASSES),
            "slot_box": 2 * _locate(boxes, labels["slot_box"], labels["slot_kind"] > 0),
            "direction": 0.5 * _classify(token["direction"], labels["direction"], DIRECTION_CLASSES),
            "characters": 1.5 * _classify(token["characters"], labels["characters"], CHARACTER_CLASSES),
            "cover_kind": F.binary_cross_entropy_with_logits(token["cover_kind"], labels["cover_kind"].float()),
            "cover_colour": F.binary_cross_entropy_with_logits(token["cover_colour"], labels["cover_colour"].float()),
        }
        return losses, {**patch, **token}


@torch.no_grad()
def hit_rates(predicted, labels):
    """How often the class is right where there is something, for the log."""
    rates = {}
    for name, classes in {**PATCH_PARTS, **TOKEN_PARTS}.items():
        if name.endswith(("offset", "box")) or name.startswith("cover"):
            continue
        target = labels[name].long()
        width = predicted[name].shape[-1] // (target[0, 0].numel() if target.dim() > 2 else 1)
        guess = predicted[name].reshape(*target.shape, width).argmax(-1)
        there = target > 0
        rates[name] = (guess[there] == target[there]).float().mean().item() if there.any() else float("nan")
    return rates


SYMBOL_WIDTH = SLOTS * (KIND_CLASSES + COLOUR_CLASSES + 4) + DIRECTION_CLASSES + CHARACTER_SLOTS * CHARACTER_CLASSES + len(KINDS) + len(COLOURS) + 16


def symbols(labels):
    """The token labels as one vector per token: what a perfect encoder would tell the language model."""
    tiles = labels["slot_kind"].shape[0]
    there = (labels["slot_kind"] > 0)[..., None]
    parts = [
        F.one_hot(labels["slot_kind"].long(), KIND_CLASSES),
        F.one_hot(labels["slot_colour"].long(), COLOUR_CLASSES) * there,
        labels["slot_box"] * there,
        F.one_hot(labels["direction"].long(), DIRECTION_CLASSES),
        F.one_hot(labels["characters"].long(), CHARACTER_CLASSES),
        labels["cover_kind"],
        labels["cover_colour"],
        torch.eye(16).expand(tiles, -1, -1),
    ]
    return torch.cat([part.reshape(tiles, 16, -1).float() for part in parts], -1)


def to_tensors(labels):
    return {name: torch.from_numpy(getattr(labels, name)) for name in FIELDS}
