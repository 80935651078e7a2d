"""Orthogonal matrices folded into weights: the same function, with no channel far larger than the others, so that one scale is enough for a row.

For an orthogonal R, (x R)(R' W) = x W. A norm without gain commutes with R; its gain goes into the matrices that read it first. The idea is
of QuaRot (arXiv 2404.00456); LayerNorm's mean goes into what writes the stream, as in SliceGPT (arXiv 2401.15024). The library's own engine
does the same (src/kernels/rotation.rs). Graphs keep their inputs and outputs, and go with those of another precision: the decoder turns
embeddings at its entrance (`ENTRANCE`). What the down projection reads cannot come turned: it is spread when it is there (`SPREAD`).
"""

import numpy as np

from .names import ENTRANCE, SPREAD, TEXT, VISION

SPREAD_OVER = 64  # numbers at most: each costs a product in f32
PROJECTION = "model.connector.modality_projection.proj"


def hadamard(size):
    """Of a power of two; it is its own inverse."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def orthogonal(size):
    """Signs, a Hadamard matrix within blocks, and a cosine transform across them; rows are turned by `row @ orthogonal(len(row))`."""
    block = size & -size
    blocks = size // block
    k, i = np.mgrid[:blocks, :blocks]
    across = np.sqrt(np.where(k == 0, 1, 2) / blocks) * np.cos(np.pi * k * (2 * i + 1) / (2 * blocks))
    signs = np.where((np.arange(size) * 2654435761 >> 31) % 2, -1.0, 1.0)
    return signs[:, None] * np.kron(across.T, hadamard(block))


class Folder:
    """Weights in float64 while they are changed. A linear layer's weight is [out, in]; its bias is optional."""

    def __init__(self, weights):
        self.weights = dict(weights)

    def get(self, name):
        return self.weights[name].astype(np.float64)

    def put(self, name, value):
        self.weights[name] = value.astype(np.float32)

    def inputs(self, layer, matrix):
        """What `layer` reads comes turned by `matrix`."""
        self.put(f"{layer}.weight", self.get(f"{layer}.weight") @ matrix)

    def outputs(self, layer, matrix):
        """What `layer` writes shall be turned by `matrix`."""
        weight = self.get(f"{layer}.weight")
        self.put(f"{layer}.weight", (matrix.T @ weight.reshape(len(weight), -1)).reshape(weight.shape))
        if f"{layer}.bias" in self.weights:
            self.put(f"{layer}.bias", self.get(f"{layer}.bias") @ matrix)

    def gain(self, norm, layers, times=1):
        """The norm's gain and bias go into `layers`, which read `times` of its rows side by side."""
        gain = np.tile(self.get(f"{norm}.weight"), times)
        for layer in layers:
            weight = self.get(f"{layer}.weight")
            if f"{norm}.bias" in self.weights:
                bias = weight @ np.tile(self.get(f"{norm}.bias"), times)
                self.put(f"{layer}.bias", bias + (self.get(f"{layer}.bias") if f"{layer}.bias" in self.weights else 0))
            self.put(f"{layer}.weight", weight * gain)
        self.put(f"{norm}.weight", np.ones(len(gain) // times))

    def heads(self, values, out, size):
        """Values are turned head by head: attention is linear in them."""
        turn = orthogonal(size)
        for layer, fold, axis in ((values, self.outputs, 0), (out, self.inputs, 1)):
            fold(layer, np.kron(np.eye(self.weights[f"{layer}.weight"].shape[axis] // size), turn))


def decoder(config, weights):
    """The decoder's weights with its residual stream and its values turned."""
    text, folded = config.text_config, Folder(weights)
    turn, inside = orthogonal(text.hidden_size), text.intermediate_size
    spread = hadamard(min(inside & -inside, SPREAD_OVER))
    folded.put(ENTRANCE, turn)
    folded.put(SPREAD, spread)
    for i in range(text.num_hidden_layers):
        layer = f"{TEXT}.layers.{i}"
        for norm, readers in (
            ("input_layernorm", [f"{layer}.self_attn.{part}_proj" for part in "qkv"]),
            ("post_attention_layernorm", [f"{layer}.mlp.{part}_proj" for part in ("gate", "up")]),
        ):
            folded.gain(f"{layer}.{norm}", readers)
            for reader in readers:
                folded.inputs(reader, turn)
        folded.heads(f"{layer}.self_attn.v_proj", f"{layer}.self_attn.o_proj", text.head_dim)
        folded.inputs(f"{layer}.mlp.down_proj", np.kron(np.eye(inside // len(spread)), spread))
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            folded.outputs(f"{layer}.{writer}", turn)
    if config.tie_word_embeddings:
        folded.weights["lm_head.weight"] = weights[f"{TEXT}.embed_tokens.weight"]
    folded.gain(f"{TEXT}.norm", ["lm_head"])
    folded.inputs("lm_head", turn)
    return folded.weights


def vision(config, weights):
    """The encoder's weights with its residual stream and its values turned. The stream has no mean, so that its norms need not take one off."""
    vision, times, folded = config.vision_config, config.scale_factor**2, Folder(weights)
    turn = orthogonal(vision.hidden_size)
    folded.put(ENTRANCE, turn)
    write = turn - turn.mean(0)  # takes a row's mean off, and turns it
    embeddings = f"{VISION}.embeddings"
    folded.outputs(f"{embeddings}.patch_embedding", write)
    folded.put(f"{embeddings}.position_embedding.weight", folded.get(f"{embeddings}.position_embedding.weight") @ write)
    for i in range(vision.num_hidden_layers):
        layer = f"{VISION}.encoder.layers.{i}"
        for norm, readers in (("layer_norm1", [f"self_attn.{part}_proj" for part in "qkv"]), ("layer_norm2", ["mlp.fc1"])):
            readers = [f"{layer}.{reader}" for reader in readers]
            folded.gain(f"{layer}.{norm}", readers)
            for reader in readers:
                folded.inputs(reader, turn)
        folded.heads(f"{layer}.self_attn.v_proj", f"{layer}.self_attn.out_proj", vision.hidden_size // vision.num_attention_heads)
        for writer in ("self_attn.out_proj", "mlp.fc2"):
            folded.outputs(f"{layer}.{writer}", write)
    folded.gain(f"{VISION}.post_layernorm", [PROJECTION], times)
    folded.inputs(PROJECTION, np.kron(np.eye(times), turn))
    return folded.weights


TURN = {"vision_encoder": vision, "decoder_model_merged": decoder}
