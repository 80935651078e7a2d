"""The Idefics3 architecture, lean enough to train on a CPU; parameter names are the checkpoint's own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .tiles import PATCH, PATCHES, SCALE_FACTOR, TILE, TOKENS


@dataclass(frozen=True)
class Config:
    vision_width: int = 128
    vision_heads: int = 8
    vision_layers: int = 6
    text_width: int = 192
    text_inner: int = 448
    text_heads: int = 6
    text_kv_heads: int = 2
    text_layers: int = 4
    rope_theta: float = 10000.0
    vocab: int = 640


def attend(q, k, v, mask=None):
    """Attention spelled out: at these sizes torch's fused kernel takes three times as long on a CPU, backwards in bfloat16 ten times."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4)
    return scores.softmax(-1, dtype=scores.dtype) @ v


class VisionAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = attend(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)))
        return self.out_proj(y.transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attn, self.mlp = VisionAttention(width, heads), VisionMlp(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.vision_width
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH)
        self.embeddings.position_embedding = nn.Embedding(PATCHES**2, width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(width, config.vision_heads) for _ in range(config.vision_layers))
        self.post_layernorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tiles):
        """uint8 [T, TILE, TILE, 3] -> [T, patches, width]."""
        pixels = tiles.view(-1, PATCHES, PATCH, PATCHES, PATCH, 3).permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        embed = self.embeddings.patch_embedding
        x = F.linear(pixels.float() / 127.5 - 1, embed.weight.flatten(1), embed.bias)
        x = x + self.embeddings.position_embedding.weight
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Connector(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.modality_projection = nn.Module()
        self.modality_projection.proj = nn.Linear(config.vision_width * SCALE_FACTOR**2, config.text_width, bias=False)

    def forward(self, x):
        x = x.unflatten(1, (TOKENS, SCALE_FACTOR, TOKENS, SCALE_FACTOR)).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.modality_projection.proj(x)


class TextAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.text_heads, config.text_kv_heads
        width = config.text_width
        kv_width = width // self.heads * self.kv_heads
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, kv_width, bias=False), nn.Linear(width, kv_width, bias=False)

    def forward(self, x, rotation, mask):
        split = lambda y, heads: y.unflatten(-1, (heads, -1)).transpose(1, 2)
        q, k = rotate(split(self.q_proj(x), self.heads), rotation), rotate(split(self.k_proj(x), self.kv_heads), rotation)
        v = split(self.v_proj(x), self.kv_heads)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def rotate(x, rotation):
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class TextMlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(config.text_width, config.text_inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(config.text_inner, config.text_width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TextLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.text_width, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(config.text_width, eps=1e-5)
        self.self_attn, self.mlp = TextAttention(config), TextMlp(config)

    def forward(self, x, rotation, mask):
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.text_width)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))
        self.norm = nn.RMSNorm(config.text_width, eps=1e-5)
        size = config.text_width // config.text_heads
        self.register_buffer("frequencies", config.rope_theta ** (-torch.arange(0, size, 2) / size), persistent=False)

    def forward(self, x, positions, mask):
        """Embeddings [B, T, width], positions [B, T], mask [B, T, T] (true: may look) -> [B, T, width]."""
        angle = (positions[..., None] * self.frequencies).repeat(1, 1, 2)[:, None]
        rotation = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, rotation, mask[:, None])
        return self.norm(x)


class DemoModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = nn.Module()
        self.model.vision_model = VisionModel(config)
        self.model.connector = Connector(config)
        self.model.text_model = TextModel(config)
        self.lm_head = nn.Linear(config.text_width, config.vocab, bias=False)
        initialise(self, config)

    def encode(self, tiles):
        patches = self.model.vision_model(tiles)
        return patches, self.model.connector(patches)

    def hidden(self, ids, image_rows, image_mask, positions, mask):
        """`image_rows` [B, n, width] replace the embeddings at `image_mask`, in order."""
        x = self.model.text_model.embed_tokens(ids)
        x = x.masked_scatter(image_mask[..., None], image_rows)
        return self.model.text_model(x, positions, mask)


# --- initialisation --------------------------------------------------------------------------------------------------

POSITION_FREQUENCIES = (0.26, 0.55, 1.0, 1.7)  # radians a patch; the lowest tells the two ends of a tile apart
NEIGHBOURS = [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]


def _position_code():
    """[patches, 16]: cosine and sine of each frequency, for y and for x."""
    step = torch.arange(PATCHES).float()
    axis = torch.stack([f(w * step) for w in POSITION_FREQUENCIES for f in (torch.cos, torch.sin)], 1)
    return torch.cat([axis.repeat_interleave(PATCHES, 0), axis.repeat(PATCHES, 1)], 1)


def _shift_matrix(dy, dx):
    """Turns the code of a position into the code of the position (dy, dx) further."""
    blocks = []
    for distance in (dy, dx):
        for w in POSITION_FREQUENCIES:
            angle = torch.tensor(w * distance)
            blocks.append(torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]))
    return torch.block_diag(*blocks)


def initialise(model, config):
    """Vision heads start out looking at one neighbour each, so that the encoder starts as a convolutional network would.

    From the usual random start a vision transformer spends most of a CPU-sized budget on finding locality.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5 if "embed_tokens" in name else parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    vision, code = model.model.vision_model, _position_code()
    size = code.shape[1]
    with torch.no_grad():
        nn.init.normal_(vision.embeddings.patch_embedding.weight, std=2 * (3 * PATCH * PATCH) ** -0.5)
        vision.embeddings.patch_embedding.weight[:size] = 0
        vision.embeddings.position_embedding.weight.normal_(std=0.02)
        vision.embeddings.position_embedding.weight[:, :size] = code
        for depth, layer in enumerate(vision.encoder.layers):
            attention = layer.self_attn
            for head, (dy, dx) in enumerate(NEIGHBOURS[: config.vision_heads]):
                rows = slice(head * size, (head + 1) * size)
                reach = (1, 2, 1, 3, 2, 1)[depth % 6]
                sharp = 2.4 if reach == 1 else 1.7
                attention.q_proj.weight[rows] *= 0.2
                attention.k_proj.weight[rows] *= 0.2
                attention.q_proj.weight[rows, :size] = sharp * _shift_matrix(dy * reach, dx * reach)
                attention.k_proj.weight[rows, :size] = sharp * torch.eye(size)
            for linear in (attention.out_proj, layer.mlp.fc2):
                linear.weight *= (2 * config.vision_layers) ** -0.5
                linear.weight[:size] *= 0.1  # the position code survives into the deep layers
        for layer in model.model.text_model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight *= (2 * config.text_layers) ** -0.5
        model.lm_head.weight *= 0.3
